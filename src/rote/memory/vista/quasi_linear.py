"""Quasi-linear attention: the whole history enters one small state, and every row reads from that state.

    Z    = phi1(K[S])^T V[S]                                           the history's state, d x e whatever its length
    O[S] = phi1(Q[S]) phi2(c Z)
    O[T] = phi1(Q[T]) phi2(c Z) + c Delta(phi1(Q[T]), phi1(K[T])) V[T]      Delta(X, Y) = diag((X * Y) 1)

S are the rows of the history, T those of the candidates: a candidate reads the history and itself, never another
candidate (logged candidates are a biased subset; seeing each other would leak labels). phi1 = phi2 = SiLU. The second
non-linearity acts on the state, so the cost stays O(N d^2) while the map is no longer linear. It is not homogeneous
either: Z grows with the history, so it is scaled by c = 1/rows (as HSTU does) before phi2 sees it.

Source: Chen et al. 2025, arXiv 2510.22049, section 3 and appendix B (QLA); the scale c is not in the paper.
Knows nothing about: layers, parameters, users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    Phi = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """With phi2 = identity the form equals masked linear attention with its N x N matrix."""
    return x


def shifted_elu(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """phi(x) = x for x >= 1, e^(x-1) below: the positive kernel the paper works its gradients for (appendix B)."""
    return torch.where(x >= 1, x, torch.exp(torch.clamp(x, max=1.0) - 1))


def delta(x: Float[Tensor, "... t d"], y: Float[Tensor, "... t d"]) -> Float[Tensor, "... t 1"]:
    """Delta(X, Y): the row-wise dot products, a T x T diagonal kept as a column."""
    return (x * y).sum(-1, keepdim=True)


def history_state(
    k: Float[Tensor, "... n d"],
    v: Float[Tensor, "... n e"],
    mask: Bool[Tensor, "... n"] | None = None,
    *,
    phi1: Phi = F.silu,
) -> Float[Tensor, "... d e"]:
    """Z = phi1(K)^T V over the rows that `mask` keeps. Additive: the state of two stretches is the sum of their states.

    Padding is masked here and not by zero embeddings: a bias in K makes phi1(K) of a zero row something else than zero.
    """
    features = phi1(k)
    if mask is not None:
        features = features * mask.unsqueeze(-1)
    return features.transpose(-1, -2) @ v


def read_state(
    q: Float[Tensor, "... n d"],
    state: Float[Tensor, "... d e"],
    scale: Float[Tensor, "*n"] | float = 1.0,
    *,
    phi1: Phi = F.silu,
    phi2: Phi = F.silu,
) -> Float[Tensor, "... n e"]:
    """phi1(Q) phi2(c Z)."""
    return phi1(q) @ phi2(state * scale)


def quasi_linear_attention(
    q: Float[Tensor, "... n d"],
    k: Float[Tensor, "... n d"],
    v: Float[Tensor, "... n e"],
    *,
    candidates: int = 0,
    mask: Bool[Tensor, "... s"] | None = None,
    scale: Float[Tensor, "*n"] | float = 1.0,
    phi1: Phi = F.silu,
    phi2: Phi = F.silu,
) -> Float[Tensor, "... n e"]:
    """O for all rows; the last `candidates` rows are candidates, those before them are the history (`mask` is theirs).

    O(N d e), no N x N matrix. `scale` is c, broadcast against the state.
    """
    rows = q.shape[-2] - candidates
    state = history_state(k[..., :rows, :], v[..., :rows, :], mask, phi1=phi1)
    out = read_state(q, state, scale, phi1=phi1, phi2=phi2)
    if not candidates:
        return out
    own = delta(phi1(q[..., rows:, :]), phi1(k[..., rows:, :])) * v[..., rows:, :] * scale
    return torch.cat([out[..., :rows, :], out[..., rows:, :] + own], dim=-2)
