"""One memory of a layer: its own projections and gates, its fast weights, and when they are reset.

    [q; k; v]_t = SiLU(conv(W x))_t  per head, q and k to unit length;  theta_t = theta_max sigmoid(w x_t + b), ...

A path without `shard` is carried through the whole sequence. A path with one starts again every `shard` tokens from the
learned W_init: convolution, fast weights, momentum and query-key projection. So whole shards are independent, and all
shards of all sequences run side by side, as rows of one batch. The token at the border still writes, after the reset.

Rows of a batch are in step: one position for all. Sequences at different positions need a state each.

Knows nothing about: what is done with a read, other paths, language models.
Source: Li et al. 2025, "TNT", arXiv 2511.07343, eqs. 5 to 7; Behrouz et al. 2025, arXiv 2501.00663, sec. 3; Sun et al.
2024, arXiv 2407.04620, sec. 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rote.errors import InputError
from rote.memory.tnt.chunkwise import READS, FastWeights, scan
from rote.memory.tnt.coefficients import Coefficients, titans_coefficients, ttt_coefficients
from rote.memory.tnt.memory_functions import MemoryFunction
from rote.memory.tnt.projection import SCALES, project_queries

ROPE_BASE = 10_000.0


@dataclass(frozen=True)
class PathSettings:
    """One memory. Everything here is part of the function it computes, the chunk size too.

    rate_max: theta lies in (0, rate_max). averaged: TTT's step (average over the mini-batch so far, rate divided by the
    head's width, rotary positions in the mini-batch), else Titans'. conv: taps of the causal convolution, 0 for none.
    """

    dim: int
    heads: int = 1
    function: MemoryFunction = field(default_factory=MemoryFunction)
    chunk: int = 64
    read: str = "token"
    shard: int | None = None
    momentum: bool = False
    forget: bool = False
    rate_max: float = 1 / 64
    averaged: bool = False
    conv: int = 4
    silu: bool = True
    unit_keys: bool = True
    qk_projection: bool = False
    projection_scale: str = "none"

    def __post_init__(self):
        if self.heads < 1 or self.dim < 1 or self.dim % self.heads:
            raise InputError(f"dim {self.dim} cannot be shared by {self.heads} heads: it must be a multiple of them")
        if self.chunk < 1:
            raise InputError(f"chunk is {self.chunk}: it must be 1 or more")
        if self.shard is not None and self.shard < self.chunk:
            raise InputError(f"shard {self.shard} is shorter than the chunk {self.chunk}: give a longer shard")
        if self.read not in READS:
            raise InputError(f"unknown read {self.read!r}; use one of {', '.join(READS)}")
        if self.projection_scale not in SCALES:
            raise InputError(f"unknown projection scale {self.projection_scale!r}; use one of {', '.join(SCALES)}")
        if not self.rate_max > 0:
            raise InputError(f"rate_max is {self.rate_max}: it must be positive")
        if self.conv < 0:
            raise InputError(f"conv is {self.conv}: it must be 0 (none) or a number of taps")
        if self.averaged and (self.momentum or self.forget):
            raise InputError("an averaged step (TTT) has neither momentum nor forgetting: turn them off")
        if self.averaged and (self.dim // self.heads) % 2:
            raise InputError(f"heads of width {self.dim // self.heads}: rotary positions need an even width")


@dataclass(frozen=True)
class PathState:
    """Where one path stands: R sequences in step. fast: R * heads memories; offset: tokens since the last reset.

    tail: the last conv - 1 inputs of the convolution; pi, seen: the query-key projection so far (None: nothing yet).
    """

    fast: FastWeights
    tail: Float[Tensor, "R taps channels"] | None = None
    pi: Float[Tensor, "RH d d"] | None = None
    seen: Float[Tensor, " RH"] | None = None
    offset: int = 0


class MemoryPath(nn.Module):
    """y, state, surprise = path(x, state): the raw read of one memory, same width as x.

    Parameters: qkv (projections), taps (convolution), rates (gates), initial (W_init, one set a head), and for an
    averaged step scale_offset (learned part of 1 / (j + 1)), gamma and beta (the layer norm inside f).
    """

    def __init__(self, settings: PathSettings):
        super().__init__()
        self.settings = s = settings
        self.width = s.dim // s.heads
        self.rate_names = ("theta", *(["alpha"] if s.forget else []), *(["eta"] if s.momentum else []))
        self.qkv = nn.Linear(s.dim, 3 * s.dim, bias=False)
        self.taps = nn.Parameter(torch.empty(3 * s.dim, s.conv)) if s.conv else None
        self.rates = nn.Linear(s.dim, s.heads * len(self.rate_names))
        self.initial = nn.ParameterList(
            [nn.Parameter(torch.empty(s.heads, *shape)) for shape in s.function.shapes(self.width)]
        )
        self.scale_offset = nn.Parameter(torch.zeros(s.chunk)) if s.averaged else None
        residual = s.function.head == "residual"
        self.gamma = nn.Parameter(torch.ones(s.heads, self.width)) if residual else None
        self.beta = nn.Parameter(torch.zeros(s.heads, self.width)) if residual else None
        self.step: Callable | None = None  # a compiled `chunk_step`
        self.checkpoint = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Where learning begins.

        W_init: for TTT N(0, 0.02) with zero biases, as in its public code; for Titans first layers N(0, 1 / fan-in)
        and a last layer of zeros: an empty memory says nothing, so the first writes are heard. Queries and keys start
        with one projection, and convolutions start as "the token before is the key of this one": without both,
        associative recall stayed at chance for hundreds of steps. Gates open half way, forgetting starts at 2 %.
        """
        s = self.settings
        nn.init.normal_(self.qkv.weight, std=s.dim**-0.5)
        with torch.no_grad():
            if not s.averaged:
                self.qkv.weight[s.dim : 2 * s.dim] = self.qkv.weight[: s.dim]
            if self.taps is not None:
                nn.init.uniform_(self.taps, -0.3 * s.conv**-0.5, 0.3 * s.conv**-0.5)
                # Rows: queries, keys, values; the last tap is this token, the one before it the token before.
                for part, back in enumerate((0, min(1, s.conv - 1), 0)):
                    self.taps[part * s.dim : (part + 1) * s.dim, s.conv - 1 - back] += 1
        nn.init.normal_(self.rates.weight, std=0.02)
        for name, bias in zip(self.rate_names, self.rates.bias.view(len(self.rate_names), s.heads), strict=True):
            nn.init.constant_(bias, -4.0 if name == "alpha" else 0.0)
        for layer, weight in enumerate(self.initial):
            last = layer == len(self.initial) - 1
            nn.init.normal_(weight, std=0.02 if s.averaged else 0.0 if last else weight.shape[1] ** -0.5)
            if s.function.bias:
                nn.init.zeros_(weight[:, -1])
        if self.scale_offset is not None:
            nn.init.zeros_(self.scale_offset)
        if self.gamma is not None and self.beta is not None:
            nn.init.ones_(self.gamma)
            nn.init.zeros_(self.beta)

    def fresh(self, rows: int) -> PathState:
        """The state before the first token: W_init for every sequence and head, gradients to it kept."""
        weights = [_float(w).expand(rows, *w.shape).reshape(-1, *w.shape[1:]) for w in self.initial]
        return PathState(FastWeights(weights, weights))

    def forward(
        self,
        x: Float[Tensor, "R T dim"],
        state: PathState | None = None,
        *,
        live: Bool[Tensor, "R T"] | None = None,
        return_surprise: bool = False,
    ) -> tuple[Float[Tensor, "R T dim"], PathState, Float[Tensor, "R T heads"] | None]:
        """Read T tokens behind `state` (None: from the start). live: False on padding, which is never written."""
        rows, total = x.shape[:2]
        shard = self.settings.shard
        state = state or self.fresh(rows)
        if shard is None:
            return self._stretch(x, state, live, return_surprise)
        reads, surprises, start = [], [], 0
        while start < total:
            count = (total - start) // shard if state.offset == 0 else 0
            stop = start + (count * shard if count else min(shard - state.offset, total - start))
            part, mask = x[:, start:stop], None if live is None else live[:, start:stop]
            if count > 1:  # whole shards: each is one more row
                part = part.reshape(rows * count, shard, -1)
                mask = None if mask is None else mask.reshape(rows * count, shard)
                y, _, norms = self._stretch(part, self.fresh(rows * count), mask, return_surprise)
                y = y.reshape(rows, count * shard, -1)
                norms = None if norms is None else norms.reshape(rows, count * shard, -1)
                state = self.fresh(rows)
            else:
                y, state, norms = self._stretch(part, state, mask, return_surprise)
                if state.offset == shard:
                    state = self.fresh(rows)
            reads.append(y)
            surprises.append(norms)
            start = stop
        y = reads[0] if len(reads) == 1 else torch.cat(reads, 1)
        return y, state, torch.cat(surprises, 1) if return_surprise else None

    def _stretch(self, x: Tensor, state: PathState, live: Tensor | None, return_surprise: bool):
        """Tokens without a reset between them."""
        s = self.settings
        rows, total = x.shape[:2]
        memories = rows * s.heads
        mixed, tail = self._convolve(self.qkv(x), state.tail, live)
        q, k, v = _float(mixed).view(rows, total, 3, s.heads, self.width).permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        if s.unit_keys:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if s.averaged:
            q, k = (rotate(part, state.fast.position, s.chunk) for part in (q, k))
        gates = _float(self.rates(x)).view(rows, total, len(self.rate_names), s.heads).sigmoid()
        gates = gates.permute(2, 0, 3, 1).reshape(-1, memories, total)
        rates = dict(zip(self.rate_names, gates.unbind(0), strict=True))
        rates["theta"] = rates["theta"] * (s.rate_max / self.width if s.averaged else s.rate_max)
        alive = None
        if live is not None:
            alive = rates["live"] = live.to(q.dtype).repeat_interleave(s.heads, 0)
        pi, seen = state.pi, state.seen
        if s.qk_projection:
            q, pi, seen = project_queries(q, k, pi, seen, scale=s.projection_scale, live=alive)
        norm = None
        if self.gamma is not None and self.beta is not None:
            norm = (_float(self.gamma).repeat(rows, 1)[:, None], _float(self.beta).repeat(rows, 1)[:, None])
        y, fast, norms = scan(
            s.function, state.fast, q, k, v, rates, self._rule, chunk=s.chunk, read=s.read, norm=norm,
            return_surprise=return_surprise, step=self.step, checkpoint=self.checkpoint,
        )  # fmt: skip
        y = y.view(rows, s.heads, total, self.width).transpose(1, 2).reshape(rows, total, s.dim).to(x.dtype)
        if norms is not None:
            norms = norms.view(rows, s.heads, total).transpose(1, 2)
        return y, PathState(fast, tail, pi, seen, state.offset + total if s.shard is not None else 0), norms

    def _rule(self, rates: dict[str, Tensor], position: int, reads: bool) -> Coefficients:
        theta, live = rates["theta"], rates.get("live")
        if self.scale_offset is None:
            return titans_coefficients(theta, rates.get("alpha"), rates.get("eta"), live, reads=reads)
        steps = torch.arange(1, self.settings.chunk + 1, device=theta.device, dtype=theta.dtype)
        scale = (1 / steps + self.scale_offset.to(theta.dtype)).clamp_min(0)[position : position + theta.shape[-1]]
        return ttt_coefficients(theta if live is None else theta * live, scale, fresh=position == 0, reads=reads)

    def _convolve(self, x: Tensor, tail: Tensor | None, live: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Depthwise causal convolution and SiLU; (result, the last taps - 1 inputs)."""
        if live is not None:
            x = x * live[..., None]
        if self.taps is not None:
            before = self.settings.conv - 1
            padded = F.pad(x, (0, 0, before, 0)) if tail is None else torch.cat([tail, x], 1)
            total = x.shape[1]
            x = padded[:, :total] * self.taps[:, 0]
            for i in range(1, before + 1):
                x = torch.addcmul(x, padded[:, i : i + total], self.taps[:, i])
            tail = padded[:, total:] if before else None
        return F.silu(x) if self.settings.silu else x, tail


def rotate(x: Float[Tensor, "N T d"], position: int, chunk: int) -> Float[Tensor, "N T d"]:
    """Rotary positions counted within the mini-batch (position mod chunk), pairs (2i, 2i + 1)."""
    half = x.shape[-1] // 2
    frequency = ROPE_BASE ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    steps = (torch.arange(x.shape[1], device=x.device) + position) % chunk
    angle = steps[:, None] * frequency
    even, odd = x[..., ::2], x[..., 1::2]
    turned = (even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin())
    return torch.stack(turned, -1).flatten(-2)


def detached(state: PathState) -> PathState:
    """The same state, outside the graph: for decoding and for truncated training."""
    fast = state.fast
    cut = lambda parts: None if parts is None else [part.detach() for part in parts]  # noqa: E731
    one = lambda part: None if part is None else part.detach()  # noqa: E731
    return replace(
        state, fast=FastWeights(cut(fast.frozen), cut(fast.now), cut(fast.momentum), fast.position),  # pyright: ignore
        tail=one(state.tail), pi=one(state.pi), seen=one(state.seen),
    )  # fmt: skip


def _float(x: Tensor) -> Tensor:
    """Fast weights and gates are kept in float32 at least, whatever the model's precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
