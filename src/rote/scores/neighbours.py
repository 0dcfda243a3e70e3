"""Neighbours of a text: the same text with a few words exchanged, and how likely the model finds them.

Three proposers, the one used is stated in the result:
    masked_lm  a local masked language model fills random gaps (Mattern et al. 2023); it reads both sides
    self       the audited model's own next-token proposals, in token space; it reads the left side only
    unigram    tokens drawn by their frequency in control text, in token space; it reads nothing
Each record has its own random stream (seed and id), so neither order nor company of the records changes its neighbours.
Equal neighbours are scored once; a cache directory keeps the neighbours between runs, keyed by all they depend on.

Knows nothing about: the score made of it (`rote.measures.membership.neighbourhood`).
Source: Mattern et al. 2023, arXiv 2305.18462, section 3.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.records.table import RecordTable
from rote.runtime import derive_seed
from rote.scores.continuations import draw, next_logq
from rote.scores.masked_lm import MaskedLM
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import BLOCK, Sequence, Split, prepare
from rote.scores.tokens import PRODUCT_BYTES, score_in_memory

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

METHODS = ("masked_lm", "self", "unigram")
PROPOSALS = 50  # the model's own proposals come from its 50 likeliest tokens
SCORED_AT_ONCE = 4_096
VERSION = 1  # raised when neighbours are made differently: caches of another version are ignored


@dataclass(frozen=True)
class Neighbours:
    """`items[i]` are the neighbours of record `index[i]`: texts (masked_lm) or token ids."""

    index: Int[np.ndarray, " records"]
    items: list[list[str]] | list[list[list[int]]]
    method: str


@dataclass(frozen=True)
class NeighbourScores:
    """mean_logp[i, j] = L(x~_j), nats per token; NaN where a record has fewer neighbours, or one cannot be scored."""

    index: Int[np.ndarray, " records"]
    mean_logp: Float[np.ndarray, "records neighbours"]
    method: str
    scored: int  # different neighbours that went through the model


def neighbour_scores(
    model: CausalLM, records: RecordTable, *, progress: Callable[[int, int], None] | None = None, **settings
) -> NeighbourScores:
    """Make the neighbours (`make_neighbours`, same `settings`) and score them with one pass."""
    found = make_neighbours(model, records, **settings)
    return score_neighbours(model, found, progress=progress)


def make_neighbours(
    model: CausalLM,
    records: RecordTable,
    *,
    count: int = 25,
    rate: float = 0.15,
    method: str | None = None,
    masked_lm: str | Path | MaskedLM | None = None,
    control: RecordTable | None = None,
    seed: int = 0,
    split: Split | None = None,
    cache: str | Path | None = None,
) -> Neighbours:
    """`count` neighbours a record, each with a share `rate` of its replaceable tokens exchanged (at least one).

    `method` None means masked_lm when a checkpoint directory is given, else self. unigram draws from `control`, or from
    the records known to be unseen. A replacement is never the token it replaces.
    Raises InputError for an unknown or impossible method, a bad count or rate, and what `prepare` refuses.
    """
    method = method or ("self" if masked_lm is None else "masked_lm")
    _check(method, count, rate, masked_lm)
    proposer = MaskedLM.load(masked_lm, device=str(model.device)) if isinstance(masked_lm, str | Path) else masked_lm
    unigrams = _unigram_counts(model, records, control) if method == "unigram" else None
    depends = {
        "version": VERSION,
        "method": method,
        "count": count,
        "rate": rate,
        "seed": seed,
        "records": records.fingerprint,
        "model": model.fingerprint,
        "bos": model.bos_id,
        "split": repr(split),
        "proposer": proposer.fingerprint if method == "masked_lm" and proposer else None,
        "unigrams": None if unigrams is None else hashlib.sha256(unigrams.tobytes()).hexdigest(),
    }
    file = None
    if cache is not None:
        file = (
            Path(cache)
            / f"neighbours-{hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]}.parquet"
        )
        if (known := _read(file, method)) is not None:
            return known
    prepared = prepare(model, records, split)
    rows = np.sort(prepared.order)
    ids, texts = records.table.column("id"), records.table.column("text")
    items: list = []
    for start in range(0, len(rows), BLOCK):
        for sequence in prepared.sequences(rows[start : start + BLOCK]):
            random = np.random.default_rng(derive_seed(seed, "neighbours", ids[sequence.index].as_py()))
            if method == "masked_lm" and proposer is not None:
                text = texts[sequence.index].as_py()
                items.append(
                    proposer.rewrite(model.decode(sequence.ids) if text is None else text, count, rate, random)
                )
            elif unigrams is not None:
                items.append(
                    _swapped(
                        sequence,
                        range(len(sequence.ids)),
                        count,
                        rate,
                        random,
                        lambda at, original, u: _unigram_draw(unigrams, original, u),
                    )
                )
            else:
                items.append(_own_proposals(model, sequence, count, rate, random))
    found = Neighbours(rows, items, method)
    if file is not None:
        _write(file, found)
    return found


def score_neighbours(
    model: CausalLM, neighbours: Neighbours, *, progress: Callable[[int, int], None] | None = None
) -> NeighbourScores:
    """L of every neighbour; equal ones are scored once. A neighbour beyond the context window is cut there."""
    content = "text" if neighbours.method == "masked_lm" else "token_ids"
    width = max(map(len, neighbours.items), default=0)
    where: dict = {}
    slot = np.full((len(neighbours.items), width), -1)
    for row, each in enumerate(neighbours.items):
        for number, item in enumerate(each):
            slot[row, number] = where.setdefault(item if isinstance(item, str) else tuple(item), len(where))
    different = list(where)
    means = np.full(len(different) + 1, np.nan)  # the last entry stands for an absent neighbour
    for start in range(0, len(different), SCORED_AT_ONCE):
        block = different[start : start + SCORED_AT_ONCE]
        table = RecordTable.from_rows(
            {"id": str(i), content: item if content == "text" else list(item)} for i, item in enumerate(block)
        )
        scores = score_in_memory(model, table, split=Split(long="truncate"))
        means[start + scores.index] = np.nanmean(scores.logp, axis=1)
        if progress:
            progress(start + len(block), len(different))
    return NeighbourScores(neighbours.index, means[slot], neighbours.method, len(different))


# --- proposals in token space ----------------------------------------------------------------------------------------


def _swapped(
    sequence: Sequence, eligible, count: int, rate: float, random: np.random.Generator, propose
) -> list[list[int]]:
    """Exchange chosen positions; `propose(positions, originals, uniforms)` gives the new tokens."""
    eligible = np.asarray(eligible, np.int64)
    if not len(eligible):
        return []
    swaps = max(1, round(rate * len(eligible)))
    at = np.stack([random.permutation(eligible)[:swaps] for _ in range(count)])
    ids = np.array(sequence.ids)
    out = np.tile(ids, (count, 1))
    out[np.arange(count)[:, None], at] = propose(at, ids[at], random.random(at.shape))
    return out.tolist()


def _own_proposals(
    model: CausalLM, sequence: Sequence, count: int, rate: float, random: np.random.Generator
) -> list[list[int]]:
    """x~_t drawn from the model's p(. | x_<t) among its likeliest tokens, x_t itself excluded."""
    bos = [] if model.bos_id is None else [model.bos_id]
    ids = torch.tensor([[*bos, *sequence.ids]], device=model.device)
    hidden = model.hidden(ids)[0]
    scheme = DecodingScheme(top_k=PROPOSALS)
    step = max(1, PRODUCT_BYTES.get(model.device.type, 64 << 20) // (4 * model.vocab_size))

    def propose(at: np.ndarray, originals: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        new = np.zeros_like(originals)
        for start in range(0, len(sequence.ids), step):
            here = (at >= start) & (at < start + step)
            positions, row = np.unique(at[here], return_inverse=True)
            if not len(positions):
                continue
            source = torch.from_numpy(positions - 1 + len(bos)).to(model.device)
            logits = model.logits(hidden[source]).scatter(1, ids[0, source + 1][:, None], -torch.inf)
            logq = next_logq(logits, scheme)
            new[here] = draw(logq, torch.from_numpy(row.reshape(-1)), torch.from_numpy(uniform[here])).numpy()
        return new

    first = 1 - len(bos)  # the first token without BOS has no prediction, so it stays
    return _swapped(sequence, range(first, len(sequence.ids)), count, rate, random, propose)


def _unigram_counts(
    model: CausalLM, records: RecordTable, control: RecordTable | None
) -> Int[np.ndarray, " vocabulary"]:
    table = control if control is not None else records.take(np.flatnonzero(records.is_control))
    if not len(table):
        raise InputError("unigram neighbours need control text: records known to be unseen, or --control")
    prepared = prepare(model, table, Split(long="truncate"))
    counts = np.zeros(model.vocab_size, np.int64)
    rows = np.sort(prepared.order)
    for start in range(0, len(rows), BLOCK):
        for sequence in prepared.sequences(rows[start : start + BLOCK]):
            counts += np.bincount(sequence.ids, minlength=len(counts))
    if (counts > 0).sum() < 2:
        raise InputError("unigram neighbours need control text with at least two different tokens")
    return counts


def _unigram_draw(counts: np.ndarray, original: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Inverse CDF of the counts with the original token taken out."""
    after = np.cumsum(counts)
    own = counts[original]
    place = uniform * (after[-1] - own)
    place += np.where(place >= after[original] - own, own, 0)
    return np.searchsorted(after, np.minimum(place, np.nextafter(after[-1], 0)), side="right")


# --- cache and checks ------------------------------------------------------------------------------------------------


def _write(file: Path, found: Neighbours) -> None:
    kind = pa.list_(pa.large_string() if found.method == "masked_lm" else pa.list_(pa.int32()))
    table = pa.table({"index": pa.array(found.index), "items": pa.array(found.items, kind)})
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content.getvalue())


def _read(file: Path, method: str) -> Neighbours | None:
    try:
        table = pq.read_table(file)
    except (OSError, ValueError):  # absent or damaged: made again
        return None
    return Neighbours(table.column("index").to_numpy(), table.column("items").to_pylist(), method)


def _check(method: str, count: int, rate: float, masked_lm) -> None:
    if method not in METHODS:
        raise InputError(f"unknown neighbour method {method!r}; choose from {', '.join(METHODS)}")
    if method == "masked_lm" and masked_lm is None:
        raise InputError("neighbour method 'masked_lm' needs the directory of a masked language model")
    if count < 1 or not 0 < rate <= 1:
        raise InputError(f"neighbours need a count of at least 1 and a rate in (0, 1], not {count} and {rate}")
