"""Recitation figures against their definitions: distances by the textbook table, nDCG by loops, prompts counted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rote.errors import InputError
from rote.measures import recitation as rec

ids = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def levenshtein(a, b):
    """The textbook table, cell by cell."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
    return table[-1][-1]


def test_kitten_and_sitting_differ_by_three():
    d, lengths = rec.token_distances([list(b"kitten")], [list(b"sitting")])
    assert (d[0], lengths[0]) == (3, 7)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=6))
def test_rates_are_their_definitions(pairs):
    made, wanted = zip(*pairs, strict=True)
    found = rec.recitation(made, wanted)
    d = [levenshtein(a, b) for a, b in pairs]
    assert found.distances.tolist() == d
    assert found.strict.value == pytest.approx(np.mean([x == 0 for x in d]))
    sizes = [len(b) for _, b in pairs]
    near = [4 * (size - x) >= 3 * size for x, size in zip(d, sizes, strict=True)]
    assert found.loose.value == pytest.approx(np.mean(near))
    assert found.levenshtein.value == pytest.approx(np.mean([x / size for x, size in zip(d, sizes, strict=True)]))


def test_the_loose_boundary_is_a_hit():
    target = list(range(8))
    at = [*range(6), 90, 91]  # d = 2 of 8: similarity exactly 0.75
    below = [*range(5), 90, 91, 92]
    assert rec.recitation([at], [target]).loose.value == 1.0
    assert rec.recitation([below], [target]).loose.value == 0.0
    assert rec.recitation([at], [target]).strict.value == 0.0


def test_padding_is_not_text():
    padded = rec.recitation(np.array([[3, 4, -1, -1]]), np.array([[3, 4, -1, -1]]))
    assert padded.strict.value == 1.0
    assert padded.lengths.tolist() == [2]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="got 1 and 2"):
        rec.recitation([[1]], [[1], [2]])
    with pytest.raises(InputError, match="item 1"):
        rec.recitation([[1], [2]], [[1], []])


def lists(k=5, rows=4, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(12)[:k] for _ in range(rows)])


def test_ndcg_of_a_model_with_itself_is_one():
    same = lists(k=10)
    assert rec.ndcg_graded(same, same) == pytest.approx(1.0)
    assert rec.ndcg_membership(same, same) == pytest.approx(1.0)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_against_loops(k):
    original, edited = lists(k, seed=1), lists(k, seed=2)
    for row in range(len(original)):
        ideal = sum((k - r) / math.log2(r + 2) for r in range(k))
        graded = sum(
            (k - list(original[row]).index(token)) / math.log2(r + 2)
            for r, token in enumerate(edited[row])
            if token in original[row]
        )
        member = sum((k - r) / math.log2(r + 2) for r, token in enumerate(edited[row]) if token in original[row])
        assert rec.ndcg_graded(original, edited)[row] == pytest.approx(graded / ideal)
        assert rec.ndcg_membership(original, edited)[row] == pytest.approx(member / ideal)


def test_the_two_variants_differ_on_a_permutation():
    original = np.array([[1, 2, 3]])
    turned = np.array([[3, 2, 1]])
    assert rec.ndcg_membership(original, turned)[0] == pytest.approx(1.0)
    assert rec.ndcg_graded(original, turned)[0] < 0.9
    with pytest.raises(InputError, match="twice"):
        rec.ndcg_graded(original, np.array([[1, 1, 2]]))


def test_stress_prompts_are_counted_as_the_paper_counts_them():
    assert len(rec.stress_windows(64, 48)) == 63
    for prefix, suffix, t in ((10, 4, 3), (10, 2, 5), (5, 9, 0)):
        found = rec.stress_windows(prefix, suffix, t=t)
        assert len(found) == min(t, suffix) + 1 + (prefix - t) - 1 - 1
        assert len(set(found)) == len(found)
        assert (0, prefix) not in found
        assert all(0 <= start < stop <= prefix + suffix for start, stop in found)
    assert rec.stress_windows(5, 9, t=2) == [(0, 6), (0, 7), (2, 5), (1, 5)]
    with pytest.raises(InputError, match="0 <= t < prefix"):
        rec.stress_windows(5, 9, t=5)


def test_the_longest_aligned_run():
    gold = np.array([[1, 2, 3, 4, 5], [1, 2, 3, -1, -1]])
    made = np.array([[1, 9, 3, 4, 5], [1, 2, 9, -1, -1]])
    assert rec.longest_exact_match(made, gold).tolist() == [3, 2]


def test_both_perplexities():
    logp = np.log(np.array([[0.5, 0.5, np.nan], [0.25, 0.25, np.nan]]))
    found = rec.perplexity(logp)
    assert found.tokens == 4
    assert found.pooled == pytest.approx(8**0.5)
    assert found.mean_of_blocks == pytest.approx(3.0)
    with pytest.raises(InputError, match="at least one"):
        rec.perplexity(np.full((1, 2), np.nan))
