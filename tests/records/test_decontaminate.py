"""Decontamination against a brute-force twin, and the rule's edges: 9, 10, 40 and 41 tokens, n/2 and n/2 - 1 shared."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.records.decontaminate import find_overlaps, windows


def brute_force(documents, probes):
    found = set()
    for d, document in enumerate(documents):
        for p, probe in enumerate(probes):
            for start, length in windows(len(probe)):
                string = list(probe[start : start + length])
                if any(list(document[i : i + length]) == string for i in range(len(document) - length + 1)):
                    found.add((d, p))
    return found


def test_windows_follow_the_papers_rule():
    assert windows(9) == []
    assert windows(10) == [(0, 10)]
    assert windows(40) == [(0, 40)]
    assert windows(41) == [(0, 20), (10, 20), (20, 20)]
    assert windows(100) == [(0, 50), (25, 50), (50, 50)]


def test_half_of_a_long_probe_drops_the_document_and_one_token_less_keeps_it():
    probe = np.arange(1000, 1100)
    half, less = probe[25:75], probe[25:74]
    around = np.arange(30)
    documents = [np.concatenate([around, half, around]), np.concatenate([around, less, around])]
    found = find_overlaps(documents, [probe])
    assert found.dropped == [0]
    assert found.kept == [1]
    assert found.contaminated == [0]
    assert (found.overlaps[0].window, found.overlaps[0].length) == (25, 50)


def test_short_probes_match_whole_or_not_at_all_and_tiny_ones_are_reported_as_skipped():
    short, tiny = np.arange(500, 540), np.arange(900, 909)
    documents = [short, short[:-1], np.concatenate([[1], short]), tiny]
    found = find_overlaps(documents, [short, tiny])
    assert found.dropped == [0, 2]
    assert found.skipped == (1,)
    assert found.documents == 4


def test_nothing_to_search_for_and_nothing_to_search_in():
    assert find_overlaps([], [np.arange(20)]).documents == 0
    assert find_overlaps([np.arange(5), np.arange(50)], []).kept == [0, 1]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_equals_brute_force_on_texts_over_two_letters(seed):
    """Two letters: repeated anchors, many near misses."""
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 2, rng.integers(0, 120)) for _ in range(8)]
    probes = [rng.integers(0, 2, rng.integers(5, 60)) for _ in range(6)]
    if len(documents[0]) > 45:
        probes[0] = documents[0][3:45]
    found = find_overlaps(iter(documents), probes)
    assert {(overlap.document, overlap.probe) for overlap in found.overlaps} == brute_force(documents, probes)
