"""Robust memorizers of all regimes: equality on whole balls, proved exactly in one dimension and sampled in more."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.theory.certify import certify_balls
from rote.theory.exact_columns import to_columns
from rote.theory.robust import build_robust_memorizer, sampled_error, separation
from rote.theory.robust.definitions import lipschitz_squared
from rote.theory.robust.floor_network import floor_network
from rote.theory.robust.large import build_large, case_dimensions, large_case, project_large, sawtooth_square
from rote.theory.robust.lattice import binary_below, flatten, place, two_labels, widest_gap
from rote.theory.robust.moderate import group_size, slab_density
from rote.theory.robust.norms import Radius
from rote.theory.robust.projection import ACCEPT, round_rows, search_projection, span

XOR = np.array([[0, 0], [1, 1], [1, 0], [0, 1.0]])
XOR_LABELS = np.array([1, 1, 2, 2])


def breakpoints(network, low, high):
    """Every point of [low, high] at which a one-input network may bend, exactly: zeros of all units, layer by layer."""
    cuts = [low, high]
    columns = [cuts]
    for layer in network.layers[:-1]:
        pre = [
            [b + sum((w * columns[j][t] for j, w in row.items()), Fraction(0)) for t in range(len(cuts))]
            for row, b in zip(layer.rows, layer.bias, strict=True)
        ]
        new = set(cuts)
        for line in pre:
            for (x, u), (z, v) in pairwise(zip(cuts, line, strict=True)):
                if u * v < 0:
                    new.add(x + (z - x) * u / (u - v))
        grown = sorted(new)
        pre = [_resample(cuts, line, grown) for line in pre]
        cuts, columns = grown, [[max(value, Fraction(0)) for value in line] for line in pre]
    return cuts


def _resample(old, line, new):
    """Values of a piecewise linear function at more points."""
    found, k = [], 0
    for x in new:
        while k < len(old) - 2 and x > old[k + 1]:
            k += 1
        u, v = old[k], old[k + 1]
        found.append(line[k] + (line[k + 1] - line[k]) * (x - u) / (v - u))
    return found


def equal_on_interval(network, low, high, wanted):
    """Whether f = wanted on all of [low, high]: a piecewise linear function is constant when its bends agree."""
    cuts = breakpoints(network, low, high)
    return all(value == wanted for value in network.evaluate_batch([[x] for x in cuts])[:, 0])


@pytest.mark.parametrize(("regime", "rho"), [("small", "auto"), ("small", "1/20"), ("large", "0.3"), ("large", "0.95")])
@pytest.mark.parametrize("seed", range(3))
def test_exact_on_whole_balls_in_one_dimension(regime, rho, seed):
    """The [rebuilt] floor block and the [inferred] distance network, proved on every ball by enumerating all bends."""
    rng = np.random.default_rng(seed)
    X = np.sort(rng.choice(200, 5, replace=False))[:, None] / 7
    y = np.array([1, 2, 3, 1, 2])
    made = build_robust_memorizer(X, y, rho=rho, regime=regime)
    assert made.radius.square == made.rho**2 * separation(X, y).square
    root = math.isqrt(made.radius.square.numerator), math.isqrt(made.radius.square.denominator)
    mu = Fraction(*root)
    assert mu * mu == made.radius.square  # in one dimension distances are rational
    for x, wanted in zip(X[:, 0], made.outputs_for(y), strict=True):
        inside = mu * (1 - Fraction(1, 10**9))
        assert equal_on_interval(made.network, Fraction(x) - inside, Fraction(x) + inside, wanted)


def test_moderate_in_one_dimension_errs_less_than_eta():
    """The [rebuilt] moderate regime: the exact measure of the wrong part of every ball is below eta."""
    X = np.array([0, 3, 7, 8.5, 13, 20, 22, 26])[:, None] / 5
    y = np.array([1, 2, 1, 3, 2, 2, 1, 3])
    eta = Fraction(1, 5)
    made = build_robust_memorizer(X, y, rho="0.06", regime="moderate", error=eta)
    root = math.isqrt(made.radius.square.numerator), math.isqrt(made.radius.square.denominator)
    mu = Fraction(*root)
    assert made.details["groups"] > 1
    assert made.proof is not None
    assert made.proof.holds
    for x, wanted in zip(X[:, 0], made.outputs_for(y), strict=True):
        cuts = breakpoints(made.network, Fraction(x) - mu, Fraction(x) + mu)
        values = made.network.evaluate_batch([[c] for c in cuts])[:, 0]
        wrong = sum(
            (b - a for (a, u), (b, v) in pairwise(zip(cuts, values, strict=True)) if not u == v == wanted), Fraction(0)
        )
        assert wrong < eta * 2 * mu
        assert wrong <= Fraction(made.details["error_bound"]) * 2 * mu * (1 + Fraction(1, 10**6))


@pytest.mark.parametrize(("bits", "places"), [(1, 2), (3, 4), (5, 3)])
def test_floor_is_exact_where_promised(bits, places):
    gamma = Fraction(1, 2**places)
    network = floor_network(bits, gamma)
    parts = [gamma, gamma * Fraction(101, 100), Fraction(1, 2), Fraction(2, 3), 1 - Fraction(1, 10**9)]
    points = [k + f for k in range(2**bits) for f in parts]
    assert [row[0] for row in network.evaluate_batch([[x] for x in points])] == [math.floor(x) for x in points]
    for x in (k + gamma / 2 for k in range(1, 2**bits)):  # on the slanted part it is between the two floors
        assert math.floor(x) - 1 <= network.evaluate([x])[0] <= math.floor(x)


def test_floor_is_the_map_D_of_the_paper():
    """floor(x) = x - 1 + t_n with t_0 = 1 - x/2^n, t <- D(t): the same function, slanted parts left out."""
    bits, gamma = 4, Fraction(1, 16)
    network = floor_network(bits, gamma)
    for x in (Fraction(k, 97) for k in range(0, 97 * 16, 5)):
        if x % 1 < gamma:
            continue
        t = 1 - x / 2**bits
        for step in range(bits):
            g = gamma / 2 ** (bits - step)
            t = 2 * max(t, 0) - max(t - Fraction(1, 2) + g, 0) / g + max(t - Fraction(1, 2), 0) / g
        assert network.evaluate([x])[0] == x - 1 + t == math.floor(x)


def test_xor_with_the_papers_numbers():
    """eps = 1/2, s = 3.456967, cells (1,1), (4,1), (1,4), (4,4), keys 7, 10, 25, 28 in base 6."""
    eps = separation(XOR, XOR_LABELS)
    assert eps.square == Fraction(1, 4)
    s = 11 / 9 * math.sqrt(2) / float(eps)
    assert s == pytest.approx(3.456967, abs=1e-6)
    columns = to_columns(XOR)
    lattice = place(round_rows(np.eye(2), s), columns)
    cells = [[floor + 1 for floor in axis.floors] for axis in lattice.axes]
    assert set(zip(*cells, strict=True)) == {(1, 1), (4, 1), (1, 4), (4, 4)}
    assert sorted(flatten(cells, [6, 6])) == [7, 10, 25, 28]
    made = build_robust_memorizer(XOR, XOR_LABELS, rho=1 / (20 * math.sqrt(2)), scale="paper")
    assert certify_balls(made, XOR, XOR_LABELS, radius=made.radius).verified == 4
    assert certify_balls(made, XOR, XOR_LABELS, radius=3 * made.mu).verified == 4  # the card: still at three times rho


def test_lattice_margins_are_at_least_the_lemmas():
    """Lemma B.15: the widest gap is at least 1/N, and no fractional part lies within the promised margin."""
    rng = np.random.default_rng(0)
    for n in (2, 5, 40):
        X = rng.standard_normal((n, 2)) * 10
        columns = to_columns(X)
        lattice = place([[Fraction(1), Fraction(0)], [Fraction(0), Fraction(1)]], columns)
        for j, axis in enumerate(lattice.axes):
            moved = [Fraction(float(x)) + axis.shift for x in X[:, j]]
            assert [math.floor(value) for value in moved] == list(axis.floors)
            assert min(value % 1 for value in moved) == axis.below
            assert 1 - max(value % 1 for value in moved) == axis.above
            assert axis.below + axis.above >= Fraction(1, n) * Fraction(63, 64)
            assert min(axis.floors) == 0
    assert widest_gap([1, 2, 9], 10) == (2, 7)
    assert widest_gap([5], 10) == (5, 10)


@given(st.fractions(Fraction(1, 10**9), 5, max_denominator=10**9))
@settings(max_examples=50, deadline=None)
def test_binary_below(value):
    found = binary_below(value)
    assert found <= value
    assert found == Fraction(1, 4) or 2 * found > value


def test_two_labels_in_a_cell_are_seen():
    assert two_labels([3, 4, 3], [1, 2, 1]) is None
    assert two_labels([3, 4, 3], [1, 2, 2]) == (0, 2)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "l3"])
@pytest.mark.parametrize("reader", ["step", "tent"])
def test_every_ball_of_random_points_is_certified(norm, reader):
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((16, 2)), np.arange(16) % 3
    made = build_robust_memorizer(X, y, norm=norm, reader=reader)
    found = certify_balls(made, X, y, radius=made.radius, norm=norm)
    assert found.complete
    assert set(found.to_dict()["methods"]) == {"stable-affine (exact)"}
    errors = sampled_error(made.network, X, made.outputs_for(y), made.radius, samples=20, seed=0)
    assert errors.max() == 0
    assert list(made.predict(X)) == list(y)


def test_labels_of_any_kind_and_points_between():
    made = build_robust_memorizer(XOR, np.array(["no", "no", "yes", "yes"]))
    assert list(made.predict(XOR)) == ["no", "no", "yes", "yes"]
    half = made.predict(np.linspace(0, 1, 4001)[:, None] * [[1.0, 0.0]])  # from a point to one of the other class
    assert set(half) == {"no", "yes", None}  # somewhere between, the output is no class number
    with pytest.raises(InputError, match="not among"):
        made.outputs_for(["maybe"])


def test_size_and_bits_grow_like_the_square_root():
    sizes = {}
    for n in (16, 64, 256, 1024):
        side = math.isqrt(n)
        X = np.array(list(product(range(side), repeat=2)), float)
        y = np.random.default_rng(n).integers(0, 2, n)
        made = build_robust_memorizer(X, y)
        sizes[n] = (made.parameters, made.bits)
        assert made.width <= 7
    slope = math.log2(sizes[1024][0] / sizes[16][0]) / 6
    assert 0.5 <= slope <= 0.7
    assert sizes[1024][1] <= 4 * sizes[64][1] * 1.5


def test_projection_keeps_the_proofs_inequality():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((100, 256)), rng.integers(0, 2, 100)
    projection = search_projection(X, y, seed=0)
    assert projection.m <= 16  # the theorem's 864 ln N would be 256 here
    least = float(ACCEPT) * math.sqrt(projection.m / 256)
    Z = X @ projection.matrix.T
    assert float(separation(Z, y)) >= least * float(separation(X, y))
    assert np.allclose(projection.matrix @ projection.matrix.T, np.eye(projection.m))
    rows = round_rows(projection.matrix, 1.0)
    assert lipschitz_squared(rows) <= Fraction(102, 100)
    made = build_robust_memorizer(X, y, seed=0)
    assert certify_balls(made, X, y, radius=made.radius).complete
    with pytest.raises(InputError, match="1 to 256"):
        search_projection(X, y, dims=300)
    with pytest.raises(InputError, match="keeps the classes apart"):
        search_projection(X, y, dims=1)


def test_moderate_regime():
    rng = np.random.default_rng(0)
    X, y = rng.random((64, 2)), rng.integers(0, 3, 64)
    rho, eta = Fraction(1, 50), Fraction(1, 20)
    assert group_size(64, 2, rho) == math.floor(1 / (5 * 0.02 * math.sqrt(2))) + 1
    made = build_robust_memorizer(X, y, rho=rho, regime="moderate", error=eta)
    assert list(made.predict(X)) == list(y)
    assert made.error == eta
    assert made.details["error_bound"] < eta
    errors = sampled_error(made.network, X, made.outputs_for(y), made.radius, samples=40, seed=0)
    assert errors.max() < eta
    found = certify_balls(made, X, y, radius=made.radius, time_limit=0.2)
    assert set(found.to_dict()["methods"]) <= {
        "stable-affine (exact)",
        "milp",
    }  # never by construction: it has an error
    assert found.count("falsified") == 0
    with pytest.raises(InputError, match="l2 only"):
        build_robust_memorizer(X, y, rho="0.05", regime="moderate", norm="linf")
    with pytest.raises(InputError, match="between 0 and 1"):
        build_robust_memorizer(X, y, rho=rho, regime="moderate", error=1)


@pytest.mark.parametrize("d", [1, 2, 5, 30])
def test_slab_density_bounds_the_marginal(d):
    """[rebuilt] the widest slab share is the central one: w V_{d-1}/(V_d mu) up to its curvature."""
    rng = np.random.default_rng(d)
    direction = rng.standard_normal(d)
    row = [Fraction(float(v)) for v in direction]
    radius = Radius.of(Fraction(3, 2))
    raw = rng.standard_normal((40_000, d))
    points = 1.5 * raw / np.linalg.norm(raw, axis=1, keepdims=True) * rng.random((40_000, 1)) ** (1 / d)
    along = points @ direction
    width = 0.2 * np.linalg.norm(direction)
    for start in (-width / 2, 0.0, 0.3):
        share = np.mean((along >= start) & (along <= start + width))
        assert share <= float(slab_density(d, radius, row)) * width + 0.01
    assert np.mean(np.abs(along) <= width / 2) >= 0.9 * float(slab_density(d, radius, row)) * width - 0.01


def test_sawtooth_squares():
    """0 <= sq_s(u) - u^2 <= 4^-(s+1) on [0, 1], equality of sq_s and u^2 at multiples of 2^-s."""
    for steps in (1, 3, 6):
        for k in range(0, 3 * 2**steps + 1):
            u = Fraction(k, 3 * 2**steps)
            above = sawtooth_square(u, steps) - u * u
            assert 0 <= above <= Fraction(1, 4 ** (steps + 1))
            assert above == 0 or k % 3


def test_the_five_cases():
    n = 10**4
    few = 600 * math.log(n)
    assert large_case(n, 10**6, Fraction(1, 3)) == "I"
    assert large_case(n, math.floor(few) - 1, Fraction(1, 10)) == "II"
    assert large_case(10, 2000, Fraction(1, 10)) == "III"
    assert large_case(n, math.ceil(few) + 1, Fraction(1, 10)) == "IV"
    assert large_case(n, n + 1, Fraction(1, 10)) == "V"
    assert case_dimensions(n, 8000, Fraction(1, 10), "IV") == max(720, math.ceil(few))
    assert case_dimensions(10, 2000, Fraction(1, 10), "III") == 10


@pytest.mark.parametrize(("case", "n", "d", "rho"), [
    ("I", 8, 3, "0.8"), ("II", 8, 3, "0.2"), ("III", 6, 40, "0.3"), ("IV", 40, 24, "0.15"), ("V", 12, 60, "0.15"),
])  # fmt: skip
def test_networks_of_all_five_cases(case, n, d, rho):
    """Real networks for every case; the constants that decide between the cases need N in the thousands, so the case is
    chosen here and the proof's inequality is what must hold."""
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((n, d)), np.arange(n) % 3
    eps = separation(X, y)
    rho = Fraction(rho)
    projection = project_large(X, y, rho, case, dims=None, seed=0)
    if case in ("III", "V"):
        assert projection.m <= n - 1
    if case in ("IV", "V"):
        assert projection.m < min(n - 1, d)
        assert float(rho) * 2 * float(eps) <= 5 / 6 * projection.distance
    columns = to_columns(X)
    labels = (y + 1).tolist()
    made = build_large(projection, columns, labels, eps.radius(rho), case=case)
    assert made.proof is not None
    assert made.proof.holds
    errors = sampled_error(made.network, X, y + 1, eps.radius(rho), samples=4, seed=0)
    assert errors.max() == 0
    assert "[inferred]" in made.label


def test_span_is_an_isometry():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((6, 50)), np.array([0, 1, 0, 1, 2, 2])
    found = span(X, y)
    assert found.m == 5
    assert found.distance / 2 == pytest.approx(float(separation(X, y)))


def test_case_three_from_the_front_door():
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((5, 1000)), np.array([0, 1, 0, 1, 1])
    made = build_robust_memorizer(X, y, rho="0.3", regime="large")
    assert made.details["case"] == "III"
    assert certify_balls(made, X, y, radius=made.radius, samples=2).complete


@pytest.mark.parametrize("rho", ["0.5", "0.99"])
def test_large_regime_by_independent_means(rho):
    """Its certificate is the construction's own; random points of the ball, and points just outside it, agree."""
    made = build_robust_memorizer(XOR, XOR_LABELS, rho=rho, regime="large")
    found = certify_balls(made, XOR, XOR_LABELS, radius=made.radius, samples=0)
    assert found.complete
    assert all("[inferred]" in record.method for record in found.records)
    errors = sampled_error(made.network, XOR, made.outputs_for(XOR_LABELS), made.radius, samples=300, seed=1)
    assert errors.max() == 0
    # other points, or a larger radius, are none of the construction's business
    assert not made.proves(XOR + 0.25, XOR_LABELS, made.radius)
    assert not made.proves(XOR, XOR_LABELS[::-1], made.radius)
    assert not made.proves(XOR, XOR_LABELS, Radius.of(0.4999))


def test_automatic_regimes():
    X = np.random.default_rng(5).random((30, 2))
    y = np.arange(30) % 2
    assert build_robust_memorizer(X, y, rho=1 / (5 * 30 * math.sqrt(2))).regime == "small"
    assert build_robust_memorizer(X, y, rho="0.1", error="0.2").regime == "moderate"
    assert build_robust_memorizer(X, y, rho="0.5").regime == "large"
    assert build_robust_memorizer(X, y, rho="0.1", norm="linf").regime == "large"
    note = build_robust_memorizer(XOR, XOR_LABELS, rho="0.9")
    assert note.regime == "small"
    assert "own gaps" in note.details["note"]


def test_results_depend_on_the_seed_only():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 12)), np.arange(20) % 2
    first, second = (build_robust_memorizer(X, y, seed=4) for _ in range(2))
    assert first.network == second.network
    assert first.rho == second.rho


@pytest.mark.parametrize(("X", "y", "options", "message"), [
    ([[0], [1]], [1, 2], {"rho": 1}, "below 1"),
    ([[0], [1], [0]], [1, 2, 2], {}, "same point with different labels"),
    ([[0], [1]], [1, 1], {}, "two classes"),
    ([[0], [float("inf")]], [1, 2], {}, "NaN or infinite"),
    ([[0], [1]], [1, 2], {"regime": "tiny"}, "unknown regime"),
    ([[0], [1]], [1, 2], {"scale": "wide"}, "unknown scale"),
    ([[0], [1]], [1, 2], {"regime": "large"}, "give a number"),
    ([[0, 0], [1, 0], [3, 0.3], [4, 0.7]], [1, 2, 1, 2], {"rho": 0.97, "regime": "small"}, "reaches rho"),
])  # fmt: skip
def test_builder_refuses(X, y, options, message):
    with pytest.raises(InputError, match=message):
        build_robust_memorizer(np.array(X, float), np.array(y), **options)
