"""Findings in the terminal: what failed first, then the verdicts, then a compact table. Contents are never printed.

Knows rich and the findings format. Untrusted strings are made visible and never read as markup or escape codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rote.report.exposed import record_view
from rote.report.findings import BREAKDOWNS, Findings, Measure, MeasureValue
from rote.report.headline import LEVELS, headline_value, overall
from rote.report.text import DASH, dimension, interval, measured, shown_plain

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"high": "bold red", "medium": "bold yellow", "low": "bold green", "info": "bold blue"}
NARROW = 72
MOST_ROWS = 3  # per measure
MOST_EXPOSED = 3


def print_findings(findings: Findings, *, console: Console | None = None, report: str | Path | None = None) -> None:
    """Print findings to `console` (standard output by default). `report`: the page's location, printed last."""
    if console is None:
        from rich.console import Console

        console = Console()
    narrow = console.width < NARROW
    level, summary = overall(findings)
    console.print()
    console.print(Text(shown_plain(findings.title), style="bold"))
    head = Text.assemble(
        (f"{LEVELS[level]} risk" if level != "info" else "For information", STYLES[level]), f"  {summary}"
    )
    console.print(head)
    for guard in findings.failed_guards():
        names = ", ".join(shown_plain(name) for name in guard.spoils)
        console.print(
            Text.assemble(
                ("GUARD FAILED  ", "bold red"),
                (shown_plain(guard.title), "bold"),
                f": {shown_plain(guard.message, 400)}",
                (f" Spoils: {names}." if names else ""),
            )
        )
    console.print()
    for verdict in findings.verdicts:
        spoiled = bool(verdict.measure and findings.failed_guards(verdict.measure))
        line = Text.assemble((f"{LEVELS[verdict.level]:<7}", STYLES[verdict.level]), shown_plain(verdict.text, 600))
        if spoiled:
            line.append("  (guard failed)", style="red")
        console.print(Padding(line, (0, 0, 0, 1)))
    if findings.measures:
        console.print(_narrow(findings) if narrow else _table(findings))
    _exposed(findings, console)
    if report is not None:
        console.print(Text.assemble("Report: ", (shown_plain(str(report), 1000), "bold")), soft_wrap=True)


def headline_rows(findings: Findings) -> list[tuple[Measure, MeasureValue]]:
    """The few values of each measure worth a line: those the verdicts speak about, else the first target ones."""
    spoken = {}
    for verdict in findings.verdicts:
        measure = findings.measure(verdict.measure) if verdict.measure else None
        value = headline_value(measure, verdict) if measure else None
        if measure is not None and value is not None:
            spoken.setdefault(measure.name, []).append(value)
    rows = []
    for measure in findings.measures:
        others = [v for v in measure.values if v.dims.get("population") != "control"]
        others.sort(key=lambda v: bool(BREAKDOWNS & v.dims.keys()))
        chosen = spoken.get(measure.name, []) + [v for v in others if v not in spoken.get(measure.name, [])]
        rows += [(measure, value) for value in chosen[:MOST_ROWS]]
    return rows


def _cells(measure: Measure, value: MeasureValue) -> tuple[str, str, str, str]:
    where = ", ".join(dimension(k, v) for k, v in value.dims.items() if (k, v) != ("population", "target"))
    return (
        shown_plain(where, 80) or DASH,
        measured(measure.name, value.value, measure.unit),
        interval(value.low, value.high, measure.unit) or DASH,
        f"{value.n:,}" if value.n is not None else DASH,
    )


def _table(findings: Findings) -> Table:
    table = Table(box=SIMPLE, header_style="dim", pad_edge=False)
    table.add_column("measure", overflow="fold")
    table.add_column("where", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("interval")
    table.add_column("n", justify="right", no_wrap=True)
    last = None
    for measure, value in headline_rows(findings):
        title = "" if measure.name == last else shown_plain(measure.title, 60)
        if title and findings.failed_guards(measure.name):
            title += " (guard failed)"
        last = measure.name
        table.add_row(Text(title), *(Text(cell) for cell in _cells(measure, value)))
    return table


def _narrow(findings: Findings) -> Text:
    """The same, one measure under another, for a narrow terminal."""
    out = Text()
    last = None
    for measure, value in headline_rows(findings):
        where, figure, ends, n = _cells(measure, value)
        if measure.name != last:
            out.append(f"\n{shown_plain(measure.title, 60)}", style="bold")
            if findings.failed_guards(measure.name):
                out.append(" (guard failed)", style="red")
            out.append("\n")
        last = measure.name
        out.append(f"  {figure}", style="bold").append(f"  {ends}  n {n}\n").append(f"  {where}\n", style="dim")
    return out


def _exposed(findings: Findings, console: Console) -> None:
    if not findings.exposed:
        return
    console.print(Text("Most exposed records", style="bold"))
    for record in findings.exposed[:MOST_EXPOSED]:
        facts = "; ".join(record_view(record, reveal=False).facts)
        console.print(
            Padding(Text.assemble((shown_plain(record.id, 60), "bold"), f"  {shown_plain(facts, 300)}"), (0, 0, 0, 1))
        )
    more = len(findings.exposed) - MOST_EXPOSED
    if more > 0:
        console.print(Padding(Text(f"and {more} more, token by token, in the report", style="dim"), (0, 0, 0, 1)))
    console.print()
