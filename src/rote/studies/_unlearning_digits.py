"""The setting of the study `unlearning-proxies`: noisy digits, the one trained network, and the judge of forgetting it.

Holdout labels are used by a proxy, so the test set of ToW is another. Oracles are retrained networks, never the
original. Knows nothing about: claims, strata.
Source: the card's section 5 (real digits, a tenth of the training labels replaced by a wrong class).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.measures import unlearned_classifier as uc
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from torch import nn

    from rote.controls.editing.classifier_unlearning import Unlearner
    from rote.models.classifiers import ClassifierSpec, Examples, SgdRecipe

TRAIN, NOISY, HOLDOUT, TEST = 1000, 100, 397, 400
WIDTH, EPOCHS, BATCH = 128, 80, 50


@dataclass(frozen=True)
class World:
    """The data, which labels are wrong, and the one trained model that everything is asked of."""

    train: Examples
    noisy: np.ndarray
    holdout: Examples
    test: Examples
    model: nn.Module
    recorder: Any
    curvature: Any
    seconds: float


def make_world(seed: int) -> World:
    import torch
    from sklearn.datasets import load_digits

    from rote.internals.classifier import CurvatureRecorder, LearningEvents
    from rote.models.classifiers import Examples, fit

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(derive_seed(seed, "digits"))
    order = rng.permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int64)
    noisy = np.zeros(TRAIN, bool)
    noisy[rng.choice(TRAIN, NOISY, replace=False)] = True
    y[:TRAIN][noisy] = (y[:TRAIN][noisy] + rng.integers(1, 10, NOISY)) % 10  # never the right class
    cuts = (slice(TRAIN), slice(TRAIN, TRAIN + HOLDOUT), slice(TRAIN + HOLDOUT, TRAIN + HOLDOUT + TEST))
    train, holdout, test = (Examples(torch.from_numpy(x[part]), torch.from_numpy(y[part])) for part in cuts)
    model_seed = derive_seed(seed, "model")
    model, recorder = spec().build(model_seed), LearningEvents(TRAIN)
    curvature = CurvatureRecorder(model, train)
    start = time.perf_counter()
    fit(model, train, recipe(), seed=model_seed, observers=[recorder], on_epoch=curvature)
    return World(train, noisy, holdout, test, model, recorder, curvature, time.perf_counter() - start)


def spec() -> ClassifierSpec:
    from rote.models.classifiers import ClassifierSpec

    return ClassifierSpec("mlp", (64,), 10, (WIDTH,))


def recipe() -> SgdRecipe:
    from rote.models.classifiers import SgdRecipe

    return SgdRecipe(learning_rate=0.1, epochs=EPOCHS, batch_size=BATCH)


class Judge:
    """Accuracies of a model on one forget set, its complement and the test set; ToW against oracles made once."""

    def __init__(self, world: World, forget: np.ndarray, count: int, seed: int):
        from rote.controls.editing.classifier_unlearning import Retrain, unlearn

        self.forget, self.world = np.sort(forget), world
        self.retain = np.setdiff1d(np.arange(TRAIN), forget)
        self.parts = {
            "forget": world.train.rows(self.forget), "retain": world.train.rows(self.retain), "test": world.test
        }  # fmt: skip
        self.labels = {name: part.y.numpy() for name, part in self.parts.items()}
        method = Retrain(recipe(), make_model=spec().build)
        self.models = [
            unlearn(
                world.model, method, self.parts["forget"], self.parts["retain"], seed=derive_seed(seed, "oracle", k)
            )
            for k in range(count)
        ]
        self.oracles = [self.figures(model) for model in self.models]

    def probabilities(self, model: nn.Module) -> dict[str, np.ndarray]:
        from rote.models.classifiers import probabilities

        return {name: probabilities(model, part.x) for name, part in self.parts.items()}

    def figures(self, model: nn.Module, *, attack: bool = False) -> uc.ClassifierFigures:
        features = uc.FEATURES if attack else ()
        return uc.classifier_figures(self.probabilities(model), self.labels, features=features)

    def tow(self, models: Sequence[nn.Module], oracles: slice) -> list[float]:
        """ToW of each model against each of these oracles."""
        found = [self.figures(model).shares() for model in models]
        return [uc.tug_of_war(ours, oracle.shares()) for ours in found for oracle in self.oracles[oracles]]

    def unlearn(self, unlearner: Unlearner | None, seed: int) -> nn.Module:
        from rote.controls.editing.classifier_unlearning import unlearn

        return unlearn(self.world.model, unlearner, self.parts["forget"], self.parts["retain"], seed=seed)
