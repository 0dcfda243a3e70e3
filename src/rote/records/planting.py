"""Controlled planting: Hubble's randomized insertion of probe texts into a packed training stream.

Because the number of copies of each probe is *randomized*, the curve "copies against score" is causal, and the texts
that drew zero copies are valid non-members: same source, same style, same time.

    stream x in {0..V-1}^(S, L+1), sequence s is part of batch floor(s / batch_size)
    probe i has d_i copies, M = sum_i d_i; each copy gets its own sequence, the rest of the stream stays byte-identical

Knows about token ids, document boundaries and random draws. Knows nothing about tokenizers, models or training.
Source: Wei et al. 2025, "Hubble", arXiv 2510.19811, section 3 (insertion), and the counts of its released suites.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from rote.errors import InputError

#: Copies -> relative number of texts. Hubble: 10:10:5:2:1 for 1:4:16:64:256, and as many unseen texts as all others
#: together.
HUBBLE_WEIGHTS: Mapping[int, float] = {0: 28, 1: 10, 4: 10, 16: 5, 64: 2, 256: 1}

Mode = Literal["splice", "seq_start"]
#: (probe, copy) -> the tokens to plant there, or None to withhold the copy.
Content = Callable[[int, int], "Int[np.ndarray, ' length'] | None"]


@dataclass(frozen=True)
class Copy:
    """One planted copy. `stream[slot, start : start + length]` is the probe, whole."""

    record: int  # row of the probe
    copy: int  # 0 .. d - 1 among the copies of that probe
    slot: int  # sequence number in the stream
    gap: int  # the copy stands before document segment `gap` of that sequence
    offset: int  # w: tokens cut from the front of the spliced sequence
    start: int  # position of the copy's first token in the sequence
    length: int  # tokens of the copy, end-of-text included


def level_counts(n: int, weights: Mapping[int, float] = HUBBLE_WEIGHTS) -> dict[int, int]:
    """How many of `n` texts get each number of copies, by largest remainder, so that the counts add up to `n`.

    When level 0 weighs as much as all others together (Hubble), it gets ceil(n / 2) texts and the rest follow their
    weights: n = 5,000 gives 2500 | 893, 893, 446, 179, 89 and n = 7,999 gives 4000 | 1428, 1428, 714, 286, 143, as in
        the paper's suites.

    Args:
        n: number of probe texts.
        weights: copies -> weight, weights finite, not negative and not all zero.
    Returns: copies -> number of texts, in ascending order of copies.
    Raises: InputError for a negative number of copies or a bad weight.
    """
    if n < 0:
        raise InputError(f"number of probe texts is {n}: give 0 or more")
    for level, weight in weights.items():
        if level < 0 or not np.isfinite(weight) or weight < 0:
            raise InputError(f"duplicate level {level} with weight {weight}: levels and weights must be 0 or more")
    total = float(sum(weights.values()))
    if total <= 0:
        raise InputError("duplicate levels have no weight: give at least one level a positive weight")
    counts: dict[int, int] = {}
    unseen = weights.get(0, 0.0)
    rest, rest_total = n, total
    if 0 in weights:
        counts[0] = min(
            n, int(np.ceil(n * unseen / total - 1e-9))
        )  # Hubble rounds in favour of the controls: 4,000 of 7,999
        rest, rest_total = n - counts[0], total - unseen
    members = sorted(level for level in weights if level != 0)
    if rest and rest_total <= 0:
        counts[0] += rest
        rest = 0
    shares = np.array([weights[level] * rest / rest_total if rest_total > 0 else 0.0 for level in members])
    floors = np.floor(shares + 1e-9).astype(int)
    # Stable sort: equal remainders go to the lower level first, so the result does not depend on the platform.
    for position in np.argsort(-(shares - floors), kind="stable")[: rest - int(floors.sum())]:
        floors[position] += 1
    counts.update({level: int(count) for level, count in zip(members, floors, strict=True)})
    return dict(sorted(counts.items()))


def assign_duplicates(
    n: int, *, weights: Mapping[int, float] = HUBBLE_WEIGHTS, seed: int = 0
) -> Int[np.ndarray, " records"]:
    """Draw the number of copies of each of `n` texts: a uniformly random permutation of the multiset of `level_counts`.

    Never by hand and never by text: randomization is what makes the dose-response causal (arXiv 2510.19811, section 3).
    """
    counts = level_counts(n, weights)
    levels = np.repeat(np.array(list(counts), dtype=np.int64), list(counts.values()))
    return np.random.default_rng([seed, 1]).permutation(levels)


def slot_range(sequences: int, *, batch_size: int, window: tuple[float, float] = (0.0, 1.0)) -> tuple[int, int]:
    """Sequences [first, last) of an insertion window: [floor(B lo) bs, ceil(B hi) bs) with B = floor(sequences / bs)
    batches.

    Raises: InputError unless 0 <= lo < hi <= 1 and there is at least one full batch.
    """
    low, high = window
    if not (0.0 <= low < high <= 1.0):
        raise InputError(f"insertion window ({low}, {high}) must satisfy 0 <= low < high <= 1")
    batches = sequences // batch_size
    if batches < 1:
        raise InputError(f"the stream has {sequences} sequences, fewer than one batch of {batch_size}")
    # 1e-9: 0.3 * 10 is 3.0000000000000004 in binary; the window is meant in decimals.
    first = int(np.floor(batches * low + 1e-9)) * batch_size
    last = int(np.ceil(batches * high - 1e-9)) * batch_size
    return first, min(last, batches * batch_size)


def segment_starts(sequence: Int[np.ndarray, " tokens"], *, eos_id: int) -> Int[np.ndarray, " segments"]:
    """Where the document segments m_1 .. m_J of one packed sequence begin: position 0 and after every end-of-text
    token."""
    ends = np.flatnonzero(np.asarray(sequence[:-1]) == eos_id) + 1
    return np.concatenate([np.zeros(1, dtype=np.int64), ends.astype(np.int64)])


def splice_offset(*, gap: int, drawn: int, start: int, length: int, sequence_length: int) -> int:
    """w: tokens cut from the front, so that the copy stays whole inside [w, w + L + 1).

    w = 0 if gap = 0, else the drawn value clipped to start + len(x) - (L + 1) <= w <= start.
    """
    if gap == 0:
        return 0
    return int(np.clip(drawn, max(0, start + length - sequence_length), start))


def splice(
    sequence: Int[np.ndarray, " tokens"], probe: Int[np.ndarray, " length"], *, start: int, offset: int
) -> Int[np.ndarray, " tokens"]:
    """Tokens [w, w + L + 1) of m_1 .. m_g x m_(g+1) .. m_J, where `start` is the length of m_1 .. m_g and `offset` is
    w."""
    spliced = np.concatenate([sequence[:start], probe, sequence[start:]])
    return spliced[offset : offset + len(sequence)]


def plant(
    stream: Int[np.ndarray, "sequences tokens"],
    probes: Sequence[Int[np.ndarray, " length"]],
    duplicates: Int[np.ndarray, " records"],
    *,
    eos_id: int,
    batch_size: int,
    window: tuple[float, float] = (0.0, 1.0),
    mode: Mode = "splice",
    seed: int = 0,
    content: Content | None = None,
) -> list[Copy]:
    """Plant `duplicates[i]` copies of `probes[i]` into `stream`, in place (a memory map works), and return the log.

    1. M = sum_i d_i slots are drawn without replacement from the insertion window: at most one copy per sequence.
    2. "splice": gap g ~ Uniform{0 .. J - 1}; offset w as in `splice_offset`, drawn from Uniform{0 .. len(x) - 1}; the
    displaced
       tokens come off the two ends of the sequence. "seq_start": the copy overwrites the head of the sequence.
    Sequences without a copy are not written to. The draws depend on `seed`, the number of sequences and the probes'
    lengths only.

    Args:
        stream: packed training order, row s holds L + 1 tokens.
        probes: token ids of each text, ending in `eos_id` (end-of-text belongs to the copy).
        duplicates: copies per text, d_i >= 0.
        window: share of training (lo, hi) in which copies may stand.
        content: what stands in the place of copy `c` of probe `i`: `content(i, c)`, as many tokens as the probe has (an
            altered copy), or None (the copy is withheld: its sequence stays as it was). The places do not depend on it.
    Raises: InputError for a text longer than a sequence or without end-of-text, or when the window holds fewer than M
        sequences.
    """
    duplicates = np.asarray(duplicates, dtype=np.int64)
    if len(probes) != len(duplicates):
        raise InputError(f"{len(probes)} probe texts but {len(duplicates)} duplicate counts: give one count per text")
    sequences, width = stream.shape
    for record in np.flatnonzero(duplicates).tolist():
        length = len(probes[record])
        if length > width:
            raise InputError(
                f"probe text {record} has {length} tokens with end-of-text, a sequence holds {width}: "
                f"shorten it or use sequences of at least {length} tokens"
            )
        if length == 0 or int(probes[record][-1]) != eos_id:
            raise InputError(f"probe text {record} does not end in the end-of-text token {eos_id}: append it")
    if np.any(duplicates < 0):
        raise InputError(f"probe text {int(np.flatnonzero(duplicates < 0)[0])} has a negative duplicate count")
    first, last = slot_range(sequences, batch_size=batch_size, window=window)
    total = int(duplicates.sum())
    if total > last - first:
        raise InputError(
            f"{total} copies need as many sequences, but the insertion window {window} holds {last - first}: "
            "train longer, widen the window, or plant fewer copies"
        )
    rng = np.random.default_rng([seed, 2])
    slots = first + rng.choice(last - first, size=total, replace=False)
    records = np.repeat(np.arange(len(probes)), duplicates)
    copies = np.concatenate([np.arange(d) for d in duplicates]) if total else np.zeros(0, dtype=np.int64)
    log: list[Copy] = []
    for record, copy, slot in zip(records.tolist(), copies.tolist(), slots.tolist(), strict=True):
        written = probes[record] if content is None else content(record, copy)
        probe = np.asarray(probes[record] if written is None else written, dtype=stream.dtype)
        if len(probe) != len(probes[record]):
            raise InputError(f"copy {copy} of probe text {record} has {len(probe)} tokens, not {len(probes[record])}")
        if mode == "seq_start":
            if written is not None:
                stream[slot, : len(probe)] = probe
                log.append(Copy(record, copy, slot, 0, 0, 0, len(probe)))
            continue
        sequence = np.array(stream[slot])
        starts = segment_starts(sequence, eos_id=eos_id)
        gap = int(rng.integers(len(starts)))
        start = int(starts[gap])
        drawn = int(rng.integers(len(probe)))
        offset = splice_offset(gap=gap, drawn=drawn, start=start, length=len(probe), sequence_length=width)
        if written is None:
            continue  # after its draws, so that every other copy stands where it would
        stream[slot] = splice(sequence, probe, start=start, offset=offset)
        log.append(Copy(record, copy, slot, gap, offset, start - offset, len(probe)))
    return log


def write_log(path: Path, log: Iterable[Copy], ids: Sequence[str]) -> None:
    """One JSON line per copy, in planting order: the probe's id and every field of `Copy`. Contains no text."""
    with open(path, "w", encoding="utf-8") as file:
        for copy in log:
            file.write(json.dumps({"id": ids[copy.record], **asdict(copy)}) + "\n")


def read_log(path: Path) -> Iterator[Copy]:
    """The copies of a log written by `write_log`."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield Copy(**{name: row[name] for name in Copy.__dataclass_fields__})


def pack(
    documents: Sequence[Int[np.ndarray, " length"]], *, sequences: int, width: int, seed: int = 0
) -> Int[np.ndarray, "sequences width"]:
    """Concatenate documents (each ending in end-of-text) into `sequences` rows of `width` tokens, a new shuffle for
    every pass.

    A longer stream begins with the shorter one of the same seed, so a diluted run sees the same first batches.
    Raises: InputError when there are no tokens.
    """
    if not sum(len(document) for document in documents):
        raise InputError("the corpus has no tokens to pack")
    needed, have, parts = sequences * width, 0, []
    epoch = 0
    while have < needed:
        for index in np.random.default_rng([seed, 3, epoch]).permutation(len(documents)):
            parts.append(documents[index])
            have += len(documents[index])
            if have >= needed:
                break
        epoch += 1
    return np.concatenate(parts)[:needed].astype(np.int32).reshape(sequences, width)
