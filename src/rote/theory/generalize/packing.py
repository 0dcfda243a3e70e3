"""Points of the unit cube that are pairwise at least c apart: lemma F.1's vertices, and volume bounds on any such set.

Knows nothing about: laws, networks. Source: Yu et al. 2024 (arXiv 2411.00372, lemma F.1 and theorem 4.3).
"""

from __future__ import annotations

from itertools import product
from math import ceil, log, sqrt

import numpy as np
from jaxtyping import Float

from rote.errors import InputError
from rote.theory.generalize.shell_law import log_ball_volume


def log2_cube_vertices(*, n: int, c: float) -> int:
    """floor(n / ceil(c^2)): lemma F.1 finds 2 to this power vertices of [0,1]^n, pairwise at least c apart (l2).

    Errors: InputError unless n >= 1 and 0 < c <= sqrt(n).
    """
    if int(n) != n or n < 1 or not 0 < c <= sqrt(n):
        raise InputError(f"vertices at distance c need n >= 1 and 0 < c <= sqrt(n), not n = {n}, c = {c}")
    return n // repeats(c)


def repeats(c: float) -> int:
    """ceil(c^2), where c = sqrt(m) in floats counts as m even if its square is rounded up."""
    return max(1, ceil(c**2 * (1 - 1e-12)))


def separated_vertices(*, n: int, c: float, most: int = 1 << 16) -> Float[np.ndarray, "vertices n"]:
    """Lemma F.1's vertices themselves: every bit repeated ceil(c^2) times, zeros at the end. Two of them differ in
    ceil(c^2) coordinates or more. Errors: InputError above `most` vertices."""
    bits = log2_cube_vertices(n=n, c=c)
    if bits > log(most, 2):
        raise InputError(f"2^{bits} vertices are more than {most}")
    codes = np.array(list(product((0.0, 1.0), repeat=bits)))
    repeated = np.repeat(codes, repeats(c), axis=1)
    return np.pad(repeated, ((0, 0), (0, n - repeated.shape[1])))


def log_core_bound_as_printed(*, n: int, c: float) -> float:
    """ln Q, Q = (1 + 2c/3)^n / (C_n (c/3)^n), theorem 4.3's bound on the size of a c/3-net.

    It divides volumes by balls of radius c/3, which are not disjoint when their centres are only more than c/3 apart:
    a net of a large enough support exceeds Q (the tests hold one). Use `log_core_bound` for a proved number.
    """
    _check(n, c)
    return n * np.log1p(2 * c / 3) - log_ball_volume(n) - n * log(c / 3)


def log_core_bound(*, n: int, c: float) -> float:
    """ln of (1 + c/3)^n / (C_n (c/6)^n): more points of [0,1]^n are not pairwise more than c/3 apart.

    Balls of radius c/6 around them are disjoint and lie in the cube grown by c/6 on every side. Derived here.
    """
    _check(n, c)
    return n * np.log1p(c / 3) - log_ball_volume(n) - n * log(c / 6)


def _check(n: int, c: float) -> None:
    if int(n) != n or n < 1 or not c > 0:
        raise InputError(f"the net's bound needs n >= 1 and c > 0, not n = {n}, c = {c}")
