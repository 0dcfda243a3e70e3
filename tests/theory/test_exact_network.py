"""Exact networks agree with brute force; the integer memorizer gives every key its label and every other integer 0."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.theory.exact_network import ExactLayer, ExactNetwork, LayerStack, carry_inputs, compose
from rote.theory.integer_memorizer import balanced_groups, bits_by_tents, memorize_integers, pack
from rote.theory.labelled_points import labelled_points, read_labelled_points

numbers = st.one_of(st.integers(-(2**70), 2**70), st.fractions(-50, 50, max_denominator=40))


def random_network(widths, seed, big=False):
    rng = random.Random(seed)
    top = 2**80 if big else 6
    draw = lambda: rng.choice([0, rng.randint(-top, top), Fraction(rng.randint(-9, 9), rng.choice([1, 2, 3, 8]))])  # noqa: E731
    return ExactNetwork(
        tuple(
            ExactLayer(tuple({j: draw() for j in range(a)} for _ in range(b)), tuple(draw() for _ in range(b)), a)
            for a, b in pairwise(widths)
        )
    )


def by_hand(network, x):
    """The definition, one number after another."""
    h = [Fraction(value) for value in x]
    for number, layer in enumerate(network.layers):
        pairs = zip(layer.rows, layer.bias, strict=True)
        h = [b + sum((w * h[j] for j, w in row.items()), Fraction(0)) for row, b in pairs]
        if number < network.depth - 1:
            h = [max(value, Fraction(0)) for value in h]
    return h


@pytest.mark.parametrize("big", [False, True])
def test_evaluation_is_the_definition(big):
    for seed in range(20):
        network = random_network([3, 5, 4, 2], seed, big)
        rng = random.Random(seed)
        points = [[Fraction(rng.randint(-99, 99), rng.choice([1, 2, 7])) for _ in range(3)] for _ in range(6)]
        found = network.evaluate_batch(points)
        assert [list(row) for row in found] == [by_hand(network, point) for point in points]
        assert list(network.evaluate(points[0])) == by_hand(network, points[0])


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_evaluation_of_any_rationals(points):
    network = random_network([2, 3, 1], 5)
    assert [row[0] for row in network.evaluate_batch(points)] == [by_hand(network, point)[0] for point in points]


def test_floats_are_taken_at_their_exact_value():
    identity = ExactNetwork((ExactLayer(({0: 1},), (0,), 1),))
    values = np.array([[0.1], [1e-300], [-(2.0**60)], [5e-324]])
    assert [row[0] for row in identity.evaluate_batch(values)] == [Fraction(value) for value in values[:, 0]]
    with pytest.raises(InputError, match="finite"):
        identity.evaluate([float("nan")])


def test_sizes_count_what_they_say():
    network = ExactNetwork(
        (ExactLayer(({0: 1, 1: 0}, {0: Fraction(3, 8)}, {}), (0, 5, 0), 2), ExactLayer(({0: 1, 2: -9},), (0,), 3))
    )
    assert (network.parameters, network.nonzero, network.depth, network.width) == ((2 + 1) * 3 + (3 + 1) * 1, 5, 2, 3)
    assert network.bits == 5  # 3/8: two bits above, three places below


def test_composition_and_carrying():
    first, second = random_network([2, 4, 3], 1), random_network([3, 5, 1], 2)
    both = compose(first, second)
    points = [[Fraction(a, 3), b] for a in range(-4, 5) for b in range(-3, 4)]
    assert both.depth == first.depth + second.depth - 1
    for signs in (True, False):
        kept = carry_inputs(first, nonnegative=signs)
        chosen = [p for p in points if not signs or min(p) >= 0]
        for point, row in zip(chosen, kept.evaluate_batch(chosen), strict=True):
            assert list(row) == [*by_hand(first, point), *point]
    for point, row in zip(points, both.evaluate_batch(points), strict=True):
        assert list(row) == by_hand(second, by_hand(first, point))
    with pytest.raises(InputError, match="gives 3"):
        compose(first, first)


def test_mistakes_are_refused():
    with pytest.raises(InputError, match="takes 2"):
        ExactNetwork((ExactLayer(({0: 1},), (0,), 1), ExactLayer(({0: 1},), (0,), 2)))
    with pytest.raises(InputError, match="int and Fraction"):
        ExactLayer(({0: 0.5},), (0,), 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="count from 0"):
        ExactLayer(({1: 1},), (0,), 1)
    stack = LayerStack(1)
    (x,) = stack.inputs
    (y,) = stack.relu(x)
    with pytest.raises(ValueError, match="stale"):
        _ = x + y
    with pytest.raises(ValueError, match="earlier level"):
        stack.relu(x)


def test_torch_copy_is_exact_or_refused():
    network = random_network([3, 5, 2], 3)
    eighths = lambda value: Fraction(int(value * 8), 8)  # noqa: E731
    dyadic = ExactNetwork(
        tuple(
            ExactLayer(
                tuple({j: eighths(w) for j, w in row.items()} for row in layer.rows),
                tuple(map(eighths, layer.bias)),
                layer.inputs,
            )
            for layer in network.layers
        )
    )
    import torch

    copy = dyadic.to_torch()
    points = np.random.default_rng(0).integers(-9, 9, (20, 3)) / 4
    exact = dyadic.evaluate_batch(points).astype(float)
    assert np.array_equal(copy(torch.tensor(points)).detach().numpy(), exact)
    third = ExactNetwork((ExactLayer(({0: Fraction(1, 3)},), (0,), 1),))
    long = ExactNetwork((ExactLayer(({0: 2**60 + 1},), (0,), 1),))
    for bad in (third, long):
        with pytest.raises(InputError, match="cannot hold"):
            bad.to_torch()
    assert ExactNetwork((ExactLayer(({0: 2**60},), (0,), 1),)).to_torch()[0].weight.item() == 2.0**60
    with pytest.raises(InputError, match="cannot hold"):
        ExactNetwork((ExactLayer(({0: 2**24 + 1},), (0,), 1),)).to_torch(torch.float32)
    # every weight fits, the sum does not
    lost = ExactNetwork((ExactLayer(({0: 2**52}, {0: 1}), (0, 0), 1), ExactLayer(({0: 4, 1: 1},), (0,), 2),
                         ExactLayer(({0: 1},), (-(2**54),), 1)))  # fmt: skip
    with pytest.raises(InputError, match="sums need more bits"):
        lost.to_torch(check=[[1], [2**30 + 1]])


@pytest.mark.parametrize("reader", ["step", "tent"])
@pytest.mark.parametrize("count", [1, 2, 5, 23])
def test_integer_memorizer_on_every_integer_around(reader, count):
    rng = random.Random(count)
    keys = rng.sample(range(-60, 300), count)
    labels = [rng.randint(1, 3) for _ in keys]
    for groups in (None, 1, count):
        network = memorize_integers([*keys, keys[0]], [*labels, labels[0]], classes=3, reader=reader, groups=groups)
        known = dict(zip(keys, labels, strict=True))
        around = range(-80, 330)
        found = network.evaluate_batch([[z] for z in around])[:, 0]
        assert list(found) == [known.get(z, 0) for z in around]


@given(st.dictionaries(st.integers(-(10**12), 10**12), st.integers(1, 4), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_integer_memorizer_on_far_keys(known):
    network = memorize_integers(list(known), list(known.values()), classes=4)
    near = sorted({key + step for key in known for step in (-1, 0, 1)})
    assert list(network.evaluate_batch([[z] for z in near])[:, 0]) == [known.get(z, 0) for z in near]


def test_integer_memorizer_grows_as_the_theorem_says():
    """Depth sqrt(N log N), weights of about sqrt(N log N) bits, width constant."""
    for size in (256, 1024, 4096):
        keys = random.Random(size).sample(range(size * size), size)
        network = memorize_integers(keys, [1 + key % 2 for key in keys])
        bits = (size * size).bit_length() + 2
        assert network.width <= 7
        assert network.depth <= 3 * (size * bits) ** 0.5
        assert network.bits <= 3 * (size * bits) ** 0.5


def test_group_count_is_the_best_one():
    keys = random.Random(0).sample(range(500), 30)
    chosen = balanced_groups(30, 9, 2)
    sizes = {groups: memorize_integers(keys, [3] * 30, classes=3, groups=groups).parameters for groups in range(1, 31)}
    assert sizes[chosen] <= 1.05 * min(sizes.values())


def test_bits_by_tents():
    assert bits_by_tents(0b100101, 6, 1, 3) == 4  # the card's example: 37 = 100101
    for u in range(64):
        text = f"{u:06b}"
        for first in range(1, 7):
            for last in range(first, 7):
                assert bits_by_tents(u, 6, first, last) == int(text[first - 1 : last], 2)
    assert pack([(5, 1), (2, 2)], 3, 3, 2) == 0b10101_01010_00000


def test_integer_memorizer_errors():
    with pytest.raises(InputError, match="another label"):
        memorize_integers([3, 3], [1, 2])
    with pytest.raises(InputError, match="from 1"):
        memorize_integers([3, 4], [0, 1])
    with pytest.raises(InputError, match="at least one key"):
        memorize_integers([], [])
    with pytest.raises(InputError, match="step or tent"):
        memorize_integers([1], [1], reader="magic")  # type: ignore[arg-type]


def test_labelled_points_from_files(tmp_path):
    import pyarrow
    import pyarrow.parquet

    X, y = np.array([[0.5, 1], [0, 0.25], [1, 1]]), np.array([7, 3, 7])
    np.savez(tmp_path / "a.npz", X=X, y=y)
    (tmp_path / "a.csv").write_text("f,y,g\n0.5,7,1\n0,3,0.25\n1,7,1\n")
    pyarrow.parquet.write_table(pyarrow.table({"f": X[:, 0], "label": y, "g": X[:, 1]}), tmp_path / "a.parquet")
    for ending in ("npz", "csv", "parquet"):
        found = read_labelled_points(tmp_path / f"a.{ending}", unit_cube=True)
        assert np.array_equal(found.X, X)
        assert found.y.tolist() == [1, 0, 1]
        assert found.classes == (3, 7)
    (tmp_path / "text.csv").write_text("f,label\n1,cat\n2,dog\n1,cat\n")
    text = read_labelled_points(tmp_path / "text.csv")
    assert (text.classes, len(text), text.repeated) == (("cat", "dog"), 2, 1)


@pytest.mark.parametrize(("X", "y", "message"), [
    ([[0], [1], [0]], [1, 2, 2], "rows 1 and 3 are the same point"),
    ([[0], [-0.0]], [1, 2], "rows 1 and 2 are the same point"),
    ([[0], [1]], [1, 1], "two classes"),
    ([[0], [np.nan]], [1, 2], "row 2, coordinate 1 is NaN"),
    ([[0], [1.5]], [1, 2], r"outside \[0, 1\]"),
    ([[0], [1]], [1, np.nan], "row 2 has no label"),
    ([[0], [1]], [1], "shape"),
    ([["a"], ["b"]], [1, 2], "not a number"),
])  # fmt: skip
def test_labelled_points_refuses(X, y, message):
    with pytest.raises(InputError, match=message):
        labelled_points(X, y, unit_cube=True)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.csv", "f,g\n1,2\n", "no column y"),
    ("a.csv", "f,y\n1,2\n1\n", "line 3: 1 fields"),
    ("a.csv", "f,y\nx,2\n", "line 2: a coordinate"),
    ("a.csv", "f,y\n1,\n", "line 2: no label"),
    ("a.npz", "nonsense", "not a readable"),
    ("a.parquet", "nonsense", "not a readable"),
    ("a.pkl", "nonsense", "unknown ending"),
])  # fmt: skip
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_labelled_points(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_labelled_points(tmp_path / "missing.npz")


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.array([{"a": 1}], dtype=object), y=np.array([1]))
    with pytest.raises(InputError, match="pickled"):
        read_labelled_points(tmp_path / "a.npz")
