"""Input loss landscapes (REMIND): how a model's loss behaves on a cloud of similar texts, and what that tells.

    L_0 = L(x), L_k = L(x_k) for neighbours x_k, Delta_k = L_k - L_0, slope_k = Delta_k / (d(x, x_k) + eps)

After unlearning, texts can lie on a flat plateau (small spread, small slopes): the fingerprint of the unlearner. A
model that never saw them has none, so flat does not mean forgotten well. Losses are mean nats a token; d is a distance
of sentence embeddings from an encoder that is not the audited model. A neighbourhood has S shells (strengths of
perturbation) of K neighbours each.

Pure functions on arrays, and a classifier on their features. Knows nothing about models, texts or how neighbours are
made. The paper's full text could not be read: the list of features and the form of the slope are reconstructed from
its abstract and from readers' notes.
Source: Cohen et al. 2025, "REMIND", arXiv 2511.04228, sections 3 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rote.errors import InputError
from rote.measures.roc import auroc

CLASSES = ("retained", "forgotten", "holdout")
CLASSIFIERS = ("random_forest", "logistic", "gradient_boosting")
EPSILON = 1e-6  # in the slope's denominator: a neighbour equal to its text has Delta = 0 and slope 0
_SHELL = (
    "mean", "std", "min", "max", "range", "skew", "q10", "q50", "q90", "delta_mean", "delta_std", "delta_abs",
    "delta_negative", "delta_relative", "slope_mean", "slope_std", "slope_max",
)  # fmt: skip
_GLOBAL = ("loss", "fit_linear", "fit_quadratic", "curvature_proxy")


@dataclass(frozen=True)
class LandscapeFeatures:
    """`matrix` [texts, features] and the features' names: `loss`, and `shellS.NAME` for every shell S."""

    matrix: Float[np.ndarray, "texts features"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.matrix)

    def column(self, name: str) -> Float[np.ndarray, " texts"]:
        """One feature by name. Raises InputError for an unknown one."""
        if name not in self.names:
            raise InputError(f"no landscape feature {name!r}; there are: {', '.join(self.names)}")
        return self.matrix[:, self.names.index(name)]

    def without_level(self) -> LandscapeFeatures:
        """The neighbourhood's shape alone: every feature but those that carry the loss's own level."""
        level = {"loss"} | {f"{name.split('.')[0]}.{part}" for name in self.names if "." in name
                            for part in ("mean", "min", "max", "q10", "q50", "q90")}  # fmt: skip
        keep = [i for i, name in enumerate(self.names) if name not in level]
        return LandscapeFeatures(self.matrix[:, keep], tuple(self.names[i] for i in keep))

    def rows(self, chosen) -> LandscapeFeatures:
        return LandscapeFeatures(self.matrix[chosen], self.names)


def landscape_features(
    loss: Float[np.ndarray, " texts"],
    neighbours: Float[np.ndarray, "texts shells k"],
    distance: Float[np.ndarray, "texts shells k"],
) -> LandscapeFeatures:
    """Features of every text's neighbourhood.

    Per shell: mean, std, min, max, range, skewness and quantiles of L_k; mean and std of Delta, mean |Delta|, share of
    Delta < 0, mean Delta / L_0; mean, std and max of |slope|. Over all shells: coefficients of Delta ~ a d + b d^2, and
    mean Delta of the second shell minus twice that of the first (0 with one shell). A constant loss gives 0 everywhere
    but for the levels. Raises InputError for shapes that do not fit or values that are not finite.
    """
    loss, neighbours, distance = (np.asarray(values, np.float64) for values in (loss, neighbours, distance))
    if neighbours.ndim != 3 or neighbours.shape != distance.shape or loss.shape != neighbours.shape[:1]:
        raise InputError(
            "a landscape needs loss [texts], neighbours and distance [texts, shells, k];"
            f" got {loss.shape}, {neighbours.shape}, {distance.shape}"
        )
    if neighbours.shape[1] < 1 or neighbours.shape[2] < 1:
        raise InputError("a landscape needs at least one shell with one neighbour")
    if not all(np.isfinite(values).all() for values in (loss, neighbours, distance)):
        raise InputError("a landscape needs finite losses and distances; a text without predicted tokens has none")
    delta = neighbours - loss[:, None, None]
    slope = delta / (distance + EPSILON)
    columns, names = [loss], ["loss"]
    for shell in range(neighbours.shape[1]):
        values, d, s = neighbours[:, shell], delta[:, shell], np.abs(slope[:, shell])
        quantiles = np.quantile(values, [0.1, 0.5, 0.9], axis=1)
        found = {
            "mean": values.mean(1),
            "std": values.std(1),
            "min": values.min(1),
            "max": values.max(1),
            "range": values.max(1) - values.min(1),
            "skew": _skewness(values),
            "q10": quantiles[0],
            "q50": quantiles[1],
            "q90": quantiles[2],
            "delta_mean": d.mean(1),
            "delta_std": d.std(1),
            "delta_abs": np.abs(d).mean(1),
            "delta_negative": (d < 0).mean(1),
            "delta_relative": d.mean(1) / np.maximum(loss, 1e-6),
            "slope_mean": s.mean(1),
            "slope_std": s.std(1),
            "slope_max": s.max(1),
        }
        columns += [found[name] for name in _SHELL]
        names += [f"shell{shell + 1}.{name}" for name in _SHELL]
    linear, quadratic = _quadratic_fit(distance.reshape(len(loss), -1), delta.reshape(len(loss), -1))
    proxy = delta[:, 1].mean(1) - 2 * delta[:, 0].mean(1) if delta.shape[1] > 1 else np.zeros(len(loss))
    columns += [linear, quadratic, proxy]
    names += list(_GLOBAL[1:])
    return LandscapeFeatures(np.stack(columns, axis=1), tuple(names))


def flatness(features: LandscapeFeatures, *, by: str = "std", shell: int = 1) -> Float[np.ndarray, " texts"]:
    """One number without labels: minus the spread ("std") or the mean absolute slope ("slope") of a shell; higher =
    flatter."""
    if by not in ("std", "slope"):
        raise InputError(f"flatness is by 'std' or 'slope', not {by!r}")
    return -features.column(f"shell{shell}.{'std' if by == 'std' else 'slope_mean'}")


class ResidualClassifier:
    """Which of several classes a text's landscape belongs to (retained, forgotten, holdout).

    kind: random_forest (300 trees, the paper's best), logistic, gradient_boosting; features are standardised.
    """

    def __init__(self, kind: str = "random_forest", *, seed: int = 0, trees: int = 300):
        if kind not in CLASSIFIERS:
            raise InputError(f"unknown classifier {kind!r}; use one of {', '.join(CLASSIFIERS)}")
        self.kind, self.seed, self.trees = kind, seed, trees
        self.classes: tuple[int, ...] = ()

    def fit(self, matrix: Float[np.ndarray, "texts features"], labels: Int[np.ndarray, " texts"]) -> ResidualClassifier:
        """Raises InputError with fewer than two classes or two texts a class."""
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        labels = np.asarray(labels)
        self.classes = tuple(int(label) for label in np.unique(labels))
        if len(self.classes) < 2 or min((labels == label).sum() for label in self.classes) < 2:
            raise InputError("calibration needs two classes or more with two texts or more each")
        self._model = make_pipeline(StandardScaler(), self._estimator()).fit(matrix, labels)
        return self

    def predict_proba(self, matrix: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, "texts classes"]:
        """Probabilities in the order of `classes`."""
        return self._model.predict_proba(matrix)

    @property
    def importances(self) -> Float[np.ndarray, " features"] | None:
        """Mean decrease in impurity (random forest), mean |coefficient| (logistic), None otherwise."""
        estimator: Any = self._model[-1]
        if hasattr(estimator, "feature_importances_"):
            return np.asarray(estimator.feature_importances_)
        return np.abs(estimator.coef_).mean(0) if hasattr(estimator, "coef_") else None

    def _estimator(self):
        if self.kind == "random_forest":
            from sklearn.ensemble import RandomForestClassifier

            return RandomForestClassifier(self.trees, random_state=self.seed % 2**32, min_samples_leaf=2)
        if self.kind == "logistic":
            from sklearn.linear_model import LogisticRegression

            return LogisticRegression(C=1.0, max_iter=2000)
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(random_state=self.seed % 2**32)


def cross_validated(
    matrix: Float[np.ndarray, "texts features"],
    labels: Int[np.ndarray, " texts"],
    groups: Sequence[object] | None = None,
    *,
    kind: str = "random_forest",
    folds: int = 5,
    seed: int = 0,
    trees: int = 300,
) -> Float[np.ndarray, "texts classes"]:
    """Out-of-fold probabilities; texts of one group (document, author) are never on both sides. Classes in ascending
    order. Raises InputError when a class is too small for the folds."""
    labels = np.asarray(labels)
    names = (
        np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    )
    classes = np.unique(labels)
    least = min(len(np.unique(names[labels == label])) for label in classes)
    if least < folds:
        raise InputError(
            f"{folds}-fold cross-validation needs {folds} documents of each class; the smallest has {least}"
        )
    from sklearn.model_selection import StratifiedGroupKFold

    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    out = np.full((len(labels), len(classes)), np.nan)
    for train, test in split.split(matrix, labels, names):
        model = ResidualClassifier(kind, seed=seed, trees=trees).fit(matrix[train], labels[train])
        out[test] = model.predict_proba(matrix[test])
    return out


def half_split_auroc(
    matrix: Float[np.ndarray, "texts features"],
    labels: Int[np.ndarray, " texts"],
    *,
    kind: str = "random_forest",
    repeats: int = 10,
    seed: int = 0,
    trees: int = 100,
) -> tuple[float, float]:
    """(mean AUROC of the held-out half over `repeats` random halvings, standard error of one half's AUROC at .5).

    Under no difference a held-out half's AUROC scatters around .5 with sqrt((m + n + 1)/(12 m n)) (Mann and Whitney
    1947), m and n its class sizes; the mean of several halvings scatters less, so bands made of this error are
    conservative. Cross-validated AUROCs scatter more than that. Macro one-vs-rest with more than two classes, the error
    then being that of the smallest class against the rest.
    """
    labels = np.asarray(labels)
    found, error = [], 0.0
    for repeat in range(repeats):
        rng = np.random.default_rng([seed % 2**32, repeat])
        train = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            train[rows[: len(rows) // 2]] = True
        model = ResidualClassifier(kind, seed=seed + repeat, trees=trees).fit(matrix[train], labels[train])
        found.append(multiclass_auroc(model.predict_proba(matrix[~train]), labels[~train]))
        m = min(int((labels[~train] == label).sum()) for label in np.unique(labels))
        n = int((~train).sum()) - m
        error = max(error, float(np.sqrt((m + n + 1) / (12 * m * n))))
    return float(np.mean(found)), error


def multiclass_auroc(probabilities: Float[np.ndarray, "texts classes"], labels: Int[np.ndarray, " texts"]) -> float:
    """Macro mean of the one-vs-rest AUROCs; with two classes the AUROC of the second. Range [0, 1], chance .5."""
    classes = np.unique(labels)
    if probabilities.shape != (len(labels), len(classes)):
        raise InputError(f"probabilities must be [texts, classes] = {(len(labels), len(classes))}")
    if len(classes) == 2:
        return auroc(probabilities[labels == classes[1], 1], probabilities[labels == classes[0], 1])
    found = [auroc(probabilities[labels == c, i], probabilities[labels != c, i]) for i, c in enumerate(classes)]
    return float(np.mean(found))


def partial_auroc(
    members: Float[np.ndarray, " m"], others: Float[np.ndarray, " n"], *, most_fpr: float = 0.01
) -> float:
    """Area under the ROC curve up to `most_fpr`, divided by `most_fpr`: the mean TPR there. Chance is most_fpr / 2."""
    if not 0 < most_fpr <= 1:
        raise InputError(f"most_fpr must be in (0, 1], not {most_fpr}")
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    fpr = np.concatenate([[0.0], [(others >= t).mean() for t in thresholds]])
    tpr = np.concatenate([[0.0], [(members >= t).mean() for t in thresholds]])
    end = np.interp(most_fpr, fpr, tpr)
    inside = fpr < most_fpr
    x, y = np.append(fpr[inside], most_fpr), np.append(tpr[inside], end)
    return float(np.trapezoid(y, x) / most_fpr)


def confusion(
    probabilities: Float[np.ndarray, "texts classes"], labels: Int[np.ndarray, " texts"]
) -> Int[np.ndarray, "classes classes"]:
    """Counts [true class, predicted class]."""
    classes = np.unique(labels)
    predicted = probabilities.argmax(1)
    return np.array([[int(((labels == c) & (predicted == j)).sum()) for j in range(len(classes))] for c in classes])


def matched_on_loss(
    loss: Float[np.ndarray, " texts"], first: Bool[np.ndarray, " texts"], second: Bool[np.ndarray, " texts"],
    *, width: float = 0.05,
) -> Int[np.ndarray, "pairs 2"]:  # fmt: skip
    """Pairs (row of first, row of second) of nearly equal L_0: nearest neighbours without replacement, at most `width`
    nats apart. Where pointwise losses say nothing, the neighbourhood alone must."""
    a, b = np.flatnonzero(first), np.flatnonzero(second)
    b = b[np.argsort(loss[b], kind="stable")]
    free = np.ones(len(b), bool)
    pairs = []
    for row in a[np.argsort(loss[a], kind="stable")]:
        gaps = np.where(free, np.abs(loss[b] - loss[row]), np.inf)
        if len(gaps) and gaps.min() <= width:
            nearest = int(gaps.argmin())
            free[nearest] = False
            pairs.append((row, b[nearest]))
    return np.array(pairs, int).reshape(-1, 2)


def _skewness(values: Float[np.ndarray, "texts k"]) -> Float[np.ndarray, " texts"]:
    """m_3 / m_2^1.5; 0 where nothing varies."""
    centred = values - values.mean(1, keepdims=True)
    second = (centred**2).mean(1)
    third = (centred**3).mean(1)
    return np.where(second > 1e-18, third / np.maximum(second, 1e-18) ** 1.5, 0.0)


def _quadratic_fit(d: Float[np.ndarray, "texts n"], delta: Float[np.ndarray, "texts n"]):
    """Least squares of Delta ~ a d + b d^2 for each text; a ridge of 1e-9 keeps equal distances solvable."""
    basis = np.stack([d, d**2], axis=2)
    gram = np.einsum("tni,tnj->tij", basis, basis) + 1e-9 * np.eye(2)
    right = np.einsum("tni,tn->ti", basis, delta)
    found = np.linalg.solve(gram, right[:, :, None])[:, :, 0]
    return found[:, 0], found[:, 1]
