"""From targets to real weights: solve [M, W_O] Phi = E, then let x = M x' be the network's own embeddings.

The paper takes up the skip connection as one more head in the limit of hard attention; here the skip is exact: with
e = M e', pos = M pos', W_QK = M^-T W_QK' M^-1 and W_V = W_V' M^-1 every attention pattern and every W_V A stays what it
was in the primed basis, and the skip contributes M x'. (Derived from the proof of Theorem 1; the paper states only the
limit.) Deliberately knows nothing about labels, codes or probabilities: a target is a vector per context.

Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, appendix A.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.theory.attention.features import FeatureDraw, Spectrum
from rote.theory.attention.linear import inverse, minimum_norm, minimum_norm_extended
from rote.theory.attention.model import AttentionWeights

WORST_BASIS = 1e8  # condition number of M above which mapping back would lose half of float64's digits


@dataclass(frozen=True)
class Solution:
    """Weights that reach the targets, and how well-posed that was (`spectrum` is of Phi over the solved contexts)."""

    weights: AttentionWeights
    spectrum: Spectrum


class BasisError(InputError):
    """M is numerically singular for this draw: draw again."""


def solve_targets(
    draw: FeatureDraw,
    contexts: Int[np.ndarray, "contexts context"],
    targets: Float[np.ndarray, "contexts k"],
    unembedding: Float[np.ndarray, "vocab k"],
    *,
    free_gauge: bool = False,
    extended: bool = False,
) -> Solution:
    """Weights with W_U hidden(t) = unembedding @ targets(t) for every context (least squares if there are too many).

    Where k < d, the last d - k coordinates of W_U are 0, so their rows of M are free: they complete the first k to a
    well-conditioned matrix. Targets that span fewer than k dimensions (all labels alike, or opposite on the circle) are
    rotated into those first, for M must be invertible. Directions that no last token has are free as well: they fill up
    an M that few last tokens leave singular. `free_gauge` allows (W, E) -> (W G^-1, G E), which leaves
    every logit alone; it is used to make M orthonormal, so that no precision is lost in mapping back. `extended` solves
    in `longdouble`.
    Errors: `BasisError` when M is singular beyond 1e8.
    """
    dtype = np.longdouble if extended else np.float64
    targets, unembedding = _spanned(targets, unembedding)
    d, k = draw.embedding.shape[1], targets.shape[1]
    phi = draw.features(contexts, dtype)
    solution, found = (minimum_norm_extended if extended else minimum_norm)(phi, targets)
    active, output = solution[:d].T, solution[d:].T  # k x d and k x (H d_h)
    active = _filled(active, phi[:, :d])
    code = unembedding.astype(dtype)
    singular = np.linalg.svd(active.astype(np.float64), compute_uv=False)
    if k and not singular[-1] > singular[0] / WORST_BASIS:
        raise BasisError(
            f"the skip's matrix M is numerically singular (smallest singular value {singular[-1]:.1e}); draw again"
        )
    if free_gauge and k:
        rows, triangle = _orthonormal_rows(active, dtype)  # active = triangle @ rows
        active, output, code = rows, inverse(triangle) @ output, code @ triangle
        singular = np.ones(k)
    basis = np.concatenate([active, _completion(active, float(np.sqrt((singular**2).mean())) if k else 1.0)])
    back = inverse(basis)
    weights = AttentionWeights(
        embedding=draw.embedding.astype(dtype) @ basis.T,
        positions=draw.positions.astype(dtype) @ basis.T,
        # W_QK = M^-T u v^T M^-1: the query row is u^T M^-1, the key row v^T M^-1.
        query=(draw.query.astype(dtype) @ back)[:, None, :],
        key=(draw.key.astype(dtype) @ back)[:, None, :],
        value=draw.value.astype(dtype) @ back,
        output=np.concatenate([output, np.zeros((d - k, output.shape[1]), dtype=dtype)]),
        unembedding=np.concatenate([code, np.zeros((len(code), d - k), dtype=dtype)], axis=1),
    )
    return Solution(weights, found)


def _spanned(targets: np.ndarray, unembedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same logits from as many coordinates as the targets span (none for zero targets); unchanged if all."""
    _, singular, right = np.linalg.svd(targets, full_matrices=False)
    rank = int((singular > singular[0] * 1e-10).sum())
    if rank == targets.shape[1]:
        return targets, unembedding
    return targets @ right[:rank].T, unembedding @ right[:rank].T


def _filled(active: np.ndarray, last: np.ndarray) -> np.ndarray:
    """`active` with its weak directions strengthened where no x'(t,S) reaches, so that no output changes."""
    _, singular, right = np.linalg.svd(last.astype(np.float64), full_matrices=True)
    reached = int((singular > singular[0] * 1e-10).sum())
    unreached = right[reached:]
    if not len(unreached) or not len(active):
        return active
    left, strength, _ = np.linalg.svd(active.astype(np.float64))
    largest = strength[0] if strength[0] > 0 else 1.0
    weak = np.flatnonzero(strength < 1e-2 * largest)[-len(unreached) :]
    return active + (largest * left[:, weak] @ unreached[: len(weak)]).astype(active.dtype)


def _orthonormal_rows(active: np.ndarray, dtype) -> tuple[np.ndarray, np.ndarray]:
    """active = T Q with orthonormal rows Q; one step of Newton's iteration brings Q to the type's own precision."""
    columns, _ = np.linalg.qr(active.T.astype(np.float64))
    rows = columns.T.astype(dtype)
    rows = 1.5 * rows - 0.5 * (rows @ rows.T) @ rows
    return rows, active @ rows.T


def _completion(active: np.ndarray, length: float) -> np.ndarray:
    """d - k rows orthogonal to the given k, each of the given length."""
    k, d = active.shape
    _, _, right = np.linalg.svd(active.astype(np.float64), full_matrices=True)
    return (length * right[k:]).astype(active.dtype).reshape(d - k, d)
