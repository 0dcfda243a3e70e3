"""compare.html: before against after, in the report's style. Knows comparisons and templates; computes no statistic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rote.atomic import write_atomic
from rote.report.comparison import Change, Comparison, Pair
from rote.report.findings import Guard, MeasureValue
from rote.report.frontier import frontier_of, frontier_plot, headlines
from rote.report.html import render_page
from rote.report.layout import Table
from rote.report.small_print import setting_rows
from rote.report.text import DASH, dimension, interval, is_share, number, points, with_interval

MOST_CHANGES = 120
JUDGEMENTS = {"better": "Better", "worse": "Worse", "same": "No clear change"}
ARROWS = {"up": "↗", "down": "↘", "flat": "→"}


@dataclass(frozen=True)
class ShiftCard:
    """Before -> after of one headline number, guards of either run first."""

    title: str
    judgement: str
    before: str
    after: str
    arrow: str
    difference: str
    method: str
    n: str
    where: list[str]
    note: str
    guards: list[Guard]
    track: tuple[tuple[float, float, float], tuple[float, float, float]] | None
    ends: tuple[str, str]


@dataclass(frozen=True)
class Part:
    """One "baseline against X" part of the page."""

    title: str
    lead: str
    cards: list[ShiftCard]
    table: Table
    missing: str


def _card(comparison: Comparison, pair: Pair, change: Change) -> ShiftCard:
    d = change.difference
    ends = interval(d.low, d.high) if not is_share(change.unit) else ""
    if is_share(change.unit) and d.low is not None and d.high is not None:
        ends = f"{points(d.low, change.unit).removesuffix(' points')} to {points(d.high, change.unit)}"
    guards = []
    for run in comparison.runs:
        if run.name in (pair.before, pair.after):
            guards += [g for g in run.findings.failed_guards(change.measure) if g.name not in {x.name for x in guards}]
    measure = comparison.runs[0].findings.measure(change.measure)
    track, scale = _track(change, measure.range if measure else None)
    return ShiftCard(
        title=change.title,
        judgement=change.judgement,
        before=number(change.before.value, change.unit),
        after=number(change.after.value, change.unit),
        arrow=ARROWS["up" if d.value > 0 else "down" if d.value < 0 else "flat"],
        difference=f"{points(d.value, change.unit)}" + (f" ({ends})" if ends else ""),
        method=d.method,
        n=f"n = {d.n:,}" if d.n else f"n = {change.before.n or 0:,} and {change.after.n or 0:,}",
        where=[dimension(key, item) for key, item in change.dims.items()],
        note=change.note,
        guards=guards,
        track=track,
        ends=scale,
    )


def _track(change: Change, limits: tuple[float | None, float | None] | None):
    """Both intervals as percentages of the measure's range, or of what the two cover when it is unbounded."""
    low, high = limits or (None, None)
    values = [x for v in (change.before, change.after) for x in (v.low, v.value, v.high) if x is not None]
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    if not values or high <= low:
        return None, ("", "")

    def place(x: float) -> float:
        return round(100 * min(1.0, max(0.0, (x - low) / (high - low))), 2)

    def triple(v: MeasureValue) -> tuple[float, float, float]:
        middle = v.value if v.value is not None else low
        return place(middle if v.low is None else v.low), place(middle), place(middle if v.high is None else v.high)

    return (triple(change.before), triple(change.after)), (number(low, change.unit), number(high, change.unit))


def _table(pair: Pair) -> Table:
    rows = []
    for c in pair.changes[:MOST_CHANGES]:
        d = c.difference
        low_high = DASH if d.low is None or d.high is None else f"{points(d.low, c.unit)} to {points(d.high, c.unit)}"
        rows.append(
            [
                c.title,
                ", ".join(dimension(k, v) for k, v in c.dims.items()) or DASH,
                with_interval(c.before.value, c.before.low, c.before.high, c.unit),
                with_interval(c.after.value, c.after.low, c.after.high, c.unit),
                points(d.value, c.unit),
                low_high,
                d.method,
                JUDGEMENTS[c.judgement],
            ]
        )
    left_out = max(0, len(pair.changes) - MOST_CHANGES)
    return Table(
        title=f"Every number, {pair.before} and {pair.after}",
        columns=["measure", "where", "before", "after", "difference", "interval", "how", "judgement"],
        rows=rows,
        note=f"{left_out:,} more rows are in the JSON output." if left_out else "",
    )


def summary(pair: Pair, heads: list[Change]) -> str:
    """How many headline numbers moved for the better, for the worse, and how the differences were made."""
    better = sum(c.judgement == "better" for c in heads)
    worse = sum(c.judgement == "worse" for c in heads)
    same = len(heads) - better - worse
    paired_ones = sum(c.difference.paired for c in heads)
    text = f"Of {len(heads)} headline numbers {better} moved for the better, {worse} for the worse, "
    text += f"{same} without a clear change."
    if paired_ones == len(heads) and heads:
        return text + " Differences are paired over the same records."
    if paired_ones:
        return (
            text
            + f" {paired_ones} differences are paired over the same records, the others come from the two intervals."
        )
    return text + " Differences come from the two intervals: without per-record tables nothing can be paired."


def parts(comparison: Comparison) -> list[Part]:
    out = []
    for pair in comparison.pairs:
        heads = headlines(comparison, pair)
        missing = [f"{name} only before" for name in pair.only_before] + [
            f"{name} only after" for name in pair.only_after
        ]
        out.append(
            Part(
                title=f"{pair.before} → {pair.after}",
                lead=summary(pair, heads),
                cards=[_card(comparison, pair, c) for c in heads],
                table=_table(pair),
                missing="; ".join(missing),
            )
        )
    return out


def render_comparison(comparison: Comparison) -> str:
    """compare.html as one text: no network, everything escaped, no record contents in it."""
    found = frontier_of(comparison)
    plot = frontier_plot(found) if found else None
    first = comparison.runs[0].findings
    return render_page(
        "compare.html.j2",
        [plot] if plot else [],
        comparison=comparison,
        parts=parts(comparison),
        frontier=plot,
        judgements=JUDGEMENTS,
        settings=[
            [
                key.replace("_", " "),
                *(setting_rows([("x", value)])[0][1] if setting_rows([("x", value)]) else DASH for value in values),
            ]
            for key, values in comparison.settings
        ],
        version=first.rote_version,
        schema=first.schema_version,
    )


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write compare.html atomically (into `path`, or `path`/compare.html when it is a directory)."""
    target = Path(path)
    return write_atomic(target / "compare.html" if target.is_dir() else target, render_comparison(comparison))
