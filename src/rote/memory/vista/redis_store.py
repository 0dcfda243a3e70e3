"""Summaries in Redis or Valkey, for many machines: key `{user}:vista:VERSION`, so a user's keys share a cluster slot.

A batch is one MULTI/EXEC; reading is one MGET; time to live is Redis's own. Deleting removes the keys of every version
and, where the server keeps files, has it rewrite them (`BGREWRITEAOF`, `BGSAVE`), since an append-only file would
otherwise keep the deleted bytes.

Knows nothing about: what the values mean.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rote.errors import InputError, MissingDependencyError
from rote.memory.vista.store import SummaryStore

VERSIONS = "vista:versions"
PATIENCE = 30.0  # seconds to wait for the server to finish rewriting its files


def _library() -> Any:
    try:
        import redis
    except ImportError:
        raise MissingDependencyError("redis", "store") from None
    return redis


def _key(version: str, user: str) -> str:
    return f"{{{user}}}:vista:{version}"


class RedisStore(SummaryStore):
    """`redis://[[user]:password@]host:port/db`."""

    def __init__(self, url: str, *, version: str, dtype: str = "int8", ttl: float | None = None):
        super().__init__(version=version, dtype=dtype, ttl=ttl)
        self.redis = _library()
        try:
            self.client = self.redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=60)
        except ValueError as error:
            raise InputError(f"not an address of a Redis server ({error}); use redis://HOST:PORT/DB") from None
        at = self.client.connection_pool.connection_kwargs
        self.place = f"redis {at.get('host', at.get('path', ''))}:{at.get('port', '')}"  # never the password
        with self._errors():
            self.client.ping()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (self.redis.ConnectionError, self.redis.TimeoutError) as error:
            reason = " ".join(str(error).split())[:100]
            raise InputError(f"{self.place}: cannot be reached ({reason}); is the server running?") from None
        except self.redis.RedisError as error:
            raise InputError(f"{self.place}: refused ({' '.join(str(error).split())[:100]})") from None

    def _read(self, version: str, users: list[str]) -> list[bytes | None]:
        with self._errors():
            return self.client.mget([_key(version, user) for user in users]) if users else []

    def _write(self, version: str, values: Mapping[str, bytes]) -> None:
        expire = None if self.ttl is None else max(1, round(self.ttl * 1000))
        with self._errors(), self.client.pipeline(transaction=True) as batch:
            batch.sadd(VERSIONS, version)
            for user, value in values.items():
                batch.set(_key(version, user), value, px=expire)
            batch.execute()

    def _erase(self, users: list[str], version: str | None) -> dict[str, int]:
        names = self.versions() if version is None else [version]
        with self._errors(), self.client.pipeline(transaction=True) as batch:
            for user in users:
                batch.delete(*(_key(name, user) for name in names or [self.version]))
            counts = dict(zip(users, batch.execute(), strict=True))
        if any(counts.values()):
            self._rewrite_files()
        return counts

    def _rewrite_files(self) -> None:
        """Have the server write its files again without the deleted keys, and wait for it."""
        with self._errors():
            self._wait()  # a rewriting that is under way began before the deletion
            if self.client.info("persistence").get("aof_enabled"):
                self.client.bgrewriteaof()
                self._wait()
            if self._saves():
                self.client.bgsave()
                self._wait()

    def _wait(self) -> None:
        """Until the server writes no file in the background."""
        names = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            state = self.client.info("persistence")
            if not any(state.get(name) for name in names):
                return
            time.sleep(0.02)
        raise InputError(f"{self.place}: the users are deleted, but the server has not rewritten its files yet")

    def _saves(self) -> bool:
        """Whether the server keeps snapshots; a managed server does not say, its snapshots are its owner's to look
        after."""
        try:
            return bool(self.client.config_get("save").get("save"))
        except self.redis.ResponseError:
            return False

    def _users(self, version: str) -> Iterator[str]:
        tail = f"}}:vista:{version}".encode()
        with self._errors():
            for key in self.client.scan_iter(match=f"{{*}}:vista:{version}", count=1000):
                yield key[1 : -len(tail)].decode("utf-8")

    def versions(self) -> list[str]:
        with self._errors():
            return sorted(name.decode("ascii") for name in self.client.smembers(VERSIONS))

    def _size(self) -> int:
        with self._errors():
            return int(self.client.info("memory")["used_memory"])

    def close(self) -> None:
        self.client.close()
