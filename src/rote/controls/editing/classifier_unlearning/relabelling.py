"""Unlearners that teach wrong labels: random label, and SalUn, which lets only the salient weights learn them.

Knows nothing about: strata, metrics.
Sources: Golatkar et al. 2020, arXiv 1911.04933 (random label); Fan et al. 2024 (SalUn), arXiv 2310.12508, eq. 3-5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rote.controls.editing.classifier_unlearning.base import (
    Unlearner,
    constant,
    cross_entropies,
    descend,
    generators,
)
from rote.errors import InputError
from rote.models.classifiers import Examples, SgdRecipe, check_examples, logits_of

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class RandomLabel(Unlearner):
    """Cross-entropy on R and S together, S's labels uniform over all classes and redrawn each epoch."""

    slug: ClassVar[str] = "random-label"
    recipe: SgdRecipe = field(default_factory=lambda: constant(0.1, 10))

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        relabel(model, forget, retain, self.recipe, seed=seed)


@dataclass(frozen=True)
class SalUn(Unlearner):
    """Random label on the salient weights only: theta = m theta_u + (1 - m) theta_o, m the top `fraction` of
    |grad L_S|.

    The mask is computed at the original weights, before any step; weights outside it stay exactly as they were, also
    under weight decay.
    """

    slug: ClassVar[str] = "salun"
    recipe: SgdRecipe = field(default_factory=lambda: constant(0.1, 10))
    fraction: float = 0.5

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction is {self.fraction}: it must lie in (0, 1]")

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        mask = saliency_mask(model, forget, self.fraction, batch_size=self.recipe.batch_size)
        relabel(model, forget, retain, self.recipe, seed=seed, mask=mask)


def saliency_mask(
    model: nn.Module, forget: Examples, fraction: float, *, batch_size: int = 256
) -> dict[str, torch.Tensor]:
    """1 on the round(fraction * weights) weights of largest |sum over S of grad L_S|, over all parameters together.

    Computed in eval mode; no step is taken. Ties go to the weight that comes first.
    """
    import torch
    from torch.nn.functional import cross_entropy

    was_training = model.training
    model.eval()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    totals = [torch.zeros_like(p) for _, p in named]
    for x, y in zip(forget.x.split(batch_size), forget.y.split(batch_size), strict=True):
        loss = cross_entropy(logits_of(model, x), y, reduction="sum")
        for total, gradient in zip(totals, torch.autograd.grad(loss, [p for _, p in named]), strict=True):
            total += gradient
    model.train(was_training)
    size = torch.cat([total.abs().flatten() for total in totals])
    chosen = torch.zeros_like(size, dtype=torch.bool)
    chosen[size.argsort(descending=True, stable=True)[: round(fraction * len(size))]] = True
    parts = chosen.split([p.numel() for _, p in named])
    return {name: part.view_as(p) for (name, p), part in zip(named, parts, strict=True)}


def relabel(
    model: nn.Module,
    forget: Examples,
    retain: Examples,
    recipe: SgdRecipe,
    *,
    seed: int = 0,
    mask: dict[str, torch.Tensor] | None = None,
) -> None:
    """Train on R and randomly relabelled S, in place; weights where `mask` is 0 keep their value."""
    import torch

    classes = check_examples(model, forget)
    batches, _, labels = generators(seed)
    x = torch.cat([retain.x, forget.x])

    def losses(epoch: int):
        drawn = torch.randint(classes, (len(forget.y),), generator=labels).to(retain.y)
        yield from cross_entropies(model, Examples(x, torch.cat([retain.y, drawn])), recipe.batch_size, batches)

    fixed = {name: p.detach().clone() for name, p in model.named_parameters()} if mask is not None else {}

    def put_back() -> None:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if mask is not None and name in mask:
                    p.copy_(torch.where(mask[name], p, fixed[name]))

    descend(model, recipe, losses, after_step=put_back if mask is not None else None)
