"""Influence unlearning: one Newton-like step that removes the forget set's pull, with WoodFisher's inverse Fisher.

    theta_u = theta_o + alpha F^{-1} (1/|D|) [sum_S grad l - (|S|/|R|) sum_R grad l]
    F = lambda I + (1/N) sum_n g_n g_n^T,   g_n the loss gradients of N retain examples

WoodFisher multiplies F^{-1} out by N rank-one updates; the same product is (v - G^T (N lambda I + G G^T)^{-1} G v) /
lambda with the gradients as rows of G, which needs one N x N system and N x weights numbers of memory.
Knows nothing about: strata, metrics.
Sources: Singh & Alistarh 2020, arXiv 2004.14340, eq. 9-10; Izzo et al. 2021; Jia et al. 2023, arXiv 2304.04934.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from rote.controls.editing.classifier_unlearning.base import Unlearner, constant, generators
from rote.errors import InputError
from rote.models.classifiers import Examples, SgdRecipe, logits_of

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Influence(Unlearner):
    """One step of scale `alpha`; `damping` lambda, `samples` N. Of the recipe only the batch size counts."""

    slug: ClassVar[str] = "influence"
    recipe: SgdRecipe = field(default_factory=lambda: constant(1.0, 1))
    alpha: float = 0.2
    damping: float = 1e-3
    samples: int = 256

    def __post_init__(self):
        if not self.damping > 0 or self.samples < 1:
            raise InputError("damping must be positive and samples 1 or more")

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int = 0) -> None:
        import torch
        from torch.nn.utils import parameters_to_vector, vector_to_parameters

        model.eval()
        weights = [p for p in model.parameters() if p.requires_grad]
        gone, kept = (_gradient(model, weights, data, self.recipe.batch_size) for data in (forget, retain))
        count, rest = len(forget.y), len(retain.y)
        pull = (gone - (count / rest) * kept) / (count + rest)
        chosen = torch.randperm(rest, generator=generators(seed)[0])[: self.samples]
        rows = torch.stack([_gradient(model, weights, retain.rows([i]), 1) for i in chosen.tolist()])
        step = self.alpha * inverse_fisher_product(rows, pull, self.damping)
        if not step.isfinite().all():
            raise InputError("the influence step is not finite; raise damping")
        vector_to_parameters(parameters_to_vector(weights).detach() + step, weights)


def inverse_fisher_product(
    gradients: Float[torch.Tensor, "samples weights"], v: Float[torch.Tensor, " weights"], damping: float
) -> Float[torch.Tensor, " weights"]:
    """(lambda I + G^T G / N)^{-1} v for the gradients as rows of G, exactly, by the N x N system (in float64)."""
    import torch

    n = len(gradients)
    small = (gradients @ gradients.T).double()
    small.diagonal().add_(n * damping)
    inner = torch.linalg.solve(small, (gradients @ v).double()).to(v.dtype)
    return (v - gradients.T @ inner) / damping


def _gradient(model: nn.Module, weights: list, data: Examples, size: int) -> torch.Tensor:
    """Sum over the examples of the loss gradient, flat."""
    import torch
    from torch.nn.functional import cross_entropy

    total = torch.zeros(sum(p.numel() for p in weights), device=weights[0].device)
    for x, y in zip(data.x.split(size), data.y.split(size), strict=True):
        loss = cross_entropy(logits_of(model, x), y, reduction="sum")
        total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
    return total
