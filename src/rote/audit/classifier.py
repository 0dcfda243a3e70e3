"""Classifiers, end to end: train with learning events, score by proxies, unlearn refined, judge by oracles.

Everything `rote classifier` does, as functions on a `torch.nn.Module` and `LabelledExamples`; any architecture will do.
Knows nothing about: terminals, command lines. Files of scores are in `rote.audit.classifier_scores`.
Sources: Zhao & Triantafillou 2024, arXiv 2410.16516; Zhao et al. 2024 (RUM), arXiv 2406.01257.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from rote.errors import InputError
from rote.measures import proxies as px
from rote.measures import unlearned_classifier as uc
from rote.models.classifiers import Examples, SgdRecipe, fit, probabilities
from rote.records.labelled_examples import LabelledExamples
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from torch import nn

    from rote.controls.editing.classifier_unlearning import RumResult, Unlearner

Progress = Callable[[str, int, int], None]
_FEW_OUTSIDE = 5  # subset models without an example below which its score is hardly a number


def tensors_of(data: LabelledExamples, classes: Sequence[Any], *, device: str = "cpu") -> Examples:
    """Inputs and encoded labels as tensors. Errors: `InputError` for a label that is not among the classes."""
    import torch

    return Examples(torch.from_numpy(data.x).to(device), torch.from_numpy(data.encoded(classes)).to(device))


@dataclass(frozen=True)
class TrainedClassifier:
    """A model, its learning-event proxies by row of the data (None where rows were left out), and accuracies."""

    model: nn.Module
    events: dict[str, np.ndarray] | None
    accuracy: dict[str, float]
    seconds: float


def train_classifier(
    make_model: Callable[[int], nn.Module],
    data: Examples,
    recipe: SgdRecipe,
    *,
    without: Sequence[int] | np.ndarray = (),
    test: Examples | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainedClassifier:
    """Train one classifier on all rows but `without` (an oracle for that forget set), recording learning events."""
    from rote.internals.classifier import LearningEvents

    kept = np.setdiff1d(np.arange(len(data.y)), np.asarray(without, dtype=np.int64))
    if not len(kept):
        raise InputError("nothing is left to train on: every example is excluded")
    chosen = data.rows(kept)
    start, recorder = time.perf_counter(), LearningEvents(len(kept))

    def told(epoch: int, loss: float) -> None:
        if progress is not None:
            progress("training", epoch + 1, recipe.epochs)

    model = fit(make_model(derive_seed(seed, "init")), chosen, recipe, seed=seed, observers=[recorder], on_epoch=told)
    found = {"train": uc.accuracy(probabilities(model, chosen.x), chosen.y.cpu().numpy())}
    if test is not None:
        found["test"] = uc.accuracy(probabilities(model, test.x), test.y.cpu().numpy())
    events = recorder.scores() if len(kept) == len(data.y) else None
    return TrainedClassifier(model, events, found, time.perf_counter() - start)


@dataclass(frozen=True)
class ProxyScores:
    """Scores per training row by name, the seconds each took, and, when memorization is among them, the agreement."""

    values: dict[str, Float[np.ndarray, " examples"]]
    seconds: dict[str, float]
    memorization: px.MemorizationScores | None
    agreement: tuple[px.ProxyAgreement, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict:
        found = self.memorization
        return {
            "examples": len(next(iter(self.values.values()))),
            "scores": {
                name: {
                    "direction": "higher = more memorized" if px.direction_of(name) > 0 else "lower = more memorized",
                    "mean": float(values.mean()),
                    "min": float(values.min()),
                    "max": float(values.max()),
                    "seconds": self.seconds.get(name),
                }
                for name, values in self.values.items()
            },
            "models": None if found is None else found.models,
            "split_half": None if found is None or found.split_half is None else found.split_half.as_dict(),
            "agreement": [row.as_dict() for row in self.agreement],
            "notes": list(self.notes),
        }


def score_proxies(
    model: nn.Module,
    data: Examples,
    kinds: Sequence[str],
    *,
    holdout: Examples | None = None,
    events: Mapping[str, np.ndarray] | None = None,
    make_model: Callable[[int], nn.Module] | None = None,
    recipe: SgdRecipe | None = None,
    models: int = 80,
    share: float = 0.7,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProxyScores:
    """The scores called `kinds` (names of `rote.measures.proxies.DIRECTIONS`) for every training row.

    The confidence family comes from `events` (it cannot be had after training: re-scoring the finished model is
    another quantity); holdout retraining needs `holdout`; `memorization` trains `models` networks of `make_model` on
    random subsets with `recipe`.
    Errors: `InputError` saying which input a kind lacks.
    """
    from rote.internals import classifier as internals

    if not kinds:
        raise InputError(f"no score was asked for; there are: {', '.join(px.DIRECTIONS)}")
    for kind in kinds:
        px.direction_of(kind)
        if kind in px.LEARNING_EVENTS and (events is None or kind not in events):
            raise InputError(
                f"{kind} is recorded while training, and this model came without a record; train with"
                " rote.internals.classifier.LearningEvents or `rote classifier train`, or ask for holdout_retraining"
            )
        if kind == "holdout_retraining" and holdout is None:
            raise InputError("holdout_retraining needs labelled held-out examples (not those you test with)")
        if kind == px.MEMORIZATION and (make_model is None or recipe is None):
            raise InputError("memorization trains many models: it needs make_model and the recipe")
    values: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    notes: list[str] = []
    memorization = None
    for kind in dict.fromkeys(kinds):
        start = time.perf_counter()
        if kind in px.LEARNING_EVENTS:
            assert events is not None
            values[kind] = np.asarray(events[kind], dtype=np.float64)
            continue  # its cost was paid in training
        if kind == "holdout_retraining":
            assert holdout is not None
            values[kind] = internals.holdout_retraining(model, data.x, holdout, seed=derive_seed(seed, "holdout"))
        elif kind == "curvature":
            values[kind] = internals.loss_curvature(model, data.x, data.y)
            notes.append("curvature is of the finished model; the paper averages it over epochs")
        else:
            assert make_model is not None
            assert recipe is not None
            member = internals.draw_subsets(models, len(data.y), share, seed=seed)
            told = None if progress is None else (lambda done, total: progress(px.MEMORIZATION, done, total))
            found = internals.train_subset_ensemble(
                make_model, data, recipe, member=member, seed=derive_seed(seed, "subsets"), progress=told
            )
            memorization = px.feldman_scores(found.correct, found.member, seed=seed)
            values[kind] = memorization.scores
            least = int((~found.member).sum(0).min())
            if least < _FEW_OUTSIDE:
                notes.append(f"some example was left out by only {least} of {models} models: train more of them")
            if float((memorization.scores > 0.1).mean()) < 0.01:
                notes.append("hardly anything is memorized: rank correlations with the score mean little here")
        seconds[kind] = time.perf_counter() - start
        if progress is not None and kind != px.MEMORIZATION:
            progress(kind, 1, 1)
    agreement: tuple[px.ProxyAgreement, ...] = ()
    if memorization is not None:
        others = {name: found for name, found in values.items() if name != px.MEMORIZATION}
        agreement = tuple(px.proxy_report(memorization.scores, others, seconds))
    return ProxyScores(values, seconds, memorization, agreement, tuple(notes))


def unlearn_refined(
    model: nn.Module,
    data: Examples,
    forget: Sequence[int] | np.ndarray,
    scores: Float[np.ndarray, " examples"],
    plan: Sequence[Unlearner | None],
    *,
    proxy: str = px.MEMORIZATION,
    shuffle: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[RumResult, dict[str, np.ndarray]]:
    """RUM with as many strata as `plan` has steps, least memorized first; returns the result and the strata's rows.

    `scores` of all rows under the name `proxy`, whose direction orders them. `shuffle` deals the forget set out at
    random instead: the control that tells refinement from sequencing.
    """
    from rote.controls.editing.classifier_unlearning import rum, shuffled

    strata = px.refine(np.asarray(forget, dtype=np.int64), scores, k=len(plan), proxy=proxy)
    if shuffle:
        strata = shuffled(strata, seed=seed)
    told = None if progress is None else (lambda done, total: progress("unlearning", done, total))
    steps = dict(zip(px.stratum_names(len(plan)), plan, strict=True))
    return rum(model, data, strata, steps, seed=seed, progress=told), strata


def judge_unlearning(
    models: Mapping[str, nn.Module],
    oracles: Sequence[nn.Module],
    *,
    forget: Examples,
    retain: Examples,
    test: Examples,
) -> dict[str, uc.UnlearningQuality]:
    """ToW, ToW-MIA and all five population attacks of each model against the oracles (networks retrained on `retain`).

    `test` must be data that no proxy and no choice of settings has used.
    """
    if not oracles:
        raise InputError("no oracle: retrain without the forget set at least once, better three times")
    parts = {"forget": forget, "retain": retain, "test": test}
    labels = {name: part.y.cpu().numpy() for name, part in parts.items()}

    def figures(model: nn.Module) -> uc.ClassifierFigures:
        return uc.classifier_figures({name: probabilities(model, part.x) for name, part in parts.items()}, labels)

    theirs = [figures(oracle) for oracle in oracles]
    return {name: uc.against_oracles(figures(model), theirs) for name, model in models.items()}
