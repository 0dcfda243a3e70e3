"""What VISTA is measured against: attention to the raw history, and sequence models without candidates in them.

`RawTargetAttention`: stage 2 over the raw events, all of them or the last R. Its cost grows with the history.
`SequenceModel`: SASRec (causal softmax attention, learned positions) or HSTU (pointwise attention with position and
time bias); a history's last state h ranks items by h . item.

Sources: target attention, Zhou et al. 2018 (DIN, arXiv 1706.06978); SASRec, Kang and McAuley 2018 (arXiv 1808.09781);
HSTU, Zhai et al. 2024 (arXiv 2402.17152).
Knows nothing about: summaries, stores, training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from rote.errors import InputError
from rote.memory.vista.embedding import EventEmbedding, Histories
from rote.memory.vista.hstu import FullAttentionLayer
from rote.memory.vista.target_attention import TargetAttention

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from rote.memory.vista.config import VistaConfig

KINDS = ("sasrec", "hstu", "target")  # those `make_baseline` makes
SEQUENCE_KINDS = KINDS[:2]


class RawTargetAttention(nn.Module):
    """Candidates attend to the raw events: `last` of them, or all (None)."""

    def __init__(
        self,
        config: VistaConfig,
        *,
        last: int | None = None,
        category_of: Int[Tensor, " items"] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.config, self.last = config, last
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = EventEmbedding(config, category_of)
            self.norm = nn.LayerNorm(config.dim)
            self.attention = TargetAttention(
                config.dim, config.heads, config.stage2_layers, mlp=config.mlp, tasks=config.tasks, mix=False
            )

    def tokens(self, histories: Histories) -> tuple[Float[Tensor, "b s dim"], Tensor]:
        seen = histories if self.last is None else histories.tail(histories.mask.sum(1), self.last)
        return self.norm(self.embedding(seen)), seen.mask

    def logits(self, histories: Histories, candidates: Int[Tensor, "b t"]) -> Float[Tensor, "b t tasks"]:
        tokens, mask = self.tokens(histories)
        return self.attention(tokens, self.embedding.candidates(candidates), mask)


class _SoftmaxLayer(nn.Module):
    """A pre-norm transformer block with causal softmax attention."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        # Padding stands behind the events, where a causal row never looks.
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm_mlp(x))


class SequenceModel(nn.Module):
    """SASRec or HSTU at VISTA's width, heads and depth (stage 1 plus stage 2); the last `longest` events are read."""

    def __init__(
        self,
        config: VistaConfig,
        kind: str,
        *,
        longest: int = 200,
        category_of: Int[Tensor, " items"] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if kind not in SEQUENCE_KINDS:
            raise InputError(f"sequence model {kind!r} is not known; use {' or '.join(SEQUENCE_KINDS)}")
        self.kind, self.longest = kind, longest
        layers = config.stage1_layers + config.stage2_layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = EventEmbedding(replace(config, order="none"), category_of)
            self.position = nn.Parameter(torch.randn(longest, config.dim) * 0.02) if kind == "sasrec" else None
            make = (
                (lambda: _SoftmaxLayer(config.dim, config.heads))
                if kind == "sasrec"
                else (lambda: FullAttentionLayer(config.dim, config.heads, longest))
            )
            self.layers = nn.ModuleList(make() for _ in range(layers))
            self.norm = nn.LayerNorm(config.dim)

    def encode(self, histories: Histories) -> Float[Tensor, "b m dim"]:
        """h_1 .. h_M: state i has read events 1 .. i. Raises InputError for more than `longest` events."""
        rows = histories.item.shape[1]
        if rows > self.longest:
            raise InputError(f"a history has {rows} events, this {self.kind} model reads {self.longest}: cut it first")
        x = self.embedding(histories)
        if self.position is not None:
            x = x + self.position[:rows]
        for layer in self.layers:
            x = layer(x) if self.kind == "sasrec" else layer(x, histories.mask, histories.time)
        return self.norm(x)

    def logits(self, histories: Histories, candidates: Int[Tensor, "b t"]) -> Float[Tensor, "b t 1"]:
        """h . item for each user's last state."""
        seen = histories.tail(histories.mask.sum(1), min(self.longest, histories.item.shape[1]))
        state = self.encode(seen)
        last = (seen.mask.sum(1) - 1).clamp(min=0)
        state = state[torch.arange(len(state)), last] * seen.mask.any(1, keepdim=True)
        return (self.embedding.candidates(candidates) @ state[:, :, None]) * self.embedding.item.embedding_dim**-0.5


def make_baseline(
    config: VistaConfig,
    kind: str,
    *,
    longest: int = 200,
    category_of: Int[Tensor, " items"] | None = None,
    seed: int = 0,
) -> SequenceModel | RawTargetAttention:
    """ "sasrec", "hstu", or "target": full target attention, candidates read all raw events. Width, heads and depth are
    VISTA's. Raises InputError for another kind."""
    if kind not in KINDS:
        raise InputError(f"baseline {kind!r} is not known; use {', '.join(KINDS)}")
    if kind != "target":
        return SequenceModel(config, kind, longest=longest, category_of=category_of, seed=seed)
    whole = replace(config, stage2_layers=config.stage1_layers + config.stage2_layers)
    return RawTargetAttention(whole, category_of=category_of, seed=seed)
