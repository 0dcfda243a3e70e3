"""HSTU layers: one projection to U, V, Q, K, an attention without softmax, and the gate U on its normalised output.

    U, V, Q, K = split(W LN(X));   Y = X + W_o (LN(attention(Q, K, V)) * SiLU(U))

`QuasiLinearLayer` reads a state (quasi-linear attention, cost O(N)); `FullAttentionLayer` is HSTU's own pointwise
attention SiLU(Q K^T + bias) / n over all pairs (cost O(N^2)), the baseline.

Source: HSTU, Zhai et al. 2024, arXiv 2402.17152, section 3; QLA, Chen et al. 2025, arXiv 2510.22049, section 3.
Knows nothing about: items, seeds, candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from rote.errors import InputError
from rote.memory.vista.quasi_linear import history_state, read_state

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

TIME_BUCKETS = 64


class _HstuLayer(nn.Module):
    """What both layers share: projection, heads, gate, residual."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise InputError(f"width {dim} is not a multiple of {heads} heads; choose --dim and --heads that divide")
        self.dim, self.heads = dim, heads
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.gate_query, self.key_value = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def gates_and_queries(self, x: Float[Tensor, "b n dim"]) -> tuple[Tensor, Tensor]:
        """U (b, n, dim) and Q (b, heads, n, dim / heads)."""
        u, q = self.gate_query(self.norm_in(x)).chunk(2, dim=-1)
        return u, self.by_head(q)

    def keys_and_values(self, x: Float[Tensor, "b n dim"]) -> tuple[Tensor, Tensor]:
        """K and V (b, heads, n, dim / heads)."""
        k, v = self.key_value(self.norm_in(x)).chunk(2, dim=-1)
        return self.by_head(k), self.by_head(v)

    def by_head(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b heads n d"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def close(self, x: Tensor, u: Tensor, attended: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b n dim"]:
        mixed = self.norm_out(attended.transpose(1, 2).flatten(-2))
        return x + self.out(mixed * F.silu(u))


class QuasiLinearLayer(_HstuLayer):
    """One layer of stage 1. `state` and `read` are apart, so that a history can be read in blocks: first all blocks add
    to the state, then all rows read from it."""

    def state(
        self, x: Float[Tensor, "b n dim"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b heads d d"]:
        """Z of these rows, unscaled."""
        k, v = self.keys_and_values(x)
        return history_state(k, v, None if mask is None else mask[:, None])

    def read(
        self, x: Float[Tensor, "b n dim"], state: Float[Tensor, "b heads d d"], rows: Float[Tensor, " b"]
    ) -> Float[Tensor, "b n dim"]:
        """The layer's output for rows x, given the state of all `rows` rows."""
        u, q = self.gates_and_queries(x)
        return self.close(x, u, read_state(q, state, (1 / rows)[:, None, None, None]))


def time_bucket(seconds: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Log-scaled bucket of a gap in seconds: floor(ln(max(1, gap)) / 0.301), at most 63 (HSTU's own bucketing)."""
    return (torch.log(seconds.clamp(min=1)) / 0.301).long().clamp(max=TIME_BUCKETS - 1)


class FullAttentionLayer(_HstuLayer):
    """HSTU's causal attention over all pairs: A = SiLU(Q K^T + b_position + b_time) / n, n = padded length."""

    def __init__(self, dim: int, heads: int, longest: int):
        super().__init__(dim, heads)
        self.longest = longest
        self.position_bias = nn.Parameter(torch.zeros(longest))
        self.time_bias = nn.Parameter(torch.zeros(TIME_BUCKETS))

    def forward(
        self, x: Float[Tensor, "b n dim"], mask: Bool[Tensor, "b n"], times: Float[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n dim"]:
        u, q = self.gates_and_queries(x)
        k, v = self.keys_and_values(x)
        rows = x.shape[1]
        place = torch.arange(rows, device=x.device)
        bias = self.position_bias[(place[:, None] - place[None]).clamp(min=0, max=self.longest - 1)][None]
        if times is not None:
            bias = bias + self.time_bias[time_bucket(times[:, :, None] - times[:, None])]
        weights = F.silu(F.silu(q) @ F.silu(k).transpose(-1, -2) + bias[:, None]) / rows
        causal = place[:, None] >= place[None]
        weights = weights * (causal & mask[:, None, :])[:, None]
        return self.close(x, u, weights @ F.silu(v))
