"""(n, p)-discoverable extraction from per-token probabilities, without generating one token.

With q the decoding scheme's distribution and y the k suffix tokens after an a-token prefix,

    p_z = prod_{t=a+1}^{a+k} q(z_t | z_<t)                      (log p_z is a sum; -inf: impossible under the scheme)
    z is (n, p)-extractable  <=>  1 - (1 - p_z)^n >= p  <=>  p_z >= tau(n, p) = 1 - (1 - p)^(1/n)
    rate(n, p) = mean_z 1[p_z >= tau(n, p)]                     (the survival function of p_z, read at tau)

Everything stays in log space with log1p and expm1: p_z = 1e-20 and n = 1e20 are ordinary numbers here.
Source: Hayes et al. 2024, arXiv 2410.19482, section 3. Knows nothing about: models, tokenizers, files.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from rote.errors import InputError

_CERTAIN = -1e-7  # a float32 sum of log-probabilities this close to zero is a probability of one


def log_pz(
    logq: Float[np.ndarray, "records tokens"], prefix: Int[np.ndarray, " records"], suffix: Int[np.ndarray, " records"]
) -> Float[np.ndarray, " records"]:
    """log p_z = sum of log q over tokens a <= t < a + k, in nats and float64; -inf when any of them is impossible.

    A suffix that begins at a token nothing predicts (the first one, without BOS) is an error.
    """
    matrix = np.asarray(logq, np.float64)
    t = np.arange(matrix.shape[1])
    inside = (t >= np.asarray(prefix)[:, None]) & (t < (np.asarray(prefix) + np.asarray(suffix))[:, None])
    if (np.isnan(matrix) & inside).any():
        row = int(np.argmax((np.isnan(matrix) & inside).any(axis=1)))
        raise InputError(
            f"record row {row}: its suffix holds a token with no probability; the prefix must have a token"
        )
    return np.where(inside, matrix, 0.0).sum(axis=1)


def window_log_pz(logq: Float[np.ndarray, "records tokens"], length: int) -> Float[np.ndarray, "records starts"]:
    """log p of every run of `length` tokens of a record, given all true tokens before it, by cumulative sums.

    Entry [r, t] is the run that starts at token t; NaN where it would leave the record or start at an unpredicted
    token.
    """
    matrix = np.asarray(logq, np.float64)
    known = ~np.isnan(matrix)
    finite = known & ~np.isneginf(matrix)
    starts = matrix.shape[1] - length + 1
    if starts < 1:
        return np.full((len(matrix), 0), np.nan)

    def run(values):
        sums = np.concatenate([np.zeros((len(matrix), 1)), np.cumsum(values, axis=1)], axis=1)
        return sums[:, length:] - sums[:, :-length]

    total = run(np.where(finite, matrix, 0.0))
    total[run(finite.astype(float)) < run(known.astype(float))] = -np.inf
    total[run(known.astype(float)) < length] = np.nan
    return total


def log_tau(n: ArrayLike, p: ArrayLike) -> Float[np.ndarray, ...]:
    """log tau(n, p), tau = 1 - (1 - p)^(1/n): the least p_z at which n queries succeed with probability p (0 < p <
    1)."""
    n, p = _grid(n, p)
    return np.log(-np.expm1(np.log1p(-p) / n))


def queries_needed(
    log_pz: Float[np.ndarray, " records"], p: float, *, whole: bool = True
) -> Float[np.ndarray, " records"]:
    """n = log(1 - p) / log(1 - p_z): queries that recite the record with probability p. float64, as n may exceed int64.

    inf where p_z = 0; at least 1; rounded up to whole queries unless `whole` is False.
    """
    _grid(1.0, p)
    lp = np.minimum(np.asarray(log_pz, np.float64), 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        # log(1 - p_z); for tiny p_z it is -p_z to the last digit and log1p(-exp) says so by itself.
        n = np.log1p(-p) / np.log1p(-np.exp(lp))
        n = np.where(lp < -700, -np.log1p(-p) * np.exp(-np.maximum(lp, -709.0)), n)
    n = np.where(np.isneginf(lp), np.inf, np.where(lp > _CERTAIN, 1.0, n))
    if whole:
        # Guard the ceiling against the last digit: n(p_z = tau(n, p)) must be n, not n + 1.
        n = np.ceil(n * (1 - 1e-12))
    return np.maximum(n, 1.0)


def success(log_pz: Float[np.ndarray, " records"], n: float) -> Float[np.ndarray, " records"]:
    """1 - (1 - p_z)^n: the probability that n independent queries recite the record at least once."""
    with np.errstate(divide="ignore"):
        return -np.expm1(n * np.log1p(-np.exp(np.minimum(np.asarray(log_pz, np.float64), 0.0))))


def extractable(log_pz: Float[np.ndarray, " records"], n: float, p: float) -> Bool[np.ndarray, " records"]:
    """Which records are (n, p)-extractable."""
    return np.asarray(log_pz, np.float64) >= log_tau(n, p) - 1e-12


def rate(
    log_pz: Float[np.ndarray, " records"], n: Float[np.ndarray, " queries"], p: Float[np.ndarray, " levels"]
) -> Float[np.ndarray, "queries levels"]:
    """The (n, p) surface: share of records with p_z >= tau(n, p), for all n and p at once (one sort, then look-ups)."""
    values = np.sort(np.asarray(log_pz, np.float64))
    if not len(values):
        raise InputError("no records: an extraction rate needs at least one")
    thresholds = log_tau(np.asarray(n, np.float64)[:, None], np.asarray(p, np.float64)[None, :]) - 1e-12
    return (len(values) - np.searchsorted(values, thresholds, side="left")) / len(values)


def ceiling(log_pz: Float[np.ndarray, " records"]) -> float:
    """Share of records with p_z > 0: what any number of queries can reach under the scheme."""
    return float(np.mean(~np.isneginf(np.asarray(log_pz, np.float64))))


def greedy_extractable(
    greedy: Bool[np.ndarray, "records tokens"], prefix: Int[np.ndarray, " records"], suffix: Int[np.ndarray, " records"]
) -> Bool[np.ndarray, " records"]:
    """Does greedy decoding from the prefix emit the suffix? Every suffix token is the argmax given the true tokens
    before
    it; as long as that holds, the generated tokens are the true ones, so no generation is needed."""
    t = np.arange(greedy.shape[1])
    inside = (t >= np.asarray(prefix)[:, None]) & (t < (np.asarray(prefix) + np.asarray(suffix))[:, None])
    return (np.asarray(greedy, bool) | ~inside).all(axis=1)


def extraction_strength(
    greedy: Bool[np.ndarray, "records tokens"], predicted: Bool[np.ndarray, "records tokens"]
) -> Float[np.ndarray, " records"]:
    """1 - j/T: j the fewest leading tokens that must be given so that every later one is the argmax (0 when the last
    token is wrong, 1 when all are right). T counts the predicted tokens. Source: Carlini et al. 2021, arXiv
    2012.07805."""
    greedy, predicted = np.asarray(greedy, bool), np.asarray(predicted, bool)
    right = np.where(predicted, greedy, True)
    # Length of the run of right tokens at the end: walk back while everything is right.
    tail = np.logical_and.accumulate(right[:, ::-1], axis=1)[:, ::-1] & predicted
    return tail.sum(axis=1) / np.maximum(predicted.sum(axis=1), 1)


def _grid(n, p) -> tuple[np.ndarray, np.ndarray]:
    n, p = np.asarray(n, np.float64), np.asarray(p, np.float64)
    if (n < 1).any():
        raise InputError(f"a number of queries must be at least 1, not {float(n.min()):g}")
    if ((p <= 0) | (p >= 1)).any():
        raise InputError("a success probability p must lie strictly between 0 and 1")
    return n, p
