"""The generative reconstruction loss: can the history be told again from its summary?

A causal transformer reads [z_1 .. z_K, u_1 .. u_M] and emits v_1 .. v_M at the history's positions; v_i may use all of
z and u_1 .. u_i only.

    L_rec = mean over i = 1 .. M-1 of || v_i - u_{i+1} ||_2^2

The paper sums over i too; the mean keeps the loss's weight independent of the length. (Averaged over the dims as well,
the loss teaches nothing beside the task at the paper's weight of 1.) The targets u_{i+1} are detached:
otherwise the embeddings shrink to zero to please the loss. With the true user's summary against another user's, the
same number measures what the summary keeps (`shuffled_gap`).

Source: Chen et al. 2025, arXiv 2510.22049, section 3 (generative reconstruction; weight 1.0 in all public runs).
Knows nothing about: items, how the summary was made.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def sinusoids(rows: int, dim: int, like: Tensor) -> Float[Tensor, "rows dim"]:
    """Sine and cosine position features (Vaswani et al. 2017): they need no longest length."""
    place = torch.arange(rows, dtype=torch.float32, device=like.device)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, device=like.device) * (-math.log(10_000) / dim))
    return torch.stack([torch.sin(place * rate), torch.cos(place * rate)], dim=-1).flatten(1)[:, :dim].to(like.dtype)


class Decoder(nn.Module):
    """The causal decoder: pre-norm transformer blocks without a softmax output layer."""

    def __init__(self, dim: int, heads: int, layers: int):
        super().__init__()
        self.heads = heads
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(dim),
                    "qkv": nn.Linear(dim, 3 * dim),
                    "out": nn.Linear(dim, dim),
                    "norm_mlp": nn.LayerNorm(dim),
                    "mlp": nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)),
                }
            )
            for _ in range(layers)
        )
        self.norm, self.emit = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.tensor(dim**-0.5))

    def forward(self, summary: Float[Tensor, "b k dim"], events: Float[Tensor, "b m dim"]) -> Float[Tensor, "b m dim"]:
        """v_1 .. v_M. Padding may only stand behind the events: a causal decoder never looks there."""
        seeds, rows = summary.shape[1], events.shape[1]
        # Embeddings are small against their positions; brought to the summary's size first.
        told = F.layer_norm(events, events.shape[-1:]) + sinusoids(rows, events.shape[-1], events)
        x = torch.cat([summary, told], dim=1)
        for block in self.blocks:
            q, k, v = (
                part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in block["qkv"](block["norm"](x)).chunk(3, dim=-1)  # type: ignore[index]
            )
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](attended.transpose(1, 2).flatten(-2))  # type: ignore[index]
            x = x + block["mlp"](block["norm_mlp"](x))  # type: ignore[index]
        return self.emit(self.norm(x[:, seeds:])) * self.scale


def reconstruction_error(
    told: Float[Tensor, "b m dim"], events: Float[Tensor, "b m dim"], mask: Bool[Tensor, "b m"]
) -> Float[Tensor, " b"]:
    """L_rec of each user: the mean over i of || v_i - u_{i+1} ||_2^2; 0 for a user with fewer than two events."""
    pairs = (mask[:, 1:] & mask[:, :-1]).to(told.dtype)
    error = (told[:, :-1] - events[:, 1:].detach()).square().sum(-1)
    return (error * pairs).sum(1) / pairs.sum(1).clamp(min=1)


@torch.no_grad()
def shuffled_gap(
    decoder: Decoder,
    summary: Float[Tensor, "b k dim"],
    events: Float[Tensor, "b m dim"],
    mask: Bool[Tensor, "b m"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """L_rec of each user with the user's own summary, and with another user's (a random cyclic exchange).

    Own below other = the summary memorizes this user, not only the population.
    """
    order = torch.randperm(len(summary), generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    own_error = reconstruction_error(decoder(summary, events), events, mask)
    return own_error, reconstruction_error(decoder(summary[other], events), events, mask)
