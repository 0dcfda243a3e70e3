"""Labelled examples of a classifier from a file: inputs, labels, ids.

Knows npz (arrays X and y, ids if there are any; never pickled), csv and parquet (a column y, label, labels, target or
class; a column id if there is one; every other column one number of the input), and what makes them unusable: values
that are not finite numbers, repeated ids, lengths that differ.
Knows nothing about: models, memorization.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from rote.errors import InputError

LABEL_NAMES = ("y", "label", "labels", "target", "class")
ID_NAMES = ("id", "ids")


@dataclass(frozen=True)
class LabelledExamples:
    """Float32 inputs of any shape, labels as they were given, ids as text (row numbers from 0 where none are given)."""

    x: Float[np.ndarray, "examples ..."]
    labels: Shaped[np.ndarray, " examples"]
    ids: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """sha256 of inputs, labels and ids: scores of other data can never be taken for these."""
        digest = hashlib.sha256(repr((self.x.shape, self.labels.tolist(), self.ids)).encode())
        digest.update(np.ascontiguousarray(self.x).tobytes())
        return digest.hexdigest()

    def rows_of(self, ids: Sequence[str], *, where: str = "the id list") -> np.ndarray:
        """Row numbers of these ids, in their order. Errors: `InputError` naming an unknown or repeated id."""
        place = {name: row for row, name in enumerate(self.ids)}
        for number, name in enumerate(ids, 1):
            if name not in place:
                raise InputError(f"{where} line {number}: {self.name} has no example with id {name!r}")
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if list(ids).count(name) > 1)
            raise InputError(f"{where}: id {twice!r} stands there twice; give each example once")
        return np.array([place[name] for name in ids], dtype=np.int64)

    def encoded(self, classes: Sequence[Any]) -> np.ndarray:
        """Labels as positions in `classes`. Errors: `InputError` naming the first example whose label is not there."""
        place = {label: number for number, label in enumerate(classes)}
        for name, label in zip(self.ids, self.labels.tolist(), strict=True):
            if label not in place:
                shown = f"{classes[0]!r}..{classes[-1]!r}" if len(classes) > 8 else ", ".join(map(repr, classes))
                raise InputError(f"{self.name}: example {name} has label {label!r}; the model's classes are {shown}")
        return np.array([place[label] for label in self.labels.tolist()], dtype=np.int64)


def classes_of(examples: LabelledExamples) -> list:
    """The distinct labels, sorted. Errors: `InputError` for fewer than two."""
    found = sorted(set(examples.labels.tolist()))
    if len(found) < 2:
        raise InputError(f"{examples.name}: all labels are {found[0]!r}; a classifier needs two classes or more")
    return found


def read_examples(path: str | Path) -> LabelledExamples:
    """Read `path` (.npz, .csv, .parquet). Errors: `InputError`, one line with the file and the row or column."""
    path = Path(path)
    readers = {".npz": _npz, ".csv": _table, ".parquet": _table}
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .npz, .csv or .parquet file of inputs and labels")
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: unknown ending {path.suffix!r}; use .npz, .csv or .parquet")
    x, y, ids = readers[path.suffix.lower()](path)
    return labelled_examples(x, y, ids, name=str(path))


def labelled_examples(x: Any, y: Any, ids: Any = None, *, name: str = "the data") -> LabelledExamples:
    """Check arrays. Errors: `InputError` for lengths that differ, NaN or infinity (with the row), repeated ids."""
    inputs, labels = np.asarray(x), np.asarray(y)
    if not (np.issubdtype(inputs.dtype, np.number) or inputs.dtype == bool) or np.iscomplexobj(inputs):
        raise InputError(f"{name}: inputs must be numbers, got {inputs.dtype}")
    if inputs.ndim < 2 or labels.ndim != 1 or len(inputs) != len(labels) or not len(labels):
        raise InputError(
            f"{name}: X must be [examples, ...] with one label each, got X {inputs.shape} and y {labels.shape}"
        )
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels != labels.round()).any():
            bad = int(np.argmax(~np.isfinite(labels) | (labels != labels.round())))
            raise InputError(f"{name}: the label of row {bad + 1} is {labels[bad]}; labels are whole numbers or text")
        labels = labels.astype(np.int64)
    elif labels.dtype.kind not in "iubU":
        raise InputError(f"{name}: labels must be whole numbers or text, got {labels.dtype}")
    flat = inputs.reshape(len(inputs), -1)
    if not np.isfinite(flat).all():
        row, column = np.argwhere(~np.isfinite(flat))[0]
        raise InputError(f"{name}: row {row + 1} has {flat[row, column]} in place {column + 1}; drop or repair it")
    names = tuple(map(str, range(len(labels)))) if ids is None else tuple(map(str, np.asarray(ids).tolist()))
    if len(names) != len(labels) or len(set(names)) != len(names):
        raise InputError(f"{name}: give every example one id of its own ({len(set(names))} for {len(labels)} examples)")
    return LabelledExamples(np.ascontiguousarray(inputs, dtype=np.float32), labels, names, name)


def read_ids(path: str | Path) -> list[str]:
    """Ids from a text file, one a line; empty lines are skipped. Errors: `InputError` when there is none."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: cannot be read as text; give a file with one example id a line") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"{path}: holds no id; give one example id a line")
    return found


def _npz(path: Path) -> tuple[Any, Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        raise InputError(f"{path}: cannot be read as .npz arrays of numbers (pickled objects are refused)") from None
    x = next((arrays[name] for name in ("X", "x") if name in arrays), None)
    y = next((arrays[name] for name in LABEL_NAMES if name in arrays), None)
    if x is None or y is None:
        raise InputError(f"{path}: needs arrays X and y, has {', '.join(arrays) or 'none'}")
    return x, y, next((arrays[name] for name in ID_NAMES if name in arrays), None)


def _table(path: Path) -> tuple[Any, Any, Any]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        table = parquet.read_table(path) if path.suffix.lower() == ".parquet" else csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:120]})") from None
    label = next((name for name in table.column_names if name.lower() in LABEL_NAMES), None)
    if label is None:
        raise InputError(f"{path}: no label column ({', '.join(LABEL_NAMES)}); columns are {table.column_names[:8]}")
    key = next((name for name in table.column_names if name.lower() in ID_NAMES), None)
    columns = [name for name in table.column_names if name not in (label, key)]
    for name in [label, *columns]:
        column = table[name]
        if column.null_count:
            row = next(number for number, value in enumerate(column.to_pylist(), 1) if value is None)
            raise InputError(f"{path}: row {row} has nothing in column {name!r}; drop or repair it")
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        if name != label and not (number or pa.types.is_boolean(column.type)):
            raise InputError(f"{path}: column {name!r} is {column.type}, not a number; encode or drop it")
    if not columns:
        raise InputError(f"{path}: has a label column and no input column")
    x = np.column_stack([table[name].to_numpy() for name in columns])
    return x, np.array(table[label].to_pylist()), None if key is None else table[key].to_pylist()
