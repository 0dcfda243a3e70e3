"""A ReLU network of about sqrt(N log N) layers that maps N integer keys to their labels and every other integer to 0.

Knows the memorizer of Vardi, Yehudai, Shamir 2022 (arXiv 2110.03187), as used in Kim, Moon, Yun 2025 (arXiv
2510.24643, Lemmas B.6-B.10): sort the keys, pack the keys and labels of a group of about sqrt(N) into one long integer,
look that integer up, and read it out bit by bit while comparing each key with the input.
Deliberately does not know where the keys come from.

Two readers. "tent" is the papers' one: phi(z) = relu(relu(2z) - relu(4z - 2)) applied k times to u/2^n + 2^-(n+1) and
u/2^n + 2^-(n+2), whose difference shows bit k. "step" (default, ours) compares and subtracts: bit = relu(u - T + 1)
- relu(u - T) with T = 2^(n-k), then u <- u - T bit; one layer and three units a bit, weights no longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from rote.errors import InputError
from rote.theory.exact_network import ExactNetwork, LayerStack, Wire

Reader = Literal["step", "tent"]


def memorize_integers(
    keys: Sequence[int],
    labels: Sequence[int],
    *,
    classes: int | None = None,
    reader: Reader = "step",
    groups: int | None = None,
) -> ExactNetwork:
    """f: Z -> {0, .., C} with f(keys[i]) = labels[i] and f(z) = 0 for every other integer z.

    keys: integers of any sign; a key may repeat with the same label. labels: 1..C (0 means "not mine").
    classes: C (default: the largest label). groups: how many (default: the number with the fewest parameters, about
    sqrt(N log(range of keys)); `math.isqrt(N)` is the papers' unbalanced choice).
    Between the integers f is not specified.

    Depth groups + ceil(N / groups) (b + c), width 7, b = bits of the range of the keys, c = bits of C.
    Errors: InputError for a key with two labels, a label outside 1..C, no key at all.
    """
    stack = LayerStack(1)
    value, _ = append_integer_memorizer(
        stack, stack.inputs[0], keys, labels, classes=classes, reader=reader, groups=groups
    )
    return stack.finish(value)


def append_integer_memorizer(
    stack: LayerStack,
    key: Wire,
    keys: Sequence[int],
    labels: Sequence[int],
    *,
    carry: Sequence[Wire] = (),
    classes: int | None = None,
    reader: Reader = "step",
    groups: int | None = None,
) -> tuple[Wire, list[Wire]]:
    """Append the memorizer to a stack of layers: `key` is the form it reads, `carry` non-negative forms to keep.

    Returns (the form with the label, the carried forms); the label is non-negative for integer inputs.
    """
    pairs, classes = _checked(keys, labels, classes)
    low = pairs[0][0] - 1  # inside, a key is its distance from here: at least 1, so anything smaller becomes 0
    key_bits, label_bits = (pairs[-1][0] - low).bit_length(), classes.bit_length()
    count = groups or balanced_groups(len(pairs), key_bits, label_bits, carried=len(carry))
    size = -(-len(pairs) // min(count, len(pairs)))
    chunks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    packed = [pack([(k - low, label) for k, label in chunk], size, key_bits, label_bits) for chunk in chunks]

    # u(x): the packed group that x belongs to, as a sum of integer steps at the first key of each group
    x, keep = key - low, list(carry)
    u: Wire = stack.constant(packed[0])
    for number in range(1, len(chunks)):
        first = chunks[number][0][0] - low
        x, *keep, u, above, over = _units(stack, x, *keep, u, x - first + 1, x - first)
        u = u + (packed[number] - packed[number - 1]) * (above - over)
    state = _start(u, size * (key_bits + label_bits), reader)
    value, mask = stack.constant(), stack.constant()
    place = size * (key_bits + label_bits)
    for _ in range(size):
        found = stack.constant()
        for _ in range(key_bits):
            place -= 1
            bit, state, (x, value, mask, found, *keep) = _read(stack, state, place, [x, value, mask, found, *keep])
            value, mask, found = value + mask, mask * 0, 2 * found + bit
        distance = [x - found, found - x]  # relu of either is at least 1 when the integers differ
        found = stack.constant()
        for _ in range(label_bits):
            place -= 1
            several = len(distance)
            bit, state, rest = _read(stack, state, place, [x, value, found, *distance, *keep])
            x, value, found = rest[:3]
            distance, keep = [sum(rest[3 : 3 + several][1:], rest[3])], rest[3 + several :]
            found = 2 * found + bit
        mask = found - (1 << label_bits) * distance[0]  # the label where the keys agree, nothing positive elsewhere
    x, value, mask, *keep = _units(stack, x, value, mask, *keep)
    return value + mask, keep


def pack(segments: Sequence[tuple[int, int]], size: int, key_bits: int, label_bits: int) -> int:
    """u: (key, label) after (key, label), most significant first, `size` segments of key_bits + label_bits bits."""
    u = 0
    for key, label in [*segments, *[(0, 0)] * (size - len(segments))]:
        u = (u << key_bits | key) << label_bits | label
    return u


def balanced_groups(keys: int, key_bits: int, label_bits: int, *, carried: int = 0) -> int:
    """The number of groups with the fewest dense parameters: (w+1)w a lookup layer of width w = 4 + carried, and
    (w+1)w a bit read with width 6 + carried (7 while label bits are read)."""
    lookup, read, check = ((w + 1) * w for w in (4 + carried, 6 + carried, 7 + carried))
    segment = read * key_bits + check * label_bits
    return min(range(1, keys + 1), key=lambda groups: lookup * groups + segment * -(-keys // groups))


def bits_by_tents(u: int, n: int, first: int, last: int) -> int:
    """BIN: bits first..last (from 1, most significant first) of the n-bit integer u, by VYS's tent map, exactly."""
    a, b = (Fraction(u, 1 << n) + Fraction(1, 1 << (n + extra)) for extra in (1, 2))
    value = 0
    for k in range(1, last + 1):
        a, b = (max(max(2 * z, Fraction(0)) - max(4 * z - 2, Fraction(0)), Fraction(0)) for z in (a, b))
        if k >= first:
            value = 2 * value + int(max((b - a) * (1 << (n + 2 - k)), Fraction(0)))
    return value


def _start(u: Wire, bits: int, reader: str) -> list[Wire]:
    if reader == "step":
        return [u]
    if reader == "tent":
        scale = Fraction(1, 1 << bits)
        return [u * scale + scale / 2, u * scale + scale / 4]
    raise InputError(f"unknown reader {reader!r}; use step or tent")


def _read(stack: LayerStack, state: list[Wire], place: int, others: list[Wire]) -> tuple[Wire, list[Wire], list[Wire]]:
    """One bit of the packed integer: (bit, the reader after it, the other wires carried through)."""
    if len(state) == 1:
        (u,), step = state, 1 << place
        u, at_least, over, *others = _units(stack, u, u - step + 1, u - step, *others)
        bit = at_least - over
        return bit, [u - step * bit], others
    up_a, down_a, up_b, down_b, *others = _units(stack, *(form for z in state for form in (2 * z, 4 * z - 2)), *others)
    a, b = up_a - down_a, up_b - down_b
    a, b, bit, *others = _units(stack, a, b, (b - a) * (1 << (place + 2)), *others)
    return bit, [a, b], others


def _units(stack: LayerStack, *forms: Wire) -> list[Wire]:
    """A hidden layer for the forms that depend on anything; constants need no unit and stay constants."""
    alive = [form for form in forms if any(form.terms.values())]
    units = iter(stack.relu(*alive))
    return [next(units) if any(form.terms.values()) else stack.constant(max(form.constant, 0)) for form in forms]


def _checked(keys: Sequence[int], labels: Sequence[int], classes: int | None) -> tuple[list[tuple[int, int]], int]:
    if len(keys) != len(labels) or not len(keys):
        raise InputError(f"{len(keys)} keys and {len(labels)} labels; give one label a key, and at least one key")
    known: dict[int, int] = {}
    for place, (key, label) in enumerate(zip(map(int, keys), map(int, labels), strict=True)):
        if known.setdefault(key, label) != label:
            raise InputError(f"key {place} repeats an earlier key with another label; no function can give both")
    top = classes or max(known.values())
    if min(known.values()) < 1 or max(known.values()) > top:
        raise InputError(f"labels must be 1..{top} (0 means 'no key'); number the classes from 1")
    return sorted(known.items()), top
