"""Any figure an audit brings of its own (`series.figures`). A pure function from a `Figure` to `Plot`."""

from __future__ import annotations

from typing import Any

from rote.report.figure import MOST_LINES, MOST_ROWS, Entry, Plot, Rows, axis, band, line, thin
from rote.report.series import Figure
from rote.report.text import number, plural, shown_plot, with_interval


def generic_plot(figure: Figure, *, index: int, of: str = "figure") -> Plot:
    """Any other figure an audit brings; `of` keeps apart the numbering of two sections."""
    data: list[dict[str, Any]] = []
    legend: list[Entry] = []
    table: Rows = []
    categorical = any(isinstance(x, str) for one in figure.lines for x in one.x)
    for i, one in enumerate(figure.lines[:MOST_LINES]):
        color = "@c3" if one.control else f"@k{1 + i % 8}"
        points = thin(
            list(zip(one.x, one.y, one.low or [None] * len(one.x), one.high or [None] * len(one.x), strict=False))
        )
        x = [shown_plot(a) if isinstance(a, str) else a for a, _, _, _ in points]
        y = [b for _, b, _, _ in points]
        first = len(data)
        dash = "dash" if one.control else "solid"
        hover = f"<b>{shown_plot(one.name)}</b><br>%{{x}}: %{{y}}<extra></extra>"
        if one.style == "bars":
            data.append(
                {
                    "type": "bar",
                    "x": x,
                    "y": y,
                    "name": shown_plot(one.name),
                    "marker": {"color": color},
                    "showlegend": False,
                    "hovertemplate": hover,
                }
            )
            if one.low and one.high:
                data[-1]["error_y"] = _whiskers(points)
        else:
            if one.low and one.high and one.style == "line":
                data.append(band(x, [c for _, _, c, _ in points], [d for _, _, _, d in points], f"{color}-band"))
            data.append(
                line(
                    x,
                    y,
                    one.name,
                    color,
                    dash,
                    hovertemplate=hover,
                    marker={"size": 8, "color": color},
                    mode="markers" if one.style == "points" else "lines+markers" if len(x) <= 24 else "lines",
                )
            )
            if one.low and one.high and one.style == "points":
                data[-1]["error_y"] = _whiskers(points)
        legend.append(Entry(one.name, color, dash, tuple(range(first, len(data)))))
        table += [
            [
                one.name,
                a if isinstance(a, str) else number(a) if isinstance(a, (int, float)) else str(a),
                with_interval(b, c, d),
            ]
            for a, b, c, d in thin(points, max(4, MOST_ROWS // max(1, len(figure.lines))))
        ]
    return Plot(
        id=f"plot-{of}-{index}" if of == "figure" else f"plot-{of}-figure-{index}",
        title=figure.title,
        caption=" ".join(
            part for part in (f"n = {plural(figure.n, 'record')}." if figure.n else "", figure.caption) if part
        ),
        data=data,
        layout={
            "xaxis": axis(shown_plot(figure.x.label), log=figure.x.log)
            | ({"type": "category", "dtick": None} if categorical else {}),
            "yaxis": axis(shown_plot(figure.y.label), log=figure.y.log),
        },
        columns=["series", figure.x.label, figure.y.label],
        rows=table,
        legend=legend,
        left_out=max(0, len(figure.lines) - MOST_LINES),
    )


def _whiskers(points: list[tuple[Any, ...]]) -> dict[str, Any]:
    up = [None if b is None or d is None else d - b for _, b, _, d in points]
    down = [None if b is None or c is None else b - c for _, b, c, _ in points]
    return {
        "type": "data",
        "array": up,
        "arrayminus": down,
        "symmetric": False,
        "color": "@muted",
        "thickness": 1.25,
        "width": 4,
    }
