"""Nearby sets and the efficient sample complexity S_D (section 7): how many balls cover the support.

L_(x,y) is a point's distance to the other class in the support, its ball has radius L / 3.1, and S_D is the smallest
number of such balls that cover the support. On a finite law that is a set cover, solved exactly as an integer program.

On a sample of an unknown law the result is an estimate, biased two ways: unseen support makes it too small, and a
greedy cover makes it too large.

Knows nothing about: networks. Source: Yu et al. 2024 (arXiv 2411.00372, section 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError, RoteError
from rote.theory.generalize.labelled import check_two_classes, opposite_distances

PAPER_CONSTANT = 3.1
CAVEAT = (
    "an estimate from a sample: support that was not seen makes it smaller than S_D, a greedy cover makes it larger, "
    "and the sample's distances between classes are at least the law's"
)


@dataclass(frozen=True, eq=False)
class NearbySet:
    """A cover. `indices`: its points; `lower`: a proved lower bound on the smallest cover of the given points;
    `optimal`: size == lower; `radii`: every point's ball; `caveat`: what it does not say about the law."""

    indices: Int[np.ndarray, " cover"]
    radii: Float[np.ndarray, " records"]
    lower: int
    caveat: str = CAVEAT

    @property
    def size(self) -> int:
        return len(self.indices)

    @property
    def optimal(self) -> bool:
        return self.size == self.lower


def nearby_set(
    X: Float[np.ndarray, "records features"],
    y: np.ndarray,
    *,
    constant: float = PAPER_CONSTANT,
    method: Literal["exact", "greedy"] = "exact",
    seconds: float = 60.0,
    most: int = 5000,
) -> NearbySet:
    """A smallest (`exact`: integer program, at most `seconds`) or small (`greedy`) set of points whose balls of radius
    L / constant cover all given points. When the points are the whole support, `size` is S_D if `optimal`.

    Greedy's lower bound is its size divided by H(largest ball), the classical guarantee. `constant` must exceed 3
    (below, no split makes theorem 7.3 work). Errors: InputError for more than `most` points: all pairs are
    compared.
    """
    if not constant > 3:
        raise InputError(f"the balls' constant must be above 3, not {constant}")
    if method not in ("exact", "greedy"):
        raise InputError(f"method must be 'exact' or 'greedy', not {method!r}")
    data = check_two_classes(X, y)
    if len(data.X) > most:
        raise InputError(f"{len(data.X)} points: all pairs are compared, so at most {most}; take a random part")
    radii = opposite_distances(data).nearest / constant
    covers = _balls(data.X, radii)
    indices, lower = _exact(covers, seconds) if method == "exact" else _greedy(covers)
    return NearbySet(indices, radii, lower)


def _balls(X: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """[v, x]: whether x lies in the closed ball of v, row by row from the differences."""
    covers = np.empty((len(X), len(X)), dtype=bool)
    for v, radius in enumerate(radii):
        covers[v] = np.linalg.norm(X - X[v], axis=1) <= radius
    return covers


def _greedy(covers: np.ndarray) -> tuple[np.ndarray, int]:
    """Always the ball with most uncovered points (the first such): at most H(largest ball) times the optimum."""
    open_, chosen = np.ones(len(covers), dtype=bool), []
    gain = covers.sum(axis=1)
    harmonic = sum(1 / k for k in range(1, int(gain.max()) + 1))
    while open_.any():
        best = int(gain.argmax())
        newly = covers[best] & open_
        chosen.append(best)
        open_ &= ~newly
        gain = gain - covers[:, newly].sum(axis=1)
    return np.array(chosen), ceil(len(chosen) / harmonic - 1e-9)


def _exact(covers: np.ndarray, seconds: float) -> tuple[np.ndarray, int]:
    """Set cover as an integer program (HiGHS): minimise sum z, every point covered, z in {0, 1}."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    count = len(covers)
    solved = milp(
        np.ones(count),
        constraints=LinearConstraint(csr_array(covers.T.astype(float)), lb=1.0),
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        options={"time_limit": seconds},
    )
    if solved.x is None:
        raise RoteError(f"the set cover of {count} points found no solution in {seconds} s; use method='greedy'")
    chosen = np.flatnonzero(solved.x > 0.5)
    if not covers[chosen].any(axis=0).all():
        raise RoteError("the solver's cover leaves a point uncovered; use method='greedy'")
    bound = solved.mip_dual_bound
    lower = len(chosen) if solved.status == 0 else max(1, ceil(float(bound) - 1e-6)) if bound is not None else 1
    return chosen, lower


def samples_for(cover: NearbySet, *, eps: float, delta: float) -> int:
    """Theorem 7.3's N for S = the cover's size; exact for a finite law with an optimal cover, else an estimate."""
    from rote.theory.generalize.sample_size import efficient_sample_size

    return efficient_sample_size(S=cover.size, eps=eps, delta=delta)
