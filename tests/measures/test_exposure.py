"""Exposure: ranks by hand, the skew-normal tail against quadrature, and the three estimators on one space."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from rote.errors import InputError
from rote.measures.exposure import (
    _fit_skew_normal,
    _log_cdf,
    exposure_by_enumeration,
    exposure_by_extrapolation,
    exposure_by_sampling,
)


def test_enumeration_known_values():
    space = np.arange(1023.0) - 2000  # log p of 1,023 unplanted siblings
    result = exposure_by_enumeration(np.array([0.0, -2001.0, space[-2] + 0.5]), space)
    assert result.log2_space == 10
    assert result.bits == pytest.approx([10.0, 0.0, 9.0])  # first, last, second


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=20), st.integers(-6, 6).map(float))
def test_enumeration_rank_by_counting(space, canary):
    rank = 1 + sum(other >= canary for other in space)
    expected = math.log2(len(space) + 1) - math.log2(rank)
    assert exposure_by_enumeration([canary], space).bits[0] == pytest.approx(expected)


def test_a_constant_model_exposes_nothing():
    assert exposure_by_enumeration([-3.0], [-3.0] * 99).bits[0] == 0.0
    assert exposure_by_sampling([-3.0], [-3.0] * 99, log2_space=30).bits[0] == pytest.approx(0.0)


def test_sampling_estimate_and_interval():
    sample = np.arange(1000.0)
    result = exposure_by_sampling(np.array([899.5, 5000.0, -1.0]), sample, log2_space=20)
    assert result.bits == pytest.approx([-math.log2(101 / 1001), math.log2(1001), 0.0])
    low, high = stats.binomtest(100, 1000).proportion_ci(0.95, "exact")
    assert result.low[0] == pytest.approx(-math.log2(high))
    assert result.high[0] == pytest.approx(-math.log2(low))
    assert result.high[1] == 20  # nothing sampled beats it: it may be the best of all
    assert (result.low <= result.bits).all()
    assert (result.bits <= result.high).all()


@pytest.mark.parametrize("alpha", [-6.0, -1.0, 0.0, 0.7, 3.0, 9.0])
@pytest.mark.parametrize("z", [-9.0, -4.0, -2.0, -0.6, 0.0, 1.5])
def test_skew_normal_tail_by_quadrature(alpha, z):
    """Integrate f(z - s)/f(z), which is of order one, instead of the tiny density itself."""

    def log_density(x):
        return math.log(2) + stats.norm.logpdf(x) + stats.norm.logcdf(alpha * x)

    grid = np.linspace(0, 12, 200_001)
    logs = log_density(z - grid)
    top = logs.max()
    expected = top + math.log(integrate.simpson(np.exp(logs - top), x=grid))
    assert _log_cdf(np.array([z]), np.array([alpha]))[0] == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_skew_normal_of_zero_slant_is_the_normal():
    z = np.array([-30.0, -8.0, -3.0, 0.0, 2.0])
    assert _log_cdf(z, np.zeros(5)) == pytest.approx(stats.norm.logcdf(z), rel=1e-9)


def test_fit_recovers_the_parameters():
    rng = np.random.default_rng(0)
    for shape in (-4.0, 0.8, 3.0):
        losses = stats.skewnorm.rvs(shape, loc=50, scale=4, size=200_000, random_state=rng)
        alpha, location, scale = (v[0] for v in _fit_skew_normal(losses[None]))
        assert stats.skewnorm.mean(alpha, location, scale) == pytest.approx(losses.mean(), rel=1e-6)
        assert (alpha, location, scale) == (
            pytest.approx(shape, rel=0.15), pytest.approx(50, abs=0.6), pytest.approx(4, rel=0.08),
        )  # fmt: skip


def test_extrapolation_reaches_beyond_the_sample_and_matches_the_truth():
    rng = np.random.default_rng(1)
    sample = -stats.skewnorm.rvs(2.0, loc=60, scale=5, size=20_000, random_state=rng)
    canaries = -np.array([70.0, 60.0, 50.0, 200.0])
    truth = np.array([0.0671828, 2.7603955, 21.6010707, 0.0])  # quadrature of the density the sample was drawn from
    result = exposure_by_extrapolation(canaries, sample, log2_space=40)
    assert result.bits[:2] == pytest.approx(truth[:2], abs=0.25)
    assert result.bits[2] > math.log2(20_000) + 5  # no sample of 20,000 could show this
    assert result.bits[2] == pytest.approx(truth[2], abs=1.5)
    assert result.bits[3] == pytest.approx(0.0, abs=1e-6)
    assert (result.low <= result.bits).all()
    assert (result.bits <= result.high).all()
    assert result.low[2] < truth[2] < result.high[2]
    assert result.ks_p_value > 0.01
    direct = exposure_by_sampling(canaries, sample, log2_space=40)
    assert direct.bits[:1] == pytest.approx(result.bits[:1], abs=0.1)


def test_extrapolated_exposure_is_limited_to_the_space_and_a_bad_fit_is_visible():
    rng = np.random.default_rng(0)
    assert exposure_by_extrapolation([0.0], -rng.normal(100, 1, 500), log2_space=29.9).bits[0] == 29.9
    two_humps = -np.concatenate([rng.normal(50, 1, 500), rng.normal(90, 1, 500)])
    assert exposure_by_extrapolation([-40.0], two_humps, log2_space=20).ks_p_value < 1e-6


def test_exposure_refuses_bad_input():
    with pytest.raises(InputError, match="unplanted candidates"):
        exposure_by_enumeration([-1.0], [])
    with pytest.raises(InputError, match="30 or more"):
        exposure_by_extrapolation([-1.0], [-1.0, -2.0], log2_space=10)
    with pytest.raises(InputError, match="log2_space"):
        exposure_by_sampling([-1.0], [-1.0], log2_space=0)
    with pytest.raises(InputError, match=r"canary_logp\[0\] is nan"):
        exposure_by_sampling([math.nan], [-1.0], log2_space=3)
