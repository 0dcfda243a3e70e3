"""The interaction log: who did what with which item, when. Read from csv, tsv, parquet, Arrow or jsonl, and checked.

One row an event: user, item, timestamp; optionally action and the item's category. Columns are found by their usual
names (`user_id`, `movieId`, `ts`, ...) or named. Timestamps are seconds since 1970, ISO 8601 text, or a parquet time.

What is refused, with file and line: no user or item, an item the model does not know, a timestamp that is no time (or
is in milliseconds), an event before the one above it of the same user. Sorting and dropping happen only when asked for,
and what was dropped is counted.

Knows nothing about: models, tensors, stores.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.errors import InputError
from rote.memory.vista.vocabulary import Vocabulary, describe_unknown
from rote.records.files import find_files
from rote.records.formats import Problem, raw_rows, unit_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ALIASES: dict[str, tuple[str, ...]] = {
    "user": ("user", "user_id", "userId", "uid", "visitorid"),
    "item": ("item", "item_id", "itemId", "movieId", "iid", "parent_asin", "asin"),
    "timestamp": ("timestamp", "time", "ts", "unixReviewTime"),
    "action": ("action", "event", "behavior", "behaviour", "event_type"),
    "category": ("category", "category_id", "genre"),
}
NEEDED = ("user", "item", "timestamp")
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
LATEST = 1e11  # seconds: the year 5138. Later numbers are milliseconds.
LONGEST_USER = 400  # bytes of a user's name: what every store's key can hold
SHOWN = 3  # problems an error names


@dataclass(frozen=True)
class InteractionLog:
    """Events of users 0 .. U-1, user u's at offsets[u] .. offsets[u+1], in the order of time."""

    users: tuple[str, ...]
    offsets: Int[np.ndarray, " users+1"]
    item: Int[np.ndarray, " events"]
    action: Int[np.ndarray, " events"]
    time: Float[np.ndarray, " events"]
    vocabulary: Vocabulary
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def events(self) -> int:
        return len(self.item)

    @cached_property
    def user_number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.users)}

    def rows(self, user: int | str) -> slice:
        """Where a user's events lie. Raises InputError for a name that is not in the log."""
        if isinstance(user, str):
            if user not in self.user_number:
                raise InputError(f"user {user[:60]!r} is not in the log")
            user = self.user_number[user]
        return slice(int(self.offsets[user]), int(self.offsets[user + 1]))

    @property
    def lengths(self) -> Int[np.ndarray, " users"]:
        return np.diff(self.offsets)


def read_interactions(
    paths: str | Path | Sequence[str | Path],
    *,
    vocabulary: Vocabulary | None = None,
    columns: Mapping[str, str] | None = None,
    time_unit: str = "s",
    sort: bool = False,
    unknown: str = "refuse",
) -> InteractionLog:
    """Read and check a log.

    vocabulary: a model's names; without it they are collected from the log, in the order of first sight.
    columns: {"user": "customer", ...} where the usual names do not fit.
    sort: put each user's events in order of time instead of refusing a log that is not.
    unknown: "refuse" or "drop" events whose item or action the vocabulary does not have (`dropped` counts them).

    Errors: InputError with file and line for whatever does not pass; at most three problems are shown.
    """
    if time_unit not in TIME_UNITS:
        raise InputError(f"time unit {time_unit!r} is not known; use one of {', '.join(TIME_UNITS)}")
    if unknown not in ("refuse", "drop"):
        raise InputError(f"unknown={unknown!r}; use 'refuse' or 'drop'")
    for name in columns or {}:
        if name not in ALIASES:
            raise InputError(f"column {name!r} is none of a log's: {', '.join(ALIASES)}")
    gather = _Gather(vocabulary, TIME_UNITS[time_unit], sort=sort, drop=unknown == "drop")
    wanted = {name for names in ALIASES.values() for name in names} | set((columns or {}).values())
    for source in find_files(paths):
        if source.format == "txt":
            raise InputError(f"{source.label}: a log is a table (csv, tsv, parquet, arrow or jsonl), not text")
        unit, names = unit_of(source.format), None
        for line, row in raw_rows(source.path, source.label, source.format, wanted=wanted):
            place = f"{source.label} {unit} {line}"
            if isinstance(row, Problem):
                gather.problem(place, row)
                continue
            if names is None or source.format in ("jsonl", "json"):
                names = _columns(row, columns or {}, source.label)
            gather.add(place, {name: row.get(column) for name, column in names.items()})
    return gather.finish()


def _columns(row: Mapping[str, Any], chosen: Mapping[str, str], label: str) -> dict[str, str]:
    found = {}
    for name, aliases in ALIASES.items():
        if name in chosen:
            if chosen[name] not in row:
                raise InputError(f"{label}: no column {chosen[name]!r}; it has {', '.join(map(str, row))}")
            found[name] = chosen[name]
            continue
        there = [alias for alias in aliases if alias in row]
        if there:
            found[name] = there[0]
    if missing := [name for name in NEEDED if name not in found]:
        raise InputError(
            f"{label}: no column for {', '.join(missing)}; it has {', '.join(map(str, row))}."
            f" Name it, for example --column {missing[0]}=NAME"
        )
    return found


def seconds_of(value: Any, scale: float) -> float:
    """Seconds since 1970 (UTC where no zone is given). Raises ValueError with what is wrong."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()
    try:
        number = float(value) * scale
    except (TypeError, ValueError):
        try:
            return seconds_of(datetime.fromisoformat(str(value).strip()), scale)
        except ValueError:
            raise ValueError(f"timestamp {str(value)[:40]!r} is neither seconds since 1970 nor ISO 8601") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"timestamp {str(value)[:40]!r} is no time after 1970")
    if number > LATEST:
        raise ValueError(f"timestamp {str(value)[:40]!r} is too late to be in seconds; is it --time-unit ms (or us)?")
    return number


class _Gather:
    """Rows into columns, with every problem kept until the end so that several are shown at once."""

    def __init__(self, vocabulary: Vocabulary | None, scale: float, *, sort: bool, drop: bool):
        self.known, self.scale, self.sort, self.drop = vocabulary, scale, sort, drop
        self.problems: list[str] = []
        self.count, self.unordered = 0, 0
        self.dropped = {"unknown item": 0, "unknown action": 0}
        self.users: dict[str, int] = {}
        self.items = {} if vocabulary is None else dict(vocabulary.item_number)
        self.actions = {} if vocabulary is None else dict(vocabulary.action_number)
        self.categories: dict[str, int] = {}
        self.category_of: dict[int, int] = {}
        self.last: dict[int, float] = {}
        self.user, self.item, self.action, self.time = array("q"), array("q"), array("q"), array("d")

    def problem(self, place: str, text: str) -> None:
        self.count += 1
        if len(self.problems) < SHOWN:
            self.problems.append(f"{place}: {text}")

    def add(self, place: str, row: dict[str, Any]) -> None:
        for name in ("user", "item"):
            if row[name] is None or str(row[name]).strip() == "":
                return self.problem(place, f"no {name}. Fill it in or remove the row.")
        user, item, action = str(row["user"]), str(row["item"]), str(row.get("action") or "event")
        if len(user.encode()) > LONGEST_USER:
            return self.problem(place, f"user name longer than {LONGEST_USER} bytes")
        try:
            time = seconds_of(row["timestamp"], self.scale)
        except (ValueError, OverflowError) as error:
            return self.problem(place, str(error))
        if self.known is not None:
            if "action" not in row and len(self.known.actions) == 1:
                action = self.known.actions[0]
            for kind, name, table in (("item", item, self.items), ("action", action, self.actions)):
                if name not in table:
                    if not self.drop:
                        return self.problem(place, describe_unknown(kind, name, tuple(table)) + " (or: --unknown drop)")
                    self.dropped[f"unknown {kind}"] += 1
                    return None
        number = self.users.setdefault(user, len(self.users))
        if time < self.last.get(number, -math.inf):
            self.unordered += 1
            if not self.sort:
                return self.problem(place, f"an event of user {user[:40]!r} before the one above it (or: --sort)")
        self.last[number] = max(time, self.last.get(number, time))
        item_number = self.items.setdefault(item, len(self.items))
        if self.known is None and row.get("category") not in (None, ""):
            category = self.categories.setdefault(str(row["category"]), len(self.categories))
            if self.category_of.setdefault(item_number, category) != category:
                return self.problem(place, f"item {item[:40]!r} has another category here than above")
        self.user.append(number)
        self.item.append(item_number)
        self.action.append(self.actions.setdefault(action, len(self.actions)))
        self.time.append(time)
        return None

    def finish(self) -> InteractionLog:
        if self.problems:
            more = f" ({self.count - len(self.problems)} more)" if self.count > len(self.problems) else ""
            raise InputError("; ".join(self.problems) + more)
        if not self.user:
            raise InputError("the log has no events")
        user, time = np.array(self.user), np.array(self.time)
        order = np.lexsort((time, user))  # stable: events of one second stay as they stood
        vocabulary = self.known
        if vocabulary is None:
            # Items without a category, where others have one, share category "".
            if self.categories and len(self.category_of) < len(self.items):
                rest = self.categories.setdefault("", len(self.categories))
                self.category_of = {n: self.category_of.get(n, rest) for n in range(len(self.items))}
            places = tuple(self.category_of[n] for n in range(len(self.items))) if self.categories else ()
            vocabulary = Vocabulary(tuple(self.items), tuple(self.actions), tuple(self.categories), places)
        return InteractionLog(
            users=tuple(self.users),
            offsets=np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(self.users)))]),
            item=np.array(self.item)[order], action=np.array(self.action)[order], time=time[order],
            vocabulary=vocabulary, dropped={name: count for name, count in self.dropped.items() if count},
        )  # fmt: skip
