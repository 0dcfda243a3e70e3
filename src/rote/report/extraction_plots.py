"""The plots of extraction and dose-response: rate against queries, log10 p_z, a measure against copies in training.

Knows series rows. Pure functions from rows to `Plot`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rote.report.figure import MOST_ROWS, Entry, Plot, Rows, axis, band, line, spread, thin
from rote.report.series import DosePoint, HistogramBin, SurvivalPoint
from rote.report.text import interval, number, plural, shown_plot, with_interval


def survival_plot(
    points: Iterable[SurvivalPoint],
    *,
    scheme: str,
    index: int,
    levels: Sequence[tuple[str, str, float]] = (),
) -> Plot:
    """Rate against queries n on a log axis, one line per p; controls dashed.

    `levels`: horizontal lines (name, "greedy" | "ceiling" | "control", rate) of the same scheme.
    """
    rows = [r for r in points if r.scheme == scheme and r.rate is not None]
    ps = sorted({r.p for r in rows})
    main = min(ps, key=lambda p: abs(p - 0.5)) if ps else None
    data: list[dict[str, Any]] = []
    legend: list[Entry] = []
    for population, ramp, dash in (("target", "p", "solid"), ("control", "c", "dash")):
        for p, color in zip(ps, spread(len(ps), ramp), strict=True):
            curve = sorted((r for r in rows if r.population == population and r.p == p), key=lambda r: r.queries)
            curve = thin(curve)
            if not curve:
                continue
            x = [r.queries for r in curve]
            first = len(data)
            if p == main:
                data.append(band(x, [r.low for r in curve], [r.high for r in curve], f"{color}-band"))
            who = "targets" if population == "target" else "controls"
            data.append(
                line(
                    x,
                    [r.rate for r in curve],
                    f"{who}, p = {p:g}",
                    color,
                    dash,
                    customdata=[interval(r.low, r.high, "share") or "no interval" for r in curve],
                    hovertemplate=f"<b>{who}, p = {p:g}</b><br>%{{x:,}} queries: %{{y:.2%}}<br>%{{customdata}}"
                    "<extra></extra>",
                )
            )
            legend.append(Entry(f"{who}, p = {p:g}", color, dash, tuple(range(first, len(data)))))
    reach = [r.queries for r in rows] or [1.0]
    for name, kind, rate in levels:
        color, dash = {"greedy": ("@greedy", "dashdot"), "ceiling": ("@ceiling", "dot")}.get(kind, ("@muted", "dot"))
        data.append(
            line(
                [min(reach), max(reach)],
                [rate, rate],
                name,
                color,
                dash,
                hovertemplate=f"<b>{shown_plot(name)}</b><br>%{{y:.2%}}<extra></extra>",
            )
        )
        legend.append(Entry(f"{name} {number(rate, 'share')}", color, dash, (len(data) - 1,)))
    n_target = max((r.n or 0 for r in rows if r.population == "target"), default=0)
    n_control = max((r.n or 0 for r in rows if r.population == "control"), default=0)
    caption = f"n = {plural(n_target, 'target record')}" + (
        f" and {plural(n_control, 'unseen control')}." if n_control else "; no control records."
    )
    if main is not None and any(r.low is not None for r in rows):
        caption += f" Shaded: interval of the rate at p = {main:g}."
    if rows and not any(r.rate for r in rows if r.population == "target"):
        caption += f" No target record was extractable within {number(max(reach))} queries."
    columns, table = _survival_table(rows, ps)
    return Plot(
        id=f"plot-survival-{index}",
        title=f"Share of records recited within n queries, decoding {scheme}",
        caption=caption,
        data=data,
        layout={
            "xaxis": axis("queries n", log=True),
            "yaxis": axis("share of records extracted", tickformat="~%", rangemode="tozero"),
        },
        columns=columns,
        rows=table,
        legend=legend,
    )


def _survival_table(rows: list[SurvivalPoint], ps: list[float]) -> tuple[list[str], Rows]:
    populations = [name for name in ("target", "control") if any(r.population == name for r in rows)]
    at = {(r.population, r.p, r.queries): r for r in rows}
    queries = thin(sorted({r.queries for r in rows}), 16)
    columns = ["queries n"] + [
        f"{'targets' if w == 'target' else 'controls'}, p = {p:g}" for w in populations for p in ps
    ]
    table = []
    for n in queries:
        cells = [number(n)]
        for who in populations:
            for p in ps:
                r = at.get((who, p, n))
                cells.append(with_interval(r.rate, r.low, r.high, "share") if r else number(None))
        table.append(cells)
    return columns, table


def histogram_plot(bins: Iterable[HistogramBin], *, scheme: str, index: int) -> Plot | None:
    """Share of records by log10 p_z, targets against controls; p_z = 0 has a bar of its own at the left.

    The axis counts bins, equally wide on the page whatever their width in log10 p_z, and names their edges.
    """
    rows = [b for b in bins if b.scheme == scheme]
    edges = sorted({float(e) for b in rows for e in (b.left, b.right) if e is not None} | {0.0})
    at = {edge: i for i, edge in enumerate(edges)}
    data, legend, table, notes = [], [], [], []
    both = {b.population for b in rows if b.count} >= {"target", "control"}
    for population, color in (("target", "@p4"), ("control", "@c3")):
        share = 0.5 if both else 1.0  # side by side within a bin
        shift = (-0.25 if population == "target" else 0.25) if both else 0.0
        mine = [b for b in rows if b.population == population]
        total = sum(b.count for b in mine)
        if not total:
            continue
        who = "targets" if population == "target" else "controls"
        finite = sorted((b for b in mine if b.left is not None and b.right is not None), key=lambda b: b.left or 0.0)
        never = total - sum(b.count for b in finite)
        notes.append(f"n = {total:,} {who}" + (f" ({number(never / total, 'share')} never, p_z = 0)" if never else ""))
        spans = [(-1.5, -0.5), *((at[float(b.left or 0)], at[float(b.right or 0)]) for b in finite)]
        labels = [f"{b.left:g} to {b.right:g}: {b.count:,} of {total:,}" for b in finite]
        data.append(
            {
                "type": "bar",
                "x": [(i + j) / 2 + shift * (j - i) for i, j in spans],
                "width": [share * (j - i) for i, j in spans],
                "y": [never / total, *(b.count / total for b in finite)],
                "marker": {"color": f"{color}-bar", "line": {"color": color, "width": 1}},
                "name": who,
                "showlegend": False,
                "customdata": [f"never: {never:,} of {total:,}", *labels],
                "hovertemplate": f"<b>{who}</b><br>%{{y:.1%}}<br>log10 p_z %{{customdata}}<extra></extra>",
            }
        )
        legend.append(Entry(who, color, "solid", (len(data) - 1,)))
        table += [
            [who, f"{number(b.left)} to {number(b.right)}", f"{b.count:,}", number(b.count / total, "share")]
            for b in thin(finite, MOST_ROWS // 2)
        ]
        if never:
            table.append([who, "p_z = 0", f"{never:,}", number(never / total, "share")])
    if not data:
        return None
    shown = thin(edges, 10)
    return Plot(
        id=f"plot-histogram-{index}",
        title="How likely one query is to recite a record",
        caption="; ".join(notes) + ". 0 is certain; each step of 1 to the left is ten times rarer.",
        data=data,
        layout={
            "xaxis": axis(
                "log10 p_z of one query",
                tickvals=[-1.0, *(at[e] for e in shown)],
                ticktext=["never", *(f"{e:g}" for e in shown)],
                range=[-1.7, len(edges) - 0.8],
                showgrid=False,
            ),
            "yaxis": axis("share of records", tickformat="~%", rangemode="tozero"),
            "barmode": "overlay",
        },
        columns=["records", "log10 p_z", "count", "share"],
        rows=table,
        legend=legend,
    )


def dose_plot(
    points: Iterable[DosePoint],
    *,
    measure: str,
    scheme: str | None,
    index: int,
    title: str,
    unit: str,
    log: bool = False,
) -> Plot:
    """A measure against copies in training (log2-like axis with 0 in place), interval band, controls as a flat line."""
    rows = [r for r in points if r.measure == measure and r.scheme in (None, scheme) and r.value is not None]
    target = sorted((r for r in rows if r.population != "control"), key=lambda r: r.duplicates)
    control = [r for r in rows if r.population == "control"]
    levels = sorted({r.duplicates for r in target})
    x = [_copies(r.duplicates) for r in target]
    share = unit.lower().startswith("share")
    form = ".1%" if share else ".3f"
    data: list[dict[str, Any]] = []
    legend: list[Entry] = []
    if target:
        data.append(band(x, [r.low for r in target], [r.high for r in target], "@p4-band"))
        data.append(
            line(
                x,
                [r.value for r in target],
                "targets",
                "@p4",
                mode="lines+markers",
                marker={"size": 8, "color": "@p4"},
                customdata=[
                    [f"{r.duplicates:g}", interval(r.low, r.high, unit) or "no interval", f"{r.n or 0:,}"]
                    for r in target
                ],
                hovertemplate=f"<b>%{{customdata[0]}} copies</b><br>%{{y:{form}}}<br>%{{customdata[1]}}"
                "<br>n = %{customdata[2]}"
                "<extra></extra>",
            )
        )
        legend.append(Entry("targets, by copies in training", "@p4", "solid", (0, 1)))
    span = [min(x, default=0.0), max(x, default=1.0)]
    for r in control[:1]:
        first = len(data)
        if r.low is not None and r.high is not None:
            data.append(band(span, [r.low] * 2, [r.high] * 2, "@c3-band"))
        data.append(
            line(
                span,
                [r.value] * 2,
                "unseen controls",
                "@c3",
                "dash",
                hovertemplate=f"<b>unseen controls</b><br>%{{y:{form}}}<extra></extra>",
            )
        )
        legend.append(Entry("unseen controls", "@c3", "dash", tuple(range(first, len(data)))))
    counts = ", ".join(f"{r.duplicates:g}: {r.n or 0:,}" for r in target[:10])
    caption = f"n records at each number of copies: {counts}" + (
        f"; unseen controls: {control[0].n or 0:,}." if control else "; no unseen controls."
    )
    shown = thin(levels, 9)
    return Plot(
        id=f"plot-dose-{index}",
        title=title,
        caption=caption,
        data=data,
        layout={
            "xaxis": axis(
                "copies in training",
                tickvals=[_copies(d) for d in shown],
                ticktext=[f"{d:g}" for d in shown],
                zeroline=False,
            ),
            "yaxis": axis(unit, tickformat="~%" if share else "", rangemode="tozero" if share else "normal"),
        },
        columns=["copies in training", unit or "value", "n"],
        rows=[
            [f"{r.duplicates:g}", with_interval(r.value, r.low, r.high, unit), f"{r.n or 0:,}"]
            for r in thin(target, MOST_ROWS)
        ]
        + [["unseen controls", with_interval(r.value, r.low, r.high, unit), f"{r.n or 0:,}"] for r in control[:1]],
        legend=legend,
    )


def _copies(duplicates: float) -> float:
    """Place on the axis: 0 -> 0, d -> 1 + log2 d for d >= 1, so that 0 has a place beside 1, 2, 4, ..."""
    return 1 + math.log2(duplicates) if duplicates >= 1 else duplicates
