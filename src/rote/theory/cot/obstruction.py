"""Why a dataset cannot be memorized with chain of thought: a certificate, and its independent check. [derived]

A block says: from this prefix every continuation meets a record with another answer before it can stop with the right
one. It is finite (a set of records that cuts all continuations) and can be checked by reading, without the recursion
that found it. Knows nothing about: the recursion, transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rote.errors import RoteError
from rote.theory.cot.words import QADataset, Word, single_symbol


@dataclass(frozen=True)
class Block:
    """From `start` (the record itself, or the record and its first symbol) the record's answer cannot be reached.

    cut: records with another answer; every continuation of `start` comes to one of them, and no word before it ends in
    the wanted answer at a place where a run could stop.
    """

    record: Word
    start: Word
    cut: tuple[Word, ...]


@dataclass(frozen=True)
class Obstruction:
    """kind "record": one record of two types or more is blocked. kind "symbol": the words gamma_k^m in S must all emit
    one and the same gamma_j, and every j leads one of them into a block. kind "alphabet": T = 1, nothing but gamma_1
    can be emitted, and emitting it never ends."""

    kind: Literal["record", "symbol", "alphabet"]
    symbol: int | None
    blocks: tuple[Block, ...]

    @property
    def blocking_prefix(self) -> Word | None:
        return self.blocks[0].start if self.blocks else None


def block_at(dataset: QADataset, record: Word, start: Word) -> Block:
    """The records that cut every continuation of `start`, given that the answer of `record` is unattainable there and
    that no longer record is blocked itself."""
    answers, wanted, letters = dataset.answers, dataset.answers[record], range(len(dataset.alphabet))
    cut: list[Word] = []
    pending = [start]
    while pending:
        word = pending.pop()
        if word != record and word in answers and answers[word] != wanted:
            cut.append(word)
        elif len(word) > dataset.longest:
            raise RoteError("asked to explain a block where the answer is attainable: a fault of the checker")
        else:
            pending += [(*word, symbol) for symbol in letters]
    return Block(record, start, tuple(sorted(cut, key=lambda word: (len(word), word))))


def verify_block(dataset: QADataset, block: Block) -> bool:
    """Check a block by reading it: every word below `start` either goes on, or is a record of the cut with another
    answer; none on the way is a record of its own answer's making or a place to stop with the wanted answer.

    A record with the SAME answer on the way may be passed, but not stopped at.
    """
    answers, wanted, cut = dataset.answers, dataset.answers[block.record], set(block.cut)
    longest = max(map(len, cut), default=0)
    pending = [block.start]
    while pending:
        word = pending.pop()
        if word in cut:
            if word == block.record or answers.get(word, wanted) == wanted:
                return False
            continue
        could_stop = word not in answers and word[-1] == wanted
        if could_stop or len(word) > longest:
            return False
        pending += [(*word, symbol) for symbol in range(len(dataset.alphabet))]
    return True


def verify_obstruction(dataset: QADataset, obstruction: Obstruction, *, positions: str = "none") -> bool:
    """Whether the certificate proves that no chain of thought memorizes S."""
    if obstruction.kind == "alphabet":
        return positions == "none" and len(dataset.alphabet) == 1
    if not all(block.record in dataset.answers and verify_block(dataset, block) for block in obstruction.blocks):
        return False
    if obstruction.kind == "record":
        (block,) = obstruction.blocks
        return block.start == block.record and (positions != "none" or single_symbol(block.record) is None)
    k = obstruction.symbol
    firsts = {block.start[-1] for block in obstruction.blocks if block.start[:-1] == block.record}
    return (
        positions == "none"
        and all(single_symbol(block.record) == k for block in obstruction.blocks)
        and firsts == set(range(len(dataset.alphabet))) - {k}
    )
