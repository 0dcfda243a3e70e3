"""floor(x) as a ReLU network: n blocks of width O(1), exact wherever the fractional part is at least gamma.

Kim, Moon, Yun 2025 (arXiv 2510.24643), Lemma B.16 [block formulas missing from the text; rebuilt, and checked in the
tests]: with t = 1 - x/2^n apply n times D(t) = 2t, less 1 across [1/2 - g, 1/2], g = gamma / 2^n; then
floor(x) = x - 1 + t_n. Written in x instead of t (t_k = 1 - x_k / 2^(n-k)) a block is

    bit_k = relu((x - T)/gamma) - relu((x - T)/gamma - 1),   x <- x - T bit_k,   T = 2^(n-k),

floor(x) = sum_k T bit_k: the same map with the same three units, and the slope is 1/gamma in every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from rote.errors import InputError
from rote.theory.exact_network import ExactNetwork, LayerStack, Wire


def floor_network(bits: int, gamma: Fraction) -> ExactNetwork:
    """floor(x) for 0 <= x < 2^bits with frac(x) >= gamma (for frac(x) = 0 too when x = 0). Depth bits + 2, width 4."""
    stack = LayerStack(1)
    (x,) = stack.relu(stack.inputs[0])
    value, _ = append_floors(stack, [x], [bits], [1], gamma)
    return stack.finish(value)


def append_floors(
    stack: LayerStack,
    z: Sequence[Wire],
    bits: Sequence[int],
    strides: Sequence[int],
    gamma: Fraction,
    *,
    carry: Sequence[Wire] = (),
) -> tuple[Wire, list[Wire]]:
    """Append max(bits) layers: (sum_j strides[j] floor(z_j), the carried wires).

    z_j: non-negative forms below 2^bits[j]. carry: non-negative forms to keep. All coordinates are read at once and
    share one accumulator: width 3 m + 1 + carried.
    """
    if not 0 < gamma <= 1:
        raise InputError(f"gamma is {gamma}, but a floor is inexact on a width between 0 and 1")
    slope = 1 / gamma
    rest, kept = list(z), list(carry)
    key = stack.constant()
    for place in reversed(range(max(bits, default=0))):
        live = [j for j in range(len(rest)) if bits[j]]
        begun = [j for j in live if place < bits[j]]
        step = 1 << place
        forms = [rest[j] for j in live]
        for j in begun:
            over = (rest[j] - step) * slope
            forms += [over, over - 1]
        head = [key] if any(key.terms.values()) else []
        units = stack.relu(*head, *forms, *kept)
        key = units.pop(0) if head else stack.constant()
        for j in live:
            rest[j] = units.pop(0)
        for j in begun:
            bit = units.pop(0) - units.pop(0)
            rest[j] = rest[j] - step * bit
            key = key + strides[j] * step * bit
        kept = units
    return key, kept
