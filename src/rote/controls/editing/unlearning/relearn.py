"""Relearning: how fast does forgotten knowledge come back, compared with knowledge that was never taught?

A copy of the model is fine-tuned on a little data and measured along the way on records that are *not* in that data:

    half      on half of the forget set, measured on the other half
    benign    on related public text, measured on the forget set

Recovery proves nothing by itself, because any model learns: the same steps on a model that never saw the records are
the control. What counts is the difference in steps to the same level.
Recipe: LoRA at 2e-4, batches of 8, measured at 15, 30, 48 and 60 steps.
Source: Hu et al. 2024, arXiv 2406.13356 (benign relearning); Deeb & Roger 2024, arXiv 2410.08827 (train on some facts,
test on disjoint ones). Knows nothing about: measures; what is measured is a callable.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.controls.editing.unlearning.settings import LoraSettings, TrainerSettings, settings_from
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

STEPS = (15, 30, 48, 60)


@dataclass(frozen=True)
class RelearningCurve:
    """`values[i]` is the measure after `steps[i]` steps; steps[0] = 0 is the model before relearning."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "steps": list(self.steps), "values": list(self.values)}


def relearn_curve(
    model: CausalLM,
    records: RecordTable,
    evaluate: Callable[[CausalLM], float],
    *,
    name: str = "model",
    steps: Sequence[int] = STEPS,
    trainer: TrainerSettings | Mapping[str, Any] | None = None,
    lora: LoraSettings | Mapping[str, Any] | None = LoraSettings(),
    seed: int = 0,
) -> RelearningCurve:
    """Fine-tune a copy of `model` on `records`; `evaluate` it before and after each of `steps` steps.

    The model itself is left as it was. `lora` None trains all weights. All arms of one comparison must get the same
    records, steps and seed: then they see the same batches in the same order.
    Errors: `InputError` for steps that do not rise from 1.
    """
    from rote.controls.editing.unlearning.methods import unlearn

    wanted = tuple(int(step) for step in steps)
    if not wanted or wanted[0] < 1 or any(b <= a for a, b in pairwise(wanted)):
        raise InputError(f"the steps of a relearning curve must rise from 1, not {list(steps)}")
    recipe = {"batch_size": 8, "learning_rate": 2e-4, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0}
    if isinstance(trainer, TrainerSettings):
        settings = trainer
    else:
        settings = settings_from(TrainerSettings, {**recipe, **(trainer or {})}, what="the trainer")
    arm = copy.deepcopy(model)
    values = {0: float(evaluate(arm))}

    def measure(done: int) -> None:
        if done in wanted:
            arm._head = None  # a cached copy of the head would be stale
            values[done] = float(evaluate(arm))

    unlearn(
        arm, method="fine_tune", forget=records, retain=records, lora=lora, seed=seed, after_step=measure,
        trainer={**_fields(settings), "steps": wanted[-1]},
    )  # fmt: skip
    return RelearningCurve(name, tuple(values), tuple(values.values()))


def steps_to_recovery(curve: RelearningCurve, level: float) -> float | None:
    """Steps until the measure first reaches `level`, by linear interpolation between measurements; None: it never
    did."""
    steps, values = np.array(curve.steps, float), np.array(curve.values, float)
    reached = np.flatnonzero(values >= level)
    if not len(reached):
        return None
    first = int(reached[0])
    if first == 0:
        return float(steps[0])
    low, high = values[first - 1], values[first]
    return float(steps[first - 1] + (steps[first] - steps[first - 1]) * (level - low) / (high - low))


def halves(
    records: RecordTable, *, seed: int = 0, groups: Sequence[str | None] | None = None
) -> tuple[RecordTable, RecordTable]:
    """A random half to relearn and the disjoint other half to measure on, each in the table's order.

    Records of one group stay together: a half is made of whole groups, so that no document is on both sides. `groups`:
    other groups than the table's own `group` column; None for a record stands for a group of its own.
    """
    groups = records.column("group") if groups is None else groups
    keys = [f"row {row}" if group is None else f"group {group}" for row, group in enumerate(groups)]
    names = sorted(set(keys))
    if len(names) < 2:
        raise InputError("relearning on half of the records needs at least two records, of two groups")
    order = np.random.default_rng([seed, 2410]).permutation(len(names))
    chosen = {names[number] for number in order[: len(names) // 2]}
    mask = np.array([key in chosen for key in keys])
    return records.take(np.flatnonzero(mask)), records.take(np.flatnonzero(~mask))


def _fields(settings: TrainerSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}
