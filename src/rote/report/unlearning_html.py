"""unlearning.html: the audit of an unlearned model as one page. Knows the result's format; computes no statistic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rote.atomic import write_atomic
from rote.report.figure import Entry, Plot, axis, line
from rote.report.html import render_page
from rote.report.text import DASH, number

LEVELS = {"high": "Not forgotten", "medium": "Look closer", "low": "As it should be"}
ARMS = ("before", "after", "oracle")
ABOUT = {"remind": "Loss landscape (REMIND)", "quantisation": "Rounding the weights", "oracle": "No oracle"}
# Parts of the figures' table: the names' beginning, the caption.
PARTS = (
    ("forget.", "Should be gone: the forget set"),
    ("retain.", "Should have stayed: the retain set"),
    ("", "Forget set against unseen text"),
)
NAMES = {
    "exact_memorization": "exact tokens (EM)",
    "rouge_l_recall": "ROUGE-L recall",
    "distinct_2": "different bigrams",
    "membership.loss": "AUROC, loss",
    "membership.zlib": "AUROC, zlib",
    "membership.min_k": "AUROC, Min-K%",
    "membership.min_k_plus_plus": "AUROC, Min-K%++",
    "privleak": "PrivLeak, %",
    "forget_minus_holdout_loss": "loss, forget minus unseen",
}
AIMS = {"equal to a model retrained without the forget set": "as the oracle", "as before unlearning": "as before"}
CLASSES = ("retained", "forgotten", "holdout")


def render_unlearning(result: Mapping[str, Any]) -> str:
    """The page for what `rote.audit.unlearning.audit_unlearning` returns."""
    arms = [arm for arm in ARMS if arm in result["models"]]
    landscape, attacks = result["remind"], result["attacks"]
    curve = _relearning(attacks)
    strength = attacks["extraction_strength"]
    return render_page(
        "unlearning.html.j2",
        [curve] if curve else [],
        title=f"{result['models']['before']['name']} → {result['models']['after']['name']}",
        counts=result["counts"],
        oracle="oracle" in result["models"],
        verdicts=[{**v, "about": ABOUT.get(v["about"], v["about"].capitalize())} for v in result["verdicts"]],
        levels_named=LEVELS,
        notes=result["figures"]["after"]["notes"],
        figure_columns=["figure", *arms, "aim"],
        figure_parts=_figures(result, arms),
        skipped=landscape.get("skipped", ""),
        remind_columns=["pair", "landscape", "interval", "single losses", "at equal loss, shape alone", "oracle"],
        remind_rows=_pairs(landscape),
        flat_columns=["by", *(name for name in CLASSES if name in (landscape.get("counts") or {}))],
        flat_rows=[
            [kind, *(number(row[name]) for name in CLASSES if name in row)]
            for kind, row in (landscape.get("flatness") or {}).items()
        ],
        remind_notes=landscape.get("notes", []),
        rounding_rows=[[f"as they are ({arm})", number(strength[arm])] for arm in arms]
        + [[f"after, {row['bits']} bits", number(row["extraction_strength"])] for row in attacks["quantisation"]],
        relearning=curve,
        reproduce=result["reproduce"],
    )


def write_unlearning_page(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page atomically."""
    return write_atomic(Path(path), render_unlearning(result))


def _figures(result: Mapping[str, Any], arms: list[str]) -> list[tuple[str, list[list[str]]]]:
    """(caption, rows) of each part of the table; every figure is in exactly one."""
    values = {arm: {f["name"]: f for f in result["figures"][arm]["figures"]} for arm in arms}
    parts: dict[str, list[list[str]]] = {caption: [] for _, caption in PARTS}
    for name, figure in values["after"].items():
        start, caption = next((start, caption) for start, caption in PARTS if name.startswith(start))
        short = name.removeprefix(start)
        cells = []
        for arm in arms:
            found = values[arm].get(name)
            cells.append(DASH if found is None or found["value"] is None else _with_ends(found))
        parts[caption].append(
            [
                NAMES.get(short) or short.replace("_", " "),
                *cells,
                AIMS.get(str(figure["target"]), str(figure["target"])),
            ]
        )
    return [(caption, rows) for caption, rows in parts.items() if rows]


def _with_ends(figure: Mapping[str, Any]) -> str:
    ends = "" if figure.get("low") is None else f" ({number(figure['low'])} to {number(figure['high'])})"
    return f"{number(figure['value'])}{ends}"


def _pairs(landscape: Mapping[str, Any]) -> list[list[str]]:
    oracle = (landscape.get("oracle") or {}).get("pairs", {})
    rows = []
    for name, pair in (landscape.get("pairs") or {}).items():
        null = oracle.get(name)
        matched = DASH
        if pair["matched"] is not None:
            matched = f"{number(pair['matched'])} ({pair['matched_pairs']} pairs)"
        rows.append(
            [
                name,
                number(pair["landscape"]),
                f"{number(pair['landscape_low'])} to {number(pair['landscape_high'])}",
                number(pair["pointwise"]),
                matched,
                DASH if null is None else number(null["landscape"]),
            ]
        )
    return rows


def _relearning(attacks: Mapping[str, Any]) -> Plot | None:
    curves = attacks["relearning"]
    if not curves:
        return None
    data, legend, rows = [], [], []
    for i, curve in enumerate(curves):
        color = f"@k{1 + i}"
        data.append(line(curve["steps"], curve["values"], curve["name"], color, "solid" if i == 0 else "dash"))
        legend.append(Entry(curve["name"], color, "solid" if i == 0 else "dash", (i,)))
        rows += [[curve["name"], str(step), number(value)] for step, value in zip(curve["steps"], curve["values"],
                                                                                 strict=True)]  # fmt: skip
    return Plot(
        id="plot-relearning",
        title="Relearning half of the forget set brings the other half back",
        caption="Extraction strength of the half that was not shown again. A model that never saw the records must"
        " learn them anew; one that hid them is faster.",
        data=data,
        layout={"xaxis": axis("steps"), "yaxis": axis("extraction strength", rangemode="tozero")},
        columns=["model", "steps", "extraction strength"],
        rows=rows,
        legend=legend,
    )
