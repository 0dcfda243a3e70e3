"""The score store: Parquet shards in a directory, each complete or absent, keyed by what they were computed from.

A crash loses at most the shard in flight; the same command continues. A store made from another model, other records or
other settings is refused with the names of what differs, never mixed. Knows nothing about: models, measures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rote.atomic import write_atomic
from rote.errors import InputError, RunMismatchError
from rote.scores.table import TokenScores

SCORES_VERSION = 1  # raised when a pass computes something differently: old shards are then refused
KEY_FILE = "key.json"


class ScoreStore:
    """A directory of shards `part-00000.parquet`... and `key.json`, the content the shards depend on."""

    def __init__(self, directory: str | Path, key: dict):
        self.directory = Path(directory)
        self.key = key

    @classmethod
    def create(cls, directory: str | Path, key: dict) -> ScoreStore:
        """Open for writing: a new store, or one with the same key (its finished shards are kept).

        Raises RunMismatchError naming what differs when the directory holds another run.
        """
        directory = Path(directory)
        key = json.loads(json.dumps({"scores_version": SCORES_VERSION, **key}))
        file = directory / KEY_FILE
        if file.exists():
            found = _read_key(file)
            if differs := sorted(name for name in {*found, *key} if found.get(name) != key.get(name)):
                raise RunMismatchError(
                    f"{directory}: holds scores of another run ({', '.join(differs)} changed); choose another -o, or"
                    " use --overwrite"
                )
        else:
            directory.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(key, indent=1, sort_keys=True))
        return cls(directory, key)

    @classmethod
    def open(cls, directory: str | Path) -> ScoreStore:
        """Open for reading. Raises InputError when there is no store or it is not finished."""
        directory = Path(directory)
        if not (directory / KEY_FILE).exists():
            raise InputError(f"{directory}: no scores here; run the audit first")
        store = cls(directory, _read_key(directory / KEY_FILE))
        if missing := store.missing():
            raise InputError(
                f"{directory}: {len(missing)} of {store.shards} shards are missing; run the same audit again to"
                f" finish it"
            )
        return store

    @property
    def shards(self) -> int:
        return int(self.key["shards"])

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()

    def missing(self) -> list[int]:
        """Shards that are absent, unreadable or were written under another key."""
        return [shard for shard in range(self.shards) if not self._valid(shard)]

    def write(self, shard: int, scores: TokenScores) -> None:
        """Write one shard: complete under its name or not there at all."""
        table = scores.to_arrow().replace_schema_metadata({"rote": json.dumps({"key": self.digest, "shard": shard})})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomic(self._file(shard), sink.getvalue().to_pybytes())

    def __iter__(self) -> Iterator[TokenScores]:
        for shard in range(self.shards):
            yield TokenScores.from_arrow(pq.read_table(self._file(shard)))

    def _file(self, shard: int) -> Path:
        return self.directory / f"part-{shard:05d}.parquet"

    def _valid(self, shard: int) -> bool:
        try:
            metadata = pq.read_schema(self._file(shard)).metadata or {}
            return json.loads(metadata[b"rote"])["key"] == self.digest
        except (OSError, KeyError, ValueError):  # pyarrow's ArrowInvalid is a ValueError
            return False


def _read_key(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); use --overwrite or another -o") from None
