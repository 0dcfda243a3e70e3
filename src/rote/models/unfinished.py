"""What of a training outlives its process: named tensors and JSON facts in one safetensors file, whole or not at all.

A file belongs to one training: to the sha256 of everything that decides its result, library versions included. It is
named by that, and then no other training looks at it, or has a fixed name, and then another training is refused. A
training that was killed and started again from its file ends as an uninterrupted one, bit for bit.

Knows nothing about: losses, recipes, when to write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.runtime import versions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def identity_of(*parts: Any) -> str:
    """sha256 over JSON-able settings and NumPy arrays, in order, and the versions of the libraries."""
    digest = hashlib.sha256(json.dumps(versions()).encode())
    for part in parts:
        if hasattr(part, "tobytes"):
            digest.update(str((part.dtype, part.shape)).encode() + part.tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Unfinished:
    """The place where one training is kept. Without a `file` nothing is written, and nothing is there."""

    file: Path | None = None
    identity: str = ""

    @classmethod
    def named(cls, folder: str | Path | None, *parts: Any) -> Unfinished:
        """A file in `folder` whose name is the identity of `parts` (see `identity_of`); None: nothing is kept."""
        if folder is None:
            return cls()
        identity = identity_of(*parts)
        return cls(Path(folder) / f"{identity[:32]}.safetensors", identity)

    def write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
        """Replace what is kept. Facts must be JSON-able; floats come back exactly."""
        from safetensors.torch import save

        if self.file is None:
            return
        # Clones: tensors that share memory (tied weights) cannot be written.
        plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.file, save(plain, {"identity": self.identity, "facts": json.dumps(dict(facts or {}))}))

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """(tensors, facts) of the last `write`; None where there is none.

        Raises InputError for a damaged file, and for one of another training.
        """
        from safetensors import SafetensorError, safe_open

        if self.file is None or not self.file.exists():
            return None
        try:
            with safe_open(self.file, framework="pt") as file:
                meta = file.metadata()
                found, facts = meta["identity"], json.loads(meta["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:80]
            raise InputError(f"{self.file}: cannot be read ({reason}); remove it to train anew") from None
        if found != self.identity:
            raise InputError(
                f"{self.file}: belongs to another run (other data, settings, model or library versions); remove it or"
                " choose another directory"
            )
        return tensors, facts


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, buffers and the optimizer's moments under the names that `put_back` reads."""
    import torch

    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


def put_back(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load what `training_tensors` named; rates and other settings of the optimizer stay as they are."""
    model.load_state_dict(starting(tensors, "model."))
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in starting(tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        states.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def starting(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
