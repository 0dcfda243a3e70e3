"""What every memory layer shares: reads of its paths are summed, normalised, gated, projected.

    y_t = W_O [ gate(x_t) * norm( sum_p read_p(x_t) ) ]

Knows nothing about: which paths there are, language models, training.
Source: Behrouz et al. 2025, arXiv 2501.00663, sec. 4.4 (normalise and gate before the output projection); Li et al.
2025, arXiv 2511.07343, eq. 7 (the sum).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rote.errors import InputError
from rote.memory.tnt.chunkwise import chunk_step
from rote.memory.tnt.path import MemoryPath, PathSettings
from rote.memory.tnt.state import MemoryState

GATES = ("silu", "gelu", "none")


class MemoryLayer(nn.Module):
    """y, state = layer(x, state); with return_surprise also ||u_t||, a column a path and head.

    A state belongs to the layer that made it: a layer with other settings refuses it.
    """

    def __init__(self, paths: Sequence[PathSettings], *, gate: str = "silu", norm: str = "rms"):
        super().__init__()
        if gate not in GATES:
            raise InputError(f"unknown gate {gate!r}; use one of {', '.join(GATES)}")
        dim = paths[0].dim
        self.paths = nn.ModuleList([MemoryPath(settings) for settings in paths])
        self.norm = nn.RMSNorm(dim, eps=1e-6) if norm == "rms" else nn.LayerNorm(dim, eps=1e-6)
        self.gate_kind = gate
        self.gate = nn.Linear(dim, dim, bias=False) if gate != "none" else None
        self.out = nn.Linear(dim, dim, bias=False)

    @property
    def dim(self) -> int:
        return self.out.in_features

    @property
    def signature(self) -> str:
        """sha256 of every setting of every path: two layers with the same one compute the same kind of function."""
        content = [asdict(path.settings) for path in self._paths()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def forward(
        self,
        x: Float[Tensor, "R T dim"],
        state: MemoryState | None = None,
        *,
        mask: Bool[Tensor, "R T"] | None = None,
        return_surprise: bool = False,
    ):
        """Read x behind `state` (None: from the start of the sequence).

        mask: False on padding; a padded token writes nothing anywhere, its own output means nothing.
        Returns (y, state), or (y, state, surprise) with surprise of shape (R, T, paths, heads).
        Raises: InputError for another shape, an empty sequence, or a state of another layer or batch.
        """
        self._check(x, state, mask)
        total, states, surprises = None, [], []
        for i, path in enumerate(self._paths()):
            before = None if state is None else state.paths[i]
            y, after, norms = path(x, before, live=mask, return_surprise=return_surprise)
            total = y if total is None else total + y
            states.append(after)
            surprises.append(norms)
        assert total is not None
        y = self.norm(total)
        if self.gate is not None:
            kind = torch.nn.functional.silu if self.gate_kind == "silu" else _gelu_tanh
            y = y * kind(self.gate(x))
        seen = x.shape[1] + (0 if state is None else state.tokens)
        result = MemoryState(tuple(states), self.signature, seen, len(x))
        if return_surprise:
            return self.out(y), result, torch.stack(surprises, 2)
        return self.out(y), result

    def compile(self, **options) -> MemoryLayer:
        """Compile the step of one chunk (not the loop over chunks): fewer, larger kernels. Needs a C++ compiler."""
        step = torch.compile(chunk_step, **{"dynamic": False, **options})
        for path in self._paths():
            path.step = step
        return self

    def checkpoint(self, on: bool = True) -> MemoryLayer:
        """Recompute the activations of chunks in the backward pass: memory of long contexts, for one more forward."""
        for path in self._paths():
            path.checkpoint = on
        return self

    def _paths(self) -> list[MemoryPath]:
        return list(self.paths)  # pyright: ignore[reportReturnType]

    def _check(self, x: Tensor, state: MemoryState | None, mask: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise InputError(f"a memory layer reads (batch, tokens, {self.dim}), got {tuple(x.shape)}")
        if not x.shape[1] or not len(x):
            raise InputError(f"there is nothing to read in an input of shape {tuple(x.shape)}: give one token or more")
        if mask is not None and mask.shape != x.shape[:2]:
            raise InputError(f"the mask has shape {tuple(mask.shape)}, the input {tuple(x.shape[:2])}: they must agree")
        if state is None:
            return
        if state.signature != self.signature:
            raise InputError(
                "the state belongs to a memory with other settings (chunk size, shard, heads, depth are part of the"
                " function): read the sequence again with this layer"
            )
        if state.rows != len(x):
            raise InputError(f"the state holds {state.rows} sequences, the input {len(x)}: they must agree")


def _gelu_tanh(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")
