"""How close an unlearned classifier is to one that never saw the forget set: ToW, ToW-MIA, and what they are made of.

The target is a *retrained* model (the oracle), never "forget accuracy 0": an oracle still gets most weakly memorized
examples right, and an unlearned model that does not has over-forgotten. Accuracies are shares in [0, 1].
Knows nothing about: models, how anything was unlearned.
Sources: Zhao et al. 2024 (RUM), arXiv 2406.01257 (ToW, entanglement); Song & Mittal 2021, arXiv 2003.10595 (modified
entropy); Jia et al. 2023, arXiv 2304.04934 (the population attack).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from rote.errors import InputError
from rote.measures.proxies import CLAMP
from rote.measures.reference_models import lira, logit
from rote.measures.roc import delong
from rote.measures.statistics import Estimate, check_confidence, finite_vector, percent_label

SETS = ("forget", "retain", "test")
FEATURES = ("confidence", "correctness", "entropy", "modified_entropy", "probability")


def tug_of_war(unlearned: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """ToW = prod over Z in {forget, retain, test} of (1 - |a(theta_u, Z) - a(theta_r, Z)|); range [0, 1], 1 = alike.

    Both map `forget`, `retain` and `test` to accuracies in [0, 1]. Errors: `InputError` for a missing set or a number
    outside [0, 1] (percentages).
    Source: Zhao et al. 2024, arXiv 2406.01257, sec. 3.
    """
    value = 1.0
    for name in SETS:
        ours, theirs = (_share(side, name) for side in (unlearned, oracle))
        value *= 1.0 - abs(ours - theirs)
    return value


def tug_of_war_mia(unlearned: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """ToW with the forget factor 1 - |MIA(theta_u) - MIA(theta_r)|; both maps have `mia`, `retain` and `test`.

    Source: Zhao et al. 2024, arXiv 2406.01257 (ToW-MIA); `mia` is `population_mia`.
    """
    renamed = [
        {"forget": _share(side, "mia"), **{name: side[name] for name in SETS[1:]}} for side in (unlearned, oracle)
    ]
    return tug_of_war(*renamed)


def _share(side: Mapping[str, float], name: str) -> float:
    if name not in side:
        raise InputError(f"no figure for the {name} set; there are: {', '.join(side)}")
    value = float(side[name])
    if not 0.0 <= value <= 1.0:
        raise InputError(f"the {name} figure is {value}: shares lie in [0, 1], divide percentages by 100")
    return value


def accuracy(probabilities: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]) -> float:
    """Share of rows whose argmax is the label."""
    p, y = _rows(probabilities, labels)
    return float((p.argmax(1) == y).mean())


# --- membership ------------------------------------------------------------------------------------------------------


def modified_entropy(
    probabilities: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, " examples"]:
    """-(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k), logarithms clamped at 1e-10; 0 = sure and right, up to 46.

    Source: Song & Mittal 2021, arXiv 2003.10595, eq. 8.
    """
    p, y = _rows(probabilities, labels)
    true = np.take_along_axis(p, y[:, None], 1)[:, 0]
    others = p * np.log(np.maximum(1.0 - p, CLAMP))
    np.put_along_axis(others, y[:, None], 0.0, 1)
    return -(1.0 - true) * np.log(np.maximum(true, CLAMP)) - others.sum(1)


def membership_feature(
    name: str, probabilities: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, "examples features"]:
    """What the attack sees: confidence p_y, correctness, entropy, modified_entropy (one column), or probability."""
    p, y = _rows(probabilities, labels)
    if name == "confidence":
        return np.take_along_axis(p, y[:, None], 1)
    if name == "correctness":
        return (p.argmax(1) == y)[:, None].astype(np.float64)
    if name == "entropy":
        return -(p * np.log(np.maximum(p, CLAMP))).sum(1, keepdims=True)
    if name == "modified_entropy":
        return modified_entropy(p, y)[:, None]
    if name == "probability":
        return p
    raise InputError(f"no membership feature {name!r}; there are: {', '.join(FEATURES)}")


def population_mia(
    members: Float[np.ndarray, "members features"],
    nonmembers: Float[np.ndarray, "nonmembers features"],
    forget: Float[np.ndarray, "forget features"],
) -> float:
    """Share of the forget set called non-member by an RBF-SVC (C = 3, gamma = 1/features) that tells retain from test.

    Range [0, 1]; the target is the oracle's value, not 1. As many members as non-members are used (the first of each),
    so that neither side wins by its size. A weak, population-level attack: a low value does not prove memorization, a
    match with the oracle does not prove forgetting.
    Source: Jia et al. 2023, arXiv 2304.04934 (forget efficacy, their `MIA`); RUM's code.
    """
    from sklearn.svm import SVC

    sides = [np.asarray(side, dtype=np.float64) for side in (members, nonmembers, forget)]
    if any(side.ndim != 2 or len(side) == 0 for side in sides) or len({side.shape[1] for side in sides}) > 1:
        raise InputError(f"the attack needs three [examples, features] matrices, got {[side.shape for side in sides]}")
    if not all(np.isfinite(side).all() for side in sides):
        raise InputError("the attack's features must be finite")
    size = min(len(sides[0]), len(sides[1]))
    inputs = np.concatenate([sides[0][:size], sides[1][:size]])
    attack = SVC(C=3.0, gamma="auto", kernel="rbf").fit(inputs, np.repeat([1, 0], size))
    return float(1.0 - attack.predict(sides[2]).mean())


def per_example_mia(
    true: Mapping[str, Float[np.ndarray, " examples"]],
    oracles: Sequence[Mapping[str, Float[np.ndarray, " examples"]]],
) -> Estimate:
    """AUROC of forget against test examples by offline LiRA, the oracles (which saw neither) being the out-models.

    Each map has `forget` and `test`: the model's probability of each example's own label. Score (phi - mu_out)/s_out,
    phi = logit p_y, one pooled variance. Range [0, 1]; the target is 0.5, read two-sided: above, the model still knows
    what an oracle does not; below, it is conspicuously worse on what it was made to forget (Streisand).
    Errors: `InputError` for fewer than two oracles.
    Source: Carlini et al. 2022, arXiv 2112.03570, sec. 6.3, with retrained oracles as shadow models.
    """
    if len(oracles) < 2:
        raise InputError("the per-example attack needs two oracles or more")

    def phi(side: Mapping[str, np.ndarray]) -> np.ndarray:
        both = np.concatenate([np.asarray(side[part], dtype=np.float64) for part in ("forget", "test")])
        return logit(np.log(np.clip(both, CLAMP, 1.0)))

    shadow = np.array([phi(oracle) for oracle in oracles])
    scores = lira(phi(true), shadow, np.zeros(shadow.shape, bool), mode="offline", fixed_variance=True)
    size = len(true["forget"])
    return delong(scores[:size], scores[size:])


# --- entanglement ----------------------------------------------------------------------------------------------------


def entanglement(retain: Float[np.ndarray, "retain d"], forget: Float[np.ndarray, "forget d"]) -> float:
    """ES = [mean ||phi_R - mu_R||^2 + mean ||phi_S - mu_S||^2] / [(||mu_R - mu||^2 + ||mu_S - mu||^2) / 2].

    phi: the original model's penultimate features; mu = (mu_R + mu_S)/2. Range (0, inf]; higher = the two sets are more
    mixed, and forgetting one is harder. Infinite when the means coincide.
    Source: Zhao et al. 2024, arXiv 2406.01257, sec. 4 (after Goldblum et al. 2020).
    """
    a, b = np.asarray(retain, dtype=np.float64), np.asarray(forget, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise InputError(f"entanglement needs two [examples, d] matrices, got {a.shape} and {b.shape}")
    mu_a, mu_b = a.mean(0), b.mean(0)
    mu = (mu_a + mu_b) / 2
    within = ((a - mu_a) ** 2).sum(1).mean() + ((b - mu_b) ** 2).sum(1).mean()
    between = (((mu_a - mu) ** 2).sum() + ((mu_b - mu) ** 2).sum()) / 2
    return float(within / between) if between > 0 else math.inf


# --- against several oracles -----------------------------------------------------------------------------------------


def t_interval(values, *, confidence: float = 0.95) -> Estimate:
    """Mean with Student's t interval over seeds: mean -+ t_{n-1} s / sqrt(n). NaN bounds for one value."""
    check_confidence(confidence)
    array = finite_vector(values, "values")
    if len(array) == 0:
        raise InputError("a mean needs at least one value")
    name, mean, n = percent_label("t", confidence), float(array.mean()), len(array)
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n, name)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * array.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n, name)


@dataclass(frozen=True)
class ClassifierFigures:
    """One model on the three sets: accuracies in [0, 1], the population attack's share of non-members per feature, and
    the probabilities of their own labels of forget and test examples (for the per-example attack)."""

    forget: float
    retain: float
    test: float
    mia: Mapping[str, float]
    true: Mapping[str, Float[np.ndarray, " examples"]]

    def shares(self, feature: str = "confidence") -> dict[str, float]:
        return {"forget": self.forget, "retain": self.retain, "test": self.test} | (
            {"mia": self.mia[feature]} if feature in self.mia else {}
        )

    def as_dict(self) -> dict:
        return {"forget": self.forget, "retain": self.retain, "test": self.test, "mia": dict(self.mia)}


def classifier_figures(
    probabilities: Mapping[str, Float[np.ndarray, "examples classes"]],
    labels: Mapping[str, Int[np.ndarray, " examples"]],
    *,
    features: Sequence[str] = FEATURES,
) -> ClassifierFigures:
    """Accuracies and population attacks of one model; both maps have `forget`, `retain` and `test`.

    `features` may be empty: the attacks are the slow part.
    """
    missing = [name for name in SETS if name not in probabilities or name not in labels]
    if missing:
        raise InputError(f"no probabilities or labels for the {missing[0]} set")
    mia = {}
    for name in features:
        seen = {part: membership_feature(name, probabilities[part], labels[part]) for part in SETS}
        mia[name] = population_mia(seen["retain"], seen["test"], seen["forget"])
    true = {part: membership_feature("confidence", probabilities[part], labels[part])[:, 0] for part in SETS[::2]}
    return ClassifierFigures(*(accuracy(probabilities[part], labels[part]) for part in SETS), mia=mia, true=true)


@dataclass(frozen=True)
class UnlearningQuality:
    """An unlearned model against its oracles. `ceiling`: what one oracle gets against another (None for a single one);
    no method can be told from a retraining above it. `lira`: `per_example_mia` (two oracles or more); `lira_oracle`:
    the same of each oracle against the others, in the mean (three or more)."""

    figures: ClassifierFigures
    oracles: tuple[ClassifierFigures, ...]
    tow: Estimate
    tow_mia: Estimate | None
    ceiling: Estimate | None
    lira: Estimate | None
    lira_oracle: float | None

    def as_dict(self) -> dict:
        return {
            "tow": self.tow.as_dict(),
            "tow_mia": None if self.tow_mia is None else self.tow_mia.as_dict(),
            "ceiling": None if self.ceiling is None else self.ceiling.as_dict(),
            "lira_auroc": None if self.lira is None else self.lira.as_dict(),
            "lira_auroc_of_oracles": self.lira_oracle,
            "unlearned": self.figures.as_dict(),
            "oracles": [oracle.as_dict() for oracle in self.oracles],
        }


def against_oracles(
    figures: ClassifierFigures, oracles: Sequence[ClassifierFigures], *, feature: str = "confidence"
) -> UnlearningQuality:
    """ToW and ToW-MIA with t intervals (cut off at 0 and 1) over the oracles' seeds, and the oracle-oracle ceiling.

    An oracle has a variance of its own: give two or more. The ceiling's pairs share oracles, so its interval is rough.
    """
    if not oracles:
        raise InputError("no oracle: retrain on the retain set at least once, better three times")
    ours = figures.shares(feature)
    theirs = [oracle.shares(feature) for oracle in oracles]
    attacked = "mia" in ours and all("mia" in side for side in theirs)
    pairs = [tug_of_war(a, b) for a, b in combinations(theirs, 2)]
    true = [oracle.true for oracle in oracles]
    among = (
        [per_example_mia(one, true[:k] + true[k + 1 :]).value for k, one in enumerate(true)] if len(true) > 2 else []
    )
    return UnlearningQuality(
        figures,
        tuple(oracles),
        tow=_of_share([tug_of_war(ours, side) for side in theirs]),
        tow_mia=_of_share([tug_of_war_mia(ours, side) for side in theirs]) if attacked else None,
        ceiling=_of_share(pairs) if pairs else None,
        lira=per_example_mia(figures.true, true) if len(true) > 1 else None,
        lira_oracle=float(np.mean(among)) if among else None,
    )


def _of_share(values: Sequence[float]) -> Estimate:
    """A t interval of numbers in [0, 1], cut off there."""
    found = t_interval(values)
    low, high = (end if math.isnan(end) else min(max(end, 0.0), 1.0) for end in (found.low, found.high))
    return Estimate(found.value, low, high, found.n, found.interval)


def _rows(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or not len(p):
        raise InputError(f"probabilities must be [examples, classes] with one label a row, got {p.shape} and {y.shape}")
    if not np.isfinite(p).all():
        raise InputError(f"probabilities row {int(np.argmax(~np.isfinite(p).all(1)))} is not finite")
    if not (y.min() >= 0 and y.max() < p.shape[1]):
        raise InputError(f"labels must lie in 0..{p.shape[1] - 1}, got {y.min()}..{y.max()}")
    return p, y
