"""Lower and upper bounds on the parameters of a robust memorizer: Kim, Moon, Yun 2025 (arXiv 2510.24643).

Every number says what it is: "exact" (the theorem gives it with its constant), or "rate, constant 1" (only the order of
growth is known; logarithms dropped where the theorem hides them; compare slopes, not heights).
Lower bounds are worst case over data sets: easy data may need less (`collision_bound` looks at the data at hand).
Deliberately does not know networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rote.errors import InputError
from rote.theory.robust.norms import check_rho, gamma_p, parse_norm

EXACT, RATE = "exact", "rate, constant 1"
Regime = Literal["small", "moderate", "large"]
ENDPOINT = 5  # the constant in 1/(5 N sqrt d) and 1/(5 sqrt d), Thm 4.2


@dataclass(frozen=True)
class Bound:
    """One bound: `value` counts `counts`; `side` lower or upper; `kind` exact or rate; `source` the theorem."""

    name: str
    value: float
    side: Literal["lower", "upper"]
    counts: str
    kind: str
    source: str


def _check(n: int, d: int) -> None:
    if n < 2 or d < 1:
        raise InputError(f"n = {n} points of d = {d} coordinates: at least 2 points and 1 coordinate are needed")


def min_first_layer_width(n: int, d: int, rho: Any, *, norm: str | float = "l2") -> int:
    """Hidden units the first layer needs on the worst data of this size: max(1, ceil(rho^2 min{N-1, d})). Exact.

    Prop. 3.2; l_p: rho^2 for p >= 2 and (rho/gamma_p)^2 for p < 2 (Thm C.5), and min{N-1, d} for l_inf with rho > 1/2
    (Prop. C.7). rho is read as the decimal it was written as, so that a product that is a whole number stays one.
    """
    _check(n, d)
    rho, p, k = check_rho(rho), parse_norm(norm), min(n - 1, d)
    if math.isinf(p) and rho > Fraction(1, 2):
        return k
    if p >= 2:
        return max(1, math.ceil(rho * rho * k))
    return max(1, math.ceil((float(rho) / gamma_p(d, p)) ** 2 * k * (1 - 1e-12)))


def min_first_layer_parameters(n: int, d: int, rho: Any, *, norm: str | float = "l2") -> int:
    """(d+1) times the least width: weights and biases of the first layer alone, zeros counted. Exact."""
    return (d + 1) * min_first_layer_width(n, d, rho, norm=norm)


def shattered_points(n: int, d: int, rho: Any, *, norm: str | float = "l2") -> int | None:
    """floor(N/2) floor(1/(1 - rho^p)): points that robust memorizers of N points must shatter (Prop. 3.3, Thm C.5).

    Exact for rho <= (1 - 1/d)^(1/p); above, the group is capped at d points, because a larger radius only makes the
    task harder. None for l_inf, where the theorem says nothing.
    """
    _check(n, d)
    rho, p = check_rho(rho), parse_norm(norm)
    if math.isinf(p):
        return None
    power = rho ** int(p) if p == int(p) else Fraction(float(rho) ** p)
    return (n // 2) * min(d, math.floor(1 / (1 - power)))


def lower_rate(n: int, d: int, rho: Any, *, norm: str | float = "l2", nonzero: bool = False) -> float:
    """(rho^2 min{N, d} + 1) d + min{1/sqrt(1 - rho^2), sqrt d} sqrt N, constant 1 (Thm 3.1; l_p: Thm C.5).

    nonzero: only weights that are not zero count, and only the second term survives (Thm E.1).
    """
    _check(n, d)
    r, p = float(check_rho(rho)), parse_norm(norm)
    factor = 1.0 if math.isinf(p) else min(1 / math.sqrt(1 - r**p), math.sqrt(d))
    vc = factor * math.sqrt(n)
    if nonzero:
        return vc
    squared = r * r if p >= 2 else (r / gamma_p(d, p)) ** 2
    if math.isinf(p) and r > 0.5:
        squared = 1.0
    return (squared * min(n, d) + 1) * d + vc


def regime_endpoints(n: int, d: int, *, norm: str | float = "l2") -> tuple[float, float, float]:
    """(1/(5 N sqrt d), 1/(5 sqrt d), 1) / gamma_p: where small, moderate and large rho end (Thm 4.2, C.*)."""
    _check(n, d)
    scale = gamma_p(d, parse_norm(norm))
    return 1 / (ENDPOINT * n * math.sqrt(d) * scale), 1 / (ENDPOINT * math.sqrt(d) * scale), 1 / scale


def regime(n: int, d: int, rho: Any, *, norm: str | float = "l2") -> Regime | None:
    """The regime of Thm 4.2; None above 1/gamma_p, where no upper bound is known for this norm."""
    value = float(check_rho(rho))
    small, moderate, large = regime_endpoints(n, d, norm=norm)
    if value <= small:
        return "small"
    if value <= moderate:
        return "moderate"
    return "large" if value < large else None


def upper_rate(n: int, d: int, rho: Any, *, norm: str | float = "l2", nonzero: bool = False) -> float | None:
    """d + sqrt N, d + N d^(1/4) rho^(1/2), or d + N d^2 rho^4 (nonzero: N d rho^2), by regime; constant 1, no logs.

    Thm 4.2 (with gamma_p rho for rho in l_p); the additive d is the first layer, which the paper leaves out. The middle
    one is for memorizers with an error eta. Table 1 of the paper prints rho^2 in the last total, the theorem has rho^4.
    """
    found = regime(n, d, rho, norm=norm)
    r = float(check_rho(rho)) * gamma_p(d, parse_norm(norm))
    if found is None:
        return None
    if found == "small":
        return d + math.sqrt(n)
    if found == "moderate":
        return d + n * d**0.25 * math.sqrt(r)
    return d + n * (d * r * r if nonzero else d * d * r**4)


def old_lower_rate(n: int, d: int, rho: Any) -> float:
    """Known before (l2): sqrt N, and sqrt(N d) once rho >= sqrt(1 - 1/d) (Gao et al. 2019, Li et al. 2022). Rate."""
    _check(n, d)
    r = float(check_rho(rho))
    return math.sqrt(n * d) if r * r >= 1 - 1 / d else math.sqrt(n)


def old_upper_rates(n: int, d: int, rho: Any) -> dict[str, float]:
    """Known before (l2): N d^2 (Yu, Gao, Zhang 2024); N below 1/sqrt d, then N d^3 rho^6 (Egosi et al. 2025). Rates."""
    _check(n, d)
    r = float(check_rho(rho))
    return {"Yu et al. 2024": n * d * d, "Egosi et al. 2025": n if r <= 1 / math.sqrt(d) else n * d**3 * r**6}


def egosi_width(n: int, rho: Any) -> float:
    """Width any rho-robust memorizer needs by Egosi, Yehudai, Shamir 2025 (arXiv 2502.11162): 2 log N / log(4832/rho).
    Exact, as the card quotes it; worst case, for every layer."""
    if n < 2:
        raise InputError("at least 2 points are needed")
    return 2 * math.log(n) / math.log(4832 / float(check_rho(rho)))


def all_bounds(n: int, d: int, rho: Any, *, norm: str | float = "l2") -> tuple[Bound, ...]:
    """Every bound at one point, each with its label and source."""
    p = parse_norm(norm)
    total, nonzero = "parameters, zeros counted", "nonzero parameters"
    width, first = min_first_layer_width(n, d, rho, norm=p), min_first_layer_parameters(n, d, rho, norm=p)
    found = [
        Bound("first-layer width", width, "lower", "units of the first hidden layer", EXACT, "Prop. 3.2"),
        Bound("first-layer parameters", first, "lower", total, EXACT, "Prop. 3.2"),
        Bound("parameters", lower_rate(n, d, rho, norm=p), "lower", total, RATE, "Thm 3.1"),
        Bound("parameters, nonzero", lower_rate(n, d, rho, norm=p, nonzero=True), "lower", nonzero, RATE, "Thm E.1"),
    ]  # fmt: skip
    points = shattered_points(n, d, rho, norm=p)
    if points is not None:
        found.append(Bound("points that must be shattered", points, "lower", "points", EXACT, "Prop. 3.3"))
    for flag, counts in ((False, total), (True, nonzero)):
        value = upper_rate(n, d, rho, norm=p, nonzero=flag)
        if value is not None:
            found.append(Bound(f"parameters{', nonzero' * flag}", value, "upper", counts, RATE, "Thm 4.2"))
    if p == 2:
        found.append(
            Bound("parameters, known before", old_lower_rate(n, d, rho), "lower", total, RATE, "Li et al. 2022")
        )
        found += [Bound(f"parameters, {name}", value, "upper", total, RATE, name)
                  for name, value in old_upper_rates(n, d, rho).items()]  # fmt: skip
        found.append(Bound("width", egosi_width(n, rho), "lower", "units of every layer", EXACT, "Egosi et al. 2025"))
    return tuple(found)
