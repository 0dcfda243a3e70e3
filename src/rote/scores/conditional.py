"""Log-probabilities of records given a shared context P: the inputs of ReCaLL and Con-ReCall.

P is a list of shots (texts known to be unseen, or known to be seen), encoded once; its keys and values serve every
record. P and the record are joined as token ids, so a record has the same tokens with and without P. When P and a
record exceed the context window, shots are dropped from the front, for that record alone; how many is reported.

Knows nothing about: the scores made of it (`rote.measures.membership.recall`, `con_recall`).
Source: Xie et al. 2024 (ReCaLL, arXiv 2406.15968, section 3); Wang et al. 2025 (Con-ReCall, arXiv 2409.03363).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int

from rote.errors import InputError
from rote.runtime import derive_seed
from rote.scores.context_cache import ContextCache
from rote.scores.sequences import BLOCK, PreparedRecords, Split, prepare
from rote.scores.tokens import BATCH_TOKENS, TokenScorer, batches

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

SHOTS = 12  # Xie et al. 2024 use up to 12 shots
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Shots:
    """Rows of the record table used as context; they must not be evaluated."""

    unseen: Int[np.ndarray, " unseen"]
    seen: Int[np.ndarray, " seen"]

    def evaluated(self, records: int) -> Int[np.ndarray, " evaluated"]:
        """The rows that are left for evaluation."""
        return np.setdiff1d(np.arange(records), np.concatenate([self.unseen, self.seen]))


def choose_shots(records: RecordTable, *, count: int = SHOTS, seed: int = 0) -> Shots:
    """Choose up to `count` known-unseen records and, where some are known, as many known-seen ones as shots.

    At most half of either kind is taken, so that both can still be evaluated. The choice depends on seed and ids, not
    on the order of the rows. Raises InputError when fewer than two records are known to be unseen.
    """
    if count < 1:
        raise InputError(f"ReCaLL needs at least 1 shot, not {count}")
    control = records.is_control
    member, copies = records.column("member"), records.column("duplicates")
    known = np.array([m is True or (m is None and (d or 0) > 0) for m, d in zip(member, copies, strict=True)], bool)
    if control.sum() < 2:
        raise InputError(
            "ReCaLL needs at least 2 records known to be unseen (member false, duplicates 0, or --control)"
        )
    ids = records.column("id")

    def pick(among: Bool[np.ndarray, " records"]) -> Int[np.ndarray, " rows"]:
        rows = np.flatnonzero(among)
        order = sorted(rows, key=lambda row: derive_seed(seed, "shots", ids[row]))
        return np.array(sorted(order[: min(count, len(rows) // 2)]), np.int64)

    return Shots(pick(control), pick(known & ~control))


@dataclass(frozen=True)
class ConditionalScores:
    """log p(x_t | P, x_<t) of each record, NaN where not scored. `dropped` counts the shots that found no room."""

    index: Int[np.ndarray, " records"]
    length: Int[np.ndarray, " records"]
    logp: Float32[np.ndarray, "records tokens"]
    shots: int
    dropped: Int[np.ndarray, " records"]

    @property
    def mean(self) -> Float32[np.ndarray, " records"]:
        """L(x | P): mean over the scored tokens, nats."""
        return np.nanmean(self.logp, axis=1)


def conditional_logp(
    model: CausalLM,
    records: RecordTable,
    shots: Sequence[str | Sequence[int]],
    *,
    split: Split | None = None,
    separator: str = SEPARATOR,
    first_token: bool = False,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConditionalScores:
    """log p(x_t | P, x_<t) for every record, P = the shots in the given order, each followed by `separator`.

    A shot is a text, or token ids (then nothing follows it). `first_token=False` scores the same tokens as the pass
    without P (without BOS the first one is left out), so that L(x | P) / L(x) compares like with like; True scores the
    first token too. Agrees with a joint pass over P and record to 1e-5 (float32). Rows come in record order, without
    those that `prepare` skips. Raises InputError for no shots and for whatever `prepare` refuses.
    """
    if not shots:
        raise InputError("a shared context needs at least one shot")
    prepared = prepare(model, records, split)
    rows = np.sort(prepared.order)
    lengths = prepared.lengths[rows].astype(np.int64)
    shot_ids = _shot_ids(model, shots, separator)
    dropped = shots_dropped([len(ids) for ids in shot_ids], lengths, _room(model))
    logp = np.full((len(rows), int(lengths.max())), np.nan, np.float32)
    reader = _Reader(model, batch_tokens)
    total, done = int(lengths.sum()), 0
    for drop in np.unique(dropped):
        context = [token for ids in shot_ids[drop:] for token in ids]
        cache = reader.context(context)
        here = np.flatnonzero(dropped == drop)
        here = here[np.argsort(-lengths[here], kind="stable")]
        for start in range(0, len(here), BLOCK):
            block = here[start : start + BLOCK]
            reader.fill(logp, block, prepared, rows[block], cache)
            done += int(lengths[block].sum())
            if progress:
                progress(done, total)
    if not first_token and model.bos_id is None:
        logp[:, 0] = np.nan
    return ConditionalScores(rows, lengths, logp, len(shots), dropped)


def shots_dropped(
    shot_lengths: Sequence[int], lengths: Int[np.ndarray, " records"], room: int | None
) -> Int[np.ndarray, " records"]:
    """How many shots must go, from the front, so that the others and the record fit into `room` tokens."""
    if room is None:
        return np.zeros(len(lengths), np.int64)
    kept_tokens = np.cumsum(np.asarray(shot_lengths)[::-1])  # tokens of the last 1, 2, ... shots
    return len(shot_lengths) - np.searchsorted(kept_tokens, room - lengths, side="right")


class _Reader:
    """Scores blocks of records behind one context; keeps its buffers."""

    def __init__(self, model: CausalLM, batch_tokens: int | None):
        self.model = model
        self.scorer = TokenScorer(model)
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, 2_048)

    def context(self, ids: list[int]) -> ContextCache | None:
        ids = ids if self.model.bos_id is None else [self.model.bos_id, *ids]
        return ContextCache.encode(self.model, torch.tensor([ids])) if ids else None

    def fill(
        self,
        logp: np.ndarray,
        block: np.ndarray,
        prepared: PreparedRecords,
        rows: np.ndarray,
        cache: ContextCache | None,
    ) -> None:
        sequences = prepared.sequences(rows)
        lengths = np.array([len(sequence.ids) for sequence in sequences])
        fits = len(lengths) if cache is None else cache.rows_that_fit(int(lengths.max()))
        for batch in batches(lengths, self.batch_tokens):
            for start in range(0, len(batch), fits):
                part = batch[start : start + fits]
                self._fill_batch(logp, block[part], [sequences[i].ids for i in part], cache)

    def _fill_batch(self, logp, targets_at, ids: list[list[int]], cache: ContextCache | None) -> None:
        lengths = np.array([len(each) for each in ids])
        matrix = np.zeros((len(ids), int(lengths.max())), np.int64)
        for row, each in enumerate(ids):
            matrix[row, : len(each)] = each
        tokens = torch.from_numpy(matrix).to(self.model.device)
        first = 0 if cache is not None else 1  # without any context the first token is not predicted
        if cache is None:
            hidden = self.model.hidden(tokens)[:, :-1]
        else:
            hidden = cache.last.expand(len(ids), -1)[:, None]
            if matrix.shape[1] > 1:
                hidden = torch.cat([hidden, cache.read(tokens[:, :-1])], dim=1)
        record, position = np.nonzero(np.arange(first, matrix.shape[1])[None] < lengths[:, None])
        source = torch.from_numpy(record).to(self.model.device), torch.from_numpy(position).to(self.model.device)
        hidden, wanted = hidden[source], tokens[source[0], source[1] + first]
        step = self.scorer.product_rows
        values = [
            self.scorer.score_rows(hidden[start : start + step], wanted[start : start + step], None)["logp"]
            for start in range(0, len(hidden), step)
        ]
        logp[targets_at[record], position + first] = np.concatenate(values)


def _shot_ids(model: CausalLM, shots: Sequence[str | Sequence[int]], separator: str) -> list[list[int]]:
    texts = [shot + separator for shot in shots if isinstance(shot, str)]
    encoded = iter(model.encode(texts)) if texts else iter(())
    return [next(encoded).ids if isinstance(shot, str) else [int(token) for token in shot] for shot in shots]


def _room(model: CausalLM) -> int | None:
    return None if model.context_length is None else model.context_length - (model.bos_id is not None)
