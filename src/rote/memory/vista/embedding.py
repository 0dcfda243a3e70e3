"""Events and candidates as vectors: item, action, category, and where in the history an event stands.

    u_i = item + action + category + order bucket;      c = item + category  (no action: it is what is asked for)

Knows nothing about: names of items, attention, users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from rote.memory.vista.config import VistaConfig

RECENCY_BUCKETS = 56  # the last 8 ranks apart, then two buckets an octave: enough for 10^8 events
GAP_BUCKETS = 32  # powers of two of a second: 2^31 s are 68 years


@dataclass(frozen=True)
class Histories:
    """Histories of B users, padded behind: item and action numbers, timestamps in seconds, which rows are events."""

    item: Int[Tensor, "b m"]
    action: Int[Tensor, "b m"]
    time: Float[Tensor, "b m"]
    mask: Bool[Tensor, "b m"]

    def __len__(self) -> int:
        return len(self.item)

    def rows(self, users: Int[Tensor, " n"] | slice) -> Histories:
        return Histories(self.item[users], self.action[users], self.time[users], self.mask[users])

    def cut(self, length: Int[Tensor, " b"]) -> Histories:
        """Only each user's first `length` events (a summary made before the rest happened)."""
        place = torch.arange(self.item.shape[1], device=self.item.device)
        return replace(self, mask=self.mask & (place[None] < length[:, None]))

    def tail(self, length: Int[Tensor, " b"], events: int) -> Histories:
        """The `events` events before position `length`, padded behind."""
        place = (length[:, None] - events).clamp(min=0) + torch.arange(events, device=self.item.device)[None]
        kept = place < length[:, None]
        place = place.clamp(max=self.item.shape[1] - 1)
        return Histories(
            self.item.gather(1, place), self.action.gather(1, place), self.time.gather(1, place),
            kept & self.mask.gather(1, place),
        )  # fmt: skip


def recency_bucket(rank: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """0 .. 7 for the last eight events (rank 0 = the last), then 8 + floor(2 log2(rank / 8))."""
    far = 8 + (2 * torch.log2(rank.clamp(min=8).double() / 8)).floor().long()
    return torch.where(rank < 8, rank, far).clamp(max=RECENCY_BUCKETS - 1)


def gap_bucket(seconds: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """floor(log2(1 + gap)) of the seconds since the event before."""
    return torch.log2(1 + seconds.clamp(min=0).double()).floor().long().clamp(max=GAP_BUCKETS - 1)


class EventEmbedding(nn.Module):
    """The tables. An item's own vector starts small beside its category's: what is common is learned first."""

    category_of: Tensor

    def __init__(self, config: VistaConfig, category_of: Int[Tensor, " items"] | None = None):
        super().__init__()
        dim, self.order = config.dim, config.order
        common = dim**-0.5
        self.item = _table(config.items, dim, common * (0.3 if config.categories else 1.0))
        self.action = _table(config.actions, dim, common)
        self.category = _table(config.categories, dim, common) if config.categories else None
        buckets = {"none": 0, "gap": GAP_BUCKETS, "recency": RECENCY_BUCKETS}[config.order]
        self.place = _table(buckets, dim, common) if buckets else None
        if category_of is None:
            category_of = torch.zeros(config.items, dtype=torch.long)
        self.register_buffer("category_of", category_of.long())

    def candidates(self, item: Int[Tensor, "*n"]) -> Float[Tensor, "*n dim"]:
        found = self.item(item)
        return found if self.category is None else found + self.category(self.category_of[item])

    def content(self, item: Int[Tensor, "*n"], action: Int[Tensor, "*n"]) -> Float[Tensor, "*n dim"]:
        """An event without its place: what reconstruction tells."""
        return self.candidates(item) + self.action(action)

    def forward(self, histories: Histories) -> Float[Tensor, "b m dim"]:
        """u_1 .. u_M of every user."""
        found = self.content(histories.item, histories.action)
        if self.place is None:
            return found
        if self.order == "gap":
            gap = histories.time - torch.cat([histories.time[:, :1], histories.time[:, :-1]], dim=1)
            return found + self.place(gap_bucket(gap))
        place = torch.arange(histories.item.shape[1], device=found.device)
        rank = histories.mask.sum(1, keepdim=True) - 1 - place[None]
        return found + self.place(recency_bucket(rank.clamp(min=0)))

    def block(
        self, item: Int[Tensor, " m"], action: Int[Tensor, " m"], gap: Float[Tensor, " m"], rank: Int[Tensor, " m"]
    ) -> Float[Tensor, "m dim"]:
        """A stretch of one user's history, whose place in the whole is given: for histories read in blocks."""
        found = self.content(item, action)
        if self.place is None:
            return found
        return found + self.place(gap_bucket(gap) if self.order == "gap" else recency_bucket(rank))


def _table(rows: int, dim: int, size: float) -> nn.Embedding:
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=size)
    return table
