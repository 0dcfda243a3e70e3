"""Definitions and bounds of robust memorization, against brute force and the paper's numbers (arXiv 2510.24643)."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.theory.robust import (
    Radius,
    all_bounds,
    bounds_figure,
    egosi_width,
    gamma_p,
    lower_rate,
    min_first_layer_parameters,
    min_first_layer_width,
    old_lower_rate,
    old_upper_rates,
    regime_endpoints,
    robust_relu_plan,
    sample_ball,
    separation,
    shatter_dataset,
    shattered_points,
    upper_rate,
    width_dataset,
)
from rote.theory.robust.bounds import EXACT, RATE, regime
from rote.theory.robust.norms import dual, norm_squared, parse_norm, sqrt_above, sqrt_below
from rote.theory.robust.projection import theorem_dimensions


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "l3"])
def test_separation_is_half_the_least_distance(norm):
    rng = np.random.default_rng(3)
    for n in (2, 7, 30):
        X, y = rng.standard_normal((n, 3)), np.arange(n) % 3
        p = parse_norm(norm)
        brute = min(np.linalg.norm(X[i] - X[j], p) for i, j in combinations(range(n), 2) if y[i] != y[j]) / 2
        found = separation(X, y, norm=norm)
        assert float(found) == pytest.approx(brute, rel=1e-8)
        i, j = found.pair
        assert y[i] != y[j]
        assert np.linalg.norm(X[i] - X[j], p) / 2 == pytest.approx(brute, rel=1e-8)


def test_separation_is_exact_where_float64_is_not():
    """Three pairs whose distances agree in float64: the exact least one is found."""
    tiny = 2.0**-30
    X = np.array([[0, 0], [1, tiny], [100, 0], [101, tiny / 2], [200, 0], [201, tiny]])
    found = separation(X, np.array([0, 1, 0, 1, 0, 1]))
    assert found.pair == (2, 3)
    assert found.square == (1 + Fraction(tiny / 2) ** 2) / 4


@pytest.mark.parametrize(("n", "d"), [(3, 2), (5, 16), (20, 4)])
def test_width_dataset_has_eps_one_half(n, d):
    data = width_dataset(n, d)
    assert data.X.shape == (n, d)
    for norm in ("l1", "l2", "linf"):
        assert separation(data.X, data.y, norm=norm).square == Fraction(1, 4)


def test_width_bound_numbers():
    """The card's: N = 60,000, d = 784."""
    assert [min_first_layer_width(60_000, 784, rho) for rho in (0.1, 0.5, 0.9)] == [8, 196, 636]
    assert [min_first_layer_parameters(60_000, 784, rho) for rho in (0.1, 0.5, 0.9)] == [6280, 153_860, 499_260]
    assert min_first_layer_width(101, 100, 0.1) == 1  # 0.1^2 * 100 is 1, though not in float64
    assert min_first_layer_width(5, 100, 0.99) == 4
    assert min_first_layer_width(100, 50, 0.6, norm="linf") == 50
    assert min_first_layer_width(100, 50, 0.5, norm="linf") == math.ceil(0.25 * 50)
    assert min_first_layer_width(100, 16, 0.9, norm="l1") == math.ceil((0.9 / 4) ** 2 * 16)


def test_the_argument_behind_the_width_bound():
    """Some e_j lies within sqrt(m/d)... of any subspace: dist(e_j, Z) <= sqrt(m/d) for Z of dimension d - m."""
    rng = np.random.default_rng(0)
    for d, m in product((2, 5, 16), (1, 2)):
        for _ in range(20):
            rows = np.linalg.qr(rng.standard_normal((d, m)))[0]  # Z is what these columns are orthogonal to
            assert np.linalg.norm(rows, axis=1).min() <= math.sqrt(m / d) + 1e-12


def test_regime_ends_and_projection_size():
    small, moderate, large = regime_endpoints(60_000, 784)
    assert small == pytest.approx(1.1905e-7, rel=1e-4)
    assert moderate == pytest.approx(0.0071429, rel=1e-4)
    assert large == 1
    assert theorem_dimensions(100, 10**6) == 3979
    assert theorem_dimensions(100, 50) == 50
    names = [regime(60_000, 784, rho) for rho in (1e-7, 1e-3, 0.1)]
    assert names == ["small", "moderate", "large"]
    assert regime(100, 16, 0.3, norm="linf") is None  # beyond 1/gamma_inf = 1/4 no upper bound is known
    assert regime(100, 16, 0.2, norm="linf") == "large"


@pytest.mark.parametrize("plus", list(product([0, 1], repeat=3)))
def test_shattering_data(plus):
    """Prop. 3.3: every labelling of e_1..e_k is forced by two points, at distance sqrt(k-1) and eps >= sqrt k."""
    k, d = 3, 4
    data, shattered = shatter_dataset([plus, plus[::-1]], d)
    assert float(separation(data.X, data.y)) >= math.sqrt(k) - 1e-12
    labels = np.array(data.classes)[data.y]
    for group, wanted in enumerate((plus, plus[::-1])):
        for j, bit in enumerate(wanted):
            right = data.X[2 * group : 2 * group + 2][labels[2 * group : 2 * group + 2] == 1 + bit]
            assert np.linalg.norm(right[0] - shattered[group, j]) == pytest.approx(math.sqrt(k - 1))
    if plus == (1, 0, 1):
        assert np.array_equal(data.X[0], [1, -1, 1, 0])


def test_shattered_points():
    assert shattered_points(100, 50, "0.8") == 50 * 2  # 1 / (1 - 0.64) = 2.77..
    assert shattered_points(101, 4, "0.99") == 50 * 4  # capped at d
    assert shattered_points(100, 50, 0.5, norm="linf") is None


def test_rates_are_the_theorems():
    n, d = 10_000, 100
    assert lower_rate(n, d, 0.6) == pytest.approx((0.36 * 100 + 1) * 100 + 100 / 0.8)
    assert lower_rate(n, d, 0.6, nonzero=True) == pytest.approx(100 / 0.8)
    assert upper_rate(n, d, 1e-6) == pytest.approx(100 + 100)
    assert upper_rate(n, d, 0.01) == pytest.approx(100 + n * d**0.25 * 0.1)
    assert upper_rate(n, d, 0.5) == pytest.approx(100 + n * d * d / 16)
    assert upper_rate(n, d, 0.5, nonzero=True) == pytest.approx(100 + n * d / 4)
    assert upper_rate(n, d, 0.5, norm="linf") is None
    assert old_lower_rate(n, d, 0.5) == 100
    assert old_lower_rate(n, d, 0.999) == 1000
    assert old_upper_rates(n, d, 0.05)["Egosi et al. 2025"] == n
    assert old_upper_rates(n, d, 0.5) == {"Yu et al. 2024": n * d * d, "Egosi et al. 2025": n * d**3 / 64}
    assert egosi_width(n, 0.5) == pytest.approx(2 * math.log(n) / math.log(9664))


@given(
    st.integers(2, 10**6), st.integers(1, 10**4), st.floats(1e-9, 0.999), st.sampled_from(["l1", "l2", "l4", "linf"])
)
@settings(max_examples=80, deadline=None)
def test_bounds_of_any_size_are_consistent(n, d, rho, norm):
    found = {bound.name: bound for bound in all_bounds(n, d, rho, norm=norm)}
    assert {bound.kind for bound in found.values()} <= {EXACT, RATE}
    width = min_first_layer_width(n, d, rho, norm=norm)
    assert 1 <= width <= min(n - 1, d)
    assert width <= min_first_layer_width(n, d, min(0.9995, rho * 1.5), norm=norm)  # a larger radius needs no less
    assert lower_rate(n, d, rho, norm=norm) >= lower_rate(n, d, rho, norm=norm, nonzero=True) > 0


def test_gamma_and_duals():
    assert gamma_p(16, 2) == 1
    assert gamma_p(16, math.inf) == 4
    assert gamma_p(16, 1) == 4
    assert (dual(1), dual(2), dual(math.inf), dual(4)) == (math.inf, 2, 1, 4 / 3)


@given(st.fractions(0, 10**6, max_denominator=10**6))
@settings(max_examples=60, deadline=None)
def test_square_roots_enclose(value):
    low, high = sqrt_below(value), sqrt_above(value)
    assert low * low <= value <= high * high
    assert high - low <= high / 2**60


def test_norms_of_rationals():
    v = [Fraction(3), Fraction(-4), Fraction(1, 2)]
    assert norm_squared(v, 2) == 9 + 16 + Fraction(1, 4)
    assert norm_squared(v, 1) == Fraction(15, 2) ** 2
    assert norm_squared(v, math.inf) == 16
    true = sum(abs(float(x)) ** 3 for x in v) ** (2 / 3)
    assert true <= norm_squared(v, 3) <= true * (1 + 3e-9)


def test_balls_are_uniform():
    rng = np.random.default_rng(0)
    for p in (1.0, 2.0, 3.0, math.inf):
        points = sample_ball(np.zeros(3), 2.0, 4000, rng, p=p)
        size = np.linalg.norm(points, p, axis=1)
        assert size.max() < 2
        assert np.mean(size < 1) == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize(("arguments", "message"), [
    ((10, 2, 1), "below 1"), ((10, 2, "1.0"), "below 1"), ((10, 2, -0.1), "above 0"), ((10, 2, "x"), "number"),
    ((1, 2, 0.1), "at least 2 points"), ((10, 0, 0.1), "at least 2 points"),
])  # fmt: skip
def test_plans_refuse(arguments, message):
    with pytest.raises(InputError, match=message):
        robust_relu_plan(*arguments)
    with pytest.raises(InputError, match="unknown norm"):
        robust_relu_plan(10, 2, 0.1, norm="l0.5")
    with pytest.raises(InputError, match="negative"):
        Radius.of(-1.0)


def test_plan_and_figure():
    plan = robust_relu_plan(1000, 1000, 0.1)
    assert plan.min_first_layer_width == math.ceil(0.01 * 999)
    assert plan.to_dict()["regime_ends"]["large"] == 1
    built = [{"rho": 0.05, "parameters": 1234, "regime": "small"}]
    figure = bounds_figure(1000, 1000, rho=0.1, built=built)
    names = [trace.name for trace in figure.data]
    assert any("1,234" in name for name in names)
    rates = [name for name in names if "rate" in name or "exact" in name]
    assert len(rates) == len(names)  # every curve says what it is
