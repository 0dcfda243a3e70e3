"""Exposure of planted canaries: how much easier the model finds the planted one than its unplanted siblings.

Knows losses of canaries and of other members of the space R they were drawn from at random. Knows nothing about how
they were planted or scored. Bits: 0 = not memorized, log2|R| = the first guess of an attacker who tries likely ones
first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from rote.errors import InputError
from rote.measures.statistics import clopper_pearson, finite_vector


@dataclass(frozen=True)
class Exposure:
    """Exposure in bits per canary with bounds, and the size of the space in bits (the largest exposure possible).

    `ks_statistic`, `ks_p_value` judge the skew-normal fit on the sample (NaN where nothing was fitted); `shape`,
    `location`, `scale` are its parameters, for losses in nats.
    """

    bits: Float[np.ndarray, " canaries"]
    low: Float[np.ndarray, " canaries"]
    high: Float[np.ndarray, " canaries"]
    log2_space: float
    method: str
    ks_statistic: float = math.nan
    ks_p_value: float = math.nan
    shape: float = math.nan
    location: float = math.nan
    scale: float = math.nan


def _ranks(canary: np.ndarray, others: np.ndarray) -> np.ndarray:
    """1 + #{r : log p(r) >= log p(canary)}: a tie counts against exposure, so a constant model exposes nothing."""
    return 1 + len(others) - np.searchsorted(np.sort(others), canary, side="left")


def exposure_by_enumeration(
    canary_logp: Float[np.ndarray, " canaries"], unplanted_logp: Float[np.ndarray, " candidates"]
) -> Exposure:
    """exposure = log2|R| - log2 rank(canary), |R| = candidates + 1: the whole space scored, no estimate.

    Args: total log-probabilities (equal lengths within R); `unplanted_logp` is R without the canaries. Each canary is
    ranked against the unplanted ones only. Range [0, log2|R|]; `low` = `high` = `bits`.
    Source: Carlini et al. 2019, arXiv 1802.08232, sec. 4.2.
    """
    canary = finite_vector(canary_logp, "canary_logp", allow_infinite=True)
    others = finite_vector(unplanted_logp, "unplanted_logp", allow_infinite=True)
    if len(others) == 0:
        raise InputError("exposure needs unplanted candidates to rank the canary against; none was given")
    space = math.log2(len(others) + 1)
    bits = space - np.log2(_ranks(canary, others))
    return Exposure(bits, bits, bits, space, "enumeration")


def exposure_by_sampling(
    canary_logp: Float[np.ndarray, " canaries"],
    sample_logp: Float[np.ndarray, " sample"],
    *,
    log2_space: float,
    confidence: float = 0.95,
) -> Exposure:
    """exposure = -log2 P_r[log p(r) >= log p(canary)] from a random sample of R, with a Clopper-Pearson interval.

    The estimate uses (hits + 1)/(sample + 1), so it never exceeds log2(sample + 1): a lower estimate once no sampled
    candidate beats the canary (then `high` is log2|R|). No assumption about the distribution.
    Source: Carlini et al. 2019, arXiv 1802.08232, sec. 4.3.
    """
    canary, sample = _sampled(canary_logp, sample_logp, log2_space)
    hits = _ranks(canary, sample) - 1
    low, high = clopper_pearson(hits, len(sample), confidence=confidence)
    with np.errstate(divide="ignore"):
        upper = np.minimum(-np.log2(low), log2_space)
    bits = np.clip(-np.log2((hits + 1) / (len(sample) + 1)), 0.0, log2_space)
    return Exposure(bits, np.minimum(-np.log2(high), bits), np.maximum(upper, bits), log2_space, "sampling")


def exposure_by_extrapolation(
    canary_logp: Float[np.ndarray, " canaries"],
    sample_logp: Float[np.ndarray, " sample"],
    *,
    log2_space: float,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Exposure:
    """exposure = -log2 F(loss(canary)), F a skew-normal fitted to the sampled losses: reaches beyond log2(sample).

    f(x) = (2/omega) phi(z) Phi(alpha z), z = (x - xi)/omega, x = -log p. Fitted by the method of moments (closed
    form, so the result is the same everywhere; the sample skewness is limited to 0.99, just inside the family's 0.995).
    F is integrated in log space: the textbook Phi(z) - 2 T(z, alpha) loses every digit in the tail where memorized
    canaries live. Clipped to [0, log2|R|].
    Bounds: percentile bootstrap of the fit over the sample, not the doubt about the family: read `ks_p_value`, which
    is optimistic (the parameters were fitted on the same sample), and distrust the bits when it is small.
    Errors: `InputError` for a sample below 30 or without spread.
    Source: Carlini et al. 2019, arXiv 1802.08232, sec. 4.3 (approximation by distribution modelling).
    """
    canary, sample = _sampled(canary_logp, sample_logp, log2_space)
    if len(sample) < 30 or not np.isfinite(sample).all() or np.ptp(sample) == 0:
        raise InputError(
            "extrapolated exposure needs 30 or more finite, unequal sampled losses; sample more of the space"
        )
    losses = np.sort(-sample)
    shape, location, scale = (float(v[0]) for v in _fit_skew_normal(losses[None]))
    bits = _exposure_bits(-canary, np.array([[shape, location, scale]]), log2_space)[0]
    generator = np.random.default_rng(seed)
    block = max(1, (1 << 21) // len(losses))  # resampled losses alive at once: 16 MB
    fits = [
        np.stack(
            _fit_skew_normal(losses[generator.integers(0, len(losses), (min(block, resamples - start), len(losses)))]),
            1,
        )
        for start in range(0, resamples, block)
    ]
    draws = _exposure_bits(-canary, np.concatenate(fits), log2_space)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    fit = stats.kstest(losses, lambda x: np.exp(_log_cdf((x - location) / scale, np.full(len(x), shape))))
    return Exposure(
        bits, np.minimum(low, bits), np.maximum(high, bits), log2_space, "skew-normal extrapolation",
        float(fit.statistic), float(fit.pvalue), shape, location, scale,
    )  # fmt: skip


def _sampled(canary_logp, sample_logp, log2_space: float) -> tuple[np.ndarray, np.ndarray]:
    canary = finite_vector(canary_logp, "canary_logp", allow_infinite=True)
    sample = finite_vector(sample_logp, "sample_logp", allow_infinite=True)
    if len(sample) == 0:
        raise InputError("exposure needs sampled candidates; none was given")
    if not (math.isfinite(log2_space) and log2_space > 0):
        raise InputError(f"log2_space must be positive (9 decimal digits: log2(1e9) = 29.9), got {log2_space}")
    return canary, sample


def _fit_skew_normal(losses: Float[np.ndarray, "fits sample"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(alpha, xi, omega) per row from mean, standard deviation and skewness (Azzalini 1985, Scand. J. Stat. 12)."""
    mean, std = losses.mean(axis=1), losses.std(axis=1)
    std = np.where(std > 0, std, 1e-12)  # a bootstrap draw may hit one value only
    skew = np.clip((((losses - mean[:, None]) / std[:, None]) ** 3).mean(axis=1), -0.99, 0.99)
    power = np.abs(skew) ** (2 / 3)
    delta = np.sign(skew) * np.sqrt(np.pi / 2 * power / (power + ((4 - np.pi) / 2) ** (2 / 3)))
    omega = std / np.sqrt(1 - 2 * delta**2 / np.pi)
    return delta / np.sqrt(1 - delta**2), mean - omega * delta * np.sqrt(2 / np.pi), omega


def _exposure_bits(loss: np.ndarray, fits: np.ndarray, log2_space: float) -> np.ndarray:
    """[fits, canaries] bits; an infinite loss (impossible canary) has exposure 0."""
    z = (loss[None, :] - fits[:, 1:2]) / fits[:, 2:3]
    logs = _log_cdf(np.clip(z, -1e6, 1e6).ravel(), np.repeat(fits[:, 0], len(loss))).reshape(z.shape)
    return np.clip(-logs / math.log(2), 0.0, log2_space)


# Gauss-Laguerre: int_0^inf e^-u g(u) du, for F(z) = f(z) int_0^inf f(z - s)/f(z) ds with s = u / decay rate at z
_NODES, _WEIGHTS = np.polynomial.laguerre.laggauss(64)


def _log_cdf(z: Float[np.ndarray, " points"], alpha: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """log F(z) of the standard skew-normal, accurate in both tails.

    Left of -1 (where the density rises steeply) by Gauss-Laguerre on the ratio f(z - s)/f(z); elsewhere by Owen's T,
    which is accurate when F is not small.
    """
    central = special.ndtr(z) - 2 * special.owens_t(z, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.where(central > 1e-4, np.log(np.maximum(central, 1e-300)), -np.inf)
    tail = np.flatnonzero(central <= 1e-4)
    if len(tail):
        x, a = z[tail], alpha[tail]

        def log_density(point: np.ndarray, slant: np.ndarray) -> np.ndarray:
            return math.log(2 / math.sqrt(2 * math.pi)) - point**2 / 2 + special.log_ndtr(slant * point)

        # d/dz log f = -z + alpha phi(alpha z)/Phi(alpha z): how fast the tail falls, in log space again
        mills = np.exp(-((a * x) ** 2) / 2 - math.log(math.sqrt(2 * math.pi)) - special.log_ndtr(a * x))
        rate = np.maximum(-x + a * mills, 0.1)[:, None]
        logs = log_density(x[:, None] - _NODES / rate, a[:, None]) + _NODES + np.log(_WEIGHTS)
        out[tail] = special.logsumexp(logs, axis=1) - np.log(rate[:, 0])
    return np.minimum(out, 0.0)
