"""The eigenbasis of a layer's K-FAC factors: the coordinates in which its curvature is a list of numbers.

    G = U_G diag(lam) U_G^T,   A = U_A diag(mu) U_A^T,   Pi_ij = lam_i mu_j  (curvature of direction u_i v_j^T of W)

Both spectra descend. Eigenvalues are kept as float32 values in float64, so that every product lam_i mu_j is exact and
two pairs are tied exactly when they are equal. Negative eigenvalues are rounding and become 0; single directions at the
bottom of a spectrum are noise and mean nothing by themselves.

Knows nothing about: data, models, edits.
Source: Merullo et al. 2025, arXiv 2510.24256.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from rote.errors import InputError
from rote.internals.curvature.factors import FactorSet, LayerFactors


@dataclass(frozen=True)
class Eigenbasis:
    """U_G, lam (gradient side, p) and U_A, mu (activation side, q) of one layer.

    `masses` are eigenvalue-corrected (EK-FAC) masses where they were measured; without them the mass is lam mu^T.
    """

    U_G: Float[torch.Tensor, "out out"]
    lam: Float[np.ndarray, " out"]
    U_A: Float[torch.Tensor, "in in"]
    mu: Float[np.ndarray, " in"]
    masses: Float[torch.Tensor, "out in"] | None = None

    def coefficients(self, W: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        """C = U_G^T W U_A in float32: C_ij = u_i^T W v_j."""
        return self.U_G.T.to(W.device) @ W.float() @ self.U_A.to(W.device)

    def weight(self, C: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        """W = U_G C U_A^T."""
        return self.U_G.to(C.device) @ C @ self.U_A.T.to(C.device)


def eigenbasis_of(factors: LayerFactors, *, layer: str = "the layer") -> Eigenbasis:
    """Eigendecompose A and G (float32, on the device they are on).

    Raises InputError when a factor is not finite or has no positive eigenvalue (nothing was measured).
    """
    U_G, lam = _descending(factors.G, f"{layer}, factor G")
    U_A, mu = _descending(factors.A, f"{layer}, factor A")
    return Eigenbasis(U_G, lam, U_A, mu)


def decompose(factors: FactorSet, *, device: torch.device | str | None = None) -> dict[str, Eigenbasis]:
    """The eigenbasis of every layer, computed on `device` (None: where the factors are; an accelerator is much faster
    from a few thousand dimensions on). Layers that share their input share one decomposition of A."""
    shared: dict[int, tuple[torch.Tensor, np.ndarray]] = {}
    found = {}
    for name, layer in factors.layers.items():
        if id(layer.A) not in shared:
            shared[id(layer.A)] = _descending(layer.A.to(device), f"layer {name}, factor A")
        U_A, mu = shared[id(layer.A)]
        U_G, lam = _descending(layer.G.to(device), f"layer {name}, factor G")
        found[name] = Eigenbasis(U_G, lam, U_A, mu)
    return found


def effective_rank(spectrum: Float[np.ndarray, " n"], share: float = 0.95) -> int:
    """The fewest leading eigenvalues of a descending spectrum that hold `share` of its sum; range [1, n]."""
    sums = np.cumsum(np.asarray(spectrum, np.float64))
    return min(len(sums), int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12))) + 1)


def _descending(matrix: torch.Tensor, what: str) -> tuple[torch.Tensor, np.ndarray]:
    matrix = matrix.float()
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f"{what}: is not finite; collect the factors again, in float32")
    values, vectors = torch.linalg.eigh(matrix)
    spectrum = values.flip(0).clamp(min=0).cpu().numpy().astype(np.float64)
    if not spectrum[0] > 0:
        raise InputError(f"{what}: is zero; the text never reached this layer, or its gradient vanished")
    return vectors.flip(1), spectrum
