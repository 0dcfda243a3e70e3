"""The census: of all labelings of all words up to length L, how many can be memorized, with and without chain of
thought. [derived]

Closed form. All T + T^2 + .. + T^L words are records, so a run that passes through a word of length < L lands on a
record, and words of length L are free below. A subtree of words of two types whose root has length L - h has

    n_0 = 1,   n_h = (T n_{h-1})^T - ((T - 1) n_{h-1})^T

feasible labelings for each label of its root: some child must carry the root's label. For a symbol k and any labels of
gamma_k, .., gamma_k^L, some gamma_j must carry the labels of gamma_k^m on all roots gamma_k^m gamma_j, m < L:

    side_k = prod_{m<L} (T n_{L-m-1})^{T-1} * (1 - (1 - T^{-(L-1)})^{T-1}),

so that CoT = (T^L side)^T, both = (T side)^T, no-CoT = T^{W - T L + T} with W words. For T = 1: no-CoT always, CoT
never. L = 2, T = 2 gives 4 / 12 / 12 / 36 of 64.

Knows arithmetic only; `tests` count the same by running the decision on every labeling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from rote.errors import InputError
from rote.theory.cot.words import Alphabet, QADataset, Word

LONGEST = 12  # the counts have about T^L digits


@dataclass(frozen=True)
class CensusRow:
    """Numbers of labelings of all words of length <= L over T symbols, answers in the same T symbols."""

    length: int
    symbols: int
    words: int
    both: int
    no_cot_only: int
    cot_only: int
    neither: int

    @property
    def labelings(self) -> int:
        return self.symbols**self.words


def label_census(*, length: int, symbols: int = 2) -> CensusRow:
    """Exact counts by the closed form above, in integers of any size.

    Errors: InputError unless length >= 1, symbols >= 1 and there are at most about 10^4 words.
    """
    if length < 1 or symbols < 1:
        raise InputError(f"census of words up to length {length} over {symbols} symbols: both must be 1 or more")
    words = sum(symbols**size for size in range(1, length + 1)) if length <= 10_000 else 10_000
    if words >= 10_000:
        raise InputError(
            f"census of words up to length {length} over {symbols} symbols: more than 10,000 words; lower one"
        )
    total = symbols**words
    if symbols == 1:  # gamma_1^m emits gamma_1 for ever or nothing: never memorizable with chain of thought
        return CensusRow(length, 1, words, 0, 1, 0, 0)
    per_label = [1]
    while len(per_label) < length:
        below = per_label[-1]
        per_label.append((symbols * below) ** symbols - ((symbols - 1) * below) ** symbols)
    side = Fraction(1)
    for m in range(1, length):
        side *= (symbols * per_label[length - m - 1]) ** (symbols - 1)
    side *= 1 - (1 - Fraction(1, symbols ** (length - 1))) ** (symbols - 1)
    cot, both = (symbols**length * side) ** symbols, (symbols * side) ** symbols
    no_cot = symbols ** (words - symbols * length + symbols)
    if cot.denominator != 1 or both.denominator != 1:
        raise AssertionError("a count of labelings is not a whole number")
    c, b = int(cot), int(both)
    return CensusRow(length, symbols, words, b, no_cot - b, c - b, total - no_cot - c + b)


def all_words(*, length: int, symbols: int = 2) -> list[Word]:
    """All nonempty words up to a length, by length, then in the order of their symbols."""
    return [word for size in range(1, length + 1) for word in product(range(symbols), repeat=size)]


def all_labelings(*, length: int, symbols: int = 2) -> Iterator[QADataset]:
    """Every labeling of all words up to a length, as datasets: T^W of them (T = 2: 4, 64, 16384 for L = 1, 2, 3)."""
    alphabet = Alphabet(tuple("abcdefghijklmnopqrstuvwxyz"[:symbols]))
    words = all_words(length=length, symbols=symbols)
    for labels in product(range(symbols), repeat=len(words)):
        yield QADataset(alphabet, dict(zip(words, labels, strict=True)))
