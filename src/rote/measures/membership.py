"""Membership scores of single records: one function per published attack, on the matrices of one forward pass.

Every score is larger for records that look more like training data. Inputs are NaN-padded [records, tokens] matrices as
`rote.scores` yields them; every non-NaN position of `logp` is a predicted token. l_t = log p(x_t | x_<t) in nats, T =
number of predicted tokens, L(x) = mean_t l_t; log 0 counts as log of the smallest double. All arithmetic in float64,
vectorised over records; no score is ever NaN: a record without a predicted token is refused with its row number.
Knows nothing about models, texts' meaning, or who is a member; attacks that need other models' statistics over many
trainings are in `rote.measures.reference_models`.
"""

from __future__ import annotations

import zlib as zlib_codec
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from rote.errors import InputError

_VARIANCE_FLOOR = 1e-6  # sigma^2 of Min-K%++; a certain model has sigma -> 0 and z would explode
_NEARLY_ZERO = 1e-6  # |L(x)| floor in ratio scores: a perfectly recited record has L(x) = 0
_IMPOSSIBLE = float(np.log(np.finfo(np.float64).smallest_subnormal))  # about -744, for log 0: differences stay finite
_ROUNDING = 1e-3  # a log-softmax may round this far above zero; beyond it the input is not a log-probability


# --- helpers ---------------------------------------------------------------------------------------------------------


def _log_probabilities(logp, name: str = "logp") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 matrix, mask of predicted positions, and T per record; refuses what cannot be log-probabilities."""
    matrix = np.asarray(logp, dtype=np.float64)
    if matrix.ndim != 2:
        raise InputError(f"{name} must be a [records, tokens] matrix, got shape {matrix.shape}")
    predicted = ~np.isnan(matrix)
    count = predicted.sum(axis=1)
    if (count == 0).any():
        row = int(np.argmin(count))
        raise InputError(
            f"{name} row {row} has no predicted token (a record of one token without BOS?); lengthen or skip the record"
        )
    if (np.where(predicted, matrix, 0.0) > _ROUNDING).any():
        row = int(np.argmax((np.where(predicted, matrix, 0.0) > _ROUNDING).any(axis=1)))
        raise InputError(f"{name} row {row} holds positive values; pass log-probabilities, not probabilities or losses")
    return np.where(np.isneginf(matrix), _IMPOSSIBLE, matrix), predicted, count


def _companion(values, name: str, predicted: np.ndarray) -> np.ndarray:
    """A matrix that must be defined wherever `logp` is."""
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.shape != predicted.shape:
        raise InputError(f"{name} must have logp's shape {predicted.shape}, got {matrix.shape}")
    missing = np.isnan(matrix) & predicted
    if missing.any():
        raise InputError(f"{name} row {int(np.argmax(missing.any(axis=1)))} is NaN at a predicted token")
    return matrix


def _per_record(values, name: str, records: int) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (records,):
        raise InputError(f"{name} must hold one number per record, shape ({records},), got {vector.shape}")
    if np.isnan(vector).any():
        raise InputError(f"{name}[{int(np.argmax(np.isnan(vector)))}] is NaN")
    return vector


def _share(k: float) -> None:
    if not 0.0 < k <= 1.0:
        raise InputError(f"k is a share of the tokens and must lie in (0, 1], got {k}")


def _mean_of_smallest(matrix: np.ndarray, count: np.ndarray, k: float) -> np.ndarray:
    """Mean of the max(1, int(T k)) smallest entries of each row; NaN sorts last, so padding never enters."""
    keep = np.maximum(1, (count * k).astype(np.int64))
    totals = np.cumsum(np.sort(matrix, axis=1), axis=1)
    return np.take_along_axis(totals, keep[:, None] - 1, axis=1)[:, 0] / keep


def _mean(matrix: np.ndarray, selected: np.ndarray) -> np.ndarray:
    return np.where(selected, matrix, 0.0).sum(axis=1) / selected.sum(axis=1)


def _ratio(numerator: np.ndarray, mean_logp: np.ndarray) -> np.ndarray:
    """numerator / L(x), with L(x) kept at or below -1e-6."""
    return numerator / np.minimum(mean_logp, -_NEARLY_ZERO)


def zlib_bytes(texts: Iterable[str]) -> Int[np.ndarray, " records"]:
    """len(zlib.compress(utf8(x))) per text: how many bytes of surprise a general compressor finds.

    Depends on the zlib build (zlib, zlib-ng), so it belongs to the run's versions. Lone surrogates are encoded, not
    refused.
    """
    return np.array([len(zlib_codec.compress(text.encode("utf-8", "surrogatepass"))) for text in texts], dtype=np.int64)


def zlib_bits(texts: Iterable[str]) -> Int[np.ndarray, " records"]:
    """8 x `zlib_bytes`: the zlib entropy in bits of Carlini et al. 2021 (the same ranking; `zlib` divides by bytes)."""
    return 8 * zlib_bytes(texts)


# --- one model, one pass ---------------------------------------------------------------------------------------------


def loss(logp: Float[np.ndarray, "records tokens"]) -> Float[np.ndarray, " records"]:
    """LOSS: s = L(x), the mean log-likelihood in nats per token; range (-inf, 0].

    Source: Yeom et al. 2018, arXiv 1709.01604, sec. 3; for language models Carlini et al. 2021, arXiv 2012.07805, sec.
    5.
    """
    matrix, predicted, _ = _log_probabilities(logp)
    return _mean(matrix, predicted)


def zlib(
    logp: Float[np.ndarray, "records tokens"], zlib_bytes: Int[np.ndarray, " records"]
) -> Float[np.ndarray, " records"]:
    """zlib ratio: s = L(x) / len(zlib.compress(x)); repetitive text is cheap for everyone and is discounted.

    `zlib_bytes` positive. Source: Carlini et al. 2021, arXiv 2012.07805, sec. 5.2.
    """
    mean_logp = loss(logp)
    size = _per_record(zlib_bytes, "zlib_bytes", len(mean_logp))
    if (size <= 0).any():
        raise InputError(f"zlib_bytes[{int(np.argmax(size <= 0))}] must be positive")
    return mean_logp / size


def min_k(logp: Float[np.ndarray, "records tokens"], *, k: float = 0.2) -> Float[np.ndarray, " records"]:
    """Min-K%: s = mean of the max(1, int(T k)) smallest l_t: unseen text has a few very surprising tokens.

    Source: Shi et al. 2024, arXiv 2310.16789, eq. 1 (k = 20 %).
    """
    _share(k)
    matrix, _, count = _log_probabilities(logp)
    return _mean_of_smallest(matrix, count, k)


def standardised_logp(
    logp: Float[np.ndarray, "records tokens"],
    entropy: Float[np.ndarray, "records tokens"],
    std: Float[np.ndarray, "records tokens"],
) -> Float[np.ndarray, "records tokens"]:
    """z_t = (l_t - mu_t)/sigma_t, mu_t = sum_v p_v log p_v = -H_t, sigma_t^2 = max(Var_{v~p}[log p_v], 1e-6); NaN as
    in `logp`.

    Per-token evidence: how much likelier the token is than the model's own typical token here, in standard deviations.
    """
    matrix, predicted, _ = _log_probabilities(logp)
    mu = -_companion(entropy, "entropy", predicted)
    sigma = np.sqrt(np.maximum(_companion(std, "std", predicted) ** 2, _VARIANCE_FLOOR))
    return np.where(predicted, (matrix - mu) / sigma, np.nan)


def min_k_plus_plus(
    logp: Float[np.ndarray, "records tokens"],
    entropy: Float[np.ndarray, "records tokens"],
    std: Float[np.ndarray, "records tokens"],
    *,
    k: float = 0.2,
) -> Float[np.ndarray, " records"]:
    """Min-K%++: s = mean of the max(1, int(T k)) smallest z_t of `standardised_logp`.

    Without the floor on sigma^2, near-certain positions (heavily duplicated text) dominate the mean.
    Source: Zhang et al. 2024, arXiv 2404.02936, eq. 3 (k = 20 %).
    """
    _share(k)
    z = standardised_logp(logp, entropy, std)
    return _mean_of_smallest(z, (~np.isnan(z)).sum(axis=1), k)


def surp(
    logp: Float[np.ndarray, "records tokens"],
    entropy: Float[np.ndarray, "records tokens"],
    *,
    entropy_cap: float = 2.0,
    k: float = 0.2,
) -> Float[np.ndarray, " records"]:
    """SURP: s = mean_{t in S} l_t, S = {t : H_t < eps_e and l_t < the k-quantile of the record's l}: confident and
    wrong.

    `entropy_cap` eps_e in nats and `k` are tuned per model in the paper; the defaults are those of the public
    benchmark. When S is empty the record's least likely confident token stands in, and without a confident token its
    lowest-entropy one. Quantile: linear interpolation between order statistics.
    Source: Zhang & Wu 2024, arXiv 2407.21248, sec. 3.
    """
    _share(k)
    matrix, predicted, count = _log_probabilities(logp)
    uncertainty = np.where(predicted, _companion(entropy, "entropy", predicted), np.inf)
    confident = uncertainty < entropy_cap
    selected = confident & (matrix < _row_quantile(matrix, count, k)[:, None])
    least_likely = np.argmin(np.where(confident, matrix, np.inf), axis=1)
    stand_in = np.where(confident.any(axis=1), least_likely, np.argmin(uncertainty, axis=1))
    empty = np.flatnonzero(~selected.any(axis=1))
    selected[empty, stand_in[empty]] = True
    return _mean(matrix, selected)


def _row_quantile(matrix: np.ndarray, count: np.ndarray, q: float) -> np.ndarray:
    ordered = np.sort(matrix, axis=1)
    position = q * (count - 1)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, count - 1)
    low = np.take_along_axis(ordered, below[:, None], axis=1)[:, 0]
    high = np.take_along_axis(ordered, above[:, None], axis=1)[:, 0]
    return low + (position - below) * (high - low)


def dc_pdd(
    logp: Float[np.ndarray, "records tokens"],
    token_ids: Int[np.ndarray, "records tokens"],
    unigram_counts: Int[np.ndarray, " vocabulary"],
    *,
    cap: float = 0.01,
) -> Float[np.ndarray, " records"]:
    """DC-PDD: s = mean over first occurrences of alpha_t = min(a, p_t log(1/f_t)); range [0, a].

    f_v = (count_v + 1)/(sum count + V), Laplace-smoothed reference-corpus frequency: a token that is likely
    because it is common is worth nothing. `cap` is a. A token counts at its first occurrence in the record (later ones
    are copied from context); a first occurrence at an unpredicted position (the first token without BOS) is lost, and
    a record that has no other one uses every first predicted occurrence instead.
    Errors: `InputError` for a token id outside `unigram_counts`.
    Source: Zhang et al. 2024, arXiv 2409.14781, sec. 3 (a = 0.01).
    """
    matrix, predicted, _ = _log_probabilities(logp)
    ids = np.asarray(token_ids)
    counts = np.asarray(unigram_counts, dtype=np.float64)
    if ids.shape != matrix.shape:
        raise InputError(f"token_ids must have logp's shape {matrix.shape}, got {ids.shape}")
    foreign = predicted & ((ids < 0) | (ids >= len(counts)))
    if foreign.any():
        raise InputError(
            f"token_ids row {int(np.argmax(foreign.any(axis=1)))} has an id outside the {len(counts)} unigram counts; "
            "count the reference corpus with the same tokenizer"
        )
    frequency = (counts + 1.0) / (counts.sum() + len(counts))
    alpha = np.minimum(cap, np.exp(matrix) * -np.log(frequency)[np.where(predicted, ids, 0)])
    selected = first_occurrences(ids) & predicted
    lost = np.flatnonzero(~selected.any(axis=1))
    selected[lost] = first_occurrences(np.where(predicted[lost], ids[lost], -1))
    return _mean(alpha, selected)


def first_occurrences(token_ids: Int[np.ndarray, "records tokens"]) -> Bool[np.ndarray, "records tokens"]:
    """True where an id appears for the first time in its row; negative ids (padding) are never first."""
    ids = np.asarray(token_ids)
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, axis=1)
    first = np.ones(ids.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    out = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(out, order, first, axis=1)
    return out & (ids >= 0)


def gradient_norm(norms: Float[np.ndarray, "records tensors"]) -> Float[np.ndarray, " records"]:
    """GradNorm: s = -mean over parameter tensors of ||grad_theta loss(x)||_p: fitted records sit where the loss is
    flat.

    `norms` are given (one backward pass per record, p of 1, 2 or inf chosen there). Range (-inf, 0].
    Source: Wang et al. 2024, arXiv 2402.17012 (white-box scores); the benchmark of Duan et al. 2024, arXiv 2402.07841.
    """
    matrix = np.asarray(norms, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise InputError(f"norms must be a [records, tensors] matrix, got shape {matrix.shape}")
    bad = ~(matrix >= 0).all(axis=1)
    if bad.any():
        raise InputError(f"norms row {int(np.argmax(bad))} has a negative or NaN norm")
    return -matrix.mean(axis=1)


# --- a second pass ---------------------------------------------------------------------------------------------------


def lowercase(
    logp: Float[np.ndarray, "records tokens"], logp_lowercase: Float[np.ndarray, "records lowercase_tokens"]
) -> Float[np.ndarray, " records"]:
    """Lowercase ratio: s = L(lower(x)) / L(x): log-perplexity of the lower-cased text over that of the text itself.

    Above 1 when the exact casing is known. Source: Carlini et al. 2021, arXiv 2012.07805, sec. 5.2.
    """
    mean_logp, lowered = _two_means(logp, logp_lowercase, "logp_lowercase")
    return _ratio(lowered, mean_logp)


def reference(
    logp: Float[np.ndarray, "records tokens"], logp_reference: Float[np.ndarray, "records reference_tokens"]
) -> Float[np.ndarray, " records"]:
    """Reference calibration: s = L_target(x) - L_reference(x), in nats per token: what this model knows beyond another.

    The reference must not have seen the records. With another tokenizer the two means have different units; compare
    only models that share one.
    Source: Carlini et al. 2021, arXiv 2012.07805, sec. 5.2; Mireshghallah et al. 2022, arXiv 2203.03929.
    """
    mean_logp, other = _two_means(logp, logp_reference, "logp_reference")
    return mean_logp - other


def neighbourhood(
    logp: Float[np.ndarray, "records tokens"], neighbour_means: Float[np.ndarray, "records neighbours"]
) -> Float[np.ndarray, " records"]:
    """Neighbourhood: s = L(x) - mean_j L(x~_j) over slightly reworded neighbours x~_j; `neighbour_means` holds L(x~_j).

    NaN entries are absent neighbours; a record without any is refused.
    Source: Mattern et al. 2023, arXiv 2305.18462, sec. 3.
    """
    mean_logp = loss(logp)
    others, present, _ = _log_probabilities(neighbour_means, "neighbour_means")
    if len(others) != len(mean_logp):
        raise InputError(f"neighbour_means has {len(others)} rows for {len(mean_logp)} records")
    return mean_logp - _mean(others, present)


def recall(
    logp: Float[np.ndarray, "records tokens"], logp_nonmember_prefix: Float[np.ndarray, "records tokens"]
) -> Float[np.ndarray, " records"]:
    """ReCaLL: s = L(x | P)/L(x), P = shots known to be unseen; context the model did not train beside hurts members
    more.

    `logp_nonmember_prefix` covers the record's own tokens only, never those of P.
    Source: Xie et al. 2024, arXiv 2406.15968, sec. 3.
    """
    mean_logp, conditional = _two_means(logp, logp_nonmember_prefix, "logp_nonmember_prefix")
    return _ratio(conditional, mean_logp)


def con_recall(
    logp: Float[np.ndarray, "records tokens"],
    logp_nonmember_prefix: Float[np.ndarray, "records tokens"],
    logp_member_prefix: Float[np.ndarray, "records tokens"],
    *,
    gamma: float = 0.5,
) -> Float[np.ndarray, " records"]:
    """Con-ReCall: s = (L(x | P_non) - gamma L(x | P_mem)) / L(x), gamma in [0, 1]; gamma = 0 is ReCaLL.

    Source: Wang et al. 2025, arXiv 2409.03363, sec. 3.
    """
    if not 0.0 <= gamma <= 1.0:
        raise InputError(f"gamma must lie in [0, 1], got {gamma}")
    mean_logp, unseen = _two_means(logp, logp_nonmember_prefix, "logp_nonmember_prefix")
    seen = _two_means(logp, logp_member_prefix, "logp_member_prefix")[1]
    return _ratio(unseen - gamma * seen, mean_logp)


def _two_means(logp, other, name: str) -> tuple[np.ndarray, np.ndarray]:
    mean_logp = loss(logp)
    matrix, predicted, _ = _log_probabilities(other, name)
    if len(matrix) != len(mean_logp):
        raise InputError(f"{name} has {len(matrix)} rows for {len(mean_logp)} records")
    return mean_logp, _mean(matrix, predicted)


# --- the battery -----------------------------------------------------------------------------------------------------


def battery(
    inputs: Mapping[str, np.ndarray], *, attacks: Sequence[str] | None = None
) -> dict[str, Float[np.ndarray, " records"]]:
    """Every attack whose needs are among `inputs`, or exactly those named: {attack: score per record}.

    Keys of `inputs` are the argument names above (`logp`, `entropy`, `std`, `zlib_bytes`, `token_ids`,
    `unigram_counts`, `logp_reference`, `logp_lowercase`, `neighbour_means`, `logp_nonmember_prefix`,
    `logp_member_prefix`, `norms`), as `rote.measures.catalog.ATTACKS[name].needs` lists them. Default settings
    throughout.
    Errors: `InputError` for an unknown attack, or a named one whose inputs are missing.
    """
    from rote.measures.catalog import ATTACKS

    single = {name: info for name, info in ATTACKS.items() if info.module == "rote.measures.membership"}
    chosen = [name for name, info in single.items() if set(info.needs) <= set(inputs)] if attacks is None else attacks
    scores = {}
    for name in chosen:
        if name not in single:
            raise InputError(f"unknown attack {name!r}; choose from {', '.join(single)}")
        missing = [need for need in single[name].needs if need not in inputs]
        if missing:
            raise InputError(f"attack {name!r} needs {', '.join(missing)}")
        scores[name] = globals()[name](**{need: inputs[need] for need in single[name].needs})
    return scores
