"""A bed's report as findings.json content: the one format that report, compare and gates read.

Knows the tables of `rote.testbed.report` and the catalog of measures. Contains no text of any probe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict

from rote.testbed.bed import Bed
from rote.testbed.report import BedReport


def to_findings(bed: Bed, result: BedReport) -> dict:
    """The report as findings.json content (kind "testbed"): dose.loss, membership.auroc and extraction.greedy_rate with
    dimension `arm`."""
    from importlib.metadata import version

    from rote.measures.catalog import MEASURES

    def measure(name: str, values: list[dict]) -> dict:
        info = {key: value for key, value in asdict(MEASURES[name]).items()}
        return info | {"range": list(info["range"]), "values": values}

    measures, figures = [], []
    if rows := result.tables.get("dose_response"):
        measures.append(
            measure(
                "dose.loss",
                [
                    {
                        "value": r["nll"],
                        "low": r["low"],
                        "high": r["high"],
                        "n": r["n"],
                        "interval": "bootstrap 95%",
                        "arm": r["arm"],
                        "duplicates": r["duplicates"],
                        "group": r["group"],
                    }
                    for r in rows
                ],
            )
        )
        figures.append(_dose_figure(rows, result.arms))
    if rows := result.tables.get("verbatim"):
        measures.append(
            measure(
                "extraction.greedy_rate",
                [
                    {
                        "value": r["exact_match"],
                        "low": r["low"],
                        "high": r["high"],
                        "n": r["n"],
                        "interval": "Clopper-Pearson 95%",
                        "arm": r["arm"],
                        "duplicates": r["duplicates"],
                    }
                    for r in rows
                ],
            )
        )
    if rows := result.tables.get("mia"):
        measures.append(
            measure(
                "membership.auroc",
                [
                    {
                        "value": r["auroc"],
                        "low": r["low"],
                        "high": r["high"],
                        "n": r["members"] + r["nonmembers"],
                        "interval": "DeLong 95%",
                        "arm": r["arm"],
                        "attack": r["attack"],
                        "duplicates": r["duplicates"],
                    }
                    for r in rows
                ],
            )
        )
    if rows := result.tables.get("counterfactual"):
        values = [
            {
                **{"value": r["memorization"], "low": r["low"], "high": r["high"], "n": r["n"]},
                "interval": "bootstrap over texts 95%",
                "duplicates": r["duplicates"],
                "models": r["models"],
            }
            for r in rows
        ]
        measures.append(measure("memorization.counterfactual", values))
        figures.append(_counterfactual_figure(rows))
    if rows := result.tables.get("mosaic"):
        values = [
            {
                **{"value": r["rho"], "low": r["low"], "high": r["high"], "n": r["n"]},
                "interval": "bootstrap over texts 95%",
                "replaced": r["replaced"],
                "n_dup": r["n_dup"],
                "extrapolated": r["extrapolated"],
            }
            for r in rows
        ]
        measures.append(measure("mosaic.rho", values))
        figures.append(_mosaic_figure(rows))
    guards = [{**guard, "spoils": list(guard["spoils"])} for guard in result.tables.get("blind", [])]
    duplicates = bed.duplicates
    return {
        "schema_version": "1.0",
        "kind": "testbed",
        "title": f"Controlled insertion: {', '.join(result.arms)}",
        "rote_version": version("rote"),
        "model": {
            "name": f"{bed.settings.architecture}, {len(result.arms)} arms",
            "fingerprint": bed.fingerprint,
            "architecture": bed.settings.architecture,
        },
        "records": {
            "name": "probes",
            "fingerprint": bed.fingerprint,
            "n": len(duplicates),
            "targets": int((duplicates > 0).sum()),
            "controls": int((duplicates == 0).sum()),
        },
        "settings": {
            key: (value if not isinstance(value, dict | list) else str(value))
            for key, value in bed.settings.to_json().items()
        },
        "verdicts": _verdicts(result),
        "guards": guards,
        "measures": measures,
        "series": {"figures": figures},
        "reproduce": f"rote testbed report {re.sub(r'[^A-Za-z0-9._-]', '_', bed.path.name)}",
    }


def _dose_figure(rows: list[dict], arms: Sequence[str]) -> dict:
    """Copies are drawn on a categorical axis, because 0 has no logarithm."""
    group = rows[0]["group"]
    lines = []
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm and row["group"] == group]
        lines.append(
            {
                "name": arm,
                "x": [str(r["duplicates"]) for r in mine],
                "y": [r["nll"] for r in mine],
                "low": [r["low"] for r in mine],
                "high": [r["high"] for r in mine],
                "control": arm == "standard",
            }
        )
    return {
        "name": "dose_response",
        "title": "Loss by number of copies",
        "x": {"label": "copies in training"},
        "y": {"label": "NLL, nats per token"},
        "lines": lines,
        "n": sum(r["n"] for r in rows if r["arm"] == arms[0]),
        "caption": f"{group} texts; band: 95% bootstrap interval. The standard arm never saw a copy.",
    }


def _counterfactual_figure(rows: list[dict]) -> dict:
    line = {
        "name": "texts",
        "x": [str(r["duplicates"]) for r in rows],
        "y": [r["memorization"] for r in rows],
        "low": [r["low"] for r in rows],
        "high": [r["high"] for r in rows],
    }
    return {
        "name": "counterfactual",
        "title": "Counterfactual memorization by number of copies",
        "x": {"label": "copies in training"},
        "y": {"label": "accuracy with the text minus without it"},
        "lines": [line],
        "n": sum(r["n"] for r in rows),
        "caption": f"{rows[0]['models']} models, each trained on a random half of the texts; band: 95% bootstrap"
        " interval over texts. Texts with 0 copies are a placebo: drawn into halves, never planted.",
    }


def _mosaic_figure(rows: list[dict]) -> dict:
    lines = [
        {
            "name": f"{n_dup} copies, one exact",
            "x": [r["replaced"] for r in rows if r["n_dup"] == n_dup],
            "y": [r["rho"] for r in rows if r["n_dup"] == n_dup],
            "low": [r["low"] for r in rows if r["n_dup"] == n_dup],
            "high": [r["high"] for r in rows if r["n_dup"] == n_dup],
        }
        for n_dup in sorted({r["n_dup"] for r in rows})
    ]
    return {
        "name": "mosaic",
        "title": "What an altered copy is worth, in exact copies",
        "x": {"label": "tokens exchanged in each altered copy"},
        "y": {"label": "rho (0 = nothing, 1 = an exact copy)"},
        "lines": lines,
        "n": sum(r["n"] for r in rows if r["replaced"] == rows[0]["replaced"]),
        "caption": "Band: 95% bootstrap interval over texts.",
    }


def _verdicts(result: BedReport) -> list[dict]:
    found = []
    planted = [row for row in result.tables.get("counterfactual", []) if row["duplicates"]]
    if shown := [row for row in planted if row["low"] is not None and row["low"] > 0]:
        row = min(shown, key=lambda r: r["duplicates"])
        copies = f"{row['duplicates']} cop{'y' if row['duplicates'] == 1 else 'ies'}"
        found.append(
            {
                "level": "medium",
                "measure": "memorization.counterfactual",
                "dims": {"duplicates": row["duplicates"]},
                "text": f"Training on {copies} of a text raises the share of its tokens that the model gets right by"
                f" {row['memorization']:.1%} ({row['low']:.1%} to {row['high']:.1%}; {row['n']} texts, {row['models']}"
                " models).",
            }
        )
    for row in result.tables.get("mosaic", [])[:1]:
        found.append(
            {
                "level": "info",
                "measure": "mosaic.rho",
                "dims": {"replaced": row["replaced"], "n_dup": row["n_dup"]},
                "text": f"A copy with {row['replaced']} token{'' if row['replaced'] == 1 else 's'} exchanged is worth"
                f" {row['rho']:.2f} exact copies ({row['low']:.2f} to {row['high']:.2f}; {row['n_dup']} copies a text,"
                f" one of them exact, {row['n']} texts).",
            }
        )
    recited = [row for row in result.tables.get("verbatim", []) if row["arm"] == "perturbed" and row["duplicates"]]
    majority = [row for row in recited if row["exact_match"] >= 0.5]
    if majority:
        row = min(majority, key=lambda r: r["duplicates"])
        found.append(
            {
                "level": "high",
                "measure": "extraction.greedy_rate",
                "dims": {"arm": "perturbed", "duplicates": row["duplicates"]},
                "text": f"With {row['duplicates']} copies the model recites {row['exact_match']:.0%} of the texts "
                f"(95% interval {row['low']:.0%} to {row['high']:.0%}, n = {row['n']}).",
            }
        )
    elif recited:
        row = max(recited, key=lambda r: r["duplicates"])
        found.append(
            {
                "level": "medium",
                "measure": "extraction.greedy_rate",
                "dims": {"arm": "perturbed", "duplicates": row["duplicates"]},
                "text": f"Even with {row['duplicates']} copies fewer than half of the texts are recited "
                f"({row['exact_match']:.0%}, n = {row['n']}).",
            }
        )
    for row in result.tables.get("unlearning", []):
        if "passes" in row:
            found.append(
                {
                    "level": "info" if row["passes"] else "medium",
                    "text": f"Unlearning by {row['method'].replace('_', ' ')} "
                    f"{'reaches' if row['passes'] else 'does not reach'} the target: "
                    f"NLL {row['forget']:.2f} on Forget, {row['keep']:.2f} on Keep, {row['test']:.2f} on Test.",
                }
            )
    return found
