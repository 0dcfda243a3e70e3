"""Patients stay on one side: every split and every check here is by group, never by segment.

Neighbours from the same patient inflate every figure of a case-based model, so groups are mandatory.

Knows nothing about: signals, models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from rote.errors import InputError


def check_groups(groups, n: int, *, where: str = "fit") -> np.ndarray:
    """Groups (patients) as strings, one a segment. Raises InputError when they are missing, too few, or empty."""
    if groups is None:
        raise InputError(
            f"{where}: groups are missing; give the patient of every segment (groups=...), because a patient on both"
            " sides of a split, or among its own neighbours, inflates every figure"
        )
    names = np.asarray(groups)
    if names.ndim != 1 or len(names) != n:
        raise InputError(f"{where}: {n} segments but groups of shape {names.shape}; give one patient a segment")
    if names.dtype.kind == "f" and np.isnan(names).any():
        raise InputError(f"{where}: group {int(np.argmax(np.isnan(names)))} is NaN; every segment needs its patient")
    names = names.astype(str)
    empty = np.isin(np.char.strip(names), ["", "nan", "None"])
    if empty.any():
        raise InputError(
            f"{where}: the group of segment {int(np.argmax(empty))} is empty; every segment needs its patient"
        )
    return names


def check_votes(votes, n: int, raters: int, *, where: str = "fit") -> Int[np.ndarray, " n"]:
    """Votes as integers 0 .. raters. Raises InputError for fractions, NaN or values outside."""
    if votes is None:
        raise InputError(f"{where}: votes are missing; give how many of the {raters} raters marked each segment")
    if raters < 1:
        raise InputError(f"raters is {raters}: it must be 1 or more (1 for yes-or-no labels)")
    values = np.asarray(votes)
    if values.shape != (n,):
        raise InputError(f"{where}: {n} segments but votes of shape {values.shape}; give one number a segment")
    numbers = values.astype(np.float64)
    bad = ~np.isfinite(numbers) | (numbers < 0) | (numbers > raters) | (numbers != np.round(numbers))
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"{where}: votes[{first}] is {values[first]}; votes are whole numbers from 0 to raters = {raters} (give"
            " raters=... if another number voted)"
        )
    return numbers.astype(np.int64)


def check_two_classes(positive: Bool[np.ndarray, " n"], *, where: str) -> None:
    """Refuse data of one class only: nothing can be learned from, or measured on, them."""
    if positive.all() or not positive.any():
        kind = "at or above" if positive.all() else "below"
        raise InputError(
            f"{where}: all {len(positive)} segments are of one class (votes {kind} half of the raters); both are needed"
        )


def check_patient_disjoint(train: Sequence[str] | np.ndarray, test: Sequence[str] | np.ndarray, *, where: str) -> None:
    """Raises InputError when a patient is on both sides."""
    both = sorted(set(map(str, train)) & set(map(str, test)))
    if both:
        raise InputError(
            f"{where}: {len(both)} patients are in the case base too (first: {both[0]}); a figure on them would be"
            " inflated. Leave them out on one side"
        )


def held_out_patients(
    groups: np.ndarray, positive: Bool[np.ndarray, " n"], *, share: float, seed: int = 0, where: str = "split"
) -> Bool[np.ndarray, " n"]:
    """True at the segments of about `share` of the patients, drawn evenly from those with and without a positive.

    Raises InputError when either side would hold one class only.
    """
    if not 0 < share < 1:
        raise InputError(f"{where}: the held-out share must lie strictly between 0 and 1, not {share}")
    names, number = np.unique(groups, return_inverse=True)
    has = np.zeros(len(names), bool)
    has[number[positive]] = True
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(names), bool)
    for stratum in (has, ~has):
        members = rng.permutation(np.flatnonzero(stratum))
        chosen[members[: max(1, round(share * len(members)))]] = len(members) > 1
    held = chosen[number]
    for rows, name in ((held, "held-out"), (~held, "remaining")):
        if not positive[rows].any() or positive[rows].all():
            raise InputError(
                f"{where}: the {name} patients have segments of one class only ({len(names)} patients in all); give"
                " more patients"
            )
    return held


def patient_folds(
    groups: np.ndarray, positive: Bool[np.ndarray, " n"], *, folds: int = 5, seed: int = 0
) -> Int[np.ndarray, " n"]:
    """The fold of every segment; a patient has one fold, patients with and without positives are dealt out evenly.

    Raises InputError when a fold would hold one class only.
    """
    names, number = np.unique(groups, return_inverse=True)
    if folds < 2 or folds > len(names):
        raise InputError(f"{folds} folds of {len(names)} patients: give 2 folds or more, and a patient for each")
    has = np.zeros(len(names), bool)
    has[number[positive]] = True
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(np.flatnonzero(has)), rng.permutation(np.flatnonzero(~has))])
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % folds
    for each in range(folds):
        inside = positive[fold[number] == each]
        if inside.all() or not inside.any():
            raise InputError(f"fold {each} of {folds} has segments of one class only; use fewer folds or more patients")
    return fold[number]
