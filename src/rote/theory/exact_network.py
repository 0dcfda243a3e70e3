"""Feed-forward ReLU networks whose weights are integers and fractions, evaluated without rounding.

    h_0 = x,   h_l = relu(W_l h_{l-1} + b_l)  for l < L,   f(x) = W_L h_{L-1} + b_L

Knows sparse rows, exact evaluation over a batch, sizes, composition, and a small language for stacking layers.
Deliberately does not know what a network is for, and trusts no rounding: packed weights of the constructions in this
room need hundreds of bits, where float64 has 53.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Shaped

from rote.errors import InputError
from rote.theory.exact_columns import Column, Row, combine, from_columns, relu, to_columns

Number = Fraction | int


@dataclass(frozen=True)
class ExactLayer:
    """One affine map: row i is {input index: weight}, zeros left out. Weights and biases are int or Fraction."""

    rows: tuple[dict[int, Number], ...]
    bias: tuple[Number, ...]
    inputs: int

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.bias):
            raise InputError(f"a layer has {len(self.rows)} rows but {len(self.bias)} biases; give one bias a row")
        rows = tuple({column: _plain(weight) for column, weight in row.items() if weight} for row in self.rows)
        for row in rows:
            if row and not 0 <= min(row) <= max(row) < self.inputs:
                raise InputError(f"a layer of {self.inputs} inputs has a weight for input {max(row)}; count from 0")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "bias", tuple(_plain(value) for value in self.bias))

    @property
    def outputs(self) -> int:
        return len(self.rows)

    @cached_property
    def integers(self) -> tuple[Row, ...]:
        """Every row as ((input, integer weight), ...), integer bias, and the denominator they share."""
        found = []
        for row, bias in zip(self.rows, self.bias, strict=True):
            common = math.lcm(bias.denominator, *(weight.denominator for weight in row.values()))
            found.append((tuple((j, int(weight * common)) for j, weight in row.items()), int(bias * common), common))
        return tuple(found)


@dataclass(frozen=True)
class ExactNetwork:
    """A ReLU network in exact arithmetic: ReLU after every layer but the last."""

    layers: tuple[ExactLayer, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError("a network needs at least one layer")
        for number, (before, after) in enumerate(zip(self.layers, self.layers[1:], strict=False), 1):
            if before.outputs != after.inputs:
                raise InputError(
                    f"layer {number} gives {before.outputs} values but layer {number + 1} takes {after.inputs}"
                )

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        return self.layers[-1].outputs

    @property
    def depth(self) -> int:
        """L, the number of affine layers."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """The widest hidden layer (the outputs, when there is none)."""
        return max((layer.outputs for layer in self.layers[:-1]), default=self.outputs)

    @property
    def parameters(self) -> int:
        """P = sum over l of (d_{l-1} + 1) d_l: every weight and bias of the dense network, zeros counted."""
        return sum((layer.inputs + 1) * layer.outputs for layer in self.layers)

    @property
    def nonzero(self) -> int:
        """Weights and biases that are not zero."""
        return sum(sum(map(len, layer.rows)) + sum(1 for value in layer.bias if value) for layer in self.layers)

    @property
    def bits(self) -> int:
        """Most bits of a weight or bias p/q in lowest terms: those of |p|, and those of q when it is not 1."""
        return max(
            (
                number_bits(value)
                for layer in self.layers
                for value in (*layer.bias, *(weight for row in layer.rows for weight in row.values()))
            ),
            default=0,
        )

    def evaluate(self, x: Sequence[Any] | Shaped[np.ndarray, " inputs"]) -> tuple[Number, ...]:
        """f(x) for one point, exactly. Floats are taken at their exact value."""
        if np.ndim(np.asarray(x, dtype=object)) != 1:
            raise InputError("evaluate takes one point; use evaluate_batch for several")
        return tuple(self.evaluate_batch([x])[0])

    def evaluate_batch(self, points: Any) -> Shaped[np.ndarray, "points outputs"]:
        """f of each row of `points`, exactly: an object array of int and Fraction, shape (points, outputs)."""
        columns = to_columns(points)
        if len(columns) != self.inputs:
            raise InputError(f"the points have {len(columns)} coordinates, the network takes {self.inputs}")
        for layer in self.layers[:-1]:
            columns = [relu(column) for column in affine(layer, columns)]
        return from_columns(affine(self.layers[-1], columns))

    def to_torch(self, dtype: Any = None, *, check: Any = None, tolerance: float = 1e-6) -> Any:
        """The same network as `torch.nn.Sequential(Linear, ReLU, ..., Linear)`.

        dtype: torch.float64 (default) or another floating type. check: points at which the copy is compared with the
        exact network (default: the origin, the unit vectors and 16 integer points). tolerance: how far they may differ;
        the constructions need almost none, a trained network in float32 rounds to about 1e-5.

        Errors: InputError when a weight is not exactly a number of that type, or the copy differs at a check point.
        """
        import torch

        dtype = dtype or torch.float64
        kind = torch.finfo(dtype)
        digits, top, low = (round(math.log2(number)) for number in (2 / kind.eps, kind.max, kind.tiny))
        modules: list[torch.nn.Module] = []
        for number, layer in enumerate(self.layers, 1):
            for value in (*layer.bias, *(weight for row in layer.rows for weight in row.values())):
                if not _fits(value, digits, top, low):
                    raise InputError(
                        f"layer {number} has a weight of {number_bits(value)} bits that {dtype} ({digits} bits) cannot "
                        "hold; keep the exact network (save it as JSON) instead of exporting it"
                    )
            linear = torch.nn.Linear(layer.inputs, layer.outputs, dtype=dtype)
            weight = torch.zeros(layer.outputs, layer.inputs, dtype=dtype)
            for i, row in enumerate(layer.rows):
                for column, value in row.items():
                    weight[i, column] = float(value)
            linear.weight.data.copy_(weight)
            linear.bias.data.copy_(torch.tensor([float(value) for value in layer.bias], dtype=dtype))
            modules += [linear, torch.nn.ReLU()]
        copy = torch.nn.Sequential(*modules[:-1])
        self._compare(copy, self.probes() if check is None else check, dtype, tolerance)
        return copy

    def probes(self) -> list[list[int]]:
        """Points at which copies are compared: the origin, unit vectors, 16 small integer points."""
        rng = np.random.default_rng(0)
        unit = [[int(i == j) for j in range(self.inputs)] for i in range(min(self.inputs, 16))]
        return [[0] * self.inputs, *unit, *rng.integers(-3, 4, (16, self.inputs)).tolist()]

    def _compare(self, copy: Any, points: Any, dtype: Any, tolerance: float) -> None:
        import torch

        exact = self.evaluate_batch(points)
        with torch.inference_mode():
            found = copy(torch.tensor(np.asarray(points, dtype=float), dtype=dtype)).double().numpy()
        apart = [abs(Fraction(float(a)) - b) for a, b in zip(found.ravel(), exact.ravel(), strict=True)]
        if (worst := max(apart, default=0)) > tolerance:
            raise InputError(
                f"the {dtype} copy differs from the exact network by up to {float(worst):.3g}: its sums need more bits "
                "than the type has; keep the exact network (save it as JSON)"
            )


def affine(layer: ExactLayer, columns: Sequence[Column]) -> list[Column]:
    """The layer's pre-activations of a batch, exactly."""
    points = len(columns[0].values) if columns else 0
    return [combine(row, columns, points) for row in layer.integers]


def compose(first: ExactNetwork, second: ExactNetwork) -> ExactNetwork:
    """x -> second(first(x)); the last layer of `first` is merged into the first one of `second`, so depth is
    L1 + L2 - 1."""
    if first.outputs != second.inputs:
        raise InputError(f"the first network gives {first.outputs} values but the second takes {second.inputs}")
    inner, outer = first.layers[-1], second.layers[0]
    rows, bias = [], []
    for row, value in zip(outer.rows, outer.bias, strict=True):
        merged: dict[int, Number] = {}
        for column, weight in row.items():
            value = value + weight * inner.bias[column]
            for source, factor in inner.rows[column].items():
                merged[source] = merged.get(source, 0) + weight * factor
        rows.append(merged)
        bias.append(value)
    merged_layer = ExactLayer(tuple(rows), tuple(bias), inner.inputs)
    return ExactNetwork((*first.layers[:-1], merged_layer, *second.layers[1:]))


def carry_inputs(network: ExactNetwork, *, nonnegative: bool) -> ExactNetwork:
    """x -> (f(x), x). Inputs that may be negative travel as relu(x) and relu(-x): two units each instead of one."""
    n, signs = network.inputs, (1,) if nonnegative else (1, -1)
    layers = []
    for number, layer in enumerate(network.layers):
        first, last = number == 0, number == network.depth - 1
        base = layer.inputs

        def source(j: int, first: bool = first, base: int = base) -> dict[int, Number]:
            if first:
                return {j: 1}
            return {base + j * len(signs) + k: sign for k, sign in enumerate(signs)}

        carried: list[dict[int, Number]] = [
            {column: sign * weight for column, weight in source(j).items()}
            for j in range(n)
            for sign in ((1,) if last else signs)
        ]
        if not first and not last:  # the halves are non-negative already: pass each on as it is
            carried = [{base + k: 1} for k in range(n * len(signs))]
        inputs = n if first else base + n * len(signs)
        layers.append(ExactLayer((*layer.rows, *carried), (*layer.bias, *[0] * len(carried)), inputs))
    return ExactNetwork(tuple(layers))


@dataclass(frozen=True)
class Wire:
    """An affine form over the units of one level of a `LayerStack`; wires of different levels do not mix."""

    level: int
    terms: dict[int, Number]
    constant: Number = 0

    def __add__(self, other: Wire | Number) -> Wire:
        if not isinstance(other, Wire):
            return Wire(self.level, self.terms, self.constant + other)
        if other.level != self.level:
            raise ValueError(f"wires of level {self.level} and {other.level} cannot be added: one is stale")
        terms = dict(self.terms)
        for unit, weight in other.terms.items():
            terms[unit] = terms.get(unit, 0) + weight
        return Wire(self.level, terms, self.constant + other.constant)

    def __mul__(self, factor: Number) -> Wire:
        return Wire(self.level, {unit: weight * factor for unit, weight in self.terms.items()}, self.constant * factor)

    def __neg__(self) -> Wire:
        return self * -1

    def __sub__(self, other: Wire | Number) -> Wire:
        return self + -other

    def __rsub__(self, other: Number) -> Wire:
        return -self + other

    __radd__ = __add__
    __rmul__ = __mul__


class LayerStack:
    """Layers written one after another: `a, b = stack.relu(x - 3, 2 * x)` adds a hidden layer of two units."""

    def __init__(self, inputs: int):
        self.layers: list[ExactLayer] = []
        self.units = inputs
        self.inputs = self._wires()

    @property
    def level(self) -> int:
        return len(self.layers)

    def constant(self, value: Number = 0) -> Wire:
        return Wire(self.level, {}, value)

    def relu(self, *forms: Wire) -> list[Wire]:
        """A hidden layer with one unit a form; returns the units."""
        self._append(forms)
        return self._wires()

    def finish(self, *outputs: Wire) -> ExactNetwork:
        """The network whose last, linear layer gives these forms."""
        self._append(outputs)
        return ExactNetwork(tuple(self.layers))

    def _append(self, forms: Iterable[Wire]) -> None:
        forms = tuple(forms)
        if any(form.level != self.level for form in forms):
            raise ValueError("a wire of an earlier level was used; carry it through the layers between")
        rows, bias = tuple(form.terms for form in forms), tuple(form.constant for form in forms)
        self.layers.append(ExactLayer(rows, bias, self.units))
        self.units = len(forms)

    def _wires(self) -> list[Wire]:
        return [Wire(self.level, {unit: 1}) for unit in range(self.units)]


def number_bits(value: Number) -> int:
    """Bits of p/q: bit length of |p|, plus that of q when q > 1 (less the leading one, as 2^-k takes k places)."""
    return abs(value.numerator).bit_length() + value.denominator.bit_length() - 1


def _plain(value: Any) -> Number:
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else value
    if isinstance(value, (int, np.integer)):
        return int(value)
    raise InputError(f"an exact network holds int and Fraction, not {type(value).__name__}; use Fraction(value)")


def _fits(value: Number, digits: int, top: int, low: int) -> bool:
    """Whether p/q is a normal binary floating-point number of `digits` bits with magnitude in [2^low, 2^top)."""
    if value == 0:
        return True
    p, q = abs(value.numerator), value.denominator
    if q & (q - 1) or not low < p.bit_length() - q.bit_length() < top:
        return False
    return p.bit_length() - (p & -p).bit_length() + 1 <= digits
