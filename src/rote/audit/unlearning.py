"""Is it really forgotten? One audit of a model before and after unlearning, from four sides.

    extraction, membership   the ordinary audit of both models on the forget set, with the holdout as unseen controls
    the field's figures      extraction strength, truth of the answers, PrivLeak (`rote.audit.unlearning_suite`)
    REMIND                   does the loss landscape give away what was forgotten? (`rote.audit.remind`)
    attacks                  4-bit rounding, and relearning on half of the forget set measured on the other half

Wherever a model retrained without the forget set (the oracle) is given, it stands beside: the target of unlearning is
to be like it, not to have the lowest numbers. Contents of records never reach the result.
Knows nothing about how the model was unlearned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rote.atomic import write_atomic
from rote.audit.lm import audit_lm
from rote.audit.remind import model_loss, remind, scan
from rote.audit.run_directory import RunDirectory, read_json
from rote.audit.settings import AuditSettings
from rote.audit.unlearning_suite import evaluate_unlearning, extraction_of, score_answers
from rote.controls.editing.unlearning.quantise import quantised
from rote.controls.editing.unlearning.relearn import halves, relearn_curve, steps_to_recovery
from rote.errors import InputError
from rote.measures.landscape import CLASSIFIERS
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable
from rote.report import compare_runs, write_comparison
from rote.report.findings import rounded
from rote.runtime import versions
from rote.scores.embedding_neighbours import EmbeddingNeighbours

SCHEMA_VERSION = "1.0"
Progress = Callable[[str, int, int], None]
FEWEST_DOCUMENTS = 10  # groups of a set: with fewer, `group` names kinds of records and not documents
RECOVERED = 0.5  # relearning is timed to this share of what the model before unlearning could recite


@dataclass(frozen=True)
class UnlearningSettings:
    """What the audit of an unlearned model does beyond the ordinary audit.

    k, shells, ranks: neighbours of REMIND (K a shell, shares of swapped tokens, ranks of the swap). bits: rounding of
    the quantisation attack. relearn_steps, relearn_rate: the relearning attack (empty steps: none). texts: at most so
    many texts a class for REMIND, whose cost is (1 + shells K) queries a text. classifier: random_forest, logistic or
    gradient_boosting.
    """

    k: int = 16
    shells: tuple[float, ...] = (0.05, 0.1, 0.2)
    ranks: tuple[int, int] = (1, 5)
    bits: tuple[int, ...] = (8, 4)
    relearn_steps: tuple[int, ...] = (5, 15, 30, 60)
    relearn_rate: float = 2e-4
    texts: int = 200
    classifier: str = "random_forest"

    def __post_init__(self):
        if self.k < 1 or self.texts < 10:
            raise InputError(f"REMIND needs k of 1 or more and 10 texts or more, not {self.k} and {self.texts}")
        if self.classifier not in CLASSIFIERS:
            raise InputError(f"unknown classifier {self.classifier!r}; use one of {', '.join(CLASSIFIERS)}")
        steps = self.relearn_steps
        if any(b <= a for a, b in pairwise((0, *steps))):
            raise InputError(f"the steps of a relearning curve must rise from 1, not {', '.join(map(str, steps))}")
        if not self.relearn_rate > 0:
            raise InputError(f"the relearning rate must be above 0, not {self.relearn_rate}")


def audit_unlearning(
    before: CausalLM | str | Path,
    after: CausalLM | str | Path,
    out: str | Path,
    *,
    forget: RecordTable,
    retain: RecordTable,
    holdout: RecordTable,
    oracle: CausalLM | str | Path | None = None,
    neighbours: str | Path | None = None,
    settings: AuditSettings | None = None,
    unlearning: UnlearningSettings | None = None,
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Audit an unlearned model and write unlearning.json, unlearning.html, both ordinary audits and their comparison.

    forget: what should be gone. retain: what should have stayed. holdout: unseen text of the same kind as forget.
    oracle: the same training without the forget set. neighbours: directory of the checkpoint whose tokenizer and
    embeddings make REMIND's neighbours (None: `before`'s own, which needs its weights). Finished parts are kept: the
    same call continues an interrupted run. Raises InputError for sets that are too small or overlap.
    """
    settings, unlearning = settings or AuditSettings(), unlearning or UnlearningSettings()
    seed = settings.seed
    tell, speak = progress or (lambda stage, done, total: None), say or (lambda text: None)
    for name, table in (("forget", forget), ("retain", retain), ("holdout", holdout)):
        if len(table) < 10:
            raise InputError(f"the {name} set has {len(table)} records; at least 10 are needed to say anything")
    models = {"before": _loaded(before, settings), "after": _loaded(after, settings)}
    if oracle is not None:
        models["oracle"] = _loaded(oracle, settings)
    run = RunDirectory.claim(
        out,
        {
            "kind": "audit-unlearning",
            "command": command,
            "versions": versions(),
            "seed": settings.seed,
            "model": models["after"].describe(),
            "records_name": "forget",
            "settings": settings.as_dict(),
            "identity": {
                **{name: model.fingerprint for name, model in models.items()},
                **{name: t.fingerprint for name, t in (("f", forget), ("r", retain), ("h", holdout))},
                "settings": settings.results_only(),
                "unlearning": json.loads(json.dumps(vars(unlearning))),
                "neighbours": str(neighbours) if neighbours else None,
            },
        },
        overwrite=overwrite,
    )

    def part(name: str, work: Callable[[], Any]) -> Any:
        """A finished part is read back; results are plain values either way."""
        file = run.path / "parts" / f"{name}.json"
        if not file.exists():
            speak(name.replace("-", " "))
            file.parent.mkdir(exist_ok=True)
            write_atomic(file, json.dumps(rounded(work()), sort_keys=True))
        return read_json(file)

    for name, model in models.items():
        speak(f"audit of the model {name}" if name != "oracle" else "audit of the oracle")
        audit_lm(
            model,
            forget,
            run.path / name,
            control=holdout,
            utility={"retain": retain},
            settings=settings,
            command=command,
            records_name="forget",
            progress=lambda stage, done, total, name=name: tell(f"{name}: {stage}", done, total),
        )
    comparison = compare_runs([run.path / name for name in models])
    write_comparison(comparison, run.path / "compare.html")
    figures = {
        name: part(f"figures-{name}", lambda model=model: evaluate_unlearning(
            model, forget=forget, retain=retain, holdout=holdout, oracle=models.get("oracle"), seed=seed
        ).as_dict())
        for name, model in models.items()
    }  # fmt: skip
    landscape = part("remind", lambda: _remind(models, neighbours, forget, retain, holdout, settings, unlearning, tell))
    attacks = part("attacks", lambda: _attacks(models, forget, settings, unlearning, tell))
    result = {
        "schema_version": SCHEMA_VERSION,
        "kind": "audit-unlearning",
        "models": {name: model.describe() for name, model in models.items()},
        "counts": {"forget": len(forget), "retain": len(retain), "holdout": len(holdout)},
        "figures": figures,
        "remind": landscape,
        "attacks": attacks,
        "comparison": comparison.to_dict(),
        "reproduce": command,
    }
    result["verdicts"] = verdicts(result)
    result = rounded(json.loads(json.dumps(result, default=str)))
    write_atomic(run.path / "unlearning.json", json.dumps(result, indent=1, sort_keys=True, allow_nan=False) + "\n")
    from rote.report.unlearning_html import write_unlearning_page

    write_unlearning_page(result, run.path / "unlearning.html")
    run.save(status="done")
    return result


def documents_of(records: RecordTable) -> list[str | None]:
    """The document or author of each record: its `group`, unless there are so few that they must be kinds of records
    ("person", "passage"), which cannot be kept apart without leaving a whole kind out; then None, each its own."""
    groups = records.column("group")
    return groups if len(set(groups)) >= FEWEST_DOCUMENTS else [None] * len(groups)


def _loaded(model: CausalLM | str | Path, settings: AuditSettings) -> CausalLM:
    if isinstance(model, CausalLM):
        return model
    return CausalLM.load(model, device=settings.device, dtype=settings.dtype, bos=settings.bos)


def _remind(
    models: Mapping[str, CausalLM],
    neighbours: str | Path | None,
    forget: RecordTable,
    retain: RecordTable,
    holdout: RecordTable,
    settings: AuditSettings,
    unlearning: UnlearningSettings,
    tell: Progress,
) -> dict[str, Any]:
    """REMIND on the model after (and on the oracle: the null)."""
    before = models["before"]
    if neighbours is None:
        if before.tokenizer is None:
            return {"skipped": "the model has no tokenizer, so texts have no neighbours; give --neighbours DIR"}
        table = EmbeddingNeighbours(
            before.tokenizer, before.hf.get_input_embeddings().weight.detach().float().cpu().numpy()
        )
    else:
        table = EmbeddingNeighbours.from_pretrained(neighbours)
    texts, labels, groups = [], [], []
    rng = np.random.default_rng(settings.seed)
    for label, records in enumerate((retain, forget, holdout)):
        rows = np.sort(rng.permutation(len(records))[: unlearning.texts])
        part = records.take(rows)
        found = part.column("text")
        if any(text is None for text in found):
            return {"skipped": "some records came as token ids; REMIND swaps tokens of texts"}
        texts += found
        labels += [label] * len(part)
        groups += [f"{label}/{i}" if g is None else f"{label}/group {g}" for g, i in
                   zip(documents_of(part), part.column("id"), strict=True)]  # fmt: skip
    labels = np.array(labels)

    def scanned(name: str) -> Any:
        return scan(
            model_loss(models[name]), texts, table, k=unlearning.k, p=unlearning.shells, ranks=unlearning.ranks,
            seed=settings.seed, progress=lambda done, total: tell(f"REMIND: {name}", done, total),
        )  # fmt: skip

    report = remind(
        scanned("after"),
        labels,
        texts,
        groups=groups,
        pointwise=_pointwise(models["after"], texts),
        classifier=unlearning.classifier,
        oracle=scanned("oracle") if "oracle" in models else None,
        seed=settings.seed,
    )
    return report.as_dict()


def _pointwise(model: CausalLM, texts: Sequence[str]) -> np.ndarray:
    """Mean loss, Min-20 % and Min-20 %++ of each text: what REMIND must beat."""
    records = RecordTable.from_rows({"id": str(i), "text": text} for i, text in enumerate(texts))
    from rote.measures import membership

    scored = score_answers(model, records, long="truncate").scores
    return np.stack(
        [
            membership.loss(scored.logp),
            membership.min_k(scored.logp),
            membership.min_k_plus_plus(scored.logp, scored.entropy, scored.std),
        ],
        axis=1,
    )


def _attacks(
    models: Mapping[str, CausalLM],
    forget: RecordTable,
    settings: AuditSettings,
    unlearning: UnlearningSettings,
    tell: Progress,
) -> dict[str, Any]:
    """Extraction strength of the forget set after rounding the weights, and after relearning half of it."""
    everything = extraction_of(forget, long="truncate")
    strength = {name: everything(model) for name, model in models.items()}
    rounding = []
    for bits in unlearning.bits:
        with quantised(models["after"], bits=bits) as coarse:
            rounding.append({"bits": bits, "extraction_strength": everything(coarse)})
    curves, recovery = [], {}
    if unlearning.relearn_steps:
        taught, asked = halves(forget, seed=settings.seed, groups=documents_of(forget))
        evaluate = extraction_of(asked, long="truncate")
        known = evaluate(models["before"])
        arms = [name for name in ("after", "oracle") if name in models]
        for number, name in enumerate(arms):
            tell("relearning", number, len(arms))
            curve = relearn_curve(
                models[name], taught, evaluate, name=name, steps=unlearning.relearn_steps, lora=None,
                trainer={"learning_rate": unlearning.relearn_rate, "long": "truncate"}, seed=settings.seed,
            )  # fmt: skip
            curves.append(curve.as_dict())
            recovery[name] = steps_to_recovery(curve, RECOVERED * known)
        tell("relearning", len(arms), len(arms))
        recovery["level"] = RECOVERED * known
    return {"extraction_strength": strength, "quantisation": rounding, "relearning": curves, "recovery": recovery}


def verdicts(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """The answer in plain sentences, the worst first."""
    found: list[tuple[int, str, str]] = []
    strength = result["attacks"]["extraction_strength"]
    target = strength.get("oracle")
    aim = f" (a model that never saw it: {target:.2f})" if target is not None else ""
    left = strength["after"]
    limit = (target if target is not None else 0.0) + 0.25 * max(0.0, strength["before"] - (target or 0.0))
    found.append(
        (
            2 if left > limit else 0,
            "extraction",
            f"Extraction strength of the forget set, the share of an answer's end that still comes out unaided:"
            f" {left:.2f}, before {strength['before']:.2f}{aim}.",
        )
    )
    landscape = result["remind"]
    pair = landscape.get("pairs", {}).get("forgotten / holdout") if "pairs" in landscape else None
    if pair:
        told = pair["landscape_low"] > 0.5
        text = (
            f"REMIND tells forgotten from never-seen text with AUROC {pair['landscape']:.2f}"
            f" ({pair['landscape_low']:.2f} to {pair['landscape_high']:.2f}); single losses: {pair['pointwise']:.2f}."
        )
        null = ((landscape.get("oracle") or {}).get("pairs") or {}).get("forgotten / holdout")
        if null and null["landscape_low"] > 0.5:
            text += f" So does the oracle ({null['landscape']:.2f}): the sets themselves differ, and this says nothing."
        found.append((1 if told else 0, "remind", text))
    elif "skipped" in landscape:
        found.append((0, "remind", f"REMIND was not run: {landscape['skipped']}."))
    for row in result["attacks"]["quantisation"]:
        gain = row["extraction_strength"] - left
        if gain > 0.05:
            found.append((2, "quantisation", f"Rounding the weights to {row['bits']} bits raises it by {gain:.2f}."))
    recovery = result["attacks"]["recovery"]
    if recovery:
        mine, never = recovery.get("after"), recovery.get("oracle")
        if mine == 0:
            pass  # it is above the level before any relearning: not hidden but there, as said above
        elif mine is not None and ("oracle" not in recovery or never is None or mine < 0.7 * never):
            beside = "" if "oracle" not in recovery else (
                " (the oracle: not within the steps tried)" if never is None else f" (the oracle: {never:.0f})"
            )  # fmt: skip
            text = f"Relearning one half brings the other half back within {mine:.0f} steps{beside}: it was hidden."
            found.append((2, "relearning", text))
        elif "oracle" in recovery:
            found.append((0, "relearning", "Relearning one half brings the other back no sooner than in the oracle."))
    if target is None:
        found.append((1, "oracle", "No oracle was given, so no figure has a known target: retrain one if you can."))
    levels = {2: "high", 1: "medium", 0: "low"}
    return [{"level": levels[rank], "about": about, "text": text} for rank, about, text in
            sorted(found, key=lambda item: -item[0])]  # fmt: skip


def with_steps(settings: UnlearningSettings, **changes: Any) -> UnlearningSettings:
    """Settings with some fields replaced (None: left as they are)."""
    return replace(settings, **{key: value for key, value in changes.items() if value is not None})
