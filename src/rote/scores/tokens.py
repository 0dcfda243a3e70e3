"""The one pass: log-probability, rank, entropy, spread, greedy verdict and every scheme's log q, for every token.

The body of the model runs on length-bucketed, right-padded batches; the (batch, length, vocabulary) block is made and
used up in slices of a few rows, so memory does not grow with the vocabulary, the batch or the number of records.
Results do not depend on batch size, order or padding (float32: within 1e-5; the tests state the tolerance of bfloat16).

Knows nothing about: measures, reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int

from rote.errors import InputError, RoteError
from rote.scores.kernels import TokenKernel, padded_width
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import PreparedRecords, Split, prepare
from rote.scores.store import ScoreStore
from rote.scores.table import TokenScores

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

ENGINES = ("local", "ray")
SHARD_TOKENS = 16_384  # a crash loses at most this many tokens of work
BATCH_TOKENS = {"cpu": 2_048, "cuda": 32_768, "mps": 8_192}  # padded tokens in one forward pass
PRODUCT_BYTES = {"cpu": 96 << 20, "cuda": 2 << 30, "mps": 256 << 20}  # logits made by one product with the head
SLICE_BYTES = {
    "cpu": 3 << 19,
    "cuda": 2 << 30,
    "mps": 64 << 20,
}  # logits worked on at a time: on a CPU, what its cache holds


def score_tokens(
    model: CausalLM,
    records: RecordTable,
    directory: str | Path,
    *,
    schemes: Sequence[DecodingScheme] = (),
    split: Split | None = None,
    batch_tokens: int | None = None,
    engine: str = "local",
    progress: Callable[[int, int], None] | None = None,
) -> ScoreStore:
    """Score every record once and keep the result in `directory`; continue where an earlier run stopped.

    engine: "local", or "ray" for workers on many machines that share the file system (`rote.scores.ray_engine`).

    `progress(tokens_done, tokens_in_all)` is called after each batch. Raises InputError for records that cannot be
    scored, RunMismatchError when `directory` belongs to another run, RoteError when the model yields NaN.
    """
    prepared = prepare(model, records, split)
    shards = shard_rows(prepared)
    store = ScoreStore.create(directory, score_key(prepared, schemes, len(shards)))
    missing = set(store.missing())
    total = prepared.tokens
    done = sum(int(prepared.lengths[rows].sum()) for shard, rows in enumerate(shards) if shard not in missing)

    def report(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress:
            progress(done, total)

    report(0)
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; use {' or '.join(ENGINES)}")
    if engine == "ray" and missing:
        from rote.scores.ray_engine import score_with_ray

        score_with_ray(
            model, records, store, sorted(missing), schemes=schemes, split=prepared.split, batch_tokens=batch_tokens,
            report=report,
        )  # fmt: skip
        return store
    scorer = TokenScorer(model, schemes, batch_tokens=batch_tokens)
    for shard in sorted(missing):
        store.write(shard, scorer(prepared, shards[shard], report))
    return store


def score_in_memory(
    model: CausalLM,
    records: RecordTable,
    *,
    schemes: Sequence[DecodingScheme] = (),
    split: Split | None = None,
    batch_tokens: int | None = None,
) -> TokenScores:
    """The same pass for a few records, kept in memory and in the order of the records (skipped ones left out)."""
    prepared = prepare(model, records, split)
    return TokenScorer(model, schemes, batch_tokens=batch_tokens)(prepared, np.sort(prepared.order))


def shard_rows(prepared: PreparedRecords, shard_tokens: int = SHARD_TOKENS) -> list[Int[np.ndarray, " rows"]]:
    """Rows of each shard: longest records first (a shortage of memory shows at once), about `shard_tokens` each."""
    order = prepared.order
    before = np.concatenate([[0], np.cumsum(prepared.lengths[order], dtype=np.int64)[:-1]])
    return np.split(order, np.flatnonzero(np.diff(before // shard_tokens)) + 1)


def score_key(prepared: PreparedRecords, schemes: Sequence[DecodingScheme], shards: int) -> dict:
    """What the scores depend on: the store refuses to mix anything that differs here."""
    model, split = prepared.model, prepared.split
    return {
        "model": model.fingerprint,
        "records": prepared.records.fingerprint,
        "dtype": str(model.dtype),
        "bos": model.bos_id,
        "schemes": [scheme.name for scheme in schemes],
        "prefix": split.prefix,
        "suffix": split.suffix,
        "long": split.long,
        "shards": shards,
    }


class TokenScorer:
    """Scores rows of prepared records with one model; keeps its buffers between calls."""

    def __init__(self, model: CausalLM, schemes: Sequence[DecodingScheme] = (), *, batch_tokens: int | None = None):
        self.model = model
        self.schemes = tuple(schemes)
        self.kernel = TokenKernel(model.vocab_size, self.schemes)
        kind = model.device.type
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(kind, 2_048)
        row_bytes = 4 * padded_width(model.vocab_size)
        self.slice_rows = max(4, SLICE_BYTES.get(kind, 1 << 20) // row_bytes)
        self.product_rows = max(self.slice_rows, PRODUCT_BYTES.get(kind, 64 << 20) // row_bytes)
        self._logits: torch.Tensor | None = None

    def __call__(
        self, prepared: PreparedRecords, rows: Int[np.ndarray, " rows"], report: Callable[[int], None] | None = None
    ) -> TokenScores:
        sequences = prepared.sequences(rows)
        lengths = np.array([len(sequence.ids) for sequence in sequences])
        block = TokenScores.empty(
            rows,
            lengths,
            [s.prefix for s in sequences],
            [s.suffix for s in sequences],
            [scheme.name for scheme in self.schemes],
        )
        for row, sequence in enumerate(sequences):
            block.token_ids[row, : lengths[row]] = sequence.ids
            block.ends[row, : lengths[row]] = sequence.ends
        for batch in batches(lengths, self.batch_tokens):
            self._score_batch(block, batch)
            if report:
                report(int(lengths[batch].sum()))
        return block

    def _score_batch(self, block: TokenScores, batch: Int[np.ndarray, " batch"]) -> None:
        model = self.model
        bos = 0 if model.bos_id is None else 1
        lengths = block.length[batch]
        ids = np.zeros((len(batch), int(lengths.max()) + bos), np.int64)
        ids[:, bos:] = np.maximum(block.token_ids[batch, : int(lengths.max())], 0)
        if model.bos_id is not None:
            ids[:, 0] = model.bos_id
        # Token t of a record is predicted by the hidden state before it: row t - 1 + bos of the input.
        record, position = np.nonzero(np.arange(1 - bos, int(lengths.max()))[None] < lengths[:, None])
        position += 1 - bos
        input_ids = torch.from_numpy(ids).to(model.device)
        hidden = model.hidden(input_ids)
        source = torch.from_numpy(record).to(model.device), torch.from_numpy(position - 1 + bos).to(model.device)
        hidden = hidden[source]
        targets = input_ids[source[0], source[1] + 1]
        history = _history(input_ids, *source) if any(s.repetition_penalty != 1 for s in self.schemes) else None
        parts = [
            self.score_rows(
                hidden[start : start + self.product_rows],
                targets[start : start + self.product_rows],
                None if history is None else history[start : start + self.product_rows],
            )
            for start in range(0, len(hidden), self.product_rows)
        ]
        rows = batch[record]
        for name in ("logp", "rank", "entropy", "std", "greedy"):
            getattr(block, name)[rows, position] = np.concatenate([part[name] for part in parts])
        for number, scheme in enumerate(self.schemes):
            block.schemes[scheme.name][rows, position] = np.concatenate([part["schemes"][number] for part in parts])
        wrong = ~np.isfinite(block.logp[rows, position])
        if wrong.any():
            raise RoteError(
                f"the model gave NaN or infinite logits for record row {int(block.index[rows[wrong][0]])}, token"
                f" {int(position[wrong][0])}; is the checkpoint damaged, or float16 overflowing? try --dtype float32"
            )

    def score_rows(self, hidden: torch.Tensor, targets: torch.Tensor, history: torch.Tensor | None) -> dict:
        logits = self._buffer(len(hidden))
        self.model.logits(hidden, out=logits[:, : self.model.vocab_size])
        outs = []
        with torch.inference_mode():
            for start in range(0, len(hidden), self.slice_rows):
                part = slice(start, start + self.slice_rows)
                outs.append(self.kernel(logits[part], targets[part], None if history is None else history[part]))
        collected = {
            name: torch.cat([getattr(out, name) for out in outs]).cpu().numpy()
            for name in ("logp", "rank", "entropy", "std", "greedy")
        }
        collected["schemes"] = torch.cat([out.schemes for out in outs], dim=1).cpu().numpy()
        return collected

    def _buffer(self, rows: int) -> torch.Tensor:
        if self._logits is None:
            width = padded_width(self.model.vocab_size)
            self._logits = torch.full((self.product_rows, width), -torch.inf, device=self.model.device)
        return self._logits[:rows]


def batches(lengths: Int[np.ndarray, " rows"], batch_tokens: int) -> list[Int[np.ndarray, " batch"]]:
    """Rows in batches of similar length, longest first, each with at most `batch_tokens` padded tokens."""
    order = np.argsort(-lengths, kind="stable")
    found, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        found.append(order[start : start + size])
        start += size
    return found


def _history(input_ids: torch.Tensor, record: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """The ids up to and including input position `row`; later places repeat the first id, which is harmless."""
    ids = input_ids[record]
    later = torch.arange(ids.shape[1], device=ids.device)[None] > row[:, None]
    return torch.where(later, ids[:, :1], ids)
