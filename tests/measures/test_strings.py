"""Strings: dynamic-programming twins of every fast routine, on small alphabets where matches and ties abound."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rote.errors import InputError
from rote.measures.strings import (
    SuffixAutomaton,
    edit_distance,
    edit_similarity,
    longest_common_subsequence,
    longest_common_substring,
    longest_run,
    rouge_l,
)

words = st.text(alphabet="abé", max_size=14)


def substring_table(a, b):
    """best[i][j] = length of the common run ending at a[i-1], b[j-1]."""
    best = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            best[i, j] = best[i - 1, j - 1] + 1 if a[i - 1] == b[j - 1] else 0
    return best


def edit_table(a, b):
    d = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    d[:, 0], d[0, :] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
    return d[-1, -1]


def subsequence_table(a, b):
    t = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            t[i, j] = t[i - 1, j - 1] + 1 if a[i - 1] == b[j - 1] else max(t[i - 1, j], t[i, j - 1])
    return t[-1, -1]


@given(words, words)
def test_longest_common_substring_by_table(a, b):
    match = longest_common_substring(a, b)
    assert match.length == substring_table(a, b).max()
    assert a[match.a_start : match.a_start + match.length] == b[match.b_start : match.b_start + match.length]
    assert 0 <= match.a_start <= len(a)
    tokens = longest_common_substring([ord(c) for c in a], np.array([ord(c) for c in b], dtype=np.int32))
    assert tokens.length == match.length


@given(words, words)
def test_matching_lengths_at_every_position(a, b):
    expected = substring_table(a, b)[:, 1:].max(axis=0) if b else []
    assert SuffixAutomaton(a).matches(b).tolist() == list(expected)


@given(words, words)
def test_edits_and_subsequences_by_table(a, b):
    distance, common = edit_table(a, b), subsequence_table(a, b)
    as_tokens = [ord(c) for c in a], np.array([ord(c) for c in b], dtype=np.int64)
    for pair in ((a, b), as_tokens, (list(a), list(b))):
        assert edit_distance(*pair) == distance
        assert longest_common_subsequence(*pair) == common
    assert edit_similarity(a, b) == pytest.approx(1 - distance / max(len(a), len(b), 1))


def test_units():
    a, b = "the cat sat on the mat", "a cat sat  on\tthe log"
    match = longest_common_substring(a, b, unit="word")
    assert (match.length, match.a_start, match.b_start) == (4, 1, 1)
    assert longest_common_substring(a, b, unit="character").length == len(" cat sat ")
    assert edit_distance(a, b, unit="word") == 2
    assert longest_common_subsequence(a, b, unit="word") == 4
    with pytest.raises(InputError, match="unknown unit"):
        edit_distance(a, b, unit="line")
    with pytest.raises(InputError, match="two strings"):
        edit_distance([1], [2], unit="word")


def test_items_with_equal_hashes_are_different():
    assert hash(-1) == hash(-2)
    assert edit_distance([-1], [-2]) == 1
    assert longest_common_subsequence([-1, 5], [-2, 5]) == 1
    assert longest_common_substring([-1, 5], [-2, 5]).length == 1
    assert edit_distance(["a"], [97]) == 1


def test_a_long_subsequence_is_not_missed():
    """difflib with its heuristics found 17 of 238 on text like this."""
    rng = np.random.default_rng(0)
    letters = "etaoinshrdlu "
    a, b = ("".join(rng.choice(list(letters), 300)) for _ in range(2))
    assert longest_common_subsequence(a, b) == subsequence_table(a, b)


def test_empty_sequences():
    assert longest_common_substring("", "abc").length == 0
    assert edit_distance([], [1, 2]) == 2
    assert edit_similarity("", "") == 1.0
    assert rouge_l("", "a b") == 0.0


def test_rouge_l():
    candidate, source = "the gunman was killed by police", "police killed the gunman"
    p, r = 2 / 6, 2 / 4
    assert rouge_l(candidate, source) == pytest.approx(2 * p * r / (p + r))
    assert rouge_l(candidate, source, beta=float("inf")) == pytest.approx(r)
    assert rouge_l(candidate, source, beta=2) == pytest.approx(5 * p * r / (r + 4 * p))
    assert rouge_l([1, 2, 3], [1, 9, 3], unit=None) == pytest.approx(2 / 3)
    assert rouge_l("x", "y") == 0.0


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_longest_run_by_counting(rows):
    def by_hand(row):
        return max((len(run) for run in "".join("x" if v else " " for v in row).split()), default=0)

    assert longest_run(np.array(rows)).tolist() == [by_hand(row) for row in rows]


def test_longest_run_of_nothing():
    assert longest_run(np.zeros((2, 0), bool)).tolist() == [0, 0]
    with pytest.raises(InputError, match="matrix"):
        longest_run(np.zeros(3, bool))


def test_substring_search_is_linear():
    rng = np.random.default_rng(0)
    a = "".join(rng.choice(list("ab"), 20_000))
    b = "".join(rng.choice(list("ab"), 40_000)) + a[5_000:9_000]
    start = time.process_time()
    assert longest_common_substring(a, b).length >= 4_000
    assert time.process_time() - start < 3  # comparing all substrings would take hours
