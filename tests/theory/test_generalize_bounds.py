"""Every number the theorems give: the width bound against quadrature, S_D against enumeration, the core against its
bounds."""

from __future__ import annotations

from itertools import combinations, pairwise, product
from math import ceil, exp, gamma, log, pi, sqrt

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.theory.generalize import (
    ShellLaw,
    VoronoiMemorizer,
    constant_size_core,
    decision_radius_squared,
    efficient_sample_size,
    log2_cube_vertices,
    log10_nearby_set_bound,
    log_core_bound,
    log_core_bound_as_printed,
    nearby_set,
    necessary_samples,
    samples_for,
    separated_vertices,
    smallest_hopeless_dimension,
    sufficient_samples,
    width_generalization_bound,
    worst_law_nearby_samples,
    worst_law_samples,
)
from rote.theory.generalize.shell_law import log_ball_volume
from rote.theory.generalize.width_bound import log_density_ratio

CLOSED = [
    (2, 1, 0.7875), (3, 1, 0.6807), (3, 2, 0.8409), (10, 1, 0.5486), (10, 5, 0.6605), (20, 10, 0.6169),
    (50, 6, 0.5273), (200, 6, 0.5065),
]  # fmt: skip


def quadrature(n, width):
    """1 - error of theorem 5.1, the integral as printed with dh = w C_w s^(w-1) ds, s = |h|, to 30 digits."""
    with mpmath.workdps(30):
        k = n - width
        r2, r3 = mpmath.mpf(2) ** (mpmath.mpf(2) / n), mpmath.mpf(3) ** (mpmath.mpf(2) / n)

        def C(m):
            return mpmath.pi ** (mpmath.mpf(m) / 2) / mpmath.gamma(mpmath.mpf(m) / 2 + 1)

        def smaller(s):
            half = mpmath.mpf(k) / 2
            return s ** (width - 1) * min((1 - s * s) ** half, (r3 - s * s) ** half - (r2 - s * s) ** half)

        low, high = mpmath.mpf(0), mpmath.mpf(1)
        for _ in range(100):  # where the two terms are equal
            u = (low + high) / 2
            half = mpmath.mpf(k) / 2
            low, high = (low, u) if (r3 - u) ** half - (r2 - u) ** half > (1 - u) ** half else (u, high)
        # |h| concentrates: pieces of one standard deviation around sqrt(w / n)
        centre = mpmath.sqrt(mpmath.mpf(width) / n)
        step = mpmath.sqrt(mpmath.mpf(n - width) / (2 * mpmath.mpf(n) ** 2))
        marks = {mpmath.mpf(0), mpmath.mpf(1), mpmath.sqrt(low), *(centre + j * step for j in range(-14, 15))}
        integral = mpmath.quad(smaller, sorted(m for m in marks if 0 <= m <= 1))
        return float(1 - C(k) * width * C(width) * integral / (2 * C(n)))


@pytest.mark.parametrize(("n", "width", "expected"), CLOSED)
def test_width_bound_has_the_closed_quadrature_values(n, width, expected):
    found = width_generalization_bound(n=n, width=width)
    assert round(found, 4) == expected
    assert found == pytest.approx(quadrature(n, width), abs=1e-9)


@pytest.mark.parametrize(("n", "width"), [(6600, 6), (3000, 3), (40, 39), (1000, 500)])
def test_width_bound_is_stable_where_double_quadrature_is_not(n, width):
    """Double quadrature gave 0.498 at n = 6600, w = 6: less than guessing."""
    found = width_generalization_bound(n=n, width=width)
    assert found > 0.5
    assert found == pytest.approx(quadrature(n, width), abs=1e-10)


def test_width_bound_over_all_scales():
    for width in (1, 2, 6, 50):
        values = [width_generalization_bound(n=n, width=width) for n in range(width, width + 300)]
        assert values[0] == 1.0
        assert all(a > b > 0.5 for a, b in pairwise(values))  # falls with n
    for n in (5, 60, 10_000):
        widths = sorted({1, 2, n // 3, n // 2, n - 1, n})
        values = [width_generalization_bound(n=n, width=w) for w in widths]
        assert values == sorted(values)  # rises with the width
    # (accuracy - 1/2) n tends to a constant: nothing is lost to cancellation on the way to n = 10^6
    scaled = [(width_generalization_bound(n=n, width=6) - 0.5) * n for n in (10**4, 10**5, 10**6)]
    assert scaled[1] == pytest.approx(scaled[0], rel=1e-3)
    assert scaled[2] == pytest.approx(scaled[1], rel=1e-4)


def test_best_rule_of_the_projection_reaches_the_bound():
    """Monte Carlo for (2, 1): label 1 exactly where |h|^2 < u*; and no other radius does better."""
    law = ShellLaw(2)
    X, y = law.sample(200_000, seed=4)
    h = ((X - 0.5) / law.scale)[:, 0] ** 2
    accuracy = np.mean((h < decision_radius_squared(n=2, width=1)) == (y > 0))
    assert accuracy == pytest.approx(0.7875, abs=4 * sqrt(0.17 / 200_000))
    others = [np.mean((h < u) == (y > 0)) for u in np.linspace(0.05, 1.4, 28)]
    assert max(others) <= 0.7875 + 4 * sqrt(0.17 / 200_000)


def test_density_ratio_against_the_powers():
    for n, width, u in ((2, 1, 0.3), (10, 5, 0.9), (7, 2, 0.01)):
        half = (n - width) / 2
        direct = ((3 ** (2 / n) - u) ** half - (2 ** (2 / n) - u) ** half) / (1 - u) ** half
        assert log_density_ratio(u, n=n, width=width) == pytest.approx(log(direct))


def test_hopeless_dimension_is_far_below_the_papers():
    for width, paper in ((1, 1099), (6, 6595)):
        n = smallest_hopeless_dimension(width=width)
        assert width_generalization_bound(n=n, width=width) <= 0.51 < width_generalization_bound(n=n - 1, width=width)
        assert n < paper / 20
        assert width_generalization_bound(n=paper, width=width) <= 0.51
    with pytest.raises(InputError, match="accuracy must be in"):
        smallest_hopeless_dimension(width=1, accuracy=0.5)
    with pytest.raises(InputError, match="no dimension up to 100"):
        smallest_hopeless_dimension(width=60, most=100)


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_shell_law(n):
    law = ShellLaw(n)
    X, y = law.sample(4000, seed=0)
    assert X.min() >= 0
    assert X.max() <= 1
    assert abs(y.mean()) < 4 / sqrt(4000)
    radius = np.linalg.norm((X - 0.5) / law.scale, axis=1)
    volume = radius**n
    assert volume[y > 0].max() <= 1 + 1e-9
    assert volume[y < 0].min() >= 2 - 1e-9
    assert volume[y < 0].max() <= 3 + 1e-9
    for values, low in ((volume[y > 0], 0), (volume[y < 0], 2)):  # uniform in volume
        assert abs(values.mean() - low - 0.5) < 5 * sqrt(1 / 12 / len(values))
    assert law.separation == pytest.approx((2 ** (1 / n) - 1) * law.scale)
    again, _ = law.sample(4000, seed=0)
    assert (again == X).all()
    assert exp(log_ball_volume(n)) == pytest.approx(pi ** (n / 2) / gamma(n / 2 + 1))
    if n > 1:
        apart = np.linalg.norm(X[y > 0][:, None] - X[y < 0][None, :200], axis=2).min()
        assert apart >= law.separation


def test_sample_sizes():
    assert efficient_sample_size(S=20, eps=0.2, delta=0.1) == 530
    assert efficient_sample_size(S=20, eps=0.1, delta=0.1) == 1060
    assert efficient_sample_size(S=1, eps=0.5, delta=0.5) == ceil(log(2) / 0.5)
    assert 10 ** log10_nearby_set_bound(n=2, c=0.25) == pytest.approx(50**2)


def test_rates_without_a_constant_are_labelled_and_are_no_numbers():
    lower, upper = necessary_samples(N_D=1000, eps=0.1, delta=0.1), sufficient_samples(N_D=1000, eps=0.1, delta=0.1)
    assert lower.rate == pytest.approx(1e6 / log(1000) ** 2 * 0.7)
    assert upper.rate == pytest.approx(1e6 * log(1000 / (0.01 * 0.1)) / 0.01)
    worst = worst_law_samples(n=100, c=2, eps=0.1, delta=0.1)
    assert worst.rate == pytest.approx(2 ** (2 * 25) * 16 * 0.7 / 100**2)
    assert worst_law_nearby_samples(n=100, c=2).rate == pytest.approx(2**50 * 16 / 100**2)
    for value in (lower, upper, worst):
        assert "up to an absolute constant" in str(value)
        with pytest.raises(TypeError):
            float(value)
    assert log2_cube_vertices(n=5, c=sqrt(5)) == 1
    assert worst_law_samples(n=10**6, c=1, eps=0.1, delta=0.1).rate is None  # 10^602000: only its logarithm


@pytest.mark.parametrize("call", [
    lambda: efficient_sample_size(S=0, eps=0.1, delta=0.1),
    lambda: efficient_sample_size(S=5, eps=0, delta=0.1),
    lambda: efficient_sample_size(S=5, eps=0.1, delta=1),
    lambda: necessary_samples(N_D=100, eps=0.4, delta=0.3),
    lambda: sufficient_samples(N_D=0.5, eps=0.1, delta=0.1),
    lambda: worst_law_samples(n=4, c=3, eps=0.1, delta=0.1),
    lambda: width_generalization_bound(n=0, width=1),
    lambda: width_generalization_bound(n=3, width=0),
    lambda: decision_radius_squared(n=3, width=3),
    lambda: log2_cube_vertices(n=4, c=0),
    lambda: separated_vertices(n=64, c=1),
    lambda: log_core_bound(n=3, c=0),
    lambda: ShellLaw(0),
])  # fmt: skip
def test_numbers_outside_the_theorems_are_refused(call):
    with pytest.raises(InputError):
        call()


@pytest.mark.parametrize(("n", "c"), [(4, 1.0), (6, 1.3), (9, 1.0), (7, 2.0), (5, sqrt(5)), (8, 0.4)])
def test_packed_vertices_are_apart(n, c):
    """Lemma F.1, and no packing of the cube beats the volume bound."""
    points = separated_vertices(n=n, c=c)
    assert len(points) == 2 ** log2_cube_vertices(n=n, c=c) == 2 ** (n // ceil(round(c * c, 9)))
    assert points.shape[1] == n
    assert set(points.ravel()) <= {0.0, 1.0}
    assert all(np.linalg.norm(a - b) >= c - 1e-12 for a, b in combinations(points, 2))
    assert log(len(points)) <= log_core_bound(n=n, c=3 * c * 0.999)


# The finite law of the card: a 5 x 5 grid on [0,1]^2 without the column x = 1/2, label by side, equal mass.
GRID = np.array([(i / 4, j / 4) for i in (0, 1, 3, 4) for j in range(5)])
SIDE = np.where(GRID[:, 0] > 0.5, 1, -1)


def test_nearby_set_of_the_grid():
    found = nearby_set(GRID, SIDE)
    assert (found.size, found.lower, found.optimal) == (20, 20, True)
    assert sorted({round(r, 4) for r in found.radii}) == [0.1613, 0.2419]
    assert samples_for(found, eps=0.2, delta=0.1) == 530
    assert samples_for(found, eps=0.1, delta=0.1) == 1060
    assert nearby_set(GRID, SIDE, method="greedy").size == 20


def smallest_cover(X, y, constant):
    """The smallest cover by trying all subsets."""
    apart = np.linalg.norm(X[:, None] - X[None], axis=2)
    radii = np.where(y[:, None] != y[None], apart, np.inf).min(axis=1) / constant
    covers = apart <= radii[:, None]
    for size in range(1, len(X) + 1):
        for chosen in combinations(range(len(X)), size):
            if covers[list(chosen)].any(axis=0).all():
                return size
    raise AssertionError


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 9))
def test_nearby_set_against_all_subsets(seed, count):
    rng = np.random.default_rng(seed)
    y = np.array([-1, 1, *rng.choice([-1, 1], count - 2)])
    X = rng.random((count, 2)) * 0.3 + (y[:, None] > 0) * 0.7  # two groups, so that balls hold several points
    exact, greedy = nearby_set(X, y), nearby_set(X, y, method="greedy")
    assert exact.optimal
    assert exact.size == smallest_cover(X, y, 3.1)
    assert greedy.lower <= exact.size <= greedy.size
    for found in (exact, greedy):
        apart = np.linalg.norm(X[found.indices][:, None] - X[None], axis=2)
        assert (apart <= found.radii[found.indices][:, None]).any(axis=0).all()
        assert "estimate from a sample" in found.caveat


def test_nearby_set_refuses_what_it_cannot_do():
    for settings_, message in (
        ({"constant": 3.0}, "above 3"), ({"method": "random"}, "exact"), ({"most": 19}, "at most 19"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            nearby_set(GRID, SIDE, **settings_)


def accuracy(rows):
    """On the grid law, of the memorizer of these rows; a one-class sample is memorized by its constant."""
    if len(set(SIDE[rows])) == 1:
        return 0.5
    memorizer = VoronoiMemorizer(abstain_label=0).fit(GRID[rows], SIDE[rows])
    return float((memorizer.predict(GRID) == SIDE).mean())


def test_enough_samples_are_enough():
    """Theorem 7.3 on the grid law: N = 530 for eps = 0.2, delta = 0.1."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        assert accuracy(rng.integers(0, 20, 530)) >= 0.8


def test_mean_accuracy_of_three_samples_by_enumeration():
    """All 20^3 draws, by their distinct sets of points; the card's Monte Carlo says 0.781."""
    total = 0.0
    cache: dict[tuple, float] = {}
    for rows in product(range(20), repeat=3):
        key = tuple(sorted(set(rows)))
        if key not in cache:
            cache[key] = accuracy(list(key))
        total += cache[key]
    exact = total / 20**3
    assert exact == pytest.approx(0.781, abs=0.03)  # 300 trials of a number with standard deviation about 0.17


@pytest.mark.parametrize(("count", "expected"), [(5, 0.890), (10, 0.974), (20, 0.999)])
def test_mean_accuracy_over_300_samples(count, expected):
    rng = np.random.default_rng(count)
    values = [accuracy(rng.integers(0, 20, count)) for _ in range(300)]
    assert np.mean(values) == pytest.approx(expected, abs=max(4 * float(np.std(values)) / sqrt(300), 0.002) * sqrt(2))


def rings(count, rng):
    """Label 1 within 0.15 of the centre, label 0 between 0.3 and 0.45: separation c = 0.15."""
    y = rng.integers(0, 2, count)
    low, high = np.where(y == 1, 0, 0.3**2), np.where(y == 1, 0.15**2, 0.45**2)
    radius = np.sqrt(low + rng.random(count) * (high - low))
    angle = rng.random(count) * 2 * np.pi
    return 0.5 + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y


def test_core_of_the_rings_saturates():
    rng = np.random.default_rng(1)
    fresh, labels = rings(4000, rng)
    sizes = {}
    for count in (50, 200, 1000, 5000, 20_000):
        X, y = rings(count, rng)
        core = constant_size_core(X, y)
        sizes[count] = len(core.indices)
        assert core.c0 >= 0.15
        assert core.radius == core.c0 / 3
        assert sizes[count] <= core.Q <= 154.1
        assert sizes[count] <= exp(core.log_bound)
        to_net = np.linalg.norm(X[:, None] - core.points[None], axis=2) if count <= 5000 else None
        if to_net is not None:
            assert to_net.min(axis=1).max() <= core.radius
            between = np.linalg.norm(core.points[:, None] - core.points[None], axis=2)
            assert between[~np.eye(len(between), dtype=bool)].min() > core.radius
        network = core.network()
        assert network.certified_radius_ >= core.radius
        assert network.score(X, y) == 1.0  # the net's network memorizes everything
    nearest = np.linalg.norm(fresh[:, None] - core.points[None], axis=2).argmin(axis=1)
    assert (core.labels[nearest] == labels).mean() >= 0.995
    assert sizes[20_000] < 1.15 * sizes[5000]


def test_core_constants():
    assert exp(log_core_bound_as_printed(n=2, c=0.15)) == pytest.approx(154.06, abs=0.01)
    assert exp(log_core_bound_as_printed(n=2, c=0.15)) == pytest.approx(1.1**2 / (pi * 0.05**2))
    assert exp(log_core_bound(n=2, c=0.15)) == pytest.approx(1.05**2 / (pi * 0.025**2))


def test_printed_core_bound_can_be_exceeded():
    """Points more than c/3 apart have disjoint balls of radius c/6, not c/3: a label that fills the square is a
    counterexample to Q as printed, and stays within the bound from c/6."""
    rng = np.random.default_rng(0)
    X = rng.random((6000, 2))
    y = ((X < 0.02).all(axis=1)).astype(int)
    X, y = np.vstack([X, [[0.01, 0.01]]]), np.append(y, 1)
    kept = (y == 1) | (np.linalg.norm(X, axis=1) > 0.18)
    core = constant_size_core(X[kept], y[kept])
    assert len(core.indices) > core.Q
    assert log(len(core.indices)) <= core.log_bound


def test_core_refuses():
    with pytest.raises(InputError, match="not in the unit cube"):
        constant_size_core([[0.0], [2.0]], [0, 1])
    with pytest.raises(InputError, match="above 1/3"):
        constant_size_core([[0.0], [1.0]], [0, 1]).network(split=0.33)
