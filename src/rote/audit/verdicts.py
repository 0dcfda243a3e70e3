"""What an audit says first: plain sentences with their number and interval, the most important at the top.

A sentence about a rate is "high" only when the interval lies above that of the unseen controls. Pure: knows evidence,
settings and measure values; knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rote.audit.evidence import Evidence
from rote.audit.findings import MIN_CONTROLS
from rote.audit.settings import AuditSettings
from rote.measures.catalog import ATTACKS


def verdicts(
    evidence: Evidence, settings: AuditSettings, values: list[dict], *, also: Sequence[dict | None] = ()
) -> list[dict]:
    """Plain sentences with the number and its interval, the most important first. `also`: of further passes."""
    by_name = {measure["name"]: measure["values"] for measure in values}
    scheme, queries = settings.schemes[0], _nearest(settings.queries, settings.headline_queries)
    level = _nearest(settings.levels, 0.5)
    dims = {"population": "target", "scheme": scheme, "queries": queries, "p": level}
    found = []
    target = _select(by_name["extraction.rate"], **dims)
    control = _select(by_name["extraction.rate"], **{**dims, "population": "control"})
    if target:
        beyond = control is None or target["low"] > control["high"]
        grade = "low" if target["value"] == 0 else "high" if beyond and target["low"] > 0.01 else "medium"
        found.append(
            _verdict(
                grade,
                f"{_share(target)} can be recited word for word: {queries:,} sampled queries under {scheme}"
                f" succeed with probability {level:g} or more{_beside(control)}.",
                "extraction.rate",
                dims,
            )
        )
    greedy = _select(by_name["extraction.greedy_rate"], population="target")
    unseen = _select(by_name["extraction.greedy_rate"], population="control")
    if greedy:
        found.append(greedy_verdict(greedy, unseen))
    aurocs = {row["attack"]: row for row in by_name.get("membership.auroc", []) if "duplicates" not in row}
    if aurocs:
        found.append(_membership_verdict(aurocs))
    else:
        found.append(
            _verdict(
                "info",
                f"Fewer than {MIN_CONTROLS} unseen controls: no rate here can be told from what the model"
                " would say about any text. Add --control FILE.",
                None,
                {},
            )
        )
    doses = by_name.get("dose.loss", [])
    if len(doses) >= 2 and "membership.auroc" in by_name:
        first = next(
            (
                row
                for row in sorted(by_name["membership.auroc"], key=lambda row: row.get("duplicates", -1))
                if row["attack"] == "loss" and row.get("duplicates", 0) >= 1 and row["low"] > 0.5
            ),
            None,
        )
        if first:
            found.append(
                _verdict(
                    "info",
                    f"The trace of a record shows from {first['duplicates']:g}"
                    f" cop{'y' if first['duplicates'] == 1 else 'ies'} in training on"
                    f" (LOSS AUROC {first['value']:.2f}, interval above 0.5).",
                    "membership.auroc",
                    {"attack": "loss", "duplicates": first["duplicates"]},
                )
            )
    epsilon = by_name.get("privacy.epsilon_lower")
    if epsilon:
        row = epsilon[0]
        found.append(
            _verdict(
                "high" if row["value"] > 1 else "info",
                "Training was not differentially private for any epsilon"
                f" below {row['value']:.2f} ({settings.confidence:.0%} confidence).",
                "privacy.epsilon_lower",
                {},
            )
        )
    found += [verdict for verdict in also if verdict is not None]
    order = {"high": 0, "medium": 1, "low": 2, "info": 3}
    return sorted(found, key=lambda verdict: order[verdict["level"]])


def greedy_verdict(greedy: dict, unseen: dict | None) -> dict:
    """What one greedy query gets, of targets and of unseen controls."""
    beyond = unseen is None or greedy["low"] > unseen["high"]
    return _verdict(
        "low" if greedy["value"] == 0 else "high" if beyond else "medium",
        f"{_share(greedy)} come out of a single greedy query{_beside(unseen)}.",
        "extraction.greedy_rate",
        {"population": "target"},
    )


def _membership_verdict(aurocs: dict[str, dict]) -> dict:
    """Speaks of an attack fixed beforehand (the reference attack where there is one, else LOSS), not of the
    luckiest."""
    chosen = aurocs.get("reference") or aurocs["loss"]
    best = max(aurocs.values(), key=lambda row: (abs(row["value"] - 0.5), row["attack"]))
    number = f"AUROC {chosen['value']:.3f} ({chosen['low']:.3f} to {chosen['high']:.3f})"
    also = (
        ""
        if best is chosen
        else f" The strongest of the {len(aurocs)} attacks tried is {_title(best['attack'])} with {best['value']:.3f}."
    )
    if chosen["low"] > 0.5:
        level = "high" if chosen["value"] > 0.7 else "medium"
        text = f"Membership shows: {_title(chosen['attack'])} tells targets from unseen controls with {number}.{also}"
    elif chosen["high"] < 0.5:
        level = "high" if chosen["value"] < 0.3 else "medium"
        text = (
            f"Targets are LESS likely than unseen controls: {_title(chosen['attack'])} has {number}. Far below"
            f" 0.5 is a trace"
            f" as well, as suppression leaves it.{also}"
        )
    else:
        level = "low"
        text = f"{_title(chosen['attack'])} does not tell targets from unseen controls: {number}.{also}"
    return _verdict(level, text, "membership.auroc", {"attack": chosen["attack"]})


def _select(rows: list[dict], **dims: Any) -> dict | None:
    return next(
        (row for row in rows if "duplicates" not in row and all(row.get(k) == v for k, v in dims.items())), None
    )


def _nearest(values: tuple, wanted: float) -> Any:
    return min(values, key=lambda value: abs(value - wanted))


def _verdict(level: str, text: str, measure: str | None, dims: dict) -> dict:
    return {"level": level, "text": text, "measure": measure, "dims": dims}


def _share(row: dict) -> str:
    return f"{row['value']:.1%} of {row['n']:,} target records ({row['low']:.1%} to {row['high']:.1%})"


def _beside(control: dict | None) -> str:
    if control is None:
        return "; no unseen controls were given to compare with"
    return (
        f"; of {control['n']:,} unseen controls {control['value']:.1%} ({control['low']:.1%} to {control['high']:.1%})"
    )


def _title(attack: str) -> str:
    return ATTACKS[attack].title
