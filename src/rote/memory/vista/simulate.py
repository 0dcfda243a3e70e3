"""`lifelong-interest`: users whose old interests matter as much as their recent ones.

Categories 0 .. C-1, a few items each. Every user has 3 old categories (30 % of the events, first half of the history
only, 80 % liked), 3 recent ones (the same in the second half), 3 disliked (10 % of the events, always skipped), and
background noise (10 % liked). Candidates: half from old and recent categories (label 1), half from disliked and
background ones (label 0). A model that sees only the tail cannot know the old interests.

Knows nothing about: models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rote.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SKIP, LIKE = 0, 1
ACTIONS = ("skip", "like")
EACH = 3  # categories of each kind a user has
SHARE, DISLIKED = 0.3, 0.1
LIKED_SHARE, NOISE_LIKED = 0.8, 0.1


@dataclass(frozen=True)
class LifelongInterest:
    """Events (users, length) and labelled candidates (users, candidates); item i is in category category_of[i]."""

    item: Int[np.ndarray, "users length"]
    action: Int[np.ndarray, "users length"]
    time: Float[np.ndarray, "users length"]
    candidate: Int[np.ndarray, "users candidates"]
    label: Float[np.ndarray, "users candidates"]
    category_of: Int[np.ndarray, " items"]


def lifelong_interest(
    users: int,
    *,
    length: int = 256,
    categories: int = 24,
    items_each: int = 20,
    candidates: int = 16,
    seed: int = 0,
) -> LifelongInterest:
    """Draw the histories and candidates of `users` users. Errors: InputError for fewer than 10 categories."""
    if categories < 3 * EACH + 1:
        raise InputError(
            f"{categories} categories are too few: old, recent, disliked and background need {3 * EACH + 1}"
        )
    rng = np.random.default_rng(seed)
    kinds = rng.permuted(np.tile(np.arange(categories), (users, 1)), axis=1)
    old, recent, disliked, background = np.split(kinds, [EACH, 2 * EACH, 3 * EACH], axis=1)
    draw = rng.random((users, length))
    first = np.arange(length) < length // 2
    interest = np.where(first[None], _pick(old, length, rng), _pick(recent, length, rng))
    category = np.select(
        [draw < SHARE, draw < SHARE + DISLIKED],
        [interest, _pick(disliked, length, rng)],
        _pick(background, length, rng),
    )
    like = np.select([draw < SHARE, draw < SHARE + DISLIKED], [LIKED_SHARE, 0.0], NOISE_LIKED)
    action = np.where(rng.random((users, length)) < like, LIKE, SKIP)
    label = np.tile(np.arange(candidates) % 2, (users, 1)).astype(float)
    good, bad = np.concatenate([old, recent], axis=1), np.concatenate([disliked, background], axis=1)
    candidate = np.where(label == 1, _pick(good, candidates, rng), _pick(bad, candidates, rng))
    item = lambda found: found * items_each + rng.integers(0, items_each, found.shape)  # noqa: E731
    return LifelongInterest(
        item=item(category), action=action, time=np.cumsum(rng.exponential(3600.0, (users, length)), axis=1),
        candidate=item(candidate), label=label, category_of=np.repeat(np.arange(categories), items_each),
    )  # fmt: skip


def _pick(
    kinds: Int[np.ndarray, "users kinds"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, "users count"]:
    return np.take_along_axis(kinds, rng.integers(0, kinds.shape[1], (len(kinds), count)), axis=1)
