"""Ranking statistics: how well one score per record separates members from non-members.

Convention everywhere: two vectors, `members` and `nonmembers`, larger score = more member-like, a record is called a
member when score >= threshold. Ties count half in the AUROC and are never split in a ROC. Knows nothing about which
attack made the scores. All O(n log n); infinities are allowed (ranks only), NaN is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from rote.errors import InputError
from rote.measures.statistics import Estimate, check_confidence, clopper_pearson, finite_vector, percent_label


def _pair(members, nonmembers) -> tuple[np.ndarray, np.ndarray]:
    a = finite_vector(members, "members", allow_infinite=True)
    b = finite_vector(nonmembers, "nonmembers", allow_infinite=True)
    if len(a) == 0 or len(b) == 0:
        raise InputError(f"a ROC needs scores on both sides, got {len(a)} members and {len(b)} non-members")
    return a, b


def auroc(members: Float[np.ndarray, " m"], nonmembers: Float[np.ndarray, " n"]) -> float:
    """AUROC = P(X > Y) + P(X = Y)/2 over all member/non-member pairs, by midranks (Mann-Whitney U / mn).

    Range [0, 1]; 0.5 = no information. Read it two-sided: far below 0.5 is leakage too (after unlearning, say).
    For N(d, 1) against N(0, 1) it is Phi(d / sqrt 2).
    """
    a, b = _pair(members, nonmembers)
    ranks = stats.rankdata(np.concatenate([a, b]))[: len(a)]
    return float((ranks.sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def _placements(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components V10 [m] (share of non-members below each member) and V01 [n], ties half."""
    pooled = stats.rankdata(np.concatenate([a, b]))
    v10 = (pooled[: len(a)] - stats.rankdata(a)) / len(b)
    v01 = 1.0 - (pooled[len(a) :] - stats.rankdata(b)) / len(a)
    return v10, v01


def _delong_interval(value: float, variance: float, pairs: int, confidence: float) -> tuple[float, float, str]:
    """Logit-transformed DeLong interval, or the disjoint-pairs bound where the variance says nothing."""
    check_confidence(confidence)
    if variance > 0 and 0 < value < 1:
        half = special.ndtri(0.5 + confidence / 2) * math.sqrt(variance) / (value * (1 - value))
        low, high = special.expit(special.logit(value) + np.array([-half, half]))
        return float(low), float(high), percent_label("DeLong", confidence)
    low, high = clopper_pearson(value * pairs, pairs, confidence=confidence)
    return float(low), float(high), percent_label("Clopper-Pearson on disjoint pairs", confidence)


@dataclass(frozen=True)
class AurocEstimate(Estimate):
    """AUROC with its DeLong standard error `se` (0 where all pairs agree, NaN for a single member or non-member)."""

    se: float = math.nan


def delong(
    members: Float[np.ndarray, " m"], nonmembers: Float[np.ndarray, " n"], *, confidence: float = 0.95
) -> AurocEstimate:
    """AUROC with DeLong's standard error: se^2 = var(V10)/m + var(V01)/n, var with ddof 1, V by midranks.

    The interval is expit(logit A -+ z se / (A (1-A))), which stays inside (0, 1) and covers better than the symmetric
    one near 1. Where se is 0 or undefined (A of 0 or 1, all scores tied, one record on a side) it is the
    Clopper-Pearson interval of A k successes in k = min(m, n) disjoint pairs: k members and k non-members pair off
    independently, each pair is concordant with probability A, so complete separation has probability at most A^k and
    the bound is exact and conservative. `n` of the estimate is m + n.
    Source: DeLong, DeLong & Clarke-Pearson 1988; O(n log n) by midranks, Sun & Xu 2014.
    """
    a, b = _pair(members, nonmembers)
    return delong_stratified([(a, b)], confidence=confidence)


def delong_stratified(pairs, *, confidence: float = 0.95) -> AurocEstimate:
    """AUROC over pairs inside the same stratum only: A = sum_s m_s n_s A_s / sum_s m_s n_s, variances added alike.

    For cross-validated scores: each fold's classifier has its own scale and offset, so pooling folds biases the AUROC
    of useless features below 0.5. `pairs`: sequence of (members, nonmembers), one per stratum; a stratum without one
    of the sides has no pairs and is left out.
    """
    strata = [
        (finite_vector(a, "members", allow_infinite=True), finite_vector(b, "nonmembers", allow_infinite=True))
        for a, b in pairs
    ]
    usable = [(a, b) for a, b in strata if len(a) and len(b)]
    if not usable:
        raise InputError("an AUROC needs members and non-members in at least one stratum; none has both")
    total = sum(len(a) * len(b) for a, b in usable)
    value = variance = 0.0
    for a, b in usable:
        v10, v01 = _placements(a, b)
        weight = len(a) * len(b) / total
        value += weight * float(v10.mean())
        spread = [np.var(v, ddof=1) / len(v) if len(v) > 1 else math.nan for v in (v10, v01)]
        variance += weight * weight * float(sum(spread))
    value = min(max(value, 0.0), 1.0)
    if variance < 1e-24:
        variance = 0.0  # ties: midrank arithmetic leaves rounding dust where the true variance is zero
    disjoint = sum(min(len(a), len(b)) for a, b in usable)
    low, high, name = _delong_interval(value, variance, disjoint, confidence)
    return AurocEstimate(value, low, high, sum(len(a) + len(b) for a, b in usable), name, math.sqrt(variance))


@dataclass(frozen=True)
class PairedAuroc:
    """Difference a - b of two AUROCs on the same records; `p_value` is None where the difference has variance 0."""

    a: AurocEstimate
    b: AurocEstimate
    difference: Estimate
    se: float
    p_value: float | None


def delong_paired(members_a, nonmembers_a, members_b, nonmembers_b, *, confidence: float = 0.95) -> PairedAuroc:
    """Compare two scores of the same records: z = (A_a - A_b)/se, se^2 = var(V10_a - V10_b)/m + var(V01_a - V01_b)/n.

    Order matters: `members_a[i]` and `members_b[i]` are the same record. The p-value is two-sided normal. Where se is
    0 or undefined the difference's interval is [low_a - high_b, high_a - low_b], which is conservative, and there is
    no p-value.
    """
    first, second = _pair(members_a, nonmembers_a), _pair(members_b, nonmembers_b)
    if len(first[0]) != len(second[0]) or len(first[1]) != len(second[1]):
        raise InputError(
            f"a paired comparison needs the same records: {len(first[0])}+{len(first[1])} against "
            f"{len(second[0])}+{len(second[1])}"
        )
    a, b = delong(*first, confidence=confidence), delong(*second, confidence=confidence)
    gaps = [x - y for x, y in zip(_placements(*first), _placements(*second), strict=True)]
    variance = float(sum(np.var(gap, ddof=1) / len(gap) if len(gap) > 1 else math.nan for gap in gaps))
    value, n = a.value - b.value, a.n
    if variance > 1e-24:
        se = math.sqrt(variance)
        half = special.ndtri(0.5 + confidence / 2) * se
        difference = Estimate(
            value, max(value - half, -1.0), min(value + half, 1.0), n, percent_label("paired DeLong", confidence)
        )
        return PairedAuroc(a, b, difference, se, float(2 * special.ndtr(-abs(value) / se)))
    bounds = Estimate(value, a.low - b.high, a.high - b.low, n, percent_label("two separate intervals", confidence))
    return PairedAuroc(a, b, bounds, 0.0 if variance <= 1e-24 else math.nan, None)


@dataclass(frozen=True)
class TprAtFpr(Estimate):
    """TPR at a false-positive cap: the FPR really spent, the threshold (score >= threshold), and whether the cap is
    resolved.

    `resolved` is False when fewer than 1/cap non-members exist: then no false positive is allowed and the number is
    the TPR at FPR 0, an understatement of the TPR at the cap.
    """

    fpr: float = 0.0
    threshold: float = math.inf
    resolved: bool = True


def tpr_at_fpr(
    members: Float[np.ndarray, " m"], nonmembers: Float[np.ndarray, " n"], fpr: float, *, confidence: float = 0.95
) -> TprAtFpr:
    """Highest TPR over thresholds whose empirical FPR <= `fpr` ("the last threshold with FPR below the cap").

    No interpolation between ROC points: with K = floor(cap n) false positives allowed and c the (K+1)-th largest
    non-member score, TPR = #{members > c} / m. The Clopper-Pearson interval treats the threshold as given: it covers
    the members' sampling, not the non-members'. A cap of 0.01 needs at least 100 non-members (`resolved`).
    Source: Carlini et al. 2022, arXiv 2112.03570, sec. 4 (why low FPR); the convention of the public benchmarks.
    """
    a, b = _pair(members, nonmembers)
    if not 0.0 <= fpr <= 1.0:
        raise InputError(f"fpr must lie in [0, 1], got {fpr}")
    allowed = math.floor(fpr * len(b) + 1e-9)  # 0.29 * 100 is 28.999... in binary
    cut = -math.inf if allowed >= len(b) else float(np.sort(b)[::-1][allowed])
    called = a >= cut if cut == -math.inf and allowed >= len(b) else a > cut
    hits = int(called.sum())
    low, high = clopper_pearson(hits, len(a), confidence=confidence)
    spent = float(np.mean(b > cut)) if allowed < len(b) else 1.0
    return TprAtFpr(
        hits / len(a), float(low), float(high), len(a), percent_label("Clopper-Pearson", confidence), spent,
        float(a[called].min()) if hits else math.inf, allowed >= 1 or fpr == 0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC, from (0, 0) to (1, 1), both coordinates non-decreasing; `threshold[0]` is +inf."""

    fpr: Float[np.ndarray, " points"]
    tpr: Float[np.ndarray, " points"]
    threshold: Float[np.ndarray, " points"]


def _full_roc(a: np.ndarray, b: np.ndarray) -> RocCurve:
    scores = np.concatenate([a, b])
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    member = order < len(a)
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # a tie enters the ROC as one step
    tpr = np.concatenate([[0.0], np.cumsum(member)[last] / len(a)])
    fpr = np.concatenate([[0.0], np.cumsum(~member)[last] / len(b)])
    return RocCurve(fpr, tpr, np.concatenate([[math.inf], ranked[last]]))


def roc_points(members, nonmembers, *, max_points: int = 200) -> RocCurve:
    """The ROC, thinned for a plot with a logarithmic FPR axis: every point is a real operating point.

    Kept: both ends, the last point at FPR 0 (so the curve's left edge is true), and for each of a log-spaced grid of
    FPRs from 1/n to 1 the highest operating point at or below it. The curve is exact when it has no more than
    `max_points` points.
    """
    if max_points < 4:
        raise InputError(f"max_points must be at least 4, got {max_points}")
    a, b = _pair(members, nonmembers)
    curve = _full_roc(a, b)
    if len(curve.fpr) <= max_points:
        return curve
    grid = np.concatenate([[0.0], np.geomspace(1.0 / len(b), 1.0, max_points - 3)])
    keep = np.searchsorted(curve.fpr, grid * (1 + 1e-12), side="right") - 1
    keep = np.unique(np.concatenate([[0], keep, [len(curve.fpr) - 1]]))
    return RocCurve(curve.fpr[keep], curve.tpr[keep], curve.threshold[keep])


def best_balanced_accuracy(members, nonmembers) -> tuple[float, float]:
    """max over thresholds of (TPR + 1 - FPR)/2, and that threshold. Range [0.5, 1].

    The threshold is chosen on the same records, so the number is optimistic in small samples: print it beside the
    AUROC, never instead of it.
    """
    curve = _full_roc(*_pair(members, nonmembers))
    accuracy = (curve.tpr + 1.0 - curve.fpr) / 2.0
    best = int(np.argmax(accuracy))
    return float(accuracy[best]), float(curve.threshold[best])
