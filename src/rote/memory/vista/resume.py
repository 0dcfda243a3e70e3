"""An interrupted training goes on where it stopped: weights, AdamW's moments, the generator, losses and checks in one
safetensors file a model, written whole or not at all.

A file is named by what it belongs to (log, settings, model), so another command never reads it. The result of a run
that was killed and started again is that of an uninterrupted one, bit for bit.

Knows nothing about: losses, logs, terminals.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rote.atomic import write_atomic
from rote.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

_ADAMW = ("step", "exp_avg", "exp_avg_sq")


def identity_of(*parts: Any) -> str:
    """sha256 over JSON-able settings and arrays, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if hasattr(part, "tobytes"):
            digest.update(str((part.dtype, part.shape)).encode() + part.tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass
class Kept:
    """What of a training outlives its process. `best` weights and validation `checks` are the caller's, kept with it.

    every: steps between two writings. Nothing is written without a folder.
    """

    folder: Path | None = None
    identity: str = ""
    every: int = 200
    best: dict[str, Tensor] = field(default_factory=dict)
    checks: list[dict[str, float]] = field(default_factory=list)

    @property
    def file(self) -> Path | None:
        return None if self.folder is None else Path(self.folder) / f"{self.identity[:32]}.safetensors"

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, losses: list[float], *,
        done: bool,
    ) -> None:  # fmt: skip
        """Write the state after as many steps as there are losses."""
        from safetensors.torch import save

        if self.file is None:
            return
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adamw.{number}.{key}": torch.as_tensor(state[key]) for key in _ADAMW}
        tensors["generator"] = generator.get_state()
        tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
        meta = {"identity": self.identity, "checks": json.dumps(self.checks), "done": str(int(done))}
        # Clones: what shares memory cannot be written.
        content = save({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, meta)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.file, content)

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> tuple[list[float], bool]:
        """(losses of the steps already done, whether that was all); ([], False) where nothing was kept.

        Errors: InputError for a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        if self.file is None or not self.file.exists():
            return [], False
        try:
            with safe_open(self.file, framework="pt") as file:
                meta = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:80]
            raise InputError(f"{self.file}: cannot be read ({reason}); remove it to train anew") from None
        part = lambda name: {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}  # noqa: E731
        model.load_state_dict(part("model."))
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in part("adamw.").items():
            number, _, key = name.partition(".")
            states.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        generator.set_state(tensors["generator"])
        self.best.update(part("best."))
        self.checks[:] = json.loads(meta["checks"])
        return tensors["losses"].tolist(), meta["done"] == "1"
