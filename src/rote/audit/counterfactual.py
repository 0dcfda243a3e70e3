"""Counterfactual memorization of a user's own models: what training on a record adds to the model's accuracy on it.

    mem(x) = mean of M(f, x) over models trained with x - mean over models trained without x,   M = per-token accuracy

Needs several models trained alike on different subsets, and for each the ids of the records it was shown. Models are
loaded one at a time; every pass is kept and resumed. Knows nothing about: the terminal.
Source: Zhang et al. 2023, arXiv 2112.12938, def. 2.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from rote.audit.findings import value_of, vars_of
from rote.audit.run_directory import RunDirectory
from rote.errors import InputError
from rote.measures.catalog import MEASURES
from rote.measures.counterfactual import counterfactual_memorization, token_accuracy
from rote.measures.statistics import Estimate, bootstrap, percent_label
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable
from rote.report import Findings, parse
from rote.runtime import versions
from rote.scores.tokens import score_tokens

MEASURE = "memorization.counterfactual"
BINS = np.linspace(-1, 1, 41)


@dataclass(frozen=True)
class Trained:
    """A model and the ids of the records that were in its training data (other ids are ignored)."""

    model: str | Path
    seen: frozenset[str]


def audit_counterfactual(
    models: Sequence[Trained],
    records: RecordTable,
    out: str | Path,
    *,
    long: str = "error",
    bos: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    overwrite: bool = False,
    command: str = "",
    records_name: str = "records",
    progress: Callable[[str, int, int], None] | None = None,
) -> Findings:
    """Score `records` under every model and write findings, tables, report and per-record results under `out`.

    Records that every model, or none, was trained on have no counterfactual: they are listed as skipped.
    Raises InputError for fewer than two models or no record on both sides, RunMismatchError when `out` is another run.
    """
    from rote.scores.sequences import Split

    if len(models) < 2:
        raise InputError("counterfactual memorization needs models with and without each record: give at least two")
    tell = progress or (lambda stage, done, total: None)
    ids = records.column("id")
    included = np.array([[name in each.seen for name in ids] for each in models])
    both = np.asarray(included.any(axis=0) & ~included.all(axis=0))
    if not both.any():
        raise InputError("every record was seen by all of the models or by none: nothing can be compared")

    def load(each: Trained) -> CausalLM:
        return CausalLM.load(each.model, device=device, dtype=dtype, bos=bos)

    chosen = records.take(both)
    descriptions = []
    for each in models:
        model = load(each)
        descriptions.append(model.describe())
    run = RunDirectory.claim(
        out,
        {
            "kind": "audit-counterfactual",
            "command": command,
            "versions": versions(),
            "seed": seed,
            "model": descriptions[0],
            "records_name": records_name,
            "identity": {
                "models": [description["fingerprint"] for description in descriptions],
                "records": records.fingerprint,
                "seen": hashlib.sha256(np.packbits(included).tobytes()).hexdigest(),
                "settings": {"long": long, "bos": bos, "confidence": confidence, "seed": seed},
            },
        },
        overwrite=overwrite,
    )
    run.write_inputs(records)
    performance = np.full((len(models), len(chosen)), np.nan)
    for number, each in enumerate(models, 1):
        store = score_tokens(
            load(each),
            chosen,
            run.path / f"model-{number}",
            split=Split(None, None, long),
            batch_tokens=batch_tokens,
            progress=lambda done, total, number=number: tell(f"model {number} of {len(models)}", done, total),
        )
        for shard in store:
            performance[number - 1, shard.index] = token_accuracy(shard.greedy, ~np.isnan(shard.logp))
    scored = ~np.isnan(performance).any(axis=0)
    rows = np.flatnonzero(both)[scored]
    skipped = [
        {"id": ids[row], "reason": "seen by every model" if included[:, row].all() else "seen by no model"}
        for row in np.flatnonzero(~both)
    ]
    skipped += [{"id": ids[row], "reason": "too short: nothing is predicted"} for row in np.flatnonzero(both)[~scored]]
    content = _findings(
        run,
        performance[:, scored],
        included[:, rows],
        records.take(rows),
        confidence,
        skipped=skipped,
        n=len(records),
        names=[description["name"] for description in descriptions],
    )
    found = parse(content)
    run.publish(found)
    run.save(status="done")
    return found


def _findings(
    run: RunDirectory,
    performance: Float[np.ndarray, "models records"],
    included: Bool[np.ndarray, "models records"],
    records: RecordTable,
    confidence: float,
    *,
    skipped: list[dict],
    n: int,
    names: list[str],
) -> dict:
    found = counterfactual_memorization(performance, included)
    columns = {
        "id": pa.array(records.column("id"), pa.string()),
        "memorization": pa.array(found.value),
        "se": pa.array(found.se, from_pandas=True),
        "with": pa.array(found.inside),
        "without": pa.array(found.outside),
        "models_with": pa.array(found.n_inside),
        "models_without": pa.array(found.n_outside),
    }
    run.write_table("records.parquet", pa.table(columns))
    groups = records.column("group")
    cuts: list[tuple[dict, np.ndarray]] = [({}, np.ones(len(groups), bool))]
    cuts += [
        ({"group": name}, np.array([group == name for group in groups]))
        for name in sorted({group for group in groups if group is not None})
    ]
    seed = run.run["seed"]
    values = [
        value_of(_mean(found.value[chosen], seed, confidence)) | {"models": len(performance), **dims}
        for dims, chosen in cuts
    ]
    whole = values[0]
    fewest = int(min(found.n_inside.min(), found.n_outside.min()))
    counts, edges = np.histogram(found.value, BINS)
    kept = np.flatnonzero(counts)
    span = f" ({whole['low']:.1%} to {whole['high']:.1%})" if whole["low"] is not None else ""
    return {
        "schema_version": "1.0",
        "kind": "audit-counterfactual",
        "title": f"What training on {run.run['records_name']} added",
        "rote_version": run.run["versions"]["rote"],
        "model": run.run["model"] | {"name": f"{len(performance)} models", "models": names},
        "records": {
            "name": run.run["records_name"],
            "fingerprint": run.run["identity"]["records"],
            "n": n,
            "skipped": skipped,
        },
        "settings": run.run["identity"]["settings"],
        "verdicts": [
            {
                "level": "high" if whole["low"] is not None and whole["low"] > 0.01 else "info",
                "measure": MEASURE,
                "dims": {"models": len(performance)},
                "text": f"Training on a record raises the share of its tokens that the model gets right by"
                f" {whole['value']:.1%} on average{span}; the record with the most by {found.value.max():.1%}.",
            }
        ],
        "guards": [
            {
                "name": "models_on_both_sides",
                "title": "At least two models with and two without every record",
                "status": "pass" if fewest >= 2 else "fail",
                "value": float(fewest),
                "limit": 2.0,
                "spoils": [] if fewest >= 2 else [MEASURE],
                "message": f"The record with the fewest has {fewest} model{'' if fewest == 1 else 's'} on one side."
                + ("" if fewest >= 2 else " A single training cannot be told from its luck: train more subsets."),
            }
        ],
        "measures": [vars_of(MEASURES[MEASURE]) | {"values": values}],
        "series": {
            "figures": [
                {
                    "name": "counterfactual",
                    "title": "Counterfactual memorization of the records",
                    "x": {"label": "accuracy with the record minus without it"},
                    "y": {"label": "records"},
                    "lines": [
                        {
                            "name": "records",
                            "x": [round(float(edges[i] + edges[i + 1]) / 2, 3) for i in kept],
                            "y": [int(counts[i]) for i in kept],
                            "style": "bars",
                        }
                    ],
                    "n": len(groups),
                    "caption": f"{len(performance)} models. Around 0: generalised, or not learned.",
                }
            ]
        },
        "reproduce": run.run["command"],
    }


def _mean(values: Float[np.ndarray, " records"], seed: int, confidence: float) -> Estimate:
    if len(values) < 2 or np.ptp(values) == 0:
        return Estimate(float(values.mean()), float("nan"), float("nan"), len(values), "none: no spread")
    found = bootstrap(values, seed=seed, confidence=confidence)
    label = percent_label("bootstrap over records", confidence)
    return Estimate(found.value, found.low, found.high, found.n, label)
