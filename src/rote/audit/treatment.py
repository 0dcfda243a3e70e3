"""Treat a model and prove it: audit, treat, audit again, compare on records and on utility.

    before/       the audit of the model as it was          checkpoint/    the treated model (weights changed)
    after/        the same audit of the treated model       control/       what a decode-time control needs to be used
    compare.html  both, with paired intervals               treatment.json everything below, for machines

The two audits share records, controls and companions: the forget records themselves, the same records asked differently
(prefixes with a few tokens exchanged, paraphrases where given), and ordinary text whose perplexity must stay. A treated
checkpoint is read back from disk before it is audited, so what is proved is what will be shipped.

Knows nothing about any method: a method is a function that changes a loaded model, or gives a hook for decoding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rote.atomic import whole_directory, write_atomic
from rote.audit.companions import prefix_neighbours
from rote.audit.harness_tasks import evaluate_tasks, task_names
from rote.audit.lm import audit_lm
from rote.audit.run_directory import RunDirectory
from rote.audit.settings import AuditSettings
from rote.errors import InputError
from rote.models.causal_lm import CausalLM
from rote.records.population_overlap import overlap
from rote.records.table import RecordTable
from rote.report import Comparison, Findings, compare_runs, write_comparison
from rote.report.findings import rounded
from rote.runtime import versions
from rote.scores.sequences import Split, prepare

TREATMENT_SCHEMA_VERSION = "1.0"
MEMORIZED_AT_LEAST = 0.05  # a forget set with a smaller extraction rate has hardly anything to forget
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Treated:
    """What a method did to the model it was given.

    details: figures of the method for treatment.json. hook: for a control at decode time, a function that, called with
    the loaded model, gives a context manager under which the model is controlled; None when the weights were changed.
    save: writes the files of such a control into a folder. notes: sentences for people.
    """

    details: Mapping[str, Any] = field(default_factory=dict)
    hook: Callable[[CausalLM], AbstractContextManager] | None = None
    save: Callable[[Path], None] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Treatment:
    """The result of `treat`: both audits, their comparison, and what treatment.json holds."""

    out: Path
    before: Findings
    after: Findings
    comparison: Comparison
    summary: dict[str, Any]

    @property
    def checkpoint(self) -> Path | None:
        """The treated model, loadable with `AutoModelForCausalLM.from_pretrained`; None for a decode-time control."""
        path = self.out / "checkpoint"
        return path if path.is_dir() else None


def treat(
    model: str | Path,
    method: str,
    apply: Callable[[CausalLM, Progress], Treated],
    out: str | Path,
    *,
    forget: RecordTable,
    retain: RecordTable | None = None,
    control: RecordTable | None = None,
    paraphrases: RecordTable | None = None,
    utility: Mapping[str, RecordTable] | None = None,
    method_settings: Mapping[str, Any] | None = None,
    settings: AuditSettings | None = None,
    tasks: str | Path | None = None,
    check: Callable[[CausalLM], object] | None = None,
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Treatment:
    """Audit `model`, let `apply(loaded model, progress)` treat it, audit it again, and write everything under `out`.

    forget: the records to be forgotten. retain: text that must stay; its perplexity is measured. control: unseen
    records of the same kind as forget, against which membership is judged. utility: further texts by name.
    method_settings: what `apply` depends on, kept in treatment.json. tasks: a folder of lm-evaluation-harness tasks,
    run before and after. check: called with the loaded model before anything is written, to refuse what `apply` would
    refuse after the first audit. The same call continues an interrupted run.

    Raises InputError for bad input, for a retain set that overlaps the forget set, and for another run in `out`.
    """
    settings = settings or AuditSettings()
    tell, speak = progress or (lambda stage, done, total: None), say or (lambda text: None)
    out = Path(out)
    adapter = CausalLM.load(model, device=settings.device, dtype=settings.dtype, bos=settings.bos)
    untreated = adapter.describe()  # now: the method will change the loaded model and its fingerprint
    notes = _check_sets(forget, retain)
    if check is not None:
        check(adapter)
    if tasks is not None:
        task_names(tasks)  # refused now rather than after the first audit
    texts = {**({"retain": retain} if retain is not None else {}), **(utility or {})}
    if control is not None:
        texts.setdefault("control", control)
    split = Split(settings.prefix, settings.suffix, settings.long)
    variants = {"neighbours": prefix_neighbours(adapter, forget, seed=settings.seed, split=split)}
    if paraphrases is not None:
        variants["paraphrases"] = paraphrases
    for table in (forget, control, *variants.values()):
        if table is not None:
            prepare(adapter, table, split)  # refused now, before the directory is claimed
    run = RunDirectory.claim(
        out,
        {
            "kind": "treatment",
            "command": command,
            "versions": versions(),
            "seed": settings.seed,
            "model": untreated,
            "method": method,
            "method_settings": dict(method_settings or {}),
            "settings": settings.as_dict(),
            "records_name": "forget",
            "identity": {
                "model": adapter.fingerprint,
                "method": method,
                "method settings": json.dumps(dict(method_settings or {}), sort_keys=True, default=str),
                "settings": settings.results_only(),
                "forget": forget.fingerprint,
                **{name: table.fingerprint for name, table in {**texts, **variants}.items()},
            },
        },
        overwrite=overwrite,
    )

    def audit(subject: CausalLM, name: str) -> Findings:
        speak(f"audit {name} the treatment")
        return audit_lm(
            subject,
            forget,
            out / name,
            control=control,
            utility=texts,
            variants=variants,
            settings=settings,
            command=command,
            records_name="forget",
            progress=lambda stage, done, total: tell(f"{name}: {stage}", done, total),
        )

    def run_tasks(subject: CausalLM, name: str) -> dict | None:
        if tasks is None:
            return None
        speak(f"tasks {name} the treatment")
        return evaluate_tasks(subject, tasks)

    before = audit(adapter, "before")
    tasks_before = run_tasks(adapter, "before")
    notes += _not_memorized(before, settings)
    for note in notes:
        speak(f"note: {note}")
    treated, subject = _apply(adapter, run, method, apply, tell, speak, settings)
    with treated.hook(subject) if treated.hook else nullcontext():
        after = audit(subject, "after")
        tasks_after = run_tasks(subject, "after")
    comparison = compare_runs([out / "before", out / "after"])
    write_comparison(comparison, out / "compare.html")
    summary = {
        "schema_version": TREATMENT_SCHEMA_VERSION,
        "method": method,
        "method_settings": dict(method_settings or {}),
        "model": untreated,
        "treated": subject.fingerprint,
        "checkpoint": "checkpoint" if (out / "checkpoint").is_dir() else None,
        "control": "control" if (out / "control").is_dir() else None,
        "details": dict(treated.details),
        "notes": [*notes, *treated.notes],
        "tasks": None if tasks is None else {"before": tasks_before, "after": tasks_after},
        **comparison.to_dict(),
    }
    summary = rounded(json.loads(json.dumps(summary, default=str)))
    write_atomic(out / "treatment.json", json.dumps(summary, indent=1, sort_keys=True, allow_nan=False) + "\n")
    run.save(status="done", summary="treatment.json")
    return Treatment(out, before, after, comparison, summary)


def _apply(
    adapter: CausalLM,
    run: RunDirectory,
    method: str,
    apply: Callable[[CausalLM, Progress], Treated],
    tell: Progress,
    speak: Callable[[str], None],
    settings: AuditSettings,
) -> tuple[Treated, CausalLM]:
    """Treat, write the treated model whole or not at all, and read it back; a finished one is not treated again."""
    target = run.path / "checkpoint"
    if target.is_dir():
        kept = json.loads((target / "treatment-details.json").read_text(encoding="utf-8"))
        treated = Treated(kept["details"], notes=tuple(kept["notes"]))
    else:
        speak(f"treating: {method}")
        treated = apply(adapter, tell)
        if treated.hook is not None:
            folder = run.path / "control"
            folder.mkdir(exist_ok=True)
            if treated.save:
                treated.save(folder)
            adapter.fingerprint = f"{adapter.fingerprint[:32]}{_digest(run)}"
            return treated, adapter
        save_checkpoint(adapter, target, treated)
    reread = CausalLM.load(target, device=settings.device, dtype=settings.dtype, bos=settings.bos)
    return treated, reread


def save_checkpoint(model: CausalLM, target: Path, treated: Treated) -> None:
    """An ordinary Hugging Face directory, there whole or not at all. Raises InputError when weights are not finite."""
    import torch
    from transformers.utils import logging as hf_logging

    for name, parameter in model.hf.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InputError(
                f"the treatment left NaN or infinite weights in {name}; nothing is saved, use milder settings"
            )
    hf_logging.disable_progress_bar()
    with whole_directory(target) as part:
        model.hf.save_pretrained(part)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(part)
        kept = {"details": dict(treated.details), "notes": list(treated.notes)}
        (part / "treatment-details.json").write_text(json.dumps(kept, default=str), encoding="utf-8")


def _digest(run: RunDirectory) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(run.run["identity"], sort_keys=True).encode()).hexdigest()[:32]


def _check_sets(forget: RecordTable, retain: RecordTable | None) -> list[str]:
    """Refuses a retain set that holds forget records; notes shared phrases."""
    if retain is None:
        return []
    shared = overlap(forget, retain, threshold=0.8)
    if shared.exact or shared.near:
        pair = shared.pairs[0] if shared.pairs else None
        where = f" (for example forget {pair.left!r} and retain {pair.right!r})" if pair else ""
        raise InputError(
            f"{max(shared.exact, shared.near)} retain records are copies or near copies of forget records{where}:"
            " the model cannot forget and keep the same text; remove them from one of the two"
        )
    if shared.ngram:
        count = f"{shared.ngram} of {shared.controls} retain records"
        return [f"{count} share a run of {shared.n} words with a forget record"]
    return []


def _not_memorized(before: Findings, settings: AuditSettings) -> list[str]:
    """Says so when there is hardly anything to forget."""
    measure = before.measure("extraction.rate")
    values = measure.select(population="target", queries=settings.headline_queries, p=0.5) if measure else []
    rates = [value.value for value in values if value.value is not None and "duplicates" not in value.dims]
    if rates and max(rates) < MEMORIZED_AT_LEAST:
        return [
            f"the forget set is hardly memorized to begin with: at most {max(rates):.1%} of it comes out within"
            f" {settings.headline_queries} queries, so there is little that a treatment could show"
        ]
    return []


def headline_changes(treatment: Treatment) -> list[dict[str, Any]]:
    """The changes people look at first: extraction, variants, membership and perplexity, one row each."""
    wanted = ("extraction.rate", "extraction.greedy_rate", "variants.rate", "variants.greedy_rate", "membership.auroc",
              "utility.perplexity")  # fmt: skip
    rows = []
    settings = treatment.before.settings
    for change in treatment.comparison.pairs[0].changes:
        dims = change.dims
        if change.measure not in wanted or dims.get("population") == "control" or "duplicates" in dims:
            continue
        if change.measure == "extraction.rate" and (
            dims.get("queries") != settings["headline_queries"] or not np.isclose(dims.get("p", 0.5), 0.5)
        ):
            continue
        if dims.get("scheme", settings["schemes"][0]) != settings["schemes"][0]:
            continue
        if change.measure == "membership.auroc" and dims.get("attack") != "loss":
            continue
        rows.append(
            {
                "measure": change.measure,
                "title": change.title,
                "of": dims.get("text") or dims.get("variant") or "forget",
                "before": change.before.value,
                "after": change.after.value,
                "difference": change.difference.value,
                "low": change.difference.low,
                "high": change.difference.high,
                "judgement": change.judgement,
            }
        )
    return rows
