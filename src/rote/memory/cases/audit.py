"""What the memory says about itself: how good it is on patients it does not contain, which labels look wrong, which
cases are there twice.

    loo(p)      = mean vote of the k cases most similar to case p among other patients' cases
    conflict(p) = |votes_p / raters - loo(p)|                        (0 agrees, 1 contradicts)

Leave-one-patient-out is exact for the memory; the networks have seen every case, so its AUROC is optimistic for new
patients (`ProtoKNN.evaluate` is the honest one). Figures carry intervals over patients.

Knows nothing about: files, drawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rote.memory.cases.case_base import CaseBase
from rote.memory.cases.estimator import ProtoKNN
from rote.memory.cases.evaluation import Evaluation, evaluate_votes
from rote.memory.cases.search import BLOCK, search_exact, similarity_matrix

DUPLICATE = 0.999  # both similarities at least this: the same EEG, or a copy of it


@dataclass(frozen=True)
class Conflict:
    """A case whose vote its neighbours from other patients contradict. neighbours: ids, nearest first."""

    id: str
    group: str
    fraction: float
    loo: float
    conflict: float
    neighbours: tuple[str, ...]


@dataclass(frozen=True)
class Duplicate:
    """Two cases that are the same EEG. identical: sample for sample; across: of two patients, hence a leak."""

    first: str
    second: str
    similarity: float
    identical: bool
    across: bool


@dataclass(frozen=True)
class CaseAudit:
    """loo: leave-one-patient-out vote of every case, in the order of the case base; conflicts: worst first."""

    evaluation: Evaluation
    loo: np.ndarray
    conflicts: tuple[Conflict, ...]
    duplicates: tuple[Duplicate, ...]
    cases: int
    patients: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "patients": self.patients,
            "leave_one_patient_out": self.evaluation.to_dict(),
            "note": "the networks saw these patients: optimistic for new ones",
            "conflicts": [vars(one) | {"neighbours": list(one.neighbours)} for one in self.conflicts],
            "duplicates": [vars(one) for one in self.duplicates],
        }


def leave_one_patient_out(estimator: ProtoKNN) -> tuple[np.ndarray, np.ndarray]:
    """(vote fraction of each case from other patients' cases, its neighbours' rows (n, k))."""
    base = estimator.cases_
    excluded = base.excluded_for(base.signals, base.groups)
    found = search_exact(base.codes, base.weights, base.codes, estimator.importance_, estimator.k, excluded=excluded)
    return base.fraction[found.index].mean(1), found.index


def audit_cases(
    estimator: ProtoKNN, *, top: int = 50, threshold: float = DUPLICATE, resamples: int = 2000, seed: int = 0
) -> CaseAudit:
    """Leave-one-patient-out figures, the `top` label conflicts, and duplicate cases (all of them).

    Raises InputError when a case has fewer than k cases of other patients, or the base holds one class only.
    """
    base = estimator.cases_
    loo, index = leave_one_patient_out(estimator)
    gap = np.abs(base.fraction - loo)
    order = np.argsort(-gap, kind="stable")[:top]
    conflicts = tuple(
        Conflict(str(base.ids[at]), str(base.groups[at]), float(base.fraction[at]), float(loo[at]), float(gap[at]),
                 tuple(map(str, base.ids[index[at]])))
        for at in order
    )  # fmt: skip
    evaluation = evaluate_votes(loo, base.fraction, base.groups, resamples=resamples, seed=seed)
    duplicates = tuple(duplicate_cases(base, estimator.importance_, threshold=threshold))
    return CaseAudit(evaluation, loo, conflicts, duplicates, len(base), len(np.unique(base.groups)))


def duplicate_cases(base: CaseBase, importance: tuple[float, ...], *, threshold: float = DUPLICATE) -> list[Duplicate]:
    """Pairs that are equal sample for sample, or similar at least `threshold` in both directions."""
    import torch

    from rote.memory.cases.similarity import similarity

    found: dict[tuple[int, int], Duplicate] = {}
    step = max(1, BLOCK // max(1, len(base)))
    for at in range(0, len(base), step):
        rows = slice(at, at + step)
        scores = similarity_matrix(base.codes.take(rows), base.weights[rows], base.codes, importance).numpy()
        for row, column in np.argwhere(scores >= threshold):
            first, second = sorted((int(at + row), int(column)))
            if first == second or (first, second) in found:
                continue
            pair = base.codes.take(torch.tensor([first, second]))
            both = similarity(pair, base.weights[torch.tensor([first, second])], pair, importance).numpy()
            low = float(min(both[0, 1], both[1, 0]))
            same = base.digests[first] == base.digests[second]
            if low >= threshold or same:
                found[first, second] = Duplicate(
                    str(base.ids[first]), str(base.ids[second]), low, same, base.groups[first] != base.groups[second]
                )
    return [found[pair] for pair in sorted(found)]
