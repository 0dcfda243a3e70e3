"""Uncertainty: an interval for every number a finding reports.

Knows binomial intervals, the bootstrap, rank correlation, the two-sample KS test and false-discovery control, and hands
out the ranking statistics of `rote.measures.roc` under the same roof. Knows nothing about models, records or what a
number means; a caller passes arrays and gets an `Estimate`. NaN never enters silently: it is refused with its position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from rote.errors import InputError


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. `low`/`high` are NaN where no interval exists (one observation, say)."""

    value: float
    low: float
    high: float
    n: int
    interval: str

    def as_dict(self) -> dict[str, float | int | str | None]:
        """The keys of a findings value; NaN and infinities become None, because JSON has neither."""

        def finite(number: float) -> float | None:
            return float(number) if math.isfinite(number) else None

        return {
            "value": finite(self.value),
            "low": finite(self.low),
            "high": finite(self.high),
            "n": int(self.n),
            "interval": self.interval,
        }


def percent_label(method: str, confidence: float) -> str:
    """`percent_label("Wilson", .95)` is `"Wilson 95%"`: the wording of `Estimate.interval`."""
    return f"{method} {100 * confidence:.6g}%"


def check_confidence(confidence: float) -> None:
    """Refuse a confidence level outside (0, 1)."""
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence must lie strictly between 0 and 1, got {confidence}; 0.95 is usual")


def finite_vector(values, name: str, *, allow_infinite: bool = False) -> Float[np.ndarray, " n"]:
    """`values` as a float64 vector, or an `InputError` that names the first entry that is not a number."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"{name} must be one-dimensional, got shape {array.shape}")
    bad = np.isnan(array) if allow_infinite else ~np.isfinite(array)
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(f"{name}[{first}] is {array[first]}; drop or repair it before measuring")
    return array


# --- proportions -----------------------------------------------------------------------------------------------------


def _counts(successes, trials) -> tuple[np.ndarray, np.ndarray]:
    hits, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64))
    if np.isnan(hits).any() or np.isnan(n).any() or (hits < 0).any() or (hits > n).any():
        raise InputError("successes must lie between 0 and trials in every cell")
    return hits, n


def clopper_pearson(successes, trials, *, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Exact binomial interval: low = Beta(alpha/2; x, n-x+1), high = Beta(1-alpha/2; x+1, n-x).

    Args: `successes` x and `trials` n, any broadcastable shapes, 0 <= x <= n. Non-integer x is allowed (the beta
    quantiles are continuous in it), which the AUROC fallback of `rote.measures.roc` uses.
    Returns (low, high) in [0, 1], shaped like the broadcast inputs (numpy scalars for scalars); (0, 1) where n = 0.
    Coverage is at least `confidence` for every true rate. At x = 0 the high end is 1-(alpha/2)^(1/n), near the rule of
    three.
    Source: Clopper & Pearson 1934, Biometrika 26.
    """
    check_confidence(confidence)
    x, n = _counts(successes, trials)
    tail = (1.0 - confidence) / 2.0
    # btdtri-style quantiles; the dummies keep the beta parameters positive where the closed ends 0 and 1 are used.
    low = np.where(x > 0, special.betaincinv(np.where(x > 0, x, 1.0), n - x + 1.0, tail), 0.0)
    high = np.where(x < n, special.betaincinv(x + 1.0, np.where(x < n, n - x, 1.0), 1.0 - tail), 1.0)
    return low[()], high[()]


def wilson(successes, trials, *, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Score interval: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), with p = x/n.

    Shorter than Clopper-Pearson; its coverage is right on average, not guaranteed. (0, 1) where n = 0.
    Source: Wilson 1927, JASA 22.
    """
    check_confidence(confidence)
    x, n = _counts(successes, trials)
    z = special.ndtri(0.5 + confidence / 2.0)
    safe = np.where(n > 0, n, 1.0)
    p = x / safe
    centre = (p + z * z / (2 * safe)) / (1 + z * z / safe)
    half = z * np.sqrt(p * (1 - p) / safe + z * z / (4 * safe * safe)) / (1 + z * z / safe)
    # x = 0 and x = n reach the ends exactly; rounding would leave 1e-18 or 1 + 1e-16.
    low = np.where((n > 0) & (x > 0), np.clip(centre - half, 0.0, 1.0), 0.0)
    high = np.where((n > 0) & (x < n), np.clip(centre + half, 0.0, 1.0), 1.0)
    return low[()], high[()]


def proportion(successes: int, trials: int, *, confidence: float = 0.95, method: str = "clopper-pearson") -> Estimate:
    """One rate x/n as an `Estimate`. `method`: "clopper-pearson" (guaranteed coverage) or "wilson"."""
    interval = {"clopper-pearson": (clopper_pearson, "Clopper-Pearson"), "wilson": (wilson, "Wilson")}.get(method)
    if interval is None:
        raise InputError(f"unknown interval {method!r}; choose 'clopper-pearson' or 'wilson'")
    low, high = interval[0](successes, trials, confidence=confidence)
    value = successes / trials if trials else math.nan
    return Estimate(value, float(low), float(high), int(trials), percent_label(interval[1], confidence))


# --- bootstrap -------------------------------------------------------------------------------------------------------

Statistic = Callable[..., np.ndarray]  # statistic(array, axis=-1), as np.mean, np.median, np.std

_BLOCK = 1 << 21  # resampled numbers alive at once: 16 MB of float64
_JACKKNIFE_GROUPS = 1000  # BCa's acceleration is an average over records; this many delete-a-group replicates suffice


def _resampled(columns: np.ndarray, evaluate, resamples: int, seed: int) -> np.ndarray:
    """Statistic of `resamples` draws with replacement of the columns' records; `columns` is [variables, records]."""
    generator = np.random.default_rng(seed)
    n = columns.shape[1]
    block = max(1, _BLOCK // max(1, n))
    out = []
    for start in range(0, resamples, block):
        rows = generator.integers(0, n, size=(min(block, resamples - start), n))
        out.append(np.asarray(evaluate(*(column[rows] for column in columns)), dtype=np.float64))
    return np.concatenate(out)


def _leave_out(columns: np.ndarray, evaluate) -> np.ndarray:
    """Delete-one (or, above 1000 records, delete-a-group) jackknife replicates of the statistic."""
    n = columns.shape[1]
    groups = np.array_split(np.random.default_rng(0).permutation(n), min(n, _JACKKNIFE_GROUPS))
    return np.array([evaluate(*(np.delete(column, group)[None] for column in columns))[0] for group in groups])


def _bootstrap(columns, evaluate, *, value, confidence, resamples, method, seed, label) -> Estimate:
    check_confidence(confidence)
    if method not in ("bca", "percentile"):
        raise InputError(f"unknown bootstrap method {method!r}; choose 'bca' or 'percentile'")
    if resamples < 1:
        raise InputError(f"resamples must be positive, got {resamples}")
    n = columns.shape[1]
    name = percent_label(f"{'BCa' if method == 'bca' else 'percentile'} {label}", confidence)
    if n < 2:
        return Estimate(value, math.nan, math.nan, n, name)
    if np.all(columns == columns[:, :1]):
        # Equal observations: every resample gives `value`; leave the rounding of the resampling matrix out of it.
        return Estimate(value, value, value, n, name)
    draws = _resampled(columns, evaluate, resamples, seed)
    levels = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        below = np.sum(draws < value) + 0.5 * np.sum(draws == value)
        # Half a draw keeps z0 finite when the observed value is more extreme than every resample.
        z0 = special.ndtri(np.clip(below / len(draws), 0.5 / len(draws), 1 - 0.5 / len(draws)))
        influence = _leave_out(columns, evaluate)
        centred = influence.mean() - influence
        spread = np.sum(centred**2)
        acceleration = np.sum(centred**3) / (6 * spread**1.5) if spread > 0 else 0.0
        shifted = z0 + special.ndtri(levels)
        levels = special.ndtr(z0 + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(draws, levels)
    return Estimate(value, float(low), float(high), n, name)


def bootstrap(
    values: Float[np.ndarray, " records"],
    *,
    statistic: Statistic = np.mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    method: str = "bca",
    seed: int = 0,
) -> Estimate:
    """Bootstrap interval of a mean-like statistic of one number per record.

    BCa: quantiles of the resampled statistic at Phi(z0 + (z0 + z)/(1 - a (z0 + z))), z0 from the share of draws below
    the observed value, a = sum d^3 / (6 (sum d^2)^1.5) over the jackknife; "percentile" takes the quantiles at
    alpha/2, 1-alpha/2.

    Args: `values` finite; `statistic(array, axis=-1)` symmetric in the records (np.mean, np.median, np.std).
    The result depends on the seed and the multiset of values, never on their order.
    Errors: `InputError` for no values or a NaN. One value gives NaN bounds; equal values give a zero-width interval.
    Source: Efron 1987, JASA 82 (BCa).
    """
    array = np.sort(finite_vector(values, "values"))
    if len(array) == 0:
        raise InputError("a bootstrap needs at least one value; none was given")

    def evaluate(sample: np.ndarray) -> np.ndarray:
        return statistic(sample, axis=-1)

    return _bootstrap(
        array[None], evaluate, value=float(statistic(array, axis=-1)), confidence=confidence, resamples=resamples,
        method=method, seed=seed, label="bootstrap",
    )  # fmt: skip


def bootstrap_difference(
    after: Float[np.ndarray, " records"],
    before: Float[np.ndarray, " records"],
    *,
    statistic: Statistic = np.mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    method: str = "bca",
    seed: int = 0,
) -> Estimate:
    """Paired difference statistic(after) - statistic(before): the same records, resampled together.

    Negative = the number fell. Pairing removes the variation between records, so the interval is (usually much)
    shorter than that of two separate samples. Arguments and errors as `bootstrap`; both vectors must have equal length.
    """
    new, old = finite_vector(after, "after"), finite_vector(before, "before")
    if len(new) != len(old):
        raise InputError(f"paired values need equal lengths, got {len(new)} after and {len(old)} before")
    if len(new) == 0:
        raise InputError("a bootstrap needs at least one pair; none was given")
    columns = np.stack([new, old])[:, np.lexsort((old, new))]

    def evaluate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return statistic(a, axis=-1) - statistic(b, axis=-1)

    value = float(statistic(columns[0], axis=-1) - statistic(columns[1], axis=-1))
    return _bootstrap(
        columns, evaluate, value=value, confidence=confidence, resamples=resamples, method=method, seed=seed,
        label="paired bootstrap",
    )  # fmt: skip


# --- association and comparison --------------------------------------------------------------------------------------


def spearman(x, y, *, confidence: float = 0.95) -> Estimate:
    """Spearman's rho (midranks) with a Fisher-z interval: tanh(atanh r -+ z sqrt((1 + r^2/2)/(n-3))).

    Range [-1, 1]. NaN value where one side is constant, NaN bounds for n < 4. At |r| = 1, where the formula collapses,
    the inner bound is computed at the next attainable value, 1 - 12/(n(n^2-1)) (one adjacent pair swapped).
    Source: Bonett & Wright 2000, Psychometrika 65.
    """
    check_confidence(confidence)
    a, b = finite_vector(x, "x", allow_infinite=True), finite_vector(y, "y", allow_infinite=True)
    if len(a) != len(b):
        raise InputError(f"a correlation needs equal lengths, got {len(a)} and {len(b)}")
    n, name = len(a), percent_label("Bonett-Wright", confidence)
    if n < 2 or np.all(a == a[0]) or np.all(b == b[0]):
        return Estimate(math.nan, math.nan, math.nan, n, name)
    ranks_a, ranks_b = stats.rankdata(a), stats.rankdata(b)
    if np.array_equal(ranks_a, ranks_b):
        r = 1.0  # exactly, where the correlation formula rounds
    elif np.array_equal(ranks_a, n + 1 - ranks_b):
        r = -1.0
    else:
        r = float(np.corrcoef(ranks_a, ranks_b)[0, 1])
    if n < 4:
        return Estimate(r, math.nan, math.nan, n, name)
    limit = 1.0 - 12.0 / (n * (n * n - 1.0))
    inner = float(np.clip(r, -limit, limit))
    half = special.ndtri(0.5 + confidence / 2) * math.sqrt((1 + inner * inner / 2) / (n - 3))
    low = math.tanh(math.atanh(inner) - half) if r > -limit else -1.0
    high = math.tanh(math.atanh(inner) + half) if r < limit else 1.0
    return Estimate(r, low, high, n, name)


@dataclass(frozen=True)
class KSResult:
    """Two-sample Kolmogorov-Smirnov: largest gap D of the two empirical distributions and its two-sided p-value."""

    statistic: float
    p_value: float
    n: int
    m: int


def ks_two_sample(x, y) -> KSResult:
    """D = sup_t |F_x(t) - F_y(t)|, exact p-value up to 10,000 values a side, asymptotic above.

    The forget-quality statistic of unlearning suites uses this p-value (Maini et al. 2024, arXiv 2401.06121, sec.
    2.2.2).
    """
    a, b = finite_vector(x, "x"), finite_vector(y, "y")
    if len(a) == 0 or len(b) == 0:
        raise InputError(f"a two-sample test needs values on both sides, got {len(a)} and {len(b)}")
    # Beyond 1e4 per side the exact recursion is slow and equal to the asymptotic law to four digits.
    statistic, p_value = stats.ks_2samp(a, b, method="exact" if max(len(a), len(b)) <= 10_000 else "asymp")
    return KSResult(float(np.asarray(statistic)), float(np.asarray(p_value)), len(a), len(b))


def benjamini_hochberg(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Adjusted p-values min_{j >= i} m p_(j) / j (at most 1): below q means significant at false-discovery rate q.

    Source: Benjamini & Hochberg 1995, JRSS B 57.
    """
    p = finite_vector(p_values, "p_values")
    if ((p < 0) | (p > 1)).any():
        raise InputError("p-values must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


_ROC_NAMES = (
    "PairedAuroc", "RocCurve", "TprAtFpr", "auroc", "best_balanced_accuracy", "delong", "delong_paired",
    "delong_stratified", "roc_points", "tpr_at_fpr",
)  # fmt: skip


def __getattr__(name: str):
    """`rote.measures.statistics.auroc` and its family live in `rote.measures.roc`, which builds on this module."""
    if name in _ROC_NAMES:
        from rote.measures import roc

        return getattr(roc, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
