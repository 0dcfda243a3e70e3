"""Differences with intervals, before against after: from two intervals, or paired over the same records.

Pure functions on arrays. Knows nothing about findings. Sign everywhere: after minus before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from rote.errors import InputError


@dataclass(frozen=True)
class Difference:
    """after - before, with its interval (None where there is none) and how it was made."""

    value: float
    low: float | None
    high: float | None
    n: int | None
    method: str
    paired: bool


def from_intervals(
    after: tuple[float, float | None, float | None],
    before: tuple[float, float | None, float | None],
    *,
    confidence: float = 0.95,
) -> Difference:
    """Square-and-add: L = d - sqrt((a - l_a)^2 + (u_b - b)^2), U = d + sqrt((u_a - a)^2 + (b - l_b)^2), d = a - b.

    For independent estimates; on the same records it is wider than it need be (their errors rise and fall together).
    Newcombe 1998, Statistics in Medicine 17, method 10; Zou & Donner 2008.
    """
    (a, la, ua), (b, lb, ub) = after, before
    if la is None or ua is None or lb is None or ub is None:
        return Difference(a - b, None, None, None, "no interval: a side has none", False)
    low = a - b - math.hypot(a - la, ub - b)
    high = a - b + math.hypot(ua - a, b - lb)
    return Difference(a - b, low, high, None, f"from both intervals, {100 * confidence:.6g}%", False)


def proportions(
    after: Bool[np.ndarray, " records"], before: Bool[np.ndarray, " records"], *, confidence: float = 0.95
) -> Difference:
    """Paired difference of two shares over the same records, by Wilson intervals with the correlation of the pairs.

    With cells a (both), b (after only), c (before only), d (neither), theta = (b - c)/n, and Wilson limits of both
    margins: delta^2 = (p1-l1)^2 - 2 phi (p1-l1)(u2-p2) + (u2-p2)^2, epsilon^2 likewise; phi = (ad - bc)/sqrt of the
    margins' product, with the numerator's continuity correction max(ad - bc - n/2, 0) when positive. Interval [theta
    - delta, theta + epsilon]. Range [-1, 1]. Newcombe 1998, Statistics in Medicine 17:2635, method 10.
    """
    new, old = np.asarray(after, dtype=bool), np.asarray(before, dtype=bool)
    n = len(new)
    if n == 0 or n != len(old):
        raise InputError(f"a paired comparison needs the same records on both sides, got {n} and {len(old)}")
    a, b = int((new & old).sum()), int((new & ~old).sum())
    c, d = int((~new & old).sum()), int((~new & ~old).sum())
    p1, p2 = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = _wilson(p1, n, confidence), _wilson(p2, n, confidence)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    cross = a * d - b * c
    if cross > 0:
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    theta = (b - c) / n
    low, high = theta - reach(p1 - l1, u2 - p2), theta + reach(p2 - l2, u1 - p1)
    return Difference(theta, max(-1.0, low), min(1.0, high), n, f"paired, Newcombe {100 * confidence:.6g}%", True)


def _wilson(p: float, n: int, confidence: float) -> tuple[float, float]:
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def means(
    after: Float[np.ndarray, " records"], before: Float[np.ndarray, " records"], *, confidence: float = 0.95
) -> Difference:
    """Paired difference of means: mean(d) +- t_{n-1} sd(d)/sqrt(n), d = after - before. All values must be finite."""
    d = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if len(d) == 0 or not np.isfinite(d).all():
        raise InputError("a paired difference of means needs finite values on both sides")
    value = float(d.mean())
    if len(d) < 2:
        return Difference(value, None, None, len(d), "no interval: one record", True)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))
    return Difference(value, value - half, value + half, len(d), f"paired t {100 * confidence:.6g}%", True)


def perplexity(
    nll_after: Float[np.ndarray, " records"],
    nll_before: Float[np.ndarray, " records"],
    tokens: Float[np.ndarray, " records"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Difference:
    """Paired difference of perplexities over the same texts: percentile bootstrap over records, both sides resampled
    together.

    PPL = exp(sum_i nll_i / sum_i tokens_i), nll in nats a record. Fixed seed, so that a comparison made again is equal.
    """
    after, before, tokens = (np.asarray(x, dtype=np.float64) for x in (nll_after, nll_before, tokens))
    if len(after) == 0 or len({len(after), len(before), len(tokens)}) != 1:
        raise InputError("a paired difference of perplexities needs the same records on both sides")

    def ppl(nll, count):
        return np.exp(np.minimum(700.0, nll.sum(-1) / count.sum(-1)))

    value = float(ppl(after, tokens) - ppl(before, tokens))
    if len(after) < 2:
        return Difference(value, None, None, len(after), "no interval: one record", True)
    draws = np.random.default_rng(0).integers(0, len(after), (resamples, len(after)))
    spread = ppl(after[draws], tokens[draws]) - ppl(before[draws], tokens[draws])
    low, high = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
    label = f"paired bootstrap over records, {100 * confidence:.6g}%"
    return Difference(value, float(low), float(high), len(after), label, True)


def auroc(
    members_after: np.ndarray,
    others_after: np.ndarray,
    members_before: np.ndarray,
    others_before: np.ndarray,
    *,
    confidence: float = 0.95,
) -> Difference:
    """Difference of two AUROCs of the same records (row i of after and before is one record), by paired DeLong."""
    from rote.measures.roc import delong_paired

    d = delong_paired(members_after, others_after, members_before, others_before, confidence=confidence).difference
    return Difference(d.value, d.low, d.high, d.n, d.interval, True)
