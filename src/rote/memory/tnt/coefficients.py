"""How much each token of a chunk writes into what later tokens read: the scalars of the chunkwise closed form.

With local indices 1..C, decay (1 - alpha), momentum eta and step theta (all per token), weights M_0 and momentum S_0
carried into the chunk, and gradients u_i taken at the frozen chunk-start weights:

    A_b[t,j] = prod_{l=j+1..t} (1 - alpha_l),  A_e[j,i] = prod_{l=i+1..j} eta_l      (lower triangular, unit diagonal)
    G = A_b A_e diag(theta),   f_t = sum_{j<=t} A_b[t,j] prod_{l<=j} eta_l,   beta_t = prod_{l<=t} (1 - alpha_l)
    M_t = beta_t M_0 + f_t S_0 - sum_{i<=t} G[t,i] u_i
    S_C = (prod eta) S_0 - sum_i A_e[C,i] theta_i u_i

Products are sums of logarithms inside a mask, never quotients of cumulative products, which underflow.

Knows nothing about: keys, values, networks.
Source: Behrouz, Zhong, Mirrokni 2025, "Titans", arXiv 2501.00663, eqs. 16 and 18, sec. 3.2; Sun et al. 2024, "Learning
to (learn at test time)", arXiv 2407.04620, sec. 2.4 and its public code for the averaged step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST = 1e-30  # of a decay or a momentum: its logarithm stays finite, its product is zero in float32


@dataclass(frozen=True)
class Coefficients:
    """Scalars of chunks, leading axes "n" (any number). None stands for all ones (keep), or for a part that is absent.

    keep beta_t; carry f_t; write G; last G[C,:]; momentum_keep prod eta; momentum_write A_e[C,:] theta. `scaled`: plain
    descent, where G = tril(1) diag(last): the rows g_i are scaled once and G is never formed. `complete` says
    whether the last token of the piece ends its chunk; only there do averaged steps (TTT) move the weights.
    """

    last: Float[Tensor, "*n C"]
    write: Float[Tensor, "*n C C"] | None = None
    keep: Float[Tensor, "*n C"] | None = None
    carry: Float[Tensor, "*n C"] | None = None
    momentum_keep: Float[Tensor, "*n"] | None = None
    momentum_write: Float[Tensor, "*n C"] | None = None
    scaled: bool = False
    averaged: bool = False
    complete: bool = True

    def chunks(self) -> list[Coefficients]:
        """One set a chunk, when the second axis counts chunks: (N, chunks, C) becomes chunks sets of (N, C)."""
        names = ("last", "write", "keep", "carry", "momentum_keep", "momentum_write")
        parts = {name: value.unbind(1) for name in names if (value := getattr(self, name)) is not None}
        return [
            Coefficients(
                **{name: part[i] for name, part in parts.items()},
                scaled=self.scaled,
                averaged=self.averaged,
                complete=self.complete,
            )
            for i in range(self.last.shape[1])
        ]


def segment_products(factors: Float[Tensor, "*n C"]) -> Float[Tensor, "*n C C"]:
    """A[t,j] = prod_{l=j+1..t} factors_l for j <= t, zero above the diagonal.

    factors lie in [0, 1]; the result is exact in the limit at 0 (a total forget) and differentiable there.
    """
    size = factors.shape[-1]
    logs = factors.clamp_min(SMALLEST).log()
    below = torch.ones(size, size, dtype=torch.bool, device=factors.device).tril(-1)
    spread = (
        logs[..., :, None].expand(*logs.shape, size).masked_fill(~below, 0.0)
    )  # row l, column j: log factor_l, l > j
    return spread.cumsum(-2).exp().tril()


def titans_coefficients(
    theta: Float[Tensor, "*n C"],
    alpha: Float[Tensor, "*n C"] | None = None,
    eta: Float[Tensor, "*n C"] | None = None,
    live: Float[Tensor, "*n C"] | None = None,
    *,
    reads: bool = True,
) -> Coefficients:
    """Coefficients of Titans' update; alpha None: no forgetting, eta None: no momentum.

    live is 0 on padding, which must leave no trace: there theta = 0, alpha = 0, eta = 1 and M_t = M_{t-1} + live_t S_t,
    since a held momentum would move the weights in a step that writes nothing.
    reads False leaves out what only a per-token read needs (the read at chunk start needs the last row alone).
    """
    if live is not None:
        theta = theta * live
        alpha = None if alpha is None else alpha * live
        eta = None if eta is None else 1 - live + eta * live
    if alpha is None and eta is None:
        return Coefficients(last=theta, scaled=True)
    if eta is None:
        assert alpha is not None
        decay = segment_products(1 - alpha)
        keep = decay[..., :, 0] * (1 - alpha[..., :1])
        write = decay * theta[..., None, :]
        return Coefficients(last=write[..., -1, :], write=write if reads else None, keep=keep)
    inertia = segment_products(eta)  # A_e
    from_start = inertia[..., :, 0] * eta[..., :1]  # prod_{l<=j} eta_l
    momentum_keep, momentum_write = from_start[..., -1], inertia[..., -1, :] * theta
    if live is not None:
        inertia, from_start = inertia * live[..., :, None], from_start * live
    if alpha is None:
        keep = None
        reach, carry = inertia.cumsum(-2), from_start.cumsum(-1)  # A_b is all ones
    else:
        decay = segment_products(1 - alpha)
        keep = decay[..., :, 0] * (1 - alpha[..., :1])
        if reads:
            reach = decay @ inertia
            carry = (decay @ from_start[..., None])[..., 0]
        else:
            reach = decay[..., -1:, :] @ inertia
            carry = (decay[..., -1:, :] @ from_start[..., None])[..., 0]
    write = reach * theta[..., None, :]
    return Coefficients(
        last=write[..., -1, :],
        write=write if reads else None,
        keep=keep,
        carry=carry,
        momentum_keep=momentum_keep,
        momentum_write=momentum_write,
    )


def ttt_coefficients(
    rate: Float[Tensor, "*n C"], scale: Float[Tensor, " C"], *, fresh: bool, reads: bool = True
) -> Coefficients:
    """Coefficients of TTT's averaged step: position j of a mini-batch reads W_0 - scale_j sum_{i<=j} rate_i u_i.

    Written as Titans with M_0 = W_0 held through the mini-batch and S = -(sum so far): beta = 1, f_j = scale_j,
    G[j,i] = scale_j rate_i. `fresh`: the piece begins a mini-batch, where the sum is zero.
    """
    size = rate.shape[-1]
    lower = torch.ones(size, size, dtype=rate.dtype, device=rate.device).tril()
    return Coefficients(
        last=scale[-1] * rate,
        write=scale[:, None] * rate[..., None, :] * lower if reads else None,
        carry=None if fresh else scale.expand(rate.shape),
        momentum_keep=rate.new_ones(rate.shape[:-1]),
        momentum_write=rate,
        averaged=True,
    )
