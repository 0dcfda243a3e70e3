"""Repetition is not memorization: tokens of a segment's second occurrence in the context, of texts nobody trained on.

    sequence       [A][gap][A]   label 1: tokens of the second A
    its twin       [B][gap][A]   label 0: the same tokens at the same positions, for the first time ("matched")
                   [A][gap][A]   label 0: tokens of the first A ("first")

A repeated unseen text becomes predictable by induction heads: the standard false positive of everything that reads the
loss. With "first" negatives position alone tells the two apart; "matched" ones (the default) leave only the repetition.

Knows token ids. Knows nothing about: models, probes (the repetition probe is `train_probe` on these labels).
Source: Slonski 2024, arXiv 2412.01014, treats repetition with the same pipeline; this design is inferred.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rote.errors import InputError
from rote.internals.neurons.token_labels import TokenLabels
from rote.runtime import derive_seed

NEGATIVES = ("matched", "first")


def repeated_segments(
    count: int,
    *,
    texts: Sequence[Int[np.ndarray, " length"]] | None = None,
    vocabulary: int | None = None,
    segment: tuple[int, int] = (10, 50),
    gap: tuple[int, int] = (3, 10),
    room: int | None = None,
    skip: int = 1,
    negatives: str = "matched",
    seed: int = 0,
) -> TokenLabels:
    """Labels for `count` repeated segments, kinds "first" (0) and "second" (1); a segment and its twin share a group.

    texts: unseen token sequences that segments and gaps are cut from; without them tokens are drawn uniformly below
    `vocabulary`. segment, gap: smallest and largest length in tokens. room: the context window, BOS not counted; the
    segment is shortened to fit. skip: tokens of an occurrence that are not labelled, because nothing yet shows that it
    is one (1: its first).
    Raises InputError when the texts are too short, or a segment of the smallest length does not fit.
    """
    if (texts is None) == (vocabulary is None):
        raise InputError("give either unseen texts or the size of the vocabulary to draw segments from")
    if negatives not in NEGATIVES:
        raise InputError(f"negatives must be one of {', '.join(NEGATIVES)}, not {negatives!r}")
    if count < 1 or not 0 < skip < segment[0] <= segment[1] or not 0 <= gap[0] <= gap[1]:
        raise InputError(f"cannot repeat {count} segments of {segment} tokens, gap {gap}, skip {skip}")
    longest = segment[1] if room is None else min(segment[1], (room - gap[1]) // 2)
    if longest < segment[0]:
        raise InputError(f"two segments of {segment[0]} tokens and a gap of {gap[1]} do not fit {room} tokens")
    pieces = [np.asarray(text, np.int64) for text in texts or () if len(text) >= longest + gap[1]]
    if texts is not None and len(pieces) < 2:
        raise InputError(f"at least 2 texts of {longest + gap[1]} tokens are needed, {len(pieces)} are that long")
    sequences, sample, token, kind = [], [], [], []
    for number in range(count):
        rng = np.random.default_rng(derive_seed(seed, "repetition", number))
        size, space = int(rng.integers(segment[0], longest + 1)), int(rng.integers(gap[0], gap[1] + 1))
        if texts is None:
            a, b, between = (rng.integers(0, vocabulary, length) for length in (size, size, space))
        else:
            one, two = rng.choice(len(pieces), 2, replace=False)
            a = _cut(pieces[one], size, rng)
            both = _cut(pieces[two], size + space, rng)
            b, between = both[:size], both[size:]
        second = np.arange(size + space + skip, 2 * size + space)
        _add((np.concatenate([a, between, a]), second, 1), sequences, sample, token, kind)
        if negatives == "matched":
            _add((np.concatenate([b, between, a]), second, 0), sequences, sample, token, kind)
        else:
            first = np.arange(skip, size)
            sample.append(np.full(len(first), len(sequences) - 1))
            token.append(first)
            kind.append(np.zeros(len(first), np.int8))
    per_segment = 2 if negatives == "matched" else 1
    tokens = np.concatenate(token)
    return TokenLabels(
        tuple(sequences),
        tuple(f"segment/{i // per_segment}/{i % per_segment}" for i in range(len(sequences))),
        tuple(f"segment/{i // per_segment}" for i in range(len(sequences))),
        np.concatenate(sample), tokens, np.concatenate(kind), ("first", "second"),
        np.zeros(len(tokens), bool), np.full(len(tokens), np.nan, np.float32),
        {
            "from": "repetition", "segments": "random" if texts is None else "natural", "segment": list(segment),
            "gap": list(gap), "skip": skip, "negatives": negatives, "seed": seed, "note": "design inferred",
        },
    )  # fmt: skip


def _cut(text: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(0, len(text) - size + 1))
    return text[start : start + size]


def _add(made, sequences: list, sample: list, token: list, kind: list) -> None:
    sequence, where, label = made
    sample.append(np.full(len(where), len(sequences)))
    token.append(where)
    kind.append(np.full(len(where), label, np.int8))
    sequences.append(sequence)
