"""What an interrupted training of a VISTA model goes on with: weights, AdamW's moments, the generator, losses, checks.

Knows nothing about: losses, logs, terminals, the file (`rote.models.unfinished` does).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from rote.models.unfinished import Unfinished, put_back, starting, training_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Kept:
    """What of a training outlives its process. `best` weights and validation `checks` are the caller's, kept with it.

    place: the file. every: steps between two writings.
    """

    place: Unfinished = field(default_factory=Unfinished)
    every: int = 200
    best: dict[str, Tensor] = field(default_factory=dict)
    checks: list[dict[str, float]] = field(default_factory=list)

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, losses: list[float], *,
        done: bool,
    ) -> None:  # fmt: skip
        """Write the state after as many steps as there are losses."""
        tensors = training_tensors(model, optimizer) | {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {"generator": generator.get_state(), "losses": torch.tensor(losses, dtype=torch.float64)}
        self.place.write(tensors, {"checks": self.checks, "done": done})

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> tuple[list[float], bool]:
        """(losses of the steps already done, whether that was all); ([], False) where nothing was kept.

        Errors: InputError for a damaged file.
        """
        found = self.place.read()
        if found is None:
            return [], False
        tensors, facts = found
        put_back(tensors, model, optimizer)
        generator.set_state(tensors["generator"])
        self.best.update(starting(tensors, "best."))
        self.checks[:] = facts["checks"]
        return tensors["losses"].tolist(), facts["done"]
