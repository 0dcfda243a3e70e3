"""Memorization scores of a classifier's training examples, their cheap proxies, and the strata made from either.

The ground truth is Feldman's estimator over many trainings on random subsets; a proxy is a number that one training (or
one delivered checkpoint) gives and that ranks examples alike. Each proxy has a direction, stated once in `DIRECTIONS`:
the confidence family falls as memorization rises.
Knows nothing about: models, training (`rote.internals.classifier` does that), files.
Sources: Feldman 2020, arXiv 1906.05271; Feldman & Zhang 2020, arXiv 2008.03703; Zhao & Triantafillou 2024, arXiv
2410.16516; Zhao et al. 2024 (RUM), arXiv 2406.01257.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from rote.errors import InputError
from rote.measures.counterfactual import counterfactual_memorization
from rote.measures.statistics import Estimate, finite_vector, spearman

MEMORIZATION = "memorization"
# +1: rises with memorization; -1: falls. `memorization` is the estimator itself, `curvature` Garg et al. 2024's.
DIRECTIONS: dict[str, int] = {
    MEMORIZATION: 1,
    "confidence": -1,
    "max_confidence": -1,
    "negative_entropy": -1,
    "binary_accuracy": -1,
    "holdout_retraining": 1,
    "curvature": 1,
}
LEARNING_EVENTS = ("confidence", "max_confidence", "negative_entropy", "binary_accuracy")
CLAMP = 1e-10  # smallest probability inside a logarithm


@dataclass(frozen=True)
class MemorizationScores:
    """mem per example with its standard error, and how reproducible the ranking is (`split_half`, see there)."""

    scores: Float[np.ndarray, " examples"]
    se: Float[np.ndarray, " examples"]
    inside: Float[np.ndarray, " examples"]
    outside: Float[np.ndarray, " examples"]
    models: int
    split_half: Estimate | None


def feldman_scores(
    correct: Bool[np.ndarray, "models examples"], member: Bool[np.ndarray, "models examples"], *, seed: int = 0
) -> MemorizationScores:
    """mem_i = sum_t c_ti m_ti / sum_t m_ti - sum_t c_ti (1 - m_ti) / sum_t (1 - m_ti), in [-1, 1].

    Args: `correct` c[t, i] = 1[f_t(x_i) = y_i]; `member` m[t, i] = 1[example i was in training subset t].
    Errors: `InputError` naming an example that was in every subset, or in none: its score is undefined, not 0.
    `split_half` is None with fewer than 4 models.
    Source: Feldman & Zhang 2020, arXiv 2008.03703, sec. 2 (the subset estimator).
    """
    found = counterfactual_memorization(np.asarray(correct, dtype=np.float64), member)
    reliability = split_half(correct, member, seed=seed) if len(np.asarray(member)) >= 4 else None
    return MemorizationScores(found.value, found.se, found.inside, found.outside, len(np.asarray(member)), reliability)


def split_half(
    correct: Bool[np.ndarray, "models examples"], member: Bool[np.ndarray, "models examples"], *, seed: int = 0
) -> Estimate:
    """Spearman's rho between the scores of two random halves of the models: a bound on what any proxy can reach.

    It is the reliability of scores from T/2 models, so it understates that of all T (Spearman-Brown: 2 rho / (1 +
    rho)). Examples that a half has only inside, or only outside, are left out: `n` says how many were compared.
    Errors: `InputError` for fewer than 4 models.
    """
    right, mask = np.asarray(correct, dtype=np.float64), np.asarray(member, dtype=bool)
    if len(right) < 4:
        raise InputError(f"split-half reliability needs at least 4 models, got {len(right)}")
    order = np.random.default_rng(seed).permutation(len(right))
    halves = np.array_split(order, 2)
    both = np.all([mask[rows].any(0) & ~mask[rows].all(0) for rows in halves], axis=0)
    first, second = (counterfactual_memorization(right[rows][:, both], mask[rows][:, both]).value for rows in halves)
    return spearman(first, second)


def learning_event(
    probabilities: Float[np.ndarray, "*events classes"], labels: Int[np.ndarray, "*events"]
) -> dict[str, Float[np.ndarray, "*events"]]:
    """What one step says of each of its examples, p = softmax of the train-mode logits used for that very step.

    confidence = p[y]; max_confidence = max_k p[k]; negative_entropy = sum_k p log p (<= 0, p clamped at 1e-10 inside
    the logarithm); binary_accuracy = 1[argmax p = y]. The proxies are their means over epochs.
    Source: Zhao & Triantafillou 2024, arXiv 2410.16516, and its code.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.shape[:-1] != y.shape or p.ndim < 1:
        raise InputError(f"probabilities must be labels' shape and classes, got {p.shape} for labels {y.shape}")
    if not np.isfinite(p).all() or (p < 0).any() or np.abs(p.sum(-1) - 1).max(initial=0) > 1e-3:
        raise InputError("probabilities must be finite, not negative, and sum to 1 over the last axis")
    if y.size and not (y.min() >= 0 and y.max() < p.shape[-1]):
        raise InputError(f"labels must lie in 0..{p.shape[-1] - 1}, got {y.min()}..{y.max()}")
    return {
        "confidence": np.take_along_axis(p, y[..., None], -1)[..., 0],
        "max_confidence": p.max(-1),
        "negative_entropy": (p * np.log(np.maximum(p, CLAMP))).sum(-1),
        "binary_accuracy": (p.argmax(-1) == y).astype(np.float64),
    }


def symmetric_kl(
    p: Float[np.ndarray, "examples classes"], q: Float[np.ndarray, "examples classes"]
) -> Float[np.ndarray, " examples"]:
    """1/2 [KL(p || q) + KL(q || p)] per row, in nats, probabilities clamped at 1e-10; range [0, 23].

    Holdout retraining takes p from the trained model and q from its copy tuned on held-out data.
    Source: Zhao & Triantafillou 2024, arXiv 2410.16516 (code, holdout retraining).
    """
    a, b = (np.maximum(np.asarray(side, dtype=np.float64), CLAMP) for side in (p, q))
    if a.shape != b.shape or a.ndim != 2:
        raise InputError(f"symmetric KL needs two [examples, classes] matrices alike, got {a.shape} and {b.shape}")
    return 0.5 * ((a - b) * (np.log(a) - np.log(b))).sum(-1)


@dataclass(frozen=True)
class ProxyAgreement:
    """How well one proxy ranks examples like the estimator. `seconds` is the wall-clock of the extra work only."""

    proxy: str
    direction: int
    spearman: Estimate
    p_value: float
    sign_as_expected: bool
    seconds: float | None

    def as_dict(self) -> dict:
        p = self.p_value if math.isfinite(self.p_value) else None
        return {
            "proxy": self.proxy,
            "direction": "higher = more memorized" if self.direction > 0 else "lower = more memorized",
            "spearman": self.spearman.as_dict(),
            "p_value": p,
            "sign_as_expected": self.sign_as_expected,
            "seconds": self.seconds,
        }


def proxy_report(
    memorization: Float[np.ndarray, " examples"],
    proxies: Mapping[str, Float[np.ndarray, " examples"]],
    seconds: Mapping[str, float] | None = None,
) -> list[ProxyAgreement]:
    """Spearman's rho of each proxy with the memorization score, with a 95 % interval and its two-sided p-value.

    Errors: `InputError` for an unknown proxy, unequal lengths, or a value that is not a number.
    """
    rows = []
    for name, values in proxies.items():
        direction = direction_of(name)
        rho = spearman(finite_vector(memorization, "memorization"), finite_vector(values, name))
        p_value = float(np.asarray(stats.spearmanr(memorization, values)[1])) if math.isfinite(rho.value) else math.nan
        agrees = math.isfinite(rho.value) and rho.value * direction > 0
        rows.append(ProxyAgreement(name, direction, rho, p_value, agrees, (seconds or {}).get(name)))
    return rows


def direction_of(proxy: str) -> int:
    """+1 when a higher value means more memorized, -1 when a lower one does. Errors: `InputError` for another name."""
    if proxy not in DIRECTIONS:
        from difflib import get_close_matches

        near = get_close_matches(proxy, DIRECTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(DIRECTIONS)}"
        raise InputError(f"no proxy {proxy!r}; {hint}")
    return DIRECTIONS[proxy]


# --- strata ----------------------------------------------------------------------------------------------------------

NAMES = ("low", "medium", "high")


def extreme_strata(
    scores: Float[np.ndarray, " examples"], size: int, *, proxy: str = MEMORIZATION
) -> dict[str, Int[np.ndarray, " size"]]:
    """The experiments' forget sets: the `size` least, middle and most memorized examples, as row numbers.

    Middle: closest to 0.5 for true scores, to the median for a proxy. The three are disjoint also where values tie
    (ties go by row number; the middle is chosen among what the ends left).
    Errors: `InputError` when there are fewer than 3 `size` examples.
    Source: Zhao et al. 2024, arXiv 2406.01257, sec. 4 (their code lets the middle repeat the ends' examples).
    """
    values = finite_vector(scores, proxy)
    if size < 1 or 3 * size > len(values):
        raise InputError(f"three disjoint strata of {size} need {3 * size} examples, there are {len(values)}")
    order = np.argsort(direction_of(proxy) * values, kind="stable")
    rest = np.sort(order[size : len(order) - size])
    centre = 0.5 if proxy == MEMORIZATION else float(np.median(values))
    middle = rest[np.argsort(np.abs(values[rest] - centre), kind="stable")[:size]]
    return {"low": order[:size], "medium": middle, "high": order[len(order) - size :]}


def refine(
    forget: Int[np.ndarray, " forget"],
    scores: Float[np.ndarray, " examples"],
    *,
    k: int = 3,
    proxy: str = MEMORIZATION,
) -> dict[str, Int[np.ndarray, " stratum"]]:
    """Partition a forget set into `k` groups of (nearly) equal size, from least to most memorized.

    `forget` are row numbers into `scores`. Keys in that order: low, medium, high for k = 3; all for k = 1; low, high
    for k = 2; s1..sk otherwise. Disjoint, and together exactly `forget`, also where scores tie.
    Errors: `InputError` for repeated or unknown rows, or more strata than examples.
    Source: Zhao et al. 2024 (RUM), arXiv 2406.01257, sec. 5 (the refinement).
    """
    values = finite_vector(scores, proxy)
    rows = np.asarray(forget, dtype=np.int64)
    if rows.ndim != 1 or len(np.unique(rows)) != len(rows):
        raise InputError("the forget set names an example twice; give each once")
    if len(rows) and not (rows.min() >= 0 and rows.max() < len(values)):
        raise InputError(f"the forget set names row {int(rows.max())}, but scores are of {len(values)} examples")
    if not 1 <= k <= len(rows):
        raise InputError(f"{k} strata cannot be made of {len(rows)} examples to forget")
    rows = np.sort(rows)
    order = rows[np.argsort(direction_of(proxy) * values[rows], kind="stable")]
    return dict(zip(stratum_names(k), np.array_split(order, k), strict=True))


def stratum_names(k: int) -> tuple[str, ...]:
    """The names of k strata, from least to most memorized."""
    return {1: ("all",), 2: ("low", "high"), 3: NAMES}.get(k) or tuple(f"s{number}" for number in range(1, k + 1))
