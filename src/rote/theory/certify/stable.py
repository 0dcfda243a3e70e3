"""Stable-affine analysis: on a ball where no unit changes its sign the network is one affine map, and that is decided
exactly.

At ball i every unit is a.x + c with the activation pattern of the centre; over the open l_p ball of radius mu its range
is (a.x_i + c) -+ mu ||a||_q. If |a.x_i + c| >= mu ||a||_q for every hidden unit with a != 0, the pattern is that of
the whole ball. Squares of integers are compared, so nothing is rounded.

Speed: the values of all balls move through the network together (int64 where it provably fits); gradients are stored
once per distinct vector, as a number times a direction, and a unit only holds the number of its gradient. In the
constructed networks all but the first few layers have gradient 0 and cost nothing here.
Deliberately does not know labels: it returns values and gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from rote.errors import InputError
from rote.theory.exact_columns import Column, from_columns, relu, to_columns
from rote.theory.exact_network import ExactNetwork, affine
from rote.theory.robust.norms import Radius, dual, norm_squared

Direction = tuple[tuple[int, int], ...]  # ((basis vector, integer), ...), coprime, the first one positive
Gradient = tuple[int, Fraction]  # (number of the direction, factor)


class Bends(NamedTuple):
    """Of each ball: the number of the gradient of the unit that changes sign nearest to the centre, in the first layer
    where one does (-1: none), the sign of that unit at the centre, and its distance."""

    number: Int[np.ndarray, " n"]
    side: Int[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class StableResult:
    """`values` (n, outputs): f at the centres, exactly. `stable`: no unit changes sign on the ball. `radius`: a lower
    bound (relative 1e-9) on the largest stable radius of each stable ball, infinity when no unit moves at all; NaN for
    the others. `gradients` (n, outputs): numbers into the table, valid for stable balls. `bends`: where the others bend
    first, for searches of counterexamples."""

    values: Shaped[np.ndarray, "n outputs"]
    stable: Bool[np.ndarray, " n"]
    radius: Float[np.ndarray, " n"]
    gradients: Shaped[np.ndarray, "n outputs"]
    table: GradientTable
    bends: Bends

    def gradient(self, ball: int, output: int) -> dict[int, Fraction]:
        """{input: derivative} of an output on a stable ball."""
        return self.table.vector(int(self.gradients[ball, output]))


class GradientTable:
    """Every distinct gradient once. Vectors are combinations of a basis of input-space vectors."""

    def __init__(self, basis: list[dict[int, Fraction]], p: float):
        self.basis, self.q = basis, dual(p)
        self.directions: list[Direction] = []
        self.squares: list[Fraction] = []  # ||direction||_q^2
        self.gradients: list[Gradient] = [(-1, Fraction(0))]  # number 0 is the zero gradient
        self._direction: dict[Direction, int] = {}
        self._gradient: dict[Gradient, int] = {}
        self._sums: dict[tuple, int] = {}
        self._gram: list[list[Fraction]] | None = None

    def unit(self, k: int) -> int:
        """The number of basis vector k as a gradient."""
        return self._number(self._direction_number(((k, 1),)), Fraction(1))

    def combine(self, weights: tuple[int, ...], numbers: tuple[int, ...], scale: int) -> int:
        """The number of sum_i weights[i] / scale * gradient numbers[i]."""
        key = (weights, numbers, scale)
        if key not in self._sums:
            self._sums[key] = self._combine(weights, numbers, scale)
        return self._sums[key]

    def square(self, number: int) -> Fraction:
        """||a||_q^2 of a gradient: exact for q in {1, 2, inf}, else an upper bound."""
        direction, factor = self.gradients[number]
        return Fraction(0) if direction < 0 else factor * factor * self.squares[direction]

    def vector(self, number: int) -> dict[int, Fraction]:
        direction, factor = self.gradients[number]
        if direction < 0:
            return {}
        return {j: factor * value for j, value in self._expand(self.directions[direction]).items()}

    def _combine(self, weights: tuple[int, ...], numbers: tuple[int, ...], scale: int) -> int:
        parts = [(w, *self.gradients[number]) for w, number in zip(weights, numbers, strict=True) if number]
        if len({direction for _, direction, _ in parts}) <= 1:
            total = sum((w * factor for w, _, factor in parts), Fraction(0)) / scale
            return self._number(parts[0][1], total) if total else 0
        whole = math.lcm(*(factor.denominator for _, _, factor in parts))
        summed: dict[int, int] = {}
        for w, direction, factor in parts:
            times = w * int(factor * whole)
            for k, value in self.directions[direction]:
                summed[k] = summed.get(k, 0) + times * value
        live = [(k, value) for k, value in sorted(summed.items()) if value]
        if not live:
            return 0
        common = math.gcd(*(value for _, value in live)) * (1 if live[0][1] > 0 else -1)
        direction = self._direction_number(tuple((k, value // common) for k, value in live))
        return self._number(direction, Fraction(common, whole * scale))

    def _number(self, direction: int, factor: Fraction) -> int:
        key = (direction, factor)
        if key not in self._gradient:
            self._gradient[key] = len(self.gradients)
            self.gradients.append(key)
        return self._gradient[key]

    def _direction_number(self, direction: Direction) -> int:
        if direction not in self._direction:
            self._direction[direction] = len(self.directions)
            self.directions.append(direction)
            self.squares.append(self._norm_squared(direction))
        return self._direction[direction]

    def _norm_squared(self, direction: Direction) -> Fraction:
        if self.q == 2 and len(direction) > 1:  # c^T G c with the basis' Gram matrix
            gram = self._inner()
            total = sum((u * v * gram[i][j] for i, u in direction for j, v in direction), Fraction(0))
        else:
            total = norm_squared(self._expand(direction).values(), self.q)
        if not total:
            # Linearly dependent basis vectors cancelled: a zero gradient that does not look like one is still sound.
            return Fraction(0)
        return total

    def _inner(self) -> list[list[Fraction]]:
        if self._gram is None:
            self._gram = [
                [sum((u[j] * v[j] for j in u.keys() & v.keys()), Fraction(0)) for v in self.basis] for u in self.basis
            ]
        return self._gram

    def _expand(self, direction: Direction) -> dict[int, Fraction]:
        total: dict[int, Fraction] = {}
        for k, value in direction:
            for j, entry in self.basis[k].items():
                total[j] = total.get(j, Fraction(0)) + value * entry
        return {j: value for j, value in total.items() if value}


def stable_affine(network: ExactNetwork, X: Any, radius: Radius) -> StableResult:
    """Analyse the open balls of one radius around the rows of X (floats at their exact values).

    Errors: InputError when the points do not fit the network.
    """
    columns = to_columns(X)
    if len(columns) != network.inputs:
        raise InputError(f"the points have {len(columns)} coordinates, the network takes {network.inputs}")
    n = len(columns[0].values)
    first = network.layers[0]
    through_rows = first.outputs <= first.inputs  # then the first layer's rows are the smaller basis
    if through_rows:
        basis = [{j: Fraction(w) for j, w in row.items()} for row in first.rows]
    else:
        basis = [{j: Fraction(1)} for j in range(first.inputs)]
    table = GradientTable(basis, radius.p)
    numbers = [np.full(n, table.unit(j), dtype=np.int64) for j in range(len(basis))] if not through_rows else []
    stable, largest = np.ones(n, dtype=bool), np.full(n, math.inf)
    bends = Bends(np.full(n, -1), np.ones(n, dtype=np.int64), np.full(n, math.inf))
    for place, layer in enumerate(network.layers):
        if place == 0 and through_rows:
            numbers = [np.full(n, table.unit(i) if row else 0, dtype=np.int64) for i, row in enumerate(first.rows)]
        else:
            numbers = [_combined(table, row, scale, numbers, n) for row, _, scale in layer.integers]
        columns = affine(layer, columns)
        if place == network.depth - 1:
            break
        for unit, column in enumerate(columns):
            if numbers[unit].any():
                _check_signs(table, column, numbers[unit], radius, stable, largest, bends)
                numbers[unit] = np.where(column.values > 0, numbers[unit], 0).astype(np.int64)
        for unit in range(len(columns)):  # a ball that is not stable needs no gradients any more
            if not stable.all() and numbers[unit].any():
                numbers[unit] = np.where(stable, numbers[unit], 0)
        columns = [relu(column) for column in columns]
    return StableResult(
        from_columns(columns),
        stable,
        np.where(stable, largest * (1 - 1e-9), math.nan),
        np.stack(numbers, axis=1),
        table,
        bends,
    )


def _combined(
    table: GradientTable, row: tuple[tuple[int, int], ...], scale: int, numbers: list[np.ndarray], n: int
) -> np.ndarray:
    """The gradient numbers of one unit, from those of its inputs: one combination per distinct tuple of numbers."""
    live = [(w, numbers[j]) for j, w in row if numbers[j].any()]
    if not live:
        return np.zeros(n, dtype=np.int64)
    weights = tuple(w for w, _ in live)
    stacked = np.stack([found for _, found in live], axis=1)
    distinct, inverse = np.unique(stacked, axis=0, return_inverse=True)
    made = np.array([table.combine(weights, tuple(line), scale) for line in distinct.tolist()], dtype=np.int64)
    return made[inverse.reshape(-1)]


def _check_signs(
    table: GradientTable,
    column: Column,
    numbers: np.ndarray,
    radius: Radius,
    stable: np.ndarray,
    largest: np.ndarray,
    bends: Bends,
) -> None:
    """Mark balls on which this unit may change sign; lower the largest stable radius of all. In place."""
    for number in np.unique(numbers[numbers > 0]).tolist():
        here = np.flatnonzero(numbers == number)
        square = table.square(number)
        if not square:
            continue
        bound = radius.square * square * column.scale**2
        least = math.isqrt(-(-bound.numerator // bound.denominator) - 1) + 1 if bound else 0  # ceil of the square root
        values = np.abs(column.values[here])
        keeps = np.zeros(len(here), dtype=bool)
        if values.dtype == object or least < 1 << 62:
            keeps = (values >= least).astype(bool)
        stable[here] &= keeps
        reach = float(square) ** 0.5 if square < 10**300 else math.sqrt(square.numerator // square.denominator)
        distance = np.array([int(value) / column.scale for value in values.tolist()]) / reach
        largest[here] = np.minimum(largest[here], distance)
        nearer = here[~keeps & (distance < bends.distance[here])]
        bends.number[nearer] = number
        bends.side[nearer] = np.where(column.values[nearer] > 0, 1, -1)
        bends.distance[nearer] = distance[~keeps & (distance < bends.distance[here])]
