"""Gates: conditions on findings that make a command fail, such as `extraction.rate{queries=100, p=0.5}.high > 0.01`.

Grammar:

    measure [ {dim=value, ...} ] [ .value | .low | .high ]  operator  number

The condition names what is NOT allowed. Without a population only targets count (controls are the yardstick, not the
risk); without duplicates or group, the number over all records, where there is one. A gate that finds no number fails:
silence is not a pass. Parsed by hand; nothing is evaluated as code.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rote.errors import InputError
from rote.report.findings import BREAKDOWNS, Findings, Measure, MeasureValue, same
from rote.report.text import shown_plain

FIELDS = ("value", "low", "high")
OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?\Z")
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Gate:
    """A parsed condition. `text` is what the user wrote."""

    text: str
    measure: str
    dims: tuple[tuple[str, Any], ...]
    field: str
    operator: str
    limit: float


@dataclass(frozen=True)
class Failure:
    """A gate that failed, with the sentence that says why."""

    gate: Gate
    text: str
    dims: dict[str, Any]
    value: float | None


def parse_gate(text: str) -> Gate:
    """Parse one condition. Raises InputError that says which part is wrong and shows a correct one."""

    def wrong(what: str) -> InputError:
        return InputError(
            f"gate {shown_plain(text)!r}: {what}; write it like extraction.rate{{queries=100,p=0.5}}.high>0.01"
        )

    rest = text.strip()
    found = _NAME.match(rest)
    if found is None:
        raise wrong("it does not start with a measure")
    name, rest = found.group(), rest[found.end() :].lstrip()
    dims: list[tuple[str, Any]] = []
    if rest.startswith("{"):
        body, rest = _braces(rest, wrong)
        dims = _dimensions(body, wrong)
    field = "value"
    if dims or rest.startswith("."):
        tail = re.match(r"\.([a-z]+)", rest)
        if tail:
            if tail.group(1) not in FIELDS:
                raise wrong(f"unknown field .{tail.group(1)}, choose from .value, .low, .high")
            field, rest = tail.group(1), rest[tail.end() :]
    elif name.rpartition(".")[2] in FIELDS:
        name, _, field = name.rpartition(".")
    rest = rest.lstrip()
    sign = next((op for op in OPERATORS if rest.startswith(op)), None)
    if sign is None:
        raise wrong(f"no comparison after {name!r}, choose from {' '.join(OPERATORS)}")
    return Gate(text.strip(), name, tuple(dims), field, sign, _limit(rest[len(sign) :].strip(), wrong))


def _braces(rest: str, wrong: Any) -> tuple[str, str]:
    """The text between braces and what follows; quotes protect a closing brace."""
    quoted = False
    for i, char in enumerate(rest):
        if char == '"':
            quoted = not quoted
        elif char == "}" and not quoted:
            return rest[1:i], rest[i + 1 :].lstrip()
    raise wrong("the brace is not closed")


def _dimensions(body: str, wrong: Any) -> list[tuple[str, Any]]:
    """`a=1, scheme="x=1, y=2"` as pairs. A value goes to the next comma outside quotes, so scheme=top_k=40 needs
    none.
    """
    dims = []
    for part in re.findall(r'(?:[^,"]|"[^"]*")+', body):
        key, equals, raw = part.strip().partition("=")
        if not equals or not key.strip() or not raw.strip():
            raise wrong(f"{part.strip()!r} is not of the form dimension=value")
        dims.append((key.strip(), _value(raw.strip())))
    if not dims:
        raise wrong("the braces are empty")
    return dims


def _value(raw: str) -> Any:
    if len(raw) >= 2 and raw[0] == raw[-1] == '"':
        return raw[1:-1]
    if raw in ("true", "false"):
        return raw == "true"
    if _NUMBER.match(raw):
        number = _limit(raw, None)
        return int(number) if number.is_integer() else number
    return raw


def _limit(raw: str, wrong: Any) -> float:
    if not _NUMBER.match(raw):
        raise wrong(f"{raw!r} is not a number" if raw else "no number to compare with")
    return float(raw[:-1]) / 100 if raw.endswith("%") else float(raw)


def evaluate(findings: Findings, gates: Iterable[str | Gate]) -> list[Failure]:
    """The failures of `gates` on `findings`, in the order of the gates; empty when all pass.

    A gate is checked against every value its dimensions select. Raises InputError for a measure or dimension that is
    not there.
    """
    failures = []
    for each in gates:
        gate = parse_gate(each) if isinstance(each, str) else each
        measure = _find(findings, gate)
        for value in _select(measure, gate):
            number = getattr(value, gate.field)
            if number is not None and not OPERATORS[gate.operator](number, gate.limit):
                continue
            failures.append(Failure(gate, _sentence(findings, gate, measure, value, number), value.dims, number))
    return failures


def _find(findings: Findings, gate: Gate) -> Measure:
    measure = findings.measure(gate.measure)
    if measure is not None:
        return measure
    known = [m.name for m in findings.measures]
    close = difflib.get_close_matches(gate.measure, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    raise InputError(
        f"gate {shown_plain(gate.text)!r}: no measure {gate.measure!r} in these findings; {hint}there are: "
        + (", ".join(known) or "none")
    )


def _select(measure: Measure, gate: Gate) -> list[MeasureValue]:
    if not measure.values:
        raise InputError(f"gate {shown_plain(gate.text)!r}: {measure.name} has no values in these findings")
    for key, _ in gate.dims:
        known = sorted({name for value in measure.values for name in value.dims})
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(
                f"gate {shown_plain(gate.text)!r}: {measure.name} has no dimension {key!r}; {hint}there are: "
                + (", ".join(known) or "none")
            )
    chosen = [v for v in measure.values if all(_fits(v.dims.get(key), want) for key, want in gate.dims)]
    if "population" not in dict(gate.dims):
        chosen = [v for v in chosen if v.dims.get("population") != "control"]
    whole = [v for v in chosen if not (BREAKDOWNS - dict(gate.dims).keys()) & v.dims.keys()]
    if chosen:
        return whole or chosen
    for key, want in gate.dims:
        there = {v.dims[key] for v in measure.values if key in v.dims}
        if not any(_fits(item, want) for item in there):
            options = ", ".join(shown_plain(str(item), 40) for item in sorted(there, key=str)[:12])
            raise InputError(
                f"gate {shown_plain(gate.text)!r}: {measure.name} has no value with "
                f"{key}={shown_plain(str(want), 40)}; "
                f"there are: {options}"
            )
    raise InputError(f"gate {shown_plain(gate.text)!r}: no value of {measure.name} has all these dimensions at once")


def _fits(have: Any, want: Any) -> bool:
    """`want` was typed by a person: 0.5 matches 0.5, and the text "16" matches a group called 16."""
    return same(have, want) or (
        have is not None and isinstance(have, str) != isinstance(want, str) and str(have) == str(want)
    )


def _sentence(findings: Findings, gate: Gate, measure: Measure, value: MeasureValue, number: float | None) -> str:
    where = ", ".join(
        f"{key}={item:g}" if isinstance(item, float) else f"{key}={item}" for key, item in value.dims.items()
    )
    place = f"{measure.name}{{{where}}}.{gate.field}" if where else f"{measure.name}.{gate.field}"
    if number is None or not math.isfinite(number):
        text = f"{place} has no number, so {shown_plain(gate.text)!r} cannot be shown to hold"
    else:
        text = f"{place} = {number:.6g}, and {gate.operator} {gate.limit:g} is not allowed"
    spoiled = findings.failed_guards(measure.name)
    if spoiled:
        text += f" (guard failed: {', '.join(shown_plain(g.title) for g in spoiled)})"
    return shown_plain(text, 600)
