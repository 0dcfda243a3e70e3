"""The Voronoi memorizer is theorem 7.3's network: the same numbers as the formula written out, and its certificates
hold."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.theory.generalize import VoronoiMemorizer, labelled, voronoi_forward

XOR = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], float)
XOR_LABELS = np.array([1, -1, -1, 1])


def network(X, signs, queries, t=0.49):
    """Theorem 7.3 written out: every S_ij of every query, no shortcut."""
    pairs = [(i, j) for i in range(len(X)) for j in range(len(X)) if signs[i] != signs[j]]
    r = (0.5 - t) * min(((X[i] - X[j]) ** 2).sum() for i, j in pairs)
    u = np.full((len(queries), len(X)), -r)
    for i, j in pairs:
        S = (queries - ((1 - t) * X[i] + t * X[j])) @ (X[i] - X[j])
        u[:, i] += np.maximum(-S, 0)
    return np.maximum(-u, 0) @ signs


def exact_network(X, signs, query, t=Fraction(49, 100)):
    """The same in rational arithmetic, for points with integer coordinates."""
    pairs = [(i, j) for i in range(len(X)) for j in range(len(X)) if signs[i] != signs[j]]
    r = (Fraction(1, 2) - t) * min(sum((a - b) ** 2 for a, b in zip(X[i], X[j], strict=True)) for i, j in pairs)
    value = Fraction(0)
    for i, (point, sign) in enumerate(zip(X, signs, strict=True)):
        u = -r
        for a, j in pairs:
            if a == i:
                S = sum((p - q) * (x - (1 - t) * p - t * q) for p, q, x in zip(point, X[j], query, strict=True))
                u += max(-S, Fraction(0))
        value += sign * max(-u, Fraction(0))
    return value


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    points, target = load_digits(return_X_y=True)
    kept = np.isin(target, (4, 9))
    X, y = points[kept] / 16, target[kept]
    order = np.random.default_rng(0).permutation(len(X))
    half = len(X) // 2
    return X[order[:half]], y[order[:half]], X[order[half:]], y[order[half:]]


def cloud(count=60, features=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.random((count, features))
    return X, np.where(X[:, 0] + 0.3 * rng.standard_normal(count) > 0.5, 1, -1)


def test_xor_values_are_the_papers_to_the_last_bit():
    memorizer = VoronoiMemorizer().fit(XOR, XOR_LABELS)
    assert memorizer.decision_function(XOR).tolist() == [0.01, -0.01, -0.01, 0.01]
    assert memorizer.decision_function([[0.5, 0.5], [0.3, 0.3]]).tolist() == [0.0, 0.01]
    assert memorizer.predict(XOR).tolist() == XOR_LABELS.tolist()
    assert (memorizer.r_, memorizer.c0_, memorizer.certified_radius_) == (0.01, 1.0, 0.49)


def test_planes_cut_at_49_and_51_percent():
    """S_ij(x_i) = 0.49 |d|^2 and S_ij(x_j) = -0.51 |d|^2; S_ij + S_ji = -0.02 |d|^2 everywhere."""
    rng = np.random.default_rng(1)
    one, other, x = rng.random((3, 5))
    d = one - other

    def S(a, b, at):
        return (a - b) @ (at - (0.51 * a + 0.49 * b))

    assert S(one, other, one) == pytest.approx(0.49 * d @ d)
    assert S(one, other, other) == pytest.approx(-0.51 * d @ d)
    assert S(one, other, x) + S(other, one, x) == pytest.approx(-0.02 * d @ d)
    rearranged = ((x - other) @ (x - other) - (x - one) @ (x - one)) / 2 - 0.01 * d @ d
    assert S(one, other, x) == pytest.approx(rearranged)


@pytest.mark.parametrize("run", [2, 256])
@pytest.mark.parametrize("split", [0.49, 0.3, 0.4999])
@pytest.mark.parametrize("seed", [0, 1])
def test_streamed_values_are_the_networks(split, seed, run, monkeypatch):
    monkeypatch.setattr(voronoi_forward, "RUN", run)
    X, y = cloud(seed=seed)
    rng = np.random.default_rng(seed + 10)
    memorizer = VoronoiMemorizer(split=split).fit(X, y)
    # random points, the records, between opposite records (where units are half open), and far outside
    positive, negative = X[y > 0], X[y < 0]
    nearest = negative[np.linalg.norm(positive[:, None] - negative, axis=2).argmin(axis=1)]
    shares = split + (0.5 - split) * np.linspace(0.05, 2.2, 25)
    between = (positive[:, None] + shares[:, None] * (nearest - positive)[:, None]).reshape(-1, 3)
    queries = np.vstack([rng.random((200, 3)), X, between, 5 * rng.standard_normal((50, 3))])
    expected = network(X, y, queries, split)
    assert (np.abs(expected[np.abs(expected) < memorizer.r_ * 0.999]) > 0).sum() >= 3  # some units are half open
    np.testing.assert_allclose(memorizer.decision_function(queries), expected, atol=1e-12)
    clear = np.abs(expected) > 1e-12
    assert (memorizer.signs(queries)[clear] == np.sign(expected[clear])).all()
    assert (memorizer.abstains(queries)[clear] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=2, max_size=9),
    st.lists(st.tuples(st.integers(-1, 9), st.integers(-1, 9)), min_size=1, max_size=5),
)
def test_values_against_rational_arithmetic(records, queries):
    """Points on a grid: many ties and planes through queries, the hard case for rounding."""
    labels = {(a, b): sign for a, b, sign in records}
    if len(set(labels.values())) < 2:
        labels[(5, 5)], labels[(6, 6)] = True, False
    points, signs = list(labels), [1 if sign else -1 for sign in labels.values()]
    memorizer = VoronoiMemorizer(unit_cube=False).fit(np.array(points, float), signs)
    halves = [(Fraction(a, 2), Fraction(b, 2)) for a, b in queries]
    expected = [float(exact_network(points, signs, query)) for query in halves]
    found = memorizer.decision_function(np.array(halves, float))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    nearest = [min(range(len(points)), key=lambda i: sum((a - b) ** 2 for a, b in zip(points[i], q, strict=True)))
               for q in halves]  # fmt: skip
    for value, index in zip(expected, nearest, strict=True):
        assert value == 0 or np.sign(value) == signs[index]


def test_memorizes_and_is_a_nearest_neighbour_rule_that_abstains(digits):
    from sklearn.neighbors import KNeighborsClassifier

    X, y, X_test, y_test = digits
    memorizer = VoronoiMemorizer(abstain_label=-1).fit(X, y)
    neighbour = KNeighborsClassifier(1).fit(X, y)
    assert memorizer.score(X, y) == 1.0
    assert memorizer.score(X_test, y_test) >= 0.97
    rng = np.random.default_rng(0)
    queries = np.vstack([X_test, (X[rng.integers(0, len(X), 500)] + X[rng.integers(0, len(X), 500)]) / 2])
    silent = memorizer.abstains(queries)
    assert 0 < silent.sum() < len(queries) / 4
    assert (memorizer.predict(queries)[~silent] == neighbour.predict(queries)[~silent]).all()
    assert (memorizer.predict(queries)[silent] == -1).all()


def test_no_flip_at_98_percent_of_half_the_separation(digits):
    """15 digits, 400 directions each; towards the nearest other digit the sign changes at 0.49 or later."""
    X, y, _, _ = digits
    memorizer = VoronoiMemorizer(abstain_label=-1).fit(X, y)
    rng = np.random.default_rng(3)
    for row in rng.permutation(len(X))[:15]:
        direction = rng.standard_normal((400, X.shape[1]))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        moved = X[row] + 0.98 * memorizer.c0_ / 2 * direction
        assert (memorizer.predict(moved) == y[row]).all()
        own = X[row] + 0.9999 * memorizer.certified_radii_[row] * direction
        assert (memorizer.predict(own) == y[row]).all()
        other = X[y != y[row]]
        towards = other[np.linalg.norm(other - X[row], axis=1).argmin()] - X[row]
        steps = np.linspace(0.45, 1, 1101)
        wrong = memorizer.predict(X[row] + steps[:, None] * towards) != y[row]
        assert wrong.any()
        assert steps[wrong.argmax()] >= 0.49


def test_prediction_radius_is_the_distance_to_the_polytopes_faces():
    X, y = cloud(40, 2, 5)
    memorizer = VoronoiMemorizer().fit(X, y)
    rng = np.random.default_rng(6)
    queries = rng.random((200, 2))
    found = memorizer.prediction_radius(queries)
    for query, radius in zip(queries, found, strict=True):
        i = np.linalg.norm(X - query, axis=1).argmin()
        others = X[y != y[i]]
        S = ((X[i] - others) * (query - 0.51 * X[i] - 0.49 * others)).sum(axis=1)
        assert radius == pytest.approx(max((S / np.linalg.norm(X[i] - others, axis=1)).min(), 0), abs=1e-12)
        angles = rng.random(50) * 2 * np.pi
        ball = query + 0.999 * radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        if radius > 0:
            assert (memorizer.signs(ball) == y[i]).all()
    assert (found > 0).mean() > 0.5
    assert (memorizer.prediction_radius(X) >= memorizer.certified_radii_ - 1e-12).all()


@pytest.mark.parametrize("split", [0.49, 0.4, 0.25])
def test_a_record_in_a_ball_covers_the_ball(split):
    """Lemma H.4 for any split: the constant is (2-t)/t, 3.1 is enough for 0.49, and a smaller one is not enough."""
    memorizer = VoronoiMemorizer(split=split)
    constant = memorizer.cover_constant
    assert VoronoiMemorizer().cover_constant == pytest.approx(3.0816, abs=1e-4)

    def worst(k):
        """Collinear worst case, L = 1: v = 0, x_i = -1/k, x_j = 1; the plane's place against the ball's end 1/k."""
        own, other = -1 / k, 1.0
        return ((1 - split) * own + split * other) - 1 / k

    assert worst(constant) == pytest.approx(0, abs=1e-12)
    assert worst(constant * 1.01) > 0 > worst(constant * 0.99)
    rng = np.random.default_rng(0)
    for _ in range(300):  # and at random, in the plane: S_ij >= 0 on the whole ball around v
        angle, length = rng.random(3) * 2 * np.pi, np.array([rng.random() / constant, 1 + rng.random(), 1 / constant])
        own, other, x = (s * np.array([np.cos(a), np.sin(a)]) for s, a in zip(length, angle, strict=True))
        assert (own - other) @ (x - (1 - split) * own - split * other) >= -1e-12


def test_parameter_counts_are_the_networks():
    rng = np.random.default_rng(0)
    X, y = rng.random((180, 64)), np.repeat([0, 1], 90)
    memorizer = VoronoiMemorizer().fit(X, y)
    assert memorizer.dense_parameters_ == 3_969_361
    assert memorizer.sparse_parameters_ == 1_069_561
    small = VoronoiMemorizer().fit(*cloud(12, 3))
    module = small.to_torch()
    assert sum(p.numel() for p in module.parameters()) == small.dense_parameters_
    entries = [p for p in module.parameters()]
    nonzero = sum(int((p != 0).sum()) for p in entries)
    # the output's bias is an entry of the construction that is 0; everything else it sets is not, for random points
    assert nonzero == small.sparse_parameters_ - 1


def test_torch_module_is_the_same_function():
    import torch

    X, y = cloud(30, 3, 7)
    queries = np.random.default_rng(8).random((100, 3))
    memorizer = VoronoiMemorizer().fit(X, y)
    state = torch.get_rng_state()
    module = memorizer.to_torch()
    assert torch.equal(state, torch.get_rng_state())
    found = module(torch.tensor(queries))[:, 0].numpy()
    np.testing.assert_allclose(found, memorizer.decision_function(queries), atol=1e-12)
    assert [type(layer).__name__ for layer in module] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    with pytest.raises(InputError, match="explicit network has"):
        memorizer.to_torch(most_parameters=1000)


def test_half_way_between_a_closest_pair_it_abstains():
    """F = r - m c0^2 = 0 there; a rounding error of 1e-16 must not choose a class."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        X, y = rng.integers(0, 17, (60, 64)) / 16, np.tile([0, 1], 30)
        squares = (256 * np.square(X[:, None] - X).sum(axis=2)).round().astype(int)  # exact: multiples of 1/256
        squares[y[:, None] == y] = squares.max() + 1
        i, j = np.unravel_index(squares.argmin(), squares.shape)
        memorizer = VoronoiMemorizer(abstain_label=-1).fit(X, y)
        middle = (X[i] + X[j])[None] / 2
        assert np.linalg.norm(X - middle, axis=1).min() == np.linalg.norm(X[i] - middle)
        assert memorizer.abstains(middle).all()
        assert memorizer.decision_function(middle) == memorizer.predict(middle) + 1 == 0
        assert not memorizer.abstains(0.51 * X[i] + 0.49 * X[j] + 1e-9 * (X[i] - X[j])[None]).any()


def test_an_export_that_forgets_is_refused():
    """Two classes 3e-8 apart: one float32 number stands for both records."""
    import torch

    X = np.array([[0.7, 0.7], [0.7 + 3e-8, 0.7], [0.1, 0.9], [0.9, 0.1]])
    memorizer = VoronoiMemorizer().fit(X, [0, 1, 0, 1])
    assert (memorizer.to_torch()(torch.tensor(X))[:, 0].sign().numpy() == [-1, 1, -1, 1]).all()
    with pytest.raises(InputError, match=r"as torch.float32 the network is wrong on [1-4] of 4 records"):
        memorizer.to_torch(dtype=torch.float32)


def test_blocks_and_runs_change_nothing(monkeypatch):
    X, y = cloud(80, 3, 2)
    queries = np.random.default_rng(0).random((300, 3))
    whole = VoronoiMemorizer().fit(X, y)
    values, signs, radii = whole.decision_function(queries), whole.signs(queries), whole.prediction_radius(queries)
    monkeypatch.setattr(voronoi_forward, "BLOCK_NUMBERS", 700)
    monkeypatch.setattr(voronoi_forward, "RUN", 3)
    monkeypatch.setattr(voronoi_forward, "MANY_PAIRS", 2)
    monkeypatch.setattr(labelled, "BLOCK_NUMBERS", 100)
    parts = VoronoiMemorizer().fit(X, y)
    np.testing.assert_allclose(parts.decision_function(queries), values, atol=1e-15)
    assert (parts.signs(queries) == signs).all()
    np.testing.assert_allclose(parts.prediction_radius(queries), radii, atol=1e-14)
    order = np.random.default_rng(1).permutation(80)
    shuffled = VoronoiMemorizer().fit(X[order], y[order])
    np.testing.assert_allclose(shuffled.decision_function(queries), values, atol=1e-15)


def test_worst_case_all_records_equally_far():
    """Corners of a simplex seen from its centre: every unit of every record is open."""
    X, y = np.eye(40), np.tile([-1, 1], 20)
    centre = np.full((1, 40), 1 / 40)
    queries = np.vstack([centre, centre + 0.02 * np.random.default_rng(0).standard_normal((30, 40)), X * 0.1])
    memorizer = VoronoiMemorizer().fit(X, y)
    np.testing.assert_allclose(memorizer.decision_function(queries), network(X, y, queries), atol=1e-14)


def test_the_units_of_one_query_are_never_stored():
    """2,000 + 2,000 records: one query has 8 million first-layer units, 64 MB; all of 500 queries take less."""
    rng = np.random.default_rng(0)
    X, y = rng.random((4000, 5)), np.tile([0, 1], 2000)
    queries = rng.random((500, 5))
    tracemalloc.start()
    memorizer = VoronoiMemorizer().fit(X, y)
    memorizer.decision_function(queries)
    memorizer.predict(queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48e6


def test_opposite_distances_against_all_pairs():
    X, y = cloud(70, 4, 3)
    near = X[y > 0][0] + 1e-9 * np.array([1, 0, 0, 0])  # so near that the matrix product alone cannot measure it
    X, y = np.vstack([X, near]), np.append(y, -1)
    found = labelled.opposite_distances(labelled.check_two_classes(X, y))
    apart = np.linalg.norm(X[:, None] - X[None], axis=2)
    opposite = y[:, None] != y[None]
    np.testing.assert_allclose(found.nearest, np.where(opposite, apart, np.inf).min(axis=1), rtol=1e-12)
    farthest = np.where(opposite, apart, 0).max(axis=1)
    assert (found.farthest >= farthest).all()
    np.testing.assert_allclose(found.farthest, farthest, rtol=1e-9)
    assert found.smallest == apart[found.pair]
    memorizer = VoronoiMemorizer(unit_cube=False).fit(X, y)
    assert (memorizer.signs(X) == y).all()


def test_equal_records_with_equal_labels_are_fine():
    X, y = np.vstack([XOR, XOR[:1]]), np.append(XOR_LABELS, 1)
    memorizer = VoronoiMemorizer().fit(X, y)
    np.testing.assert_allclose(memorizer.decision_function(X), network(X, y, X), atol=1e-15)
    assert memorizer.decision_function(X)[0] == 0.02  # both copies' polytopes


def test_three_classes_one_against_the_rest():
    from sklearn.datasets import load_iris

    points, y = load_iris(return_X_y=True)
    X = points / 8
    X, kept = np.unique(X, axis=0, return_index=True)
    y = y[kept]
    with pytest.raises(InputError, match="3 classes"):
        VoronoiMemorizer().fit(X, y)
    memorizer = VoronoiMemorizer(multiclass="ovr", abstain_label=9).fit(X[::2], y[::2])
    assert memorizer.score(X[::2], y[::2]) == 1.0
    queries = X[1::2]
    expected = np.stack([network(X[::2], np.where(y[::2] == k, 1, -1), queries) for k in range(3)], axis=1)
    np.testing.assert_allclose(memorizer.decision_function(queries), expected, atol=1e-13)
    assert memorizer.score(queries, y[1::2]) > 0.85
    assert (memorizer.predict([[0.0] * 4]) == 9).all() == memorizer.abstains([[0.0] * 4]).all()
    with pytest.raises(InputError, match="two classes"):
        memorizer.prediction_radius(queries)
    again = memorizer.fit(XOR, XOR_LABELS)  # a second fit forgets the first
    assert again.score(XOR, XOR_LABELS) == 1.0


def test_is_a_scikit_learn_estimator(digits):
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    X, y, _, _ = digits
    memorizer = clone(VoronoiMemorizer(split=0.4))
    assert memorizer.get_params()["split"] == 0.4
    assert cross_val_score(memorizer, X, y, cv=3).min() > 0.95
    search = GridSearchCV(VoronoiMemorizer(), {"split": [0.3, 0.49]}, cv=2).fit(X, y)
    assert search.best_params_["split"] in (0.3, 0.49)
    assert make_pipeline(MinMaxScaler(clip=True), VoronoiMemorizer()).fit(X, y).score(X, y) == 1.0


@pytest.mark.parametrize(("X", "y", "settings_", "message"), [
    ([[0.1], [0.1]], [0, 1], {}, "rows 0 and 1 are the same point with different labels"),
    ([[0.1], [0.2]], [1, 1], {}, "all labels are the same"),
    ([[0.1], [1.2]], [0, 1], {}, "not in the unit cube .*row 1, feature 0"),
    ([[0.1], [float("nan")]], [0, 1], {}, "not finite .*row 1"),
    ([[0.1], [0.2]], [0, 1, 1], {}, "one for each of the 2 points"),
    ([0.1, 0.2], [0, 1], {}, "records by features"),
    ([["a"], ["b"]], [0, 1], {}, "matrix of numbers"),
    ([[0.1], [0.2]], [0, 1], {"split": 0.5}, "split must be in"),
    ([[0.1], [0.2]], [0, 1], {"multiclass": "ovo"}, "multiclass must be"),
])  # fmt: skip
def test_bad_input_says_what_is_wrong(X, y, settings_, message):
    with pytest.raises(InputError, match=message):
        VoronoiMemorizer(**settings_).fit(X, y)


def test_bad_queries():
    memorizer = VoronoiMemorizer().fit(XOR, XOR_LABELS)
    with pytest.raises(InputError, match="queries have 3 features"):
        memorizer.predict([[0.0, 0.0, 0.0]])
    assert VoronoiMemorizer(unit_cube=False).fit(XOR * 3, XOR_LABELS).c0_ == 3.0


def test_many_records_and_unsettled_queries():
    """1,500 records with tossed labels: runs, rivals and sums over whole blocks, against the network written out."""
    rng = np.random.default_rng(11)
    X, y = rng.random((1500, 6)), rng.choice([-1, 1], 1500)
    queries = np.vstack([rng.random((25, 6)), X[:5]])
    memorizer = VoronoiMemorizer().fit(X, y)
    i, j = np.nonzero((y[:, None] > 0) & (y[None] < 0))
    expected = []
    r = 0.01 * (np.linalg.norm(X[y > 0][:, None] - X[y < 0], axis=2).min()) ** 2
    apart = ((X[i] - X[j]) ** 2).sum(axis=1)
    for x in queries:
        half = ((X - x) ** 2).sum(axis=1) / 2
        forward = np.maximum(-(half[j] - half[i] - 0.01 * apart), 0)
        backward = np.maximum(-(half[i] - half[j] - 0.01 * apart), 0)
        G = np.bincount(i, forward, minlength=1500) + np.bincount(j, backward, minlength=1500)
        expected.append((y * np.maximum(r - G, 0)).sum())
    expected = np.array(expected)
    np.testing.assert_allclose(memorizer.decision_function(queries), expected, atol=1e-14)
    assert (memorizer.signs(queries) == np.sign(expected)).all()
