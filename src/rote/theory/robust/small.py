"""The small-radius memorizer: project, shift off the lattice, floor, flatten, memorize integers (Kim, Moon, Yun 2025,
arXiv 2510.24643, Thm B.3; the projection size and the floor block are rebuilt in the card and checked in the tests).

About sqrt N parameters when rho <= 1/(5 N sqrt d): robustness is free. The theorem's scale and its gap 1/N are the
guaranteed case; here the actual gaps decide, so larger radii often work, and every condition is checked exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from rote.errors import InputError
from rote.theory.exact_columns import Column
from rote.theory.exact_network import LayerStack
from rote.theory.integer_memorizer import append_integer_memorizer
from rote.theory.robust.floor_network import append_floors
from rote.theory.robust.lattice import Lattice, binary_below, place, strides_of, two_labels
from rote.theory.robust.norms import Radius, dual, norm_squared, sqrt_above
from rote.theory.robust.projection import Projection, round_rows
from rote.theory.robust.proof import Construction

LABEL = "Thm B.3; projection size and floor block [rebuilt]; promise checked ball by ball in exact arithmetic"
FACTORS = (Fraction(1, 4), Fraction(1, 2), Fraction(1))  # of the scale at which no cell can hold two labels


def lattices(
    projection: Projection,
    columns: Sequence[Column],
    labels: Sequence[int],
    *,
    paper_scale: float,
) -> list[Lattice]:
    """Lattices in which no cell holds two labels. At scale s = sqrt m / (2 eps_{D'}) that is sure; smaller scales leave
    more room for the balls and are kept when no cell happens to hold two. paper_scale > 0: the paper's s only."""
    sure = math.sqrt(projection.m) / projection.distance * (1 + 2.0**-8)
    scales = [paper_scale] if paper_scale else [float(sure * factor) for factor in FACTORS]
    found = []
    for scale in scales:
        lattice = place(round_rows(projection.matrix, _few_bits(scale)), columns)
        if two_labels(lattice.keys, labels) is None:
            found.append(lattice)
    return found


def largest_square(lattice: Lattice, p: float) -> Fraction:
    """mu^2 of the largest l_p ball for which every ball stays in its cell and off the slanted parts."""
    room = lattice.room()
    return min(
        free * free / norm_squared(row, dual(p)) for free, row in zip(room, lattice.rows, strict=True) if any(row)
    )


def build_small(lattice: Lattice, labels: Sequence[int], radius: Radius, *, classes: int, reader: str) -> Construction:
    """The network for one lattice and radius. Errors: InputError when a ball does not fit its cell."""
    reach = [radius.along(row) for row in lattice.rows]
    spare = [min(axis.below - r, axis.above - r + 1) for axis, r in zip(lattice.axes, reach, strict=True)]
    if min(spare) <= 0 or any(r > axis.above for axis, r in zip(lattice.axes, reach, strict=True)):
        raise InputError(
            "the small-radius construction does not reach this rho on these points: a ball crosses a cell; use a "
            "smaller rho, or another regime"
        )
    gamma = binary_below(min(axis.below - r for axis, r in zip(lattice.axes, reach, strict=True)))
    used = [j for j, top in enumerate(lattice.tops) if top] or [0]
    tops = [lattice.tops[j] for j in used]
    strides = strides_of([top + 1 for top in tops])
    keys = [
        sum(stride * lattice.axes[j].floors[i] for stride, j in zip(strides, used, strict=True))
        for i in range(len(labels))
    ]
    stack = LayerStack(len(lattice.rows[0]))
    forms = [
        sum((weight * x for weight, x in zip(lattice.rows[j], stack.inputs, strict=True) if weight), stack.constant())
        + lattice.axes[j].shift
        for j in used
    ]
    z = stack.relu(*forms)
    key, _ = append_floors(stack, z, [top.bit_length() for top in tops], strides, gamma)
    value, _ = append_integer_memorizer(stack, key, keys, labels, classes=classes, reader=reader)  # type: ignore[arg-type]
    return Construction(
        stack.finish(value),
        "small",
        LABEL,
        details={
            "dimensions": len(used),
            "gamma": float(gamma),
            "cells": len(set(keys)),
            "largest_radius_in_cells": float(sqrt_above(largest_square(lattice, radius.p))),
        },
    )


def _few_bits(scale: float) -> float:
    """Rounded up to 8 binary digits, so that weights stay short."""
    fraction, exponent = math.frexp(scale)
    return math.ldexp(math.ceil(fraction * 256), exponent - 8)
