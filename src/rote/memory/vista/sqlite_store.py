"""Summaries in SQLite: nothing to install, one file, write-ahead log.

`PRAGMA secure_delete` overwrites deleted bytes with zeros; a checkpoint and VACUUM after a deletion clear the log and
the inner pages as well.

Knows nothing about: what the values mean.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from rote.errors import InputError
from rote.memory.vista.store import SummaryStore


class SqliteStore(SummaryStore):
    """`sqlite:FILE`. Other processes may read and write the same file; writers wait for each other."""

    def __init__(self, path: Path, *, version: str, dtype: str = "int8", ttl: float | None = None):
        super().__init__(version=version, dtype=dtype, ttl=ttl)
        self.path, self.place = Path(path), str(path)
        if self.path.is_dir():
            raise InputError(f"{path}: an SQLite store is a file, this is a directory")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        with self._errors():
            self.base.execute("PRAGMA journal_mode = WAL")
            self.base.execute("PRAGMA synchronous = FULL")
            self.base.execute("PRAGMA secure_delete = ON")
            self.base.execute(
                "CREATE TABLE IF NOT EXISTS summary (version TEXT, user TEXT, value BLOB NOT NULL,"
                " PRIMARY KEY (version, user)) WITHOUT ROWID"
            )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path}: SQLite says {error}") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self.base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.base.execute("ROLLBACK")
                raise
            self.base.execute("COMMIT")

    def _read(self, version: str, users: list[str]) -> list[bytes | None]:
        query = "SELECT value FROM summary WHERE version = ? AND user = ?"
        with self._errors():
            rows = [self.base.execute(query, (version, user)).fetchone() for user in users]
        return [None if row is None else row[0] for row in rows]

    def _write(self, version: str, values: Mapping[str, bytes]) -> None:
        with self._transaction():
            self.base.executemany(
                "INSERT OR REPLACE INTO summary VALUES (?, ?, ?)",
                [(version, user, value) for user, value in values.items()],
            )

    def _erase(self, users: list[str], version: str | None) -> dict[str, int]:
        remove = "DELETE FROM summary WHERE user = :user AND (:version IS NULL OR version = :version)"
        with self._transaction():
            counts = {u: self.base.execute(remove, {"user": u, "version": version}).rowcount for u in users}
        if any(counts.values()):
            with self._errors():
                self.base.execute("VACUUM")
                self.base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return counts

    def _users(self, version: str) -> Iterator[str]:
        with self._errors():
            rows = self.base.execute("SELECT user FROM summary WHERE version = ? ORDER BY user", (version,))
            yield from (row[0] for row in rows.fetchall())

    def versions(self) -> list[str]:
        with self._errors():
            return [row[0] for row in self.base.execute("SELECT DISTINCT version FROM summary ORDER BY version")]

    def _size(self) -> int:
        return sum(f.stat().st_size for f in (self.path, Path(f"{self.path}-wal")) if f.exists())

    def close(self) -> None:
        self.base.close()
