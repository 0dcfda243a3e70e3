"""Memorization with chain of thought: the exact decision, a shortest plan, and the records that block it. [derived]

Not quoted from Yu, Gao and Zhang 2025 (arXiv 2511.01190) but derived from their definitions. A run from x visits the
prefixes x, x c_1, x c_1 c_2, .. and one table F^ answers on all of them, so S is memorizable with chain of thought if
and only if there are nonempty words cot_x, ending in y_x, such that the unrolled set

    U = {(x c_1..c_j, c_{j+1})} u {(x cot_x, gamma_0)}    is (a) single-valued and (b) satisfies Theorem 4.1.

With positions "none", (b) makes F^ one constant f_k on all gamma_k^m. If some gamma_k^m is in S, f_k is a gamma_j with
j != k: f_k = gamma_k never stops, and gamma_0 leaves no answer. By (a), whoever passes through a record x' gives the
answer of x'. Let Val(z) be the attainable answers from a prefix z of two types or more:

    z in S:      {y_z} if y_z in union_c Val(zc), else {}
    z not in S:  {last(z)} (stop here) u union_c Val(zc);   if no record begins with z: all of Gamma.

S is memorizable  <=>  Val(z) is nonempty for every z in S of two types or more, and for every k with some gamma_k^m in
S one j != k has y_x in Val(x gamma_j) for all these x.
Proof. "=>": a table F^ that works shows its answers attainable, by induction from long prefixes to short. "<=": let
each record of two types follow a shortest path to its answer, records of S by decreasing length; when the path meets
another record, go on as that record does (it has the same answer). Two paths that meet at a word w descend from two
records that are prefixes of w, so one is a prefix of the other and the longer one lies on both paths: from there they
are one path. Hence U is single-valued. Paths of the gamma_k^m leave at once into disjoint subtrees of words of two
types.

The number of symbols to the answer, D(z, y), obeys the same recursion with minima. Where some extension of z is the
prefix of no record, D <= 2, so only nodes with all T children in the tree need work. The paths above are all shortest
at once, hence "every chain within max_cot symbols" is decided exactly by the same numbers.

With a BOS token (Theorem 4.1 over Gamma and BOS: no word has a single type) or absolute positions [derived] clause (b)
is void, and words of one symbol are treated as all others.
Consequences [derived]: a symbol that no input contains makes every dataset memorizable (x -> that symbol -> y), and so
does T >= 2 when no input is a prefix of another.

Knows nothing about: transformers, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rote.errors import InputError
from rote.theory.cot.obstruction import Block, Obstruction, block_at
from rote.theory.cot.prefix_tree import PrefixTree
from rote.theory.cot.words import QADataset, Word, single_symbol

Positions = Literal["none", "bos", "absolute"]
POSITIONS = ("none", "bos", "absolute")
NEVER = 1 << 40  # no path; far above any length, and safe to add one to


@dataclass(frozen=True)
class CotDecision:
    """Whether S is memorizable with chain of thought, and why.

    plan: x -> cot_x, of least total length (under max_cot when given); None when there is none.
    obstruction: the records in the way, None when feasible without a limit.
    max_cot: the limit asked for; within_max_cot: whether a plan obeys it (None when no limit was given).
    needed_max_cot: the least limit under which there is a plan; None when infeasible.
    """

    feasible: bool
    plan: dict[Word, Word] | None
    obstruction: Obstruction | None
    max_cot: int | None
    within_max_cot: bool | None
    needed_max_cot: int | None


def decide_cot(dataset: QADataset, *, positions: Positions = "none", max_cot: int | None = None) -> CotDecision:
    """Decide the condition above exactly; time about linear in the total length of the inputs.

    max_cot: longest chain of thought allowed, in symbols (>= 1). It changes `plan` and `within_max_cot` only: whether
    S is memorizable with chains of any length is `feasible`.
    Errors: InputError for max_cot < 1 or unknown positions.
    """
    if positions not in POSITIONS:
        raise InputError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
    if max_cot is not None and max_cot < 1:
        raise InputError(f"max_cot is {max_cot}; a chain of thought has at least one symbol, its last is the answer")
    if positions == "none" and len(dataset.alphabet) == 1:
        return CotDecision(False, None, Obstruction("alphabet", None, ()), max_cot, _within(False, max_cot), None)
    paths = _Paths(PrefixTree(dataset))
    alone = {word: single_symbol(word) if positions == "none" else None for word in dataset.answers}
    mixed = [word for word, k in alone.items() if k is None]
    singles: dict[int, list[Word]] = {}
    for word, k in alone.items():
        if k is not None:
            singles.setdefault(k, []).append(word)

    # The longest blocked record: nothing below it is blocked, so its cut holds records with other answers only.
    for word in sorted(mixed, key=len, reverse=True):
        if paths.cost(paths.tree.node[word], dataset.answers[word]) >= NEVER:
            block = block_at(dataset, word, word)
            return _infeasible(Obstruction("record", None, (block,)), max_cot)

    needed = max((paths.cost(paths.tree.node[word], dataset.answers[word]) for word in mixed), default=1)
    chosen: dict[int, int] = {}  # k -> j
    limited: dict[int, int] | None = {} if max_cot is None or needed <= max_cot else None
    for k in sorted(singles):
        costs = paths.first_steps(k, singles[k], dataset)
        possible = {j: cost for j, cost in costs.items() if max(cost) < NEVER}
        if not possible:
            return _infeasible(Obstruction("symbol", k, _blocks(dataset, costs, singles[k])), max_cot)
        chosen[k] = min(possible, key=lambda j: (sum(possible[j]), j))
        needed = max(needed, min(max(cost) for cost in possible.values()))
        short = [j for j, cost in possible.items() if max_cot is None or max(cost) <= max_cot]
        if limited is not None and short:
            limited[k] = min(short, key=lambda j: (sum(possible[j]), j))
        else:
            limited = None

    within = _within(limited is not None, max_cot)
    first = limited if limited is not None else chosen
    plan = None
    if within is not False:
        plan = {}
        for word, answer in dataset.answers.items():
            k = alone[word]
            plan[word] = (
                paths.path(word, answer) if k is None else (first[k], *paths.path((*word, first[k]), answer, to=True))
            )
    return CotDecision(True, plan, None, max_cot, within, needed)


def _within(holds: bool, max_cot: int | None) -> bool | None:
    return None if max_cot is None else holds


def _infeasible(obstruction: Obstruction, max_cot: int | None) -> CotDecision:
    return CotDecision(False, None, obstruction, max_cot, _within(False, max_cot), None)


def _blocks(dataset: QADataset, costs: dict[int, tuple[int, ...]], words: list[Word]) -> tuple[Block, ...]:
    """For every first symbol gamma_j one record that it leads astray."""
    blocks = []
    for j, cost in sorted(costs.items()):
        word = next(word for word, steps in zip(words, cost, strict=True) if steps >= NEVER)
        blocks.append(block_at(dataset, word, (*word, j)))
    return tuple(blocks)


class _Paths:
    """D(z, y): the least number of further symbols from the visited prefix z to a stop with answer y."""

    def __init__(self, tree: PrefixTree):
        self.tree = tree
        self.rows: dict[int, np.ndarray] = {}  # full nodes: D(z, .) for all y
        for node in range(len(tree) - 1, 0, -1):
            if tree.full(node):
                self.rows[node] = self._full(node)

    def _full(self, node: int) -> np.ndarray:
        tree, answer = self.tree, self.tree.answer[node]
        if answer is not None:
            row = np.full(tree.symbols, NEVER, dtype=np.int64)
            best = min(self.cost(child, answer) for child in tree.children[node].values())
            row[answer] = min(NEVER, 1 + best)
            return row
        row = np.full(tree.symbols, NEVER, dtype=np.int64)
        for child in tree.children[node].values():
            np.minimum(row, 1 + self.row(child), out=row)
        row[tree.symbol[node]] = 0  # stop here
        return row

    def row(self, node: int) -> np.ndarray:
        """D(node, .) for all answers."""
        if node in self.rows:
            return self.rows[node]
        tree, answer = self.tree, self.tree.answer[node]
        if answer is not None:
            row = np.full(tree.symbols, NEVER, dtype=np.int64)
            row[answer] = self.cost(node, answer)
            return row
        row = np.ones(tree.symbols, dtype=np.int64)
        for symbol, child in tree.children[node].items():
            if tree.answer[child] is not None:
                row[symbol] = 2
        row[tree.symbol[node]] = 0
        return row

    def cost(self, node: int, y: int) -> int:
        """D(node, y). A node with a way out of the tree needs no search: y itself, or a free symbol and then y."""
        if node in self.rows:
            return int(self.rows[node][y])
        tree, answer = self.tree, self.tree.answer[node]
        if answer is not None and answer != y:
            return NEVER
        if answer is None and tree.symbol[node] == y:
            return 0
        child = tree.children[node].get(y)
        return 1 if child is None or tree.answer[child] is None else 2

    def first_steps(self, k: int, words: list[Word], dataset: QADataset) -> dict[int, tuple[int, ...]]:
        """For each useful first symbol j != k: the lengths of all the chains of the words gamma_k^m.

        All symbols that no child carries and no answer asks for cost the same, so one of them stands for all.
        """
        tree = self.tree
        nodes = [tree.node[word] for word in words]
        useful = {j for node in nodes for j in tree.children[node]} | {dataset.answers[word] for word in words}
        spare = next((j for j in range(tree.symbols) if j != k and j not in useful), None)
        candidates = sorted((useful | ({spare} if spare is not None else set())) - {k})
        found = {}
        for j in candidates:
            costs = []
            for word, node in zip(words, nodes, strict=True):
                child, y = tree.children[node].get(j), dataset.answers[word]
                step = (0 if j == y else 1) if child is None else self.cost(child, y)
                costs.append(min(NEVER, 1 + step))
            found[j] = tuple(costs)
        return found

    def path(self, prefix: Word, y: int, *, to: bool = False) -> Word:
        """The shortest continuation of `prefix` that stops with answer y; lowest symbols first among the shortest.

        It depends on (prefix, y) alone, so every run that comes to a word goes on from it in the same way.
        to: the run has come to `prefix`, so it may stop there at once.
        """
        tree = self.tree
        node: int | None = 0
        for symbol in prefix:
            node = tree.children[node].get(symbol) if node is not None else None
        last, found = prefix[-1], []
        while True:
            if node is None:
                return tuple(found) if last == y and (found or to) else (*found, y)
            left = self.cost(node, y)
            if left == 0:
                return tuple(found)
            last, node = self._step(node, y, left)
            found.append(last)

    def _step(self, node: int, y: int, left: int) -> tuple[int, int | None]:
        children = self.tree.children[node]
        for symbol in range(self.tree.symbols):
            child = children.get(symbol)
            if (self.cost(child, y) if child is not None else (0 if symbol == y else 1)) == left - 1:
                return symbol, child
        raise AssertionError("a finite distance has a next step")
