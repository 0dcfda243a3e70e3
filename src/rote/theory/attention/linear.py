"""Solve [M, W_O] Phi = E: minimum-norm linear systems in float64, and in extended precision when that is not enough.

Knows matrices only. Extended precision is NumPy's `longdouble`; where the platform has no wider type than float64 it is
refused, not imitated. Deliberately knows nothing about attention.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from rote.errors import InputError
from rote.theory.attention.features import Spectrum, spectrum, spectrum_of


def has_extended_precision() -> bool:
    """Whether `numpy.longdouble` carries more bits than float64 here (x86: 64 instead of 53)."""
    return np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant


def minimum_norm(
    features: Float[np.ndarray, "contexts columns"], targets: Float[np.ndarray, "contexts rows"]
) -> tuple[Float[np.ndarray, "columns rows"], Spectrum]:
    """Z of least norm with Phi Z = E in the least-squares sense, by SVD cut at the numerical rank."""
    left, singular, right = np.linalg.svd(features, full_matrices=False)
    found = spectrum_of(singular, features.shape)
    kept = slice(0, found.rank)
    return right[kept].T @ ((left[:, kept].T @ targets) / singular[kept, None]), found


def minimum_norm_extended(
    features: Float[np.ndarray, "contexts columns"], targets: Float[np.ndarray, "contexts rows"]
) -> tuple[Float[np.ndarray, "columns rows"], Spectrum]:
    """The same for contexts <= columns in `longdouble`: Phi^T = QR by Householder, then Z = Q R^-T E.

    The rank counts the pivots |R_ii| above max(shape) * eps * largest with the wider type's eps. The condition number
    is the float64 one, which cannot show more than about 1e16.
    Errors: `InputError` without extended precision, for more contexts than columns, or a zero pivot.
    """
    if not has_extended_precision():
        raise InputError("this platform has no floating-point type wider than float64; use a larger d instead")
    rows, columns = features.shape
    if rows > columns:
        raise InputError(f"{rows} contexts exceed the {columns} columns: there is no exact solution to refine")
    work = features.T.astype(np.longdouble)
    mirrors = []
    for step in range(rows):
        mirror = work[step:, step].copy()
        length = np.sqrt((mirror**2).sum())
        if length == 0:
            raise InputError(f"row {step} depends linearly on those before it, even in extended precision")
        mirror[0] += length if mirror[0] >= 0 else -length
        mirror /= np.sqrt((mirror**2).sum())
        work[step:, step:] -= 2 * np.outer(mirror, mirror @ work[step:, step:])
        mirrors.append(mirror)
    solution = np.zeros((columns, targets.shape[1]), dtype=np.longdouble)
    solution[:rows] = _forward_substitution(work[:rows, :rows].T, targets.astype(np.longdouble))
    for step in reversed(range(rows)):
        solution[step:] -= 2 * np.outer(mirrors[step], mirrors[step] @ solution[step:])
    pivots = np.abs(np.diag(work[:rows, :rows]))
    rank = int((pivots > max(features.shape) * np.finfo(np.longdouble).eps * pivots.max()).sum())
    return solution, Spectrum(rank, spectrum(features).cond)


def inverse(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Inverse in the matrix's own type (NumPy's own routine has no `longdouble`)."""
    identity = np.eye(len(matrix), dtype=matrix.dtype)
    return np.linalg.inv(matrix) if matrix.dtype == np.float64 else minimum_norm_extended(matrix, identity)[0]


def _forward_substitution(lower: np.ndarray, targets: np.ndarray) -> np.ndarray:
    solution = np.zeros_like(targets)
    for row in range(len(lower)):
        solution[row] = (targets[row] - lower[row, :row] @ solution[:row]) / lower[row, row]
    return solution
