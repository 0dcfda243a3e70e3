"""What all classifier unlearners share: the interface, the descent loop, and care for batch normalisation.

An unlearner is a frozen dataclass of settings with `apply(model, forget, retain, seed)`, which changes the model in
place; `unlearn` works on a copy. Retain and forget batches are drawn by generators of their own, so two methods whose
objectives coincide give the same weights, bit by bit.
Knows nothing about: any method, memorization scores, metrics.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rote.errors import InputError
from rote.models.classifiers import (
    Examples,
    SgdRecipe,
    check_examples,
    finite_loss,
    logits_of,
    set_learning_rate,
    sgd_of,
    shuffled_batches,
)

if TYPE_CHECKING:
    import torch
    from torch import nn


def constant(learning_rate: float, epochs: int, **more) -> SgdRecipe:
    """A recipe at one learning rate: unlearning has no warm state to anneal from."""
    return SgdRecipe(learning_rate=learning_rate, epochs=epochs, schedule="constant", **more)


@dataclass(frozen=True)
class Unlearner(ABC):
    """Base: `recipe` is the SGD of the method; `slug` its name on the command line."""

    slug: ClassVar[str] = ""
    recipe: SgdRecipe = field(default_factory=SgdRecipe)

    @abstractmethod
    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        """Change `model` in place so that it forgets `forget` and keeps `retain`."""

    def as_dict(self) -> dict:
        values = asdict(self)
        return {"method": self.slug, **{key: value for key, value in values.items() if not callable(value)}}


def unlearn(
    model: nn.Module, unlearner: Unlearner | None, forget: Examples, retain: Examples, *, seed: int = 0
) -> nn.Module:
    """A copy of `model` after the unlearner, in eval mode; the copy unchanged for None (do nothing).

    Errors: `InputError` for an empty forget or retain set, labels without a class, a diverged training.
    """
    import torch

    check_examples(model, forget)
    check_examples(model, retain)
    made = copy.deepcopy(model)
    if unlearner is None:
        return made.eval()
    if not any(p.requires_grad for p in made.parameters()):
        made.requires_grad_(True)  # a model frozen as a whole was frozen for use; single frozen layers stay frozen
    made.train()
    with torch.random.fork_rng(devices=[retain.x.device.index or 0] if retain.x.device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        unlearner.apply(made, forget, retain, seed=seed)
    return made.eval()


def lost_classes(forget: Examples, retain: Examples) -> list[int]:
    """Classes of the forget set that the retain set no longer has: a retrained model would not know them at all."""
    return sorted(set(forget.y.tolist()) - set(retain.y.tolist()))


def descend(
    model: nn.Module,
    recipe: SgdRecipe,
    losses: Callable[[int], Iterator[torch.Tensor]],
    *,
    after_step: Callable[[], None] | None = None,
) -> None:
    """SGD on the losses that `losses(epoch)` yields, one step each; each is computed when it is asked for."""
    optimizer = sgd_of(model, recipe)
    model.train()
    for epoch in range(recipe.epochs):
        set_learning_rate(optimizer, recipe.learning_rate_at(epoch))
        total = 0.0
        for loss in losses(epoch):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if after_step is not None:
                after_step()
            total += loss.detach()
        finite_loss(total, epoch)


def generators(seed: int) -> tuple[torch.Generator, torch.Generator, torch.Generator]:
    """Independent streams for retain batches, forget batches and drawn labels."""
    import torch

    from rote.runtime import derive_seed

    return tuple(  # type: ignore[return-value]
        torch.Generator().manual_seed(derive_seed(seed, part) % 2**63) for part in ("retain", "forget", "labels")
    )


def cross_entropies(
    model: nn.Module, data: Examples, size: int, generator: torch.Generator, *, keep_statistics: bool = False
) -> Iterator[torch.Tensor]:
    """One epoch of mean cross-entropies over shuffled batches; `keep_statistics`: batch norm runs in eval mode."""
    for ids in shuffled_batches(len(data.y), size, generator):
        yield cross_entropy_of(model, data, ids, keep_statistics=keep_statistics)


def cross_entropy_of(
    model: nn.Module, data: Examples, ids: torch.Tensor, *, keep_statistics: bool = False
) -> torch.Tensor:
    from torch.nn.functional import cross_entropy

    with frozen_statistics(model) if keep_statistics else _as_is():
        return cross_entropy(logits_of(model, data.x[ids]), data.y[ids])


def cycle(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches without end; every pass is drawn anew."""
    if count < 1:
        raise InputError("the forget set is empty")
    while True:
        yield from shuffled_batches(count, size, generator)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisation in eval mode for a block: forget batches must not enter the running statistics."""
    from torch.nn.modules.batchnorm import _BatchNorm

    training = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()


@contextmanager
def _as_is() -> Iterator[None]:
    yield
