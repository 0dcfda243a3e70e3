"""Measure values as rows, an Arrow table, and parquet/csv files.

Knows the findings format. One row a value: measure, title, unit, direction, value, low, high, n, interval, then
every dimension.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.report.findings import Findings

if TYPE_CHECKING:
    import pyarrow as pa

_FIXED = ("measure", "title", "unit", "direction", "value", "low", "high", "n", "interval")
_FORMATS = ("parquet", "csv")


def measure_rows(findings: Findings) -> list[dict[str, Any]]:
    """Every measure value as a flat dict; a dimension a value does not have is None. A dimension that shares a name
    with a fixed column is prefixed `dim_`."""
    names = {key: f"dim_{key}" if key in _FIXED else key for m in findings.measures for v in m.values for key in v.dims}
    rows = []
    for m in findings.measures:
        for v in m.values:
            dims = v.dims
            fixed = dict(
                measure=m.name,
                title=m.title,
                unit=m.unit,
                direction=m.direction,
                value=v.value,
                low=v.low,
                high=v.high,
                n=v.n,
                interval=v.interval,
            )
            rows.append(fixed | {column: dims.get(key) for key, column in sorted(names.items())})
    return rows


def measure_table(findings: Findings) -> pa.Table:
    """The same as an Arrow table: numbers stay numbers; a dimension of mixed kinds becomes text."""
    import pyarrow as pa

    rows = measure_rows(findings)
    kinds: dict[str, Any] = {name: pa.string() for name in ("measure", "title", "unit", "direction", "interval")}
    kinds |= {name: pa.float64() for name in ("value", "low", "high")} | {"n": pa.int64()}
    columns = {}
    for name in rows[0] if rows else _FIXED:
        values = [row[name] for row in rows]
        kind = kinds.get(name) or _kind(values, pa)
        if pa.types.is_string(kind):
            values = [None if v is None else str(v).encode("utf-8", "replace").decode("utf-8") for v in values]
        columns[name] = pa.array(values, type=kind)
    return pa.table(columns)


def _kind(values: list[Any], pa: Any) -> Any:
    present = [v for v in values if v is not None]
    if present and all(isinstance(v, bool) for v in present):
        return pa.bool_()
    if present and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present):
        return pa.int64() if all(isinstance(v, int) and abs(v) < 2**63 for v in present) else pa.float64()
    return pa.string()


def write_tables(findings: Findings, directory: str | Path, *, formats: tuple[str, ...] = _FORMATS) -> list[Path]:
    """Write measures.parquet and/or measures.csv into a directory, atomically. In the csv, a text that a spreadsheet
    would run as a formula (it begins with = + - @, tab or carriage return) gets a leading apostrophe.

    Errors: InputError for an unknown format; OSError when the directory cannot be written.
    """
    import pyarrow as pa
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    unknown = [name for name in formats if name not in _FORMATS]
    if unknown:
        raise InputError(f"unknown table format {unknown[0]!r}; choose from: {', '.join(_FORMATS)}")
    table = measure_table(findings)
    written = []
    for name in formats:
        sink = io.BytesIO()
        if name == "parquet":
            pq.write_table(table, sink, compression="zstd")
        else:
            columns = [
                pa.array([_inert(v) for v in column.to_pylist()], pa.string())
                if pa.types.is_string(column.type)
                else column
                for column in table.columns
            ]
            pacsv.write_csv(pa.table(columns, names=table.column_names), sink)
        written.append(write_atomic(Path(directory) / f"measures.{name}", sink.getvalue()))
    return written


def _inert(text: str | None) -> str | None:
    return "'" + text if text and text[0] in "=+-@\t\r" else text
