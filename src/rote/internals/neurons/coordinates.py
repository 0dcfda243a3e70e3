"""How well one activation coordinate tells two kinds of tokens apart: pure statistics of [tokens, coordinates] blocks.

All sums are float64: 10^5 columns of float16 activations with a few large ones lose everything otherwise.

Knows nothing about: models, sites, samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from rote.errors import InputError


def rank_auroc(
    values: Float[np.ndarray, "tokens coordinates"], label: Bool[np.ndarray, " tokens"]
) -> Float[np.ndarray, " coordinates"]:
    """A_j = P(X_j > Y_j) + P(X_j = Y_j)/2 for a token X of label 1 and Y of label 0, by midranks (Mann-Whitney).

    Range [0, 1]; sign-free it is max(A, 1 - A). Raises InputError when one kind is missing.
    """
    return auroc_of_ranks(stats.rankdata(values, axis=0), label)


def auroc_of_ranks(
    ranks: Float[np.ndarray, "tokens coordinates"], label: Bool[np.ndarray, " tokens"]
) -> Float[np.ndarray, " coordinates"]:
    """(sum of label 1's ranks - m (m + 1)/2) / (m n)."""
    m, n = _both(label)
    return (ranks[label].sum(0, dtype=np.float64) - m * (m + 1) / 2) / (m * n)


def standardised_mean_difference(
    values: Float[np.ndarray, "tokens coordinates"], label: Bool[np.ndarray, " tokens"]
) -> Float[np.ndarray, " coordinates"]:
    """(mu_1 - mu_0) / sd_pooled, with sd_pooled^2 = ((m-1) s_1^2 + (n-1) s_0^2) / (m + n - 2).

    Range (-inf, inf); infinite where two constants differ, 0 where they do not."""
    m, n = _both(label)
    one, zero = np.asarray(values[label], np.float64), np.asarray(values[~label], np.float64)
    within = ((one - one.mean(0)) ** 2).sum(0) + ((zero - zero.mean(0)) ** 2).sum(0)
    spread = np.sqrt(within / max(m + n - 2, 1))
    difference = one.mean(0) - zero.mean(0)
    apart = np.where(difference == 0, 0.0, np.copysign(np.inf, difference))
    return np.divide(difference, spread, out=apart, where=spread > 0)


def best_threshold(
    values: Float[np.ndarray, "tokens coordinates"], label: Bool[np.ndarray, " tokens"]
) -> tuple[Float[np.ndarray, " coordinates"], Float[np.ndarray, " coordinates"], Float[np.ndarray, " coordinates"]]:
    """(balanced accuracy, threshold, sign): the best rule "label 1 when sign * value >= sign * threshold".

    Balanced accuracy (TPR + TNR)/2 lies in [.5, 1]. Thresholds are midpoints between neighbouring values, so that they
    mean something on other tokens. sign is +1 or -1.
    """
    m, n = _both(label)
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(np.asarray(values, np.float64), order, axis=0)
    positive = label[order]
    below_one = np.cumsum(positive, 0)[:-1] / m  # share of label 1 at or below each cut
    below_zero = np.cumsum(~positive, 0)[:-1] / n
    gain = np.where(ordered[1:] > ordered[:-1], below_zero - below_one, 0.0)  # ties cannot be cut
    cut = np.abs(gain).argmax(0)
    column = np.arange(values.shape[1])
    best = gain[cut, column]
    threshold = (ordered[cut, column] + ordered[cut + 1, column]) / 2
    return (1 + np.abs(best)) / 2, threshold, np.where(best < 0, -1.0, 1.0)


def balanced_accuracy(called: Bool[np.ndarray, " *tokens"], label: Bool[np.ndarray, " tokens"]) -> np.ndarray | float:
    """(TPR + TNR)/2 of calls, [tokens] or [tokens, coordinates]."""
    _both(label)
    return (called[label].mean(0) + (~called[~label]).mean(0)) / 2


@dataclass
class RunningMoments:
    """Mean and variance of every coordinate over a stream of blocks, exactly as if they had been kept (Chan et al.).

    count, mean [coordinates], m2 [coordinates] (sum of squared deviations).
    """

    count: int = 0
    mean: Float[np.ndarray, " coordinates"] | float = 0.0
    m2: Float[np.ndarray, " coordinates"] | float = 0.0

    def add(self, block: Float[np.ndarray, "tokens coordinates"]) -> None:
        if not len(block):
            return
        block = np.asarray(block, np.float64)
        mean = block.mean(0)
        total = self.count + len(block)
        delta = mean - self.mean
        self.m2 = self.m2 + ((block - mean) ** 2).sum(0) + delta**2 * (self.count * len(block) / total)
        self.mean = self.mean + delta * (len(block) / total)
        self.count = total

    @property
    def sd(self) -> Float[np.ndarray, " coordinates"]:
        """Population standard deviation."""
        return np.sqrt(np.asarray(self.m2) / max(self.count, 1))


def _both(label: Bool[np.ndarray, " tokens"]) -> tuple[int, int]:
    m = int(np.count_nonzero(label))
    n = len(label) - m
    if not m or not n:
        raise InputError(f"tokens of both kinds are needed, got {m} positive and {n} negative ones")
    return m, n
