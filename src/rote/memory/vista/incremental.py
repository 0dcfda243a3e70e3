"""Add events to a summary without reading the history again.

    Z_l <- Z_l + sum over new events phi1(k) v^T,   then the seeds read the new states

Exact for one layer (O(d^2) an event) as long as an event's embedding does not depend on later events (order "none" or
"gap"). With more layers every old event's deeper rows would change too and are left as they were: the result drifts
from a summary made anew, by as much as `drift` measures; summarise again when that is too much. The seeds' own share of
every state is taken out and put in anew, so it never drifts.

Source: additivity, Chen et al. 2025, arXiv 2510.22049, section 3; the treatment of deeper layers is this package's.
Knows nothing about: stores, logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rote.errors import InputError
from rote.memory.vista.value_layout import Summary, raw_events

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from rote.memory.vista.model import Vista


def is_exact(model: Vista) -> bool:
    """Whether an update equals a summary made anew (up to rounding)."""
    return model.config.stage1_layers == 1 and model.config.order != "recency"


@torch.no_grad()
def update(
    model: Vista,
    summary: Summary,
    item: Int[np.ndarray, " m"],
    action: Int[np.ndarray, " m"],
    time: Float[np.ndarray, " m"],
) -> Summary:
    """The summary after m more events, which must not be earlier than what it holds.

    Errors: InputError for another model's summary, one that was stored without states, or events out of order.
    """
    if summary.version != model.version:
        raise InputError(f"a summary of model version {summary.version} cannot be updated by {model.version}")
    if summary.states is None:
        raise InputError("this summary was stored without its states; summarise with states kept, or from the start")
    time = np.asarray(time, dtype=float)
    if len(time) and (np.diff(time) < 0).any():
        raise InputError("the new events are not in order of time; sort them first")
    if len(time) and summary.events and time[0] < summary.last_time:
        raise InputError(
            f"an event at {time[0]:.0f} is before the summary's last one at {summary.last_time:.0f}: events that arrive"
            " late need a summary made anew"
        )
    if not len(time):
        return summary
    device, stage1 = model.device, model.stage1
    before = torch.tensor([summary.events + model.config.seeds], dtype=torch.float32, device=device)
    after = before + len(time)
    first = summary.last_time if summary.events else time[0]
    gap = torch.as_tensor(np.diff(time, prepend=first), device=device)
    rank = torch.arange(len(time) - 1, -1, -1, device=device)
    new = model.embedding.block(
        torch.as_tensor(item, device=device).long(), torch.as_tensor(action, device=device).long(), gap, rank
    )[None]
    old_seeds = new_seeds = stage1.seeds[None]
    states = []
    for layer, held in zip(stage1.layers, torch.as_tensor(np.array(summary.states), device=device), strict=True):
        state = held[None] + layer.state(new) + layer.state(new_seeds) - layer.state(old_seeds)
        old_seeds = layer.read(old_seeds, held[None], before)
        new_seeds, new = layer.read(new_seeds, state, after), layer.read(new, state, after)
        states.append(state[0])
    kept = model.config.raw_events
    fresh = raw_events(np.asarray(item), np.asarray(action), time)
    return Summary(
        vectors=stage1.summary(new_seeds)[0].cpu().numpy(), version=summary.version, events=summary.events + len(time),
        last_time=float(time[-1]), raw=np.concatenate([summary.raw, fresh])[-kept:] if kept else summary.raw[:0],
        states=torch.stack(states).cpu().numpy(),
    )  # fmt: skip


def drift(updated: Float[np.ndarray, "k d"], anew: Float[np.ndarray, "k d"]) -> float:
    """|updated - anew| / |anew| in the Frobenius norm: 0 is exact."""
    return float(np.linalg.norm(updated - anew) / np.linalg.norm(anew))
