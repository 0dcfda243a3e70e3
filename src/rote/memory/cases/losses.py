"""The losses of the prototype phase: right votes, prototypes near their own class, far from others, unlike each other.

    8.0   weighted BCE     mean_i u(y_i) BCE(sigmoid(z_i), y_i / R)
    2.01  cluster          -mean_i max_{p in class(y_i)} (y_i / R) S(x_i, p)
    5.0   separation        mean_i max_{p not in class(y_i)} (|y_i - y_p| / R) S(x_i, p)
    3.10  orthogonality     || P P^T - I ||_F of unit prototypes, latent and fft part
    1.0   statistics        a_0 - min(a_1, a_2, a_3)
    6e-4  L1 of the head

y are votes of R raters, classes 0 .. R. Coefficients and class weights u are those of the released configuration for
R = 8 (Tang et al. 2025, arXiv 2510.20846, code).

Knows nothing about: networks, montages, optimisers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

VOTE_WEIGHTS_OF_8 = (1.11, 7.18, 6.20, 6.76, 5.22, 4.62, 2.29, 2.05, 1.0)  # code


@dataclass(frozen=True)
class LossWeights:
    """Coefficients of the sum."""

    bce: float = 8.0
    cluster: float = 2.01
    separation: float = 5.0
    orthogonality: float = 3.10
    statistics: float = 1.0
    l1: float = 6e-4

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def vote_class_weights(votes: Int[Tensor, " n"], raters: int) -> Float[Tensor, " classes"]:
    """u of every vote class: the paper's for 8 raters; for others inverse frequencies, the smallest 1, at most 10."""
    if raters == 8:
        return torch.tensor(VOTE_WEIGHTS_OF_8)
    counts = torch.bincount(votes, minlength=raters + 1).clamp_min(1).float()
    return (counts.max() / counts).clamp(max=10.0)


def head_log_odds(raters: int) -> Float[Tensor, " classes"]:
    """log(f / (1 - f)) of the vote fraction f = y / R, with f kept in [.05, .95]: what a class says about the logit."""
    fraction = (torch.arange(raters + 1) / raters).clamp(0.05, 0.95)
    return torch.logit(fraction)


def weighted_bce(
    logit: Float[Tensor, " n"], votes: Int[Tensor, " n"], raters: int, class_weight: Float[Tensor, " classes"]
) -> Tensor:
    """mean_i u(y_i) BCE(sigmoid(z_i), y_i / R)."""
    return F.binary_cross_entropy_with_logits(logit, votes.float() / raters, weight=class_weight[votes])


def cluster_cost(
    scores: Float[Tensor, "n p"], votes: Int[Tensor, " n"], classes: Int[Tensor, " p"], raters: int
) -> Tensor:
    """-mean_i max_{p in class(y_i)} (y_i / R) S(x_i, p); a class without prototypes counts 0."""
    own = votes[:, None] == classes[None]
    best = scores.masked_fill(~own, float("-inf")).amax(1)
    best = torch.where(own.any(1), best, torch.zeros_like(best))
    return -(votes / raters * best).mean()


def separation_cost(
    scores: Float[Tensor, "n p"], votes: Int[Tensor, " n"], classes: Int[Tensor, " p"], raters: int
) -> Tensor:
    """mean_i max_{p not in class(y_i)} (|y_i - y_p| / R) S(x_i, p)."""
    far = (votes[:, None] - classes[None]).abs() / raters
    other = far > 0
    worst = (far * scores).masked_fill(~other, float("-inf")).amax(1)
    return torch.where(other.any(1), worst, torch.zeros_like(worst)).mean()


def orthogonality_cost(*parts: Float[Tensor, "p ..."]) -> Tensor:
    """Sum over parts of || P P^T - I ||_F, the rows of P flattened and of length 1."""
    total = parts[0].new_zeros(())
    for part in parts:
        unit = F.normalize(part.flatten(1), dim=1)
        total = total + torch.linalg.matrix_norm(unit @ unit.T - torch.eye(len(unit), device=unit.device))
    return total


def statistics_cost(importance: Float[Tensor, " 4"]) -> Tensor:
    """a_0 - min(a_1, a_2, a_3): keeps the interpretable parts from vanishing."""
    return importance[0] - importance[1:].min()
