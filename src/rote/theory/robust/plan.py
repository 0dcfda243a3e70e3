"""Capacity planning: what N records of d coordinates at radius rho cost, before any data is looked at.

Numbers are those of `bounds`; the size of a network that can be built is known only from data (build it).
Deliberately does not build networks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rote.theory.robust.bounds import (
    Bound,
    all_bounds,
    lower_rate,
    min_first_layer_parameters,
    min_first_layer_width,
    regime,
    regime_endpoints,
    upper_rate,
)
from rote.theory.robust.norms import check_rho, norm_name, parse_norm

NOTES = (
    "Lower bounds hold for the worst data of this size; easy data may need less (collision_bound looks at yours).",
    "Rates are drawn with constant 1 and without logarithms: compare how they grow, not their heights.",
    "The regimes' ends carry the theorem's constant 5: 1/(5 N sqrt d) and 1/(5 sqrt d).",
    "In the moderate regime the theorem's network may be wrong on a share eta of each ball.",
)


@dataclass(frozen=True)
class RobustPlan:
    """The answer for one (N, d, rho, norm). `upper_rate` is None where no upper bound is known (l_p, rho >= 1/gamma_p).
    `regime_ends` are where the small, moderate and large regimes end."""

    n: int
    d: int
    rho: float
    norm: str
    min_first_layer_width: int
    min_first_layer_parameters: int
    lower_rate: float
    upper_rate: float | None
    regime: str | None
    regime_ends: tuple[float, float, float]
    bounds: tuple[Bound, ...]

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        found["regime_ends"] = dict(zip(("small", "moderate", "large"), self.regime_ends, strict=True))
        found["bounds"] = [asdict(bound) for bound in self.bounds]
        return found | {"notes": list(NOTES)}


def robust_relu_plan(n: int, d: int, rho: Any, *, norm: str | float = "l2") -> RobustPlan:
    """Bounds on the parameters of ReLU networks that rho-robustly memorize n points of R^d.

    Kim, Moon, Yun 2025 (arXiv 2510.24643). Errors: InputError for rho outside (0, 1), n < 2, d < 1, an unknown norm.
    """
    p = parse_norm(norm)
    return RobustPlan(
        n=n,
        d=d,
        rho=float(check_rho(rho)),
        norm=norm_name(p),
        min_first_layer_width=min_first_layer_width(n, d, rho, norm=p),
        min_first_layer_parameters=min_first_layer_parameters(n, d, rho, norm=p),
        lower_rate=lower_rate(n, d, rho, norm=p),
        upper_rate=upper_rate(n, d, rho, norm=p),
        regime=regime(n, d, rho, norm=p),
        regime_ends=regime_endpoints(n, d, norm=p),
        bounds=all_bounds(n, d, rho, norm=p),
    )
