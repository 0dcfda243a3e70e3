"""What every construction asks of its data first: finite points, two classes, the unit cube, no contradictions.

Pure functions over arrays. Knows nothing about: networks, files. Messages name rows by number, never their contents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError

BLOCK_NUMBERS = 1 << 20  # numbers in one block of distances: 8 MiB


@dataclass(frozen=True)
class TwoClasses:
    """Points and their signs. `classes` are the two labels, sorted; the second one is +1."""

    X: Float[np.ndarray, "records features"]
    signs: Int[np.ndarray, " records"]
    classes: np.ndarray


def check_points(
    X: Float[np.ndarray, "records features"], *, unit_cube: bool = False, name: str = "X"
) -> Float[np.ndarray, "records features"]:
    """`X` as a float64 matrix. Raises InputError when it is not one, is not finite, or leaves [0,1]^n if that is
    asked for."""
    try:
        X = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a matrix of numbers, records by features") from None
    if X.ndim != 2 or not X.shape[0] or not X.shape[1]:
        raise InputError(f"{name} must be records by features with at least one of each, not of shape {X.shape}")
    bad = np.argwhere(~np.isfinite(X))
    if len(bad):
        raise InputError(
            f"{name}: {len(bad)} values are not finite (first: row {bad[0][0]}, feature {bad[0][1]}); remove those rows"
        )
    if unit_cube:
        outside = np.argwhere((X < 0) | (X > 1))
        if len(outside):
            raise InputError(
                f"{name}: {len(np.unique(outside[:, 0]))} of {len(X)} points are not in the unit cube [0,1]^n (first: "
                f"row {outside[0][0]}, feature {outside[0][1]}); scale every feature into [0, 1] with one common factor"
            )
    return X


def check_two_classes(
    X: Float[np.ndarray, "records features"], y: np.ndarray, *, unit_cube: bool = False
) -> TwoClasses:
    """Check a labelled sample. Raises InputError: wrong shapes, one class only, more than two classes, not finite."""
    X = check_points(X, unit_cube=unit_cube)
    y = np.asarray(y)
    if y.shape != (len(X),):
        raise InputError(f"labels must be one for each of the {len(X)} points, not of shape {y.shape}")
    classes, index = np.unique(y, return_inverse=True)
    if len(classes) == 1:
        raise InputError("all labels are the same; memorizing needs two classes")
    if len(classes) > 2:
        raise InputError(
            f"{len(classes)} classes; the theory is about two: pick two, or use VoronoiMemorizer(multiclass='ovr'), "
            "an extension outside the theory"
        )
    return TwoClasses(X, 2 * index.astype(np.int64) - 1, classes)


@dataclass(frozen=True)
class OppositeDistances:
    """How far every point is from the other class. `nearest` and `farthest` are l2 distances, one per record;
    `pair` the rows of a closest opposite pair; `smallest` its distance c0, which is at least the law's c."""

    nearest: Float[np.ndarray, " records"]
    farthest: Float[np.ndarray, " records"]
    pair: tuple[int, int]

    @property
    def smallest(self) -> float:
        return float(self.nearest[self.pair[0]])


def opposite_distances(data: TwoClasses) -> OppositeDistances:
    """For every record the distance to the nearest and to the farthest record of the other class, in blocks.

    A matrix product finds the nearest record: |x_i - x_j|^2 = |x_i|^2 - 2 (<x_i, x_j> - |x_j|^2 / 2). Its distance is
    then taken from the difference itself, and rows so close to the other class that rounding could pick the wrong one
    are measured by differences throughout. Memory: one block and O(N). `farthest` is rounded up.

    Errors: InputError when two equal points have different labels: no function memorizes that.
    """
    center = data.X.mean(axis=0)
    Z = data.X - center
    norms = np.einsum("ij,ij->i", Z, Z)
    slack = rounding_slack(float(norms.max()), Z.shape[1])
    ones = np.hstack([Z, np.ones((len(Z), 1))])
    groups = np.flatnonzero(data.signs < 0), np.flatnonzero(data.signs > 0)
    nearest, farthest = np.empty(len(Z)), np.empty(len(Z))
    partner = np.empty(len(Z), dtype=np.int64)
    for rows, others in (groups, groups[::-1]):
        table = np.vstack([Z[others].T, -0.5 * norms[others]])
        step = max(1, min(len(rows), BLOCK_NUMBERS // len(others)))
        room = np.empty((step, len(others)))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            M = np.matmul(ones[part], table, out=room[: len(part)])  # (|x_i|^2 - |x_i - x_j|^2) / 2
            best = M.argmax(axis=1)
            squared = norms[part] - 2.0 * M[np.arange(len(part)), best]
            for k in np.flatnonzero(squared < 1e6 * slack):
                best[k] = np.square(data.X[others] - data.X[part[k]]).sum(axis=1).argmin()
            partner[part] = others[best]
            nearest[part] = np.linalg.norm(data.X[part] - data.X[partner[part]], axis=1)
            farthest[part] = np.sqrt(norms[part] - 2.0 * M.min(axis=1) + slack)
    first = int(nearest.argmin())
    pair = (first, int(partner[first]))
    if nearest[first] == 0:
        raise InputError(
            f"rows {min(pair)} and {max(pair)} are the same point with different labels; no network can memorize both: "
            "remove one"
        )
    return OppositeDistances(nearest, farthest, pair)


def rounding_slack(largest_square: float, features: int) -> float:
    """What a float64 product can be off by: an upper bound on the error of |x|^2 + |y|^2 - 2 <x, y>, and so of any
    difference of two half squared distances, for points with |x|^2, |y|^2 <= largest_square."""
    return 8.0 * (features + 8) * np.finfo(np.float64).eps * largest_square
