"""The law of theorem 5.1, on which a first layer narrower than the input cannot do better than a given number.

Label 1: uniform in the ball of radius r1 = 1; label -1: uniform in the shell between r2 = 2^(1/n) and r3 = 3^(1/n);
both with probability 1/2 (the two have equal volume). Moved and scaled into [0,1]^n by x -> 1/2 + x / (2 r3).

Knows nothing about: networks, bounds. Source: Yu et al. 2024 (arXiv 2411.00372, theorem 5.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, expm1, lgamma, log, pi

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError


def log_ball_volume(n: int) -> float:
    """ln C_n, C_n = pi^(n/2) / Gamma(n/2 + 1), the volume of the n-dimensional unit ball (n >= 0)."""
    return 0.5 * n * log(pi) - lgamma(0.5 * n + 1)


@dataclass(frozen=True)
class ShellLaw:
    """The law in n dimensions (n >= 1), inside the unit cube."""

    n: int

    def __post_init__(self):
        if self.n < 1 or int(self.n) != self.n:
            raise InputError(f"the shell law needs a dimension n >= 1, not {self.n}")

    @property
    def scale(self) -> float:
        """1 / (2 r3): the factor that brings the outer sphere to the cube's faces."""
        return 0.5 * exp(-log(3) / self.n)

    @property
    def separation(self) -> float:
        """c = (r2 - r1) / (2 r3): opposite labels are at least this far apart (l2), after scaling."""
        return self.scale * expm1(log(2) / self.n)

    def sample(self, count: int, *, seed: int) -> tuple[Float[np.ndarray, "count features"], Int[np.ndarray, " count"]]:
        """`count` independent points of [0,1]^n and their labels -1, 1. The same seed gives the same sample."""
        if count < 1:
            raise InputError(f"a sample needs at least one point, not {count}")
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, count) * 2 - 1
        direction = rng.standard_normal((count, self.n))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        # r^n is uniform on [0, 1] in the ball and on [2, 3] in the shell
        volume = rng.random(count) + np.where(labels > 0, 0.0, 2.0)
        return 0.5 + self.scale * direction * volume[:, None] ** (1.0 / self.n), labels
