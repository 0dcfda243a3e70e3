"""The sqrt(N) memorizers: real networks of width 6 in exact arithmetic, equal to what the theorems say they compute."""

from __future__ import annotations

from fractions import Fraction
from math import floor, sqrt

import numpy as np
import pytest

from rote.errors import InputError
from rote.theory.generalize import AdversarialInterpolator, SqrtMemorizer
from rote.theory.generalize.sqrt_memorizer import project
from rote.theory.generalize.sqrt_network import balanced_blocks, integer_keys, pack, sqrt_network


def slabs(count, seed, features=2):
    """Uniform on the cube without a slab: label by side. Density 1/0.9."""
    rng = np.random.default_rng(seed)
    X = rng.random((count, features))
    y = np.where(X[:, 0] < 0.5, 0, 1)
    X[:, 0] = np.where(y == 0, 0.9 * X[:, 0], 1 - 0.9 * (1 - X[:, 0]))
    return X, y


def formula(c, parts, steps):
    """Theorem 4.1 without a network: the block of c, then sum over its keys of relu(9/8 - |c - key|) - 1/16; None on a
    step, where the theorem says nothing."""
    block = 0
    for step in steps:
        if step.start < c < step.start + step.width:
            return None
        block += c >= step.start + step.width
    keys = parts[block] + [parts[0][0]] * (len(parts[0]) - len(parts[block]))
    return sum(max(Fraction(9, 8) - abs(c - key), Fraction(0)) for key in keys) - Fraction(1, 16)


@pytest.mark.parametrize("blocks", [None, 1, 2, 5, 25])
def test_network_is_the_formula(blocks):
    X, y = slabs(50, 0)
    memorizer = SqrtMemorizer(seed=1, blocks=blocks).fit(X, y)
    assert memorizer.width_ <= 6
    # the keys, found again from the weights of the finished network
    w, b = memorizer.direction_, memorizer.network_.layers[0].bias[0]
    values = project(X, w, b)
    positive = (y == 1).tolist()
    count = len({floor(value) for value, flag in zip(values, positive, strict=True) if flag})
    bits = max(floor(value) for value, flag in zip(values, positive, strict=True) if flag).bit_length()
    parts, steps = integer_keys(values, positive, blocks=blocks or balanced_blocks(count, bits))
    assert sorted(key for part in parts for key in part) == sorted(
        {floor(v) for v, flag in zip(values, positive, strict=True) if flag}
    )
    rng = np.random.default_rng(2)
    # random points, records, and points whose value is a fraction of a unit from a record's
    near = np.clip(X + rng.standard_normal(X.shape) * 0.5 / float(sum(v * v for v in w)) ** 0.5, 0, 1)
    queries = np.vstack([rng.random((40, 2)), X, near])
    expected = [formula(c, parts, steps) for c in project(queries, w, b)]
    found = memorizer.network_.evaluate_batch(queries)[:, 0]
    compared = [(a, e) for a, e in zip(found, expected, strict=True) if e is not None]
    assert len(compared) > 100
    assert all(a == e for a, e in compared)
    # the records, and some points beside them
    assert sum(e > Fraction(-1, 16) for _, e in compared) > (y == 1).sum()


def test_network_on_every_part_of_the_line():
    """One input, w = 1, b = 0: c is the input. Blocks, steps, keys and the gaps between, by quarters."""
    values = [Fraction(v) for v in (3, 8, Fraction(27, 2), 20, 21, 30, 41, 46)]
    positive = [True, False, True, True, True, False, True, False]
    parts, steps = integer_keys(values, positive, blocks=3)
    assert parts == [[3, 13], [20, 21], [41]]
    assert [(step.start, step.width) for step in steps] == [(Fraction(29, 2), 1), (22, 1)]
    network = sqrt_network([1], 0, values, positive, blocks=3)
    grid = [[Fraction(q, 4)] for q in range(4, 4 * 60)]
    found = network.evaluate_batch(grid)[:, 0]
    for (c,), value in zip(grid, found, strict=True):
        expected = formula(c, parts, steps)
        if expected is not None:
            assert value == expected, c
    assert [bool(v > 0) for v in network.evaluate_batch([[v] for v in values])[:, 0]] == positive
    assert pack([3, 1, 2], 2) == 0b110110


def test_digits_pair_is_memorized_and_not_generalized():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    points, target = load_digits(return_X_y=True)
    kept = np.isin(target, (1, 7))
    X, y = points[kept] / 16, target[kept]
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
    memorizer = SqrtMemorizer(seed=0).fit(X_train, y_train)
    assert memorizer.score(X_train, y_train) == 1.0
    assert abs(memorizer.score(X_test, y_test) - 0.5) <= 0.08
    assert memorizer.width_ == 6
    assert ((memorizer.decision_function(X_train) > 0) == (y_train == 7)).all()


def test_parameters_grow_like_sqrt():
    """4 times the records, about twice the parameters (and a logarithm): slope of log P between 0.45 and 0.65."""
    sizes, counts = (128, 512, 2048), []
    for count in sizes:
        X, y = slabs(count, 3)
        memorizer = SqrtMemorizer(seed=0).fit(X, y)
        assert memorizer.width_ <= 6
        assert memorizer.parameters_ == memorizer.network_.parameters
        counts.append(memorizer.parameters_)
    slope = np.polyfit(np.log(sizes), np.log(counts), 1)[0]
    assert 0.45 <= slope <= 0.65


def test_unseen_points_get_the_default_class():
    X, y = slabs(60, 5)
    fresh, _ = slabs(300, 6)
    for default in (0, 1):
        memorizer = SqrtMemorizer(seed=2, default=default).fit(X, y)
        assert memorizer.score(X, y) == 1.0
        assert (memorizer.predict(fresh) == default).mean() > 0.95
    with pytest.raises(InputError, match="default class is not one"):
        SqrtMemorizer(default=7).fit(X, y)


def test_direction_keeps_opposite_labels_apart_as_the_theorem_asks():
    X, y = slabs(40, 7, features=5)
    memorizer = SqrtMemorizer(seed=4).fit(X, y)
    values = project(X, memorizer.direction_, memorizer.network_.layers[0].bias[0])
    gaps = [abs(values[i] - values[j]) for i in range(40) for j in range(40) if y[i] != y[j]]
    assert min(gaps) >= 4
    assert min(values) >= 1
    norm = sqrt(sum(float(w) ** 2 for w in memorizer.direction_))
    assert norm == pytest.approx(16 * sqrt(5) * 40**2 / memorizer.c0_, rel=1e-3)
    same = SqrtMemorizer(seed=4).fit(X, y)
    assert same.direction_ == memorizer.direction_
    assert SqrtMemorizer(seed=5).fit(X, y).direction_ != memorizer.direction_


def test_adversarial_interpolator_is_right_half_of_the_time():
    X, y = slabs(100, 8)
    fresh, labels = slabs(2000, 9)
    memorizer = AdversarialInterpolator(density=1 / 0.9, seed=3).fit(X, y)
    assert memorizer.score(X, y) == 1.0
    assert memorizer.score(fresh, labels) <= 0.51 + 3 * sqrt(0.25 / 2000)
    # the two halves of the argument: positive answers only within 3 of a positive record's value, and ||w|| so long
    # that these slabs hold 1% of any law of this density
    w, b = memorizer.direction_, memorizer.network_.layers[0].bias[0]
    keys = np.array([float(v) for v in project(X[y == 1], w, b)])
    rng = np.random.default_rng(0)
    norm = sqrt(sum(float(v) ** 2 for v in w))
    near = np.clip(np.repeat(X[y == 1], 20, axis=0) + 5 / norm * rng.standard_normal((20 * (y == 1).sum(), 2)), 0, 1)
    values = np.array([float(v) for v in project(near, w, b)])
    away = np.abs(values[:, None] - keys).min(axis=1)
    answers = memorizer.predict(near)
    assert (answers[away > 3] == 0).all()
    assert (answers[away < 0.01] == 1).all()
    assert (away > 3).sum() > 50 < (answers == 1).sum()
    assert norm >= 600 * sqrt(2) * 100 / 0.9
    with pytest.raises(InputError, match="density must be above 0"):
        AdversarialInterpolator(density=0).fit(X, y)


def test_small_networks_can_be_exported_and_large_ones_say_why_not():
    import torch

    X, y = np.array([[0.25], [0.75]]), np.array(["a", "b"])
    memorizer = SqrtMemorizer().fit(X, y)
    module = memorizer.to_torch(X)
    assert (module(torch.tensor(X))[:, 0] > 0).tolist() == [False, True]
    large = SqrtMemorizer(blocks=4).fit(*slabs(40, 0))
    with pytest.raises(InputError, match="cannot hold"):
        large.to_torch(X.repeat(2, axis=1))


@pytest.mark.parametrize(("X", "y", "settings_", "message"), [
    ([[0.1], [0.1]], [0, 1], {}, "same point with different labels"),
    ([[0.1], [0.2]], [1, 1], {}, "all labels are the same"),
    ([[0.1], [-0.2]], [0, 1], {}, "not in the unit cube"),
    ([[0.1], [0.2], [0.3]], [0, 1, 2], {}, "3 classes"),
    ([[0.1], [0.2]], [0, 1], {"eps": 0}, "eps must be in"),
    ([[0.1], [0.2]], [0, 1], {"blocks": 0}, "blocks must be at least 1"),
])  # fmt: skip
def test_bad_input_says_what_is_wrong(X, y, settings_, message):
    with pytest.raises(InputError, match=message):
        SqrtMemorizer(**settings_).fit(X, y)


def test_queries_must_be_in_the_cube():
    memorizer = SqrtMemorizer().fit([[0.1], [0.9]], [0, 1])
    with pytest.raises(InputError, match="queries: 1 of 1 points are not in the unit cube"):
        memorizer.predict([[1.5]])


def test_close_opposite_values_and_small_values_are_refused():
    with pytest.raises(InputError, match="less than 4 apart"):
        integer_keys([5, 8], [True, False], blocks=1)
    with pytest.raises(InputError, match="below 1"):
        integer_keys([0, 8], [True, False], blocks=1)
    with pytest.raises(InputError, match="no positive record"):
        sqrt_network([1], 0, [5], [False])
