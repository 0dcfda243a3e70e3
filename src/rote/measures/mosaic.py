"""Mosaic memory: how many exact copies a set of fuzzy duplicates is worth.

Knows membership AUROCs against numbers of exact copies, and the AUROC reached with fuzzy copies. Knows nothing about
how copies were altered or scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rote.errors import InputError
from rote.measures.statistics import finite_vector


@dataclass(frozen=True)
class MosaicEquivalence:
    """nu_eq exact copies and rho = (nu_eq - 1)/(n_dup - 1) per fuzzy AUROC; `extrapolated` where off the curve."""

    nu_eq: Float[np.ndarray, " settings"]
    rho: Float[np.ndarray, " settings"]
    extrapolated: np.ndarray


def smooth(curve: Float[np.ndarray, " copies"]) -> Float[np.ndarray, " copies"]:
    """Three-point moving mean, end points kept: the curve is an estimate, its noise would be read as equivalence."""
    values = np.asarray(curve, dtype=np.float64)
    out = values.copy()
    out[1:-1] = (values[:-2] + values[1:-1] + values[2:]) / 3.0
    return out


def isotonic(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Least-squares non-decreasing fit (pool adjacent violators); the identity on a non-decreasing curve."""
    blocks: list[list[float]] = []  # [mean, size]; one entry per copy count, so a short Python loop
    for value in np.asarray(values, dtype=np.float64):
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            total = blocks[-1][1] + size
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / total, total]
    return np.concatenate([np.full(int(size), mean) for mean, size in blocks]) if blocks else np.empty(0)


def mosaic_equivalence(
    copies: Float[np.ndarray, " copies"],
    exact_auroc: Float[np.ndarray, " copies"],
    fuzzy_auroc: Float[np.ndarray, " settings"],
    *,
    n_dup: int = 10,
    smoothing: bool = True,
) -> MosaicEquivalence:
    """nu_eq = the number of exact copies with the fuzzy set's AUROC, on phi(nu); rho = (nu_eq - 1)/(n_dup - 1).

    Args: `copies` nu, increasing, at least 2 values, the first 1; `exact_auroc` phi_nu there; `fuzzy_auroc` of sets in
    which one copy is exact and n_dup - 1 are altered, each trained for its own model or record.
    phi is smoothed (`smooth`), made non-decreasing (`isotonic`), then inverted by linear interpolation; on a flat
    stretch the middle copy number is taken. Below phi_1: nu_eq = 1. Above the last: continued with the mean slope of
    the last three intervals and flagged (if that slope is 0, the last nu).
    rho: 0 = altered copies add nothing, 1 = they are worth exact copies.
    Source: Shilov et al. 2024, arXiv 2405.15523, sec. 3 and 5 (n_dup = 10).
    """
    nu, phi = finite_vector(copies, "copies"), finite_vector(exact_auroc, "exact_auroc")
    fuzzy = finite_vector(fuzzy_auroc, "fuzzy_auroc")
    if len(nu) != len(phi) or len(nu) < 2 or nu[0] != 1 or (np.diff(nu) <= 0).any():
        raise InputError("copies must start at 1, increase, and match exact_auroc in length (at least 2)")
    if n_dup < 2:
        raise InputError(f"n_dup counts the copies of a fuzzy set and must be at least 2, got {n_dup}")
    curve = isotonic(smooth(phi) if smoothing else phi)
    # Equal heights have no unique inverse; each level becomes one point in the middle of its stretch.
    level, size = np.unique(curve, return_counts=True)
    centre = (nu[np.cumsum(size) - size] + nu[np.cumsum(size) - 1]) / 2
    if size[0] > 1:
        centre[0] = nu[0]  # on the lowest level one copy explains the AUROC already
    nu_eq = np.interp(fuzzy, level, centre)
    beyond = fuzzy > level[-1]
    start = max(0, len(nu) - 4)
    slope = (curve[-1] - curve[start]) / (nu[-1] - nu[start])
    if slope > 0:
        nu_eq = np.where(beyond, nu[-1] + (fuzzy - level[-1]) / slope, nu_eq)
    nu_eq = np.where(beyond & (slope <= 0), nu[-1], np.where(fuzzy < level[0], nu[0], nu_eq))
    return MosaicEquivalence(nu_eq, (nu_eq - 1.0) / (n_dup - 1.0), beyond | (fuzzy < level[0]))
