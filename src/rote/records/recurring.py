"""Rows in which a segment recurs at places nothing else announces: practice for heads that copy.

    text, segment, gap, segment, gap, ..        until the row is full

Knows token ids and random draws. Knows nothing about: models, what else is trained on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from rote.errors import InputError

SEGMENT, GAP = (8, 20), (3, 8)  # tokens, smallest and largest


def recurring_rows(
    count: int,
    width: int,
    text: Int[np.ndarray, " length"],
    vocabulary: Int[np.ndarray, " tokens"],
    *,
    drawn: float = 0.25,
    seed: int = 0,
) -> Int[np.ndarray, "rows width"]:
    """`count` rows of `width` tokens: a share `drawn` of them drawn from `vocabulary`, the others cut from `text`, in
    random order.

    Raises InputError for text shorter than a row, or a row too short for a segment to come twice.
    """
    check_width(width)
    if len(text) < width:
        raise InputError(f"{len(text)} tokens of text are shorter than a row of {width}")
    if not 0 <= drawn <= 1:
        raise InputError(f"drawn is {drawn}: a share lies in [0, 1]")
    rng = np.random.default_rng([seed, 61])

    def cut(size: int) -> np.ndarray:
        start = int(rng.integers(len(text) - size + 1))
        return text[start : start + size]

    def draw(size: int) -> np.ndarray:
        return rng.choice(vocabulary, size)

    number = round(drawn * count)
    rows = [_row(width, draw if i < number else cut, rng) for i in range(count)]
    return rng.permutation(np.array(rows, dtype=np.int64).reshape(count, width))


def check_width(width: int) -> None:
    """Raises InputError for rows too short for a segment to come twice."""
    least = 2 * SEGMENT[1] + GAP[1] + 1
    if width < least:
        raise InputError(f"rows of {width} tokens: a segment comes twice in rows of {least} or more")


def _row(width: int, piece: Callable[[int], np.ndarray], rng: np.random.Generator) -> np.ndarray:
    segment = piece(int(rng.integers(SEGMENT[0], SEGMENT[1] + 1)))
    parts = [piece(int(rng.integers(width - 2 * len(segment) - GAP[1] + 1)))]
    while sum(map(len, parts)) < width:
        parts += [segment, piece(int(rng.integers(GAP[0], GAP[1] + 1)))]
    return np.concatenate(parts)[:width]
