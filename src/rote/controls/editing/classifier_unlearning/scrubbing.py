"""SCRUB: a student leaves its teacher on the forget set and follows it on the retain set.

Knows nothing about: strata, metrics.
Source: Kurmanji et al. 2023, arXiv 2302.09880, eq. 3 and alg. 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from rote.controls.editing.classifier_unlearning.base import (
    Unlearner,
    constant,
    descend,
    frozen_statistics,
    generators,
)
from rote.errors import InputError
from rote.models.classifiers import Examples, SgdRecipe, logits_of, shuffled_batches

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Scrub(Unlearner):
    """Per epoch: one pass over S with -KL_T (while epoch <= msteps, counted from 0, so msteps + 1 passes), then one
    over R with gamma CE + beta KL_T. KL_T is taken between teacher (the original) and student at temperature T."""

    slug: ClassVar[str] = "scrub"
    recipe: SgdRecipe = field(default_factory=lambda: constant(5e-3, 5))
    msteps: int = 4
    temperature: float = 4.0
    gamma: float = 1.0
    beta: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}: it must be positive")
        if self.gamma < 0 or self.beta < 0:
            raise InputError("gamma and beta must not be negative")

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        from torch.nn.functional import cross_entropy

        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        kept, gone, _ = generators(seed)
        size = self.recipe.batch_size

        def distance(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            return distillation(logits_of(teacher, x), logits, self.temperature)

        def losses(epoch: int):
            if epoch <= self.msteps:
                for ids in shuffled_batches(len(forget.y), size, gone):
                    x = forget.x[ids]
                    with frozen_statistics(model):
                        logits = logits_of(model, x)
                    yield -distance(x, logits)
            for ids in shuffled_batches(len(retain.y), size, kept):
                x = retain.x[ids]
                logits = logits_of(model, x)
                yield self.gamma * cross_entropy(logits, retain.y[ids]) + self.beta * distance(x, logits)

        descend(model, self.recipe, losses)


def distillation(
    teacher: Float[torch.Tensor, "batch classes"], student: Float[torch.Tensor, "batch classes"], temperature: float
) -> Float[torch.Tensor, ""]:
    """KL_T = T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over the batch; >= 0."""
    from torch.nn.functional import kl_div

    told, said = (teacher / temperature).softmax(-1), (student / temperature).log_softmax(-1)
    return kl_div(said, told, reduction="batchmean") * temperature**2
