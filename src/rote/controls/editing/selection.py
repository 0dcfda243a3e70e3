"""Which eigenpairs an edit keeps: the heaviest ones that together hold the share rho of the curvature mass.

    Pi_ij = lam_i mu_j,   keep pairs in descending Pi until  sum Pi >= rho (sum_i lam_i)(sum_j mu_j)

Neither the p x q pairs nor a heap of them is ever made. For a threshold tau the kept pairs of row i are a prefix of
length n_i(tau) (found by binary search in mu), their mass is lam_i times a prefix sum of mu, and both fall with tau;
bisection over the representable values of tau ends on the exact value of the last pair kept. Pairs that tie there are
taken in row-major order (smaller i, then smaller j), just as many as are needed. The result is the set that a stable
descending sort of all pairs gives. "Reached" means within 1e-12 of the total mass, as sums of floats must allow.

Knows nothing about: weights, models, where spectra come from.
Source: Merullo et al. 2025, arXiv 2510.24256 (the rule; their code walks a heap); the search is the card's [inferred].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from rote.errors import InputError

SLACK = 1e-12  # of the total mass: how near counts as reached


@dataclass(frozen=True)
class PairSelection:
    """A staircase: pairs (i, j) with j < columns[i] are kept, in descending spectra. `mass` is the share really held,
    `threshold` the mass of the lightest pair kept."""

    columns: Int[np.ndarray, " p"]
    width: int
    mass: float
    threshold: float

    @property
    def pairs(self) -> int:
        return int(self.columns.sum())

    @property
    def rows_used(self) -> int:
        """Number of distinct i."""
        return int((self.columns > 0).sum())

    @property
    def columns_used(self) -> int:
        """Number of distinct j."""
        return int(self.columns.max(initial=0))

    def mask(self, device: torch.device | str = "cpu") -> Bool[torch.Tensor, "p q"]:
        return torch.arange(self.width, device=device)[None] < torch.from_numpy(self.columns).to(device)[:, None]


def select_pairs(lam: Float[np.ndarray, " p"], mu: Float[np.ndarray, " q"], rho: float) -> PairSelection:
    """The heaviest pairs that hold at least the share rho of the mass; O(64 (p log q + q)) time, O(p + q) memory.

    Args: `lam`, `mu` descending, non-negative; they are rounded to float32, which makes products, and so ties, exact.
    rho in (0, 1]. At rho = 1 pairs without mass are still left out; an edit skips a layer altogether at rho >= 0.9999.
    Raises InputError for rho outside (0, 1], and for spectra that are unsorted, negative or without mass.
    """
    check_rho(rho)
    lam, mu = _spectrum(lam, "lam"), _spectrum(mu, "mu")
    before = np.concatenate([[0.0], np.cumsum(mu)])
    heaviest, total = lam[0] * mu[0], lam.sum() * before[-1]
    if not (heaviest > 0 and np.isfinite(total)):
        raise InputError("the spectra hold no curvature mass (or too much for a number): nothing can be selected")
    target = (rho - SLACK) * total

    def held(tau: float) -> float:
        return float((lam * before[_at_least(lam, mu, tau)]).sum())

    # Positive floats are ordered as their bit patterns are: at most 64 halvings from "everything" to "nothing".
    low, high = _bits(np.nextafter(0.0, 1.0)), _bits(np.nextafter(heaviest, np.inf))
    if held(_float(low)) < target:  # only rounding can bring this about (rho near 1)
        high = low + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if held(_float(middle)) >= target else (low, middle)
    tau = _float(low)
    ties_from, ties_to = _at_least(lam, mu, _float(low + 1)), _at_least(lam, mu, tau)
    above = float((lam * before[ties_from]).sum())
    needed = max(1, int(np.ceil((target - above) / tau)))
    tied = ties_to - ties_from
    taken = np.clip(needed - np.concatenate([[0], np.cumsum(tied)[:-1]]), 0, tied)
    columns = ties_from + taken
    return PairSelection(columns, len(mu), float((lam * before[columns]).sum() / total), tau)


def select_by_mass(masses: Float[torch.Tensor, "p q"], rho: float) -> tuple[Bool[torch.Tensor, "p q"], float]:
    """The same rule for masses that are no product (EK-FAC), which are p x q numbers anyway: one stable sort.

    Returns (mask, share of the mass held). Errors as `select_pairs`.
    """
    check_rho(rho)
    flat = masses.cpu().double().flatten()
    if not bool(torch.isfinite(flat).all()) or bool((flat < 0).any()) or not float(flat.max()) > 0:
        raise InputError("the masses must be finite, non-negative and not all zero")
    values, order = flat.sort(descending=True, stable=True)
    sums = values.cumsum(0)
    count = min(int((sums < (rho - SLACK) * sums[-1]).sum()) + 1, len(flat))
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view_as(masses), float(sums[count - 1] / sums[-1])


def random_pairs(shape: tuple[int, int], count: int, generator: torch.Generator) -> Bool[torch.Tensor, "p q"]:
    """A mask of `count` pairs drawn evenly without replacement: the control that ignores curvature."""
    order = torch.randperm(shape[0] * shape[1], generator=generator)[:count]
    mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    mask[order] = True
    return mask.view(shape)


def lightest_pairs(lam: Float[np.ndarray, " p"], mu: Float[np.ndarray, " q"], count: int) -> Bool[torch.Tensor, "p q"]:
    """A mask of the `count` pairs of lowest mass: what selection the wrong way round would keep. Materialises Pi."""
    mass = torch.from_numpy(np.outer(lam, mu)).flatten()
    mask = torch.zeros(len(mass), dtype=torch.bool)
    mask[mass.argsort(stable=True)[:count]] = True
    return mask.view(len(lam), len(mu))


def check_rho(rho: float) -> None:
    if not 0.0 < rho <= 1.0:
        raise InputError(f"rho is {rho}: the share of curvature mass to keep must lie in (0, 1]")


def _spectrum(values: Float[np.ndarray, " n"], name: str) -> Float[np.ndarray, " n"]:
    array = np.asarray(values, np.float32).astype(np.float64)  # products of float32 values are exact in float64
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise InputError(f"{name} must be a list of finite numbers, got shape {array.shape}")
    if (np.diff(array) > 0).any() or array[-1] < 0:
        raise InputError(f"{name} must descend and hold no negative number (eigh ascends: turn it round)")
    return array


def _at_least(lam: np.ndarray, mu: np.ndarray, tau: float) -> Int[np.ndarray, " p"]:
    """n_i = #{j : lam_i mu_j >= tau} for tau > 0, exactly.

    mu_j >= tau / lam_i is the same but for the rounding of the quotient. All entries that near it are equal (float32
    values lie much farther apart), so one product decides them.
    """
    ascending = -mu
    with np.errstate(divide="ignore", over="ignore"):
        quotient = tau / lam
        surely = np.searchsorted(ascending, -quotient * (1 + 1e-15), side="right")
        perhaps = np.searchsorted(ascending, -quotient * (1 - 1e-15), side="right")
    doubtful = perhaps > surely
    if doubtful.any():
        rows = np.flatnonzero(doubtful)
        keeps = lam[rows] * mu[surely[rows]] >= tau
        surely[rows[keeps]] = perhaps[rows[keeps]]
    return np.where(lam > 0, surely, 0)


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


def _float(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
