"""Two networks that both memorize the training half, side by side on the other half, with 1-nearest-neighbour beside.

The audit of the paper's point: training accuracy says nothing. Knows the memorizers of this folder and how to split a
sample; deliberately does not know files, intervals or plots. Source: Yu et al. 2024 (arXiv 2411.00372).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.theory.generalize.core import constant_size_core
from rote.theory.generalize.labelled import check_two_classes
from rote.theory.generalize.sqrt_memorizer import SqrtMemorizer
from rote.theory.generalize.voronoi import VoronoiMemorizer

NAMES = ("voronoi", "core", "sqrt", "1nn")
MEANING = {
    "voronoi": "theorem 7.3: one polytope per record",
    "core": "theorem 4.3: the same network, of a c0/3-net of the records",
    "sqrt": "theorem 4.1: about sqrt(N) parameters",
    "1nn": "1-nearest-neighbour, the baseline (no network)",
}


@dataclass(frozen=True)
class Compared:
    """One memorizer. Accuracies count F(x) = 0 as wrong; `parameters` are dense (every entry), `nonzero` those the
    construction uses; both None for 1-NN."""

    name: str
    meaning: str
    train_accuracy: float
    test_accuracy: float
    test_correct: int
    test_count: int
    abstained: int
    parameters: int | None
    nonzero: int | None
    depth: int | None
    width: int | None


def pick_pair(
    y: np.ndarray, classes: Sequence[Any], pair: tuple[str, str] | None
) -> tuple[Int[np.ndarray, " kept"], tuple]:
    """(rows of the two classes, their labels). `y` indexes `classes`; `pair` names two of them as text, None takes the
    only two there are. Errors: InputError for a name that is none of them, or a choice that must be made."""
    names = [str(label) for label in classes]
    if pair is None:
        if len(classes) != 2:
            raise InputError(f"{len(classes)} classes ({', '.join(names[:12])}); pick two with --pair A B")
        pair = names[0], names[1]
    for name in pair:
        if name not in names:
            raise InputError(f"no class {name!r}; there are: {', '.join(names[:12])}")
    if pair[0] == pair[1]:
        raise InputError(f"--pair needs two different classes, not {pair[0]!r} twice")
    chosen = [names.index(name) for name in pair]
    return np.flatnonzero(np.isin(y, chosen)), tuple(classes[k] for k in chosen)


def into_unit_cube(X: Float[np.ndarray, "records features"]) -> Float[np.ndarray, "records features"]:
    """Moved and scaled into [0,1]^n with one factor, so that all distances keep their ratios."""
    low = X.min(axis=0)
    return np.clip((X - low) / max(float((X - low).max()), np.finfo(float).tiny), 0.0, 1.0)


def stratified_split(
    y: np.ndarray, *, test_share: float, seed: int
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Rows for training and for the test, the share taken from each class by itself; at least one of each class on
    either side. Errors: InputError for a share outside (0, 1) or a class of one record."""
    if not 0 < test_share < 1:
        raise InputError(f"the test share must be in (0, 1), not {test_share}")
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        if len(rows) < 2:
            raise InputError("a class has one record only; splitting needs two or more of each")
        count = min(max(1, round(test_share * len(rows))), len(rows) - 1)
        test.append(rows[:count])
        train.append(rows[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def compare_memorizers(
    X: Float[np.ndarray, "train features"],
    y: np.ndarray,
    X_test: Float[np.ndarray, "test features"],
    y_test: np.ndarray,
    *,
    names: Sequence[str] = NAMES,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Compared]:
    """Fit each of `names` on the training points and count it right on both. Errors: InputError, see the estimators."""
    for name in names:
        if name not in NAMES:
            raise InputError(f"no memorizer {name!r}; there are: {', '.join(NAMES)}")
    data = check_two_classes(X, y, unit_cube=True)
    found = []
    for name in names:
        progress(f"{name}: {MEANING[name]}")
        network, size = _fit(name, data.X, data.signs, seed)
        right = [network.predict(points) == truth for points, truth in (
            (data.X, data.signs), (np.asarray(X_test, float), np.where(np.asarray(y_test) == data.classes[1], 1, -1)),
        )]  # fmt: skip
        silent = network.abstains(X_test) if isinstance(network, VoronoiMemorizer) else np.zeros(0, dtype=bool)
        found.append(
            Compared(
                name=name,
                meaning=MEANING[name],
                train_accuracy=float(right[0].mean()),
                test_accuracy=float(right[1].mean()),
                test_correct=int(right[1].sum()),
                test_count=len(right[1]),
                abstained=int(silent.sum()),
                **size,
            )
        )
    return found


def _fit(name: str, X: np.ndarray, signs: np.ndarray, seed: int) -> tuple[Any, dict[str, int | None]]:
    """The fitted estimator, and its size."""
    if name == "1nn":
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(1).fit(X, signs), dict.fromkeys(("parameters", "nonzero", "depth", "width"))
    if name == "sqrt":
        network = SqrtMemorizer(seed=seed).fit(X, signs)
        return network, {
            "parameters": network.parameters_,
            "nonzero": network.nonzero_parameters_,
            "depth": network.depth_,
            "width": network.width_,
        }
    network = VoronoiMemorizer(abstain_label=0)
    if name == "core":
        core = constant_size_core(X, signs)
        network.fit(core.points, core.labels)
    else:
        network.fit(X, signs)
    return network, {
        "parameters": network.dense_parameters_,
        "nonzero": network.sparse_parameters_,
        "depth": 3,
        "width": network.first_width_,
    }
