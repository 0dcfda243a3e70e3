"""The constant-size core (theorem 4.3): a c0/3-net of the sample, whose size the support limits, not the sample.

Memorize the net with radius c0/3 and everything is memorized, because a record within c0/3 of a net point has its
label. The inner network is the Voronoi memorizer of the net: its balls have radius 0.49 c0 > c0/3, so O(|D_s|^2 n)
parameters whatever N is (the paper takes a robust memorizer with O(Q n) instead).

Knows nothing about: files. Source: Yu et al. 2024 (arXiv 2411.00372, theorem 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.theory.generalize.labelled import check_two_classes, opposite_distances
from rote.theory.generalize.packing import log_core_bound, log_core_bound_as_printed
from rote.theory.generalize.voronoi import VoronoiMemorizer


@dataclass(frozen=True, eq=False)
class ConstantSizeCore:
    """The net D_s. `indices`: its rows; `c0`: smallest distance between classes in the sample (at least the law's c);
    `radius` = c0/3; `log_Q`: ln of the bound Q as the paper prints it; `log_bound`: ln of the proved packing bound."""

    indices: Int[np.ndarray, " core"]
    points: Float[np.ndarray, "core features"]
    labels: np.ndarray
    c0: float
    radius: float
    log_Q: float
    log_bound: float

    @property
    def Q(self) -> float:
        """(1 + 2 c0/3)^n / (C_n (c0/3)^n); infinite when it is no float."""
        return exp(self.log_Q) if self.log_Q < 700 else float("inf")

    def network(self, *, split: float = 0.49) -> VoronoiMemorizer:
        """A network that memorizes the whole sample and is made of the net alone. Its certified balls must reach c0/3:
        InputError for split <= 1/3."""
        if split <= 1 / 3:
            raise InputError(f"the core's balls need a split above 1/3 to reach c0/3, not {split}")
        return VoronoiMemorizer(split=split).fit(self.points, self.labels)


def constant_size_core(X: Float[np.ndarray, "records features"], y: np.ndarray) -> ConstantSizeCore:
    """The greedy maximal c0/3-net, in the records' order: points pairwise more than c0/3 apart, every record within
    c0/3 of one.

    Errors: InputError for points outside [0,1]^n (where the size bound holds), one class, contradictions. Time:
    |D_s| passes over the records.
    """
    data = check_two_classes(X, y, unit_cube=True)
    c0 = opposite_distances(data).smallest
    radius = c0 / 3
    chosen, covered = [], np.zeros(len(data.X), dtype=bool)
    for row in range(len(data.X)):
        if not covered[row]:
            chosen.append(row)
            later = np.flatnonzero(~covered[row:]) + row
            covered[later] = np.square(data.X[later] - data.X[row]).sum(axis=1) <= radius**2
    n = data.X.shape[1]
    indices = np.array(chosen)
    return ConstantSizeCore(
        indices=indices,
        points=data.X[indices],
        labels=np.asarray(y)[indices],
        c0=c0,
        radius=radius,
        log_Q=log_core_bound_as_printed(n=n, c=c0),
        log_bound=log_core_bound(n=n, c=c0),
    )
