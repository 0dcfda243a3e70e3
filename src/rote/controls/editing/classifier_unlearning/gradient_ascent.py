"""Unlearners that climb the forget loss: NegGrad (alone) and NegGrad+ (against the retain loss).

Forget batches leave batch-norm statistics alone.
Knows nothing about: strata, metrics.
Sources: Golatkar et al. 2020, arXiv 1911.04933 (NegGrad); Kurmanji et al. 2023, arXiv 2302.09880 (NegGrad+).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rote.controls.editing.classifier_unlearning.base import (
    Unlearner,
    constant,
    cross_entropies,
    cross_entropy_of,
    cycle,
    descend,
    generators,
)
from rote.errors import InputError
from rote.models.classifiers import Examples, SgdRecipe

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NegGrad(Unlearner):
    """min -L_S, with nothing to hold the rest: small rates only."""

    slug: ClassVar[str] = "neggrad"
    recipe: SgdRecipe = field(default_factory=lambda: constant(1e-4, 5))

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        _, batches, _ = generators(seed)
        size = self.recipe.batch_size
        descend(
            model,
            self.recipe,
            lambda epoch: (-loss for loss in cross_entropies(model, forget, size, batches, keep_statistics=True)),
        )


@dataclass(frozen=True)
class NegGradPlus(Unlearner):
    """min alpha L_R - (1 - alpha) L_S; one epoch is one pass over R, forget batches drawn without end beside it."""

    slug: ClassVar[str] = "neggrad+"
    recipe: SgdRecipe = field(default_factory=lambda: constant(0.01, 5))
    alpha: float = 0.97

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha}: it must lie in [0, 1]")

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        kept, gone, _ = generators(seed)
        size = self.recipe.batch_size
        forgotten = cycle(len(forget.y), size, gone)

        def losses(epoch: int):
            for loss in cross_entropies(model, retain, size, kept):
                against = cross_entropy_of(model, forget, next(forgotten), keep_statistics=True)
                yield self.alpha * loss - (1 - self.alpha) * against

        descend(model, self.recipe, losses)
