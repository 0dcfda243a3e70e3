"""Unembedding codes: where the N tokens stand in logit space so that each can win, and by how much.

Knows geometry only. The circle is Proposition 3's code and needs two dimensions; the spread code uses more of them and
leaves wider margins, which is what survives rounding to float32. Nothing here knows attention.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from rote.errors import InputError

CODES = ("circle", "spread")


def circle_code(vocab: int) -> Float[np.ndarray, "vocab 2"]:
    """W_i = (cos 2 pi i / N, sin 2 pi i / N): Proposition 3 of Dana et al. 2024 (arXiv 2411.10115)."""
    angles = 2 * math.pi * np.arange(_at_least_two(vocab)) / vocab
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def circle_margin(vocab: int) -> float:
    """1 - cos(2 pi / N), the margin of the circle code at scale 1; in (0, 2]."""
    return 1.0 - math.cos(2 * math.pi / _at_least_two(vocab))


def circle_kl(vocab: int, scale: float) -> float:
    """log(1 + sum_{j=1}^{N-1} exp(-lambda (1 - cos(2 pi j/N)))): KL of the circle encoder E = lambda W_g.

    In nats, range (0, log N]; tends to 0 as lambda grows (Proposition 3 of Dana et al. 2024, arXiv 2411.10115).
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise InputError(f"the scale lambda must be finite and at least 0, not {scale}")
    steps = 2 * math.pi * np.arange(1, _at_least_two(vocab)) / vocab
    return float(np.log1p(np.exp(-scale * (1 - np.cos(steps))).sum()))


def circle_scale_for(vocab: int, kl: float) -> float:
    """A lambda at which the circle encoder's KL is at most `kl`: log((N-1)/kl) / (1 - cos(2 pi/N)), from the largest
    of the N - 1 terms. Sufficient, not the smallest (derived here)."""
    if not kl > 0:
        raise InputError(f"the KL to reach must be above 0, not {kl}: Proposition 3 reaches 0 only in the limit")
    return max(0.0, math.log((vocab - 1) / kl)) / circle_margin(vocab)


def spread_code(vocab: int, dimension: int, *, seed: int, rounds: int = 1500) -> Float[np.ndarray, "vocab dimension"]:
    """N unit vectors in R^k pushed apart until their largest cosine is small.

    For k >= N - 1 the regular simplex (cosine -1/(N-1), the optimum); for k = 2 the circle; otherwise descent on
    sum_{i<j} exp(beta cos(i, j)) with beta growing, a local optimum that depends on the seed.
    """
    _at_least_two(vocab)
    if dimension < 1 or (dimension == 1 and vocab > 2):
        raise InputError(f"{vocab} tokens cannot all win in {dimension} dimension; use at least 2")
    if dimension >= vocab - 1:
        centred = np.eye(vocab) - 1.0 / vocab
        left, singular, _ = np.linalg.svd(centred)
        simplex = left[:, : vocab - 1] * singular[: vocab - 1]
        simplex /= np.linalg.norm(simplex, axis=1, keepdims=True)
        return np.pad(simplex, ((0, 0), (0, dimension - vocab + 1)))
    if dimension == 2:
        return circle_code(vocab)
    points = np.random.default_rng(seed).standard_normal((vocab, dimension))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    best, best_margin = points, code_margin(points)
    for number in range(rounds):
        share = number / rounds
        beta = 4.0 * 50.0**share
        cosine = points @ points.T
        np.fill_diagonal(cosine, -np.inf)
        weight = np.exp(beta * (cosine - cosine.max()))
        force = weight @ points
        force -= (force * points).sum(axis=1, keepdims=True) * points
        length = np.linalg.norm(force, axis=1).max()
        if length < 1e-14:
            break
        points = points - (0.1 * (1 - share) + 1e-3) * force / length
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        margin = code_margin(points)
        if margin > best_margin:
            best, best_margin = points, margin
    return best


def code_margin(code: Float[np.ndarray, "vocab dimension"]) -> float:
    """min_i min_{j != i} (W_i - W_j) . W_i: the smallest margin when E = W_g."""
    products = code @ code.T
    own = np.diag(products).copy()
    np.fill_diagonal(products, -np.inf)
    return float((own - products.max(axis=1)).min())


def _at_least_two(vocab: int) -> int:
    if vocab < 2:
        raise InputError(f"a vocabulary needs at least 2 tokens, got {vocab}")
    return vocab
