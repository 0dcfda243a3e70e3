"""VISTA's pictures as Plotly figures: latency against history, quality against age, training.

Deliberately computes nothing. Knows nothing about: models, stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects

BLUE, RED, GREY = "#1f5fa8", "#b5432a", "#888888"


def latency_figure(rows: Sequence[Mapping[str, Any]]) -> plotly.graph_objects.Figure:
    """Milliseconds of a request against events of history (both logarithmic), from `latency_rows`."""
    lines = (
        ("from the cache, median", "cached p50 ms", BLUE, "solid"),
        ("from the cache, 99th percentile", "cached p99 ms", BLUE, "dot"),
        ("attention to the raw history, median", "full attention p50 ms", RED, "solid"),
    )
    figure = _lines(rows, "history", lines, title="Scoring candidates: the cache does not care how long the history is")
    figure.update_xaxes(type="log", title="events of history")
    figure.update_yaxes(type="log", title="milliseconds a request")
    return figure


def staleness_figure(rows: Sequence[Mapping[str, Any]], *, raw: int) -> plotly.graph_objects.Figure:
    """AUC against the number of most recent events a summary misses, from `staleness_curve`."""
    lines = (
        ("summary alone", "AUC, summary", BLUE, "solid"),
        (f"summary and the last {raw} raw events", "AUC, with raw events", RED, "solid"),
    )
    figure = _lines(rows, "missing", lines, title="What an old summary costs, and what raw events beside it restore")
    figure.update_xaxes(title="most recent events missing from the summary")
    figure.update_yaxes(title="AUC")
    return figure


def audit_figure(found: Mapping[str, Any]) -> plotly.graph_objects.Figure:
    """NDCG@10 by storage, by vectors read and by age, from `audit_model`."""
    from plotly.subplots import make_subplots

    panels = (("storage", "bytes a user", "bytes a user"), ("tokens", "vectors", "vectors stage 2 reads"),
              ("staleness", "missing", "most recent events missing"))  # fmt: skip
    figure = make_subplots(rows=1, cols=3, shared_yaxes=True, subplot_titles=[name for name, _, _ in panels])
    for column, (name, x, title) in enumerate(panels, 1):
        rows = found[name]
        for key, colour in (("NDCG@10", BLUE), ("NDCG@10, with raw events", RED)):
            if key in rows[0]:
                label = "summary and raw events" if key != "NDCG@10" or name != "staleness" else "summary alone"
                figure.add_scatter(
                    x=[row[x] for row in rows], y=[row[key] for row in rows], text=[row.get("dtype") for row in rows],
                    mode="lines+markers", name=label, line={"color": colour}, showlegend=name == "staleness", row=1,
                    col=column,
                )  # fmt: skip
        figure.update_xaxes(title=title, row=1, col=column)
    figure.update_yaxes(title="NDCG@10", row=1, col=1)
    title = f"What the cache costs: {found['users']:,} users, last event ranked among {found['items']:,} items"
    figure.update_layout(title=title, template="plotly_white", legend={"orientation": "h", "y": -0.2})
    return figure


def training_figure(
    losses: Mapping[str, Sequence[float]], checks: Mapping[str, Sequence[Mapping[str, float]]]
) -> plotly.graph_objects.Figure:
    """Loss of every step (a running mean), and the validation NDCG@10 of every check, by model."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, subplot_titles=("training loss", "validation NDCG@10"))
    colours = (BLUE, RED, GREY, "#3c7a3c")
    for (name, values), colour in zip(losses.items(), colours * 4, strict=False):
        wide = max(1, len(values) // 100)
        smooth = [sum(values[max(0, i - wide) : i + 1]) / (i + 1 - max(0, i - wide)) for i in range(len(values))]
        kept = range(0, len(values), wide)
        x, y = [i + 1 for i in kept], [smooth[i] for i in kept]
        figure.add_scatter(x=x, y=y, name=name, line={"color": colour}, row=1, col=1)
        found = checks.get(name, ())
        figure.add_scatter(
            x=[check["step"] for check in found], y=[check["NDCG@10"] for check in found], name=name,
            mode="lines+markers", line={"color": colour}, showlegend=False, row=1, col=2,
        )  # fmt: skip
    figure.update_xaxes(title="step")
    figure.update_layout(template="plotly_white", legend={"orientation": "h", "y": -0.2})
    return figure


def write_figure(figure: plotly.graph_objects.Figure, path: Path) -> None:
    """One HTML file that needs no network."""
    from rote.atomic import write_atomic

    write_atomic(path, figure.to_html(include_plotlyjs=True, full_html=True))


def _lines(
    rows: Sequence[Mapping[str, Any]], x: str, lines: Sequence[tuple[str, str, str, str]], *, title: str
) -> plotly.graph_objects.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, key, colour, dash in lines:
        kept = [row for row in rows if row.get(key) is not None]
        if kept:
            figure.add_scatter(
                x=[row[x] for row in kept], y=[row[key] for row in kept], name=name, mode="lines+markers",
                line={"color": colour, "dash": dash},
            )  # fmt: skip
    figure.update_layout(title=title, template="plotly_white", legend={"orientation": "h", "y": -0.2})
    return figure
