"""Holdout retraining: how far does a training example's prediction move when a copy is tuned on data it is not in?

Needs no training log, only a delivered checkpoint and labelled held-out examples. The copy is thrown away. The held-out
examples must not be those that later measure test accuracy: their labels have been used.
Knows nothing about: strata, unlearning.
Source: Zhao & Triantafillou 2024, arXiv 2410.16516 (holdout retraining; the proxy is Carlini et al. 2019's, arXiv
1910.13427).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from rote.errors import InputError
from rote.measures.proxies import symmetric_kl
from rote.models.classifiers import Examples, SgdRecipe, check_examples, fit, probabilities

if TYPE_CHECKING:
    import torch
    from torch import nn

RECIPE = SgdRecipe(learning_rate=0.1, epochs=30, schedule="constant")
PATIENCE = 4  # epochs without a better running loss


def holdout_retraining(
    model: nn.Module,
    x: Float[torch.Tensor, "examples ..."],
    holdout: Examples,
    *,
    recipe: SgdRecipe = RECIPE,
    patience: int = PATIENCE,
    seed: int = 0,
) -> Float[np.ndarray, " examples"]:
    """1/2 [KL(p_o || p_h) + KL(p_h || p_o)] per training example; p_h is the copy's after tuning on `holdout`.

    Range [0, 23] nats, higher = more memorized. `model` is left as it is.
    Errors: `InputError` when most of the held-out inputs are among `x`, or labels are not the model's.
    """
    check_examples(model, holdout)
    shared = _shared_rows(x, holdout.x)
    if 2 * shared > len(holdout.y):
        raise InputError(
            f"{shared} of {len(holdout.y)} held-out inputs are training inputs: holdout retraining needs unseen data"
        )
    tuned = copy.deepcopy(model)
    best, since = float("inf"), 0

    def enough(epoch: int, loss: float) -> bool:
        nonlocal best, since
        best, since = (loss, 0) if loss < best else (best, since + 1)
        return since >= patience

    fit(tuned.requires_grad_(True), holdout, recipe, seed=seed, on_epoch=enough)
    return symmetric_kl(probabilities(model, x), probabilities(tuned, x))


def _shared_rows(x: torch.Tensor, held: torch.Tensor) -> int:
    if x.shape[1:] != held.shape[1:]:
        raise InputError(f"held-out inputs have shape {tuple(held.shape[1:])}, training inputs {tuple(x.shape[1:])}")
    known = {row.tobytes() for row in x.detach().cpu().numpy()}
    return sum(row.tobytes() in known for row in held.detach().cpu().numpy())
