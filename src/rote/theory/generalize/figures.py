"""Plotly figures of memorizing against generalizing: accuracies side by side, and the width bound of theorem 5.1.

Knows nothing about: files, how the numbers were made. Plotly is loaded when a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import TYPE_CHECKING, Any

from rote.theory.generalize.width_bound import width_generalization_bound

if TYPE_CHECKING:
    import plotly.graph_objects as go


def accuracy_figure(rows: Sequence[Mapping[str, Any]], *, title: str) -> go.Figure:
    """Training and test accuracy of each memorizer; rows have name, train_accuracy, test_accuracy, test_low, test_high,
    test_count (the last three: a 95% interval and its n)."""
    import plotly.graph_objects as go

    names = [row["name"] for row in rows]
    test = [row["test_accuracy"] for row in rows]
    figure = go.Figure()
    figure.add_bar(x=names, y=[row["train_accuracy"] for row in rows], name="training half", marker_color="#9aa7b4")
    figure.add_bar(
        x=names,
        y=test,
        name=f"other half (n = {rows[0]['test_count']}, 95% interval)" if rows else "other half",
        marker_color="#1f6fb2",
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [row["test_high"] - value for row, value in zip(rows, test, strict=True)],
            "arrayminus": [value - row["test_low"] for row, value in zip(rows, test, strict=True)],
        },
    )
    figure.add_hline(y=0.5, line_dash="dot", annotation_text="chance")
    figure.update_layout(title=title, template="plotly_white", barmode="group")
    figure.update_yaxes(title="accuracy", range=[0, 1.02])
    return figure


def width_figure(*, n: int, width: int | None = None, measured: Sequence[Mapping[str, Any]] = ()) -> go.Figure:
    """The bound against the first layer's width in n dimensions; `width` is marked, `measured` are trained networks
    (width, accuracy, low, high)."""
    import plotly.graph_objects as go

    marked = [min(width, n)] if width else []
    widths = sorted(set(_log_spaced(1, n) + marked))
    figure = go.Figure()
    figure.add_scatter(
        x=widths,
        y=[width_generalization_bound(n=n, width=w) for w in widths],
        mode="lines+markers" if len(widths) <= 40 else "lines",
        name="no network is more accurate",
    )
    if width:
        figure.add_vline(x=width, line_dash="dot", annotation_text=f"width {width}")
    if measured:
        figure.add_scatter(
            x=[row["width"] for row in measured],
            y=[row["accuracy"] for row in measured],
            mode="markers",
            name=f"trained networks (test n = {measured[0]['n']:,})",
            marker_symbol="diamond",
            marker_size=9,
        )
    figure.update_layout(
        title=f"Accuracy on the shell law in {n} dimensions, by width of the first layer (theorem 5.1)",
        template="plotly_white",
    )
    figure.update_xaxes(title="units in the first layer", type="log" if n > 40 else "linear")
    figure.update_yaxes(title="accuracy", range=[0.48, 1.01])
    return figure


def _log_spaced(low: int, high: int, most: int = 60) -> list[int]:
    """All of low..high, or about `most` of them spread over the logarithm."""
    if high - low < most:
        return list(range(low, high + 1))
    return sorted({round(exp(log(low) + k * (log(high) - log(low)) / (most - 1))) for k in range(most)})
