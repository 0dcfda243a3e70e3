"""The moderate-radius memorizer with error eta: the small-radius network for groups of points, chained by a maximum
(Kim, Moon, Yun 2025, arXiv 2510.24643, Thm B.5).

About N d^(1/4) rho^(1/2) parameters for 1/(5 N sqrt d) < rho <= 1/(5 sqrt d). Each group of about 1/(5 rho sqrt d)
points has its own shift, so its gap is wide enough for its own balls; the balls of other points may cross the slanted
parts of that group's floors, and there, on at most a share eta of a ball, nothing is promised. (Threshold units would
remove that error.) So a ball is only called verified when the stable-affine analysis passes for it.

Density [rebuilt]: the share of a d-ball of radius mu in a slab of width w across the direction a is at most
w / (mu ||a||_2) V_{d-1}/V_d (Lemma B.11; V_d is the volume of the unit d-ball). The projected ball is not uniform on an
m-ball, so d and not m stands here; the bound is larger, and holds for the ball before projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from rote.errors import InputError
from rote.theory.exact_columns import Column, from_columns
from rote.theory.exact_network import LayerStack
from rote.theory.integer_memorizer import append_integer_memorizer
from rote.theory.robust.definitions import euclidean_reach, image, separation
from rote.theory.robust.floor_network import append_floors
from rote.theory.robust.lattice import Lattice, binary_below, place, strides_of
from rote.theory.robust.norms import SLACK, Radius, norm_squared, sqrt_above, sqrt_below
from rote.theory.robust.projection import Projection, round_rows
from rote.theory.robust.proof import Construction, StructuralProof

LABEL = "Thm B.5 [group shifts and the density bound rebuilt]; right outside a share eta of each ball"


def group_size(n: int, d: int, rho: Fraction) -> int:
    """floor(1/(5 rho sqrt d)) + 1 points a group, at most N: ceil(N^alpha) = floor(1/(5 rho sqrt d))."""
    return min(n, max(1, math.floor(1 / (5 * float(rho) * math.sqrt(d)))) + 1)


def slab_density(d: int, radius: Radius, row: Sequence[Fraction]) -> Fraction:
    """An upper bound on (share of the ball in a slab {t <= a.x <= t + w}) / w."""
    ratio = math.exp(math.lgamma(d / 2 + 1) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)  # V_{d-1} / V_d
    return Fraction(ratio) * (1 + SLACK) / (sqrt_below(radius.square) * sqrt_below(norm_squared(row, 2)))


def build_moderate(
    projection: Projection,
    columns: Sequence[Column],
    labels: Sequence[int],
    radius: Radius,
    *,
    rho: Fraction,
    error: Fraction,
    classes: int,
    reader: str,
) -> Construction:
    """The chained network. Errors: InputError for another norm than l2 (the density bound is for it), an error outside
    (0, 1), or groups whose balls do not fit even one by one."""
    if radius.p != 2:
        raise InputError("the moderate regime is built for l2 only; choose regime small or large for this norm")
    if not 0 < error < 1:
        raise InputError(f"error is {float(error):g}; the share of a ball that may be wrong lies between 0 and 1")
    n, d = len(labels), len(columns)
    rows = _rows(projection, columns, labels, radius)
    reach = [radius.along(row) for row in rows]
    size = group_size(n, d, rho)
    while True:
        groups = [range(start, min(n, start + size)) for start in range(0, n, size)]
        placed = [place(rows, columns, members) for members in groups]
        if all(_fits(lattice, reach) for lattice in placed):
            break
        if size == 1:
            raise InputError("rho is too large for the moderate construction on these points; use regime large")
        size = (size + 1) // 2

    # One first layer for all groups: z0 = W x + b with room for every group's own shift in [0, 1).
    least = [min(lattice.axes[j].shift for lattice in placed) for j in range(len(rows))]
    shifts = [[(axis.shift - low) for axis, low in zip(lattice.axes, least, strict=True)] for lattice in placed]
    ceiling = [1 + math.ceil(r) for r in reach]  # shifts differ by less than 1, so z0 > 0 on every ball
    tops = [2 * ceiling[j] + max(max(lattice.axes[j].floors) for lattice in placed) for j in range(len(rows))]
    bits, strides = [top.bit_length() for top in tops], strides_of([1 << top.bit_length() for top in tops])
    density = sum((slab_density(d, radius, row) for row in rows), Fraction(0))
    gamma = binary_below(
        min(
            error / (len(groups) * density * 2),  # half of eta: "less than eta" with room
            *(axis.below - r for lattice in placed for axis, r in zip(lattice.axes, reach, strict=True)),
        )
    )
    stack = LayerStack(d)
    z = stack.relu(
        *(
            sum((w * x for w, x in zip(row, stack.inputs, strict=True) if w), stack.constant()) + low + extra
            for row, low, extra in zip(rows, least, ceiling, strict=True)
        )
    )
    value = stack.constant()
    for members, lattice, shift in zip(groups, placed, shifts, strict=True):
        keys = [sum(s * (lattice.axes[j].floors[i] + ceiling[j]) for j, s in enumerate(strides)) for i in members]
        carry = [*z, value] if value.terms else [*z]
        moved = [wire + by for wire, by in zip(z, shift, strict=True)]
        key, carry = append_floors(stack, moved, bits, strides, gamma, carry=carry)
        mine, carry = append_integer_memorizer(
            stack, key, keys, [labels[i] for i in members], carry=carry, classes=classes, reader=reader  # type: ignore[arg-type]
        )  # fmt: skip
        z, before = carry[: len(rows)], carry[len(rows)] if len(carry) > len(rows) else stack.constant()
        if before.terms:  # y <- y + relu(f - y) = max(y, f)
            *z, before, more = stack.relu(*z, before, mine - before)
            value = before + more
        else:
            *z, value = stack.relu(*z, mine)
    bound = len(groups) * density * gamma
    return Construction(
        stack.finish(value),
        "moderate",
        LABEL,
        error=error,
        proof=StructuralProof(
            "the share of any ball on a slanted part of any floor is below eta", (("error", bound, error),)
        ),
        details={
            "dimensions": len(rows),
            "groups": len(groups),
            "group_size": size,
            "gamma": float(gamma),
            "error_bound": float(bound),
        },
    )


def _fits(lattice: Lattice, reach: Sequence[Fraction]) -> bool:
    return all(r < axis.below and r <= axis.above for axis, r in zip(lattice.axes, reach, strict=True))


def _rows(
    projection: Projection, columns: Sequence[Column], labels: Sequence[int], radius: Radius
) -> list[list[Fraction]]:
    """Rows at the smallest scale at which no ball can meet a unit cell that holds a point of another class:
    distance of the classes in z >= sqrt m + the ball's radius in z, checked exactly after rounding."""
    points = from_columns(columns)
    room = projection.distance - float(radius)
    scale = math.sqrt(projection.m) / max(room, 1e-3 * projection.distance) * (1 + 2.0**-8)
    for _ in range(8):
        rows = round_rows(projection.matrix, scale)
        z = image(rows, [Fraction(0)] * len(rows), points)
        apart = 2 * sqrt_below(separation(z, np.asarray(labels)).square)
        if apart >= sqrt_above(Fraction(projection.m)) + euclidean_reach(rows, radius, len(columns)):
            return rows
        scale *= 1.1
    raise InputError("rho is too large for the moderate construction on these points; use regime large")
