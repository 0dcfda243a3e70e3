"""Which records does one greedy query recite? The verdicts alone, for the price of the prefixes' forward pass.

The full pass answers this too, among everything else. When only the verdicts are wanted (mining a corpus for what a
model recites), a record can be dropped at its first wrong token, as almost all are:

    1. read the prefix x_1..x_a, keeping keys and values; compare argmax p(. | x_1..x_a) with x_{a+1};
    2. of the records that are left, read a few suffix tokens behind the cached prefix and compare each prediction;
    3. of those still left, read the rest.

The output head is applied where a prediction is compared, nowhere else. Nothing is generated: with every earlier token
right, teacher forcing and greedy decoding are the same computation (Hayes et al. 2024, arXiv 2410.19482, section 2).

Knows nothing about: schemes, measures, files. Models without a KV cache take the full pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int

from rote.errors import InputError
from rote.scores.context_cache import ContextCache
from rote.scores.tokens import BATCH_TOKENS, TokenScorer, batches

if TYPE_CHECKING:
    from rote.scores.sequences import PreparedRecords, Sequence

LOGIT_ROWS = 256  # rows of logits alive at a time
FIRST_LOOK = 4  # suffix tokens read in step 2: on ordinary text few records survive so many


def greedy_screen(
    prepared: PreparedRecords,
    rows: Int[np.ndarray, " rows"] | None = None,
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Bool[np.ndarray, " rows"]:
    """1[argmax_v p(v | x_<t) = x_t for every suffix position t = a+1..a+k], for `rows` (default: every scored row).

    The same verdict as generating k tokens greedily from the prefix and comparing, ties going to the lower token id as
    in `torch.argmax`. Returns one value a row, in the order of `rows`. progress(done, total) counts records.

    Cost: a forward pass over the prefixes plus the suffixes of the records whose first tokens are right.
    """
    rows = prepared.order if rows is None else np.asarray(rows)
    verdicts = np.zeros(len(rows), bool)
    model = prepared.model
    limit = batch_tokens or BATCH_TOKENS.get(model.device.type, 2_048)
    bos = [] if model.bos_id is None else [model.bos_id]
    done = 0
    for start in range(0, len(rows), 1024):
        block = prepared.sequences(rows[start : start + 1024])
        contexts = np.array([len(bos) + sequence.prefix for sequence in block])
        # One batch holds prefixes of one length: nothing is padded on the left, positions are the model's own.
        for length in np.unique(contexts):
            group = np.flatnonzero(contexts == length)
            for part in batches(np.full(len(group), max(1, length)), limit):
                chosen = group[part]
                verdicts[start + chosen] = _screen(prepared, [block[i] for i in chosen], bos)
                done += len(chosen)
                if progress:
                    progress(done, len(rows))
    return verdicts


def _screen(prepared: PreparedRecords, sequences: list[Sequence], bos: list[int]) -> Bool[np.ndarray, " rows"]:
    """Verdicts for records whose contexts (BOS and prefix) have one length."""
    model = prepared.model
    suffixes = [sequence.ids[sequence.prefix : sequence.prefix + sequence.suffix] for sequence in sequences]
    try:
        cache = ContextCache.encode(model, torch.tensor([bos + s.ids[: s.prefix] for s in sequences]))
    except InputError:  # an empty context, or no KV cache: the full pass knows both
        block = TokenScorer(model)(prepared, np.array([sequence.index for sequence in sequences]))
        spans = zip(block.greedy, block.prefix, block.suffix, strict=True)
        return np.array([bool(right[a : a + k].all()) for right, a, k in spans])
    first = torch.tensor([suffix[0] for suffix in suffixes])
    alive = np.flatnonzero((cache.logits().argmax(-1).cpu() == first).numpy())
    for read in (FIRST_LOOK, None):
        step = cache.rows_that_fit(max(map(len, suffixes)))
        parts = [_still_right(cache, alive[i : i + step], suffixes, read) for i in range(0, len(alive), step)]
        alive = np.concatenate([alive[:0], *parts])
    found = np.zeros(len(sequences), bool)
    found[alive] = True
    return found


def _still_right(
    cache: ContextCache, rows: Int[np.ndarray, " rows"], suffixes: list[list[int]], read: int | None
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
            wrong = cache.model.logits(wanted[part]).argmax(-1).cpu() != truth[part]
            right[record[part][wrong]] = False
    return rows[right.numpy()]
