"""What `generate` carries from token to token: one memory state a layer, constant in the length of the text.

Rows of a batch stand at one position inside a chunk only when their texts are equally long. A batch padded on the left
is therefore kept as groups of equally long rows, each with its own states.

Knows nothing about: the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from rote.errors import InputError
from rote.memory.tnt.state import MemoryState


@dataclass
class Group:
    """Rows of the batch that are in step, and their states, one a layer (None before the first token)."""

    rows: Int[Tensor, " rows"]
    states: list[MemoryState] | None


class StateLayer:
    """How one layer's state looks to code that counts bytes of a cache by its `keys`."""

    is_initialized = True
    values = None

    def __init__(self, states: list[MemoryState]):
        self.states = states

    @property
    def keys(self) -> Tensor:
        rows = sum(state.rows for state in self.states)
        return torch.empty(rows, sum(state.numel for state in self.states) // rows, device="meta")


class TNTCache:
    """`past_key_values` of the model, with the methods that transformers calls."""

    is_compileable = False
    is_sliding: tuple = ()

    def __init__(self):
        self.groups: list[Group] = []
        self.seen = 0

    @property
    def layers(self) -> list[StateLayer]:
        kept = [group.states for group in self.groups if group.states is not None]
        return [StateLayer([states[i] for states in kept]) for i in range(len(kept[0]) if kept else 0)]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def rows(self) -> int:
        return sum(len(group.rows) for group in self.groups)

    @property
    def numel(self) -> int:
        """Numbers held in all layers for all rows."""
        return sum(state.numel for group in self.groups for state in group.states or ())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far, padding included."""
        return self.seen

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        chosen = []
        for group in self.groups:
            where = (
                indices[:, None].to(group.rows) == group.rows
            ).nonzero()  # (place in the new batch, row in the group)
            if len(where):
                states = None if group.states is None else [state.select(where[:, 1]) for state in group.states]
                chosen.append(Group(where[:, 0], states))
        self.groups = chosen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self.rows)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, *_: Any, **__: Any) -> None:
        """A memory that has read a token cannot unread it."""
        raise InputError("a test-time memory cannot be cropped: assisted generation is not possible with this model")
