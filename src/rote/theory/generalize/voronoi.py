"""The efficient memorizer that generalizes (theorem 7.3): one polytope per record, a scikit-learn estimator.

    F(x) = sum_i y_i relu(r - sum_{j: y_j != y_i} relu(-S_ij(x))),   S_ij(x) = <x_i - x_j, x - ((1-t) x_i + t x_j)>

with r = (1/2 - t) min_{y_i != y_j} |x_i - x_j|^2 and the split t = 0.49 of the paper. F has depth 3: 2 N+ N- units,
then N, then 1. C_i = {S_ij >= 0 for all opposite j} holds x_i and no record of the other class; on it F has y_i's sign.

Derived here, not in the paper: F(x) is 0 or has the sign of x's nearest neighbour, so this network is a 1-nearest-
neighbour rule that abstains near the boundary; and sign F is constant on the l2 ball of radius t * (distance to the
other class) around every record, so it memorizes robustly with ratio 2t of half that distance (0.98 for t = 0.49).

Knows nothing about: how blocks are evaluated, how the explicit module is laid out. Source: Yu, Gao, Zhang, Miao 2024
(arXiv 2411.00372, theorem 7.3 and appendix H).
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from rote.errors import InputError
from rote.theory.generalize import voronoi_forward
from rote.theory.generalize.labelled import check_points, check_two_classes, opposite_distances
from rote.theory.generalize.voronoi_forward import VoronoiParts

if TYPE_CHECKING:
    import torch


class VoronoiMemorizer(ClassifierMixin, BaseEstimator):
    """Theorem 7.3's network as a classifier; `fit` computes its weights in closed form, nothing is trained.

    Parameters (keyword only): `split` t in (0, 1/2), at most 6 decimals used exactly. `abstain_label`: what `predict`
    returns where F(x) = 0; None means sgn(0) = the first class. `unit_cube`: refuse records outside [0,1]^n, where the
    theorem is stated (the construction and its certificates hold anywhere). `multiclass="ovr"`: one network per class
    against the rest and the largest output wins; an extension outside the theory, without certificates.

    Learned: `classes_`; `c0_`, the smallest distance between classes (at least the law's c); `r_`;
    `certified_radius_` = t c0 and `certified_radii_` (one per record): balls on which the sign provably stays;
    `dense_parameters_`, every entry counted, O(N^3 + N^2 n), and `sparse_parameters_`, only the entries the
    construction can make nonzero, the paper's O(N^2 n); `first_width_` = 2 N+ N-.

    Memory of fit and predict: O(N n) and one block; the N+ N- hidden units are never stored.
    """

    def __init__(
        self, *, split: float = 0.49, abstain_label: Any = None, unit_cube: bool = True, multiclass: str | None = None
    ):
        self.split = split
        self.abstain_label = abstain_label
        self.unit_cube = unit_cube
        self.multiclass = multiclass

    def fit(self, X: Float[np.ndarray, "records features"], y: np.ndarray) -> VoronoiMemorizer:
        """Compute r and the parts of F. Errors (InputError): one class only, equal points with different labels, points
        outside the cube, more than two classes without multiclass="ovr"."""
        if not 0 < self.split < 0.5:
            raise InputError(f"split must be in (0, 1/2), not {self.split}; the paper's is 0.49")
        if self.multiclass not in (None, "ovr"):
            raise InputError(f"multiclass must be None or 'ovr', not {self.multiclass!r}")
        labels = np.unique(np.asarray(y))
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)  # a second fit forgets the first
        if self.multiclass == "ovr" and len(labels) > 2:
            self.classes_ = labels
            self.members_ = [self._binary().fit(X, np.asarray(y) == label) for label in labels]
            self.n_features_in_ = self.members_[0].n_features_in_
            return self
        data = check_two_classes(X, y, unit_cube=self.unit_cube)
        distances = opposite_distances(data)
        self.classes_ = data.classes
        self.n_features_in_ = data.X.shape[1]
        self.c0_ = distances.smallest
        # 1/2 - 0.49 in floats is not 0.01: subtract the decimals that were written.
        margin = float(Fraction(1, 2) - Fraction(repr(float(self.split))))
        self.parts_ = VoronoiParts.build(
            data.X, data.signs, margin=margin, nearest=distances.nearest, farthest=distances.farthest
        )
        self.r_ = self.parts_.r
        self.certified_radii_ = self.split * distances.nearest
        self.certified_radius_ = self.split * self.c0_
        n, total, negatives = self.n_features_in_, len(data.X), self.parts_.negatives
        units = 2 * negatives * (total - negatives)
        self.first_width_ = units
        self.dense_parameters_ = units * (n + 1) + total * (units + 1) + (total + 1)
        self.sparse_parameters_ = units * (n + 1) + (units + total) + (total + 1)
        return self

    def _binary(self) -> VoronoiMemorizer:
        return VoronoiMemorizer(split=self.split, unit_cube=self.unit_cube)

    def _queries(self, X) -> Float[np.ndarray, "queries features"]:
        check_is_fitted(self, "classes_")
        X = check_points(X, name="queries")
        if X.shape[1] != self.n_features_in_:
            raise InputError(f"queries have {X.shape[1]} features; the network was built for {self.n_features_in_}")
        return X

    def _two_classes(self, what: str) -> VoronoiParts:
        check_is_fitted(self, "classes_")
        if hasattr(self, "members_"):
            raise InputError(f"{what} is for two classes; with multiclass='ovr' ask the networks in members_")
        return self.parts_

    def decision_function(self, X: Float[np.ndarray, "queries features"]) -> Float[np.ndarray, "queries ..."]:
        """F(x), one per query (positive: the second class; 0: inside no record's polytope). With multiclass="ovr" one
        column per class. Exact up to the rounding of differences of points; what rounding cannot tell from 0 is 0."""
        X = self._queries(X)
        if hasattr(self, "members_"):
            return np.stack([member.decision_function(X) for member in self.members_], axis=1)
        return voronoi_forward.values(self.parts_, X)

    def predict(self, X: Float[np.ndarray, "queries features"]) -> np.ndarray:
        """sgn F(x) as a label; `abstain_label` (or the first class, if it is None) where F is 0."""
        X = self._queries(X)
        if hasattr(self, "members_"):
            scores = self.decision_function(X)
            label, silent = self.classes_[scores.argmax(axis=1)], scores.max(axis=1) <= 0
        else:
            signs = voronoi_forward.signs(self.parts_, X)
            label, silent = self.classes_[(signs > 0).astype(int)], signs == 0
        if self.abstain_label is None:
            return label
        missing = np.asarray([self.abstain_label])
        found = label.astype(np.result_type(label, missing)) if label.dtype.kind != "O" else label.copy()
        found[silent] = missing[0]
        return found

    def abstains(self, X: Float[np.ndarray, "queries features"]) -> Bool[np.ndarray, " queries"]:
        """Where F(x) = 0 (with multiclass="ovr": where no class's network is positive)."""
        X = self._queries(X)
        if hasattr(self, "members_"):
            return self.decision_function(X).max(axis=1) <= 0
        return voronoi_forward.signs(self.parts_, X) == 0

    def signs(self, X: Float[np.ndarray, "queries features"]) -> Int[np.ndarray, " queries"]:
        """sgn F(x): -1 the first class, 1 the second, 0 neither."""
        parts = self._two_classes("signs")
        return voronoi_forward.signs(parts, self._queries(X))

    def prediction_radius(self, X: Float[np.ndarray, "queries features"]) -> Float[np.ndarray, " queries"]:
        """l2 distance every query may move with its predicted sign unchanged, provably: the distance to the faces of
        its nearest record's polytope (derived here). 0 where there is no certificate."""
        parts = self._two_classes("prediction_radius")
        return voronoi_forward.radii(parts, self._queries(X))

    @property
    def cover_constant(self) -> float:
        """The smallest k for which a record within L/k of a point covers that point's ball of radius L/k: (2-t)/t.

        Lemma H.4 with any t (derived here): for |x - v|, |x_i - v| <= L/k and |x_j - v| >= L the plane of S_ij is at
        least t L - (1-t) L/k from v, which is L/k or more when k >= (2-t)/t. 3.0816 for t = 0.49; the paper uses 3.1.
        """
        return (2 - self.split) / self.split

    def to_torch(self, *, dtype: torch.dtype | None = None, most_parameters: int = 50_000_000) -> torch.nn.Sequential:
        """The network itself: three linear layers with ReLU between, 2 N+ N-, N and 1 units, every zero written out.

        Default dtype float64. The module is run on every record before it is returned.
        Errors: InputError above `most_parameters` entries (dense counting grows like N^3), or when the module's sums,
        rounded to `dtype`, no longer give every record its sign.
        """
        parts = self._two_classes("to_torch")
        if self.dense_parameters_ > most_parameters:
            raise InputError(
                f"the explicit network has {self.dense_parameters_:,} parameters (limit {most_parameters:,}); predict "
                "works in blocks without it, or thin the records with constant_size_core first"
            )
        from rote.theory.generalize.voronoi_network import explicit_network, wrong_records

        module = explicit_network(parts, split=self.split, dtype=dtype)
        wrong = wrong_records(module, parts)
        if wrong:
            raise InputError(
                f"as {module[0].weight.dtype} the network is wrong on {wrong} of {len(parts.points)} records: the "
                f"classes are {self.c0_:.3g} apart, too close for that type; use float64"
            )
        return module
