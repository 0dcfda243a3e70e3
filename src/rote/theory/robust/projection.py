"""Linear maps to few dimensions that keep the classes apart: the first layer of every robust memorizer.

A random m-dimensional orthonormal projection phi is accepted when eps_{D'} >= (5/12) sqrt(m/d) eps_D (Lemmas B.17, B.18
with alpha = 1/6; Kim, Moon, Yun 2025, arXiv 2510.24643). The theorem is sure of one at m = max(864 ln N, 10 ln d);
the same inequality is met far earlier on real data, so m is searched upward and the inequality is the test.

Rows are rounded to binary fractions; what is used later is proved on the rounded rows, never on these floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.theory.robust.definitions import separation_float

ACCEPT = Fraction(5, 12)
DRAWS = 20
PLAIN_DIMENSIONS = 4  # up to here the identity is as small as any projection
BLOCK = 512
PLACES = 14  # binary places kept of an entry, beyond its typical size


@dataclass(frozen=True)
class Projection:
    """phi, m x d with (nearly) orthonormal rows, and 2 eps of the projected points in float64."""

    matrix: Float[np.ndarray, "m d"]
    distance: float
    kind: str
    draws: int = 0

    @property
    def m(self) -> int:
        return len(self.matrix)


def theorem_dimensions(n: int, d: int, *, log_constant: float = 24 * 36) -> int:
    """m of Thm B.3: min{d, max(ceil(24 * 36 ln N), ceil(10 ln d))}; 864 ln N is 24/alpha^2 at alpha = 1/6."""
    return min(d, max(math.ceil(log_constant * math.log(n)), math.ceil(10 * math.log(d)), 1))


def identity(X: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"]) -> Projection:
    return Projection(np.eye(X.shape[1]), separation_float(X, y), "identity")


def span(X: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"]) -> Projection:
    """The isometry of the affine span of the points to R^r, r <= N - 1 (cases III and V of Thm B.14)."""
    _, values, rows = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    rank = max(1, int((values > values[0] * 1e-12).sum())) if len(values) else 1
    return Projection(rows[:rank], separation_float(X @ rows[:rank].T, y), "span")


def random_projection(
    X: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], m: int, *, least: float, seed: int, draws: int = DRAWS
) -> Projection | None:
    """The first of `draws` random projections to m dimensions after which points of different labels are at least
    `least` apart; None when none is."""
    d = X.shape[1]
    rng = np.random.default_rng([seed, m])
    for draw in range(1, draws + 1):
        matrix = np.linalg.qr(rng.standard_normal((d, m)))[0].T
        Z = X @ matrix.T
        if _apart(Z, y, least):
            return Projection(matrix, separation_float(Z, y), "random", draw)
    return None


def search_projection(
    X: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], *, dims: int | None = None, seed: int = 0
) -> Projection:
    """The smallest m = 1, 2, 4, .. at which a random projection keeps eps_{D'} >= (5/12) sqrt(m/d) eps_D.

    The identity for d <= 4 or when none is found below d. dims: this m instead (InputError when no draw passes).
    """
    d = X.shape[1]
    whole = separation_float(X, y)
    if dims is not None and not 1 <= dims <= d:
        raise InputError(f"dims is {dims}; a projection of {d} coordinates has 1 to {d}")
    if dims == d or (dims is None and d <= PLAIN_DIMENSIONS):
        return identity(X, y)
    sizes = [dims] if dims else [1 << k for k in range(1, d.bit_length()) if 1 << k < d]
    for m in sizes:
        found = random_projection(X, y, m, least=float(ACCEPT) * math.sqrt(m / d) * whole, seed=seed)
        if found is not None:
            return found
    if dims:
        raise InputError(
            f"none of {DRAWS} random projections to {dims} dimensions keeps the classes apart; use more dimensions "
            f"(the theorem is sure at {theorem_dimensions(len(X), d)})"
        )
    return identity(X, y)


def round_rows(matrix: Float[np.ndarray, "m d"], scale: float) -> list[list[Fraction]]:
    """scale times the matrix, every entry rounded to PLACES binary places below scale / sqrt d."""
    places = PLACES + math.ceil(math.log2(math.sqrt(matrix.shape[1]) / scale))
    return [[round_binary(Fraction(float(v)) * Fraction(scale), places) for v in row] for row in matrix]


def round_binary(value: Fraction, places: int) -> Fraction:
    """The nearest multiple of 2^-places."""
    unit = Fraction(1, 1 << places) if places >= 0 else Fraction(1 << -places)
    return round(value / unit) * unit


def _apart(Z: np.ndarray, y: np.ndarray, least: float) -> bool:
    """Whether all pairs with different labels are at least `least` apart; stops at the first block that fails."""
    norms = np.einsum("ij,ij->i", Z, Z)
    for start in range(0, len(Z), BLOCK):
        rows = slice(start, start + BLOCK)
        squares = norms[rows, None] + norms[None, :] - 2 * Z[rows] @ Z.T
        squares[y[rows, None] == y[None, :]] = math.inf
        if squares.min() < least * least:
            return False
    return True
