"""The large-radius memorizer: one distance comparison per point (Kim, Moon, Yun 2025, arXiv 2510.24643, Thm B.14, with
the network of Yu, Gao, Zhang 2024).

About N (rho^2 d)^2 parameters, works for every rho < 1. The layout of Yu's network is [inferred] from what it must do:
carry z; for each point i compute E_i >= ||z - c_i||^2, at most tau above, from sawtooth squares
    sq_s(u) = u - sum_{k <= s} phi^(k)(u) / 4^k,   0 <= sq_s(u) - u^2 <= 4^-(s+1) on [0, 1],
then ind_i = clip((hi - E_i)/(hi - lo), 0, 1) and y <- max(y, y_i ind_i).
It is right on ball i when E_i <= lo there and E_j >= hi for every j of another class: inequalities on exact numbers,
kept as the construction's proof.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.theory.exact_columns import Column, from_columns
from rote.theory.exact_network import LayerStack, Wire
from rote.theory.robust.definitions import euclidean_reach, image, separation
from rote.theory.robust.norms import Radius, norm_squared, sqrt_above, sqrt_below
from rote.theory.robust.projection import (
    DRAWS,
    Projection,
    identity,
    random_projection,
    round_binary,
    round_rows,
    span,
)
from rote.theory.robust.proof import Construction, StructuralProof

LABEL = "Thm B.14 by the network of Yu et al. 2024, layout [inferred]; proved by exact inequalities on its numbers"
Case = Literal["I", "II", "III", "IV", "V"]
LOG_CONSTANT = 600  # 600 ln N in Thm B.14 (24/alpha^2 at alpha = 1/5)
RATIO = Fraction(5, 6)  # radius over half the distance, after projection


def large_case(n: int, d: int, rho: Fraction, *, log_constant: float = LOG_CONSTANT) -> Case:
    """I: rho >= 1/3. II: d < 600 ln N. III: N < 600 ln N <= d. IV: N >= d >= 600 ln N. V: d > N >= 600 ln N."""
    few = log_constant * math.log(n)
    if rho >= Fraction(1, 3):
        return "I"
    if d < few:
        return "II"
    if n < few:
        return "III"
    return "IV" if n >= d else "V"


def case_dimensions(n: int, d: int, rho: Fraction, case: Case, *, log_constant: float = LOG_CONSTANT) -> int:
    """The dimension the theorem projects to: d (I, II), N (III), max(ceil(9 k rho^2), ceil(600 ln N), ceil(10 ln k))
    with k = d (IV) or N (V)."""
    if case in ("I", "II"):
        return d
    if case == "III":
        return min(n, d)
    k = d if case == "IV" else n
    most = max(math.ceil(9 * k * rho * rho), math.ceil(log_constant * math.log(n)), math.ceil(10 * math.log(k)))
    return min(k, most)


def project_large(
    X: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], rho: Fraction, case: Case, *, dims: int | None, seed: int
) -> Projection:
    """The case's projection. IV and V search m = ceil(9 k rho^2), doubling, for rho/separation <= 5/6 (what the proof
    needs) instead of the 600 ln N dimensions at which it is sure."""
    if case in ("I", "II"):
        return identity(X, y)
    base = span(X, y) if case in ("III", "V") else identity(X, y)
    if case == "III" or base.m < 2:
        return base
    Z = X @ base.matrix.T
    need = base.distance * float(rho / RATIO) * (1 + 1e-6)
    m = dims or math.ceil(9 * base.m * rho * rho)
    while m < base.m:
        found = random_projection(Z, y, m, least=need, seed=seed)
        if found is not None:
            return Projection(found.matrix @ base.matrix, found.distance, f"{base.kind}+random", found.draws)
        if dims:
            raise InputError(f"none of {DRAWS} projections to {dims} dimensions keeps rho/separation <= 5/6; use more")
        m *= 2
    return base


def build_large(
    projection: Projection,
    columns: Sequence[Column],
    labels: Sequence[int],
    radius: Radius,
    *,
    case: Case,
) -> Construction:
    """The network for one projection. Errors: InputError when the projected balls of two classes meet."""
    points = from_columns(columns)
    rows, bias, reach = _unit_cube(projection, points, radius)
    z = image(rows, bias, points)
    y = np.asarray(labels)
    apart = 2 * sqrt_below(separation(z, y).square)
    if apart <= 2 * reach:
        raise InputError(
            "the balls of two classes meet after the projection; use more dimensions (dims), or a smaller rho"
        )
    # Centres with few binary places: off by at most 1/64 of the room, which the two bounds below account for.
    fine = min(float(apart - 2 * reach) / 64, float(reach)) / math.sqrt(len(rows))
    places = max(1, math.ceil(-math.log2(fine)))
    centres = [[round_binary(value, places) for value in p] for p in z]
    off = sqrt_above(
        max(norm_squared([a - b for a, b in zip(p, c, strict=True)], 2) for p, c in zip(z, centres, strict=True))
    )
    inner, outer = (reach + off) ** 2, (apart - off - reach) ** 2
    if outer <= inner:
        raise InputError("rho is too close to 1 for exact arithmetic of this length; use a smaller rho")
    # lo >= inner + tau, hi = lo + 2^-k <= outer, tau = m 4^-(s+1): the sawtooth takes at most a quarter of the room.
    k = max(0, math.ceil(-math.log2((outer - inner) / 4)))
    steps = max(1, math.ceil(math.log(4 * len(rows) / (outer - inner), 4)))
    tau = Fraction(len(rows), 4 ** (steps + 1))
    lo = Fraction(math.ceil((inner + tau) * 2 ** (k + 2)), 2 ** (k + 2))
    hi = lo + Fraction(1, 2**k)
    network = _network(rows, bias, centres, labels, lo, hi, steps)
    return Construction(
        network,
        "large",
        LABEL,
        proof=StructuralProof(
            "E_i <= lo on ball i, E_j >= hi there for every point j of another class, so f = max_i y_i ind_i = y_i",
            (("own point", inner + tau, lo), ("other class", hi, outer), ("|z - c| <= 1 on every ball", off, reach)),
        ),
        details={"case": case, "dimensions": len(rows), "projection": projection.kind, "sawtooth_steps": steps},
    )


def sawtooth_square(u: Fraction, steps: int) -> Fraction:
    """sq_s(u): the piecewise linear interpolation of u^2 at multiples of 2^-s, as the network computes it."""
    total, g = u, u
    for k in range(1, steps + 1):
        g = 2 * g if 2 * g <= 1 else 2 - 2 * g
        total -= g / 4**k
    return total


def _unit_cube(
    projection: Projection, points: np.ndarray, radius: Radius
) -> tuple[list[list[Fraction]], list[Fraction], Fraction]:
    """(W, b, r): every ball lands in [0, 1]^m under W x + b, inside a 2-norm ball of radius r."""
    d = points.shape[1]
    plain = projection.matrix @ points.astype(float).T
    span_ = float(np.ptp(plain, axis=1).max()) + 4 * float(radius.euclidean(d)) + 1e-300
    scale = 2.0 ** -math.ceil(math.log2(span_ * 1.01))
    rows = round_rows(projection.matrix, scale)
    if projection.kind == "identity":
        rows = [[Fraction(scale) if i == j else Fraction(0) for j in range(d)] for i in range(d)]
    reach = euclidean_reach(rows, radius, d)
    images = [[sum((w * x for w, x in zip(row, p, strict=True)), Fraction(0)) for p in points] for row in rows]
    bias = [Fraction(math.ceil((reach - min(line)) * 1024), 1024) for line in images]
    if any(max(line) + b + reach > 1 for line, b in zip(images, bias, strict=True)):
        shrink = projection.matrix / 2
        return _unit_cube(Projection(shrink, projection.distance / 2, "shrunk"), points, radius)
    return rows, bias, reach


def _network(
    rows: list[list[Fraction]],
    bias: list[Fraction],
    centres: list[list[Fraction]],
    labels: Sequence[int],
    lo: Fraction,
    hi: Fraction,
    steps: int,
):
    stack = LayerStack(len(rows[0]))
    z: list[Wire] = stack.relu(
        *(
            sum((w * x for w, x in zip(row, stack.inputs, strict=True) if w), stack.constant()) + b
            for row, b in zip(rows, bias, strict=True)
        )
    )
    m, value = len(rows), stack.constant()
    for centre, label in zip(centres, labels, strict=True):
        kept = [value] if value.terms else []
        signs = [form for wire, c in zip(z, centre, strict=True) for form in (wire - c, c - wire)]
        units = stack.relu(*z, *kept, *signs)
        z, kept, rest = units[:m], units[m : m + len(kept)], units[m + len(kept) :]
        g = [a + b for a, b in zip(rest[::2], rest[1::2], strict=True)]  # |z_j - c_j|
        total = sum(g, stack.constant())
        for k in range(1, steps + 1):
            tents = [form for u in g for form in (2 * u, 4 * u - 2)]
            units = stack.relu(*z, *kept, total, *tents)
            z, kept, (total, *rest) = units[:m], units[m : m + len(kept)], units[m + len(kept) :]
            g = [a - b for a, b in zip(rest[::2], rest[1::2], strict=True)]
            total = total - Fraction(1, 4**k) * sum(g, stack.constant())
        units = stack.relu(*z, *kept, (total - lo) * (1 / (hi - lo)))
        z, kept, (over,) = units[:m], units[m : m + len(kept)], units[m + len(kept) :]
        units = stack.relu(*z, *kept, 1 - over)  # ind_i
        z, kept, (ind,) = units[:m], units[m : m + len(kept)], units[m + len(kept) :]
        before = kept[0] if kept else stack.constant()
        units = stack.relu(*z, *kept, label * ind - before)
        z, kept, (more,) = units[:m], units[m : m + len(kept)], units[m + len(kept) :]
        value = (kept[0] if kept else stack.constant()) + more
    return stack.finish(value)
