"""Memorizers with about sqrt(N) parameters: theorem 4.1's, and theorem 5.3's, which is wrong nearly everywhere else.

Both project on one random direction, scaled so that opposite labels are at least 4 apart, and build `sqrt_network` on
the values. They interpolate; nothing makes them generalize: away from the positive records' values the answer is the
default class. As scikit-learn estimators, evaluated in exact arithmetic.

Knows nothing about: how the network reads its keys. Source: Yu et al. 2024 (arXiv 2411.00372, theorems 4.1 and 5.3).
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, log2, pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from rote.errors import InputError, RoteError
from rote.theory.exact_network import ExactLayer, ExactNetwork
from rote.theory.generalize.labelled import TwoClasses, check_points, check_two_classes, opposite_distances
from rote.theory.generalize.sqrt_network import sqrt_network

if TYPE_CHECKING:
    import torch

LARGEST_SLICE = sqrt(2)  # largest hyperplane section of the unit cube (Ball 1986)


class SqrtMemorizer(ClassifierMixin, BaseEstimator):
    """Theorem 4.1: width 6, O(sqrt(N) ln(N n / c)) layers and parameters, memorizes with probability >= 1 - `eps`.

    Parameters (keyword only): `seed` of the direction; `eps`, the failure probability that limits the number of draws
    (each succeeds with probability above 1/2); `default`, the class every unseen point gets (None: the first class);
    `blocks`, into how many blocks the keys are packed (None: as many as make the network smallest; the paper: sqrt(N)).

    Learned: `network_`, an `ExactNetwork` (weights of hundreds of bits: floats cannot hold them); `width_`, `depth_`,
    `parameters_`, `nonzero_parameters_`, `bits_`; `draws_`; `c0_`; `direction_`, the exact w.
    """

    def __init__(self, *, seed: int = 0, eps: float = 1e-6, default: Any = None, blocks: int | None = None):
        self.seed = seed
        self.eps = eps
        self.default = default
        self.blocks = blocks

    def fit(self, X: Float[np.ndarray, "records features"], y: np.ndarray) -> SqrtMemorizer:
        """Draw the direction, build the network and check every record in exact arithmetic.

        Errors: InputError for points outside [0,1]^n, one class, contradictions, an unknown default class; RoteError
        when no draw succeeded.
        """
        data = check_two_classes(X, y, unit_cube=True)
        if not 0 < self.eps < 1:
            raise InputError(f"eps must be in (0, 1), not {self.eps}")
        if self.default is not None and self.default not in data.classes:
            raise InputError(f"the default class is not one of the two labels {data.classes.tolist()}")
        self.classes_ = data.classes
        self.n_features_in_ = data.X.shape[1]
        self._default_sign = 1 if self.default is not None and self.default == data.classes[1] else -1
        self.c0_ = opposite_distances(data).smallest
        scale = self._scale(data)
        unit, self.draws_ = self._draw(data)
        # rounded so finely that no difference of two points of the cube changes by more than 1/2
        places = max(0, ceil(log2(self.n_features_in_)))
        self.direction_ = [Fraction(round(float(value) * 2**places), 2**places) for value in scale * unit]
        offset = ceil(sum((-value for value in self.direction_ if value < 0), Fraction(0))) + 1
        values = project(data.X, self.direction_, offset)
        positive = (data.signs == -self._default_sign).tolist()
        self.network_ = sqrt_network(self.direction_, offset, values, positive, blocks=self.blocks)
        self.width_, self.depth_ = self.network_.width, self.network_.depth
        self.parameters_, self.nonzero_parameters_ = self.network_.parameters, self.network_.nonzero
        self.bits_ = self.network_.bits
        if (self._signs(data.X) != data.signs).any():
            raise RoteError("the constructed network does not memorize its records; this is a fault, please report it")
        return self

    def _scale(self, data: TwoClasses) -> float:
        """||w|| = 16 sqrt(n) N^2 / c0."""
        return 16 * sqrt(data.X.shape[1]) * len(data.X) ** 2 / self.c0_

    def _draw(self, data: TwoClasses) -> tuple[Float[np.ndarray, " features"], int]:
        """A direction u with |<u, x - z>| >= (c0 / 4N^2) sqrt(8 / (n pi)) for all opposite pairs, and how many were
        drawn. The smallest difference is between neighbours in sorted order."""
        rng = np.random.default_rng(self.seed)
        n, count = data.X.shape[1], len(data.X)
        needed = self.c0_ / (4 * count**2) * sqrt(8 / (n * pi))
        draws = ceil(log2(1 / self.eps))
        for number in range(1, draws + 1):
            unit = rng.standard_normal(n)
            unit /= np.linalg.norm(unit)
            values = data.X @ unit
            order = np.argsort(values, kind="stable")
            values, signs = values[order], data.signs[order]
            differs = signs[1:] != signs[:-1]
            if (np.diff(values)[differs] >= needed).all():
                return unit, number
        raise RoteError(f"{draws} directions were drawn and none keeps the labels apart; use another seed")

    def _scores(self, X) -> np.ndarray:
        """F(x) of the network, exactly (positive: the class that is not the default)."""
        return self.network_.evaluate_batch(X)[:, 0]

    def _signs(self, X) -> Int[np.ndarray, " queries"]:
        return np.where(self._scores(X) > 0, -self._default_sign, self._default_sign)

    def _queries(self, X) -> Float[np.ndarray, "queries features"]:
        check_is_fitted(self, "network_")
        X = check_points(X, name="queries", unit_cube=True)
        if X.shape[1] != self.n_features_in_:
            raise InputError(f"queries have {X.shape[1]} features; the network was built for {self.n_features_in_}")
        return X

    def decision_function(self, X: Float[np.ndarray, "queries features"]) -> Float[np.ndarray, " queries"]:
        """F(x), exact and then rounded to a float; positive means the second class. Queries must be in [0,1]^n."""
        return -self._default_sign * self._scores(self._queries(X)).astype(float)

    def predict(self, X: Float[np.ndarray, "queries features"]) -> np.ndarray:
        """The label of each query, from the exact sign. Queries must be in [0,1]^n."""
        return self.classes_[(self._signs(self._queries(X)) > 0).astype(int)]

    def to_torch(
        self, check: Float[np.ndarray, "points features"], *, dtype: torch.dtype | None = None
    ) -> torch.nn.Sequential:
        """A float copy (float64 by default), compared with the exact network at the points `check`.

        Positive output means the class that is not the default. Errors: InputError when the weights need more bits than
        the type has, which is so for all but a few records.
        """
        return self.network_.to_torch(dtype, check=self._queries(check))


class AdversarialInterpolator(SqrtMemorizer):
    """Theorem 5.3: memorizes every record and is right with probability at most P(default class) + 1/100.

    `density` r: the law's density on [0,1]^n is at most r (1 for the uniform law). `default` should be the rarer class.

    The direction is scaled so that, for every law of density <= r, the points whose value is within 3 of some positive
    record's are at most 1% of the mass: a slab of width 6 has volume at most 6 sqrt(2) / ||w|| (Ball 1986), so
    ||w|| >= 600 sqrt(2) N r is enough (derived here; the paper asks for the property and leaves the constant open).
    Outside these slabs the network always answers the default class.
    """

    def __init__(
        self,
        *,
        density: float = 1.0,
        seed: int = 0,
        eps: float = 1e-6,
        default: Any = None,
        blocks: int | None = None,
    ):
        super().__init__(seed=seed, eps=eps, default=default, blocks=blocks)
        self.density = density

    def _scale(self, data: TwoClasses) -> float:
        if not self.density > 0:
            raise InputError(f"density must be above 0, not {self.density}")
        # 1 more than needed, because w is rounded
        return max(super()._scale(data), 600 * LARGEST_SLICE * len(data.X) * self.density + 1)


def project(X: Float[np.ndarray, "records features"], weights: list[Fraction], offset: int) -> list[Fraction | int]:
    """<w, x> + b of every record, exactly."""
    layer = ExactLayer(({k: weight for k, weight in enumerate(weights)},), (offset,), len(weights))
    return ExactNetwork((layer,)).evaluate_batch(X)[:, 0].tolist()
