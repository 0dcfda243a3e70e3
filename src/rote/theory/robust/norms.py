"""l_p norms over exact numbers: which norm is meant, its dual, a ball's radius, and rational bounds on square roots.

Squares are compared, so that p = 1, 2 and infinity need no rounding at all; for any other p every quantity is replaced
by a rational bound on the safe side (relative slack 1e-9, far above the error of float64 sums).
Deliberately does not know data sets or networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rote.errors import InputError

SLACK = Fraction(1, 10**9)


def parse_norm(norm: str | float) -> float:
    """p of "l1", "l2", "linf", "l3", "l2.5" (or p itself), from 1 to infinity. Raises InputError otherwise."""
    text = str(norm).lower().removeprefix("l")
    try:
        p = math.inf if text in ("inf", "infinity") else float(text)
    except ValueError:
        p = math.nan
    if not p >= 1:
        raise InputError(f"unknown norm {norm!r}; use l1, l2, linf or l<p> with p >= 1")
    return p


def norm_name(p: float) -> str:
    return "linf" if math.isinf(p) else f"l{p:g}"


def dual(p: float) -> float:
    """q with 1/p + 1/q = 1."""
    return math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)


def gamma_p(d: int, p: float) -> float:
    """gamma_p(d) = d^|1/p - 1/2|: how far the p-norm and the 2-norm are apart in R^d (1 at p = 2, sqrt d at
    infinity)."""
    return d ** abs((0 if math.isinf(p) else 1 / p) - 0.5)


def is_exact(p: float) -> bool:
    """Whether norms of rational vectors have rational squares."""
    return p in (1.0, 2.0) or math.isinf(p)


def norm_squared(vector: Iterable[int | Fraction], p: float) -> Fraction:
    """||v||_p^2, exactly for p in {1, 2, inf}; otherwise a rational upper bound within 3e-9 of it."""
    values = [abs(Fraction(value)) for value in vector if value]
    if not values:
        return Fraction(0)
    if p == 2:
        return sum((value * value for value in values), Fraction(0))
    if p == 1:
        return sum(values, Fraction(0)) ** 2
    top = max(values)
    if math.isinf(p):
        return top * top
    ratio = math.fsum(float(value / top) ** p for value in values) ** (1 / p)
    return (top * Fraction(ratio) * (1 + SLACK)) ** 2


def sqrt_above(square: Fraction, *, bits: int = 64) -> Fraction:
    """A rational r >= sqrt(square), at most a relative 2^(1-bits) above it."""
    return _sqrt(square, bits, up=True)


def sqrt_below(square: Fraction, *, bits: int = 64) -> Fraction:
    """A rational 0 <= r <= sqrt(square), at most a relative 2^(1-bits) below it."""
    return _sqrt(square, bits, up=False)


def _sqrt(square: Fraction, bits: int, *, up: bool) -> Fraction:
    if square <= 0:
        return Fraction(0)
    shift = max(0, 2 * bits - square.numerator.bit_length() + square.denominator.bit_length() + 1)
    shift += shift % 2
    scaled, rest = divmod(square.numerator << shift, square.denominator)
    root = math.isqrt(scaled)
    if up and (rest or root * root < scaled):
        root += 1
    return Fraction(root, 1 << (shift // 2))


def rational(value: Any, *, name: str) -> Fraction:
    """A number as it was written: 0.1 is 1/10 (the shortest decimal of the float), "1/3" is 1/3."""
    try:
        return value if isinstance(value, Fraction) else Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{name} must be a number, not {value!r}") from None


def check_rho(rho: Any) -> Fraction:
    """rho as a fraction in (0, 1). Raises InputError: no continuous function is 1-robust, and 0 asks for nothing."""
    value = rational(rho, name="rho")
    if value >= 1:
        raise InputError(
            f"rho is {float(value):g}, but must be below 1: at 1 the balls of two classes touch and no continuous "
            "network can be right on both"
        )
    if value <= 0:
        raise InputError(f"rho is {float(value):g}, but must be above 0 (a share of half the distance of the classes)")
    return value


@dataclass(frozen=True)
class Radius:
    """The radius mu of an open l_p ball, by its square: exact for p in {1, 2, inf}, else an upper bound."""

    p: float
    square: Fraction

    @classmethod
    def of(cls, value: float | Fraction | Radius, norm: str | float = "l2") -> Radius:
        """A radius given as a number (a float counts at its exact value) in a norm, or already made."""
        if isinstance(value, Radius):
            return value
        try:
            exact = Fraction(value)
        except (ValueError, OverflowError, TypeError):
            raise InputError(f"radius must be a finite number, not {value!r}") from None
        if exact < 0:
            raise InputError(f"radius is {float(exact):g}, but must not be negative")
        return cls(parse_norm(norm), exact * exact)

    @property
    def above(self) -> Fraction:
        """A rational at or just above mu."""
        return sqrt_above(self.square)

    def along(self, functional: Iterable[int | Fraction]) -> Fraction:
        """A rational at or just above mu ||a||_q: how far the linear form a.x moves inside the ball."""
        return sqrt_above(self.square * norm_squared(functional, dual(self.p)))

    def euclidean(self, d: int) -> Fraction:
        """A rational at or just above the radius of the smallest 2-norm ball that contains this one."""
        if self.p <= 2:
            return self.above
        return self.above * Fraction(gamma_p(d, self.p)) * (1 + SLACK)

    def __float__(self) -> float:
        return math.sqrt(self.square) if self.square < 10**300 else float(self.above)
