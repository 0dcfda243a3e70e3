"""How much of one sequence is in another: longest common substring, subsequence, edit distance, verbatim runs.

Works on characters, words or token ids; compares exactly what it is given (no case folding, no normalisation: do that
before). Knows nothing about where the texts come from. Substrings by suffix automaton, O(n + m); edits and
subsequences by rapidfuzz's bit-parallel routines.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from rote.errors import InputError


@dataclass(frozen=True)
class Match:
    """`a[a_start : a_start + length] == b[b_start : b_start + length]`, in units of the sequences compared."""

    length: int
    a_start: int
    b_start: int


def units(text: str, unit: str) -> Sequence[str]:
    """The text as "character"s (code points) or whitespace-separated "word"s."""
    if unit == "character":
        return text
    if unit == "word":
        return text.split()
    raise InputError(f"unknown unit {unit!r}; choose 'character' or 'word'")


def _sequences(a, b, unit: str | None) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
    if unit is not None:
        if not (isinstance(a, str) and isinstance(b, str)):
            raise InputError("unit applies to texts; pass two strings, or leave unit out for sequences")
        return units(a, unit), units(b, unit)
    return (_plain(a), _plain(b))


def _plain(sequence) -> Sequence[Hashable]:
    """numpy ids as Python ints: hashing and comparing those is several times faster."""
    return sequence.tolist() if isinstance(sequence, np.ndarray) else sequence


class SuffixAutomaton:
    """All substrings of one sequence in O(n) states: build once, match many.

    Source: Blumer et al. 1985, Theor. Comput. Sci. 40.
    """

    def __init__(self, sequence: Sequence[Hashable]):
        transitions: list[dict[Hashable, int]] = [{}]
        link, length, end = [-1], [0], [-1]  # end: position of the last item of the state's first occurrence
        last = 0
        for position, item in enumerate(_plain(sequence)):
            state = len(length)
            transitions.append({})
            link.append(0)
            length.append(position + 1)
            end.append(position)
            p = last
            while p != -1 and item not in transitions[p]:
                transitions[p][item] = state
                p = link[p]
            if p != -1:
                q = transitions[p][item]
                if length[p] + 1 == length[q]:
                    link[state] = q
                else:
                    clone = state + 1
                    transitions.append(transitions[q].copy())
                    link.append(link[q])
                    length.append(length[p] + 1)
                    end.append(end[q])
                    while p != -1 and transitions[p].get(item) == q:
                        transitions[p][item] = clone
                        p = link[p]
                    link[q] = link[state] = clone
            last = state
        self._transitions, self._link, self._length, self._end = transitions, link, length, end

    def _walk(self, other: Sequence[Hashable]) -> tuple[list[int], list[int]]:
        """Per position of `other`: length of the longest match ending there, and its state."""
        transitions, link, lengths = self._transitions, self._link, self._length
        state = length = 0
        found, states = [], []
        for item in _plain(other):
            following = transitions[state].get(item)
            while following is None and state:
                state = link[state]
                length = lengths[state]
                following = transitions[state].get(item)
            if following is not None:
                state = following
                length += 1
            found.append(length)
            states.append(state)
        return found, states

    def matches(self, other: Sequence[Hashable]) -> Int[np.ndarray, " other"]:
        """Per position of `other`: length of the longest substring of the automaton's sequence ending there."""
        return np.array(self._walk(other)[0], dtype=np.int64)

    def longest(self, other: Sequence[Hashable]) -> Match:
        """Longest common substring with `other` (`a` = the automaton's sequence); the first in `other` among equals."""
        found, states = self._walk(other)
        length = max(found, default=0)
        if length == 0:
            return Match(0, 0, 0)
        position = found.index(length)
        return Match(length, self._end[states[position]] - length + 1, position - length + 1)


def longest_common_substring(a, b, *, unit: str | None = None) -> Match:
    """Longest run of items that appears contiguously in both: the longest verbatim run.

    Args: two sequences of hashables or token ids; or two strings with `unit` "character" or "word" (without `unit` a
    string is its characters). O(len a + len b) time and memory for the shorter. Among equals, the first in the longer
    sequence.
    """
    first, second = _sequences(a, b, unit)
    if len(first) <= len(second):
        return SuffixAutomaton(first).longest(second)
    found = SuffixAutomaton(second).longest(first)
    return Match(found.length, found.b_start, found.a_start)


def longest_run(matches: Bool[np.ndarray, "records tokens"]) -> Int[np.ndarray, " records"]:
    """Longest stretch of consecutive True per row (tokens the model gets right, say); 0 for a row of False."""
    mask = np.asarray(matches, dtype=bool)
    if mask.ndim != 2:
        raise InputError(f"matches must be a [records, tokens] matrix, got shape {mask.shape}")
    position = np.arange(1, mask.shape[1] + 1)
    broken = np.maximum.accumulate(np.where(mask, 0, position), axis=1)  # position of the last False so far
    return (position - broken).max(axis=1, initial=0)


def _encoded(a, b, unit: str | None) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
    """Items as small integers, equal when the items are: rapidfuzz compares hashes, and hash(-1) == hash(-2)."""
    first, second = _sequences(a, b, unit)
    if isinstance(first, str) and isinstance(second, str):
        return first, second
    codes: dict[Hashable, int] = {}
    return (
        [codes.setdefault(item, len(codes)) for item in first],
        [codes.setdefault(item, len(codes)) for item in second],
    )


def edit_distance(a, b, *, unit: str | None = None) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions; range [0, max(len a, len b)]."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(*_encoded(a, b, unit))


def edit_similarity(a, b, *, unit: str | None = None) -> float:
    """1 - Levenshtein/max(len a, len b); range [0, 1], 1 for two empty sequences."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(*_encoded(a, b, unit))


def longest_common_subsequence(a, b, *, unit: str | None = None) -> int:
    """Length of the longest (not necessarily contiguous) common subsequence; range [0, min(len a, len b)]."""
    from rapidfuzz.distance import LCSseq

    return LCSseq.similarity(*_encoded(a, b, unit))


def rouge_l(candidate, source, *, unit: str | None = "word", beta: float = 1.0) -> float:
    """ROUGE-L F: (1 + beta^2) P R / (R + beta^2 P), P = LCS/len(candidate), R = LCS/len(source); range [0, 1].

    beta = inf gives recall: the share of the source, in order, inside the candidate. 0 when either is empty.
    Source: Lin 2004 (ROUGE), sec. 3.1.
    """
    first, second = _sequences(candidate, source, unit)
    if not len(first) or not len(second):
        return 0.0
    common = longest_common_subsequence(first, second)
    precision, share = common / len(first), common / len(second)
    if common == 0 or np.isinf(beta):
        return share
    return (1 + beta**2) * precision * share / (share + beta**2 * precision)
