"""What limits the numbers, and the settings that made them, in readable form. Pure functions.

Knows the findings format. Knows nothing about HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rote.report.findings import Findings, Measure
from rote.report.text import is_share, number, plural

SMALL_N = 100


def caveats(findings: Findings) -> list[str]:
    """What limits these numbers: the audit's own caveats, then those that follow from the findings themselves."""
    out = list(findings.caveats)
    r = findings.records
    if r.targets is not None and not r.controls:
        out.append("No unseen controls: templated or predictable text is recited without having been memorized.")
    small = [n for n in (r.targets, r.controls) if n and n < SMALL_N]
    if small:
        out.append(f"Fewer than {SMALL_N} records in a group (as few as {min(small)}): the intervals are wide.")
    if r.skipped:
        out.append(f"Not audited, and listed under Method: {plural(len(r.skipped), 'record')}.")
    idle = [g.title for g in findings.guards if g.status == "not_run"]
    if idle:
        out.append("Validity guards that did not run: " + "; ".join(idle) + ".")
    if findings.model.dtype in ("bfloat16", "float16"):
        out.append(f"The model ran in {findings.model.dtype}: probabilities carry its rounding.")
    if findings.kind == "audit-lm":
        out.append(
            "A rate holds for this decoding scheme, prefix length and prompt. With another temperature, cut or prompt "
            "it is another number."
        )
        out.append("These records, and only these, were tested: a low rate is no promise about records nobody gave.")
    return out


def setting_rows(settings: Iterable[tuple[str, Any]]) -> list[list[str]]:
    """Settings in a readable form: nested values on one line."""
    rows = []
    for key, value in sorted(settings):
        if value is None or value in ([], {}, ""):
            continue
        rows.append([key.replace("_", " "), _setting(value)])
    return rows


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}={_setting(v)}" for k, v in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return "; ".join(_setting(item) for item in value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def facts_of(info: dict[str, Any], skip: Sequence[str] = ()) -> list[list[str]]:
    return setting_rows((key, value) for key, value in info.items() if key not in skip)


def range_text(measure: Measure) -> str:
    """`0% to 100%`, `−∞ to 0`."""
    if measure.range is None:
        return "unbounded"
    low, high = measure.range
    unit = measure.unit if is_share(measure.unit) else ""
    return f"{number(low, unit) if low is not None else '−∞'} to {number(high, unit) if high is not None else '∞'}"
