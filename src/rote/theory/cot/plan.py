"""Chains of thought as a plan {x: cot_x}: the unrolled set U, the table F^ it prescribes, and its simulation.

Knows how autoregression reads a table. Deliberately does not know how plans are found: a plan from anywhere is checked
here from the definitions alone (Yu, Gao and Zhang 2025, arXiv 2511.01190; the unrolled set is [derived]).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rote.errors import InputError
from rote.theory.cot.words import STOP, QADataset, Word, single_symbol

Table = dict[Word, int]


def unroll(dataset: QADataset, plan: Mapping[Word, Word]) -> Table:
    """U = {(x c_1..c_j, c_{j+1}) : j = 0..|cot|-1} u {(x cot, gamma_0)} as a table word -> next symbol (STOP: gamma_0).

    Errors (InputError): a record without a chain, an empty chain, a chain whose last symbol is not the answer, or two
    chains that ask one prefix for two symbols (U is not single-valued).
    """
    table: Table = {}
    for word, answer in dataset.answers.items():
        cot = plan.get(word)
        if not cot:
            raise InputError(
                f"{dataset.place(word)}: the plan has no chain of thought for it; give at least one symbol"
            )
        if cot[-1] != answer:
            raise InputError(f"{dataset.place(word)}: the chain of thought does not end with the answer")
        for position in range(len(cot) + 1):
            prefix = word + tuple(cot[:position])
            wanted = cot[position] if position < len(cot) else STOP
            if table.setdefault(prefix, wanted) != wanted:
                raise InputError(
                    f"{dataset.place(word)}: step {position + 1} of its chain contradicts another chain: "
                    "one prefix would need two next symbols"
                )
    return table


def violates_single_type(table: Mapping[Word, int]) -> tuple[Word, Word] | None:
    """Two words gamma_k^m, gamma_k^n of a table with different outputs (Theorem 4.1, outputs in Gamma and gamma_0)."""
    seen: dict[int, Word] = {}
    for word in sorted(table, key=lambda word: (len(word), word)):
        k = single_symbol(word)
        if k is None:
            continue
        first = seen.setdefault(k, word)
        if table[first] != table[word]:
            return first, word
    return None


@dataclass(frozen=True)
class Run:
    """One run of a table or a model from x: the chain it emitted, and whether it stopped by itself."""

    cot: Word
    stopped: bool

    @property
    def answer(self) -> int | None:
        """F^_cot(x), the last symbol of the chain; None when the chain is empty or does not end."""
        return self.cot[-1] if self.stopped and self.cot else None


def run_from(next_symbol: Callable[[Word], int | None], word: Word, *, steps: int) -> Run:
    """Start with x' = x; append s = F^(x') until s = gamma_0 (STOP); at most `steps` symbols. None: F^ is undefined."""
    cot: Word = ()
    for _ in range(steps + 1):
        symbol = next_symbol(word + cot)
        if symbol is None or symbol == STOP:
            return Run(cot, symbol == STOP)
        cot = (*cot, symbol)
    return Run(cot[:steps], False)


def check_plan(dataset: QADataset, plan: Mapping[Word, Word], *, positions: str = "none") -> Table:
    """The table U of a plan, after checking that U is single-valued, satisfies Theorem 4.1 (unless positions make it
    void) and that running it from every input gives that input's chain and answer. InputError says what fails."""
    table = unroll(dataset, plan)
    if positions == "none":
        pair = violates_single_type(table)
        if pair is not None:
            raise InputError(
                f"the plan needs two outputs on words that repeat one symbol {len(pair[0])} and {len(pair[1])} times; "
                "no transformer without positions has that (Theorem 4.1)"
            )
    for word, answer in dataset.answers.items():
        run = run_from(table.get, word, steps=len(plan[word]))
        if run.cot != tuple(plan[word]) or run.answer != answer:
            raise InputError(f"{dataset.place(word)}: running the table does not give its chain and answer")
    return table
