"""The membership ROC on logarithmic axes. Knows series rows. A pure function from rows to `Plot`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rote.report.figure import MOST_LINES, MOST_POINTS, MOST_ROWS, Entry, Plot, axis, line
from rote.report.series import RocPoint
from rote.report.text import number, plural, shown_plot


def roc_plot(
    points: Iterable[RocPoint], *, order: Sequence[str], members: int | None, others: int | None
) -> Plot | None:
    """TPR against FPR, both logarithmic; attacks in `order` (best first); the blind baseline grey; chance dotted.

    The axes start at one false (true) positive: 1/n, below which the data say nothing.
    """
    curves: dict[str, list[RocPoint]] = {}
    for r in points:
        curves.setdefault(r.attack, []).append(r)
    if not curves:
        return None
    known = [name for name in order if name in curves] + sorted(set(curves) - set(order))
    blind = [name for name in known if name.startswith("blind")]
    seeing = [name for name in known if name not in blind]
    left_out = max(0, len(seeing) - MOST_LINES)
    floor = 1 / max(others or 1000, 10)
    bottom = 1 / max(members or 1000, 10)
    data: list[dict[str, Any]] = []
    legend: list[Entry] = []
    for i, name in enumerate(seeing[:MOST_LINES] + blind[:1]):
        color, dash = ("@muted", "dash") if name in blind else (f"@k{1 + i % 8}", "solid" if i < 8 else "dot")
        corners = sorted({(r.fpr, r.tpr) for r in curves[name]})
        drawn = _thin_log([(max(f, floor), t) for f, t in corners if t >= bottom])
        data.append(
            line(
                [f for f, _ in drawn],
                [t for _, t in drawn],
                name,
                color,
                dash,
                visible=True if (i < 5 or name in blind) else "legendonly",
                line={"color": color, "dash": dash, "width": 2.25, "shape": "hv"},
                hovertemplate=f"<b>{shown_plot(name)}</b><br>FPR %{{x:.2%}}, TPR %{{y:.2%}}<extra></extra>",
            )
        )
        legend.append(Entry(name, color, dash, (len(data) - 1,), on=i < 5 or name in blind))
    low = min(floor, bottom)
    data.append(line([low, 1], [low, 1], "chance", "@faint", "dot", hoverinfo="skip"))
    legend.append(Entry("chance", "@faint", "dot", (len(data) - 1,)))
    caption = f"n = {plural(members, 'member')} and {plural(others, 'non-member')}."
    caption += f" The axes start at one record in {round(1 / floor):,}: below that these data say nothing."
    grid = [f for f in (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.5) if f >= floor * 0.999] or [0.1, 0.5]
    return Plot(
        id="plot-roc",
        title="Who can tell members from non-members",
        caption=caption,
        data=data,
        layout={
            "xaxis": axis("false positive rate", log=True, range=[math.log10(floor), 0], tickformat="~%"),
            "yaxis": axis("true positive rate", log=True, range=[math.log10(bottom), 0.02], tickformat="~%"),
        },
        columns=["attack"] + [f"TPR at {100 * f:g}% FPR" for f in grid],
        rows=[[name, *(number(_tpr(curves[name], f), "share") for f in grid)] for name in (seeing + blind)[:MOST_ROWS]],
        legend=legend,
        left_out=left_out,
    )


def _thin_log(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """One corner (the last) in each of MOST_POINTS logarithmic steps of FPR: low rates are what a log axis shows."""
    if len(corners) <= MOST_POINTS:
        return corners
    top = -math.log10(corners[0][0]) or 1.0
    kept = {round((1 + math.log10(f) / top) * (MOST_POINTS - 1)): (f, t) for f, t in corners}
    return [corners[0], *(corner for corner in kept.values() if corner != corners[0])]


def _tpr(curve: list[RocPoint], fpr: float) -> float:
    """The best TPR reached without exceeding `fpr`."""
    return max((r.tpr for r in curve if r.fpr <= fpr * (1 + 1e-9)), default=0.0)
