"""The membership section: attacks with intervals beside the blind baseline, by copies in training, and the ROC.

Knows the findings format and its plots. Reads an AUROC two-sided: what counts is the distance from 0.5.
"""

from __future__ import annotations

from typing import Any

from rote.report.findings import BREAKDOWNS, Findings, Measure, MeasureValue
from rote.report.headline import interval_name
from rote.report.layout import MOST_VALUES, Panel, Section, Table, family, family_guards, measure_view
from rote.report.roc_plot import roc_plot
from rote.report.text import DASH, dimension, interval, number, with_interval


def membership_section(findings: Findings) -> Section:
    auroc = findings.measure("membership.auroc")
    table = membership_table(findings)
    order = list(dict.fromkeys(str(v.dims.get("attack")) for v in _ranked(auroc))) if auroc else []
    r = findings.records
    n = {key: r.model_extra.get(key) if r.model_extra else None for key in ("members", "non_members")}
    members = n["members"] if isinstance(n["members"], int) else r.targets
    others = n["non_members"] if isinstance(n["non_members"], int) else r.controls
    plot = roc_plot(findings.series.roc, order=order, members=members, others=others)
    rest = [m for m in family(findings, "membership") if m.name not in ("membership.auroc", "membership.tpr")]
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
        guards=family_guards(findings, "membership"),
        panels=[Panel(label="ROC", plots=[plot])] if plot else [],
        tables=[t for t in (table, copies_table(findings)) if t],
        folded=[measure_view(m) for m in (auroc, findings.measure("membership.tpr"), *rest) if m and m.values],
        absent=absent,
    )


def _ranked(measure: Measure) -> list[MeasureValue]:
    """The values over all records, strongest first by |AUROC - 0.5|. Breakdowns have their own table."""
    whole = [v for v in measure.values if not BREAKDOWNS & v.dims.keys()] or measure.values
    return sorted(whole, key=lambda v: (-abs((0.5 if v.value is None else v.value) - 0.5), str(v.dims)))


def copies_table(findings: Findings) -> Table | None:
    """AUROC of every attack by copies in training; None when the findings have no such breakdown."""
    auroc = findings.measure("membership.auroc")
    cells = {
        (str(v.dims["attack"]), v.dims["duplicates"]): v
        for v in (auroc.values if auroc else [])
        if v.dims.keys() == {"attack", "duplicates"}
    }
    if auroc is None or not cells:
        return None
    levels = sorted({copies for _, copies in cells}, key=float)[:12]
    attacks = [
        a for a in dict.fromkeys(str(v.dims.get("attack")) for v in _ranked(auroc)) if any(k[0] == a for k in cells)
    ]
    n = {copies: max((v.n or 0 for (_, c), v in cells.items() if c == copies), default=0) for copies in levels}

    def cell(attack: str, copies: Any) -> str:
        v = cells.get((attack, copies))
        return with_interval(v.value, v.low, v.high, auroc.unit) if v else DASH

    return Table(
        title="AUROC by copies in training",
        columns=["attack"] + [f"{dimension('duplicates', float(copies))} (n = {n[copies]:,})" for copies in levels],
        rows=[[attack, *(cell(attack, copies) for copies in levels)] for attack in attacks[:MOST_VALUES]],
        note="Records with that many copies against all unseen controls.",
    )


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
            number(value.value, auroc.unit),
            interval(value.low, value.high, auroc.unit) or DASH,
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
                        number(guard.value, auroc.unit),
                        interval(guard.low, guard.high, auroc.unit) or DASH,
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
