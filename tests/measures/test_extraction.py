"""(n, p)-extraction against closed forms and naive twins."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rote.errors import InputError
from rote.measures.extraction import (
    ceiling,
    extractable,
    extraction_strength,
    greedy_extractable,
    log_pz,
    log_tau,
    queries_needed,
    rate,
    success,
    window_log_pz,
)

PROBABILITIES = st.floats(1e-12, 1 - 1e-9)
LEVELS = st.floats(0.01, 0.999)


@pytest.mark.parametrize(
    ("pz", "p", "n"),
    [
        (0.162, 0.5, 4),
        (0.162, 0.9, 14),
        (1e-3, 0.5, 693),
        (1e-3, 0.9, 2302),
        (0.01, 0.5, 69),
        (0.01, 0.9, 230),
        (1e-6, 0.5, 693147),
    ],
)
def test_published_query_counts(pz, p, n):
    assert queries_needed(np.log([pz]), p)[0] == pytest.approx(n, abs=0 if pz > 1e-5 else 1)


def test_tiny_probabilities_need_log_space():
    assert queries_needed(np.log([1e-20]), 0.9)[0] == pytest.approx(2.302585e20, rel=1e-6)
    assert success(np.log([1e-17]), 1e9)[0] == pytest.approx(1e-8, rel=1e-9)  # 1 - (1 - p)**n is 0 in floating point
    assert queries_needed(np.array([-750.0]), 0.5)[0] > 1e300


def test_ends():
    assert queries_needed(np.array([0.0, -np.inf]), 0.9).tolist() == [1.0, math.inf]
    assert np.exp(log_tau(1, 0.3)) == pytest.approx(0.3, abs=1e-15)
    assert pytest.approx(0.871, abs=5e-4) == 0.001 ** (1 / 50)
    assert success(np.array([-np.inf, 0.0]), 10).tolist() == [0.0, 1.0]


@given(st.floats(1, 1e15), LEVELS)
def test_tau_and_n_are_inverse(n, p):
    assert queries_needed(np.array([log_tau(n, p)]), p, whole=False)[0] == pytest.approx(n, rel=1e-9)


@given(PROBABILITIES, LEVELS)
def test_whole_queries_are_the_least_that_suffice(pz, p):
    n = queries_needed(np.log([pz]), p)[0]
    assert success(np.log([pz]), n)[0] >= p * (1 - 1e-9)
    if n > 1:
        assert success(np.log([pz]), n - 1)[0] < p * (1 + 1e-9)


@given(st.lists(PROBABILITIES, min_size=1, max_size=40))
def test_surface_is_the_naive_count_and_monotone(values):
    values = np.log(values)
    n, p = np.array([1, 2, 10, 1e3, 1e9]), np.array([0.1, 0.5, 0.9, 0.999])
    surface = rate(values, n, p)
    for (i, queries), (j, level) in itertools.product(enumerate(n), enumerate(p)):
        hits = success(values, queries)
        clear = np.abs(hits - level) > 1e-9  # rounding may decide a record that sits on the threshold
        naive = (hits >= level)[clear].sum()
        assert naive <= round(surface[i, j] * len(values)) <= naive + (~clear).sum()
        assert surface[i, j] == extractable(values, queries, level).mean()
    assert (np.diff(surface, axis=0) >= 0).all()
    assert (np.diff(surface, axis=1) <= 0).all()


def test_ceiling_is_shared_by_all_p():
    values = np.array([-np.inf, -30.0, -2.0, -np.inf])
    assert ceiling(values) == 0.5
    assert rate(values, np.array([1e300]), np.array([0.1, 0.999])).tolist() == [[0.5, 0.5]]


def test_suffix_is_where_it_is_said_to_be():
    logq = np.array([[np.nan, -1, -2, -4, -8, np.nan], [-1, -1, -np.inf, -1, -1, -1]])
    assert log_pz(logq, np.array([2, 3]), np.array([2, 3])).tolist() == [-6.0, -3.0]
    assert log_pz(logq, np.array([1, 2]), np.array([4, 1])).tolist() == [-15.0, -np.inf]
    with pytest.raises(InputError, match="row 0"):
        log_pz(logq, np.array([0, 1]), np.array([2, 1]))


def test_every_window_equals_its_own_sum():
    rng = np.random.default_rng(0)
    logq = np.log(rng.random((3, 9)))
    logq[0, 0], logq[1, 4], logq[2, 7:] = np.nan, -np.inf, np.nan
    windows = window_log_pz(logq, 3)
    for row, start in itertools.product(range(3), range(7)):
        expected = logq[row, start : start + 3].sum()
        if math.isnan(expected):
            assert math.isnan(windows[row, start])
        else:
            assert windows[row, start] == pytest.approx(expected, abs=1e-12)


def test_greedy_needs_every_suffix_token_and_nothing_else():
    greedy = np.array([[0, 0, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1]], bool)
    assert greedy_extractable(greedy, np.array([2, 2]), np.array([3, 3])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("row", "strength"),
    [
        ([0] * 10, 0.0),
        ([0] * 9 + [1], 0.1),
        ([1] * 10, 1.0),
        ([1] * 9 + [0], 0.0),
        ([0, 1, 0, 1, 1, 1, 1, 1, 1, 1], 0.7),
    ],
)
def test_extraction_strength_closed_forms(row, strength):
    greedy = np.array([[0, *row, 0, 0]], bool)
    predicted = np.array([[0] + [1] * 10 + [0, 0]], bool)  # first token unpredicted, padding behind
    assert extraction_strength(greedy, predicted)[0] == pytest.approx(strength)
