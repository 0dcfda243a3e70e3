"""The record table: one Arrow table of checked records, whatever file they came from.

A *record* is one thing a model may have memorized: a text, or a list of token ids. A *target* may have been trained on;
a *control* is unseen text of the same kind (member is false, or duplicates is 0).

Knows the columns, row checks through `rote.records.validate`, and the fingerprint. Deliberately does not know file
formats (`rote.records.readers`), tokenizers or models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Integer

from rote.atomic import whole_file
from rote.errors import InputError
from rote.records.validate import RowCheck, RowError

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.large_string()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("prefix_chars", pa.int32()),
        pa.field("prefix_tokens", pa.int32()),
        pa.field("duplicates", pa.int64()),
        pa.field("member", pa.bool_()),
        pa.field("group", pa.string()),
        pa.field("date", pa.string()),
        pa.field("source", pa.string()),
    ]
)
CONTENT = tuple(name for name in SCHEMA.names if name != "source")
_ROWS, _CHARS = 4096, 1 << 22  # a chunk is closed at this many rows or characters, so few Python objects live at once


class TableBuilder:
    """Collects checked rows into Arrow chunks; holds at most one chunk of Python objects."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._columns: list[list] = [[] for _ in SCHEMA]
        self._chars = 0
        self.rows = 0

    def add(self, values: tuple, source: str) -> None:
        """`values` as `RowCheck` returns them."""
        for column, value in zip(self._columns, (*values, source), strict=True):
            column.append(value)
        self.rows += 1
        self._chars += len(values[1] or values[2])
        if len(self._columns[0]) >= _ROWS or self._chars >= _CHARS:
            self._close_chunk()

    def _close_chunk(self) -> None:
        if self._columns[0]:
            arrays = [pa.array(column, field.type) for column, field in zip(self._columns, SCHEMA, strict=True)]
            self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        self._columns, self._chars = [[] for _ in SCHEMA], 0

    def finish(self) -> pa.Table:
        self._close_chunk()
        return pa.Table.from_batches(self._batches, schema=SCHEMA)


def _refuse_duplicate_ids(table: pa.Table) -> None:
    ids = table.column("id")
    if len(pc.unique(ids)) == len(ids):  # type: ignore[attr-defined]
        return
    first: dict[str, int] = {}
    names, sources, again = ids.to_pylist(), table.column("source").to_pylist(), []
    for row, name in enumerate(names):
        if first.setdefault(name, row) != row:
            again.append(row)
    row = again[0]
    more = f" {len(again) - 1} more such rows." if len(again) > 1 else ""
    raise InputError(
        f"{sources[row]}: id {json.dumps(names[row][:60])} was used before, at {sources[first[names[row]]]}. "
        f"Make ids unique.{more}"
    )


def _column_digest(column: pa.ChunkedArray) -> bytes:
    """sha256 of the sizes (or validity) and of the values: two streams, so the cut into chunks leaves no trace."""
    shape, values = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        there = chunk.drop_null()
        if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
            sizes = pc.binary_length(chunk)  # type: ignore[attr-defined]
            if len(there):
                width = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
                offsets = np.frombuffer(there.buffers()[1], width)
                start, end = offsets[there.offset], offsets[there.offset + len(there)]
                values.update(memoryview(there.buffers()[2] or b"")[start:end])
        elif pa.types.is_list(chunk.type):
            sizes = pc.list_value_length(chunk)  # type: ignore[attr-defined]
            values.update(there.flatten().to_numpy(zero_copy_only=False).astype("<i4").tobytes())
        else:
            sizes = pc.cast(chunk.is_valid(), pa.int64())
            values.update(pc.cast(there, pa.int64()).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        lengths = pc.cast(sizes, pa.int64()).fill_null(-1)
        shape.update(lengths.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return shape.digest() + values.digest()


@dataclass(frozen=True)
class RecordTable:
    """Checked records in order. `table` has the columns of `SCHEMA`; `extra_fields` names what the source had
    besides."""

    table: pa.Table
    extra_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.table.schema.names != SCHEMA.names:
            raise InputError(
                f"a record table has the columns {', '.join(SCHEMA.names)}, not {', '.join(self.table.schema.names)}."
            )

    @property
    def fingerprint(self) -> str:
        """sha256 (64 hex digits) over the content columns in row order. The same rows give the same value whatever file
        format they came from and however Arrow chunks them; `source` and extra fields do not enter."""
        whole = hashlib.sha256(b"rote records 1")
        for name in CONTENT:
            whole.update(name.encode() + b"\0" + _column_digest(self.table.column(name)))
        return whole.hexdigest()

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> list:
        """One column as Python values. Errors: `KeyError` for a name that is not in `SCHEMA`."""
        return self.table.column(name).to_pylist()

    def take(self, indices: Sequence[int] | Integer[np.ndarray, " rows"] | Bool[np.ndarray, " records"]) -> RecordTable:
        """The rows at `indices`, in that order; or those where a mask is true, as in `table.take(table.is_control)`."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        return RecordTable(self.table.take(pa.array(chosen)), self.extra_fields)

    @property
    def is_control(self) -> Bool[np.ndarray, " records"]:
        """True where the record is known to be unseen: member is false or duplicates is 0."""
        member, copies = self.table.column("member"), self.table.column("duplicates")
        unseen = pc.or_(pc.equal(member, False).fill_null(False), pc.equal(copies, 0).fill_null(False))  # type: ignore[attr-defined]
        return unseen.to_numpy(zero_copy_only=False) if len(self) else np.zeros(0, bool)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], source: str = "memory") -> RecordTable:
        """Checked table of mappings with the fields of `rote.records.validate`; ids default to "<source>:<row>" from 1.

        Errors: `InputError` naming the row and field, for a bad value or an id used twice.
        """
        check, builder, extra = RowCheck(), TableBuilder(), {}
        for number, row in enumerate(rows, start=1):
            place = f"{source}:{number}"
            try:
                builder.add(check(row, place), place)
            except RowError as error:
                raise InputError(f"{source} row {number}: {error}") from None
            extra.update(dict.fromkeys(name for name in row if name not in check.known and name != "source"))
        return cls.checked(builder.finish(), tuple(extra))

    @classmethod
    def checked(cls, table: pa.Table, extra_fields: Iterable[str] = ()) -> RecordTable:
        """Table of rows that were checked one by one; what remains to check is that ids are unique. Errors:
        `InputError`."""
        _refuse_duplicate_ids(table)
        return cls(table, tuple(dict.fromkeys(extra_fields)))

    @classmethod
    def concat(cls, tables: Iterable[RecordTable]) -> RecordTable:
        """All rows in order. Errors: `InputError` for an id that occurs twice, naming both places."""
        parts = list(tables)
        table = pa.concat_tables([part.table for part in parts]) if parts else SCHEMA.empty_table()
        return cls.checked(table, (name for part in parts for name in part.extra_fields))

    def to_jsonl(self, path: str | Path) -> None:
        """Write one JSON object a row, from which `read_records` makes the same table (same fingerprint). All or
        nothing: the file appears when it is complete."""
        with whole_file(path) as out:
            for batch in self.table.to_batches(max_chunksize=_ROWS):
                rows = (json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in batch.to_pylist())
                out.writelines(row.encode("utf-8") for row in rows)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The fields a reader expects: prefix and suffix instead of a length, no nulls."""
    cut = row.pop("prefix_chars")
    if cut is not None:
        text = row.pop("text")
        row = {"id": row.pop("id"), "prefix": text[:cut], "suffix": text[cut:], **row}
    row.pop("source")
    return {name: value for name, value in row.items() if value is not None}
