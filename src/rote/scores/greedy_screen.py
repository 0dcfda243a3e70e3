"""Which records does one greedy query recite? The verdicts alone, for less than the prefixes' forward pass.

The full pass answers this too, among everything else. When only the verdicts are wanted (mining a corpus for what a
model recites), a record can be dropped at its first wrong token, as almost all are:

    1. read the prefix x_1..x_a, keeping keys and values; compare argmax p(. | x_1..x_a) with x_{a+1};
    2. of the records that are left, read a few suffix tokens behind the cached prefix and compare each prediction;
    3. of those still left, read the rest.

The output head is applied where a prediction is compared, nowhere else. Nothing is generated: with every earlier token
right, teacher forcing and greedy decoding are the same computation (Hayes et al. 2024, arXiv 2410.19482, section 2).

Where the machine multiplies faster in bfloat16, a draft goes first: the same weights, rounded. With z the model's
logits, z' the draft's and e = z' - z less its mean over the vocabulary, the gap of a token x,

    g(x) = max_v z_v - z_x >= 0,    obeys    |g'(x) - g(x)| <= 2 max_v |e_v|,

so a token with g'(x) above that bound is wrong in both. max |e| is measured, over the whole vocabulary at many
positions of a few of the records, and doubled. What the draft cannot drop is read by the model itself: it alone says
that a record is recited.

Knows nothing about: schemes, measures, files. Models without a KV cache take the full pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int

from rote.errors import InputError
from rote.runtime import speedup_of
from rote.scores.context_cache import ContextCache
from rote.scores.tokens import BATCH_TOKENS, TokenScorer, batches

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.scores.sequences import PreparedRecords, Sequence

LOGIT_ROWS = 256  # rows of logits alive at a time
FIRST_LOOK = 4  # suffix tokens read in step 2: on ordinary text few records survive so many
CALIBRATION = 4  # records that the draft's error is measured on ...
CALIBRATION_ROWS = 128  # ... and positions of them
SAFETY = 2.0  # the bound on the draft's error over the largest one seen
DRAFT_FROM = 64  # records from which making and measuring a draft pays
DRAFT_SPEEDUP = 1.5  # how much faster its products must be


def greedy_screen(
    prepared: PreparedRecords,
    rows: Int[np.ndarray, " rows"] | None = None,
    *,
    draft: CausalLM | str | None = "auto",
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Bool[np.ndarray, " rows"]:
    """1[argmax_v p(v | x_<t) = x_t for every suffix position t = a+1..a+k], for `rows` (default: every scored row).

    The same verdict as generating k tokens greedily from the prefix and comparing, ties going to the lower token id as
    in `torch.argmax`. Returns one value a row, in the order of `rows`. progress(done, total) counts records.

    Args:
        draft: the model in lower precision (`CausalLM.in_precision`), which drops what is clearly wrong. "auto": in
            bfloat16, for a float32 model, 64 records or more and a machine that multiplies 1.5 times faster in it
            (measured). None: no draft. It takes half the model's memory more.

    Cost: a forward pass over the prefixes, the draft's if there is one, plus whole passes over what is recited.
    """
    rows = prepared.order if rows is None else np.asarray(rows)
    if isinstance(draft, str):
        if draft != "auto":
            raise InputError(f"draft is {draft!r}: give a model, None or 'auto'")
        draft = draft_of(prepared.model) if len(rows) >= DRAFT_FROM else None
    limit = batch_tokens or BATCH_TOKENS.get(prepared.model.device.type, 2_048)
    left, decided = np.arange(len(rows)), 0
    for reader, margin in _readers(prepared, rows, draft):
        kept = np.zeros(len(rows), bool)
        last = reader is prepared.model
        for part, sequences in _batches(prepared, rows, left, limit):
            kept[part] = _screen(prepared, reader, margin, sequences, drafted=draft is not None)
            decided += len(part) if last else int((~kept[part]).sum())
            if progress:
                progress(decided, len(rows))
        left = np.flatnonzero(kept)
    verdicts = np.zeros(len(rows), bool)
    verdicts[left] = True
    return verdicts


def largest_error(draft: CausalLM, prepared: PreparedRecords, rows: Int[np.ndarray, " rows"]) -> float:
    """max |z'_v - z_v - mean_v (z'_v - z_v)| over the vocabulary and CALIBRATION_ROWS evenly spaced positions of these
    records, in logits."""
    model = prepared.model
    contexts = [torch.tensor(_context(model, sequence.ids)) for sequence in prepared.sequences(rows)]
    ids = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True).to(model.device)  # padding is never looked at
    places = torch.cat([torch.arange(len(one)) + i * ids.shape[1] for i, one in enumerate(contexts)])
    places = places[torch.linspace(0, len(places) - 1, min(CALIBRATION_ROWS, len(places))).long()].to(ids.device)
    exact, rounded = (reader.logits(reader.hidden(ids).flatten(0, 1)[places]) for reader in (model, draft))
    error = rounded - exact
    return (error - error.mean(-1, keepdim=True)).abs().max().item()


def draft_of(model: CausalLM) -> CausalLM | None:
    """The model in bfloat16 where that is faster on its device, by measurement; None for other models and devices."""
    if model.dtype != torch.float32 or speedup_of(torch.bfloat16, model.device) < DRAFT_SPEEDUP:
        return None
    return model.in_precision(torch.bfloat16)


def _readers(
    prepared: PreparedRecords, rows: Int[np.ndarray, " rows"], draft: CausalLM | None
) -> Iterator[tuple[CausalLM, float]]:
    """Who reads, in order, and the gap up to which a token passes."""
    if draft is not None and len(rows):
        some = rows[np.unique(np.linspace(0, len(rows) - 1, CALIBRATION).astype(int))]
        yield draft, 2 * SAFETY * largest_error(draft, prepared, some)
    yield prepared.model, 0.0


def _batches(
    prepared: PreparedRecords, rows: Int[np.ndarray, " rows"], left: Int[np.ndarray, " left"], limit: int
) -> Iterator[tuple[Int[np.ndarray, " batch"], list[Sequence]]]:
    """Places in `rows`, with their records. One batch holds prefixes of one length: nothing is padded on the left,
    positions are the model's own."""
    for start in range(0, len(left), 1024):
        places = left[start : start + 1024]
        block = prepared.sequences(rows[places])
        prefixes = np.array([sequence.prefix for sequence in block])
        for length in np.unique(prefixes):
            group = np.flatnonzero(prefixes == length)
            for part in batches(np.full(len(group), length + 1), limit):
                yield places[group[part]], [block[i] for i in group[part]]


def _screen(
    prepared: PreparedRecords, model: CausalLM, margin: float, sequences: list[Sequence], *, drafted: bool
) -> Bool[np.ndarray, " rows"]:
    """Which of these records, with prefixes of one length, pass at every suffix token."""
    suffixes = [sequence.ids[sequence.prefix : sequence.prefix + sequence.suffix] for sequence in sequences]
    try:
        cache = ContextCache.encode(model, torch.tensor([_context(model, s.ids[: s.prefix]) for s in sequences]))
    except InputError:  # an empty context, or no KV cache: the full pass knows both
        if model is not prepared.model:
            return np.ones(len(sequences), bool)
        block = TokenScorer(model)(prepared, np.array([sequence.index for sequence in sequences]))
        spans = zip(block.greedy, block.prefix, block.suffix, strict=True)
        return np.array([bool(right[a : a + k].all()) for right, a, k in spans])
    # What a draft let through is nearly all recited: the model then reads it whole.
    looks = (None,) if drafted and model is prepared.model else (FIRST_LOOK, None)
    alive = np.flatnonzero(_passes(cache.logits(), torch.tensor([suffix[0] for suffix in suffixes]), margin).numpy())
    for read in looks:
        step = cache.rows_that_fit(max(map(len, suffixes)))
        parts = [_still_right(cache, alive[i : i + step], suffixes, read, margin) for i in range(0, len(alive), step)]
        alive = np.concatenate([alive[:0], *parts])
    found = np.zeros(len(sequences), bool)
    found[alive] = True
    return found


def _still_right(
    cache: ContextCache, rows: Int[np.ndarray, " rows"], suffixes: list[list[int]], read: int | None, margin: float
) -> Int[np.ndarray, " kept"]:
    """Of `rows`, those whose first `read` suffix tokens (None: all but the last) each predict the next one."""
    given = [torch.tensor(suffixes[row][:-1][:read], dtype=torch.int64) for row in rows]
    right = torch.ones(len(rows), dtype=torch.bool)
    if max(map(len, given)) > 0:
        tokens = torch.nn.utils.rnn.pad_sequence(given, batch_first=True)
        hidden = cache.read(tokens, torch.from_numpy(rows))
        lengths = torch.tensor([len(row) for row in given])
        record, place = torch.nonzero(torch.arange(tokens.shape[1])[None] < lengths[:, None], as_tuple=True)
        truth = torch.tensor([suffixes[rows[i]][t + 1] for i, t in zip(record.tolist(), place.tolist(), strict=True)])
        wanted = hidden[record.to(hidden.device), place.to(hidden.device)]
        for start in range(0, len(wanted), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            wrong = ~_passes(cache.model.logits(wanted[part]), truth[part], margin)
            right[record[part][wrong]] = False
    return rows[right.numpy()]


def _passes(logits: torch.Tensor, truth: torch.Tensor, margin: float) -> Bool[torch.Tensor, " rows"]:
    """Is the token the first choice (margin 0: ties to the lower id), or within `margin` of it?"""
    first = logits.argmax(-1)
    truth = truth.to(first.device)
    right = first == truth
    if margin:
        at = torch.stack([first, truth], dim=1)
        best, own = logits.gather(1, at).unbind(1)
        right |= best - own <= margin
    return right.cpu()


def _context(model: CausalLM, ids: list[int]) -> list[int]:
    return ids if model.bos_id is None else [model.bos_id, *ids]
