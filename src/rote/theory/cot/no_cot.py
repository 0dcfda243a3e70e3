"""Memorization without chain of thought: Theorem 4.1 of Yu, Gao and Zhang 2025 (arXiv 2511.01190).

A dataset S is memorizable by a fixed-precision transformer without positional encoding and without chain of thought
if and only if

    for all (x1, y1), (x2, y2) in S:  typ(x1) = typ(x2) = {gamma_k}  implies  y1 = y2.

Necessary: on gamma_k^m all rows are equal, attention averages equal vectors, so every m gives one and the same output.

Sufficient (proof [derived], for output symbols of Gamma and gamma_0 alike; causal attention with all queries zero is a
plain average, so everything below is rational, and a ReLU network with q-digit weights can compute any function on
finitely many rational points, since scaling by 10^-q in several layers gives every terminating decimal). Take x of two
types or more: x = gamma_k^m v, v nonempty and not starting with gamma_k, |x| = n.
  1. Averaging the one-hot symbols gives position i the frequencies of the symbols among x_1..x_i. They are pure for
     i <= m and mixed for i > m.
  2. Averaging the indicator "pure" gives position i > m the number m/i: different for every i. Beside it the residual
     stream holds x_i.
  3. A ReLU map sends each of the finitely many pairs (x_i, m/i) to its own one-hot (pure positions to that of their
     symbol); averaging gives the last position the set of pairs that occur. Its largest fraction below 1 is m/(m+1), so
     m is known, then i from every m/i, hence x_i for every i > m, and x_1..x_m from the pure one.
So three layers have distinct features for all words of two types or more, and for each gamma_k another one; a last
ReLU map reads out any answers. One layer is not enough: it sees the last symbol and the frequencies. Whether two are
enough for words of any length is open here: the pairs (x_i, frequencies) tell all binary words of up to 14 symbols
apart (listed by program; the tests list up to 10).

Knows nothing about: chains of thought, files, floating point.
"""

from __future__ import annotations

from dataclasses import dataclass

from rote.theory.cot.words import QADataset, Word, single_symbol


@dataclass(frozen=True)
class Conflict:
    """Two records that repeat one symbol, gamma_k^m and gamma_k^n, and have different answers."""

    symbol: int
    first: Word
    second: Word
    first_answer: int
    second_answer: int


def conflicting_pair(dataset: QADataset) -> Conflict | None:
    """The smallest pair that violates Theorem 4.1 (least total length, then lowest symbol), or None when there is none.

    Source: Theorem 4.1 [read]. Time and memory linear in the total length of the inputs.
    The shortest gamma_k^m of each k is in some smallest pair: of two records with different answers at least one
    differs from it, and replacing the other by it makes the pair no longer.
    """
    singles: dict[int, list[Word]] = {}
    for word in dataset.answers:
        k = single_symbol(word)
        if k is not None:
            singles.setdefault(k, []).append(word)
    best: Conflict | None = None
    for k in sorted(singles):
        words = sorted(singles[k], key=len)
        first = words[0]
        second = next((word for word in words if dataset.answers[word] != dataset.answers[first]), None)
        if second is None:
            continue
        if best is None or len(first) + len(second) < len(best.first) + len(best.second):
            best = Conflict(k, first, second, dataset.answers[first], dataset.answers[second])
    return best
