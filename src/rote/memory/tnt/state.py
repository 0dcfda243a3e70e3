"""The state of a memory layer: constant in the length of what was read; saved at any position inside a chunk.

One safetensors file: tensors named path.part[.layer], and in the header the settings' signature, the fingerprint of the
layer's weights, the positions. A file of another layer, or a damaged one, is refused; nothing is half-loaded.

Knows nothing about: how a state comes about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.memory.tnt.chunkwise import FastWeights
from rote.memory.tnt.path import PathState, detached

if TYPE_CHECKING:
    from rote.memory.tnt.layer import MemoryLayer

SCHEMA = "rote.memory.tnt/1"


@dataclass(frozen=True)
class MemoryState:
    """Paths' states, the signature of the layer that made them, tokens read so far, sequences in the batch."""

    paths: tuple[PathState, ...]
    signature: str
    tokens: int
    rows: int

    @property
    def numel(self) -> int:
        """Numbers held, over all sequences. Constant in `tokens`."""
        return sum(tensor.numel() for path in self.paths for _, tensor in _named(path))

    def detach(self) -> MemoryState:
        """The same state without its graph."""
        return replace(self, paths=tuple(detached(path) for path in self.paths))

    def select(self, rows: Int[Tensor, " rows"]) -> MemoryState:
        """The states of these sequences, in this order (beam search, early stopping)."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (self.rows, -1))[rows].flatten(0, 1)

        return replace(self, paths=tuple(_mapped(path, pick) for path in self.paths), rows=len(rows))

    def to(self, device: torch.device | str) -> MemoryState:
        return replace(self, paths=tuple(_mapped(path, lambda x: x.to(device)) for path in self.paths))

    def save(self, path: str | Path, layer: MemoryLayer | None = None) -> Path:
        """Write one safetensors file, whole or not at all. With `layer`, its weights' fingerprint is kept too."""
        from safetensors.torch import save

        tensors = {f"{i}.{name}": x for i, each in enumerate(self.paths) for name, x in _named(each)}
        header = {
            "schema": SCHEMA,
            "signature": self.signature,
            "fingerprint": weights_fingerprint(layer) if layer is not None else "",
            "tokens": str(self.tokens),
            "rows": str(self.rows),
            "positions": json.dumps([[each.fast.position, each.offset] for each in self.paths]),
        }
        content = save({name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}, metadata=header)
        return write_atomic(path, content)

    @staticmethod
    def load(path: str | Path, layer: MemoryLayer) -> MemoryState:
        """Read a state for `layer`.

        Raises InputError: no such file, not a state file, damaged, made by a layer with other settings, or by one with
        the same settings and other weights (where the file names its weights).
        """
        from safetensors import SafetensorError, safe_open

        file = Path(path)
        if not file.is_file():
            raise InputError(f"{file}: no such state file")
        try:
            with safe_open(file, framework="pt") as stream:
                header = stream.metadata() or {}
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: damaged, or not a state file ({str(error).splitlines()[0]})") from None
        if header.get("schema") != SCHEMA:
            raise InputError(
                f"{file}: not a memory state (schema {header.get('schema')!r}); MemoryState.save writes one"
            )
        if header.get("signature") != layer.signature:
            raise InputError(
                f"{file}: state of a memory with other settings (chunk, shard, heads and depth are part of the"
                " function); load it with the layer that made it"
            )
        named = header.get("fingerprint")
        if named and named != weights_fingerprint(layer):
            raise InputError(f"{file}: state of a memory with the same settings but other weights; never mixed")
        try:
            positions = json.loads(header["positions"])
            paths = tuple(_rebuilt(i, tensors, layer, *pair) for i, pair in enumerate(positions))
            return MemoryState(paths, layer.signature, int(header["tokens"]), int(header["rows"]))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise InputError(f"{file}: damaged state file ({type(error).__name__}: {error})") from None


def weights_fingerprint(module: nn.Module) -> str:
    """sha256 over a module's parameters, in name order."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _named(path: PathState):
    """(name, tensor) of one path; at a chunk's start the current weights are the frozen ones and are not written."""
    parts = [("frozen", path.fast.frozen), ("momentum", path.fast.momentum)]
    if path.fast.position:
        parts.append(("now", path.fast.now))
    for name, tensors in parts:
        for layer, tensor in enumerate(tensors or ()):
            yield f"{name}.{layer}", tensor
    for name in ("tail", "pi", "seen"):
        if (tensor := getattr(path, name)) is not None:
            yield name, tensor


def _rebuilt(index: int, tensors: dict[str, Tensor], layer: MemoryLayer, position: int, offset: int) -> PathState:
    depth = layer._paths()[index].settings.function.depth
    part = lambda name: [tensors[f"{index}.{name}.{i}"] for i in range(depth)]  # noqa: E731
    frozen = part("frozen")
    momentum = part("momentum") if f"{index}.momentum.0" in tensors else None
    fast = FastWeights(frozen, part("now") if position else frozen, momentum, position)
    optional = (tensors.get(f"{index}.{name}") for name in ("tail", "pi", "seen"))
    return PathState(fast, *optional, offset=offset)


def _mapped(path: PathState, change: Callable[[Tensor], Tensor]) -> PathState:
    fast = path.fast
    frozen = [change(x) for x in fast.frozen]
    now = frozen if fast.position == 0 else [change(x) for x in fast.now]
    momentum = None if fast.momentum is None else [change(x) for x in fast.momentum]
    one = lambda x: None if x is None else change(x)  # noqa: E731
    return replace(
        path, fast=FastWeights(frozen, now, momentum, fast.position), tail=one(path.tail), pi=one(path.pi),
        seen=one(path.seen),
    )  # fmt: skip
