"""Names and numbers: items, actions and categories a model knows, in the order of its tables.

Knows nothing about: logs, models, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rote.errors import InputError


@dataclass(frozen=True)
class Vocabulary:
    """items[i] is the name of item i, in category category_of[i] of `categories` (empty where the log has none)."""

    items: tuple[str, ...]
    actions: tuple[str, ...] = ("event",)
    categories: tuple[str, ...] = ()
    category_of: tuple[int, ...] = ()

    @cached_property
    def item_number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.items)}

    @cached_property
    def action_number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.actions)}

    def numbers(self, items: Sequence[str]) -> list[int]:
        """Item numbers. Raises InputError that names an unknown item and the nearest known one."""
        unknown = [name for name in items if name not in self.item_number]
        if unknown:
            raise InputError(f"{describe_unknown('item', unknown[0], self.items)} ({len(unknown)} unknown in all)")
        return [self.item_number[name] for name in items]

    def to_dict(self) -> dict[str, Any]:
        return {"items": list(self.items), "actions": list(self.actions), "categories": list(self.categories),
                "category_of": list(self.category_of)}  # fmt: skip

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Vocabulary:
        try:
            found = cls(*(tuple(content[name]) for name in ("items", "actions", "categories", "category_of")))
        except (KeyError, TypeError):
            raise InputError("the model's vocabulary.json lacks its lists; save the model again") from None
        names = (*found.items, *found.actions, *found.categories)
        numbers_fit = all(isinstance(n, int) and 0 <= n < len(found.categories) for n in found.category_of)
        if not all(isinstance(name, str) for name in names) or not numbers_fit:
            raise InputError("the model's vocabulary.json is damaged; save the model again")
        return found


def describe_unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """`item 'x' is not among the 40 the model knows; did you mean 'y'?`"""
    from difflib import get_close_matches

    near = get_close_matches(name, known[:20_000], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{kind} {name[:60]!r} is not among the {len(known)} the model knows{hint}"
