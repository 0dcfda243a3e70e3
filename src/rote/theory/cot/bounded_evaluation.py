"""Evaluating a fixed-precision transformer in float64 with a bound on the error, so that a margin is a proof. [derived]

Every quantity is a pair (x, e) of what float64 computed and a bound |x - exact| <= e, pushed through each operation by
running error analysis (Higham 2002, chapter 3): a dot product of length n adds gamma_{n+3} sum |x||w|, with
gamma_n = n u / (1 - n u), u = 2^-53, whatever the order of summation, the representation error of the decimal weight
included; ReLU adds nothing; a softmax whose scores are off by delta is off by a factor of at most e^{2 delta}.
Assumed of the machine: IEEE double arithmetic, and numpy's exp and sqrt within 4 units in the last place. The bounds
themselves are computed in float64 and widened by 10^-9, far more than their own rounding.

Knows one architecture, `fixed_precision`. Knows nothing about: datasets, conditions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rote.theory.cot.fixed_precision import FixedPrecisionTransformer

UNIT = 2.0**-53
WIDEN = 1 + 1e-9
TINY = 1e-300  # covers underflow


@dataclass(frozen=True)
class Bounded:
    """What was computed, and a bound on its distance from the exact value; both of one shape."""

    value: np.ndarray
    error: np.ndarray

    def __add__(self, other: Bounded) -> Bounded:
        value = self.value + other.value
        return Bounded(value, (self.error + other.error + UNIT * np.abs(value)) * WIDEN + TINY)

    def relu(self) -> Bounded:
        return Bounded(np.maximum(self.value, 0), self.error)

    def heads(self, count: int) -> Bounded:
        def split(array: np.ndarray) -> np.ndarray:
            return array.reshape(len(array), count, -1).swapaxes(0, 1)

        return Bounded(split(self.value), split(self.error))

    def joined(self) -> Bounded:
        def join(array: np.ndarray) -> np.ndarray:
            return array.swapaxes(0, 1).reshape(array.shape[1], -1)

        return Bounded(join(self.value), join(self.error))

    def transposed(self) -> Bounded:
        return Bounded(self.value.swapaxes(-1, -2), self.error.swapaxes(-1, -2))


def product(a: Bounded, b: Bounded) -> Bounded:
    """The matrix product a b, both factors uncertain: |a| e_b + e_a (|b| + e_b) + gamma (|a| + e_a)(|b| + e_b)."""
    n = a.value.shape[-1]
    gamma = (n + 3) * UNIT / (1 - (n + 3) * UNIT)
    value = a.value @ b.value
    big_a, big_b = np.abs(a.value) + a.error, np.abs(b.value) + b.error
    error = np.abs(a.value) @ b.error + a.error @ big_b + gamma * (big_a @ big_b)
    return Bounded(value, error * WIDEN + TINY)


def causal_softmax(scores: Bounded) -> Bounded:
    """softmax over j <= i of scores [heads, i, j]. |p - exact| <= p (e^{2 delta + c u} - 1) e^{..}, with delta the
    largest error of a row and c counting the roundings of the shift, of exp (4 ulp), of the sum and of the quotient."""
    length = scores.value.shape[-1]
    allowed = np.tri(length, dtype=bool)
    top = np.where(allowed, scores.value, -np.inf).max(-1, keepdims=True)
    shifted = np.where(allowed, scores.value - top, -np.inf)
    powers = np.exp(shifted)
    value = powers / powers.sum(-1, keepdims=True)
    delta = np.where(allowed, scores.error, 0).max(-1, keepdims=True)
    spread = np.where(allowed, np.abs(shifted), 0).max(-1, keepdims=True)
    # numerator and denominator each carry the shift's rounding (u spread) and exp's (8 u); the sum n u, the quotient u
    relative = np.expm1(2 * delta + (2 * spread + 2 * 8 + length + 4) * UNIT)
    return Bounded(value, np.where(allowed, value * relative * (1 + relative) * WIDEN + TINY, 0.0))


def weight(model: FixedPrecisionTransformer, name: str) -> Bounded:
    """A weight array: the nearest doubles of the decimals k 10^-q (off by at most u |w|)."""
    value = model.integers[name].astype(np.float64) / 10.0**model.digits
    return Bounded(value, UNIT * np.abs(value) * WIDEN)


class BoundedTransformer:
    """Logits of a fixed-precision transformer with bounds on their errors, word by word, independent of PyTorch."""

    def __init__(self, model: FixedPrecisionTransformer):
        self.shape = model.shape
        self.weights = {name: weight(model, name) for name in model.shape.weights()}

    def logits(self, word: tuple[int, ...]) -> tuple[Float[np.ndarray, " outputs"], Float[np.ndarray, " outputs"]]:
        """(logits at the last position, bounds on |logits - exact logits|)."""
        shape, w = self.shape, self.weights
        rows = list(word)
        z = Bounded(w["embed"].value[rows], w["embed"].error[rows])
        root = np.sqrt(shape.width // shape.heads)
        for layer in range(shape.layers):
            query, key, value = (
                product(z, w[f"{layer}.{name}"].transposed()).heads(shape.heads) for name in ("query", "key", "value")
            )
            raw = product(query, key.transposed())
            scores = Bounded(raw.value / root, (raw.error / root + 10 * UNIT * np.abs(raw.value / root)) * WIDEN + TINY)
            mixed = product(causal_softmax(scores), value).joined()
            z = z + product(mixed, w[f"{layer}.out"].transposed())
            bias = w[f"{layer}.bias"]
            hidden = (product(z, w[f"{layer}.up"].transposed()) + Bounded(bias.value[None], bias.error[None])).relu()
            z = z + product(hidden, w[f"{layer}.down"].transposed())
        last = Bounded(z.value[-1:], z.error[-1:])
        out = product(last, w["unembed"].transposed())
        if shape.readout:
            bias = w["readout.bias"]
            before = product(last, w["readout.up"].transposed()) + Bounded(bias.value[None], bias.error[None])
            out = out + product(before.relu(), w["readout.down"].transposed())
        return out.value[0], out.error[0]
