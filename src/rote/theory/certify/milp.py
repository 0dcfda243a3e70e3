"""Mixed-integer certification: is a linear function of the outputs positive on a ball? (HiGHS through scipy.)

minimise c.f(x) over the box [x_i - mu, x_i + mu], one binary per unit whose sign is open, big-M from interval bounds
(Tjeng, Xiao, Tedrake 2019). The 1-norm ball is a polytope; around the 2-norm ball a tower of Ben-Tal and Nemirovski's
polyhedral cones (2001) is put, a relative 0.12 % too large in 16 dimensions. When the minimiser still lies outside the
ball, a half-space that touches the ball and cuts it off is added, and the problem is solved again.

Float64 and a solver's tolerance: answers are not exact, and networks with steep parts (big-M above 1e6) are refused.
Deliberately does not decide verdicts: it returns a lower bound and a point.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from rote.theory.exact_network import ExactLayer, ExactNetwork, Number

LARGEST_M = 1e6
CUTS = 20
BEYOND = 1 + 1e-9  # the unit ball, and a little: bounds must hold for all of it
REACHED = 1e-5  # a minimiser this close to the ball is in it, as far as the solver can tell
TOWER_DIMENSIONS = 64
CONE_LEVELS = 6


@dataclass(frozen=True)
class Minimum:
    """`lower`: a proved lower bound (up to the solver's tolerance) of the minimum over the ball's outer region;
    `point`: the best point found; `reason`: why there is no useful bound, if so."""

    lower: float
    point: Float[np.ndarray, " d"] | None
    value: float
    reason: str = ""


class Program:
    """The big-M model of one network on one ball; objectives and cuts come later.

    The variables are v = (x - centre) / mu, so that a solver's absolute tolerance is relative to the radius. For p = 2
    only the part of v in the row space of W1 matters (the rest changes nothing), so v lives there: rank(W1) numbers.
    """

    def __init__(
        self,
        weights: list[tuple[Float[np.ndarray, "outputs inputs"], Float[np.ndarray, " outputs"]]],
        centre: Float[np.ndarray, " d"],
        mu: float,
        p: float,
    ):
        (W, b), *rest = weights
        self.back = np.eye(len(centre))  # v -> (x - centre) / mu
        if p == 2:
            _, values, rows = np.linalg.svd(W, full_matrices=False)
            rank = max(1, int((values > 1e-13 * max(values[0], 1e-300)).sum()))
            if rank < len(centre):
                self.back = rows[:rank].T
        self.weights = [(mu * (W @ self.back), b + W @ centre), *rest]
        self.centre, self.mu, self.p = centre, mu, p
        self.d = self.back.shape[1]
        self.entries: list[tuple[int, int, float]] = []
        self.lower: list[float] = []
        self.upper: list[float] = []
        self.bounds: list[tuple[float, float]] = [(-BEYOND, BEYOND)] * self.d
        self.integer: list[int] = [0] * self.d
        self.largest = 0.0
        self._build()
        self._restrict()

    @property
    def usable(self) -> bool:
        return bool(self.largest <= LARGEST_M)

    def minimise(
        self,
        c: Float[np.ndarray, " outputs"],
        cuts: list[np.ndarray],
        *,
        floor: float,
        seconds: float,
        nodes: int | None,
    ) -> Minimum:
        """min c.f over the model and the cuts u.v <= 1; `point` is v. Only values up to `floor` are of interest: the
        rest of the search tree is cut off, and an infeasible program means that the minimum is above it."""
        W, b = self.weights[-1]
        size = len(self.bounds)
        objective = np.zeros(size)
        objective[self.last] = c @ W
        entries, lower, upper = list(self.entries), list(self.lower), list(self.upper)
        for u in cuts:
            entries += [(len(lower), j, float(value)) for j, value in enumerate(u)]
            lower.append(-math.inf)
            upper.append(BEYOND)
        offset = float(c @ b)
        if math.isfinite(floor):
            entries += [(len(lower), int(j), float(objective[j])) for j in np.flatnonzero(objective)]
            lower.append(-math.inf)
            upper.append(floor - offset)
        constraints = []
        if entries:
            rows, columns, values = zip(*entries, strict=True)
            matrix = coo_array((values, (rows, columns)), shape=(len(lower), size)).tocsr()
            constraints = [LinearConstraint(matrix, np.array(lower), np.array(upper))]  # type: ignore[arg-type]
        limits = np.array(self.bounds)
        options: dict[str, Any] = {"time_limit": max(0.05, seconds), "mip_rel_gap": 1e-9}
        if nodes is not None:
            options["node_limit"] = nodes
        with _silent_stdout():
            found = milp(
                objective,
                constraints=constraints,
                bounds=Bounds(limits[:, 0], limits[:, 1]),  # type: ignore[arg-type]
                integrality=np.array(self.integer),
                options=options,
            )
        point = None if found.x is None else found.x[: self.d]
        bound = getattr(found, "mip_dual_bound", None)
        if found.status == 0 and bound is None:
            bound = found.fun
        if found.status == 2 and math.isfinite(floor):
            return Minimum(math.nextafter(floor, math.inf), None, math.inf)
        stopped = found.status == 1 or (found.status == 4 and nodes is not None)  # scipy calls a node limit "other"
        if found.status != 0 and not stopped:
            return Minimum(-math.inf, point, math.inf, f"solver status {found.status}")
        value = math.inf if found.fun is None else found.fun + offset
        lower_bound = -math.inf if bound is None or not math.isfinite(bound) else bound + offset
        return Minimum(lower_bound, point, value, "" if found.status == 0 else "time or node limit")

    def _restrict(self) -> None:
        """Keep v in (a polytope around) the unit ball, for p = 1, and p = 2 up to TOWER_DIMENSIONS coordinates."""
        if not (self.p == 1 or (self.p == 2 and 1 < self.d <= TOWER_DIMENSIONS)):
            return
        sizes = []
        for j in range(self.d):  # size_j >= |v_j|
            size = self._variable(0.0, BEYOND)
            self._row([(size, 1.0), (j, -1.0)], 0.0, math.inf)
            self._row([(size, 1.0), (j, 1.0)], 0.0, math.inf)
            sizes.append(size)
        if self.p == 1:
            self._row([(size, 1.0) for size in sizes], -math.inf, BEYOND)
            return
        while len(sizes) > 1:  # norms of pairs, of pairs of pairs, ..: the last one is at most 1
            pairs = [sizes[k : k + 2] for k in range(0, len(sizes), 2)]
            sizes = [self._cone(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        self._row([(sizes[0], 1.0)], -math.inf, BEYOND)

    def _cone(self, first: int, second: int) -> int:
        """r >= about the norm of two non-negative variables: every true (a, b, r) is allowed, and what is allowed has
        norm at most r / cos(pi / 2^(k+1)), k = CONE_LEVELS."""
        top = 2.0
        for level in range(1, CONE_LEVELS + 1):  # turn by half of the angle that is left, fold upwards
            c, s = math.cos(math.pi / 2 ** (level + 1)), math.sin(math.pi / 2 ** (level + 1))
            along, across = self._variable(0.0, top), self._variable(0.0, top)
            self._row([(along, 1.0), (first, -c), (second, -s)], -1e-12, 1e-12)
            self._row([(across, 1.0), (first, s), (second, -c)], -1e-12, math.inf)
            self._row([(across, 1.0), (first, -s), (second, c)], -1e-12, math.inf)
            first, second = along, across
        self._row([(second, 1.0), (first, -math.tan(math.pi / 2 ** (CONE_LEVELS + 1)))], -math.inf, 1e-12)
        r = self._variable(0.0, top)
        self._row([(r, 1.0), (first, -1.0)], -1e-12, math.inf)
        return r

    def _build(self) -> None:
        previous, low, high = list(range(self.d)), np.full(self.d, -BEYOND), np.full(self.d, BEYOND)
        for W, b in self.weights[:-1]:
            positive, negative = np.maximum(W, 0), np.minimum(W, 0)
            bottom = positive @ low + negative @ high + b
            top = positive @ high + negative @ low + b
            slack = 1e-9 * (1 + np.abs(W) @ np.maximum(np.abs(low), np.abs(high)) + np.abs(b))
            bottom, top = bottom - slack, top + slack
            self.largest = max(self.largest, float(np.abs(bottom).max(initial=0)), float(np.abs(top).max(initial=0)))
            if not self.usable:
                break
            units = []
            for i in range(len(b)):
                units.append(self._unit(W[i], float(b[i]), float(bottom[i]), float(top[i]), previous))
            previous, low, high = units, np.maximum(bottom, 0), np.maximum(top, 0)
        self.last = previous

    def _unit(self, w: np.ndarray, b: float, bottom: float, top: float, previous: list[int]) -> int:
        h = self._variable(0.0, max(top, 0.0))
        if top <= 0:
            return h
        terms = [(previous[j], -float(w[j])) for j in np.flatnonzero(w)]
        if bottom >= 0:
            self._row([(h, 1.0), *terms], b, b)  # h = w.x + b
            return h
        z = self._variable(0.0, 1.0, integer=True)
        self._row([(h, 1.0), *terms], b, math.inf)  # h >= w.x + b
        self._row([(h, 1.0), *terms, (z, -bottom)], -math.inf, b - bottom)  # h <= w.x + b - bottom (1 - z)
        self._row([(h, 1.0), (z, -top)], -math.inf, 0.0)  # h <= top z
        return h

    def _variable(self, low: float, high: float, *, integer: bool = False) -> int:
        self.bounds.append((low, high))
        self.integer.append(int(integer))
        return len(self.bounds) - 1

    def _row(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        self.entries += [(len(self.lower), column, value) for column, value in terms]
        self.lower.append(low)
        self.upper.append(high)


def minimise_on_ball(
    program: Program,
    c: Float[np.ndarray, " outputs"],
    *,
    floor: float,
    seconds: float,
    nodes: int | None = None,
    enough: Callable[[Float[np.ndarray, " d"]], bool] = lambda x: False,
) -> Minimum:
    """min c.f(x) over the program's ball, from below; `point` is x, moved into the ball.

    Cuts are added until the bound exceeds `floor`, the minimiser lies in the ball or is `enough` once moved into it,
    time runs out, or CUTS are used up. nodes: a limit of the solver's search tree, for results that do not depend on
    the machine's speed.
    """
    if not program.usable:
        return Minimum(-math.inf, None, math.inf, f"big-M {program.largest:.1e} is too large for float64")
    end = time.monotonic() + seconds
    cuts: list[np.ndarray] = []
    found = Minimum(-math.inf, None, math.inf, "no solution")
    for _ in range(CUTS):
        found = program.minimise(c, cuts, floor=floor, seconds=end - time.monotonic(), nodes=nodes)
        v = found.point
        if v is None:
            return found
        size = float(np.linalg.norm(v, program.p))
        inside = program.centre + program.mu * (1 - 1e-9) * (program.back @ (v / max(1.0, size)))
        found = replace(found, point=inside)
        if found.lower > floor or found.reason or size <= 1 + REACHED or enough(inside):
            return found
        cuts.append(_touching(v, program.p))
        if time.monotonic() > end:
            return replace(found, reason="time or node limit")
    return replace(found, reason=f"{CUTS} cuts were not enough")


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS prints some messages straight to file descriptor 1, where a command's JSON goes; drop them."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no standard output at all
        yield
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _touching(away: np.ndarray, p: float) -> np.ndarray:
    """u with ||u||_q = 1 and u.away = ||away||_p: the half-space u.v <= 1 touches the ball towards away."""
    if math.isinf(p):
        u = np.zeros_like(away)
        k = int(np.abs(away).argmax())
        u[k] = np.sign(away[k])
        return u
    if p == 1:
        return np.sign(away)
    return np.sign(away) * (np.abs(away) / np.linalg.norm(away, p)) ** (p - 1)


def dense_weights(
    network: ExactNetwork,
) -> list[tuple[Float[np.ndarray, "outputs inputs"], Float[np.ndarray, " outputs"]]]:
    """(W, b) of every layer in float64, for the models of many balls."""
    return [_dense(layer) for layer in network.layers]


def _dense(layer: ExactLayer) -> tuple[np.ndarray, np.ndarray]:
    W = np.zeros((layer.outputs, layer.inputs))
    for i, row in enumerate(layer.rows):
        for j, value in row.items():
            W[i, j] = _float(value)
    return W, np.array([_float(value) for value in layer.bias])


def _float(value: Number) -> float:
    try:
        return float(value)
    except OverflowError:
        return 1e300 if value > 0 else -1e300
