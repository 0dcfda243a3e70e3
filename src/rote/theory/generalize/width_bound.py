"""No network with a narrow first layer is accurate on the shell law: theorem 5.1 as a number for every (n, width).

With k = n - w and lambda = 1 / (2 C_n) the error of any function of W1 x, W1 of w rows, is at least

    lambda C_k int_{|h| < r1} min{ (r1^2 - h^2)^(k/2), (r3^2 - h^2)^(k/2) - (r2^2 - h^2)^(k/2) } dh,   h in R^w,

the smaller class's share of every fibre. Closed form, derived here: the first term is the smaller one exactly for
|h|^2 > u*, and substituting |h|^2 = r^2 v in each power turns the integral into regularised incomplete beta functions
I(x) = I_x(w/2, k/2 + 1), with r1^n, r2^n, r3^n = 1, 2, 3 in front:

    accuracy <= 1/2 + ( I(u*) + 2 I(u* / r2^2) - 3 I(u* / r3^2) ) / 2.

It needs no quadrature, so nothing cancels before the last line: absolute error below 1e-12 up to n = 10^6 at least.

The bound is about this one law. It does not say that width >= n is needed on other data.
Knows nothing about: samples, networks. Source: Yu et al. 2024 (arXiv 2411.00372, theorem 5.1 and its proof).
"""

from __future__ import annotations

from math import exp, expm1, log, log1p

from scipy.optimize import brentq
from scipy.special import betainc

from rote.errors import InputError

PAPER_FACTOR = log(3) / log(1.001)  # the proof asks for 3^(w/n) < 1.001, that is n > 1099.2 w


def log_density_ratio(u: float, *, n: int, width: int) -> float:
    """ln of (label -1's mass) / (label 1's mass) in the fibre |h|^2 = u < 1; it grows with u. Stable for any n."""
    half = 0.5 * (n - width)
    outer, inner = expm1(2 * log(3) / n), expm1(2 * log(2) / n)  # r3^2 - 1, r2^2 - 1
    v = 1.0 - u
    return half * log1p(outer / v) + log(-expm1(half * log1p(-(outer - inner) / (v + outer))))


def decision_radius_squared(*, n: int, width: int) -> float:
    """u*: the best function of W1 x says label 1 for |h|^2 < u*, in units of r1 = 1. Lies in (0, 1) for width < n."""
    _check(n, width)
    if width >= n:
        raise InputError(f"width {width} >= n = {n}: the first layer can be injective, no fibre mixes the labels")
    return float(
        brentq(lambda u: log_density_ratio(u, n=n, width=width), 0.0, 1.0 - 1e-15, xtol=1e-300, rtol=1e-15)  # type: ignore[arg-type]
    )


def width_generalization_bound(*, n: int, width: int) -> float:
    """The highest accuracy any network whose first layer has `width` units can reach on the n-dimensional shell law.

    In (1/2, 1]; 1 when width >= n (no restriction). It is attained in the limit by a network that computes |h|^2.
    Errors: InputError unless n >= 1 and width >= 1.
    """
    _check(n, width)
    if width >= n:
        return 1.0
    u = decision_radius_squared(n=n, width=width)
    a, b = 0.5 * width, 0.5 * (n - width) + 1.0
    second, third = exp(-2 * log(2) / n), exp(-2 * log(3) / n)  # 1 / r2^2, 1 / r3^2
    return float(0.5 + 0.5 * (betainc(a, b, u) + 2 * betainc(a, b, u * second) - 3 * betainc(a, b, u * third)))


def smallest_hopeless_dimension(*, width: int, accuracy: float = 0.51, most: int = 10**7) -> int:
    """The smallest n > width at which no network of this first width exceeds `accuracy` on the shell law.

    The bound falls with n for a fixed width (checked in the tests, not proved), so bisection finds it; the paper's
    sufficient n for 0.51 is above 1099 times the width. Errors: InputError for an accuracy outside (1/2, 1) or an
    answer above `most`.
    """
    _check(width + 1, width)
    if not 0.5 < accuracy < 1:
        raise InputError(f"accuracy must be in (1/2, 1), not {accuracy}")
    low, high = width, width + 1
    while width_generalization_bound(n=high, width=width) > accuracy:
        low, high = high, 2 * high
        if low > most:
            raise InputError(f"no dimension up to {most} brings accuracy down to {accuracy} at width {width}")
    while high - low > 1:
        middle = (low + high) // 2
        if width_generalization_bound(n=middle, width=width) > accuracy:
            low = middle
        else:
            high = middle
    return high


def _check(n: int, width: int) -> None:
    for name, value in (("n", n), ("width", width)):
        if int(value) != value or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value}")
