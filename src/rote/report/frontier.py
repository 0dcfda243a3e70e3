"""The frontier: what each run still recites against what it is still good for, one point a run.

    recitation   the headline extraction figure of the first run (else its first headline), with its interval
    utility      perplexity of one text where it was measured (else the first utility figure)

Which text: one named by --utility before the retain set, which a method may have trained on, and that before the
controls. A point is dominated when another recites no more at no less utility and is better in one of the two; the
comparison is of the point estimates, so points whose intervals overlap are not told apart by it.
Knows comparisons. Knows nothing about HTML, models or how a treatment was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rote.report.comparison import Change, Comparison, Pair, Run, good_sign
from rote.report.figure import Entry, Plot, axis, line
from rote.report.findings import Measure, MeasureValue, dims_key, rounded
from rote.report.headline import headline_value
from rote.report.text import DASH, dimension, is_share, shown_plot, with_interval
from rote.report.treatments import UNTREATED

UTILITY = "utility."
RECITATION = "extraction."
LAST_CHOICE = ("retain", "control")  # texts that a method saw, or that are like what it must forget
VARIANTS = "variants."
MOST_HEADLINES, MOST_COSTS = 9, 3
WIDE = 8.0  # from this ratio of utilities on the axis is logarithmic


@dataclass(frozen=True)
class FrontierPoint:
    """One run. `dominated_by`: the name of a run that is at least as good in both and better in one, or None."""

    run: str
    recitation: MeasureValue
    utility: MeasureValue
    others: tuple[MeasureValue | None, ...]
    dominated_by: str | None


@dataclass(frozen=True)
class Frontier:
    """Every run that measured both. `others`: the remaining values of the utility measure, e.g. further texts.
    `left_out`: runs without one of the two."""

    recitation: Measure
    utility: Measure
    recitation_dims: dict[str, Any]
    utility_dims: dict[str, Any]
    other_dims: tuple[dict[str, Any], ...]
    points: tuple[FrontierPoint, ...]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, floats rounded as in findings.json; the first point is the baseline."""
        return rounded(
            {
                "recitation": {"measure": self.recitation.name, "dims": self.recitation_dims},
                "utility": {"measure": self.utility.name, "dims": self.utility_dims},
                "points": [
                    {
                        "run": p.run,
                        "recitation": p.recitation.model_dump(),
                        "utility": p.utility.model_dump(),
                        "dominated_by": p.dominated_by,
                    }
                    for p in self.points
                ],
                "left_out": list(self.left_out),
            }
        )


def frontier_of(comparison: Comparison) -> Frontier | None:
    """The points of a comparison; None when the first run lacks either figure, or no other run has both."""
    first = comparison.runs[0]
    risk = _recitation(comparison)
    use = next((m for m in first.findings.measures if m.name.startswith(UTILITY)), None)
    if risk is None or use is None:
        return None
    measure, dims = risk
    usable = [value for value in use.values if value.value is not None and value.dims.get("population") != "control"]
    if not usable:
        return None
    chosen = min(usable, key=lambda value: _preference(str(value.dims.get("text", ""))))
    others = tuple(value.dims for value in usable if value is not chosen)
    found, left_out = [], []
    for run in comparison.runs:
        y, x = _value(run, measure.name, dims), _value(run, use.name, chosen.dims)
        if y is None or x is None or y.value is None or x.value is None:
            left_out.append(run.name)
        else:
            found.append((run.name, y, x, tuple(_value(run, use.name, other) for other in others)))
    if len(found) < 2 or found[0][0] != first.name:
        return None
    signs = good_sign(measure), good_sign(use)
    scores = {name: (signs[0] * y.value, signs[1] * x.value) for name, y, x, _ in found}
    points = tuple(FrontierPoint(name, y, x, rest, _dominated(name, scores)) for name, y, x, rest in found)
    return Frontier(measure, use, dims, chosen.dims, others, points, tuple(left_out))


def _preference(text: str) -> int:
    return LAST_CHOICE.index(text) + 1 if text in LAST_CHOICE else 0


def _recitation(comparison: Comparison) -> tuple[Measure, dict[str, Any]] | None:
    """(measure, dims): the first headline about extraction, else the first that is not about utility."""
    heads = [change for pair in comparison.pairs for change in headlines(comparison, pair)]
    risks = [change for change in heads if not change.measure.startswith(UTILITY)]
    best = next((change for change in risks if change.measure.startswith(RECITATION)), risks[0] if risks else None)
    measure = comparison.runs[0].findings.measure(best.measure) if best else None
    return (measure, best.dims) if best is not None and measure is not None else None


def _dominated(name: str, scores: dict[str, tuple[float, float]]) -> str | None:
    mine = scores[name]
    for other, theirs in scores.items():
        if all(t >= m for t, m in zip(theirs, mine, strict=True)) and theirs != mine:
            return other
    return None


def _value(run: Run, measure: str, dims: dict[str, Any]) -> MeasureValue | None:
    found = run.findings.measure(measure)
    return None if found is None else next((v for v in found.values if dims_key(v.dims) == dims_key(dims)), None)


def headlines(comparison: Comparison, pair: Pair) -> list[Change]:
    """One change per measure: the value of the baseline's verdict, else the first target value; what is asked of
    changed prefixes before the rest; utility last, one a text."""
    before = comparison.runs[0].findings
    wanted: dict[str, tuple] = {}
    for verdict in before.verdicts:
        measure = before.measure(verdict.measure) if verdict.measure else None
        value = headline_value(measure, verdict) if measure else None
        if measure is not None and value is not None:
            wanted.setdefault(measure.name, dims_key(value.dims))
    chosen: dict[str, Change] = {}
    for change in pair.changes:
        if change.dims.get("population") == "control":
            continue
        if wanted.get(change.measure) == dims_key(change.dims):
            chosen[change.measure] = change
        elif change.measure not in wanted:
            chosen.setdefault(change.measure, change)
    rest = sorted(set(chosen) - set(wanted), key=lambda name: (not name.startswith(VARIANTS), name))
    risks = [chosen[name] for name in [*wanted, *rest] if name in chosen and not name.startswith(UTILITY)]
    costs = [change for change in pair.changes if change.measure.startswith(UTILITY)]
    costs.sort(key=lambda change: _preference(str(change.dims.get("text", ""))))
    costs = costs[:MOST_COSTS]
    return [*risks[: MOST_HEADLINES - len(costs)], *costs]


def frontier_rows(found: Frontier) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) for people: the plot's table twin, and what the terminal prints."""
    recitation, utility = found.recitation, found.utility

    def shown(value: MeasureValue | None, unit: str) -> str:
        return DASH if value is None else with_interval(value.value, value.low, value.high, unit)

    columns = ["run", recitation.title, _titled(utility, found.utility_dims)]
    columns += [_where(dims) or utility.title for dims in found.other_dims]
    rows = []
    for point in found.points:
        row = [point.run, shown(point.recitation, recitation.unit), shown(point.utility, utility.unit)]
        row += [shown(value, utility.unit) for value in point.others]
        rows.append([*row, "yes" if point.dominated_by is None else f"no: {point.dominated_by} is better"])
    return [*columns, "on the frontier"], rows


def _titled(measure: Measure, dims: dict[str, Any]) -> str:
    where = _where(dims)
    return f"{measure.title} ({where})" if where else measure.title


def _where(dims: dict[str, Any]) -> str:
    return ", ".join(str(value) if key == "text" else dimension(key, value) for key, value in dims.items())


def frontier_plot(found: Frontier) -> Plot:
    """One mark a run with both intervals, hollow when dominated, each joined to the baseline by a dotted line."""
    recitation, utility = found.recitation, found.utility
    data, legend = [], []
    start = found.points[0]
    for i, point in enumerate(found.points):
        first = len(data)
        color = "@c3" if i == 0 else f"@k{1 + (i - 1) % 8}"
        x, y, name = point.utility, point.recitation, shown_plot(point.run)
        if i:
            ends = [start.utility.value, x.value], [start.recitation.value, y.value]
            data.append(line(*ends, point.run, "@faint", "dot", hoverinfo="skip"))
        shape = "diamond" if i == 0 else "circle"
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "cliponaxis": False,
                "x": [x.value],
                "y": [y.value],
                "name": name,
                "showlegend": False,
                "marker": {"size": 13, "color": color, "symbol": shape + ("-open" if point.dominated_by else "")},
                "error_x": _ends(x),
                "error_y": _ends(y),
                "hovertemplate": f"<b>{name}</b><br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>",
            }
        )
        legend.append(
            Entry(
                point.run + ("" if i or point.run in ("before", UNTREATED) else " (before)"),
                color,
                "solid",
                tuple(range(first, len(data))),
            )
        )
    columns, rows = frontier_rows(found)
    values = [point.utility.value or 0.0 for point in found.points]
    wide = min(values) > 0 and max(values) > WIDE * min(values) and not is_share(utility.unit)
    lower = good_sign(utility) < 0
    caption = f"n = {start.recitation.n or 0:,} records for {recitation.title.lower()}, {start.utility.n or 0:,} for "
    caption += (
        f"{_titled(utility, found.utility_dims).lower()}. Down and to the {'left' if lower else 'right'} is better; "
    )
    caption += "a hollow mark is dominated: another run recites no more and costs no more."
    if found.left_out:
        caption += f" Not drawn, for want of one of the two: {', '.join(found.left_out)}."
    return Plot(
        id="plot-frontier",
        title=f"{recitation.title} against {_titled(utility, found.utility_dims).lower()}",
        caption=caption,
        data=data,
        layout={
            "xaxis": axis(
                _titled(utility, found.utility_dims),
                log=wide,
                **(
                    {"dtick": "D2", "tickformat": "~g"}
                    if wide
                    else {"tickformat": "~%" if is_share(utility.unit) else ""}
                ),
            ),
            "yaxis": axis(recitation.title, tickformat="~%" if is_share(recitation.unit) else "", rangemode="tozero"),
        },
        columns=columns,
        rows=rows,
        legend=legend,
    )


def _ends(v: MeasureValue) -> dict:
    up = None if v.high is None or v.value is None else v.high - v.value
    down = None if v.low is None or v.value is None else v.value - v.low
    return {
        "type": "data",
        "array": [up],
        "arrayminus": [down],
        "symmetric": False,
        "color": "@muted",
        "thickness": 1.25,
        "width": 4,
    }
