"""Build the robust memorizer of a data set: the regime that fits, the network, its radius and what is known about it.

Kim, Moon, Yun 2025 (arXiv 2510.24643), Thm 4.2: small radius (Thm B.3), moderate with error eta (Thm B.5), large
(Thm B.14). Outputs are class numbers 1..C, equal to the label on the whole open ball, not merely its argmax.
Deliberately does not certify: `rote.theory.certify` does, from the network alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from rote.errors import InputError
from rote.theory.exact_columns import to_columns
from rote.theory.exact_network import ExactNetwork
from rote.theory.labelled_points import LabelledPoints, labelled_points
from rote.theory.robust.bounds import regime as theorem_regime
from rote.theory.robust.bounds import regime_endpoints
from rote.theory.robust.definitions import Separation, separation
from rote.theory.robust.large import build_large, large_case, project_large
from rote.theory.robust.lattice import Lattice
from rote.theory.robust.moderate import build_moderate
from rote.theory.robust.norms import Radius, check_rho, norm_name, parse_norm, rational, sqrt_below
from rote.theory.robust.projection import identity, search_projection
from rote.theory.robust.proof import Construction, StructuralProof
from rote.theory.robust.small import build_small, largest_square, lattices

REGIMES = ("auto", "small", "moderate", "large")


@dataclass(frozen=True)
class RobustMemorizer:
    """A network with f(x') = class number of y_i on the open ball B_p(x_i, mu) of every training point.

    `error` is 0, or the eta below which the share of wrong points of a ball stays. `label` says what was rebuilt.
    """

    network: ExactNetwork
    regime: str
    rho: Fraction
    separation: Separation
    radius: Radius
    data: LabelledPoints
    label: str
    error: Fraction = Fraction(0)
    proof: StructuralProof | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple:
        """The labels as they were given; output c stands for classes[c - 1]."""
        return self.data.classes

    @property
    def mu(self) -> float:
        return float(self.radius)

    @property
    def parameters(self) -> int:
        return self.network.parameters

    @property
    def nonzero(self) -> int:
        return self.network.nonzero

    @property
    def depth(self) -> int:
        return self.network.depth

    @property
    def width(self) -> int:
        return self.network.width

    @property
    def bits(self) -> int:
        return self.network.bits

    def outputs_for(self, y: Any) -> Int[np.ndarray, " n"]:
        """The outputs that stand for labels as they were given: 1..C. Errors: InputError for an unknown label."""
        numbers = {label: number for number, label in enumerate(self.classes, 1)}
        try:
            return np.array([numbers[label] for label in np.asarray(y).tolist()])
        except KeyError:
            raise InputError(f"a label is not among the {len(numbers)} this memorizer was built for") from None

    def predict(self, X: Any) -> Shaped[np.ndarray, " n"]:
        """Labels by exact evaluation; None where the output is no class number (outside all balls)."""
        found = self.network.evaluate_batch(X)[:, 0]
        known = [value in range(1, len(self.classes) + 1) for value in found]
        return np.array(
            [self.classes[int(v) - 1] if ok else None for v, ok in zip(found, known, strict=True)], dtype=object
        )

    def proves(self, X: Any, y: Any, ball: Radius) -> bool:
        """Whether the construction's own inequalities cover these records and this radius: no error share, the same
        norm, a radius of at most mu, and every record one of the memorizer's points with its label."""
        if self.proof is None or self.error or not self.proof.holds:
            return False
        if ball.p != self.radius.p or ball.square > self.radius.square:
            return False
        labels = [self.classes[number] for number in self.data.y]
        own = dict(zip(map(tuple, self.data.X.tolist()), labels, strict=True))
        rows = (np.asarray(X, dtype=float) + 0.0).tolist()
        return all(own.get(tuple(row)) == label for row, label in zip(rows, np.asarray(y).tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: sizes, radius, regime, labels of provenance."""
        return {
            "regime": self.regime,
            "provenance": self.label,
            "norm": norm_name(self.radius.p),
            "rho": float(self.rho),
            "eps": float(self.separation),
            "mu": self.mu,
            "error": float(self.error),
            "parameters": self.parameters,
            "nonzero": self.nonzero,
            "depth": self.depth,
            "width": self.width,
            "bits": self.bits,
            **self.details,
        }


def build_robust_memorizer(
    X: Float[np.ndarray, "n d"],
    y: Shaped[np.ndarray, " n"],
    *,
    rho: Any = "auto",
    norm: str | float = "l2",
    regime: Literal["auto", "small", "moderate", "large"] = "auto",
    error: Any = "0.01",
    dims: int | None = None,
    scale: Literal["tight", "paper"] = "tight",
    reader: str = "step",
    seed: int = 0,
) -> RobustMemorizer:
    """A network that rho-robustly memorizes (X, y), exactly, zeros and all.

    X: n distinct points of R^d (float64, taken at their exact values). y: labels of any kind, two classes or more.
    rho: in (0, 1), or "auto": the largest that the small-radius construction reaches on these points.
    regime: "auto" takes the small-radius network when the points' own gaps allow this rho, else the theorem's regime.
    error: eta of the moderate regime. dims: dimensions to project to (default: searched). scale: "paper" takes
    s = (11/9) sqrt d / eps_D instead of the smallest that works. reader: "step" or "tent" (integer_memorizer).

    Errors: InputError for rho >= 1, contradictory points, one class, NaN, or a rho the chosen regime does not reach.
    """
    if regime not in REGIMES:
        raise InputError(f"unknown regime {regime!r}; use one of {', '.join(REGIMES)}")
    if scale not in ("tight", "paper"):
        raise InputError(f"unknown scale {scale!r}; use tight or paper")
    p = parse_norm(norm)
    if rho != "auto":
        rho = check_rho(rho)
    data = labelled_points(X, y)
    apart = separation(data.X, data.y, norm=p)
    if rho == "auto":
        if regime not in ("auto", "small"):
            raise InputError("rho 'auto' is the largest radius of the small regime; give a number for another regime")
        rho, made = _auto(data, apart, p, dims=dims, scale=scale, reader=reader, seed=seed)
    else:
        made = _given(data, apart, rho, p, regime=regime, error=error, dims=dims, scale=scale, reader=reader, seed=seed)
    return RobustMemorizer(
        network=made.network,
        regime=made.regime,
        rho=rho,
        separation=apart,
        radius=apart.radius(rho),
        data=data,
        label=made.label,
        error=made.error,
        proof=made.proof,
        details=made.details,
    )


def _candidates(data: LabelledPoints, apart: Separation, *, dims: int | None, scale: str, seed: int) -> list[Lattice]:
    columns = to_columns(data.X)
    projection = search_projection(data.X, data.y, dims=dims, seed=seed)
    paper = 11 / 9 * math.sqrt(data.X.shape[1]) / float(apart) if scale == "paper" else 0.0
    return lattices(projection, columns, (data.y + 1).tolist(), paper_scale=paper)


def _auto(
    data: LabelledPoints, apart: Separation, p: float, *, dims: int | None, scale: str, reader: str, seed: int
) -> tuple[Fraction, Construction]:
    found = _candidates(data, apart, dims=dims, scale=scale, seed=seed)
    if not found:
        raise InputError("no lattice keeps the classes in different cells; give dims, or a rho with regime large")
    best = max(found, key=lambda lattice: largest_square(lattice, p))
    rho = min(_four_digits(sqrt_below(largest_square(best, p) / apart.square)), Fraction(999, 1000))
    labels = (data.y + 1).tolist()
    return rho, build_small(best, labels, apart.radius(rho), classes=len(data.classes), reader=reader)


def _given(
    data: LabelledPoints,
    apart: Separation,
    rho: Fraction,
    p: float,
    *,
    regime: str,
    error: Any,
    dims: int | None,
    scale: str,
    reader: str,
    seed: int,
) -> Construction:
    (n, d), radius = data.X.shape, apart.radius(rho)
    labels, classes = (data.y + 1).tolist(), len(data.classes)
    if regime in ("auto", "small"):
        found = _candidates(data, apart, dims=dims, scale=scale, seed=seed)
        reached = [lattice for lattice in found if largest_square(lattice, p) >= radius.square]
        if reached:
            best = max(reached, key=lambda lattice: largest_square(lattice, p))
            made = build_small(best, labels, radius, classes=classes, reader=reader)
            if float(rho) > regime_endpoints(n, d, norm=p)[0]:
                made.details["note"] = "rho is above the theorem's small range; the points' own gaps allow it"
            return made
        if regime == "small":
            top = max((largest_square(lattice, p) for lattice in found), default=Fraction(0))
            raise InputError(
                f"the small-radius construction reaches rho = {math.sqrt(top / apart.square):.3g} on these points, not "
                f"{float(rho):.3g}; use rho 'auto', or regime moderate or large"
            )
        regime = theorem_regime(n, d, rho, norm=p) or "large"
        regime = "large" if regime == "small" or (regime == "moderate" and p != 2) else regime
    columns = to_columns(data.X)
    if regime == "moderate":
        projection = search_projection(data.X, data.y, dims=dims, seed=seed)
        eta = rational(error, name="error")
        return build_moderate(projection, columns, labels, radius, rho=rho, error=eta, classes=classes, reader=reader)
    case = large_case(n, d, rho)
    projection = project_large(data.X, data.y, rho, case, dims=dims, seed=seed)
    if dims == d:
        projection = identity(data.X, data.y)
    return build_large(projection, columns, labels, radius, case=case)


def _four_digits(value: Fraction) -> Fraction:
    """Rounded down to four significant decimal digits."""
    if value <= 0:
        raise InputError("the points leave no room for any ball in the lattice; give dims or regime large")
    exponent = math.floor(math.log10(value)) - 3
    unit = Fraction(10) ** exponent
    return math.floor(value / unit) * unit
