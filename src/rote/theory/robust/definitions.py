"""Separation, robustness and worst-case data: the definitions of Kim, Moon, Yun 2025 (arXiv 2510.24643, section 2).

eps_D = 1/2 min{ ||x_i - x_j||_p : y_i != y_j },   rho in (0, 1),   mu = rho eps_D.
f rho-robustly memorizes D when f(x') = y_i for every x' of the open ball B_p(x_i, mu): equality, not argmax.
L_rho(f, D) = max_i P[f(x') != y_i], x' uniform on B_p(x_i, mu) [rebuilt in the card from the paper's prose].

Only rho matters: scaling the data is undone by the first weight matrix.
Deliberately does not know bounds or constructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.spatial.distance import cdist

from rote.errors import InputError
from rote.theory.exact_columns import to_columns
from rote.theory.exact_network import ExactNetwork
from rote.theory.labelled_points import LabelledPoints, labelled_points
from rote.theory.robust.norms import SLACK, Radius, check_rho, is_exact, norm_squared, parse_norm, sqrt_above

BLOCK = 1 << 22  # distances held at once


@dataclass(frozen=True)
class Separation:
    """eps_D and the closest pair of points with different labels. `square` is eps_D^2, exact for p in {1, 2, inf} and
    a lower bound within 3e-9 otherwise."""

    p: float
    square: Fraction
    pair: tuple[int, int]

    def __float__(self) -> float:
        return math.sqrt(self.square)

    def radius(self, rho: Any) -> Radius:
        """mu = rho eps_D."""
        return Radius(self.p, check_rho(rho) ** 2 * self.square)


def separation(X: Any, y: Int[np.ndarray, " n"], *, norm: str | float = "l2") -> Separation:
    """eps_D of points X (n, d) with labels y, in exact arithmetic over the float64 values.

    Float64 distances only choose the candidates (those within a relative 1e-9 of the least); their exact distances
    decide. Errors: InputError when all labels are equal.
    """
    p = parse_norm(norm)
    columns = to_columns(X)
    points = np.asarray(X, dtype=np.float64)
    y = np.asarray(y)
    first, second = _closest(points, y, p)
    if not len(first):
        raise InputError("all points have one label; the distance between classes needs two")
    if p == 2:
        common = math.lcm(*{column.scale for column in columns})
        total: Any = 0
        for column in columns:
            wide = column.values.astype(object) * (common // column.scale)
            total = total + (wide[first] - wide[second]) ** 2
        best = int(np.argmin(total))
        square = Fraction(int(total[best]), 4 * common**2)
    else:
        squares = [
            norm_squared([Fraction(int(c.values[i]) - int(c.values[j]), c.scale) for c in columns], p)
            for i, j in zip(first.tolist(), second.tolist(), strict=True)
        ]
        best = int(np.argmin(np.array(squares, dtype=object)))
        square = squares[best] / 4
        if not is_exact(p):
            square *= (1 - 4 * SLACK) ** 2
    return Separation(p, square, (int(first[best]), int(second[best])))


def _closest(X: np.ndarray, y: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different labels whose float64 distance is within 1e-9 of the least; a few thousand at most are kept
    when p needs them one by one."""
    metric: dict[str, Any] = {"metric": "chebyshev"} if math.isinf(p) else {"metric": "minkowski", "p": p}
    metric = {"metric": "euclidean"} if p == 2 else {"metric": "cityblock"} if p == 1 else metric
    step = max(1, BLOCK // max(1, len(X)))
    least = math.inf
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(X), step):
        block = cdist(X[start : start + step], X[start:], **metric)
        block[y[start : start + step, None] == y[None, start:]] = math.inf
        least = min(least, float(block.min(initial=math.inf)))
        if not math.isfinite(least):
            continue
        i, j = np.nonzero(block <= least * (1 + 1e-9))
        kept.append((block[i, j], i + start, j + start))
    if not kept:
        return np.empty(0, int), np.empty(0, int)
    value, i, j = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    close = value <= least * (1 + 1e-9)
    return i[close], j[close]


def separation_float(X: Float[np.ndarray, "n m"], y: Int[np.ndarray, " n"]) -> float:
    """Twice eps_D in float64 (2-norm): the least distance between classes, for searches that are verified later."""
    i, j = _closest(np.asarray(X, dtype=np.float64), np.asarray(y), 2.0)
    return float(np.linalg.norm(X[i[0]] - X[j[0]])) if len(i) else math.inf


def width_dataset(n: int, d: int) -> LabelledPoints:
    """Prop. 3.2's data: 0 with one label, e_1..e_k, k = min(n-1, d), and 2e_1, 3e_1, .. with the other; eps = 1/2."""
    if n < 2 or d < 1:
        raise InputError(f"the data set needs n >= 2 and d >= 1, not n = {n}, d = {d}")
    X = np.zeros((n, d))
    basis = min(n - 1, d)
    X[np.arange(1, basis + 1), np.arange(basis)] = 1
    X[basis + 1 :, 0] = np.arange(2, n - basis + 1)
    return labelled_points(X, np.where(np.arange(n) == 0, 1, 2))


def shatter_dataset(labels: Sequence[Sequence[int]], d: int) -> tuple[LabelledPoints, Float[np.ndarray, "groups k d"]]:
    """Prop. 3.3's data for one labelling of groups of k points: (data set of 2 points a group, the points to shatter).

    Group l is {c_l + e_j : j <= k}, c_l = 2 d^2 (l-1) e_1. With J+ the points labelled 1 (J- those labelled 0) the two
    data points are c_l +- (sum over J+ of e_j - sum over J- of e_j), labels 2 and 1, and each c_l + e_j lies at
    distance sqrt(k-1) from the point of its label. eps_D >= sqrt k.
    """
    k = len(labels[0])
    if k > d or any(len(group) != k for group in labels):
        raise InputError(f"each group needs the same number of labels, at most d = {d}")
    centres = np.zeros((len(labels), d))
    centres[:, 0] = 2 * d * d * np.arange(len(labels))
    signs = np.where(np.asarray(labels) > 0, 1.0, -1.0)
    shift = np.zeros_like(centres)
    shift[:, :k] = signs
    X = np.stack([centres + shift, centres - shift], axis=1).reshape(-1, d)
    shattered = centres[:, None, :] + np.eye(d)[None, :k]
    return labelled_points(X, np.tile([2, 1], len(labels))), shattered


def sample_ball(
    centre: Float[np.ndarray, " d"], radius: float, count: int, rng: np.random.Generator, *, p: float = 2.0
) -> Float[np.ndarray, "count d"]:
    """Points uniform on the open l_p ball: generalized Gaussian directions (Barthe et al. 2005), radius U^(1/d)."""
    d = len(centre)
    if math.isinf(p):
        raw = rng.uniform(-1, 1, (count, d))
    else:
        size = rng.gamma(1 / p, 1.0, (count, d)) ** (1 / p) * rng.choice([-1.0, 1.0], (count, d))
        raw = size / np.sum(np.abs(size) ** p, axis=1, keepdims=True) ** (1 / p) * rng.random((count, 1)) ** (1 / d)
    return centre + radius * (1 - 1e-12) * raw


def sampled_error(
    network: ExactNetwork,
    X: Float[np.ndarray, "n d"],
    y: Int[np.ndarray, " n"],
    radius: Radius,
    *,
    samples: int,
    seed: int,
) -> Float[np.ndarray, " n"]:
    """Share of `samples` uniform points of each ball on which f differs from y_i, evaluated exactly; its maximum
    estimates L_rho(f, D). y holds the outputs wanted."""
    rng = np.random.default_rng(seed)
    mu = float(radius)
    points = np.concatenate([sample_ball(np.asarray(x, float), mu, samples, rng, p=radius.p) for x in X])
    found = network.evaluate_batch(points)[:, 0].reshape(len(X), samples)
    return (found != np.asarray(y, dtype=object)[:, None]).mean(axis=1)


def lipschitz_squared(rows: Sequence[Sequence[Fraction]]) -> Fraction:
    """An upper bound on ||W||_2^2: the largest absolute row sum of W W^T (exact for orthogonal rows)."""
    gram = [[abs(sum((a * b for a, b in zip(u, v, strict=True)), Fraction(0))) for v in rows] for u in rows]
    return max(sum(line, Fraction(0)) for line in gram)


def image(
    rows: Sequence[Sequence[Fraction]], bias: Sequence[Fraction], points: Shaped[np.ndarray, "n d"]
) -> Shaped[np.ndarray, "n m"]:
    """W x + b of every point, exactly."""
    return np.array(
        [
            [sum((w * x for w, x in zip(row, p, strict=True) if w), b) for row, b in zip(rows, bias, strict=True)]
            for p in points
        ],
        dtype=object,
    )


def euclidean_reach(rows: Sequence[Sequence[Fraction]], radius: Radius, d: int) -> Fraction:
    """A rational at or above max{ ||W v||_2 : ||v||_p <= mu }."""
    return sqrt_above(lipschitz_squared(rows)) * radius.euclidean(d)
