"""(eps, n, p)-discoverable extraction: the probability of reciting a suffix approximately.

    p_{z,eps} = sum over s with dist(s, y) <= eps of q(s | prefix)

One forward pass does not give it (after a substitution the later contexts change). Here are the pure parts of three
estimators: Monte Carlo with its interval, the exact sum for Hamming distance 1, and a constrained beam search that
brackets p_{z,eps} from below and above. All in log space; n follows from p_{z,eps} exactly as from p_z.

Knows nothing about models: continuations are token arrays, and the beam asks a callable for log q.
Source: Hayes et al. 2024, arXiv 2410.19482, section 3 (definition); Cooper et al. 2026, arXiv 2603.24917 (a
decoding-constrained beam search; the algorithm below is our own).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from rote.errors import InputError
from rote.measures.statistics import check_confidence, clopper_pearson

NextLogQ = Callable[[Int[np.ndarray, "beams length"]], Float[np.ndarray, "beams vocabulary"]]


# --- distances -------------------------------------------------------------------------------------------------------


def token_hamming(samples: Int[np.ndarray, "samples k"], target: Int[np.ndarray, " k"]) -> Int[np.ndarray, " samples"]:
    """#{t : s_t != y_t}; range [0, k]."""
    samples, target = _matched(samples, target)
    return (samples != target).sum(axis=1)


def token_levenshtein(
    samples: Int[np.ndarray, "samples m"], target: Int[np.ndarray, " k"]
) -> Int[np.ndarray, " samples"]:
    """Fewest token insertions, deletions and substitutions that turn s into y; range [0, max(m, k)]."""
    from rapidfuzz.distance import Levenshtein

    goal = np.asarray(target).tolist()
    return _per_distinct(samples, lambda sample: Levenshtein.distance(sample, goal), np.int64)


def one_minus_bleu(
    samples: Int[np.ndarray, "samples m"], target: Int[np.ndarray, " k"], *, order: int = 4
) -> Float[np.ndarray, " samples"]:
    """1 - BLEU(s, y) on tokens; range [0, 1], 0 for equal sequences.

    BLEU = min(1, exp(1 - k/m)) exp(mean_{n <= N} log(clipped n-gram matches / n-grams of s)), N = min(order, k, m),
    without smoothing (one n-gram order without a match gives 1).
    Source: Papineni et al. 2002; as an extraction criterion (BLEU > 0.75) Ippolito et al. 2022, arXiv 2210.17546.
    """
    if order < 1:
        raise InputError(f"BLEU needs an n-gram order of at least 1, not {order}")
    goal = np.asarray(target).tolist()

    def distance(sample: list[int]) -> float:
        highest = min(order, len(goal), len(sample))
        if highest == 0:
            return float(len(goal) != len(sample))
        logs = 0.0
        for n in range(1, highest + 1):
            mine, theirs = _ngrams(sample, n), _ngrams(goal, n)
            matches = sum((mine & theirs).values())
            if matches == 0:
                return 1.0
            logs += np.log(matches / mine.total())
        return float(1.0 - min(1.0, np.exp(1.0 - len(goal) / len(sample))) * np.exp(logs / highest))

    return _per_distinct(samples, distance, np.float64)


DISTANCES: dict[str, Callable] = {"hamming": token_hamming, "levenshtein": token_levenshtein, "bleu": one_minus_bleu}


def _matched(samples, target) -> tuple[np.ndarray, np.ndarray]:
    samples, target = np.asarray(samples), np.asarray(target)
    if samples.ndim != 2 or target.ndim != 1 or samples.shape[1] != len(target):
        raise InputError(
            f"Hamming distance needs samples [n, k] and a target [k], got {samples.shape} and {target.shape}"
        )
    return samples, target


def _per_distinct(samples, distance: Callable, kind) -> np.ndarray:
    """A distance of each distinct row, handed back to all rows: samples of memorized text repeat themselves."""
    samples = np.asarray(samples)
    if samples.ndim != 2:
        raise InputError(f"samples must be a [samples, tokens] matrix, got shape {samples.shape}")
    if not len(samples):
        return np.zeros(0, kind)
    rows, inverse = np.unique(samples, axis=0, return_inverse=True)
    return np.array([distance(row) for row in rows.tolist()], kind)[inverse.reshape(-1)]


def _ngrams(sequence: list[int], n: int) -> Counter:
    return Counter(tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1))


# --- Monte Carlo -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MonteCarloEstimate:
    """p_hat = hits/samples with a Clopper-Pearson interval, per record. `rule_of_three` is the one-sided 95 % upper
    bound 3/samples where nothing hit, NaN elsewhere."""

    hits: Int[np.ndarray, " records"]
    samples: Int[np.ndarray, " records"]
    estimate: Float[np.ndarray, " records"]
    low: Float[np.ndarray, " records"]
    high: Float[np.ndarray, " records"]
    rule_of_three: Float[np.ndarray, " records"]
    confidence: float


def monte_carlo(
    hits: Int[np.ndarray, " records"], samples: int | Int[np.ndarray, " records"], *, confidence: float = 0.95
) -> MonteCarloEstimate:
    """p_{z,eps} from R sampled continuations, `hits` of which lie within eps; all values in [0, 1].

    About 100,000 samples are needed before small values are reliable (Cooper et al. 2026, arXiv 2603.24917).
    Errors: InputError for no samples, or hits outside [0, samples].
    """
    check_confidence(confidence)
    hits, samples = np.broadcast_arrays(np.asarray(hits, np.int64), np.asarray(samples, np.int64))
    if (samples < 1).any():
        raise InputError("a Monte Carlo estimate needs at least one sample")
    low, high = clopper_pearson(hits, samples, confidence=confidence)
    return MonteCarloEstimate(
        hits,
        samples,
        hits / samples,
        np.asarray(low),
        np.asarray(high),
        np.where(hits == 0, np.minimum(1.0, 3.0 / samples), np.nan),
        confidence,
    )


# --- exact, Hamming distance 1 ---------------------------------------------------------------------------------------


def hamming1_log_probability(
    logq: Float[np.ndarray, " k"],
    branch_logq: Float[np.ndarray, "k alternatives"],
    rest_logq: Float[np.ndarray, "k alternatives"],
) -> float:
    """log p_{z,1} = log[ prod_t q_t + sum_j sum_{v != y_j} prod_{t<j} q_t . q(v | y_<j) . q(y_{>j} | y_<j v) ].

    `logq[t]` = log q(y_t | prefix, y_<t); `branch_logq[j, i]` = log q of the i-th alternative at position j, -inf as
    padding; `rest_logq[j, i]` = log q of the true rest of the suffix after that alternative (0 at the last position).
    Range (-inf, 0]; -inf when nothing within one substitution is possible.
    """
    logq, branch, rest = (np.asarray(each, np.float64) for each in (logq, branch_logq, rest_logq))
    if logq.ndim != 1 or branch.shape != rest.shape or branch.ndim != 2 or len(branch) != len(logq):
        raise InputError(
            f"expected logq [k] and two [k, alternatives] matrices, got {logq.shape}, {branch.shape}, {rest.shape}"
        )
    before = np.concatenate([[0.0], np.cumsum(logq)])
    # A branch is padding where its own log q is -inf; whatever stands in `rest` there must not matter.
    mass = np.where(np.isneginf(branch), -np.inf, branch + np.where(np.isneginf(branch), 0.0, rest)) + before[:-1, None]
    return min(0.0, _logsumexp(np.append(mass.ravel(), before[-1])))


# --- constrained beam ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BeamBound:
    """log_lower <= log p_{z,eps} <= log_upper; `exact` when nothing was pruned (then they are equal).

    `tokens`, `logq`, `mismatches` are the finished beams, most probable first.
    """

    log_lower: float
    log_upper: float
    exact: bool
    tokens: Int[np.ndarray, "beams k"]
    logq: Float[np.ndarray, " beams"]
    mismatches: Int[np.ndarray, " beams"]


def constrained_beam(next_logq: NextLogQ, target: Int[np.ndarray, " k"], *, eps: int, width: int = 32) -> BeamBound:
    """Bracket p_{z,eps} (Hamming) by the continuations that a beam of `width` finds within eps mismatches.

    Beams carry (tokens, log q, mismatches). Each step extends them by the scheme's support, drops what exceeds eps
    mismatches, and keeps the `width` most probable; the verbatim beam is never pruned, so p_z <= lower bound. The sum
    of finished beams is a lower bound, and adding the probability of every pruned beam an upper one. With width >= all
    candidates nothing is pruned and both equal p_{z,eps}. The two bounds hold for every width; a wider beam is tighter
    almost always, but no theorem says so (beams that look better early may push out one that ends better).

    `next_logq(tokens [beams, t])` returns log q(. | prefix, tokens) [beams, vocabulary]; it is called once per
    position, with rows that extend rows of the call before.
    Errors: InputError for eps < 0, width < 1 or an empty target.
    """
    target = np.asarray(target, np.int64)
    if eps < 0 or width < 1 or target.ndim != 1 or not len(target):
        raise InputError(
            f"the beam needs eps >= 0, width >= 1 and a non-empty target [k], got {eps}, {width}, {target.shape}"
        )
    tokens, logq, mismatches = np.zeros((1, 0), np.int64), np.zeros(1), np.zeros(1, np.int64)
    pruned: list[float] = []
    for y in target:
        total = logq[:, None] + np.asarray(next_logq(tokens), np.float64)
        hit = total[:, y].copy()
        total[mismatches >= eps] = -np.inf
        total[:, y] = hit
        flat = total.ravel()
        possible = np.flatnonzero(flat > -np.inf)
        verbatim = np.flatnonzero(mismatches == 0) * total.shape[1] + y  # at most one beam has no mismatch
        if len(possible) > width:
            ranked = possible[np.argsort(-flat[possible], kind="stable")]
            kept = ranked[:width]
            if len(verbatim) and flat[verbatim[0]] > -np.inf and verbatim[0] not in kept:
                kept = np.append(kept[:-1], verbatim[0])
            pruned.append(_logsumexp(flat[np.setdiff1d(ranked, kept)]))
        else:
            kept = possible[np.argsort(-flat[possible], kind="stable")]
        beam, token = np.divmod(kept, total.shape[1])
        tokens = np.concatenate([tokens[beam], token[:, None]], axis=1)
        logq, mismatches = flat[kept], mismatches[beam] + (token != y)
        if not len(kept):
            tokens = np.zeros((0, len(target)), np.int64)
            break
    lower = min(0.0, _logsumexp(logq))
    return BeamBound(lower, min(0.0, _logsumexp(np.array([lower, *pruned]))), not pruned, tokens, logq, mismatches)


def within(
    samples: Int[np.ndarray, "samples k"], target: Int[np.ndarray, " k"], *, eps: float, distance: str = "hamming"
) -> Bool[np.ndarray, " samples"]:
    """dist(s, y) <= eps per sample, for a distance of `DISTANCES` (eps counts tokens, or is 1 - BLEU)."""
    if distance not in DISTANCES:
        raise InputError(f"unknown distance {distance!r}; choose from {', '.join(DISTANCES)}")
    return DISTANCES[distance](samples, target) <= eps


def _logsumexp(values: np.ndarray) -> float:
    return float(logsumexp(values)) if len(values) and np.max(values) > -np.inf else -np.inf
