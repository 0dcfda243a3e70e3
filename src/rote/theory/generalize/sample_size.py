"""How many samples: theorem 7.3's exact count, and the rates of theorems 6.1, 6.4 and 6.5, whose constant is unknown.

A theorem with an unspecified absolute constant v gives no number of samples; its result here is an `UpToConstant`,
which carries the rate, the formula and the label, and refuses to be used as a number by itself.

Pure arithmetic, in logarithms where numbers are astronomical. Source: Yu et al. 2024 (arXiv 2411.00372).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log, sqrt

from rote.errors import InputError
from rote.theory.generalize.packing import log2_cube_vertices

UP_TO = "up to an absolute constant"


@dataclass(frozen=True)
class UpToConstant:
    """N >= v * 10^log10_rate with an unknown absolute constant v > 0: to compare with another, never a count."""

    log10_rate: float
    formula: str
    source: str
    label: str = UP_TO

    @property
    def rate(self) -> float | None:
        """10^log10_rate, or None when it is no float."""
        return 10.0**self.log10_rate if self.log10_rate < 308 else None

    def __str__(self) -> str:
        return f"v * 10^{self.log10_rate:.3f}, {self.label} v ({self.formula}; {self.source})"


def efficient_sample_size(*, S: int, eps: float, delta: float) -> int:
    """N = ceil(S ln(S / delta) / eps): with so many samples theorem 7.3's network has accuracy >= 1 - eps with
    probability >= 1 - delta. `S` is the size of a nearby set of the law's support (not of a sample).

    Errors: InputError unless S >= 1 and eps, delta are in (0, 1).
    """
    _share("eps", eps)
    _share("delta", delta)
    if S < 1:
        raise InputError(f"S must be at least 1, not {S}")
    return ceil(S * log(S / delta) / eps)


def log10_nearby_set_bound(*, n: int, c: float) -> float:
    """log10 of (floor(6.2 n / c) + 1)^n >= S_D (proposition 7.7), for every law on [0,1]^n with separation c."""
    _separation(n, c)
    return n * log(floor(6.2 * n / c) + 1, 10)


def necessary_samples(*, N_D: float, eps: float, delta: float) -> UpToConstant:
    """Theorem 6.1: knowing only that N >= v N_D^2 (1 - 2 eps - delta) / ln^2 N_D, no algorithm serves every law.

    `N_D`: the memorization parameter complexity, unknown for real data. Needs N_D > 1 and 2 eps + delta < 1.
    """
    _share("eps", eps)
    _share("delta", delta)
    if N_D <= 1 or 2 * eps + delta >= 1:
        raise InputError(
            f"theorem 6.1 needs N_D > 1 and 2 eps + delta < 1, not N_D = {N_D}, eps = {eps}, delta = {delta}"
        )
    value = 2 * log(N_D, 10) - 2 * log(log(N_D), 10) + log(1 - 2 * eps - delta, 10)
    return UpToConstant(value, "N_D^2 (1 - 2 eps - delta) / ln^2 N_D", "theorem 6.1")


def sufficient_samples(*, N_D: float, eps: float, delta: float) -> UpToConstant:
    """Theorem 6.5: an algorithm that returns at most N_D parameters generalizes once
    N >= v N_D^2 ln(N_D / (eps^2 delta)) / eps^2. Such an algorithm is not efficient unless P = NP. Needs N_D >= 1."""
    _share("eps", eps)
    _share("delta", delta)
    if N_D < 1:
        raise InputError(f"N_D must be at least 1, not {N_D}")
    value = 2 * log(N_D, 10) + log(log(N_D / (eps**2 * delta)), 10) - 2 * log(eps, 10)
    return UpToConstant(value, "N_D^2 ln(N_D / (eps^2 delta)) / eps^2", "theorem 6.5")


def worst_law_samples(*, n: int, c: float, eps: float, delta: float) -> UpToConstant:
    """Corollary 6.4: some law of dimension n and separation c needs N > v 2^(2 floor(n / ceil(c^2))) c^4
    (1 - 2 eps - delta) / n^2 samples, whatever the algorithm. Needs 0 < c <= sqrt(n) and 2 eps + delta < 1."""
    _share("eps", eps)
    _share("delta", delta)
    _separation(n, c)
    if 2 * eps + delta >= 1:
        raise InputError(f"corollary 6.4 needs 2 eps + delta < 1, not eps = {eps}, delta = {delta}")
    value = (
        2 * log2_cube_vertices(n=n, c=c) * log(2, 10) + 4 * log(c, 10) - 2 * log(n, 10) + log(1 - 2 * eps - delta, 10)
    )
    return UpToConstant(value, "2^(2 floor(n/ceil(c^2))) c^4 (1 - 2 eps - delta) / n^2", "corollary 6.4")


def worst_law_nearby_samples(*, n: int, c: float) -> UpToConstant:
    """For some law S_D ln(S_D / delta) itself is at least about (c^4 / n^2) 2^(2 floor(n / ceil(c^2))) (section 7)."""
    _separation(n, c)
    value = 2 * log2_cube_vertices(n=n, c=c) * log(2, 10) + 4 * log(c, 10) - 2 * log(n, 10)
    return UpToConstant(value, "(c^4 / n^2) 2^(2 floor(n/ceil(c^2)))", "section 7")


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must be in (0, 1), not {value}")


def _separation(n: int, c: float) -> None:
    if int(n) != n or n < 1:
        raise InputError(f"n must be a whole number of at least 1, not {n}")
    if not 0 < c <= sqrt(n):
        raise InputError(f"the separation c must be in (0, sqrt(n)] = (0, {sqrt(n):.4g}], not {c}")
