"""Every unlearning method by name, and the one call that runs any of them on a model.

    report = unlearn(model, method="npo", forget=forget, retain=retain, trainer={"steps": 150, "learning_rate": 5e-4})

The adapter's model is edited in place: afterwards `model.hf.save_pretrained(...)` writes a plain checkpoint. Whether
the model forgot, and what it lost, is measured elsewhere (`rote.measures.unlearning`, `rote.audit`).
Knows nothing about: measures, reports, files (but for the checkpoint of a run that diverged).
"""

from __future__ import annotations

import copy
import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rote.controls.editing.unlearning import settings as kinds
from rote.controls.editing.unlearning.settings import (
    LoraSettings,
    MethodSettings,
    TrainerSettings,
    recipe_for,
    settings_from,
)
from rote.errors import InputError
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.controls.editing.unlearning.items import Item
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

#: Name -> settings; the class's docstring says what the method does and where its defaults come from.
METHODS: dict[str, type[MethodSettings]] = {
    "grad_ascent": kinds.GradAscent,
    "grad_diff": kinds.GradDiff,
    "npo": kinds.NPO,
    "simnpo": kinds.SimNPO,
    "idk_dpo": kinds.IdkDPO,
    "alt_po": kinds.AltPO,
    "rmu": kinds.RMU,
    "undial": kinds.UNDIAL,
    "wga": kinds.WGA,
    "satimp": kinds.SatImp,
    "ce_u": kinds.CEU,
    "pdu": kinds.PDU,
    "task_vector": kinds.TaskVector,
    "fine_tune": kinds.FineTune,
    "retrain": kinds.Retrain,
}
ALIASES = {
    "ga": "grad_ascent",
    "gd": "grad_diff",
    "dpo": "idk_dpo",
    "altpo": "alt_po",
    "ceu": "ce_u",
    "ft": "fine_tune",
}
TEMPERATURES = (1.0, 1.5, 2.0, 3.0)  # tried in turn until an alternative answer differs from the true one


@dataclass(frozen=True)
class UnlearningReport:
    """What was done, printable and JSON-able. `history` has one row a step: loss, forget, retain, alpha, rate, norm."""

    method: str
    settings: dict[str, Any]
    trainer: dict[str, Any]
    lora: dict[str, Any] | None
    seed: int
    steps: int
    forget_records: int
    retain_records: int
    trained_parameters: int
    fingerprint_before: str
    fingerprint_after: str
    seconds: float
    history: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def method_settings(method: str, values: MethodSettings | Mapping[str, Any] | None = None) -> MethodSettings:
    """The settings of a method by name, from its class, a mapping, or its defaults. Errors: `InputError` with the
    nearest name."""
    name = canonical_name(method)
    return settings_from(METHODS[name], values, what=name)


def canonical_name(method: str) -> str:
    """The method's name in `METHODS`: case, hyphens and common short forms aside. Errors: `InputError` with the
    nearest name."""
    name = method.replace("-", "_").lower()
    name = ALIASES.get(name, name)
    if name not in METHODS:
        near = difflib.get_close_matches(name, [*METHODS, *ALIASES], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(METHODS)}"
        raise InputError(f"no unlearning method {method!r}; {hint}")
    return name


def unlearn(
    model: CausalLM,
    *,
    method: str,
    forget: RecordTable,
    retain: RecordTable | None = None,
    settings: MethodSettings | Mapping[str, Any] | None = None,
    trainer: TrainerSettings | Mapping[str, Any] | None = None,
    lora: LoraSettings | Mapping[str, Any] | None = None,
    refusals: Sequence[str] | None = None,
    alternatives: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
    last_good: str | Path | None = None,
    optimizer: Callable | None = None,
    combine: Callable | None = None,
    after_step: Callable[[int], None] | None = None,
) -> UnlearningReport:
    """Make `model` forget the records of `forget` while it keeps those of `retain`; edits the model in place.

    Args:
        method: a name of `METHODS`. settings: its settings class or a mapping of its fields.
        forget, retain: a record with prefix and suffix is a question and answer (the suffix is trained), any other
            record is trained whole. Methods with a retain loss need `retain`; each forget item is paired with a random
            retain item.
        trainer: recipe (steps, rate, batch, layers, ...). lora: train adapters instead, merged at the end on request.
        refusals: sentences for idk_dpo (None: our own list). alternatives: one other answer a forget record for alt_po
            (None: sampled from the model itself).
        progress(step, steps, loss). last_good: where a diverged run saves its last good weights as a checkpoint.
        optimizer, combine, after_step: the hooks of `trainer.train`.
    Returns: the report; the model has new weights and a new fingerprint.
    Raises: InputError for wrong settings or records; TrainingStopped when the loss stops being finite (the model then
        holds the last good weights); MissingDependencyError for LoRA without peft.
    """
    from rote.controls.editing.unlearning.adapters import add_lora, remove_lora
    from rote.controls.editing.unlearning.objectives import objective_for
    from rote.controls.editing.unlearning.task_vectors import add_task_vector, task_vector, weights_of
    from rote.controls.editing.unlearning.trainer import TrainingStopped, select_parameters, train

    plan = _plan(model, method, forget, retain, settings, trainer, lora)
    method, chosen, recipe, rank, anchor, partner = plan
    started, before = time.perf_counter(), model.fingerprint
    notes = _notes(model, chosen, rank)
    wins = _wins(model, chosen, forget, anchor, refusals, alternatives, seed, notes)
    if isinstance(chosen, kinds.Retrain):
        _randomise(model.hf, seed)
    start = weights_of(model.hf) if isinstance(chosen, kinds.TaskVector) else {}
    flags = {name: parameter.requires_grad for name, parameter in model.hf.named_parameters()}
    adapters = None if rank is None else add_lora(model.hf, rank, recipe, seed=seed)
    if adapters is None:
        trained = select_parameters(model.hf, recipe)
    else:
        trained = [parameter for parameter in model.hf.parameters() if parameter.requires_grad]
    trained_parameters = sum(parameter.numel() for parameter in trained)
    log, stopped = [], None
    try:
        objective = objective_for(model.hf, chosen, wins=wins, seed=seed, adapters=adapters)
        log = train(
            model.hf, objective, anchor, partner, recipe, seed=seed, trained=trained, progress=progress,
            optimizer=optimizer, combine=combine, after_step=after_step,
        )  # fmt: skip
    except TrainingStopped as error:
        stopped = error
    finally:
        if adapters is not None and (rank is None or rank.merge or stopped is not None):
            model.hf = remove_lora(adapters, merge=True)
        for name, parameter in model.hf.named_parameters():
            parameter.requires_grad_(flags.get(name, parameter.requires_grad))
        if start and (stopped is not None or not log):
            _put_back(model.hf, start)  # half an over-fitted copy is no task vector: the start is the last good state
        elif isinstance(chosen, kinds.TaskVector):
            vector = task_vector(model.hf, start)
            _put_back(model.hf, start)
            add_task_vector(model.hf, vector, -chosen.scale)
        weights_changed(model)
    if stopped is not None:
        raise _with_place(stopped, method, model, last_good) from stopped
    return UnlearningReport(
        method=method,
        settings=chosen.as_dict(),
        trainer=asdict(recipe),
        lora=None if rank is None else asdict(rank),
        seed=seed,
        steps=len(log),
        forget_records=len(forget),
        retain_records=0 if retain is None else len(retain),
        trained_parameters=trained_parameters,
        fingerprint_before=before,
        fingerprint_after=model.fingerprint,
        seconds=time.perf_counter() - started,
        history=tuple(asdict(row) for row in log),
        notes=tuple(notes),
    )


def check_unlearning(
    model: CausalLM,
    *,
    method: str,
    forget: RecordTable,
    retain: RecordTable | None = None,
    settings: MethodSettings | Mapping[str, Any] | None = None,
    trainer: TrainerSettings | Mapping[str, Any] | None = None,
    lora: LoraSettings | Mapping[str, Any] | None = None,
) -> None:
    """Raise the InputError that `unlearn` would raise for these settings and records, without training anything."""
    from rote.controls.editing.unlearning.objectives import rmu_layer
    from rote.controls.editing.unlearning.trainer import select_parameters

    plan = _plan(model, method, forget, retain, settings, trainer, lora)
    if isinstance(plan.chosen, (kinds.IdkDPO, kinds.AltPO)):
        _refuse_bare(plan.method, forget)
    if plan.rank is None:
        select_parameters(model.hf, plan.recipe)
    if isinstance(plan.chosen, kinds.RMU):
        rmu_layer(model.hf, plan.chosen)


class _Plan(NamedTuple):
    """What a call comes down to. `anchor`: what an epoch runs over; `partner`: where retain items come from."""

    method: str
    chosen: MethodSettings
    recipe: TrainerSettings
    rank: LoraSettings | None
    anchor: list[Item]
    partner: list[Item] | None


def _plan(model, method, forget, retain, settings, trainer, lora) -> _Plan:
    from rote.controls.editing.unlearning.items import items_of

    method = canonical_name(method)
    chosen = method_settings(method, settings)
    recipe = recipe_for(chosen, trainer)
    rank = None if lora is None else settings_from(LoraSettings, lora, what="lora")
    if retain is None and chosen.needs_retain:
        raise InputError(f"{method} needs a retain set: give retain records, or a method without a retain loss")
    if isinstance(chosen, kinds.Retrain) and rank is not None:
        raise InputError("retrain starts from random weights: it cannot be done with LoRA")
    partner = items_of(model, retain, name="retain", long=recipe.long) if retain is not None else None
    baseline = isinstance(chosen, kinds.FineTune)
    anchor = partner if baseline else items_of(model, forget, name="forget", long=recipe.long)
    assert anchor is not None
    return _Plan(method, chosen, recipe, rank, anchor, None if baseline or not chosen.needs_retain else partner)


def weights_changed(model: CausalLM) -> None:
    """Tell the adapter that its model's weights were edited: its cached head and fingerprint are made anew."""
    from rote.models.causal_lm import fingerprint_in_memory

    model._head = None
    model.fingerprint = fingerprint_in_memory(model.hf, model.tokenizer)


def sampled_alternatives(model: CausalLM, items: Sequence[Item], *, seed: int = 0) -> tuple[list[list[int]], int]:
    """One other answer for each item, sampled from the model after the item's prompt, as many tokens as the true one.

    Temperatures 1, 1.5, 2, 3 are tried until the sample differs; returns the answers and how many never did. AltPO's
    authors prompt an instructed model for plausible alternatives; sampling is our stand-in for a model without
    instructions [derived].
    """
    from rote.scores.continuations import sample_continuations
    from rote.scores.schemes import DecodingScheme

    found, same = [], 0
    bos = model.bos_id is not None
    for number, item in enumerate(items):
        truth = list(item.ids[item.answer :])
        sample = truth
        for temperature in TEMPERATURES:
            drawn = sample_continuations(
                model,
                item.ids[int(bos) : item.answer],
                length=len(truth),
                count=1,
                scheme=DecodingScheme(temperature=temperature),
                seed=derive_seed(seed, "alternative", number, temperature),
            )
            sample = drawn[0].tolist()
            if sample != truth:
                break
        same += sample == truth
        found.append(sample)
    return found, same


def _wins(model, chosen, forget, items, refusals, alternatives, seed, notes) -> list[Item] | None:
    from rote.controls.editing.unlearning.items import with_answer
    from rote.controls.editing.unlearning.refusals import assign_refusals

    if not isinstance(chosen, (kinds.IdkDPO, kinds.AltPO)):
        return None
    name = "idk_dpo" if isinstance(chosen, kinds.IdkDPO) else "alt_po"
    _refuse_bare(name, forget)
    if name == "idk_dpo":
        lines = assign_refusals(len(items), refusals=None if refusals is None else list(refusals), seed=seed)
    elif alternatives is not None:
        lines = list(alternatives)
    else:
        answers, same = sampled_alternatives(model, items, seed=seed)
        if same:
            notes.append(f"alt_po: {same} of {len(items)} sampled alternatives equal the true answer and teach nothing")
        return [with_answer(item, answer) for item, answer in zip(items, answers, strict=True)]
    if len(lines) != len(items):
        raise InputError(f"{name}: {len(lines)} alternatives for {len(items)} forget records; give one each, in order")
    return [
        with_answer(item, encoding.ids)
        for item, encoding in zip(items, model.encode([f" {line.strip()}" for line in lines]), strict=True)
    ]


def _refuse_bare(name: str, forget: RecordTable) -> None:
    marks = zip(forget.column("prefix_chars"), forget.column("prefix_tokens"), strict=True)
    bare = [row for row, mark in enumerate(marks) if not any(mark)]
    if bare:
        raise InputError(
            f"{name} answers questions: forget record {forget.column('id')[bare[0]][:60]!r} has no prefix; "
            "give records with prefix and suffix (question and answer)"
        )


def _notes(model: CausalLM, chosen: MethodSettings, lora: LoraSettings | None) -> list[str]:
    notes = []
    if "float32" not in str(model.dtype):
        notes.append(f"weights are {model.dtype}: small steps may round away; float32 is safer for unlearning")
    if isinstance(chosen, kinds.GradAscent):
        notes.append("grad_ascent has no retain term: expect utility to collapse when it runs long")
    if isinstance(chosen, kinds.Retrain):
        notes.append("retrain is an oracle only if the retain records are all of the other training data")
    if lora is not None and not lora.merge:
        notes.append("the adapters were left on the model; merge them to get a plain checkpoint")
    return notes


def _randomise(hf: Any, seed: int) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "retrain") % 2**63)
        fresh = type(hf)(copy.deepcopy(hf.config))
    hf.load_state_dict(fresh.state_dict())


def _put_back(hf: Any, start: Mapping[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.copy_(start[name])


def _with_place(stopped: Any, method: str, model: CausalLM, last_good: str | Path | None) -> Exception:
    from rote.controls.editing.unlearning.trainer import TrainingStopped

    saved = ""
    if last_good is not None:
        model.hf.save_pretrained(last_good)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(last_good)
        saved = f"; they were saved in {last_good}"
    return TrainingStopped(f"{method}: {stopped}{saved}", stopped.step)
