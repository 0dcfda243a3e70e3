"""Summaries in LMDB: one writer, many readers that never wait, commits that survive a kill.

A directory holds `CURRENT` (the name of the file in use), that file, and a lock. LMDB copies pages on write and keeps
freed ones, so a deleted value's bytes would stay in the file, and a deleted key in its inner pages. Deleting therefore
writes everything that remains into a fresh file and switches `CURRENT` to it: one pass over the store, whatever the
number of users deleted together. A crash in between leaves the old file with the deletion committed and a mark, and the
next writer finishes the rewriting. (What the disk keeps in blocks it has freed is beyond any program's reach.)

Knows nothing about: what the values mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rote.atomic import write_atomic
from rote.errors import InputError, MissingDependencyError
from rote.memory.vista.store import SummaryStore

if TYPE_CHECKING:
    import lmdb

FIRST_MAP = 1 << 30  # bytes of address space to begin with; doubled whenever a batch does not fit
COPY_BATCH = 4096  # values in one transaction while everything is rewritten
_VALUE, _VERSION, _PENDING = b"s/", b"v/", b"rewrite-pending"
# LMDB forbids opening a file twice in one process: path -> [environment, users of it].
_OPEN: dict[str, list[Any]] = {}


def _library() -> Any:
    try:
        import lmdb
    except ImportError:
        raise MissingDependencyError("lmdb", "store") from None
    return lmdb


def _key(version: str, user: str) -> bytes:
    return _VALUE + version.encode("ascii") + b"/" + user.encode("utf-8")


class LmdbStore(SummaryStore):
    """`lmdb:DIR`. Other processes may read and write the same directory."""

    def __init__(self, path: Path, *, version: str, dtype: str = "int8", ttl: float | None = None):
        super().__init__(version=version, dtype=dtype, ttl=ttl)
        self.lmdb, self.path, self.place = _library(), Path(path), str(path)
        self.env: lmdb.Environment | None = None
        self.mark: tuple[int, int] | None = None
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{path}: an LMDB store is a directory, this is a file")
        self.path.mkdir(parents=True, exist_ok=True)
        current = self.path / "CURRENT"
        if not current.exists():
            if any(name.suffix == ".mdb" for name in self.path.iterdir()):
                raise InputError(f"{path}: holds LMDB files but no CURRENT; it is damaged or was not written by Rote")
            with self._writer():
                if not current.exists():
                    write_atomic(current, "summaries-0.mdb")
        self._environment()

    # ---- the file in use

    def _environment(self) -> lmdb.Environment:
        """The environment of the file in use now: another process may have switched to a fresh one."""
        current = self.path / "CURRENT"
        for _ in range(20):
            try:
                found = os.stat(current)
                mark = (found.st_mtime_ns, found.st_ino)
                if self.env is not None and mark == self.mark:
                    return self.env
                self._release()
                name = current.read_text(encoding="ascii").strip()
                if Path(name).name != name or not name.endswith(".mdb"):
                    raise InputError(f"{current}: names {name[:40]!r}, which is no file of this store")
                self.env, self.mark = self._acquire(self.path / name), mark
                return self.env
            except FileNotFoundError:
                continue  # the file was switched between reading its name and opening it
        raise InputError(f"{self.path}: its current file is missing; the store is damaged")

    def _acquire(self, file: Path) -> lmdb.Environment:
        key = os.path.realpath(file)
        if key not in _OPEN:
            size = max(FIRST_MAP, 2 * file.stat().st_size if file.exists() else 0)
            try:
                env = self.lmdb.open(key, subdir=False, map_size=size, max_readers=512, readahead=False)
            except self.lmdb.Error as error:
                raise InputError(f"{file}: cannot be opened as LMDB ({error})") from None
            _OPEN[key] = [env, 0]
        _OPEN[key][1] += 1
        return _OPEN[key][0]

    def _release(self) -> None:
        if self.env is None:
            return
        for key, entry in list(_OPEN.items()):
            if entry[0] is self.env:
                entry[1] -= 1
                if entry[1] == 0:
                    entry[0].close()
                    del _OPEN[key]
        self.env = self.mark = None

    def close(self) -> None:
        self._release()

    @contextlib.contextmanager
    def _writer(self) -> Iterator[None]:
        """One writer at a time, over all processes; the lock goes with the process, however that ends."""
        with open(self.path / "writer.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # ---- the interface

    def _read(self, version: str, users: list[str]) -> list[bytes | None]:
        def work(env: lmdb.Environment) -> list[bytes | None]:
            with env.begin() as txn:
                return [txn.get(_key(version, user)) for user in users]

        return self._resized(work)

    def _write(self, version: str, values: Mapping[str, bytes]) -> None:
        def work(env: lmdb.Environment) -> None:
            with env.begin(write=True) as txn:
                txn.put(_VERSION + version.encode("ascii"), b"")
                for user, value in values.items():
                    txn.put(_key(version, user), value)

        with self._writer():
            self._finish_rewriting()
            self._grown(work)

    def _erase(self, users: list[str], version: str | None) -> dict[str, int]:
        counts: dict[str, int] = {}

        def work(env: lmdb.Environment) -> None:
            with env.begin(write=True) as txn:
                known = [key[len(_VERSION) :].decode("ascii") for key in _under(txn, _VERSION)]
                names = known if version is None else [version]
                for user in users:
                    counts[user] = sum(txn.delete(_key(name, user)) for name in names)
                if any(counts.values()):
                    txn.put(_PENDING, b"")

        with self._writer():
            self._grown(work)
            self._finish_rewriting()
        return counts

    def _users(self, version: str) -> Iterator[str]:
        prefix = _key(version, "")

        def work(env: lmdb.Environment) -> list[bytes]:
            with env.begin() as txn:
                return list(_under(txn, prefix))

        for key in self._resized(work):  # a snapshot: whoever iterates may delete
            yield key[len(prefix) :].decode("utf-8")

    def versions(self) -> list[str]:
        def work(env: lmdb.Environment) -> list[str]:
            with env.begin() as txn:
                return [key[len(_VERSION) :].decode("ascii") for key in _under(txn, _VERSION)]

        return self._resized(work)

    def _size(self) -> int:
        return sum(file.stat().st_size for file in self.path.glob("*.mdb"))

    # ---- growing and rewriting

    def _resized(self, work: Callable[[lmdb.Environment], Any]) -> Any:
        try:
            return work(self._environment())
        except self.lmdb.MapResizedError:  # another process let the file grow
            self._environment().set_mapsize(0)
            return work(self._environment())

    def _grown(self, work: Callable[[lmdb.Environment], Any]) -> None:
        while True:
            env = self._environment()
            try:
                self._resized(work)
                return
            except self.lmdb.MapFullError:
                env.set_mapsize(2 * env.info()["map_size"])

    def _finish_rewriting(self) -> None:
        """Under the writer's lock: when a deletion is pending, write what remains into a fresh file, switch to it."""
        env = self._environment()
        name = (self.path / "CURRENT").read_text(encoding="ascii").strip()
        for stray in self.path.glob("summaries-*.mdb*"):  # of a rewriting that was killed
            if not stray.name.startswith(name):
                stray.unlink(missing_ok=True)
        with env.begin() as txn:
            if txn.get(_PENDING) is None:
                return
        fresh = self.path / f"summaries-{int(name.removeprefix('summaries-').removesuffix('.mdb')) + 1}.mdb"
        size = env.info()["map_size"]
        with contextlib.closing(self.lmdb.open(str(fresh), subdir=False, map_size=size)) as target, env.begin() as txn:
            pairs = (pair for pair in txn.cursor() if pair[0] != _PENDING)
            while batch := list(islice(pairs, COPY_BATCH)):
                with target.begin(write=True) as out:
                    for key, value in batch:
                        out.put(key, value, append=True)
            target.sync(True)
        write_atomic(self.path / "CURRENT", fresh.name)
        self._environment()
        for old in (self.path / name, self.path / f"{name}-lock"):
            old.unlink(missing_ok=True)


def _under(txn: lmdb.Transaction, prefix: bytes) -> Iterator[bytes]:
    cursor = txn.cursor()
    if cursor.set_range(prefix):
        for key in cursor.iternext(keys=True, values=False):
            if not bytes(key).startswith(prefix):
                return
            yield bytes(key)
