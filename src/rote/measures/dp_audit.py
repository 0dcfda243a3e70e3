"""Privacy auditing in one training run, and the closed forms of Gaussian differential privacy.

Knows counts of guesses, or scores of randomly included records. Knows nothing about the training. An audit gives a
LOWER bound on epsilon: an attack that fails proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, special, stats

from rote.errors import InputError
from rote.measures.statistics import check_confidence, finite_vector

# --- one-run audit ---------------------------------------------------------------------------------------------------


def one_run_p_value(m: int, guesses: int, correct: int, epsilon: float, *, delta: float = 0.0) -> float:
    """Largest probability that an (epsilon, delta)-DP training lets an attack get `correct` of `guesses` right.

    p = P[W >= v] + 2 m delta max_{1<=i<=v} P[v - i <= W < v] / i, W ~ Binomial(r, e^eps/(1 + e^eps)), at most 1.
    Args: `m` records included by independent fair coins; r = `guesses` <= m made on them (the rest abstained); v =
    `correct`.
    Source: Steinke, Nasr & Jagielski 2023, arXiv 2305.08846, thm. 5.2.
    """
    _check_counts(m, guesses, correct, delta)
    q = special.expit(epsilon)
    tail = float(stats.binom.sf(correct - 1, guesses, q))
    if delta == 0.0 or correct == 0:
        return min(tail, 1.0)
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, q))  # P[v - i <= W < v], i = 1..v
    slack = float(np.max(below / np.arange(1, correct + 1)))
    return min(tail + 2.0 * m * delta * slack, 1.0)


def one_run_epsilon(
    m: int, guesses: int, correct: int, *, delta: float = 0.0, confidence: float = 0.95, tolerance: float = 1e-9
) -> float:
    """Largest epsilon refuted at `confidence`: the training is not (eps, delta)-DP for any eps below the result.

    The p-value grows with epsilon; bisection finds where it reaches 1 - confidence. 0 when even epsilon = 0 is not
    refuted, infinity only if every finite epsilon is (never for finite counts).
    The number of guesses must be fixed before seeing which are right; trying several needs the correction
    `one_run_audit` makes.
    """
    _check_counts(m, guesses, correct, delta)
    check_confidence(confidence)
    alpha = 1.0 - confidence

    def refuted(epsilon: float) -> bool:
        return one_run_p_value(m, guesses, correct, epsilon, delta=delta) < alpha

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2.0 * high
    while high - low > tolerance:
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class OneRunAudit:
    """The best lower bound over the numbers of guesses tried, and the guesses it rests on."""

    epsilon: float
    delta: float
    confidence: float
    m: int
    guesses: int
    correct: int
    tried: int


def one_run_audit(
    scores: Float[np.ndarray, " records"],
    included: Bool[np.ndarray, " records"],
    *,
    guesses: int | Sequence[int] | None = None,
    delta: float = 0.0,
    confidence: float = 0.95,
) -> OneRunAudit:
    """epsilon lower bound from one model: guess "in" for the r/2 highest scores, "out" for the r/2 lowest, abstain
    between.

    Args: `scores` larger = more member-like; `included` from independent fair coins, thrown by the auditor (the
    theorem needs this; a member list found afterwards gives no valid bound). `guesses` r, fixed beforehand: one
    number, several (each is then tested at 1 - (1 - confidence)/tries, a Bonferroni correction), or None for all
    records. Ties at a cut are broken by row number; shuffle rows beforehand if their order knows membership.
    Source: Steinke, Nasr & Jagielski 2023, arXiv 2305.08846, alg. 1.
    """
    values = finite_vector(scores, "scores", allow_infinite=True)
    inside = np.asarray(included)
    if inside.shape != values.shape or (inside.dtype != bool and not np.isin(inside, (0, 1)).all()):
        raise InputError(f"included must hold one true/false per score, shape {values.shape}, got {inside.shape}")
    m = len(values)
    tried = [m] if guesses is None else [guesses] if isinstance(guesses, int) else list(guesses)
    if not tried or any(not 1 <= r <= m for r in tried):
        raise InputError(f"guesses must lie between 1 and the {m} records, got {tried}")
    each = 1.0 - (1.0 - confidence) / len(tried)
    descending = inside.astype(bool)[np.argsort(-values, kind="stable")]
    right_in = np.concatenate([[0], np.cumsum(descending)])
    right_out = np.concatenate([[0], np.cumsum(~descending[::-1])])
    best = OneRunAudit(-1.0, delta, confidence, m, 0, 0, len(tried))
    for r in tried:
        correct = int(right_in[(r + 1) // 2] + right_out[r // 2])
        epsilon = one_run_epsilon(m, r, correct, delta=delta, confidence=each)
        if epsilon > best.epsilon:
            best = OneRunAudit(epsilon, delta, confidence, m, r, correct, len(tried))
    return best


def _check_counts(m: int, guesses: int, correct: int, delta: float) -> None:
    if not 0 <= correct <= guesses <= m or guesses < 1:
        raise InputError(f"need 0 <= correct <= guesses <= m, guesses >= 1; got {correct}, {guesses}, {m}")
    if not 0.0 <= delta <= 1.0:
        raise InputError(f"delta must lie in [0, 1], got {delta}")


# --- Gaussian differential privacy -----------------------------------------------------------------------------------


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta(eps) of mu-GDP: Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu); range [0, 1], 0 at mu = 0 for eps >= 0.

    Source: Dong, Roth & Su 2022, arXiv 1905.02383, cor. 2.13; Balle & Wang 2018, arXiv 1805.06530.
    """
    if mu < 0 or epsilon < 0:
        raise InputError(f"epsilon and mu must not be negative, got {epsilon} and {mu}")
    if mu == 0:
        return 0.0
    first = special.log_ndtr(mu / 2 - epsilon / mu)
    second = epsilon + special.log_ndtr(-mu / 2 - epsilon / mu)
    # one factor out, so that two nearly equal tiny terms keep their difference
    return float(max(0.0, -np.exp(first) * np.expm1(min(second - first, 0.0))))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon with `gaussian_delta(epsilon, mu) <= delta`; 0 < delta < 1."""
    if not 0.0 < delta < 1.0:
        raise InputError(f"delta must lie strictly between 0 and 1, got {delta}")
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(high, mu) > delta:
        high *= 2.0
    return _root(lambda e: gaussian_delta(e, mu) - delta, high)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose delta(epsilon) is `delta`: turns an audited (eps, delta) into one number comparable across delta."""
    if not 0.0 < delta < 1.0:
        raise InputError(f"delta must lie strictly between 0 and 1, got {delta}")
    high = 1.0
    while gaussian_delta(epsilon, high) < delta:
        high *= 2.0
        if not math.isfinite(high) or high > 1e6:
            raise InputError(f"no finite mu reaches delta={delta} at epsilon={epsilon}")
    return _root(lambda mu: gaussian_delta(epsilon, mu) - delta, high)


def _root(function: Callable[[float], float], high: float) -> float:
    """Zero of a monotone function between 0 and `high`, to 1e-12."""
    root = optimize.brentq(function, 0.0, high, xtol=1e-12)
    return float(root)  # pyright: ignore[reportArgumentType]
