"""AUROC, R^2 and accuracy of predicted vote fractions, with intervals that resample patients, not segments.

    AUROC     probability that a positive segment (votes >= half) outranks a negative one, ties half
    R^2       1 - sum (y - f)^2 / sum (y - mean y)^2 of true and predicted vote fraction; 1 is perfect, may be negative
    accuracy  of f >= 0.5 against votes >= half

Each with a percentile bootstrap (10,000 resamples in the paper; Tang et al. 2025, arXiv 2510.20846, metrics). Segments
of a patient are alike, so patients are drawn, with all their segments.

Knows nothing about: models, cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float

from rote.errors import InputError

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval over patients; NaN bounds where no interval exists."""

    value: float
    low: float
    high: float
    n: int
    patients: int

    def to_dict(self) -> dict[str, float | int | None]:
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in asdict(self).items()}


def auroc(
    score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], weight: Float[np.ndarray, "r n"] | None = None
) -> Float[np.ndarray, " r"]:
    """Weighted AUROC, one value a row of weights (default: one row of ones). NaN where a class has no weight."""
    order = np.argsort(score, kind="stable")
    ranked, y = score[order], positive[order]
    w = np.ones((1, len(score))) if weight is None else weight[:, order]
    start = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    pos = np.add.reduceat(w * y, start, axis=1)
    neg = np.add.reduceat(w * ~y, start, axis=1)
    below = np.cumsum(neg, 1) - neg
    total = pos.sum(1) * neg.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (pos * (below + neg / 2)).sum(1) / total, np.nan)


def r_squared(
    predicted: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"], weight: Float[np.ndarray, "r n"] | None = None
) -> Float[np.ndarray, " r"]:
    """Weighted R^2, one value a row of weights. NaN where the truth is constant."""
    w = np.ones((1, len(truth))) if weight is None else weight
    total = w.sum(1)
    mean = w @ truth / total
    spread = w @ truth**2 - total * mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12, 1 - (w @ (truth - predicted) ** 2) / spread, np.nan)


def by_patient(
    statistic: Callable[[np.ndarray | None], np.ndarray], groups: np.ndarray, *, resamples: int, seed: int
) -> Interval:
    """The statistic of all segments, and its percentile interval over resampled patients."""
    names, number = np.unique(groups, return_inverse=True)
    value = float(statistic(None)[0])
    if len(names) < 2:
        return Interval(value, math.nan, math.nan, len(groups), len(names))
    rng = np.random.default_rng(seed)
    draws = []
    step = max(1, _BLOCK // len(groups))
    for at in range(0, resamples, step):
        count = min(step, resamples - at)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
        draws.append(statistic(drawn[:, number].astype(np.float64)))
    found = np.concatenate(draws)
    found = found[np.isfinite(found)]
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (math.nan, math.nan)
    return Interval(value, float(low), float(high), len(groups), len(names))


@dataclass(frozen=True)
class Evaluation:
    """How well vote fractions are predicted on patients the model never saw."""

    auroc: Interval
    r2: Interval
    accuracy: Interval

    def to_dict(self) -> dict[str, dict]:
        return {name: getattr(self, name).to_dict() for name in ("auroc", "r2", "accuracy")}


def evaluate_votes(
    predicted: Float[np.ndarray, " n"],
    truth: Float[np.ndarray, " n"],
    groups: np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Evaluation:
    """AUROC, R^2, accuracy of predicted vote fractions. Raises InputError when all segments are of one class."""
    positive = truth >= 0.5
    if positive.all() or not positive.any():
        raise InputError("evaluation: all segments are of one class; an AUROC needs both")
    right = ((predicted >= 0.5) == positive).astype(np.float64)

    def accuracy(weight: np.ndarray | None) -> np.ndarray:
        return right.mean(keepdims=True) if weight is None else weight @ right / weight.sum(1)

    options = {"resamples": resamples, "seed": seed}
    return Evaluation(
        by_patient(lambda w: auroc(predicted, positive, w), groups, **options),
        by_patient(lambda w: r_squared(predicted, truth, w), groups, **options),
        by_patient(accuracy, groups, **options),
    )
