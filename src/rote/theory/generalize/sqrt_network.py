"""Theorem 4.1's memorizer as a real network of width 6 and about sqrt(N) layers, in exact arithmetic.

Three parts: x -> c = <w, x> + b; c -> the packed keys of c's block, a step function; then the keys are read digit by
digit and compared with c. Keys are the integer parts of the positive records' c. The output is positive where c is less
than 1 from a key of its block and -1/16 where it is 9/8 or more from all of them, so whatever was not memorized as
positive is negative. Every weight is a dyadic fraction; the paper's 1.1 and 0.05 are 9/8 and 1/16 here for that reason.

Where this differs from the paper: only positive keys are packed (the paper packs a positive key in every negative's
place), blocks are balanced against digits instead of sqrt(N) each, and a step rises within 2 of a record's value (the
paper uses the middle third of the gap), so nothing but the neighbourhood of a positive record is ever positive.

Knows nothing about: how w is chosen, labels, estimators. Source: Yu et al. 2024 (arXiv 2411.00372, theorem 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor

from rote.errors import InputError
from rote.theory.exact_network import ExactNetwork, LayerStack, Number, Wire

NEAR = Fraction(9, 8)  # a key at this distance or farther adds nothing
OFFSET = Fraction(1, 16)  # a key at distance < 1 adds more than twice this
APART = 4  # opposite values of c must differ by so much


@dataclass(frozen=True)
class Step:
    """Between two blocks: from `start` the packed keys change, over `width` (a power of two, at most 1)."""

    start: Number
    width: Fraction


def integer_keys(
    values: Sequence[Number], positive: Sequence[bool], *, blocks: int
) -> tuple[list[list[int]], list[Step]]:
    """The integer parts of the positive values, sorted, in `blocks` blocks of equal size, and the step after each block
    but the last: in the gap between its last value and the next value of any record.

    Errors: InputError when opposite values are less than 4 apart, or a value is below 1.
    """
    if blocks < 1:
        raise InputError(f"blocks must be at least 1, not {blocks}")
    ordered = sorted(zip(values, positive, strict=True))
    if ordered[0][0] < 1:
        raise InputError("a projected record lies below 1; increase the offset b")
    for (one, here), (other, there) in pairwise(ordered):
        if here != there and other - one < APART:
            raise InputError("projected records of opposite labels are less than 4 apart; draw another direction")
    last: dict[int, Number] = {}  # key -> its largest value
    for value, is_positive in ordered:
        if is_positive:
            last[floor(value)] = value
    keys = sorted(last)
    size = -(-len(keys) // blocks)
    parts = [keys[start : start + size] for start in range(0, len(keys), size)]
    following = {a: b for (a, _), (b, _) in pairwise(ordered) if b > a}
    steps = []
    for part in parts[:-1]:
        value = last[part[-1]]
        width = _power_of_two_below(min(Fraction(following[value] - value) / 3, Fraction(1)))
        steps.append(Step(value + width, width))
    return parts, steps


def balanced_blocks(keys: int, bits: int) -> int:
    """The number of blocks with the fewest layers: two steps a layer, bits + 1 layers a digit, so about
    sqrt(2 (bits + 1) keys)."""
    return min(range(1, keys + 1), key=lambda blocks: -(-blocks // 2) + -(-keys // blocks) * (bits + 1))


def sqrt_network(
    weights: Sequence[Number],
    offset: Number,
    values: Sequence[Number],
    positive: Sequence[bool],
    *,
    blocks: int | None = None,
) -> ExactNetwork:
    """The network x -> F(x), given w, b and the exact values <w, x_i> + b of the records.

    Width 6 (5 for the paper's step part, plus a second step in the same layer). Depth ceil(blocks / 2) + digits (bits +
    1) + 1. `blocks`: default the balanced number. Errors: InputError, see `integer_keys`; or no positive record.
    """
    if not any(positive):
        raise InputError("no positive record: the constant -1 memorizes these labels")
    count = len({floor(value) for value, flag in zip(values, positive, strict=True) if flag})
    top = max(floor(value) for value, flag in zip(values, positive, strict=True) if flag)
    bits = top.bit_length()
    parts, steps = integer_keys(values, positive, blocks=balanced_blocks(count, bits) if blocks is None else blocks)
    digits = len(parts[0])
    packed = [pack(part + [parts[0][0]] * (digits - len(part)), bits) for part in parts]

    stack = LayerStack(len(weights))
    c = sum((wire * weight for wire, weight in zip(stack.inputs, weights, strict=True)), stack.constant(offset))
    c, v = _steps(stack, c, steps, packed)
    score = _digits(stack, c, v, digits=digits, bits=bits)
    return stack.finish(score - OFFSET)


def pack(keys: Sequence[int], bits: int) -> int:
    """sum_l keys[l] 2^(bits (m-1-l)): the first key in the highest place. Keys are below 2^bits."""
    v = 0
    for key in keys:
        v = (v << bits) | key
    return v


def _steps(stack: LayerStack, c: Wire, steps: Sequence[Step], packed: Sequence[int]) -> tuple[Wire, Wire]:
    """(c, the packed keys of c's block): v_1 + sum_t (v_{t+1} - v_t) (relu(c - s_t) - relu(c - s_t - h_t)) / h_t."""
    v: Wire = stack.constant(packed[0])
    for first in range(0, len(steps), 2):
        pair = steps[first : first + 2]
        ramps = [c - step.start - rise for step in pair for rise in (0, step.width)]
        held = [] if not v.terms else [v]
        c, *units = stack.relu(c, *held, *ramps)
        v = units.pop(0) if held else stack.constant(packed[0])
        for k, step in enumerate(pair):
            jump = (packed[first + k + 1] - packed[first + k]) / step.width
            v = v + (units[2 * k] - units[2 * k + 1]) * jump
    return c, v


def _digits(stack: LayerStack, c: Wire, v: Wire, *, digits: int, bits: int) -> Wire:
    """sum over the digits d of v of relu(9/8 - |c - d|). A bit is relu(v - T + 1) - relu(v - T) for integers v, and
    v <- v - T bit, the paper's F_{a,b} with a = T, b = 1."""
    score, pending = stack.constant(), None
    place = digits * bits
    for _ in range(digits):
        digit = stack.constant()
        for _ in range(bits):
            place -= 1
            threshold = 1 << place
            forms = {"c": c, "v": v, "up": v - threshold + 1, "over": v - threshold}
            forms |= {"score": score, "pending": pending} if pending else {"score": score}
            forms |= {"digit": digit}
            units = _layer(stack, forms)
            bit = units["up"] - units["over"]
            c, v, score, digit = units["c"], units["v"] - bit * threshold, units["score"], units["digit"] * 2 + bit
            if pending:
                score, pending = score + units["pending"], None
        units = _layer(stack, {"c": c, "v": v, "score": score, "above": c - digit, "below": digit - c})
        c, v, score = units["c"], units["v"], units["score"]
        pending = NEAR - units["above"] - units["below"]
    units = _layer(stack, {"score": score, "pending": pending or stack.constant()})
    return units["score"] + units["pending"]


def _layer(stack: LayerStack, forms: dict[str, Wire]) -> dict[str, Wire]:
    """A hidden layer for the forms that depend on anything; a constant needs no unit."""
    alive = [name for name, form in forms.items() if any(form.terms.values())]
    units = dict(zip(alive, stack.relu(*(forms[name] for name in alive)), strict=True))
    return {name: units.get(name, stack.constant(max(form.constant, 0))) for name, form in forms.items()}


def _power_of_two_below(value: Fraction) -> Fraction:
    """The largest 2^k <= value."""
    power = value.numerator.bit_length() - value.denominator.bit_length()
    guess = Fraction(2) ** power
    return guess if guess <= value else guess / 2
