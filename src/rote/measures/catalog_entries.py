"""What an entry of the catalogue (`rote.measures.catalog`) says. Knows nothing about any measure."""

from __future__ import annotations

from dataclasses import dataclass

HIGHER = "higher = more memorized"
LOWER = "lower = more memorized"


@dataclass(frozen=True)
class MeasureInfo:
    """One measure: texts for people, `range` as (low, high) with None for unbounded."""

    name: str
    title: str
    definition: str
    range: tuple[float | None, float | None]
    direction: str
    unit: str
    source: str
    informs: str


@dataclass(frozen=True)
class AttackInfo:
    """One membership attack: `needs` are the argument names of `module`.`name`, beyond its options."""

    name: str
    title: str
    definition: str
    needs: tuple[str, ...]
    source: str
    module: str = "rote.measures.membership"
