"""The paper's figure 1 and its companions, as Plotly figures that need no network.

Every curve's name says whether it is exact or a rate with constant 1. Deliberately computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.theory.robust.bounds import (
    lower_rate,
    min_first_layer_parameters,
    old_lower_rate,
    old_upper_rates,
    regime_endpoints,
    upper_rate,
)
from rote.theory.robust.norms import parse_norm

if TYPE_CHECKING:
    import plotly.graph_objects

POINTS = 161


def bounds_figure(
    n: int, d: int, *, rho: float | None = None, norm: str | float = "l2", built: Sequence[dict[str, Any]] = ()
) -> plotly.graph_objects.Figure:
    """Parameters against rho, both logarithmic (fig. 1 draws it at d = Theta(N)).

    rho marks the value asked for. built: dicts with rho, parameters and regime of networks that were built.
    """
    import plotly.graph_objects as go

    p = parse_norm(norm)
    ends = regime_endpoints(n, d, norm=p)
    low = min(ends[0] / 30, *(0.5 * row["rho"] for row in built), rho / 2 if rho else 1.0)
    # 1 - rho matters near 1, so half of the points are spaced evenly in log(1 - rho).
    grid = np.unique(np.concatenate([np.geomspace(low, 0.5, POINTS), 1 - np.geomspace(0.5, 1e-4, POINTS)]))
    curves: list[tuple[str, list[float | None], str, str]] = [
        ("new lower bound (rate, constant 1)", [lower_rate(n, d, r, norm=p) for r in grid], "#1f5fa8", "solid"),
        ("new upper bound (rate, constant 1)", [upper_rate(n, d, r, norm=p) for r in grid], "#b5432a", "solid"),
        ("first layer alone (exact)", [min_first_layer_parameters(n, d, r, norm=p) for r in grid], "#1f5fa8", "dot"),
    ]  # fmt: skip
    if p == 2:
        curves.append(("lower bound before (rate)", [old_lower_rate(n, d, r) for r in grid], "#7a9cc6", "dash"))
        for name in old_upper_rates(n, d, 0.5):
            curves.append((f"{name} (rate)", [old_upper_rates(n, d, r)[name] for r in grid], "#d9a08f", "dash"))
    figure = go.Figure()
    for name, values, colour, dash in curves:
        figure.add_scatter(x=grid, y=values, name=name, mode="lines", line={"color": colour, "dash": dash})
    for row in built:
        figure.add_scatter(
            x=[row["rho"]], y=[row["parameters"]], mode="markers",
            marker={"size": 10, "color": "#222", "symbol": "diamond"},
            name=f"built: {row['regime']}, {row['parameters']:,} parameters (exact)",
        )  # fmt: skip
    for name, end in zip(("small ends", "moderate ends"), ends, strict=False):
        figure.add_vline(x=end, line={"color": "#999", "dash": "dot", "width": 1}, annotation_text=name)
    if rho:
        figure.add_vline(x=rho, line={"color": "#222", "width": 1}, annotation_text="asked")
    figure.update_layout(
        title=f"Parameters to memorize N = {n:,} points of R^{d:,} robustly (worst data; logarithms dropped)",
        template="plotly_white",
        legend={"orientation": "h", "y": -0.2},
    )
    figure.update_xaxes(type="log", title="rho = mu / eps")
    figure.update_yaxes(type="log", title="parameters")
    return figure


def growth_figure(rows: Sequence[dict[str, Any]]) -> plotly.graph_objects.Figure:
    """Parameters and bits of built networks against N, with sqrt N through the first point for comparison."""
    import plotly.graph_objects as go

    sizes = [row["n"] for row in rows]
    figure = go.Figure()
    names = {"parameters": "parameters", "nonzero": "nonzero parameters", "bits": "bits of the longest weight"}
    for key, name in names.items():
        values = [row[key] for row in rows]
        figure.add_scatter(x=sizes, y=values, mode="lines+markers", name=name)
        figure.add_scatter(
            x=sizes, y=[values[-1] * (n / sizes[-1]) ** 0.5 for n in sizes], mode="lines", showlegend=False,
            line={"dash": "dot", "color": "#999"}, hoverinfo="skip",
        )  # fmt: skip
    figure.update_layout(title="Built networks (dotted: sqrt N through the last point)", template="plotly_white")
    figure.update_xaxes(type="log", title="points N")
    figure.update_yaxes(type="log", title="count")
    return figure


def collision_figure(rows: Sequence[dict[str, Any]]) -> plotly.graph_objects.Figure:
    """Certified and attacked rho of trained networks against the first layer's width, under sqrt(m/d) and their own
    collision bounds. rows: dicts with width, d, certified, attacked, collision."""
    import plotly.graph_objects as go

    figure = go.Figure()
    widths = np.arange(1, rows[0]["d"] + 1)
    figure.add_scatter(x=widths, y=np.sqrt(widths / rows[0]["d"]), mode="lines", name="sqrt(m/d): no network above")
    for key, symbol in (("collision", "line-ew-open"), ("attacked", "x"), ("certified", "circle")):
        figure.add_scatter(
            x=[row["width"] for row in rows], y=[row[key] for row in rows], mode="markers", name=f"{key} rho",
            marker={"symbol": symbol, "size": 11},
        )  # fmt: skip
    figure.update_layout(title="Trained networks under the collision bound", template="plotly_white")
    figure.update_xaxes(title="width m of the first layer")
    figure.update_yaxes(title="rho", range=[0, 1.05])
    return figure
