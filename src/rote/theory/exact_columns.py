"""Batches of exact numbers: one column a unit, integers over a denominator of its own.

Knows how affine maps and ReLU act on such columns: in int64 where a bound proves that it fits, in Python integers
otherwise, and without any work for a value that is merely passed on.
Deliberately does not know networks: a row is ((input, integer weight), ...), an integer bias and a common denominator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from rote.errors import InputError

SMALL = 1 << 62  # below this magnitude sums are done in int64
Row = tuple[tuple[tuple[int, int], ...], int, int]  # (weights, bias, denominator)


class Column(NamedTuple):
    """values / scale; `bound` is the largest magnitude among the values."""

    values: np.ndarray
    scale: int
    bound: int


def to_columns(points: Any) -> list[Column]:
    """The columns of a table of numbers, exactly: floats at their binary value, text like "1/3" as a fraction.

    Errors: InputError for NaN, infinity, or anything that is not a table of numbers.
    """
    array = points if isinstance(points, np.ndarray) else np.array([list(point) for point in points], dtype=object)
    if array.ndim != 2:
        raise InputError(f"points must be a table of shape (points, coordinates), not of shape {array.shape}")
    if array.dtype.kind in "iub":
        return [column(array[:, j].astype(object), 1) for j in range(array.shape[1])]
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            raise InputError("points hold NaN or infinity; exact arithmetic needs finite numbers")
        top = float(np.abs(array).max(initial=1.0))
        for shift in range(61 - math.frexp(top)[1]):  # the fewest binary places at which all are integers in int64
            whole = np.ldexp(array, shift)
            if (whole == np.floor(whole)).all():
                return [column(whole[:, j].astype(np.int64), 1 << shift) for j in range(array.shape[1])]
    fractions = [[_exact(value) for value in row] for row in array]
    found = []
    for j in range(array.shape[1]):
        common = math.lcm(*{row[j].denominator for row in fractions})
        found.append(column(np.array([int(row[j] * common) for row in fractions], dtype=object), common))
    return found


def from_columns(columns: Sequence[Column]) -> Shaped[np.ndarray, "points outputs"]:
    """The table of numbers again, as int and Fraction objects."""
    out = np.empty((len(columns[0].values), len(columns)), dtype=object)
    for j, (values, scale, _) in enumerate(columns):
        for i, value in enumerate(values.tolist()):
            number = value if scale == 1 else Fraction(value, scale)
            out[i, j] = number.numerator if number.denominator == 1 else number
    return out


def column(values: np.ndarray, scale: int) -> Column:
    """A column in its shortest form: int64 when it fits, over the smallest denominator."""
    bound = largest(values)
    if scale > 1:
        common = math.gcd(scale, int(values[0])) if len(values) else 1
        if common > 1:
            common = math.gcd(common, int(np.gcd.reduce(values)))
        if common > 1:
            # A divisor beyond int64 divides a column of int64 only when that column is zero.
            values = values if values.dtype != object and common >= SMALL else values // common
            scale, bound = scale // common, bound // common
    if values.dtype == object and bound < SMALL:
        values = values.astype(np.int64)
    return Column(values, scale, bound)


def combine(row: Row, columns: Sequence[Column], points: int) -> Column:
    """(bias + sum of weight times column) / denominator, exactly."""
    weights, bias, denominator = row
    if len(weights) == 1 and not bias and weights[0][1] == denominator:
        return columns[weights[0][0]]  # passed on as it is
    live = [(columns[j], weight) for j, weight in weights if columns[j].bound]
    scale = math.lcm(*{found.scale for found, _ in live}) if live else 1
    bias *= scale
    terms = [(found, weight * (scale // found.scale)) for found, weight in live]
    reach = abs(bias) + sum(abs(weight) * found.bound for found, weight in terms)
    if reach < SMALL:
        total = np.full(points, bias, dtype=np.int64)
        for found, weight in terms:
            total += found.values if weight == 1 else found.values * np.int64(weight)
    else:
        total = np.full(points, bias, dtype=object)
        for found, weight in terms:
            wide = found.values.astype(object) if found.values.dtype != object else found.values
            total = total + (wide if weight == 1 else wide * weight)
    return column(total, scale * denominator)


def relu(found: Column) -> Column:
    """max(value, 0); the same object when nothing is negative."""
    if not len(found.values) or found.values.min() >= 0:
        return found
    return column(np.maximum(found.values, 0), found.scale)


def largest(values: np.ndarray) -> int:
    if not len(values):
        return 0
    return max(abs(int(values.max())), abs(int(values.min())))


def _exact(value: Any) -> Fraction:
    try:
        return Fraction(value.item() if isinstance(value, np.generic) else value)
    except (ValueError, OverflowError, TypeError, ZeroDivisionError):
        raise InputError("points hold NaN, infinity or text; exact arithmetic needs finite numbers") from None
