"""The pieces a page is laid out from: tables, panels behind a selector, sections. Knows the findings format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rote.report.figure import Plot
from rote.report.findings import Findings, Guard, Measure
from rote.report.text import DASH, interval, measured

MOST_VALUES = 80  # rows of a measure on the page; all of them are in the tables export


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    marked: frozenset[int] = frozenset()  # rows set apart (the blind baseline)


@dataclass(frozen=True)
class Panel:
    """What one position of a section's selector shows."""

    label: str
    plots: list[Plot] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    lead: str
    guards: list[Guard] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)  # shown
    folded: list[Table] = field(default_factory=list)  # behind a disclosure
    absent: str = ""


def measure_view(measure: Measure) -> Table:
    """Any measure as a table: its dimensions, the value, the interval, n."""
    names = list(dict.fromkeys(key for value in measure.values for key in value.dims))
    kept = measure.values[:MOST_VALUES]
    left_out = len(measure.values) - len(kept)
    return Table(
        title=measure.title,
        columns=[name.replace("_", " ") for name in names] + ["value", "interval", "n"],
        rows=[
            [_cell(value.dims.get(name)) for name in names]
            + [
                measured(measure.name, value.value, measure.unit),
                interval(value.low, value.high, measure.unit) or DASH,
                f"{value.n:,}" if value.n is not None else DASH,
            ]
            for value in kept
        ],
        note=f"{measure.direction}; unit: {measure.unit}"
        + (f". {left_out:,} more rows are in findings.json and the tables export." if left_out else "."),
    )


def _cell(value: Any) -> str:
    if value is None:
        return DASH
    return f"{value:g}" if isinstance(value, float) else str(value)


def family(findings: Findings, name: str) -> list[Measure]:
    """The measures called `name`.something."""
    return [m for m in findings.measures if m.name.split(".")[0] == name]


def family_guards(findings: Findings, name: str) -> list[Guard]:
    """Failed guards that spoil any measure of a family."""
    return [g for g in findings.failed_guards() if any(s == name or s.startswith(name + ".") for s in g.spoils)]
