"""How good is a ranking? AUC, normalised entropy, HR@k and NDCG@k.

Pure functions of scores. Knows nothing about: models, logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rote.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def auc(score: Float[np.ndarray, "*n"], label: Float[np.ndarray, "*n"]) -> float:
    """P(score of a positive > score of a negative), ties half (Mann-Whitney). Range 0 .. 1, 0.5 is chance.

    Errors: InputError when one class is missing.
    """
    from scipy.stats import rankdata

    score, positive = np.ravel(score), np.ravel(label) == 1
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        raise InputError("an AUC needs positive and negative candidates; the labels hold one class only")
    return float((rankdata(score)[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def normalised_entropy(logit: Float[np.ndarray, "*n"], label: Float[np.ndarray, "*n"]) -> float:
    """NE = mean log-loss / entropy of the base rate (He et al. 2014). 0 is perfect, 1 is knowing the base rate only."""
    logit, label = np.ravel(logit).astype(float), np.ravel(label).astype(float)
    rate = label.mean()
    if not 0 < rate < 1:
        raise InputError("normalised entropy needs positive and negative candidates; the labels hold one class only")
    loss = np.logaddexp(0, logit) - label * logit
    return float(loss.mean() / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def target_ranks(
    score: Float[np.ndarray, "users items"],
    target: Int[np.ndarray, " users"],
    seen: Bool[np.ndarray, "users items"] | None = None,
) -> Int[np.ndarray, " users"]:
    """Rank (1 = best) of each user's target among all items: full ranking, no sampled negatives.

    `seen` items are not ranked, the target always is. An item that ties with the target counts as better: a model that
    scores everything alike gets no credit.
    """
    rows = np.arange(len(score))
    own = score[rows, target][:, None]
    better = score >= own
    if seen is not None:
        better &= ~seen
    better[rows, target] = False
    return 1 + better.sum(1)


def hit_rate(rank: Int[np.ndarray, " users"], k: int) -> float:
    """HR@k: share of users whose target is among the best k."""
    return float((rank <= k).mean())


def ndcg(rank: Int[np.ndarray, " users"], k: int) -> float:
    """NDCG@k with one target a user: the mean of 1 / log2(1 + rank) where rank <= k, else 0."""
    return float(np.where(rank <= k, 1 / np.log2(1 + rank), 0).mean())


def ranking_figures(rank: Int[np.ndarray, " users"], cutoffs: tuple[int, ...] = (1, 5, 10, 50)) -> dict[str, float]:
    """HR@k, NDCG@k and the mean reciprocal rank, with the number of users."""
    found: dict[str, float] = {"users": len(rank)}
    for k in cutoffs:
        found[f"HR@{k}"], found[f"NDCG@{k}"] = hit_rate(rank, k), ndcg(rank, k)
    return found | {"MRR": float((1 / rank).mean())}


def relative_quality(
    rank: Int[np.ndarray, " users"],
    against: Int[np.ndarray, " users"],
    k: int = 10,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """NDCG@k of one model over another's on the same users: 1 is equal, above 1 is better; 95 % interval by resampling
    users, both models' ranks together. NaN where the other finds nothing."""
    gains = [np.where(found <= k, 1 / np.log2(1 + found), 0) for found in (rank, against)]
    rng, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = rng.integers(0, len(rank), len(rank))
        draws.append([part[rows].mean() for part in gains])
    ours, theirs = np.array(draws).T
    kept = theirs > 0
    low, high = np.quantile(ours[kept] / theirs[kept], [0.025, 0.975]) if kept.any() else (np.nan, np.nan)
    ratio = gains[0].mean() / gains[1].mean() if gains[1].any() else np.nan
    return {"ratio": float(ratio), "low": float(low), "high": float(high)}
