"""The settings of a VISTA model, checked when made, JSON-able.

Knows nothing about: PyTorch, files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from rote.errors import InputError

ORDERS = ("none", "gap", "recency")


@dataclass(frozen=True)
class VistaConfig:
    """Sizes and switches.

    items, actions, categories: how many there are (categories 0: items have none).
    dim: width d. heads: of every attention. seeds: K vectors a summary has (the paper: 128 of width 256).
    stage1_layers, stage2_layers: L1 and L2 (3 and 3 in production, section 3).
    order: what an event tells of its place. "none": a set; "gap": the time since the event before it (a later event
    changes nothing, so a one-layer summary can be updated exactly); "recency": its rank from the end (better for
    next-item recommendation; every new event changes all, so summaries are made again).
    raw_events: R, the most recent raw events that stage 2 reads beside the summary.
    recon_weight, recon_layers, recon_window: weight of L_rec (1.0 in the paper's public runs), the decoder's layers,
    the longest stretch of history it tells.
    mlp: hidden widths of the head. tasks: logits a candidate gets.
    """

    items: int
    actions: int = 1
    categories: int = 0
    dim: int = 64
    heads: int = 4
    seeds: int = 128
    stage1_layers: int = 3
    stage2_layers: int = 3
    order: str = "recency"
    raw_events: int = 0
    recon_weight: float = 1.0
    recon_layers: int = 1
    recon_window: int = 64
    mlp: tuple[int, ...] = (64,)
    tasks: int = 1

    def __post_init__(self) -> None:
        lowest = {"items": 1, "actions": 1, "dim": 1, "heads": 1, "seeds": 1, "stage1_layers": 1, "stage2_layers": 1,
                  "recon_layers": 1, "recon_window": 2, "tasks": 1, "categories": 0, "raw_events": 0}  # fmt: skip
        for name, least in lowest.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if self.dim % self.heads:
            raise InputError(f"width {self.dim} is not a multiple of {self.heads} heads; change dim or heads")
        if self.order not in ORDERS:
            raise InputError(f"order {self.order!r} is not known; use one of {', '.join(ORDERS)}")
        if not 0 <= self.recon_weight < float("inf"):
            raise InputError(f"recon_weight is {self.recon_weight!r}; it must be 0 or more")
        object.__setattr__(self, "mlp", tuple(self.mlp))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"mlp": list(self.mlp)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> VistaConfig:
        """From a config.json. An unknown key is refused: it comes from another version."""
        unknown = set(content) - {item.name for item in fields(cls)}
        if unknown or "items" not in content:
            what = f"unknown settings {sorted(unknown)}" if unknown else "no number of items"
            raise InputError(f"the model's config has {what}; it was not written by this version of Rote")
        return cls(**content)
