"""Two runs' per-record tables matched by id, and the paired differences they allow.

Knows `records.parquet` (one row a record: id, population, duplicates, greedy, `log_pz:<scheme>`, `score:<attack>`)
and the names of the measures such columns reproduce. Refuses to pair what does not reproduce the findings' own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.report import paired
from rote.report.findings import MeasureValue
from rote.report.paired import Difference

if TYPE_CHECKING:
    import pyarrow as pa

LOG_PZ, SCORE = "log_pz:", "score:"
TEXTS, NUMBERS = ("id", "population"), ("duplicates", "greedy", "tokens", "nll")
_KNOWN_DIMS = {"population", "scheme", "queries", "p", "duplicates", "attack"}


@dataclass(frozen=True)
class Joined:
    """Two per-record tables, matched by id: row i of both is one record."""

    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]

    def difference(self, name: str, before: MeasureValue, after: MeasureValue, confidence: float) -> Difference | None:
        """The paired difference of a number, or None when the tables cannot reproduce it on both sides."""
        dims = before.dims
        if not set(dims) <= _KNOWN_DIMS or before.value is None or after.value is None:
            return None
        if name == "membership.auroc":
            return self._auroc(dims, before.value, after.value, confidence)
        rows = self._rows(dims)
        new, old = _indicator(name, dims, self.after), _indicator(name, dims, self.before)
        if rows is None or new is None or old is None or not rows.any():
            return None
        new, old = new[rows], old[rows]
        if abs(new.mean() - after.value) > 1e-9 or abs(old.mean() - before.value) > 1e-9:
            return None  # the findings counted other records: never pair what does not agree
        return paired.proportions(new, old, confidence=confidence)

    def _rows(self, dims: dict[str, Any]) -> np.ndarray | None:
        rows = np.ones(len(self.before["id"]), dtype=bool)
        for key in ("population", "duplicates"):
            if key in dims:
                if key not in self.before:
                    return None
                rows &= self.before[key] == dims[key]
        return rows

    def _auroc(self, dims: dict[str, Any], before: float, after: float, confidence: float) -> Difference | None:
        column = f"{SCORE}{dims.get('attack')}"
        if (
            set(dims) - {"attack"}
            or column not in self.before
            or column not in self.after
            or "population" not in self.before
        ):
            return None
        new, old, who = self.after[column], self.before[column], self.before["population"]
        if not (np.isfinite(new).all() and np.isfinite(old).all()):
            return None
        member, other = who == "target", who == "control"
        if not member.any() or not other.any():
            return None
        d = paired.auroc(new[member], new[other], old[member], old[other], confidence=confidence)
        return d if abs(d.value - (after - before)) < 1e-9 else None


def join(before: pa.Table | None, after: pa.Table | None) -> Joined | None:
    """Match two per-record tables by id; None unless both hold exactly the same, unique ids."""
    if before is None or after is None or "id" not in before.column_names or "id" not in after.column_names:
        return None
    old, new = _columns(before), _columns(after)
    a, b = np.argsort(old["id"], kind="stable"), np.argsort(new["id"], kind="stable")
    ids = old["id"][a]
    if len(a) != len(b) or not np.array_equal(ids, new["id"][b]) or (len(ids) > 1 and (ids[1:] == ids[:-1]).any()):
        return None
    return Joined({k: v[a] for k, v in old.items()}, {k: v[b] for k, v in new.items()})


@dataclass(frozen=True)
class JoinedCompanions:
    """Two runs' `companions.parquet` (name, role, id, tokens, nll, greedy, log_pz:<scheme>), matched row by row."""

    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]

    def difference(self, name: str, before: MeasureValue, after: MeasureValue, confidence: float) -> Difference | None:
        """The paired difference of a companion's number, or None when the tables cannot reproduce it."""
        dims = before.dims
        if name == "utility.perplexity" and set(dims) == {"text"}:
            rows = (self.before["role"] == "utility") & (self.before["name"] == dims["text"])
            if not rows.any() or not np.array_equal(self.before["tokens"][rows], self.after["tokens"][rows]):
                return None
            return paired.perplexity(
                self.after["nll"][rows], self.before["nll"][rows], self.before["tokens"][rows], confidence=confidence
            )
        known = {"variants.greedy_rate": "extraction.greedy_rate", "variants.rate": "extraction.rate"}.get(name)
        rows = (self.before["role"] == "variant") & (self.before["name"] == dims.get("variant"))
        if known is None or not rows.any():
            return None
        # Of these rows only: the utility texts beside them have no extraction probability.
        new, old = (_indicator(known, dims, {key: column[rows] for key, column in table.items()})
                    for table in (self.after, self.before))  # fmt: skip
        return None if new is None or old is None else paired.proportions(new, old, confidence=confidence)


def join_companions(before: pa.Table | None, after: pa.Table | None) -> JoinedCompanions | None:
    """Match two companion tables; None unless both hold the same rows in the same order."""
    if before is None or after is None:
        return None
    old, new = _columns(before, also=("name", "role")), _columns(after, also=("name", "role"))
    same = all(np.array_equal(old[key], new[key]) for key in ("name", "role", "id"))
    return JoinedCompanions(old, new) if same else None


def _columns(table: pa.Table, also: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    out = {}
    for name in table.column_names:
        if name in (*NUMBERS, *TEXTS, *also) or name.startswith((LOG_PZ, SCORE)):
            column = table.column(name).combine_chunks()
            words = name in TEXTS or name in also
            out[name] = np.array(column.to_pylist(), dtype=object) if words else _numbers(column)
    return out


def _numbers(column: Any) -> np.ndarray:
    """float64 with NaN for null; booleans as 0 and 1."""
    return np.array([np.nan if v is None else float(v) for v in column.to_pylist()], dtype=np.float64)


def _indicator(name: str, dims: dict[str, Any], table: dict[str, np.ndarray]) -> np.ndarray | None:
    """The 0/1 column whose mean is the measure: extraction rate, greedy rate, ceiling. None for any other measure."""
    if name == "extraction.greedy_rate":
        return None if "greedy" not in table else table["greedy"] > 0
    log_pz = table.get(f"{LOG_PZ}{dims.get('scheme')}")
    if log_pz is None:
        return None
    if name == "extraction.ceiling":
        return log_pz > -np.inf
    if name == "extraction.rate" and "queries" in dims and "p" in dims:
        from rote.measures.extraction import extractable

        return (
            None
            if np.isnan(log_pz).any()
            else np.asarray(extractable(log_pz, float(dims["queries"]), float(dims["p"])))
        )
    return None
