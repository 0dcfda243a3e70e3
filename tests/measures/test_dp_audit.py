"""One-run audit: pinned values, the loop of the theorem, and calibration against mechanisms of known epsilon."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from rote.errors import InputError
from rote.measures.dp_audit import (
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    one_run_audit,
    one_run_epsilon,
    one_run_p_value,
)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "epsilon"),
    [
        (100, 100, 100, 0, 3.4930),
        (100, 100, 90, 0, 1.6308),
        (1000, 100, 100, 1e-5, 3.4654),
        (1000, 1000, 800, 0, 1.2543),
        (500, 500, 250, 0, 0.0),
        (1000, 500, 400, 1e-5, 1.19797),
        (5000, 2000, 1600, 1e-5, 1.29247),
    ],
)
def test_known_epsilons(m, r, v, delta, epsilon):
    assert one_run_epsilon(m, r, v, delta=delta) == pytest.approx(epsilon, abs=6e-5)


def p_value_by_loop(m, r, v, epsilon, delta):
    """P[W >= v] + 2 m delta max_i P[v-i <= W < v]/i, probabilities summed one by one from the binomial formula."""
    q = 1 / (1 + math.exp(-epsilon))
    pmf = [math.comb(r, w) * q**w * (1 - q) ** (r - w) for w in range(r + 1)]
    slack = max((sum(pmf[v - i : v]) / i for i in range(1, v + 1)), default=0.0)
    return min(1.0, sum(pmf[v:]) + 2 * m * delta * slack)


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 20), st.floats(0, 4), st.sampled_from([0, 1e-4, 0.01]))
def test_p_value_by_loop(r, v, extra, epsilon, delta):
    v = min(v, r)
    expected = p_value_by_loop(r + extra, r, v, epsilon, delta)
    assert one_run_p_value(r + extra, r, v, epsilon, delta=delta) == pytest.approx(expected, abs=1e-12)


def test_epsilon_is_where_the_p_value_crosses():
    epsilon = one_run_epsilon(300, 200, 150, delta=1e-6, confidence=0.9)
    assert one_run_p_value(300, 200, 150, epsilon, delta=1e-6) == pytest.approx(0.1, abs=1e-6)


def test_more_correct_guesses_prove_more_and_more_delta_less():
    values = [one_run_epsilon(200, 200, v) for v in range(100, 201, 10)]
    assert values == sorted(values)
    assert values[-1] > 3
    assert one_run_epsilon(200, 200, 180, delta=1e-3) < one_run_epsilon(200, 200, 180, delta=1e-6)
    assert one_run_epsilon(200, 200, 200, delta=0.5) == 0.0


def test_audit_counts_guesses_at_both_ends():
    scores = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0])
    included = np.array([1, 1, 0, 1, 0, 1, 0, 0], bool)
    audit = one_run_audit(scores, included, guesses=4)
    assert (audit.m, audit.guesses, audit.correct) == (8, 4, 4)
    audit = one_run_audit(scores, included, guesses=6)
    assert audit.correct == 2 + 2  # top three: in in out; bottom three: in out out
    order = np.random.default_rng(0).permutation(8)
    assert one_run_audit(scores[order], included[order], guesses=6) == audit
    assert one_run_audit(scores, included).guesses == 8
    assert one_run_audit(scores, included, guesses=7).correct == 3 + 2  # four "in", three "out"


def test_trying_several_numbers_of_guesses_pays_for_it():
    rng = np.random.default_rng(0)
    included = rng.random(400) < 0.5
    scores = included + rng.normal(0, 0.5, 400)
    single = one_run_audit(scores, included, guesses=100)
    several = one_run_audit(scores, included, guesses=[50, 100, 200])
    assert several.tried == 3
    each = 1 - 0.05 / 3
    options = [one_run_audit(scores, included, guesses=r, confidence=each).epsilon for r in (50, 100, 200)]
    assert several.epsilon == pytest.approx(max(options))
    assert one_run_audit(scores, included, guesses=100, confidence=each).epsilon < single.epsilon


def test_randomised_response_is_never_audited_above_its_epsilon_too_often():
    """Scores are the answers of an epsilon-DP randomised response: the bound must hold in at least 95 % of runs."""
    rng = np.random.default_rng(0)
    truth, m, broken, bounds = 1.0, 300, 0, []
    for _ in range(300):
        included = rng.random(m) < 0.5
        honest = rng.random(m) < 1 / (1 + math.exp(-truth))
        scores = np.where(honest, included, ~included) + 1e-6 * rng.random(m)
        epsilon = one_run_audit(scores, included).epsilon
        broken += epsilon > truth
        bounds.append(epsilon)
    assert broken / 300 <= 0.08
    assert 0.6 < np.median(bounds) < 1.0  # and it is not vacuous


def test_audit_refuses_bad_input():
    with pytest.raises(InputError, match="correct"):
        one_run_epsilon(10, 5, 6)
    with pytest.raises(InputError, match="delta"):
        one_run_epsilon(10, 5, 5, delta=2)
    with pytest.raises(InputError, match="between 1 and the 3"):
        one_run_audit([1.0, 2.0, 3.0], [True, False, True], guesses=4)
    with pytest.raises(InputError, match="included"):
        one_run_audit([1.0, 2.0], [True])


# --- Gaussian differential privacy


@pytest.mark.parametrize(("epsilon", "mu", "delta"), [(1, 1, 0.126937), (0.5, 0.5, 0.052440)])
def test_known_gaussian_deltas(epsilon, mu, delta):
    assert gaussian_delta(epsilon, mu) == pytest.approx(delta, abs=5e-7)


@pytest.mark.parametrize(("delta", "epsilon"), [(1e-6, 4.886554), (1e-5, 4.377178)])
def test_known_gaussian_epsilons(delta, epsilon):
    assert gaussian_epsilon(1.0, delta) == pytest.approx(epsilon, abs=5e-7)


@pytest.mark.parametrize(("epsilon", "mu"), [(0.0, 1.0), (2.0, 0.7), (8.0, 2.0)])
def test_gaussian_delta_is_the_hockey_stick_divergence(epsilon, mu):
    def gap(x):
        return max(0.0, stats.norm.pdf(x - mu) - math.exp(epsilon) * stats.norm.pdf(x))

    expected = integrate.quad(gap, epsilon / mu + mu / 2, mu + 12, epsabs=1e-16)[0]
    assert gaussian_delta(epsilon, mu) == pytest.approx(expected, rel=1e-6)


def test_gaussian_delta_keeps_its_digits_in_the_tail():
    """Both terms are near 1e-85; the identity d delta/d eps = -e^eps Phi(-eps/mu - mu/2) checks them."""
    step = 1e-5
    slope = (gaussian_delta(20 + step, 1.0) - gaussian_delta(20 - step, 1.0)) / (2 * step)
    assert slope == pytest.approx(-math.exp(20 + stats.norm.logcdf(-20.5)), rel=1e-4)


def test_gaussian_inverses():
    assert gaussian_mu(1.0, gaussian_delta(1.0, 0.8)) == pytest.approx(0.8)
    assert gaussian_delta(gaussian_epsilon(2.0, 1e-5), 2.0) == pytest.approx(1e-5)
    assert gaussian_epsilon(0.1, 0.5) == 0.0
    assert gaussian_delta(0.0, 0.0) == 0.0
    with pytest.raises(InputError):
        gaussian_delta(-1.0, 1.0)
