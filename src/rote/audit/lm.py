"""Audit a causal language model: one pass over the records, then every measure, guard, table and the report.

    records + controls --> one pass (resumable shards) --> one row a record --> findings.json, report.html

The model is needed for the pass only: `remake` builds findings and report again from the stored scores.
Knows nothing about: the terminal (progress and estimates go to callbacks).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rote.atomic import write_atomic
from rote.audit import findings as build
from rote.audit.companions import companion_measures, companions_of, identity, score_companions
from rote.audit.compressed import compression_measures, compression_pass, compression_tokens, compression_verdict
from rote.audit.corpus import corpus_counts, corpus_guard, count_corpus, with_counts
from rote.audit.evidence import Evidence, collect
from rote.audit.exposed import caveats, exposed, span
from rote.audit.guards import run_guards
from rote.audit.near import MEASURE as NEAR
from rote.audit.near import near_measures, near_passes, near_tokens, near_verdict
from rote.audit.run_directory import RunDirectory, read_json
from rote.audit.settings import AuditSettings
from rote.audit.verdicts import verdicts
from rote.errors import InputError
from rote.measures import membership, reference_models
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable
from rote.report import Findings, parse
from rote.runtime import peak_rss_mb, versions
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import PreparedRecords, Split, prepare
from rote.scores.store import ScoreStore
from rote.scores.tokens import TokenScorer, score_tokens

Progress = Callable[[str, int, int], None]
PROBE_TOKENS = 256  # tokens of the trial pass that an estimate is made from


@dataclass(frozen=True)
class Estimate:
    """What a run will take: tokens in all passes, seconds (from a short trial pass), peak memory in MiB."""

    tokens: int
    seconds: float
    memory_mb: float


def audit_lm(
    model: CausalLM | str | Path,
    records: RecordTable,
    out: str | Path,
    *,
    control: RecordTable | None = None,
    references: Sequence[CausalLM | str | Path] = (),
    corpus: str | Path | None = None,
    utility: Mapping[str, RecordTable] | None = None,
    variants: Mapping[str, RecordTable] | None = None,
    settings: AuditSettings | None = None,
    overwrite: bool = False,
    reveal: bool = False,
    command: str = "",
    records_name: str = "records",
    progress: Progress | None = None,
    announce: Callable[[Estimate], None] | None = None,
) -> Findings:
    """Audit `model` on `records` (and unseen `control` records) and write everything under `out`.

    references: models that never saw the records: the reference attack, LiRA and RMIA (offline), and a second control.
    corpus: the training data (folder of text, jsonl or parquet): fills in missing duplicate counts by exact counting.
    utility: ordinary text by name, whose perplexity is measured too. variants: the records asked differently, by name
    (paraphrases; `rote.audit.companions.prefix_neighbours`): what they still get back.
    reveal: put record contents into findings and report. progress(stage, done, total) in tokens; announce(Estimate)
    before the first pass. The same call continues an interrupted run and gives the same findings, byte for byte.

    Raises InputError for bad input (nothing is written then), RunMismatchError when `out` belongs to another run.
    """
    settings = settings or AuditSettings()
    tell = progress or (lambda stage, done, total: None)
    started = time.perf_counter()
    model = _loaded(model, settings)
    records = with_controls(records, control)
    split = Split(settings.prefix, settings.suffix, settings.long)
    schemes = [DecodingScheme.parse(text) for text in settings.schemes]
    prepared = prepare(model, records, split)
    others = [_loaded(reference, settings) for reference in references]
    for other in others:
        prepare(other, records, split)  # a reference that cannot score the records is found before anything is written
    if corpus is not None and not Path(corpus).exists():
        raise InputError(f"{corpus}: no such corpus; give a folder or file of text, jsonl or parquet")
    beside = companions_of(utility, variants)
    run = RunDirectory.claim(
        out,
        {
            "kind": "audit-lm",
            "command": command,
            "engine": settings.engine,
            "versions": versions(),
            "seed": settings.seed,
            "model": model.describe(),
            "records_name": records_name,
            "settings": settings.as_dict(),
            "reveal": reveal,
            "identity": {
                "model": model.fingerprint,
                "records": records.fingerprint,
                "settings": settings.results_only(),
                "references": [other.fingerprint for other in others],
                "corpus": str(corpus) if corpus else None,
            }
            | ({"companions": identity(beside)} if beside else {}),
            "references": [other.name for other in others],
            "prepared": {
                "merged": np.flatnonzero(prepared.merged).tolist(),
                "tokens": prepared.tokens,
                "truncated": np.flatnonzero(prepared.truncated).tolist(),
                "skipped": {str(row): reason for row, reason in prepared.skipped.items()},
            },
        },
        overwrite=overwrite,
    )
    run.write_inputs(records)
    if announce:
        announce(estimate(prepared, schemes, passes=1 + len(others), settings=settings))
    timings = dict(run.run.get("timings") or {})

    def stage(name: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = work()
        timings[name] = round(timings.get(name, 0.0) + time.perf_counter() - begin, 3)
        run.save(timings=timings)
        return result

    stage(
        "pass",
        lambda: score_tokens(
            model,
            records,
            run.path / "scores",
            schemes=schemes,
            split=split,
            batch_tokens=settings.batch_tokens,
            engine=settings.engine,
            progress=lambda done, total: tell("scoring", done, total),
        ),
    )
    for number, other in enumerate(others, 1):
        stage(
            f"reference-{number}",
            lambda other=other, number=number: score_tokens(
                other,
                records,
                run.path / f"reference-{number}",
                split=split,
                batch_tokens=settings.batch_tokens,
                engine=settings.engine,
                progress=lambda done, total: tell(f"reference {number}", done, total),
            ),
        )
    if beside:
        stage("companions", lambda: score_companions(model, beside, run, settings, tell))
    if settings.attacks and not (run.path / "extra.json").exists():
        from rote.audit.extra import extra_passes

        means = stage("extra passes", lambda: extra_passes(model, prepared, settings, tell))
        write_atomic(run.path / "extra.json", json.dumps(means))
    if settings.near:
        stage("near", lambda: near_passes(prepared, settings, run.path, tell))
    if settings.compress:
        stage("compression", lambda: compression_pass(prepared, settings, run.path, tell))
    if corpus is not None and not (run.path / "corpus.parquet").exists():
        stage("corpus", lambda: count_corpus(run, records, corpus, model, settings, tell))
    tell("report", 0, 1)
    found = stage("findings", lambda: remake(run.path, reveal=reveal))
    tell("report", 1, 1)
    run.save(
        status="done",
        timings=timings | {"total": round(time.perf_counter() - started, 3)},
        peak_rss_mb=round(peak_rss_mb()),
    )
    return found


def remake(path: str | Path, *, reveal: bool | None = None) -> Findings:
    """Findings, tables and report again from a run's stored scores, without the model.

    reveal: whether record contents are shown (None: as the run was made).
    """
    run = RunDirectory.open(path)
    if run.run.get("kind") != "audit-lm":
        raise InputError(f"{path}: is a run of kind {run.run.get('kind')!r}, not an audit of a language model")
    settings = AuditSettings.from_dict(run.run["settings"])
    reveal = bool(run.run.get("reveal")) if reveal is None else reveal
    records = run.read_inputs()
    corpus = corpus_counts(run)
    if corpus is not None:
        records = with_counts(records, corpus)
    store = ScoreStore.open(run.path / "scores")
    references = [
        ScoreStore.open(run.path / f"reference-{number}") for number in range(1, len(run.run["references"]) + 1)
    ]
    reference_means = [_means(reference, len(records)) for reference in references]
    extra: dict[str, Mapping[int, Any]] = {}
    if reference_means:
        average = np.mean(reference_means, axis=0)
        extra["logp_reference"] = {row: average[row] for row in range(len(records))}
    if (run.path / "extra.json").exists():
        extra |= {
            name: {int(row): value for row, value in values.items()}
            for name, values in read_json(run.path / "extra.json")["inputs"].items()
        }
    evidence = collect(store, records, schemes=settings.schemes, extra=extra)
    _reference_attacks(evidence, reference_means)
    run.write_table("records.parquet", evidence.to_arrow())
    found = make_findings(run, evidence, records, settings, store, reference_means, corpus, reveal=reveal)
    run.publish(found, reveal=reveal)
    return found


def make_findings(
    run: RunDirectory,
    evidence: Evidence,
    records: RecordTable,
    settings: AuditSettings,
    store: ScoreStore,
    reference_means: list[np.ndarray],
    corpus: pa.Table | None,
    *,
    reveal: bool,
) -> Findings:
    """The findings of an audit as the report's typed model."""
    prepared, description = run.run["prepared"], run.run["model"]
    merged, truncated = np.zeros(len(records), bool), np.zeros(len(records), bool)
    merged[prepared["merged"]], truncated[prepared["truncated"]] = True, True
    values = build.measures(evidence, settings)
    near, near_figures = near_measures(run.path, evidence, settings)
    compressed = compression_measures(run.path, evidence, settings)
    values += build.in_order({NEAR: near} | compressed)
    values += companion_measures(run, settings)
    said = verdicts(evidence, settings, values, also=[near_verdict(near, settings), compression_verdict(compressed)])
    named = {name: means[evidence.row] for name, means in zip(run.run["references"], reference_means, strict=True)}
    guards = run_guards(
        evidence,
        records,
        settings,
        merged=merged,
        truncated=truncated,
        vocab_size=description["vocab_size"],
        references=named,
    )
    if corpus is not None:
        guards.append(corpus_guard(records, corpus))
    ids = records.table.column("id")
    return parse(
        {
            "schema_version": "1.0",
            "kind": "audit-lm",
            "title": f"What {description['name']} has memorized of {run.run['records_name']}",
            "rote_version": run.run["versions"]["rote"],
            "model": description,
            "records": {
                "name": run.run["records_name"],
                "fingerprint": run.run["identity"]["records"],
                "n": len(records),
                "targets": int(evidence.target.sum()),
                "controls": int(evidence.control.sum()),
                "tokens": prepared["tokens"],
                "skipped": [
                    {"id": ids[int(row)].as_py(), "reason": reason} for row, reason in prepared["skipped"].items()
                ],
            },
            "settings": settings.results_only()
            | {
                "prefix_tokens": span(evidence.prefix),
                "suffix_tokens": span(evidence.suffix),
                "references": run.run["references"],
                "bos_token": store.key["bos"],
            },
            "verdicts": said,
            "guards": guards,
            "measures": values,
            "series": build.series(evidence, settings, values) | ({"figures": near_figures} if near_figures else {}),
            "exposed": exposed(evidence, records, settings, store, reveal=reveal),
            "caveats": caveats(evidence, settings),
            "reproduce": run.run["command"],
        }
    )


def with_controls(records: RecordTable, control: RecordTable | None) -> RecordTable:
    """Targets and controls in one table; every record of `control` is marked as unseen."""
    if control is None:
        return records
    member = pa.array(np.zeros(len(control), bool))
    table = control.table.set_column(control.table.schema.get_field_index("member"), "member", member)
    return RecordTable.concat([records, RecordTable(table, control.extra_fields)])


def estimate(
    prepared: PreparedRecords,
    schemes: Sequence[DecodingScheme],
    *,
    passes: int = 1,
    settings: AuditSettings | None = None,
) -> Estimate:
    """Time and memory of the passes, from a short trial on the longest records. What `settings.attacks`,
    `settings.near` and `settings.compress` will read besides is counted too (the last at most)."""
    scorer = TokenScorer(prepared.model, schemes)
    lengths = prepared.lengths[prepared.order]
    count = max(1, int(np.searchsorted(np.cumsum(lengths), PROBE_TOKENS)))
    rows = prepared.order[:count]
    tokens = int(prepared.lengths[rows].sum())
    scorer(prepared, rows)
    begin = time.perf_counter()
    scorer(prepared, rows)
    rate = tokens / (time.perf_counter() - begin)
    total = prepared.tokens * passes
    if settings is not None:
        total += near_tokens(prepared, settings) + compression_tokens(prepared, settings)
        passes_of = {
            "lowercase": 1,
            "recall": 1,
            "con_recall": 2,
            "gradient_norm": 3,
            "neighbourhood": settings.neighbours,
        }
        total += prepared.tokens * sum(passes_of[attack] for attack in settings.attacks)
    return Estimate(total, total / rate, peak_rss_mb())


def _loaded(model: CausalLM | str | Path, settings: AuditSettings) -> CausalLM:
    if isinstance(model, CausalLM):
        return model
    return CausalLM.load(model, device=settings.device, dtype=settings.dtype, bos=settings.bos)


def _means(store: ScoreStore, records: int) -> np.ndarray:
    found = np.full(records, np.nan)
    for shard in store:
        found[shard.index] = membership.loss(shard.logp)
    return found


def _reference_attacks(evidence: Evidence, reference_means: list[np.ndarray]) -> None:
    """LiRA and RMIA in their offline forms: the references saw none of the records; the controls are the population."""
    if not reference_means or not build.has_controls(evidence):
        return
    shadow = np.stack([means[evidence.row] for means in reference_means])
    target = -evidence.loss
    evidence.attacks["rmia"] = reference_models.rmia(
        target, shadow, target[evidence.control], shadow[:, evidence.control]
    )
    if len(shadow) >= 2:
        evidence.attacks["lira"] = reference_models.lira(
            target, shadow, np.zeros(shadow.shape, bool), mode="offline", fixed_variance=True
        )
