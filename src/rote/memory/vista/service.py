"""Summaries in and scores out: histories are summarised into a store, requests are answered from it.

`score` and `recommend` never touch a history. Their cost is a look-up, K dequantised vectors and stage 2, whatever the
history's length.

Knows nothing about: training, terminals.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rote.errors import InputError
from rote.memory.vista.embedding import Histories
from rote.memory.vista.incremental import update
from rote.memory.vista.summariser import BLOCK
from rote.memory.vista.value_layout import Summary, no_raw, raw_events

if TYPE_CHECKING:
    from jaxtyping import Float

    from rote.memory.vista.interactions import InteractionLog
    from rote.memory.vista.model import Vista
    from rote.memory.vista.store import SummaryStore

BATCH_EVENTS = 65_536  # events in one padded batch of histories
SHORT = 4096  # longer histories are read alone, in blocks
COMMIT = 1024  # summaries in one transaction


def summarise_user(
    model: Vista,
    item: np.ndarray,
    action: np.ndarray,
    time: np.ndarray,
    *,
    keep_states: bool = False,
    block: int = BLOCK,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """One history of any length, in bounded memory."""
    device = model.device
    parts = (torch.as_tensor(np.ascontiguousarray(part), device=device) for part in (item, action, time))
    vectors, states = model.summarise_long(*parts, block=block, progress=progress)
    held = torch.stack(states).cpu().numpy() if keep_states else None
    return _summary(model, vectors.cpu().numpy(), held, item, action, time, version=model.version)


def _summary(
    model: Vista, vectors: np.ndarray, states: np.ndarray | None, item: Any, action: Any, time: Any, *, version: str
) -> Summary:
    last = slice(max(0, len(item) - model.config.raw_events), len(item))
    raw = raw_events(item[last], action[last], time[last]) if model.config.raw_events else no_raw()
    return Summary(vectors, version, len(item), float(time[-1]) if len(time) else float("nan"), raw, states)


@dataclass(frozen=True)
class Summarised:
    """What `summarise_log` did: users summarised anew, updated, left alone (nothing new), and events read."""

    users: int
    updated: int
    unchanged: int
    events: int
    seconds: float


def summarise_log(
    model: Vista,
    log: InteractionLog,
    store: SummaryStore,
    *,
    until: float | None = None,
    incremental: bool = False,
    keep_states: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Summarised:
    """Summarise everybody in a log into the store, in committed batches.

    until: leave out events after this time (a summary must not hold what it will be asked about).
    incremental: where the store already has a user's summary with states, add only the log's later events to it; a log
    with events that arrived late is read anew.
    A run that is interrupted keeps its finished batches; running it again makes the rest.
    Errors: InputError when the store is another version's, or a log holds numbers the model does not know.
    """
    if store.version != model.version:
        raise InputError(f"the store is open for model version {store.version}, this model is {model.version}")
    if log.events and (log.item.max() >= model.config.items or log.action.max() >= model.config.actions):
        raise InputError("the log was read with another vocabulary; read it with this model's")
    began, counts, events = clock.perf_counter(), {"users": 0, "updated": 0, "unchanged": 0}, 0
    ready: dict[str, Summary] = {}
    waiting: list[tuple[str, slice]] = []
    version, done = model.version, 0

    def keep(user: str, summary: Summary) -> None:
        ready[user] = summary
        if len(ready) >= COMMIT:
            store.put_many(ready)
            ready.clear()

    def tick(read: int, users: int = 1) -> None:
        nonlocal done, events
        done, events = done + users, events + read
        if progress:
            progress("summaries", done, len(log))

    order = np.argsort(log.lengths, kind="stable")  # histories of like length share a batch
    for number in order:
        user, rows = log.users[number], _until(log, log.rows(int(number)), until)
        fresh = _fresh(log, user, rows, store.get(user)) if incremental else None
        if fresh is not None:
            held, later = fresh
            if later.start == later.stop:
                counts["unchanged"] += 1
            else:
                keep(user, update(model, held, log.item[later], log.action[later], log.time[later]))
                counts["updated"] += 1
            tick(later.stop - later.start)
            continue
        counts["users"] += 1
        if rows.stop - rows.start > SHORT:
            parts = (log.item[rows], log.action[rows], log.time[rows])
            keep(user, summarise_user(model, *parts, keep_states=keep_states or incremental))
            tick(rows.stop - rows.start)
            continue
        waiting.append((user, rows))
        if sum(r.stop - r.start for _, r in waiting) >= BATCH_EVENTS or len(waiting) >= COMMIT:
            for name, summary in _batch(model, log, waiting, version, keep_states or incremental):
                keep(name, summary)
            tick(sum(r.stop - r.start for _, r in waiting), len(waiting))
            waiting.clear()
    if waiting:
        for name, summary in _batch(model, log, waiting, version, keep_states or incremental):
            keep(name, summary)
        tick(sum(r.stop - r.start for _, r in waiting), len(waiting))
    if ready:
        store.put_many(ready)
    return Summarised(**counts, events=events, seconds=clock.perf_counter() - began)


def _fresh(log: InteractionLog, user: str, rows: slice, held: Summary | None) -> tuple[Summary, slice] | None:
    """(summary, rows to add to it), or None when the log has the user's whole history and is to be read anew.

    The log is either a whole history, whose first events are those the summary counted, or only what came later.
    """
    if held is None or not held.events:
        return None
    known = int(np.searchsorted(log.time[rows], held.last_time, side="right"))
    if held.states is not None and known in (0, held.events):
        return held, slice(rows.start + known, rows.stop)
    if known >= held.events:
        return None  # the whole history, with late events in it or with states never kept
    raise InputError(
        f"user {user[:60]!r}: the log has {known} events up to the last one of the summary, which was made from"
        f" {held.events}" + ("" if held.states is not None else " and kept no states") + "; give the whole history, or"
        " only later events to a store made with --keep-states"
    )


def _until(log: InteractionLog, rows: slice, until: float | None) -> slice:
    if until is None:
        return rows
    return slice(rows.start, rows.start + int(np.searchsorted(log.time[rows], until, side="right")))


@torch.no_grad()
def _batch(
    model: Vista, log: InteractionLog, users: list[tuple[str, slice]], version: str, keep_states: bool
) -> Iterator[tuple[str, Summary]]:
    histories = histories_of(model, log, [rows for _, rows in users])
    vectors, states = model.stage1(model.embedding(histories), histories.mask)
    whole = torch.stack(states, dim=1).cpu().numpy() if keep_states else None
    for at, ((user, rows), z) in enumerate(zip(users, vectors.cpu().numpy(), strict=True)):
        parts = (log.item[rows], log.action[rows], log.time[rows])
        yield user, _summary(model, z, None if whole is None else whole[at], *parts, version=version)


def histories_of(model: Vista, log: InteractionLog, rows: Sequence[slice]) -> Histories:
    """Some users' events as one padded batch on the model's device."""
    return model.histories(*([part[r] for r in rows] for part in (log.item, log.action, log.time)))


def score(
    model: Vista,
    store: SummaryStore,
    user: str,
    candidates: Sequence[str] | Sequence[int],
    *,
    recent: np.ndarray | None = None,
    new_users: bool = False,
) -> Float[np.ndarray, " candidates"]:
    """Logit of each candidate (item names or numbers) for a user, from the store alone.

    recent: raw events (`raw_events`) from after the summary was made; the model reads the last R of them and of those
    kept beside the summary. new_users: score a user without a summary as one without a history.
    A candidate's score does not depend on the other candidates. Errors: InputError for an unknown item or user.
    """
    found = store.get(user) if new_users else store.require(user)
    if found is None:
        empty = np.empty(0)
        found = summarise_user(model, empty.astype(int), empty.astype(int), empty)
    numbers = model_numbers(model, candidates)
    device = model.device
    vectors = torch.tensor(np.ascontiguousarray(found.vectors), device=device)
    raw = found.raw if recent is None else np.concatenate([found.raw, recent])
    raw = raw[-model.config.raw_events :] if model.config.raw_events else raw[:0]
    beside = None
    if len(raw):
        beside = model.histories([raw["item"].tolist()], [raw["action"].tolist()], [raw["time"].tolist()])
    return model.score(vectors, torch.tensor(numbers, device=device), beside)[:, 0].cpu().numpy()


def model_numbers(model: Vista, candidates: Sequence[str] | Sequence[int]) -> list[int]:
    """Item numbers of names or numbers; InputError for one the model does not know."""
    names = [name for name in candidates if isinstance(name, str)]
    if names:
        if model.vocabulary is None:
            raise InputError("this model was made without item names; give item numbers")
        return model.vocabulary.numbers(names)
    numbers = [int(number) for number in candidates]
    if numbers and not (min(numbers) >= 0 and max(numbers) < model.config.items):
        raise InputError(f"item number {max(numbers)} is outside the model's 0 .. {model.config.items - 1}")
    return numbers


def recommend(
    model: Vista, store: SummaryStore, user: str, *, k: int = 10, seen: Sequence[str] = (), new_users: bool = False
) -> list[tuple[str, float]]:
    """The k best items (name, logit) for a user among all the model knows, but for those `seen`."""
    if model.vocabulary is None:
        raise InputError("this model was made without item names; use score with item numbers")
    if k < 1:
        raise InputError(f"{k} recommendations were asked for; ask for at least one")
    logits = score(model, store, user, range(model.config.items), new_users=new_users)
    if seen:
        logits[model.vocabulary.numbers(list(seen))] = -np.inf
    best = np.argsort(-logits, kind="stable")[:k]
    return [(model.vocabulary.items[i], float(logits[i])) for i in best if np.isfinite(logits[i])]
