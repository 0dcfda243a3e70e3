"""Counterfactual memorization and influence: what a model does on a record because that record was trained on.

Knows two matrices: which training set held which record, and how well each model did on each record. Knows nothing
about training. The only measure here that needs no assumption about what an unmemorizing model would do: it was
trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rote.errors import InputError


@dataclass(frozen=True)
class CounterfactualMemorization:
    """mem(x) per record with its standard error, the two means it is made of, and how many models each rests on."""

    value: Float[np.ndarray, " records"]
    se: Float[np.ndarray, " records"]
    inside: Float[np.ndarray, " records"]
    outside: Float[np.ndarray, " records"]
    n_inside: Int[np.ndarray, " records"]
    n_outside: Int[np.ndarray, " records"]


@dataclass(frozen=True)
class Influence:
    """infl(x => x') with its standard error: row = training record x, column = record x' where the effect is seen."""

    value: Float[np.ndarray, "train test"]
    se: Float[np.ndarray, "train test"]


def token_accuracy(
    greedy: Bool[np.ndarray, "records tokens"], predicted: Bool[np.ndarray, "records tokens"]
) -> Float[np.ndarray, " records"]:
    """M(f, x): share of predicted tokens that are the model's argmax; `predicted` is `~isnan(logp)`. Range [0, 1]."""
    match, where = np.asarray(greedy, bool), np.asarray(predicted, bool)
    if match.shape != where.shape or match.ndim != 2:
        raise InputError(f"greedy and predicted must be [records, tokens] alike, got {match.shape} and {where.shape}")
    count = where.sum(axis=1)
    if (count == 0).any():
        raise InputError(f"greedy row {int(np.argmin(count))} has no predicted token; lengthen or skip the record")
    return (match & where).sum(axis=1) / count


def counterfactual_memorization(
    performance: Float[np.ndarray, "models records"], included: Bool[np.ndarray, "models records"]
) -> CounterfactualMemorization:
    """mem(x) = mean of M over models trained with x - mean over models trained without x.

    se^2 = var_in/n_in + var_out/n_out (ddof 1, independent trainings); NaN with a single model on a side. Range [-1,
    1] for accuracies: near 0 = generalised or not learned, near 1 = right only because x was in the training set.
    Errors: `InputError` naming a record that every model, or none, was trained on.
    Source: Zhang et al. 2023, arXiv 2112.12938, def. 2.1; Feldman & Zhang 2020, arXiv 2008.03703.
    """
    scores, mask = _matrices(performance, included)
    if mask.shape != scores.shape:
        raise InputError(f"included must have performance's shape {scores.shape}, got {mask.shape}")
    n_in, n_out = _both_sides(mask)
    means, spreads = [], []
    for chosen, n in ((mask, n_in), (~mask, n_out)):
        mean = np.where(chosen, scores, 0.0).sum(axis=0) / n
        squares = np.where(chosen, (scores - mean) ** 2, 0.0).sum(axis=0)
        means.append(mean)
        spreads.append(_variance_of_mean(squares, n))
    return CounterfactualMemorization(
        means[0] - means[1], np.sqrt(spreads[0] + spreads[1]), means[0], means[1], n_in, n_out
    )


def influence(performance: Float[np.ndarray, "models test"], included: Bool[np.ndarray, "models train"]) -> Influence:
    """infl(x => x') = mean of M(f, x') over models trained with x - mean over models trained without x.

    With x' = x this is counterfactual memorization. Two matrix products for all pairs; se as there. With few models
    the largest entries of a big matrix are noise: compare with se, and control the number of false discoveries.
    Source: Zhang et al. 2023, arXiv 2112.12938, def. 2.2.
    """
    scores, mask = _matrices(performance, included)
    if len(mask) != len(scores):
        raise InputError(f"performance has {len(scores)} models, included {len(mask)}")
    n_in, n_out = _both_sides(mask)
    centred = scores - scores.mean(axis=0)  # differences are unchanged; sums of squares lose no digits
    sums = mask.T.astype(float) @ centred
    squares = mask.T.astype(float) @ centred**2
    rest, rest_squares = centred.sum(axis=0) - sums, (centred**2).sum(axis=0) - squares
    mean_in, mean_out = sums / n_in[:, None], rest / n_out[:, None]
    within = np.maximum(squares - n_in[:, None] * mean_in**2, 0.0)
    without = np.maximum(rest_squares - n_out[:, None] * mean_out**2, 0.0)
    variance = _variance_of_mean(within, n_in[:, None]) + _variance_of_mean(without, n_out[:, None])
    return Influence(mean_in - mean_out, np.sqrt(variance))


def _variance_of_mean(squares: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.where(n > 1, squares / (np.maximum(n - 1, 1) * n), np.nan)


def _matrices(performance, included) -> tuple[np.ndarray, np.ndarray]:
    scores, mask = np.asarray(performance, dtype=np.float64), np.asarray(included)
    if scores.ndim != 2 or mask.ndim != 2:
        raise InputError(f"performance and included must be [models, records], got {scores.shape} and {mask.shape}")
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise InputError("included must be boolean: was the record in that model's training set")
    if not np.isfinite(scores).all():
        model = int(np.argmax(~np.isfinite(scores).all(axis=1)))
        raise InputError(f"performance has a non-finite entry for model {model}")
    return scores, mask.astype(bool)


def _both_sides(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = mask.sum(axis=0)
    outside = len(mask) - inside
    bad = (inside == 0) | (outside == 0)
    if bad.any():
        record = int(np.argmax(bad))
        raise InputError(
            f"record row {record} was in the training set of {int(inside[record])} of {len(mask)} models; "
            "counterfactual memorization needs models on both sides"
        )
    return inside, outside
