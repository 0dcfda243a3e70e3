"""Where summaries are kept: one interface, several back ends, one rule.

The rule: a summary is stored under (model version, user) and read back under the same only. Another version's summaries
are another vector space; they are never mixed, and being asked for a user who has only those is an error that says so.

Knows nothing about: models, and what any one back end does.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from rote.errors import InputError
from rote.memory.vista.quantisation import DTYPES
from rote.memory.vista.value_layout import Summary, decode, encode

BACKENDS = ("lmdb", "redis", "sqlite")


class SummaryStore(ABC):
    """Summaries of one model version. `ttl` seconds after it was written a summary counts as gone.

    A back end brings the bytes: `_read`, `_write`, `_erase`, `_users`, `versions`, `_size`, `close`.
    """

    def __init__(self, *, version: str, dtype: str = "int8", ttl: float | None = None):
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
        if ttl is not None and ttl <= 0:
            raise InputError(f"a time to live of {ttl} seconds keeps nothing; give a positive one or none")
        self.version, self.dtype, self.ttl = version, dtype, ttl

    # ---- what a user calls

    def get(self, user: str) -> Summary | None:
        """The user's summary, or None when there is none of this version (or it has expired)."""
        return self.get_many([user])[0]

    def get_many(self, users: Iterable[str]) -> list[Summary | None]:
        """Summaries in the order asked for, in one round trip."""
        found = []
        for value in self._read(self.version, list(users)):
            summary = None if value is None else decode(value, version=self.version, place=self.place)
            found.append(None if summary is not None and self._expired(summary) else summary)
        return found

    def require(self, user: str) -> Summary:
        """The user's summary; InputError that says why there is none."""
        found = self.get(user)
        if found is not None:
            return found
        others = [v for v in self.versions() if v != self.version and self._read(v, [user])[0] is not None]
        if others:
            raise InputError(
                f"{self.place}: user {user[:60]!r} has a summary of model version {', '.join(others)} only, this model"
                f" is {self.version}; run `rote memory vista summarize` with this model"
            )
        raise InputError(
            f"{self.place}: no summary of user {user[:60]!r}; summarise the user's history first, or score it as new"
        )

    def put_many(self, summaries: Mapping[str, Summary]) -> None:
        """Write a batch: all of it is committed when this returns, none of it if it fails."""
        wrong = {s.version for s in summaries.values()} - {self.version}
        if wrong:
            raise InputError(f"summaries of model version {', '.join(sorted(wrong))} do not belong into {self.version}")
        self._write(self.version, {user: encode(s, self.dtype) for user, s in sorted(summaries.items())})

    def delete(self, users: Iterable[str]) -> dict[str, int]:
        """Erase users, every version of them, bytes included. Returns how many values each user had (0: none)."""
        return self._erase(list(dict.fromkeys(users)), None)

    def scan(self) -> Iterator[str]:
        """Every user with a summary of this version."""
        return self._users(self.version)

    def sweep(self) -> int:
        """Erase what has expired of this version; returns how many users."""
        old = [user for user in self.scan() if self.get(user) is None]
        if old:
            self._erase(old, self.version)
        return len(old)

    def stats(self) -> dict[str, Any]:
        """Users of every version, bytes on disk or in memory."""
        users = {version: sum(1 for _ in self._users(version)) for version in self.versions()}
        return {"place": self.place, "version": self.version, "users": users, "bytes": self._size()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _expired(self, summary: Summary) -> bool:
        return self.ttl is not None and time.time() - summary.written > self.ttl

    # ---- what a back end brings

    place: str

    @abstractmethod
    def _read(self, version: str, users: list[str]) -> list[bytes | None]: ...

    @abstractmethod
    def _write(self, version: str, values: Mapping[str, bytes]) -> None: ...

    @abstractmethod
    def _erase(self, users: list[str], version: str | None) -> dict[str, int]:
        """Erase, bytes included, of one version or (None) of all; values erased per user."""

    @abstractmethod
    def _users(self, version: str) -> Iterator[str]: ...

    @abstractmethod
    def versions(self) -> list[str]:
        """Model versions that have been written here."""

    @abstractmethod
    def _size(self) -> int: ...

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. Closing twice does nothing."""


def open_store(
    url: str | Path, *, version: str, dtype: str = "int8", ttl: float | None = None, create: bool = True
) -> SummaryStore:
    """Open `lmdb:DIR` (or a plain path), `sqlite:FILE`, or `redis://host:port/db`.

    With create=False a store that does not exist is an error (what only reads should ask for).
    Errors: InputError for an unknown kind, a place that cannot be opened; MissingDependencyError (extra `store`).
    """
    text = str(url)
    kind, _, rest = text.partition(":")
    options: dict[str, Any] = {"version": version, "dtype": dtype, "ttl": ttl}
    if kind in ("redis", "rediss", "unix"):
        from rote.memory.vista.redis_store import RedisStore

        return RedisStore(text, **options)
    if kind not in ("lmdb", "sqlite"):
        if "://" in text:
            raise InputError(f"store {kind!r} is not known; use lmdb:DIR, sqlite:FILE or redis://HOST:PORT/DB")
        kind, rest = "lmdb", text
    path = Path(rest.removeprefix("//"))
    if not create and not path.exists():
        raise InputError(f"{path}: no such store; `rote memory vista summarize` makes one")
    if kind == "sqlite":
        from rote.memory.vista.sqlite_store import SqliteStore

        return SqliteStore(path, **options)
    from rote.memory.vista.lmdb_store import LmdbStore

    return LmdbStore(path, **options)
