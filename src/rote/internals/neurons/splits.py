"""Splits and permutations that keep a passage whole.

Neighbouring tokens of one passage are nearly the same example: split at random, a probe remembers passages and looks
perfect. Here a passage is on one side, and labels are permuted between passages, never between their tokens.

Knows nothing about: activations, models.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from rote.errors import InputError
from rote.runtime import derive_seed


def group_folds(
    group: Int[np.ndarray, " tokens"], label: Bool[np.ndarray, " tokens"], *, folds: int = 5, seed: int = 0
) -> Int[np.ndarray, " tokens"]:
    """The fold of every token, 0 .. folds - 1; a group has one fold, groups with and without positives spread evenly.

    Raises InputError when there are fewer groups with positives, or with negatives, than folds.
    """
    names, number = np.unique(group, return_inverse=True)
    positive = np.zeros(len(names), bool)
    negative = np.zeros(len(names), bool)
    positive[number[label]] = True
    negative[number[~label]] = True
    if folds < 2 or positive.sum() < folds or negative.sum() < folds:
        raise InputError(
            f"{folds} folds need at least {max(folds, 2)} passages with positive and as many with negative tokens, got"
            f" {int(positive.sum())} and {int(negative.sum())}: give more passages, or fewer folds"
        )
    rng = np.random.default_rng(derive_seed(seed, "folds"))
    fold = np.empty(len(names), np.int64)
    offset = 0
    # Pure positive, mixed and pure negative groups are dealt out in turn: every fold gets its share of each.
    for stratum in (positive & ~negative, positive & negative, ~positive):
        members = rng.permutation(np.flatnonzero(stratum))
        fold[members] = (np.arange(len(members)) + offset) % folds
        offset += len(members)
    return fold[number]


def held_out(
    group: Int[np.ndarray, " tokens"], label: Bool[np.ndarray, " tokens"], *, share: float = 0.3, seed: int = 0
) -> Bool[np.ndarray, " tokens"]:
    """True at the tokens of about `share` of the groups, drawn evenly from those with and without positives."""
    if not 0 < share < 1:
        raise InputError(f"the held-out share must lie strictly between 0 and 1, not {share}")
    names, number = np.unique(group, return_inverse=True)
    positive = np.zeros(len(names), bool)
    positive[number[label]] = True
    rng = np.random.default_rng(derive_seed(seed, "held out"))
    test = np.zeros(len(names), bool)
    for stratum in (positive, ~positive):
        members = rng.permutation(np.flatnonzero(stratum))
        test[members[: max(1, round(share * len(members)))]] = len(members) > 1
    out = test[number]
    for side, name in ((out, "held-out"), (~out, "training")):
        if not label[side].any() or label[side].all():
            raise InputError(f"the {name} part has tokens of one kind only: give more passages")
    return out


def permuted_labels(
    group: Int[np.ndarray, " tokens"], label: Bool[np.ndarray, " tokens"], *, permutations: int, seed: int = 0
) -> Bool[np.ndarray, "permutations tokens"]:
    """Labels exchanged between whole passages.

    The unit is a passage's tokens of one label: where a passage has one label this is the permutation of passages; a
    passage with both counts as two units. The number of positive units stays, that of positive tokens varies.
    """
    unit, first = np.unique(2 * np.asarray(group, np.int64) + label, return_inverse=True)
    truth = (unit % 2).astype(bool)
    rng = np.random.default_rng(derive_seed(seed, "permutations"))
    return np.stack([rng.permutation(truth)[first] for _ in range(permutations)])
