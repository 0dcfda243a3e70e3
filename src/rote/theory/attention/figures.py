"""Figures as plain Plotly specifications: planned scaling, trained accuracy against the bound, KL against d.

Knows traces and titles, as dictionaries that `plotly.graph_objects.Figure` takes; imports nothing that draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rote.theory.attention.measurement import AttentionCurve
from rote.theory.attention.plan import AttentionPlan, scaling_rows


def scaling_figure(plan: AttentionPlan) -> dict[str, Any]:
    """Associations stored exactly against heads, this paper's and the earlier bound, with the facts to store."""
    rows = scaling_rows(plan)
    heads = [row["heads"] for row in rows]
    data = [
        _line(heads, [row["capacity"] for row in rows], "stored exactly (Dana et al. 2024: H d_h + d)"),
        _line([heads[0], heads[-1]], [plan.n_facts] * 2, f"facts to store: {plan.n_facts:,}", dash="dot"),
        {
            "type": "scatter", "mode": "markers", "x": [plan.heads_needed], "y": [plan.capacity],
            "marker": {"size": 11}, "name": f"needed: {plan.heads_needed} heads, {plan.parameters:,} parameters",
        },
    ]  # fmt: skip
    earlier = [(row["heads"], row["mahdavi"]) for row in rows if row["mahdavi"] is not None]
    if earlier:
        x, y = zip(*earlier, strict=True)
        data.insert(1, _line(list(x), list(y), "H (d_h - 1) + 1 (Mahdavi et al. 2024)", dash="dash"))
    title = (
        f"Associations one attention layer stores exactly: N = {plan.vocab}, S = {plan.context}, d = {plan.d},"
        f" d_h = {plan.d_head}"
    )
    return _figure(data, title, "heads H", "associations")


def trained_figure(curves: Sequence[AttentionCurve], title: str) -> dict[str, Any]:
    """Mean accuracy of trained models against parameters, with the range over seeds and Corollary 2's line."""
    data = []
    for curve in curves:
        rows = curve.rows()
        x = [row["parameters"] for row in rows]
        mean = [row["accuracy"] for row in rows]
        name = f"{'attention' if curve.kind == 'attention' else 'one head + GELU MLP'}, d = {curve.d}"
        data.append(
            _line(x, mean, f"{name} ({len(curve.accuracy)} seeds)")
            | {
                "mode": "lines+markers",
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [row["highest"] - row["accuracy"] for row in rows],
                    "arrayminus": [row["accuracy"] - row["lowest"] for row in rows],
                },
                "text": [f"H = {row['heads']}" for row in rows],
            }
        )
        if curve.kind == "attention":
            data.append(_line(x, [row["bound"] for row in rows], f"Corollary 2, d = {curve.d}", dash="dash"))
    return _figure(data, title, "parameters", "accuracy over all contexts")


def slope_figure(curves: Sequence[AttentionCurve], title: str) -> dict[str, Any]:
    """Associations a trained head adds, against d = d_h (the paper's figure 2), beside the d_h that are guaranteed and
    the quadratic and cubic growth the paper sees, both through the first point. Curves without a slope are left out."""
    points = [(curve.d, curve.slope) for curve in curves if curve.slope is not None]
    x = [d for d, _ in points]
    data = [
        _line(x, [slope for _, slope in points], "trained: associations a head") | {"mode": "lines+markers"},
        _line(x, x, "guaranteed: d_h a head (Theorem 1)", dash="dash"),
    ]
    for power, name in ((2, "quadratic"), (3, "cubic")):
        data += [_line(x, [slope * (d / x[0]) ** power for d in x], name, dash="dot") for _, slope in points[:1]]
    found = _figure(data, title, "d = d_h", "associations a head")
    found["layout"]["xaxis"]["type"] = found["layout"]["yaxis"]["type"] = "log"
    return found


def floor_figure(rows: Sequence[dict[str, float]], title: str) -> dict[str, Any]:
    """KL against d: the best sequence encoder, the built Transformer, trained ones. Rows: d, floor, built, trained."""
    x = [row["d"] for row in rows]
    names = {"floor": "best sequence encoder", "built": "built attention layer", "trained": "trained attention layer"}
    data = [
        _line(x, [row.get(key) for row in rows], name, dash=dash) | {"mode": "lines+markers"}
        for (key, name), dash in zip(names.items(), ("solid", "dot", "dash"), strict=True)
    ]
    return _figure(data, title, "d", "KL (nats)")


def _line(x: list, y: list, name: str, *, dash: str = "solid") -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "name": name, "line": {"dash": dash}}


def _figure(data: list[dict], title: str, x: str, y: str) -> dict[str, Any]:
    layout = {
        "title": {"text": title},
        "template": "plotly_white",
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}
