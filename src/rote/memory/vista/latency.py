"""How long does a request take, from the cache and over the raw history?

Histories are drawn at random: the time depends on their length alone. Lengths take turns in every round, so that a busy
moment of the machine falls on all of them.

Knows nothing about: pictures, terminals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rote.errors import InputError
from rote.memory.vista.embedding import Histories
from rote.memory.vista.service import score, summarise_user

if TYPE_CHECKING:
    from rote.memory.vista.baselines import RawTargetAttention
    from rote.memory.vista.model import Vista
    from rote.memory.vista.store import SummaryStore

LONGEST_FULL = 65_536  # events: beyond this, attention to the raw history is not measured


def latency_rows(
    model: Vista,
    full: RawTargetAttention | None,
    store: SummaryStore,
    *,
    histories: Sequence[int],
    candidates: int = 100,
    repeats: int = 200,
    seed: int = 0,
    longest_full: int = LONGEST_FULL,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """One row per length: seconds to summarise it, then milliseconds of a request from the store (look-up, dequantising
    and stage 2; median and 99th percentile) and of attention to the raw history (`full`; up to `longest_full` events).

    The users bench-LENGTH are left in the store. Errors: InputError for a length below 1 or no repeat.
    """
    if repeats < 1 or candidates < 1 or not histories or min(histories) < 1:
        raise InputError("a latency needs at least one history of one event, one candidate and one repeat")
    rng = np.random.default_rng(seed)
    shown = [int(n) for n in rng.integers(0, model.config.items, candidates)]
    rows: list[dict[str, Any]] = []
    work: list[Callable[[], object]] = []
    slow: list[Callable[[], object] | None] = []
    for number, length in enumerate(histories):
        item, action = rng.integers(0, model.config.items, length), rng.integers(0, model.config.actions, length)
        times = np.cumsum(rng.exponential(3600.0, length))
        began = time.perf_counter()
        summary = summarise_user(model, item, action, times)
        rows.append({"history": length, "summarise s": time.perf_counter() - began})
        store.put_many({f"bench-{length}": summary})
        work.append(lambda user=f"bench-{length}": score(model, store, user, shown))
        slow.append(None)
        if full is not None and length <= longest_full:
            seen = [torch.tensor(part)[None] for part in (item, action, times)]
            raw = Histories(seen[0], seen[1], seen[2], torch.ones(1, length, dtype=torch.bool))
            slow[-1] = lambda raw=raw: _full(full, raw, shown)
        if progress:
            progress("summarising", number + 1, len(histories))
    for row, cached in zip(rows, _interleaved(work, repeats, progress, "from the cache"), strict=True):
        row["cached p50 ms"], row["cached p99 ms"] = (float(np.percentile(cached, at)) * 1e3 for at in (50, 99))
    there = [one for one in slow if one is not None]
    found = iter(_interleaved(there, max(3, repeats // 40), progress, "raw history"))
    for row, one in zip(rows, slow, strict=True):
        row["full attention p50 ms"] = float(np.median(next(found))) * 1e3 if one is not None else None
    return rows


@torch.no_grad()
def _full(full: RawTargetAttention, histories: Histories, candidates: list[int]) -> object:
    return full.logits(histories, torch.tensor([candidates]))


def _interleaved(
    work: list[Callable[[], object]], repeats: int, progress: Callable[[str, int, int], None] | None, stage: str
) -> list[list[float]]:
    """Seconds of every piece of work, in rounds; one round goes before, unmeasured."""
    times: list[list[float]] = [[] for _ in work]
    for turn in range(-1, repeats):
        for one, kept in zip(work, times, strict=True):
            began = time.perf_counter()
            one()
            if turn >= 0:
                kept.append(time.perf_counter() - began)
        if progress:
            progress(stage, turn + 1, repeats)
    return times
