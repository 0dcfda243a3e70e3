"""Stage 1: K learned seeds read a whole history and become its summary z_1 .. z_K.

The seeds stand behind the history and pass through L1 quasi-linear layers with it; the rows at their positions are the
summary. The seeds are the same for every user, the summary is the user's own. Any length of history goes through in
blocks: layer by layer, all blocks add to the layer's state, with the earlier layers recomputed per block, so memory is
one block and time is L1 (L1 + 1) / 2 passes.

Source: Chen et al. 2025, arXiv 2510.22049, section 3 (virtual seeds; the layout of seeds behind the history is
inferred).
Knows nothing about: items, candidates, stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from rote.memory.vista.hstu import QuasiLinearLayer

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

BLOCK = 8192  # events held at once when a long history is read in blocks


class Summariser(nn.Module):
    """Seeds and L1 layers. A summary is layer-normalised: of one size whatever the history.

    What leaves is its deviation from `centre`, the mean summary of the training users (0 until it is measured): most of
    a summary is common to all users, and what is common need not be stored, nor quantised, once per user.
    """

    def __init__(self, dim: int, heads: int, seeds: int, layers: int):
        super().__init__()
        self.seeds = nn.Parameter(torch.randn(seeds, dim) / dim**0.5)
        self.blocks = nn.ModuleList(QuasiLinearLayer(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(seeds, dim))

    @property
    def layers(self) -> list[QuasiLinearLayer]:
        return cast("list[QuasiLinearLayer]", list(self.blocks))

    def forward(
        self, events: Float[Tensor, "b m dim"], mask: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b k dim"], list[Float[Tensor, "b heads d d"]]]:
        """The summaries and the state of every layer (the history's part and the seeds')."""
        users, seeds = len(events), len(self.seeds)
        x = torch.cat([events, self.seeds.expand(users, -1, -1)], dim=1)
        kept = torch.cat([mask, mask.new_ones(users, seeds)], dim=1)
        rows = kept.sum(1).to(x.dtype)
        states = []
        for number, layer in enumerate(self.layers):
            states.append(layer.state(x, kept))
            if number == len(self.layers) - 1:
                x = x[:, -seeds:]  # nobody reads the last layer's other rows
            x = layer.read(x, states[-1], rows)
        return self.summary(x), states

    def summary(self, seed_rows: Float[Tensor, "b k dim"]) -> Float[Tensor, "b k dim"]:
        """z of the seeds' rows after the last layer."""
        return self.norm(seed_rows) - self.centre

    def stream(
        self, blocks: Callable[[], Iterable[Float[Tensor, "m dim"]]], events: int
    ) -> tuple[Float[Tensor, "k dim"], list[Float[Tensor, "heads d d"]]]:
        """One user's summary from blocks of event embeddings; `blocks()` starts again from the first at every call.

        Equal to `forward` up to the order of additions; memory is that of one block.
        """
        rows = self.seeds.new_tensor([events + len(self.seeds)])
        seed_rows, states = self.seeds[None], []
        for layer in self.layers:
            total = layer.state(seed_rows)
            for block in blocks():
                if len(block):
                    total = total + layer.state(self.through(block[None], states, rows))
            states.append(total)
            seed_rows = layer.read(seed_rows, total, rows)
        return self.summary(seed_rows)[0], [state[0] for state in states]

    def through(
        self, x: Float[Tensor, "b m dim"], states: list[Float[Tensor, "b heads d d"]], rows: Float[Tensor, " b"]
    ) -> Float[Tensor, "b m dim"]:
        """Rows x after as many layers as there are states."""
        for layer, state in zip(self.layers, states, strict=False):
            x = layer.read(x, state, rows)
        return x

    def read_seeds(
        self, states: list[Float[Tensor, "b heads d d"]], rows: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k dim"]:
        """The summary that given states stand for."""
        return self.summary(self.through(self.seeds.expand(len(rows), -1, -1), states, rows))
