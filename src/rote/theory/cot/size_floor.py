"""How many parameters memorization needs at least when weights have q digits: a counting floor. [derived]

Knows counting. Deliberately does not know architectures: the floor holds for each of them, with or without chain of
thought, since F^ and F^_cot are functions of the same weights.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal

from rote.errors import InputError

_CONTEXT = Context(prec=60)
LARGEST_DIGITS = 1000


def bits_per_weight(digits: int) -> float:
    """B(q) = log2(2 * 10^{2q} + 1) bits: a weight is k * 10^-q with |weight| <= 10^q.

    B(1), .., B(4) = 7.65, 14.29, 20.93, 27.58. Source: the paper's fixed precision [read]; B [derived].
    Errors: InputError unless 1 <= digits <= 1000.
    """
    return float(_log2(_levels(digits)))


def fixed_precision_floor(*, n: int, labels: int, digits: int) -> int:
    """The least P with P * B(q) >= N log2 T: parameters without which some labeling of N records is out of reach.

    n: records N >= 1; labels: T >= 1 possible answers; digits: q. [derived] A shape with P weights has at most
    (2 * 10^{2q} + 1)^P settings, so it memorizes at most so many of the T^N label vectors; letting the shape vary too
    adds O(log P) bits. It bounds the worst labeling of N records of which every labeling satisfies the condition
    (distinct inputs of two types or more): structured answers can need fewer.
    Computed with 60 digits; a quotient within 10^-40 of a whole number (T a power of the number of settings) is whole.
    Errors: InputError for n < 1, labels < 1, digits out of range.
    """
    if n < 1 or labels < 1:
        raise InputError(f"n is {n} and labels is {labels}; both must be 1 or more")
    quotient = _CONTEXT.divide(_CONTEXT.multiply(Decimal(n), _log2(labels)), _log2(_levels(digits)))
    nearest = quotient.to_integral_value(rounding=ROUND_HALF_EVEN, context=_CONTEXT)
    if abs(_CONTEXT.subtract(quotient, nearest)) < Decimal("1e-40"):
        return int(nearest)
    return int(quotient.to_integral_value(rounding=ROUND_CEILING, context=_CONTEXT))


def _levels(digits: int) -> int:
    if not 1 <= digits <= LARGEST_DIGITS:
        raise InputError(f"digits is {digits}; the precision q must be between 1 and {LARGEST_DIGITS}")
    return 2 * 10 ** (2 * digits) + 1


def _log2(value: int) -> Decimal:
    return _CONTEXT.divide(_CONTEXT.ln(Decimal(value)), _CONTEXT.ln(Decimal(2)))


def label_bits(*, n: int, labels: int) -> float:
    """N log2 T: the bits of an arbitrary labeling, the numerator of the floor."""
    return n * math.log2(labels)
