"""A logistic probe judged on passages it was not trained on: scores out of fold, and intervals over passages.

    p(y = 1 | h) = sigmoid(w . (h - mean)/sd + b),  L2 with C = .05, both classes weighted equally, and inside a class
                                                     every kind of token: a thousand uncertain tokens are not heard
                                                     above a hundred certain ones

Every fold has its own standardisation and its own probe, so scores are compared inside a fold only:
A = sum_f P_f N_f A_f / sum_f P_f N_f. Intervals resample passages, because tokens of one passage are not independent.

Knows nothing about: models, sites, labels' meaning. C and the split are inferred, the paper's were not available.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rote.errors import InputError
from rote.measures.statistics import Estimate, percent_label
from rote.runtime import derive_seed

C = 0.05
RESAMPLES = 300


@dataclass(frozen=True)
class LinearProbe:
    """w . (h - mean)/sd + b over `dim` coordinates; a coordinate that never varied has sd 1 and so adds nothing."""

    w: Float[np.ndarray, " dim"]
    b: float
    mean: Float[np.ndarray, " dim"]
    sd: Float[np.ndarray, " dim"]

    def logit(self, values: Float[np.ndarray, "tokens dim"]) -> Float[np.ndarray, " tokens"]:
        return ((np.asarray(values, np.float64) - self.mean) / self.sd) @ self.w + self.b

    @property
    def raw_direction(self) -> Float[np.ndarray, " dim"]:
        """w / sd: the direction in the activations' own coordinates along which the logit grows."""
        return self.w / self.sd


def fit_linear(
    values: Float[np.ndarray, "tokens dim"],
    label: Bool[np.ndarray, " tokens"],
    *,
    c: float = C,
    kind: Int[np.ndarray, " tokens"] | None = None,
) -> LinearProbe:
    """The probe of the head of this file. kind: what weighs alike inside a class; None: its tokens all do.

    Raises InputError when one label is missing or values are not finite.
    """
    from sklearn.linear_model import LogisticRegression

    values = np.asarray(values, np.float64)
    if label.all() or not label.any():
        raise InputError(f"a probe needs tokens of both kinds, got {int(label.sum())} positive of {len(label)}")
    if not np.isfinite(values).all():
        raise InputError("activations hold NaN or infinite values; capture them as float32")
    mean, sd = values.mean(0), values.std(0)
    sd = np.where(sd > 1e-12 * (1 + np.abs(mean)), sd, 1.0)
    model: Any = LogisticRegression(C=c, max_iter=2000, tol=1e-5)
    model.fit((values - mean) / sd, label, sample_weight=equal_weights(label, label if kind is None else kind))
    return LinearProbe(model.coef_[0].copy(), float(model.intercept_[0]), mean, sd)


def equal_weights(label: Bool[np.ndarray, " tokens"], kind: Int[np.ndarray, " tokens"]) -> Float[np.ndarray, " tokens"]:
    """Weights of mean 1 under which both classes weigh alike, and every kind of a class."""
    weight = np.empty(len(label))
    for one in (True, False):
        mine = label == one
        numbers, counts = np.unique(kind[mine], return_counts=True)
        weight[mine] = len(label) / (2 * len(numbers) * counts[np.searchsorted(numbers, kind[mine])])
    return weight


def out_of_fold(
    values: Float[np.ndarray, "tokens dim"],
    label: Bool[np.ndarray, " tokens"],
    fold: Int[np.ndarray, " tokens"],
    *,
    c: float = C,
    kind: Int[np.ndarray, " tokens"] | None = None,
) -> Float[np.ndarray, " tokens"]:
    """Every token's logit under the probe of the other folds."""
    scores = np.empty(len(label))
    for number in np.unique(fold):
        test = fold == number
        part = None if kind is None else kind[~test]
        scores[test] = fit_linear(values[~test], label[~test], c=c, kind=part).logit(values[test])
    return scores


def stratified_auroc(
    scores: Float[np.ndarray, " tokens"],
    label: Bool[np.ndarray, " tokens"],
    fold: Int[np.ndarray, " tokens"],
    weight: Float[np.ndarray, "resamples tokens"] | None = None,
) -> Float[np.ndarray, " resamples"]:
    """AUROC over pairs inside the same fold, ties half; tokens counted `weight` times, for each resample."""
    weight = np.ones((1, len(label))) if weight is None else np.asarray(weight, np.float64)
    wins, pairs = np.zeros(len(weight)), np.zeros(len(weight))
    for number in np.unique(fold):
        mine = np.flatnonzero(fold == number)
        order = mine[np.argsort(scores[mine], kind="stable")]
        first = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
        one = np.add.reduceat(weight[:, order] * label[order], first, axis=1)
        zero = np.add.reduceat(weight[:, order] * ~label[order], first, axis=1)
        below = np.cumsum(zero, 1) - zero / 2
        wins += (one * below).sum(1)
        pairs += one.sum(1) * zero.sum(1)
    return np.divide(wins, pairs, out=np.full(len(weight), np.nan), where=pairs > 0)


def group_weights(
    group: Int[np.ndarray, " tokens"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "resamples tokens"]:
    """How often each token stands in each bootstrap sample of whole groups."""
    names, number = np.unique(group, return_inverse=True)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn[:, number].astype(np.float64)


def over_groups(value: float, resampled: Float[np.ndarray, " resamples"], groups: int) -> Estimate:
    """The estimate with its 95 % percentile interval over bootstrap samples of groups; n counts groups."""
    usable = resampled[np.isfinite(resampled)]
    low, high = np.quantile(usable, [0.025, 0.975]) if len(usable) > 1 else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high), groups, percent_label("bootstrap over passages", 0.95))


@dataclass(frozen=True)
class Judged:
    """A probe's out-of-fold performance. accuracy, balanced_accuracy, f1 at probability .5."""

    auroc: Estimate
    accuracy: float
    balanced_accuracy: float
    f1: float
    tokens: int
    positives: int

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "auroc": self.auroc.as_dict()}


def judge(
    scores: Float[np.ndarray, " tokens"],
    label: Bool[np.ndarray, " tokens"],
    fold: Int[np.ndarray, " tokens"],
    group: Int[np.ndarray, " tokens"],
    weight: Float[np.ndarray, "resamples tokens"],
) -> Judged:
    """Everything reported about one probe, from its out-of-fold scores."""
    called = scores >= 0
    hits, false = int((called & label).sum()), int((called & ~label).sum())
    m, n = int(label.sum()), int((~label).sum())
    auroc = float(stratified_auroc(scores, label, fold)[0])
    return Judged(
        over_groups(auroc, stratified_auroc(scores, label, fold, weight), len(np.unique(group))),
        float((called == label).mean()),
        (hits / m + 1 - false / n) / 2,
        2 * hits / (hits + false + m),
        len(label),
        m,
    )


def difference(
    a: Float[np.ndarray, " tokens"],
    b: Float[np.ndarray, " tokens"],
    label: Bool[np.ndarray, " tokens"],
    fold: Int[np.ndarray, " tokens"],
    group: Int[np.ndarray, " tokens"],
    weight: Float[np.ndarray, "resamples tokens"],
) -> Estimate:
    """AUROC of a minus AUROC of b on the same tokens, resampling the same passages for both."""
    value = stratified_auroc(a, label, fold)[0] - stratified_auroc(b, label, fold)[0]
    gaps = stratified_auroc(a, label, fold, weight) - stratified_auroc(b, label, fold, weight)
    return over_groups(float(value), gaps, len(np.unique(group)))
