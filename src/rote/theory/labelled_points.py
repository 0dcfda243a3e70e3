"""Labelled points from a file: what every `rote plan` command that takes data reads.

Knows npz (arrays X and y, no pickle), csv and parquet (a column y or label, every other column a coordinate), and the
checks all memorization theorems need: finite coordinates, distinct points, no point with two labels, two classes.
Deliberately does not know what the points are for.
"""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError

LABEL_NAMES = ("y", "label", "labels", "target", "class")


@dataclass(frozen=True)
class LabelledPoints:
    """N distinct points of R^d. `y` counts from 0 and indexes `classes`, the labels as they were given, sorted."""

    X: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    classes: tuple
    repeated: int = 0  # rows left out because the same point with the same label stood before

    def __len__(self) -> int:
        return len(self.X)


def read_labelled_points(path: Path, *, unit_cube: bool = False) -> LabelledPoints:
    """Points and labels of `path` (.npz, .csv, .parquet), checked by `labelled_points`.

    npz: arrays `X` (n, d) and `y` (n,). csv, parquet: a column `y` (or label, labels, target, class); the others are
    coordinates, in the file's order. csv without a header is refused, because a column could not be named.

    Errors: InputError, one line with the file, and the row or the column.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .npz, .csv or .parquet file with X and y")
    readers = {".npz": _read_npz, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown ending {path.suffix!r}; use .npz, .csv or .parquet")
    X, y = reader(path)
    return labelled_points(X, y, unit_cube=unit_cube, name=str(path))


def labelled_points(X: Any, y: Any, *, unit_cube: bool = False, name: str = "the data") -> LabelledPoints:
    """Check arrays and number the classes 0, 1, ... in sorted order.

    Errors: InputError for shapes that do not fit, NaN or infinity, the same point with two labels, fewer than two
    classes, and, with `unit_cube`, a coordinate outside [0, 1]. Rows are numbered from 1.
    """
    try:
        X = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: X holds something that is not a number") from None
    y = np.asarray(y)
    if X.ndim != 2 or y.ndim != 1 or len(X) != len(y) or not X.size:
        raise InputError(f"{name}: X has shape {X.shape} and y {y.shape}; they must be (n, d) and (n,) with n, d >= 1")
    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise InputError(f"{name}: row {int(np.argmin(np.isfinite(y))) + 1} has no label")
        y = y.astype(np.int64) if (y == np.floor(y)).all() else y
    if y.dtype.kind == "O":
        y = y.astype(str)
    finite = np.isfinite(X)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InputError(f"{name}: row {row + 1}, coordinate {column + 1} is NaN or infinite; remove or fill it")
    if unit_cube and (X.min() < 0 or X.max() > 1):
        row, column = np.argwhere((X < 0) | (X > 1))[0]
        raise InputError(
            f"{name}: row {row + 1}, coordinate {column + 1} is {X[row, column]:.6g}, outside [0, 1]; "
            "scale every coordinate to the unit cube first"
        )
    classes, numbers = np.unique(y, return_inverse=True)
    X, numbers, repeated = _distinct(X + 0.0, numbers.reshape(-1), name)  # + 0.0: minus zero is zero
    if len(classes) < 2:
        raise InputError(f"{name}: all {len(X)} points have one label; memorization needs at least two classes")
    return LabelledPoints(X, numbers.astype(np.int64), tuple(classes.tolist()), repeated)


def _distinct(X: np.ndarray, y: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Without repeated points, order kept; the same point with another label is an error."""
    _, first, group = np.unique(X, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    clash = y != y[first[group]]
    if clash.any():
        row = int(np.argmax(clash))
        raise InputError(
            f"{name}: rows {first[group[row]] + 1} and {row + 1} are the same point with different labels; "
            "no function can give both, so remove one"
        )
    keep = np.sort(first)
    return X[keep], y[keep], len(X) - len(keep)


def _read_npz(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [key for key in ("X", "y") if key not in arrays]
            if missing:
                raise InputError(f"{path}: no array {missing[0]!r}; it has {', '.join(arrays.files) or 'none'}")
            return arrays["X"], arrays["y"]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path}: not a readable .npz of plain arrays (pickled objects are refused)") from None


def _read_csv(path: Path) -> tuple[Any, Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: not a readable CSV file in UTF-8") from None
    if len(rows) < 2:
        raise InputError(f"{path}: a header line with a column y, and at least one row, are needed")
    label = _label_column(path, [cell.strip() for cell in rows[0]])
    points, labels = [], []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise InputError(f"{path} line {number}: {len(row)} fields, but the header has {len(rows[0])}")
        try:
            points.append([float(cell) for place, cell in enumerate(row) if place != label])
        except ValueError:
            raise InputError(f"{path} line {number}: a coordinate is not a number") from None
        labels.append(row[label].strip())
    if any(not text for text in labels):
        raise InputError(f"{path} line {labels.index('') + 2}: no label")
    return points, np.array(_numbers(labels))


def _read_parquet(path: Path) -> tuple[Any, Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError):
        raise InputError(f"{path}: not a readable Parquet file") from None
    label = _label_column(path, table.column_names)
    columns = []
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        if place == label:
            if column.null_count:
                raise InputError(f"{path}: column {name!r} has {column.null_count} empty labels")
            continue
        if not (pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)):
            raise InputError(f"{path}: column {name!r} is {column.type}, not a number; remove it or encode it")
        columns.append(column.to_numpy())
    y = np.array(table.column(label).to_pylist())
    return np.column_stack(columns) if columns else np.empty((len(y), 0)), y


def _label_column(path: Path, names: list[str]) -> int:
    found = [name for name in LABEL_NAMES if name in names]
    if not found:
        raise InputError(f"{path}: no column y (or label); it has {', '.join(names[:8])}")
    return names.index(found[0])


def _numbers(labels: list[str]) -> list:
    """Labels as integers when all of them are, else as text."""
    try:
        return [int(text) for text in labels]
    except ValueError:
        return labels
