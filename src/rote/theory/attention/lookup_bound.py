"""Theorem 2: how far a noisy look-up table is from the best sequence encoder, from nearly orthogonal unembeddings.

Knows the bound with every constant, and the encoder E = lambda W_g behind it, so that the bound can be checked. When
the coherence C reaches 1/2 the theorem says nothing and the label is "vacuous".

Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, Theorem 2 and appendix A.3). H in the paper is sum pi log pi, at
most 0: "H = -log N" is the uniform distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq

from rote.errors import InputError
from rote.theory.attention.checks import check_distribution, check_prior


@dataclass(frozen=True)
class LookupBound:
    """`bound`, `simple`: nats, or None when vacuous. `derived` uses 1 + 2C alone in the numerator, which the proof's
    own first line gives without the total variation (derived here, never above `bound`)."""

    coherence: float
    label: str
    bound: float | None
    simple: float | None
    derived: float | None


def coherence(d: int, vocab: int) -> float:
    """C = sqrt(32 log(N + 1) / d): some W in R^{N x d} has |W W^T - I|_max <= C."""
    return math.sqrt(32 * math.log(vocab + 1) / d)


def smallest_useful_d(vocab: int) -> int:
    """The least d with C < 1/2, that is d > 128 log(N + 1)."""
    return math.floor(128 * math.log(vocab + 1)) + 1


def negative_entropy(pi: Float[np.ndarray, "contexts vocab"]) -> Float[np.ndarray, " contexts"]:
    """The paper's H = sum_j pi_j log pi_j per context, 0 log 0 = 0. Range [-log N, 0]; 0 for a point mass."""
    return (pi * np.log(np.where(pi > 0, pi, 1.0))).sum(axis=1)


def theorem2(
    pi: Float[np.ndarray, "contexts vocab"],
    lookup: Int[np.ndarray, " contexts"],
    *,
    d: int | None = None,
    measured_coherence: float | None = None,
    prior: Float[np.ndarray, " contexts"] | None = None,
) -> LookupBound:
    """d_KL(pi, L) <= E[(1 - pi(g|t)) (1 + 2C + C TV(pi~, unif))/(1 - 2C) log((N-1)/(e^{-H} - 1))], in nats.

    pi~ is pi(.|t) without g, renormalised, unif is uniform on the same N - 1 tokens, and TV = sum |pi~ - unif| / 2.
    simple: (1+4C)/(1-2C) E[pi(!=g)] log((N-1)/(e^{-E[H]} - 1)), as printed; it multiplies two expectations, so it is
    quoted and not claimed to bound.
    C comes from `d`, or is `measured_coherence` = |W W^T - I|_max of a W at hand. One of the two must be given.
    """
    pi, lookup, prior = _checked(pi, lookup, prior)
    if (d is None) == (measured_coherence is None):
        raise InputError("theorem2 needs either d or measured_coherence, one of the two")
    vocab = pi.shape[1]
    c = coherence(d, vocab) if d is not None else float(measured_coherence or 0.0)
    if c >= 0.5:
        return LookupBound(c, "vacuous: C >= 1/2, the theorem says nothing at this d", None, None, None)
    rows = np.arange(len(pi))
    wrong = 1 - pi[rows, lookup]
    rest = pi.copy()
    rest[rows, lookup] = 0
    others = rest / np.where(wrong > 0, wrong, 1.0)[:, None]
    uniform = np.full_like(pi, 1 / (vocab - 1))
    uniform[rows, lookup] = 0
    distance = 0.5 * np.abs(others - uniform).sum(axis=1)
    growth = _log_ratio(negative_entropy(pi), vocab)
    # A point mass on g has wrong = 0 and an infinite logarithm; their product tends to 0.
    product = np.where(wrong > 0, wrong * np.where(np.isfinite(growth), growth, 0.0), 0.0)
    if ((wrong > 0) & ~np.isfinite(growth)).any():
        return LookupBound(c, "vacuous: a context is certain of a token other than its look-up", None, None, None)
    mean_growth = float(_log_ratio(np.array([prior @ negative_entropy(pi)]), vocab)[0])
    mean_wrong = float(prior @ wrong)
    return LookupBound(
        coherence=c,
        label="upper bound on the best encoder's KL",
        bound=float(prior @ (product * (1 + 2 * c + c * distance))) / (1 - 2 * c),
        simple=(1 + 4 * c) / (1 - 2 * c) * mean_wrong * mean_growth if mean_wrong > 0 else 0.0,
        derived=float(prior @ product) * (1 + 2 * c) / (1 - 2 * c),
    )


def lookup_encoder(
    pi: Float[np.ndarray, "contexts vocab"],
    lookup: Int[np.ndarray, " contexts"],
    unembedding: Float[np.ndarray, "vocab d"],
) -> Float[np.ndarray, "contexts vocab"]:
    """Logits lambda(t) W W_g of the theorem's encoder, lambda solving -H = log sum_j exp(lambda (W_j - W_g)^T W_g).

    Needs pi(.|t) not a point mass (lambda would be infinite) and coherence below 1/2. Errors: `InputError` otherwise.
    """
    pi, lookup, _ = _checked(pi, lookup, None)
    entropy = -negative_entropy(pi)
    if (entropy <= 0).any():
        raise InputError(
            f"context {int(np.argmin(entropy))}: a point mass needs lambda = infinity; use the circle code"
        )
    out = np.empty_like(pi)
    for row, token in enumerate(lookup):
        scores = unembedding @ unembedding[token]
        gaps = scores - scores[token]

        def surplus(scale: float, gaps=gaps, target=entropy[row]) -> float:
            return float(np.log(np.exp(scale * gaps).sum()) - target)

        if np.delete(gaps, token).max() >= 0:
            raise InputError(
                f"token {int(token)} does not win its own direction: the unembedding's coherence is too high"
            )
        high = 1.0
        while surplus(high) > 0:
            high *= 2
        scale = 0.0 if surplus(0.0) <= 0 else float(brentq(surplus, 0.0, high, xtol=1e-14, rtol=1e-14))  # type: ignore[arg-type]
        out[row] = scale * scores
    return out


def _log_ratio(negative: np.ndarray, vocab: int) -> np.ndarray:
    """log((N-1)/(e^{-H} - 1)), infinite at H = 0."""
    with np.errstate(divide="ignore"):
        return math.log(vocab - 1) - np.log(np.expm1(-negative))


def _checked(pi, lookup, prior) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pi, lookup = check_distribution(pi), np.asarray(lookup)
    if lookup.shape != (len(pi),) or (lookup < 0).any() or (lookup >= pi.shape[1]).any():
        raise InputError(f"the look-up table needs one token id of [0, {pi.shape[1]}) for each of {len(pi)} contexts")
    return pi, lookup, check_prior(prior, len(pi))
