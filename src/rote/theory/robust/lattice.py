"""Points on a lattice of unit cells, every ball inside one cell, no cell with two labels (Kim, Moon, Yun 2025, arXiv
2510.24643, section 4 and Lemma B.15).

z = W x + b. Per coordinate the fractional parts are sorted and the widest circular gap g (at least 1/N) is moved onto
the integers; a ball of radius r in that coordinate then stays off them when 2 r + gamma <= g. All of it in integers.
The paper shifts by the middle of a gap of at least 1/N; the actual gap is used here, which allows larger radii, and the
middle is moved by gamma/2, because the floor network is inexact only on [k, k + gamma).
Deliberately does not know networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from rote.theory.exact_columns import Column
from rote.theory.exact_network import ExactLayer, affine

GAMMA_SHARE = 64  # gamma is at most 1/64 of the gap: what is lost of the radius is under 1 %


@dataclass(frozen=True)
class Axis:
    """One coordinate: the shift b, how far points are above (`below`) and under (`above`) the next integers, and the
    floor of every point."""

    shift: Fraction
    below: Fraction
    above: Fraction
    floors: tuple[int, ...]


@dataclass(frozen=True)
class Lattice:
    """The map z = W x + b and the cell of every point. gamma = 2^-k is the width on which a floor may be wrong."""

    rows: tuple[tuple[Fraction, ...], ...]
    axes: tuple[Axis, ...]
    gamma: Fraction

    @property
    def tops(self) -> tuple[int, ...]:
        return tuple(max(axis.floors) for axis in self.axes)

    @property
    def keys(self) -> list[int]:
        """flatten(cell): mixed radix with base max floor + 1 a coordinate, so distinct cells have distinct keys."""
        return flatten([axis.floors for axis in self.axes], [top + 1 for top in self.tops])

    def room(self, gamma: Fraction | None = None) -> list[Fraction]:
        """The largest r per coordinate for which [z - r, z + r] is off [k, k + gamma) at every point."""
        gamma = self.gamma if gamma is None else gamma
        return [min(axis.above, axis.below - gamma) for axis in self.axes]


def place(
    rows: Sequence[Sequence[Fraction]], columns: Sequence[Column], members: Sequence[int] | None = None
) -> Lattice:
    """The lattice for points given as exact columns.

    members: the points whose gap decides the shift (default all); floors are kept for all points, the least being 0.
    """
    layer = ExactLayer(tuple(dict(enumerate(row)) for row in rows), (0,) * len(rows), len(columns))
    z = affine(layer, columns)
    chosen = list(range(len(z[0].values))) if members is None else list(members)
    gaps = [widest_gap([int(value) % axis.scale for value in axis.values[chosen]], axis.scale) for axis in z]
    widest = min(Fraction(size, axis.scale) for (_, size), axis in zip(gaps, z, strict=True))
    gamma = binary_below(widest / GAMMA_SHARE)
    axes = tuple(
        _axis(axis.values.tolist(), chosen, axis.scale, start, size, gamma)
        for axis, (start, size) in zip(z, gaps, strict=True)
    )
    return Lattice(tuple(tuple(row) for row in rows), axes, gamma)


def widest_gap(parts: Sequence[int], whole: int) -> tuple[int, int]:
    """(start, size) of the widest circular gap between numbers modulo `whole`; the whole circle for one number."""
    order = sorted(set(parts))
    follow = [*order[1:], order[0] + whole]
    size, start = max(((b - a, -a) for a, b in zip(order, follow, strict=True)))
    return -start, size


def flatten(cells: Sequence[Sequence[int]], bases: Sequence[int]) -> list[int]:
    """key = sum_j floor(z_j) base_1 .. base_{j-1}; cells[j] holds coordinate j of every point.

    The paper writes one base R; a base above the largest floor is needed for distinct cells to have distinct keys.
    """
    strides = strides_of(bases)
    return [sum(s * value for s, value in zip(strides, cell, strict=True)) for cell in zip(*cells, strict=True)]


def strides_of(bases: Sequence[int]) -> list[int]:
    return [math.prod(bases[:j]) for j in range(len(bases))]


def two_labels(keys: Sequence[int], labels: Sequence[int]) -> tuple[int, int] | None:
    """Two points of one cell with different labels, or None."""
    first: dict[int, int] = {}
    for place_, key in enumerate(keys):
        other = first.setdefault(key, place_)
        if labels[other] != labels[place_]:
            return other, place_
    return None


def binary_below(value: Fraction, *, most: Fraction = Fraction(1, 4)) -> Fraction:
    """The largest 2^-k at most `value`, and at most 1/4 (steeper than that gains nothing)."""
    value = min(value, most)
    k = value.denominator.bit_length() - value.numerator.bit_length()
    steps = (Fraction(1, 1 << (k + extra)) for extra in (-1, 0, 1) if k + extra >= 0)
    return next(step for step in steps if step <= value)


def _axis(column: Sequence[int], chosen: Sequence[int], whole: int, start: int, size: int, gamma: Fraction) -> Axis:
    # Rounding the shift to places far below gamma costs under 1/64 of it (the paper rounds to 1/(6N)).
    places = gamma.denominator.bit_length() + 6
    middle = Fraction(2 * start + size, 2 * whole)
    shift = Fraction(round((gamma / 2 - middle) * (1 << places)), 1 << places)
    scale = math.lcm(whole, shift.denominator)
    values = [int(value) * (scale // whole) + int(shift * scale) for value in column]
    floors = [value // scale for value in values]
    least = min(floors)
    below = min(values[i] - floors[i] * scale for i in chosen)
    above = min((floors[i] + 1) * scale - values[i] for i in chosen)
    return Axis(shift - least, Fraction(below, scale), Fraction(above, scale), tuple(value - least for value in floors))
