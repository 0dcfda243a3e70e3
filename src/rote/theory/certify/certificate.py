"""Certificates: one verdict a record, verified, falsified (with the point) or unknown, and how it was reached.

What is asked of f on the open ball B_p(x_i, mu):
    equal    f = y_i everywhere on it (memorizers; one output)
    argmax   f_{y_i} > f_c for every other class c (class scores)
    sign     f > 0 for y_i = 1, f < 0 for y_i = 0 (one output)

Methods, in order: the exact value at the centre; stable-affine analysis (exact); the construction's own proof (exact
inequalities, for memorizers of large radius); a search for a counterexample (checked exactly); mixed-integer
programming (float64 with a solver's tolerance). Only the solver's "verified" is not exact, and its method says so.
Deliberately does not know how networks were made or trained.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from rote.errors import InputError
from rote.theory.certify.milp import Program, dense_weights, minimise_on_ball
from rote.theory.certify.sequential import from_torch
from rote.theory.certify.stable import StableResult, stable_affine
from rote.theory.exact_network import ExactNetwork
from rote.theory.robust.definitions import sample_ball
from rote.theory.robust.memorizer import RobustMemorizer
from rote.theory.robust.norms import Radius, dual, norm_name, norm_squared

TOLERANCE = 1e-6
BEND_POINTS = 24  # points tried behind a bend, at halving distances: slanted parts may be very thin
Property = Literal["auto", "equal", "argmax", "sign"]
Functional = tuple[tuple[int, ...], int]  # (coefficients over outputs, constant): must be > 0 on the ball


@dataclass(frozen=True)
class RecordVerdict:
    """`stable_radius`: largest radius at which the stable-affine analysis passes (None where it does not pass at mu).
    `witness`: a point of the open ball where the property fails, checked in exact arithmetic."""

    record: int
    verdict: Literal["verified", "falsified", "unknown"]
    method: str
    stable_radius: float | None = None
    witness: tuple[float, ...] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Certificate:
    """Verdicts of all records for one radius."""

    records: tuple[RecordVerdict, ...]
    radius: float
    norm: str
    kind: str

    def __len__(self) -> int:
        return len(self.records)

    def count(self, verdict: str) -> int:
        return sum(record.verdict == verdict for record in self.records)

    @property
    def verified(self) -> int:
        return self.count("verified")

    @property
    def complete(self) -> bool:
        """Whether every record is verified."""
        return self.verified == len(self)

    def to_dict(self, *, witnesses: bool = False) -> dict[str, Any]:
        """Plain values. Witness points are near records, so they are left out unless asked for."""
        radii = [r.stable_radius for r in self.records if r.stable_radius is not None]
        rows = [
            {"record": r.record, "verdict": r.verdict, "method": r.method, "reason": r.reason}
            | ({"witness": list(r.witness) if r.witness else None} if witnesses else {})
            for r in self.records
            if r.verdict != "verified"
        ]
        return {
            "records": len(self),
            **{verdict: self.count(verdict) for verdict in ("verified", "falsified", "unknown")},
            "methods": dict(Counter(record.method for record in self.records)),
            "radius": self.radius,
            "norm": self.norm,
            "property": self.kind,
            "smallest_stable_radius": min(filter(math.isfinite, radii), default=None),
            "not_verified": rows,
        }


def certify_balls(
    network: Any,
    X: Float[np.ndarray, "n d"],
    y: Shaped[np.ndarray, " n"],
    *,
    radius: Any,
    norm: str | float = "l2",
    property: Property = "auto",
    milp: bool = True,
    time_limit: float = 10.0,
    node_limit: int | None = None,
    samples: int = 32,
    seed: int = 0,
) -> Certificate:
    """Certify every open ball around the rows of X.

    network: a RobustMemorizer (y are its labels), an ExactNetwork, or a torch Sequential of Linear and ReLU.
    y: the output wanted (equal), the class number from 0 (argmax), or 0/1 (sign). radius: a number or a Radius.
    property "auto": equal for exact networks with one output, sign for torch modules with one, argmax for several.
    time_limit: seconds of MILP a record; node_limit: nodes of its search tree (for verdicts that do not depend on the
    machine's speed); milp False leaves such records unknown. samples: random points tried a ball.

    Errors: InputError for shapes or labels that do not fit.
    """
    ball, X, proved, torch_module = Radius.of(radius, norm), np.asarray(X), False, False
    if isinstance(network, RobustMemorizer):
        exact, wanted = network.network, network.outputs_for(y)
        # The construction's inequalities speak of its own points, norm and radius, and of no others.
        proved = network.proves(X, y, ball)
    elif isinstance(network, ExactNetwork):
        exact, wanted = network, np.asarray(y)
    else:
        exact, wanted, torch_module = from_torch(network), np.asarray(y), True
    if X.ndim != 2 or len(X) != len(wanted):
        raise InputError(f"X has shape {X.shape} and y {wanted.shape}; they must be (n, d) and (n,)")
    kind = _kind(property, exact, torch_module=torch_module)
    checks = [_functionals(kind, exact.outputs, int(label)) for label in wanted.tolist()]
    found = stable_affine(exact, X, ball)
    judge = _Judge(exact, X, ball, kind, checks, found, time_limit if milp else 0.0, node_limit, samples, seed)
    records = tuple(judge.record(i, proved=proved) for i in range(len(X)))
    return Certificate(records, float(ball), norm_name(ball.p), kind)


@dataclass(frozen=True)
class _Judge:
    network: ExactNetwork
    X: np.ndarray
    ball: Radius
    kind: str
    checks: list[list[Functional]]
    found: StableResult
    seconds: float
    nodes: int | None
    samples: int
    seed: int

    @cached_property
    def weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return dense_weights(self.network)

    def record(self, i: int, *, proved: bool) -> RecordVerdict:
        values = self.found.values[i].tolist()
        if not self._holds(values, i):
            return RecordVerdict(i, "falsified", "value at the record", witness=tuple(map(float, self.X[i])))
        if self.found.stable[i]:
            witness = self._linear_counterexample(i, values)
            if witness is None:
                return RecordVerdict(i, "verified", "stable-affine (exact)", float(self.found.radius[i]))
            if self._breaks(witness, i):
                return RecordVerdict(i, "falsified", "stable-affine (exact)", witness=tuple(witness.tolist()))
        if proved:
            return RecordVerdict(i, "verified", "construction's inequalities (exact; layout [inferred])")
        witness = self._sampled(i)
        if witness is not None:
            return RecordVerdict(i, "falsified", "search, point checked exactly", witness=tuple(witness.tolist()))
        return self._solve(i)

    def _holds(self, values: Sequence[Any], i: int) -> bool:
        """Whether the property holds for these outputs, exactly."""
        totals = [sum((c * v for c, v in zip(cs, values, strict=True)), k) for cs, k in self.checks[i]]
        return all(total == 0 for total in totals) if self.kind == "equal" else all(total > 0 for total in totals)

    def _breaks(self, point: np.ndarray, i: int) -> bool:
        """Whether a float64 point lies in the open ball and the property fails there; both decided exactly."""
        away = [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(point, self.X[i], strict=True)]
        return norm_squared(away, self.ball.p) < self.ball.square and not self._holds(self.network.evaluate(point), i)

    def _linear_counterexample(self, i: int, values: Sequence[Any]) -> np.ndarray | None:
        """On a stable ball f is affine: None when the property holds on all of it, else a point towards
        the violation."""
        for cs, k in self.checks[i]:
            a: dict[int, Fraction] = {}
            for output, c in enumerate(cs):
                for j, value in self.found.gradient(i, output).items() if c else ():
                    a[j] = a.get(j, Fraction(0)) + c * value
            a = {j: value for j, value in a.items() if value}
            square = norm_squared(a.values(), dual(self.ball.p))
            margin = sum((c * v for c, v in zip(cs, values, strict=True)), Fraction(k))
            if not a or (self.kind != "equal" and margin * margin >= self.ball.square * square):
                continue
            direction = np.zeros(self.X.shape[1])
            top = max(abs(value) for value in a.values())
            for j, value in a.items():
                direction[j] = float(value / top)
            step = _steepest(direction, self.ball.p)
            need = 0.0 if self.kind == "equal" else float(margin) / math.sqrt(float(square))
            return self.X[i].astype(float) - step * (need + float(self.ball)) / 2
        return None

    def _sampled(self, i: int) -> np.ndarray | None:
        """A counterexample among random points of the ball and points just behind the nearest bend, or None."""
        if not self.samples or not self.ball.square:
            return None
        rng, centre, mu = np.random.default_rng([self.seed, i]), self.X[i].astype(float), float(self.ball)
        points = sample_ball(centre, mu, self.samples, rng, p=self.ball.p)
        number, side, distance = (part[i] for part in self.found.bends)
        if number >= 0:
            slope = self.found.table.vector(int(number))
            top = max(abs(value) for value in slope.values())
            direction = np.zeros(len(centre))
            for j, value in slope.items():
                direction[j] = float(value / top)
            beyond = distance + (mu - distance) * np.append(0.5 ** np.arange(1, BEND_POINTS), 1 - 1e-9)
            points = np.concatenate([points, centre - side * beyond[:, None] * _steepest(direction, self.ball.p)])
        for point, values in zip(points, self.network.evaluate_batch(points), strict=True):
            if not self._holds(values.tolist(), i) and self._breaks(point, i):
                return point
        return None

    def _solve(self, i: int) -> RecordVerdict:
        if not self.seconds:
            return RecordVerdict(i, "unknown", "stable-affine", reason="a unit changes sign; no MILP was asked for")
        centre, mu = self.X[i].astype(float), float(self.ball)
        program = Program(self.weights, centre, mu, self.ball.p)
        objectives: list[tuple[np.ndarray, float]] = []
        for cs, k in self.checks[i]:
            c = np.array(cs, dtype=float)
            if self.kind == "equal":  # both f - y and y - f must stay above -TOLERANCE
                objectives += [(c, k + TOLERANCE), (-c, -k + TOLERANCE)]
            else:
                objectives.append((c, float(k)))
        reason = ""
        for c, k in objectives:
            margin = 0.0 if self.kind == "equal" else TOLERANCE
            low = minimise_on_ball(
                program,
                c,
                floor=margin - k,
                seconds=self.seconds / len(objectives),
                nodes=self.nodes,
                enough=lambda point: self._breaks(point, i),
            )
            if low.point is not None and self._breaks(low.point, i):
                witness = tuple(low.point.tolist())
                return RecordVerdict(i, "falsified", "milp, point checked exactly", witness=witness)
            if low.lower + k <= margin:
                reason = reason or low.reason or "the minimum is within the solver's tolerance of the boundary"
        if reason:
            return RecordVerdict(i, "unknown", "milp", reason=reason)
        return RecordVerdict(i, "verified", f"milp (float64, tolerance {TOLERANCE:g})")


def _steepest(a: np.ndarray, p: float) -> np.ndarray:
    """v with ||v||_p = 1 and a.v = ||a||_q."""
    if math.isinf(p):
        return np.sign(a)
    if p == 1:
        v = np.zeros_like(a)
        k = int(np.abs(a).argmax())
        v[k] = np.sign(a[k])
        return v
    q = dual(p)
    return np.sign(a) * (np.abs(a) / np.linalg.norm(a, q)) ** (q - 1)


def _kind(property: str, network: ExactNetwork, *, torch_module: bool) -> str:
    if property == "auto":
        property = "argmax" if network.outputs > 1 else "sign" if torch_module else "equal"
    if property not in ("equal", "argmax", "sign"):
        raise InputError(f"unknown property {property!r}; use auto, equal, argmax or sign")
    if (property == "argmax") != (network.outputs > 1):
        raise InputError(f"property {property} does not fit a network with {network.outputs} outputs")
    return property


def _functionals(kind: str, outputs: int, label: int) -> list[Functional]:
    if kind == "equal":
        return [((1,), -label)]
    if kind == "sign":
        if label not in (0, 1):
            raise InputError(f"labels for one output are 0 and 1, not {label}")
        return [((1 if label else -1,), 0)]
    if not 0 <= label < outputs:
        raise InputError(f"label {label} does not name one of the network's {outputs} outputs (counted from 0)")
    return [(tuple(int(k == label) - int(k == c) for k in range(outputs)), 0) for c in range(outputs) if c != label]


def largest_certified(verdict: Callable[[float], bool], low: float, high: float, *, steps: int) -> tuple[float, float]:
    """Bisect a radius between `low` (taken as certified) and `high`: (largest that `verdict` certified, smallest that
    it did not), after `steps` questions. Sound for any verdict; tight when certification is monotone in the radius."""
    for _ in range(steps):
        middle = (low + high) / 2
        if verdict(middle):
            low = middle
        else:
            high = middle
    return low, high
