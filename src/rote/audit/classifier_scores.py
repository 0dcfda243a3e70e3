"""Scores of training examples on disk: one Parquet row an example, bound to the data they were made from.

Knows nothing about: how scores are made.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rote.atomic import write_atomic
from rote.errors import InputError, RunMismatchError
from rote.records.labelled_examples import LabelledExamples

EVENTS = "learning-events.parquet"
_KEY = b"rote.data"


def write_scores(path: str | Path, data: LabelledExamples, values: Mapping[str, np.ndarray]) -> Path:
    """Columns: id, and one a score. The data's fingerprint goes into the file."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"id": list(data.ids), **{name: np.asarray(column) for name, column in values.items()}})
    stream = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({_KEY: data.fingerprint.encode()}), stream)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(path, stream.getvalue())


def read_scores(path: str | Path, data: LabelledExamples) -> dict[str, np.ndarray]:
    """Scores by name, in the data's row order.

    Errors: `InputError` for a file that has no such table, an example without a score, or a value that is not a
    number; `RunMismatchError` when the file was made from other data.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; make scores with `rote classifier proxies`")
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError):
        raise InputError(f"{path}: is not a Parquet file of scores") from None
    made_from = (table.schema.metadata or {}).get(_KEY)
    if made_from is not None and made_from.decode() != data.fingerprint:
        raise RunMismatchError(f"{path}: these scores were made from other data than {data.name}; make them again")
    if "id" not in table.column_names:
        raise InputError(f"{path}: has no column id; columns are {', '.join(table.column_names[:8])}")
    place = {str(name): row for row, name in enumerate(table["id"].to_pylist())}
    missing = [name for name in data.ids if name not in place]
    if missing:
        raise InputError(f"{path}: has no score for example {missing[0]!r} ({len(missing)} of {len(data)} are missing)")
    order = [place[name] for name in data.ids]
    found = {}
    for name in table.column_names:
        if name != "id":
            try:
                column = np.asarray(table[name].to_numpy(), dtype=np.float64)[order]
            except (ValueError, TypeError, pa.ArrowException):
                raise InputError(f"{path}: column {name!r} does not hold numbers") from None
            if not np.isfinite(column).all():
                row = int(np.argmax(~np.isfinite(column)))
                raise InputError(f"{path}: column {name!r} is {column[row]} for example {data.ids[row]!r}")
            found[name] = column
    return found
