"""The verdict at the top of the page: one card per headline figure, the guards that spoil it first. No HTML here.

Knows the findings format. Knows nothing about sections or plots.
"""

from __future__ import annotations

from dataclasses import dataclass

from rote.report.findings import Findings, Guard, Measure, MeasureValue, Verdict
from rote.report.text import dimension, interval, number, plural, with_interval

LEVELS = {"high": "High", "medium": "Medium", "low": "Low", "info": "Info"}


@dataclass(frozen=True)
class Bar:
    """Interval on the measure's range, as percentages of the track."""

    low: float
    point: float
    high: float
    control: float | None
    chance: float | None
    ends: tuple[str, str]


@dataclass(frozen=True)
class Card:
    """A headline figure: the guards that spoil it come first."""

    level: str
    title: str
    measure: str
    value: str
    interval: str
    n: str
    where: list[str]
    sentence: str
    control: str
    bar: Bar | None
    guards: list[Guard]


def overall(findings: Findings) -> tuple[str, str]:
    """(level, sentence): the highest verdict and how many validity guards failed."""
    levels = [v.level for v in findings.verdicts]
    level = next((name for name in LEVELS if name in levels), "info")
    r = findings.records
    if r.targets is None:
        what = f"{plural(r.n, 'record')} audited."
    elif r.controls:
        what = f"{plural(r.targets, 'target record')} judged against {plural(r.controls, 'unseen control')}."
    else:
        what = f"{plural(r.targets, 'target record')} audited, without unseen controls."
    failed = len(findings.failed_guards())
    ran = sum(g.status != "not_run" for g in findings.guards)
    if failed:
        what += f" {failed} of {plural(ran, 'validity guard')} failed: the numbers concerned are marked."
    elif ran:
        what += f" All {ran} validity guards that ran passed." if ran > 1 else " The validity guard that ran passed."
    else:
        what += " No validity guard ran."
    return level, what


def cards(findings: Findings) -> list[Card]:
    """One card per verdict that speaks about a measured number, most important first."""
    out = []
    for verdict in findings.verdicts:
        measure = findings.measure(verdict.measure) if verdict.measure else None
        value = headline_value(measure, verdict) if measure else None
        if measure is not None and value is not None:
            out.append(_card(findings, verdict, measure, value))
    return out


def remarks(findings: Findings) -> list[Verdict]:
    """Verdicts without a number of their own."""
    with_card = {(c.measure, c.sentence) for c in cards(findings)}
    return [v for v in findings.verdicts if (v.measure, v.text) not in with_card]


def headline_value(measure: Measure, verdict: Verdict) -> MeasureValue | None:
    """The value a verdict speaks about: its dims; else a target value, the first listed."""
    dims = verdict.dims or {"population": "target"}
    chosen = measure.select(**dims) or ([] if verdict.dims else measure.values)
    return next((v for v in chosen if v.value is not None), chosen[0] if chosen else None)


def control_value(measure: Measure, value: MeasureValue) -> MeasureValue | None:
    """The same number on the controls: equal dimensions but for population and copies."""
    if value.dims.get("population") != "target":
        return None
    want = {key: item for key, item in value.dims.items() if key not in ("population", "duplicates")}
    return next(iter(measure.select(population="control", **want)), None)


def _card(findings: Findings, verdict: Verdict, measure: Measure, value: MeasureValue) -> Card:
    control = control_value(measure, value)
    return Card(
        level=verdict.level,
        title=measure.title,
        measure=measure.name,
        value=number(value.value, measure.unit),
        interval=" ".join(p for p in (interval_name(value), interval(value.low, value.high, measure.unit)) if p)
        if value.low is not None or value.high is not None
        else "no interval",
        n=f"n = {plural(value.n, 'record')}" if value.n is not None else "n not stated",
        where=[dimension(key, item) for key, item in value.dims.items()],
        sentence=verdict.text,
        control=with_interval(control.value, control.low, control.high, measure.unit) if control else "",
        bar=_bar(measure, value, control),
        guards=findings.failed_guards(measure.name),
    )


def interval_name(value: MeasureValue) -> str:
    """`95% interval` from "Clopper-Pearson 95%"; the method itself is in the tables."""
    level = next((word for word in (value.interval or "").split() if word.rstrip("%").replace(".", "").isdigit()), "")
    return f"{level.rstrip('%')}% interval" if level else "interval"


def _bar(measure: Measure, value: MeasureValue, control: MeasureValue | None) -> Bar | None:
    if measure.range is None or value.value is None:
        return None
    bottom, top = measure.range
    if bottom is None or top is None or top <= bottom:
        return None

    def place(x: float) -> float:
        return round(100 * min(1.0, max(0.0, (x - bottom) / (top - bottom))), 2)

    low = value.value if value.low is None else value.low
    high = value.value if value.high is None else value.high
    return Bar(
        low=place(low),
        point=place(value.value),
        high=place(high),
        control=place(control.value) if control and control.value is not None else None,
        chance=place(0.5) if measure.name.endswith("auroc") else None,
        ends=(number(bottom, measure.unit), number(top, measure.unit)),
    )
