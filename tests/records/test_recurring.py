"""Rows of practice: in every one a segment comes twice, found by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.records.recurring import GAP, SEGMENT, recurring_rows

TEXT = np.random.default_rng(0).permutation(5000) + 1000  # every token once, so that what comes twice is a segment
VOCABULARY = np.arange(1000)


def longest_repeat(row: np.ndarray) -> int:
    """Length of the longest stretch that stands at two places, which do not overlap."""
    for size in range(len(row) // 2, 0, -1):
        seen: dict[tuple, int] = {}
        for start in range(len(row) - size + 1):
            first = seen.setdefault(tuple(row[start : start + size]), start)
            if start - first >= size:
                return size
    return 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(2 * SEGMENT[1] + GAP[1] + 1, 90))
def test_in_every_row_of_text_a_whole_segment_comes_twice(seed, width):
    rows = recurring_rows(4, width, TEXT, VOCABULARY, drawn=0.0, seed=seed)
    assert rows.shape == (4, width)
    for row in rows:
        assert SEGMENT[0] <= longest_repeat(row) <= 2 * SEGMENT[1] + GAP[1]
        assert np.isin(row, TEXT).all()


def test_the_share_that_is_drawn():
    rows = recurring_rows(40, 60, TEXT, VOCABULARY, drawn=0.25, seed=2)
    drawn = np.isin(rows, VOCABULARY).all(axis=1)
    assert drawn.sum() == 10
    assert not drawn[:10].all()  # mixed with the others
    assert not drawn[-10:].all()
    assert np.array_equal(rows, recurring_rows(40, 60, TEXT, VOCABULARY, drawn=0.25, seed=2))
    assert not np.array_equal(rows, recurring_rows(40, 60, TEXT, VOCABULARY, drawn=0.25, seed=3))


@pytest.mark.parametrize(
    ("width", "text", "drawn", "word"),
    [(48, TEXT, 0.2, "twice"), (60, TEXT[:50], 0.2, "shorter"), (60, TEXT, 1.2, "share")],
)
def test_what_cannot_be_made_is_refused(width, text, drawn, word):
    with pytest.raises(InputError, match=word):
        recurring_rows(3, width, text, VOCABULARY, drawn=drawn)


def test_no_rows():
    assert recurring_rows(0, 60, TEXT, VOCABULARY).shape == (0, 60)
