"""Plots as plain data: a Plotly figure with symbolic colours, a legend, a caption that states n, and the table twin.

Pure functions. Knows nothing about HTML or about what is plotted; colours are names (`@p3`) that the page resolves
from its stylesheet, so light, dark and print share one figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rote.report.text import shown_plot

MOST_POINTS = 240  # per line: more than any screen shows
MOST_LINES = 12
MOST_ROWS = 60  # in a table twin; the full numbers are in findings.json

Rows = list[list[str]]


@dataclass(frozen=True)
class Entry:
    """A legend entry: which traces it switches, its colour and dash, and whether it starts switched on."""

    label: str
    color: str
    dash: str
    traces: tuple[int, ...]
    on: bool = True


@dataclass(frozen=True)
class Plot:
    """One drawing and its accessible twin."""

    id: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    columns: list[str]
    rows: Rows
    legend: list[Entry] = field(default_factory=list)
    left_out: int = 0

    @property
    def spec(self) -> dict[str, Any]:
        return {"id": self.id, "data": self.data, "layout": self.layout}


def thin(points: Sequence[Any], most: int = MOST_POINTS) -> list[Any]:
    """At most `most` points of a line, evenly, both ends kept."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


def axis(title: str, *, log: bool = False, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"title": {"text": title}, "type": "log" if log else "linear"}
    if log:
        base |= {"dtick": 1, "tickformat": "~s"}
    return base | more


def spread(count: int, name: str = "p", steps: int = 5) -> list[str]:
    """`count` ordinal colour names out of `steps`, darkest last."""
    if count == 1:
        return [f"@{name}{steps}"]
    return [f"@{name}{1 + round(i * (steps - 1) / (count - 1))}" for i in range(count)]


def line(x: list[Any], y: list[Any], name: str, color: str, dash: str = "solid", **more: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": shown_plot(name),
        "line": {"color": color, "dash": dash, "width": 2.25},
        "showlegend": False,
    } | more


def band(x: list[Any], low: list[Any], high: list[Any], color: str) -> dict[str, Any]:
    """The area between two lines, as one closed polygon. Points without an interval are left out."""
    kept = [(a, b, c) for a, b, c in zip(x, low, high, strict=True) if b is not None and c is not None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [a for a, _, _ in kept] + [a for a, _, _ in reversed(kept)],
        "y": [c for _, _, c in kept] + [b for _, b, _ in reversed(kept)],
        "fill": "toself",
        "fillcolor": color,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
