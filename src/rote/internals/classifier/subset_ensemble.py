"""Many trainings on random subsets at once: what memorization and influence are estimated from.

T models of one architecture are one stack of weights; every step is one batched product, each model on its own batch.
Model t is, up to rounding, what `fit` makes of its subset with the same seed, so the fast path has a slow twin.
Knows nothing about: what the correctness matrix is used for.
Source: Feldman & Zhang 2020, arXiv 2008.03703, sec. 2 (the subset estimator: T models, each on a random 70 %).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from rote.errors import InputError
from rote.models.classifiers import (
    Examples,
    SgdRecipe,
    check_examples,
    finite_loss,
    fit,
    logits_of,
    probabilities,
    shuffled_batches,
)
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class SubsetEnsemble:
    """c[t, i]: does model t get example i right; m[t, i]: was it trained on it; the same c on `test`, if given."""

    correct: Bool[np.ndarray, "models examples"]
    member: Bool[np.ndarray, "models examples"]
    test_correct: Bool[np.ndarray, "models test"] | None


def draw_subsets(
    models: int, examples: int, share: float = 0.7, *, seed: int = 0
) -> Bool[np.ndarray, "models examples"]:
    """Each row marks round(share * examples) examples drawn without replacement."""
    if models < 2 or not 0 < share < 1 or not 0 < round(share * examples) < examples:
        raise InputError(f"{models} subsets of a share {share} of {examples}: need 2 or more models, 0 < share < 1")
    rng = np.random.default_rng(derive_seed(seed, "subsets"))
    member = np.zeros((models, examples), bool)
    for row in member:
        row[rng.permutation(examples)[: round(share * examples)]] = True
    return member


def train_subset_ensemble(
    make_model: Callable[[int], nn.Module],
    data: Examples,
    recipe: SgdRecipe,
    *,
    member: Bool[np.ndarray, "models examples"],
    test: Examples | None = None,
    seed: int = 0,
    stacked: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SubsetEnsemble:
    """Train one model per row of `member` (all rows equally many examples), and ask each about every example.

    `make_model(seed)` builds an untrained model. `stacked` None: all at once, or one by one where the model has batch
    normalisation (its running statistics do not stack). Memory when stacked: T times the model's weights, three times.
    """
    mask = np.asarray(member, bool)
    sizes = mask.sum(1)
    if mask.ndim != 2 or mask.shape[1] != len(data.y) or len(np.unique(sizes)) != 1 or sizes[0] == 0:
        raise InputError(f"member must be [models, {len(data.y)}] with equally large, non-empty subsets")
    seeds = [derive_seed(seed, "model", number) for number in range(len(mask))]
    first = make_model(seeds[0])
    check_examples(first, data)
    if stacked is None:
        from torch.nn.modules.batchnorm import _BatchNorm

        stacked = not any(isinstance(module, _BatchNorm) for module in first.modules())
    if stacked:
        models = [first, *(make_model(each) for each in seeds[1:])]
        return _stacked(models, data, recipe, mask, test, seeds, progress)
    found, tested = [], []
    for number, (rows, each) in enumerate(zip(mask, seeds, strict=True)):
        model = fit(make_model(each), data.rows(np.flatnonzero(rows)), recipe, seed=each)
        found.append(_right(model, data))
        if test is not None:
            tested.append(_right(model, test))
        if progress is not None:
            progress(number + 1, len(mask))
    return SubsetEnsemble(np.array(found), mask, np.array(tested) if test is not None else None)


def _right(model: nn.Module, data: Examples) -> np.ndarray:
    return probabilities(model, data.x).argmax(1) == data.y.cpu().numpy()


def _stacked(models, data: Examples, recipe: SgdRecipe, mask, test, seeds, progress) -> SubsetEnsemble:
    import copy

    import torch
    from torch.func import functional_call, stack_module_state, vmap
    from torch.nn.functional import cross_entropy

    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0])

    def logits(weights, fixed, x):
        return logits_of(lambda given: functional_call(skeleton, (weights, fixed), (given,)), x)  # type: ignore[arg-type]

    each = vmap(logits, in_dims=(0, 0, 0), randomness="different")
    shared = vmap(logits, in_dims=(0, 0, None))
    names, weights = list(parameters), [p.detach().requires_grad_(True) for p in parameters.values()]
    momenta = [torch.zeros_like(p) for p in weights]
    rows = torch.as_tensor(np.stack([np.flatnonzero(row) for row in mask]), device=data.x.device)
    generators = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
    skeleton.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0] % 2**63)
        for epoch in range(recipe.epochs):
            orders = [shuffled_batches(rows.shape[1], recipe.batch_size, generator) for generator in generators]
            total, rate = 0.0, recipe.learning_rate_at(epoch)
            for batch in zip(*orders, strict=True):
                chosen = torch.gather(rows, 1, torch.stack(batch).to(rows.device))
                y = data.y[chosen]
                given = dict(zip(names, weights, strict=True))
                losses = (
                    cross_entropy(each(given, buffers, data.x[chosen]).flatten(0, 1), y.flatten(), reduction="sum")
                    / y.shape[1]
                )  # the models' losses share no weight: one sum has all their gradients
                gradients = torch.autograd.grad(losses, weights)
                with torch.no_grad():
                    for p, v, g in zip(weights, momenta, gradients, strict=True):
                        v.mul_(recipe.momentum).add_(g).add_(p, alpha=recipe.weight_decay)
                        p.sub_(v, alpha=rate)
                total += losses.detach()
            finite_loss(total, epoch)
            if progress is not None:
                progress(epoch + 1, recipe.epochs)
    skeleton.eval()
    given = dict(zip(names, weights, strict=True))

    def right(asked: Examples) -> np.ndarray:
        with torch.no_grad():
            blocks = [
                (shared(given, buffers, x).argmax(-1) == y).cpu()
                for x, y in zip(asked.x.split(256), asked.y.split(256), strict=True)
            ]
        return torch.cat(blocks, dim=1).numpy()

    return SubsetEnsemble(right(data), mask, right(test) if test is not None else None)
