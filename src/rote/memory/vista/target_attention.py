"""Stage 2: candidates attend to a user's few tokens (a cached summary, or raw events) and to themselves.

    p_t = softmax([q_t K_S^T, q_t . k_t] / sqrt(d));   o_t = p_t [V_S; v_t];   y_t = c_t + W_o (LN(o_t) * SiLU(W_u c_t))

Ordinary softmax attention, affordable since S is short. The multiplicative gate is HSTU's: with plain addition a
summary learns its task far more slowly. A candidate never sees another candidate. `TargetAttention.score` goes further:
it computes in blocks of one fixed shape, so that a candidate's number is the same to the last bit whatever stands
beside it and however many.

Source: Chen et al. 2025, arXiv 2510.22049, section 3 (target-aware attention over the summary).
Knows nothing about: where the tokens come from, items, stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from rote.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

SCORE_BLOCK = 128  # candidates computed at once by `score`: always this many, the last block filled up


def isolated_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t d"],
    token_k: Float[Tensor, "b h s d"],
    token_v: Float[Tensor, "b h s d"],
    mask: Bool[Tensor, "b s"] | None = None,
) -> Float[Tensor, "b h t d"]:
    """Each candidate's softmax attention over all tokens and itself: O(T S), no T x T matrix."""
    size = q.shape[-1] ** -0.5
    seen = (q @ token_k.transpose(-1, -2)) * size
    if mask is not None:
        seen = seen.masked_fill(~mask[:, None, None], float("-inf"))
    own = (q * k).sum(-1, keepdim=True) * size
    weights = torch.softmax(torch.cat([seen, own], dim=-1), dim=-1)
    return weights[..., :-1] @ token_v + weights[..., -1:] * v


class TargetAttentionLayer(nn.Module):
    """One block. With `mix`, tokens attend to tokens too (summaries); without, they are only read (raw histories)."""

    def __init__(self, dim: int, heads: int, *, mix: bool):
        super().__init__()
        if dim % heads:
            raise InputError(f"width {dim} is not a multiple of {heads} heads; choose --dim and --heads that divide")
        self.heads, self.mix = heads, mix
        self.norm_token, self.norm_candidate = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm_out, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_project, self.candidate_project = nn.Linear(dim, 4 * dim), nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(
        self, tokens: Float[Tensor, "b s dim"], mask: Bool[Tensor, "b s"] | None, candidates: Float[Tensor, "b t dim"]
    ) -> tuple[Float[Tensor, "b s dim"], Float[Tensor, "b t dim"]]:
        token_u, token_q, token_k, token_v = self._split(self.token_project(self.norm_token(tokens)))
        u, q, k, v = self._split(self.candidate_project(self.norm_candidate(candidates)))
        attended = isolated_attention(q, k, v, token_k, token_v, mask)
        candidates = self._close(candidates, u, attended)
        if self.mix:
            bias = None if mask is None else mask[:, None, None]
            tokens = self._close(
                tokens, token_u, F.scaled_dot_product_attention(token_q, token_k, token_v, attn_mask=bias)
            )
        return tokens, candidates

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, *qkv = x.chunk(4, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv)
        return u, q, k, v

    def _close(self, x: Tensor, u: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(self.norm_out(attended.transpose(1, 2).flatten(-2)) * F.silu(u))
        return x + self.mlp(self.norm_mlp(x))


class TargetAttention(nn.Module):
    """L2 blocks and an MLP head with one logit per task."""

    def __init__(
        self, dim: int, heads: int, layers: int, *, mlp: Sequence[int] = (64,), tasks: int = 1, mix: bool = True
    ):
        super().__init__()
        self.tasks = tasks
        self.layers = nn.ModuleList(
            TargetAttentionLayer(dim, heads, mix=mix and number < layers - 1) for number in range(layers)
        )
        widths = [dim, *mlp]
        hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.head = nn.Sequential(nn.LayerNorm(dim), *hidden, nn.Linear(widths[-1], tasks))

    def forward(
        self,
        tokens: Float[Tensor, "b s dim"],
        candidates: Float[Tensor, "b t dim"],
        mask: Bool[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b t tasks"]:
        """Logits of every candidate. A user may have no token at all (s = 0, or all masked): it then sees itself."""
        for layer in self.layers:
            tokens, candidates = layer(tokens, mask, candidates)
        return self.head(candidates)

    @torch.no_grad()
    def score(
        self,
        tokens: Float[Tensor, "s dim"],
        candidates: Float[Tensor, "t dim"],
        before: Callable[[Float[Tensor, "1 t dim"]], Float[Tensor, "1 t dim"]] | None = None,
    ) -> Float[Tensor, "t tasks"]:
        """Logits of one user's candidates, each bit-identical to scoring it alone. `before` is done to each block of
        candidates first; it may not mix them."""
        found = []
        for block in candidates.split(SCORE_BLOCK):
            filled = F.pad(block, (0, 0, 0, SCORE_BLOCK - len(block)))[None]
            found.append(self(tokens[None], filled if before is None else before(filled))[0, : len(block)])
        return torch.cat(found) if found else candidates.new_zeros(0, self.tasks)
