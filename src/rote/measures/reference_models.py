"""Membership by comparison with other trainings: LiRA and RMIA on statistics that reference (shadow) models already
gave.

Knows nothing about training those models. LiRA asks whether the target's confidence fits the distribution of models
that saw the record better than that of models that did not; RMIA asks whether the record's likelihood ratio beats that
of random population texts. Larger = more member-like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from rote.errors import InputError

_VARIANCE_FLOOR = 1e-12  # identical reference models would divide by zero


def logit(logp: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """phi = log(p/(1-p)) from log p, without forming p: LiRA's scale, on which confidences are nearly Gaussian.

    log p = 0 (certainty in floating point) gives the finite value of the largest representable p below 1, about 36.7.
    """
    logs = np.asarray(logp, dtype=np.float64)
    if np.isnan(logs).any() or (logs > 0).any():
        raise InputError("logit needs log-probabilities: no NaN, nothing above 0")
    return logs - np.log(np.maximum(-np.expm1(logs), np.finfo(np.float64).eps / 2))


def _moments(shadow: np.ndarray, chosen: np.ndarray, which: str, fixed_variance: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (maximum likelihood) over the chosen models, per record."""
    n = chosen.sum(axis=0)
    least = 1 if fixed_variance else 2
    if (n < least).any():
        record = int(np.argmax(n < least))
        raise InputError(
            f"record row {record} has {int(n[record])} reference models {which} training; LiRA needs at least {least}"
            + ("" if fixed_variance else " (or fixed_variance=True)")
        )
    mean = np.where(chosen, shadow, 0.0).sum(axis=0) / n
    squares = np.where(chosen, (shadow - mean) ** 2, 0.0).sum(axis=0)
    if not fixed_variance:
        return mean, np.maximum(squares / n, _VARIANCE_FLOOR)
    freedom = (n - 1).sum()
    if freedom == 0:
        raise InputError(f"fixed_variance needs some record with two reference models {which} training")
    return mean, np.full(len(mean), max(squares.sum() / freedom, _VARIANCE_FLOOR))


def lira(
    target: Float[np.ndarray, " records"],
    shadow: Float[np.ndarray, "models records"],
    included: Bool[np.ndarray, "models records"],
    *,
    mode: str = "online",
    fixed_variance: bool = False,
) -> Float[np.ndarray, " records"]:
    """LiRA. Online: s = log N(phi; mu_in, s_in^2) - log N(phi; mu_out, s_out^2). Offline: s = (phi - mu_out)/s_out.

    Args: `target` phi of the audited model per record, on a scale where confidence is about Gaussian (`logit`, or L(x)
    for a language model); `shadow` the same statistic under each reference model; `included[i, j]` = model i trained on
    record j. `mode` "offline" ignores the models that saw the record.
    `fixed_variance`: one variance for all records, pooled within records (ddof = records), for few reference models;
    per-record variances are maximum likelihood.
    The paper's offline score is Phi of ours: the same ranking, but Phi rounds to 1 beyond 8.3 and its ties would spoil
    the TPR at low FPR. For a p-value of "not a member" take 1 - Phi(s).
    Errors: `InputError` naming the record with too few models on a side (2; 1 with `fixed_variance`).
    Source: Carlini et al. 2022, arXiv 2112.03570, alg. 1, eq. 4 and sec. 6.3.
    """
    phi, reference, mask = np.asarray(target, float), np.asarray(shadow, float), np.asarray(included, bool)
    if mode not in ("online", "offline"):
        raise InputError(f"unknown LiRA mode {mode!r}; choose 'online' or 'offline'")
    if reference.ndim != 2 or reference.shape[1:] != phi.shape or mask.shape != reference.shape:
        raise InputError(
            f"shadow and included must be [models, {len(phi)}] matrices, got {reference.shape} and {mask.shape}"
        )
    if not (np.isfinite(phi).all() and np.isfinite(reference).all()):
        raise InputError("LiRA needs finite statistics; use rote.measures.reference_models.logit on log-probabilities")
    mu_out, var_out = _moments(reference, ~mask, "without it in", fixed_variance)
    if mode == "offline":
        return (phi - mu_out) / np.sqrt(var_out)
    mu_in, var_in = _moments(reference, mask, "with it in", fixed_variance)
    log_in = -0.5 * (phi - mu_in) ** 2 / var_in - 0.5 * np.log(var_in)
    log_out = -0.5 * (phi - mu_out) ** 2 / var_out - 0.5 * np.log(var_out)
    return log_in - log_out


def reference_probability(
    references: Float[np.ndarray, "models records"],
    *,
    included: Bool[np.ndarray, "models records"] | None = None,
    a: float = 0.3,
) -> Float[np.ndarray, " records"]:
    """RMIA's p(x) from log-probabilities under reference models.

    Online (`included` given): (mean_IN p + mean_OUT p)/2. Offline: ((1 + a) mean_OUT p + (1 - a))/2, a in [0, 1]: the
    mean over models that saw x is guessed as a straight line through 1. A record no model saw (or every model saw)
    needs the offline form.
    """
    if not 0.0 <= a <= 1.0:
        raise InputError(f"a must lie in [0, 1], got {a}")
    logs = np.asarray(references, dtype=np.float64)
    if logs.ndim != 2 or len(logs) == 0 or np.isnan(logs).any() or (logs > 1e-3).any():
        raise InputError("references must be a non-empty [models, records] matrix of log-probabilities without NaN")
    p = np.exp(logs)
    if included is None:
        return ((1 + a) * p.mean(axis=0) + (1 - a)) / 2
    mask = np.asarray(included, bool)
    if mask.shape != p.shape:
        raise InputError(f"included must have the shape {p.shape} of references, got {mask.shape}")
    inside, outside = mask.sum(axis=0), (~mask).sum(axis=0)
    if (inside == 0).any() or (outside == 0).any():
        record = int(np.argmax((inside == 0) | (outside == 0)))
        raise InputError(f"record row {record} needs reference models on both sides; use the offline form")
    return (np.where(mask, p, 0).sum(axis=0) / inside + np.where(mask, 0, p).sum(axis=0) / outside) / 2


def rmia(
    target: Float[np.ndarray, " records"],
    references: Float[np.ndarray, "models records"],
    target_population: Float[np.ndarray, " population"],
    references_population: Float[np.ndarray, "models population"],
    *,
    included: Bool[np.ndarray, "models records"] | None = None,
    a: float = 0.3,
    gamma: float = 1.0,
) -> Float[np.ndarray, " records"]:
    """RMIA: s = share of population texts z with LR(x, z) > gamma, LR = [p_target(x)/p(x)] / [p_target(z)/p(z)]; range
    [0, 1].

    Args: log-probabilities throughout (for language models the mean per token, so exp is a per-token probability; joint
    probabilities of long texts would drown in the (1 - a)/2 of the offline p(x)). No model trained on the population.
    `included` selects the online form for x; `a` see `reference_probability`; both use the offline form for z.
    LR > gamma is evaluated as p_t(x)/p(x) > gamma p_t(z)/p(z), strictly: sorted once, then searched, O((X + Z) log Z)
    time and O(X + Z) memory where the matrix of all pairs needs X Z.
    Source: Zarifzadeh et al. 2024, arXiv 2312.03262, eq. 3-5, app. B.2.2 (gamma = 1).
    """
    if not gamma > 0:
        raise InputError(f"gamma must be positive, got {gamma}")
    ratio_x = _ratios(target, reference_probability(references, included=included, a=a), "target")
    ratio_z = _ratios(target_population, reference_probability(references_population, a=a), "target_population")
    if len(ratio_z) == 0:
        raise InputError("RMIA needs at least one population text")
    bar = np.sort(gamma * ratio_z)
    return np.searchsorted(bar, ratio_x, side="left") / len(bar)  # side="left" counts the strictly smaller


def _ratios(logp, probability: np.ndarray, name: str) -> np.ndarray:
    logs = np.asarray(logp, dtype=np.float64)
    if logs.shape != probability.shape:
        raise InputError(f"{name} has shape {logs.shape}, its reference models {probability.shape}")
    if np.isnan(logs).any() or (logs > 1e-3).any():
        raise InputError(f"{name} must hold log-probabilities: no NaN, nothing above 0")
    return np.exp(logs) / np.maximum(probability, np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class TunedA:
    """The offline parameter `a` with the largest AUROC on a paired model, and that AUROC for every candidate."""

    a: float
    candidates: Float[np.ndarray, " candidates"]
    auroc: Float[np.ndarray, " candidates"]


def tune_a(
    target: Float[np.ndarray, " records"],
    references: Float[np.ndarray, "models records"],
    target_population: Float[np.ndarray, " population"],
    references_population: Float[np.ndarray, "models population"],
    member: Bool[np.ndarray, " records"],
    *,
    gamma: float = 1.0,
    candidates: Float[np.ndarray, " candidates"] | None = None,
) -> TunedA:
    """Choose `a` on a *paired* model whose members are known (a reference model in the target's place), never on the
    target.

    Candidates 0, 0.1, ..., 1; the smallest of equals wins. Source: Zarifzadeh et al. 2024, arXiv 2312.03262, app.
    B.2.2.
    """
    from rote.measures.roc import auroc

    grid = np.round(np.arange(11) / 10, 1) if candidates is None else np.asarray(candidates, dtype=np.float64)
    inside = np.asarray(member, bool)
    values = []
    for a in grid:
        score = rmia(target, references, target_population, references_population, a=float(a), gamma=gamma)
        values.append(auroc(score[inside], score[~inside]))
    return TunedA(float(grid[int(np.argmax(values))]), grid, np.array(values))
