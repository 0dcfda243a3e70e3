"""What an old summary costs: quality against the number of most recent events that it misses.

Knows nothing about: stores, logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rote.memory.vista.evaluation import auc, normalised_entropy

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from rote.memory.vista.embedding import Histories
    from rote.memory.vista.model import Vista


@torch.no_grad()
def click_logits(
    model: Vista,
    histories: Histories,
    candidates: Int[Tensor, "users t"],
    *,
    missing: int = 0,
    raw: bool = False,
    batch: int = 256,
) -> Float[Tensor, "users t"]:
    """Logits when each summary misses its last `missing` events; with `raw`, stage 2 also reads the last R events."""
    found = []
    for rows in torch.arange(len(histories)).split(batch):
        part = histories.rows(rows)
        length = part.mask.sum(1)
        summary = model.summarise(part.cut((length - missing).clamp(min=0)))
        beside = part.tail(length, model.config.raw_events) if raw else None
        found.append(model.logits(summary, candidates[rows], beside)[..., 0])
    return torch.cat(found)


def staleness_curve(
    model: Vista,
    histories: Histories,
    candidates: Int[Tensor, "users t"],
    labels: Float[Tensor, "users t"],
    *,
    missing: Sequence[int],
) -> list[dict[str, Any]]:
    """AUC and NE for every number of missing events: the summary alone, and with the last R raw events beside it."""
    rows = []
    for count in missing:
        row: dict[str, Any] = {"missing": count}
        for name, raw in (("summary", False), ("with raw events", True)):
            if raw and not model.config.raw_events:
                continue
            logit = click_logits(model, histories, candidates, missing=count, raw=raw).numpy()
            row |= {
                f"AUC, {name}": auc(logit, labels.numpy()),
                f"NE, {name}": normalised_entropy(logit, labels.numpy()),
            }
        rows.append(row)
    return rows
