"""The sections of the page and their order: extraction, dose-response, membership, anything else. Pure functions, no
HTML.

Knows the findings format and the plots. A section with nothing to show says why in one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rote.report.extraction_plots import dose_plot, histogram_plot, survival_plot
from rote.report.figure import Plot
from rote.report.findings import Findings, Guard, Measure, MeasureValue, spoils
from rote.report.generic_plot import generic_plot
from rote.report.headline import interval_name
from rote.report.roc_plot import roc_plot
from rote.report.text import DASH, dimension, interval, number, with_interval

MOST_VALUES = 80  # rows of a measure on the page; all of them are in the tables export
MOST_SCHEMES = 12


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


def sections(findings: Findings) -> list[Section]:
    """The sections with figures, in reading order. Those of a language-model audit appear there even when empty."""
    language = findings.kind == "audit-lm"
    made = [_extraction(findings), _dose(findings), _membership(findings)]
    out = [s for s in made if not s.absent or language]
    shown = {s.id for s in out}
    rest = [m for m in findings.measures if m.values and m.name.split(".")[0] not in shown]
    figures = [
        Panel(label=f.title, plots=[generic_plot(f, index=i)]) for i, f in enumerate(findings.series.figures[:24])
    ]
    if figures:
        out.append(Section(id="figures", title="Figures", lead="", panels=figures, guards=[]))
    if rest:
        names = [m.name for m in rest]
        out.append(
            Section(
                id="measures",
                title="Other measures" if out else "Measures",
                lead="Every number with its interval and the records behind it.",
                guards=[
                    g for g in findings.failed_guards() if any(spoils(s, name) for s in g.spoils for name in names)
                ],
                tables=[measure_view(m) for m in rest],
            )
        )
    return out


def _family(findings: Findings, family: str) -> list[Measure]:
    return [m for m in findings.measures if m.name.split(".")[0] == family]


def _family_guards(findings: Findings, family: str) -> list[Guard]:
    return [g for g in findings.failed_guards() if any(s == family or s.startswith(family + ".") for s in g.spoils)]


def _extraction(findings: Findings) -> Section:
    rows = findings.series.survival
    schemes = list(dict.fromkeys(r.scheme for r in rows))
    panels = []
    for i, scheme in enumerate(schemes[:MOST_SCHEMES]):
        plots = [survival_plot(rows, scheme=scheme, index=i, levels=_levels(findings, scheme))]
        histogram = histogram_plot(findings.series.log_pz_histogram, scheme=scheme, index=i)
        panels.append(Panel(label=scheme, plots=plots + ([histogram] if histogram else [])))
    lead = (
        "How often an attacker who knows the beginning of a record gets the rest back, word for word, within n "
        "queries. A curve counts the records recited with probability at least p; it rises to its ceiling, the share "
        "of records that are possible at all under the decoding scheme. "
    )
    controls = any(r.population == "control" for r in rows)
    lead += (
        "Dashed: unseen text of the same kind. Only the distance between the two is memorization."
        if controls
        else "There are no unseen controls here, so part of this may be text that anyone could guess."
    )
    measures = _family(findings, "extraction")
    return Section(
        id="extraction",
        title="Extraction",
        lead=lead if schemes else "",
        guards=_family_guards(findings, "extraction"),
        panels=panels,
        folded=[measure_view(m) for m in measures if m.values],
        absent=""
        if schemes or measures
        else "No extraction figures: no record was split into a prefix and a suffix, or no decoding scheme was scored.",
    )


def _levels(findings: Findings, scheme: str) -> list[tuple[str, str, float]]:
    """Greedy rate and ceilings of a scheme, as horizontal lines."""
    out: list[tuple[str, str, float]] = []
    for name, kind in (("extraction.greedy_rate", "greedy"), ("extraction.ceiling", "ceiling")):
        measure = findings.measure(name)
        for population in ("target", "control") if measure else ():
            fitting = [
                v
                for v in measure.select(population=population)  # type: ignore[union-attr]
                if v.value is not None
                and v.dims.get("scheme", scheme) in (scheme, "greedy")
                and "duplicates" not in v.dims
            ]
            if fitting:
                who = "" if population == "target" else ", controls"
                style = kind if population == "target" else "control"
                out.append(
                    (("greedy decoding" if kind == "greedy" else "ceiling") + who, style, fitting[0].value or 0.0)
                )
    return out


def _dose(findings: Findings) -> Section:
    rows = findings.series.dose
    levels = {r.duplicates for r in rows if r.population != "control"}
    panels = []
    if len(levels) > 1:
        pairs = list(dict.fromkeys((r.measure, r.scheme) for r in rows))[:MOST_SCHEMES]
        several = {name for name, _ in pairs if len({s for m, s in pairs if m == name and s}) > 1}
        for i, (name, scheme) in enumerate(pairs):
            measure = findings.measure(name)
            title = (measure.title if measure else name) + (f", {scheme}" if scheme and name in several else "")
            plot = dose_plot(
                rows,
                measure=name,
                scheme=scheme,
                index=i,
                title=f"{title} against copies in training",
                unit=measure.unit if measure else "",
            )
            panels.append(Panel(label=title, plots=[plot]))
    absent = ""
    if not panels:
        absent = (
            "No dose-response: the records say nothing about how often each was in the training data. "
            "Give a duplicates column, or the training corpus, and copies are counted."
            if not levels
            else "No dose-response: all records have the same number of copies in training."
        )
    return Section(
        id="dose",
        title="Dose-response",
        lead="What each further copy in the training data does. The flat line is unseen text: where the curve leaves "
        "its band, copies have become memory."
        if panels
        else "",
        guards=_family_guards(findings, "dose"),
        panels=panels,
        folded=[measure_view(m) for m in _family(findings, "dose") if m.values],
        absent=absent,
    )


def _membership(findings: Findings) -> Section:
    auroc = findings.measure("membership.auroc")
    table = membership_table(findings)
    order = [str(v.dims.get("attack")) for v in _ranked(auroc)] if auroc else []
    r = findings.records
    n = {key: r.model_extra.get(key) if r.model_extra else None for key in ("members", "non_members")}
    members = n["members"] if isinstance(n["members"], int) else r.targets
    others = n["non_members"] if isinstance(n["non_members"], int) else r.controls
    plot = roc_plot(findings.series.roc, order=order, members=members, others=others)
    rest = [m for m in _family(findings, "membership") if m.name not in ("membership.auroc", "membership.tpr")]
    absent = ""
    if table is None and plot is None and not rest:
        absent = (
            "No membership figures: they need records that were in training and records that were not."
            if not r.controls
            else "No membership figures: no membership score was computed."
        )
    return Section(
        id="membership",
        title="Membership",
        lead="Whether the model betrays that a record was in its training data. 0.5 is chance; far below 0.5 leaks as "
        "much as far above. A blind baseline never saw the model: an attack that does not beat it has measured the "
        "data, not the memory."
        if not absent
        else "",
        guards=_family_guards(findings, "membership"),
        panels=[Panel(label="ROC", plots=[plot])] if plot else [],
        tables=[table] if table else [],
        folded=[measure_view(m) for m in rest if m.values],
        absent=absent,
    )


def _ranked(measure: Measure) -> list[MeasureValue]:
    """Strongest first, read two-sided: by |AUROC - 0.5|."""
    return sorted(measure.values, key=lambda v: (-abs((0.5 if v.value is None else v.value) - 0.5), str(v.dims)))


def membership_table(findings: Findings) -> Table | None:
    """AUROC with interval and TPR at each FPR, strongest attack first, the blind baseline in the same table."""
    auroc, tpr = findings.measure("membership.auroc"), findings.measure("membership.tpr")
    if auroc is None or not auroc.values:
        return None
    grid = sorted({v.dims["fpr"] for v in tpr.values if "fpr" in v.dims}) if tpr else []
    rows: list[list[str]] = []
    marked = set()
    for value in _ranked(auroc)[:MOST_VALUES]:
        dims = value.dims
        attack = str(dims.get("attack", DASH))
        others = [dimension(k, v) for k, v in dims.items() if k not in ("attack", "population")]
        if attack.startswith("blind"):
            marked.add(len(rows))
        row = [
            attack + (f" ({', '.join(others)})" if others else ""),
            number(value.value),
            interval(value.low, value.high) or DASH,
        ]
        for fpr in grid:
            at = tpr.select(**{**dims, "fpr": fpr}) if tpr else []
            row.append(with_interval(at[0].value, at[0].low, at[0].high, tpr.unit or "share") if at and tpr else DASH)
        rows.append([*row, f"{value.n:,}" if value.n is not None else DASH])
    if not marked:
        for guard in findings.guards:
            if "blind" in guard.name and guard.value is not None:
                marked.add(len(rows))
                rows.append(
                    [
                        f"{guard.title} (never saw the model)",
                        number(guard.value),
                        interval(guard.low, guard.high) or DASH,
                        *([DASH] * len(grid)),
                        DASH,
                    ]
                )
    columns = ["attack", "AUROC", f"{interval_name(auroc.values[0])}"]
    columns += [f"TPR at {100 * fpr:g}% FPR" for fpr in grid] + ["n"]
    return Table(
        title="Attacks, strongest first",
        columns=columns,
        rows=rows,
        note="Grey: blind baselines, which never saw the model." if marked else "No blind baseline was run.",
        marked=frozenset(marked),
    )


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
                number(value.value, measure.unit),
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
