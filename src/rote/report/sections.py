"""The sections of the page and their order: extraction, dose-response, membership, anything else. No HTML here.

Knows the findings format and the plots. A section with nothing to show says why in one sentence.
"""

from __future__ import annotations

from rote.report.extraction_plots import dose_plot, histogram_plot, survival_plot
from rote.report.findings import Findings, spoils
from rote.report.generic_plot import generic_plot
from rote.report.layout import Panel, Section, family, family_guards, measure_view
from rote.report.membership_section import membership_section

MOST_SCHEMES = 12


def sections(findings: Findings) -> list[Section]:
    """The sections with figures, in reading order. Those of a language-model audit appear there even when empty."""
    language = findings.kind == "audit-lm"
    made = [_extraction(findings), _dose(findings), membership_section(findings)]
    out = [s for s in made if not s.absent or language]
    shown = {s.id for s in out}
    rest = [m for m in findings.measures if m.values and m.name.split(".")[0] not in shown]
    # Figures named after extraction measures stand in that section.
    elsewhere = [
        f for f in findings.series.figures if "extraction" not in shown or not f.name.startswith("extraction.")
    ]
    figures = [Panel(label=f.title, plots=[generic_plot(f, index=i)]) for i, f in enumerate(elsewhere[:24])]
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
    own = [f for f in findings.series.figures if f.name.startswith("extraction.")]
    panels += [Panel(label=f.title, plots=[generic_plot(f, index=i, of="extraction")]) for i, f in enumerate(own)]
    measures = family(findings, "extraction")
    return Section(
        id="extraction",
        title="Extraction",
        lead=lead if schemes else "",
        guards=family_guards(findings, "extraction"),
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
        # Controls' greedy rate is left to the table: the plot has lines enough.
        for population in ("target", "control")[: 1 if kind == "greedy" else 2] if measure else ():
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
                title=title if "copies" in title else f"{title} against copies in training",
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
        guards=family_guards(findings, "dose"),
        panels=panels,
        folded=[measure_view(m) for m in family(findings, "dose") if m.values],
        absent=absent,
    )
