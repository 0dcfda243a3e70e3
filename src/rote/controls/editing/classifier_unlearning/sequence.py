"""RUM: unlearn a forget set stratum by stratum, from least to most memorized, each with the method that suits it.

Step k starts from step k-1's weights; its retain set is everything except the strata already processed and the current
one, so strata still to come are retained until their turn. One stratum is the base method.
Knows nothing about: how strata were made (`rote.measures.proxies.refine`), metrics.
Source: Zhao et al. 2024 (RUM), arXiv 2406.01257, sec. 5; Zhao & Triantafillou 2024, arXiv 2410.16516 (continual).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from rote.controls.editing.classifier_unlearning.base import Unlearner, lost_classes, unlearn
from rote.errors import InputError
from rote.models.classifiers import Examples
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from torch import nn

Strata = Mapping[str, Int[np.ndarray, " stratum"]]
Plan = Mapping[str, Unlearner | None]
_ORDER = ("low", "medium", "high")


@dataclass(frozen=True)
class RumStep:
    """One step as it was done: the unlearner's settings, how many were forgotten and retained, and the seconds."""

    stratum: str
    unlearner: dict
    forget: int
    retain: int
    seconds: float

    def as_dict(self) -> dict:
        return {"stratum": self.stratum, **vars(self), "unlearner": dict(self.unlearner)}


@dataclass(frozen=True)
class RumResult:
    """The model after the last step, what was done, and remarks on the request."""

    model: nn.Module
    steps: tuple[RumStep, ...]
    notes: tuple[str, ...]


def steps_of(
    examples: int, strata: Strata, *, already: Sequence[int] | np.ndarray = ()
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(stratum, its rows, the rows retained at that step), low to high; `already` forgotten rows are never retained.

    Errors: `InputError` for rows that do not exist or stand in two strata.
    """
    names = [name for name in _ORDER if name in strata] if set(strata) <= set(_ORDER) else list(strata)
    gone = np.zeros(examples, bool)
    for part in (np.asarray(already, dtype=np.int64), *(np.asarray(strata[name], np.int64) for name in names)):
        if len(part) and not (part.min() >= 0 and part.max() < examples):
            raise InputError(f"row {int(part.max())} is to be forgotten, but there are {examples} examples")
        if gone[part].any() or len(np.unique(part)) != len(part):
            raise InputError("an example is to be forgotten twice; strata must be disjoint")
        gone[part] = True
    kept = np.ones(examples, bool)
    kept[np.asarray(already, dtype=np.int64)] = False
    for name in names:
        rows = np.asarray(strata[name], dtype=np.int64)
        kept[rows] = False
        yield name, rows, np.flatnonzero(kept)


def rum(
    model: nn.Module,
    data: Examples,
    strata: Strata,
    plan: Plan,
    *,
    already: Sequence[int] | np.ndarray = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RumResult:
    """Unlearn the strata in sequence, on a copy of `model`.

    Args: `strata` name -> rows of `data`; low, medium, high in that order whatever the mapping's, other names in the
    mapping's order. `plan` name -> unlearner, None = leave the stratum alone. With one stratum the result is
    `unlearn(model, plan[name], ...)` with the same seed.
    Errors: `InputError` when plan and strata name different things, a stratum is empty, or nothing would be retained.
    """
    if set(plan) != set(strata):
        raise InputError(f"the plan is for {', '.join(plan)}, the strata are {', '.join(strata)}")
    done: list[RumStep] = []
    notes: list[str] = []
    for number, (name, rows, retained) in enumerate(steps_of(len(data.y), strata, already=already)):
        if not len(rows) or not len(retained):
            raise InputError(f"stratum {name} has {len(rows)} examples to forget and {len(retained)} to retain")
        start, unlearner = time.perf_counter(), plan[name]
        forget, retain = data.rows(rows), data.rows(retained)
        step_seed = seed if number == 0 else derive_seed(seed, "rum", number)
        model = unlearn(model, unlearner, forget, retain, seed=step_seed)
        settings = {"method": "nothing"} if unlearner is None else unlearner.as_dict()
        done.append(RumStep(name, settings, len(rows), len(retained), time.perf_counter() - start))
        if lost := lost_classes(forget, retain):
            notes.append(
                f"after stratum {name} the retain set has no example of class {', '.join(map(str, lost))}: a retrained"
                " model would not know it"
            )
        if progress is not None:
            progress(number + 1, len(strata))
    return RumResult(model, tuple(done), tuple(dict.fromkeys(notes)))


def shuffled(strata: Strata, *, seed: int = 0) -> dict[str, np.ndarray]:
    """The control: the same names and sizes, the examples dealt out at random. If it does as well, sequencing helped
    and refinement did not."""
    rows = np.concatenate([np.asarray(part, dtype=np.int64) for part in strata.values()])
    rows = rows[np.random.default_rng(derive_seed(seed, "shuffle")).permutation(len(rows))]
    cuts = np.cumsum([len(part) for part in strata.values()])[:-1]
    return dict(zip(strata, np.split(rows, cuts), strict=True))


def continual(
    model: nn.Module,
    data: Examples,
    requests: Sequence[Sequence[int] | np.ndarray],
    strata_of: Callable[[nn.Module, np.ndarray], Strata],
    plan: Plan,
    *,
    seed: int = 0,
) -> list[RumResult]:
    """Deletion requests one after the other; each is refined by scores of the model as it is *then*.

    `strata_of(current model, rows)` must score anew (holdout retraining needs nothing but the checkpoint). Earlier
    requests are never retained again.
    """
    gone: list[int] = []
    results = []
    for number, request in enumerate(requests):
        rows = np.asarray(request, dtype=np.int64)
        result = rum(model, data, strata_of(model, rows), plan, already=gone, seed=derive_seed(seed, "request", number))
        results.append(result)
        model = result.model
        gone += rows.tolist()
    return results
