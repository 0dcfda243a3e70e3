"""The most exposed records, token by token, as a heat map of probability. Text leaves here only when asked for.

Knows the findings format. Knows nothing about HTML: a token has a heat class and a width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rote.report.findings import Exposed, Findings
from rote.report.text import DASH, dimension, number, plural

MOST_TOKENS = 400  # of a record
MOST_EXPOSED = 20
OPEN_EXPOSED = 5  # the others wait behind a disclosure
HEAT_EDGES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
HEAT_LABELS = ("< 1%", "1%", "5%", "10%", "25%", "50%", "75%", "90%", "≥ 99%")


@dataclass(frozen=True)
class TokenView:
    """One token of the heat map: `heat` 0..8 (n = not predicted), `width` in characters 1..14."""

    text: str | None
    heat: str
    width: int
    label: str
    hint: str
    given: bool
    first: bool  # the first token after the prefix


@dataclass(frozen=True)
class RecordView:
    id: str
    facts: list[str]
    tokens: list[TokenView]
    rows: list[list[str]]
    hidden_tokens: int
    masked: bool


def heat(p: float | None) -> str:
    """The heat class of a probability: 0..8, or n where nothing was predicted."""
    return "n" if p is None else str(sum(p >= edge for edge in HEAT_EDGES))


def record_view(record: Exposed, *, reveal: bool) -> RecordView:
    """A record for the heat map. Text is dropped here unless `reveal` and the findings hold it."""
    show = reveal and not record.masked
    tokens, rows = [], []
    for i, token in enumerate(record.tokens[:MOST_TOKENS]):
        text = token.t if show else None
        chars = token.n_chars if token.n_chars is not None else len(token.t or "")
        given = record.prefix_tokens is not None and i < record.prefix_tokens
        p = number(token.p, "share") if token.p is not None else DASH
        hint = f"{plural(chars, 'character')}, probability {p}" + (f", rank {token.rank:,}" if token.rank else "")
        label = "" if token.p is None or chars < 3 else f"{math.floor(token.p * 100)}"
        tokens.append(
            TokenView(
                text=text,
                heat=heat(token.p),
                width=max(1, min(14, chars)),
                label=label,
                hint=hint,
                given=given,
                first=i > 0 and i == record.prefix_tokens,
            )
        )
        rows.append(
            [str(i + 1), "prefix" if given else "recited", f"{chars}", p, f"{token.rank:,}" if token.rank else DASH]
        )
    return RecordView(
        id=record.id,
        facts=_facts(record),
        tokens=tokens,
        rows=rows,
        hidden_tokens=max(0, len(record.tokens) - MOST_TOKENS),
        masked=not show,
    )


def _facts(record: Exposed) -> list[str]:
    facts = []
    if record.duplicates is not None:
        facts.append(dimension("duplicates", record.duplicates))
    if record.queries_p50 is not None:
        facts.append(
            "recited in the first query"
            if record.queries_p50 <= 1
            else f"even odds after {number(record.queries_p50)} queries"
        )
    if record.log_pz is not None:
        facts.append(f"p_z = {number(math.exp(record.log_pz), 'share') if record.log_pz > -700 else 'below 10⁻³⁰⁰'}")
    if record.greedy is not None:
        facts.append("greedy decoding recites it" if record.greedy else "greedy decoding does not recite it")
    if record.longest_run is not None:
        facts.append(f"longest verbatim run {plural(record.longest_run, 'token')}")
    if record.population == "control":
        facts.append("unseen control")
    return facts


def exposed_views(findings: Findings, *, reveal: bool) -> list[RecordView]:
    return [record_view(record, reveal=reveal) for record in findings.exposed[:MOST_EXPOSED]]
