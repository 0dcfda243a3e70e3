"""Unlearners that only look at the retain set: retraining (the oracle), fine-tuning, and L1-sparse fine-tuning.

Knows nothing about: strata, metrics.
Sources: Warnecke et al. 2021, arXiv 2108.11577, and Golatkar et al. 2020 (fine-tuning); Jia et al. 2023, arXiv
2304.04934 (L1-sparse).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rote.controls.editing.classifier_unlearning.base import Unlearner, constant, cross_entropies, descend, generators
from rote.errors import InputError
from rote.models.classifiers import Examples, SgdRecipe, fit

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Retrain(Unlearner):
    """The oracle: from scratch on R. Weights are drawn anew by each layer's `reset_parameters`, or by
    `make_model(seed)`."""

    slug: ClassVar[str] = "retrain"
    recipe: SgdRecipe = field(default_factory=lambda: SgdRecipe(learning_rate=0.1, epochs=30))
    make_model: Callable[[int], Any] | None = field(default=None, repr=False)

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        if self.make_model is not None:
            model.load_state_dict(self.make_model(seed).state_dict())
        else:
            redraw(model)
        fit(model, retain, self.recipe, seed=seed)

    def as_dict(self) -> dict:
        return {name: value for name, value in super().as_dict().items() if name != "make_model"}


def redraw(model: nn.Module) -> None:
    """Draw every layer's weights anew, in place, from the global generator.

    Errors: `InputError` naming a parameter whose layer has no `reset_parameters`.
    """
    before = copy.deepcopy({name: value for name, value in model.state_dict().items()})
    owned = set()
    for prefix, module in model.named_modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
            owned |= {f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=True)}
    missing = [name for name, _ in model.named_parameters() if name not in owned]
    if missing:
        model.load_state_dict(before)
        raise InputError(f"parameter {missing[0]} cannot be drawn anew by its layer; pass make_model")


@dataclass(frozen=True)
class FineTune(Unlearner):
    """min L_R: go on training on the retain set."""

    slug: ClassVar[str] = "ft"
    recipe: SgdRecipe = field(default_factory=lambda: constant(0.05, 10))

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        batches, _, _ = generators(seed)
        descend(model, self.recipe, lambda epoch: cross_entropies(model, retain, self.recipe.batch_size, batches))


@dataclass(frozen=True)
class L1Sparse(Unlearner):
    """min L_R + alpha_e ||theta||_1, alpha_e = alpha (1 - e/E): sparsity first, then accuracy."""

    slug: ClassVar[str] = "l1"
    recipe: SgdRecipe = field(default_factory=lambda: constant(0.01, 10))
    alpha: float = 5e-4

    def __post_init__(self):
        if self.alpha < 0:
            raise InputError(f"alpha is {self.alpha}: it must not be negative")

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        batches, _, _ = generators(seed)
        weights = [p for p in model.parameters() if p.requires_grad]

        def losses(epoch: int):
            strength = self.alpha * (1 - epoch / self.recipe.epochs)
            for loss in cross_entropies(model, retain, self.recipe.batch_size, batches):
                yield loss + strength * sum(p.abs().sum() for p in weights)

        descend(model, self.recipe, losses)
