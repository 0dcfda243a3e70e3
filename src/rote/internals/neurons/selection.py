"""Which single coordinates separate memorized from other tokens: chosen on training passages, judged on held-out ones.

For every coordinate: AUROC A of its value (sign-free max(A, 1 - A)), standardised mean difference, best balanced
accuracy. The number that pass is counted against the permutation distribution of the maximum over ALL coordinates,

    T_b = max_j |A_j(permuted labels b) - .5|,   threshold = the (ceil((1 - alpha)(B + 1)))-th smallest T_b,

so that with no signal at all the chance of even one false discovery is at most alpha (Westfall and Young 1993). Labels
are permuted between passages. Ranks make the AUROC the same for any monotone transform of an activation.

Knows the store of activations and the labels. Knows nothing about: models, probes.
Source: Slonski 2024, arXiv 2412.01014 (that single activations separate the classes); statistics, m = 20 and the
permutation rule are inferred, the full text was not available.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from rote.errors import InputError
from rote.internals.neurons.coordinates import (
    auroc_of_ranks,
    balanced_accuracy,
    best_threshold,
    rank_auroc,
    standardised_mean_difference,
)
from rote.internals.neurons.sites import Place
from rote.internals.neurons.splits import held_out, permuted_labels

if TYPE_CHECKING:
    from rote.internals.neurons.activations import ActivationStore
    from rote.internals.neurons.token_labels import TokenLabels

STATISTICS = ("auroc", "smd", "balanced_accuracy")


@dataclass(frozen=True)
class Unit:
    """One coordinate. auroc and balanced_accuracy: sign-free, on the training passages it was chosen on. sign: +1 when
    larger means memorized. *_held_out: with that sign and threshold on passages it was not chosen on (AUROC below .5
    means it failed). p_value: of the maximum over all coordinates, by permutation; None without permutations."""

    site: str
    layer: int
    dimension: int
    sign: int
    auroc: float
    smd: float
    balanced_accuracy: float
    threshold: float
    auroc_held_out: float
    balanced_accuracy_held_out: float
    p_value: float | None


@dataclass(frozen=True)
class UnitSelection:
    """The best units of each site, in order. permutation_threshold: smallest |A - .5| + .5 that passes at `alpha`;
    passing: how many of the site's coordinates do, on the training passages; coordinates: of how many."""

    units: tuple[Unit, ...]
    statistic: str
    permutations: int
    alpha: float
    permutation_threshold: float | None
    passing: dict[str, int]
    coordinates: dict[str, int]
    held_out: Bool[np.ndarray, " tokens"]

    @property
    def best(self) -> Unit:
        """The first by the statistic over all sites."""
        return max(self.units, key=lambda unit: _merit(unit, self.statistic))

    def at(self, site: str, layer: int, *, top: int | None = None) -> Int[np.ndarray, " units"]:
        """Dimensions of the best units of one site and layer, best first."""
        return np.array([u.dimension for u in self.units if (u.site, u.layer) == (site, layer)][:top], np.int64)

    def rows(self) -> list[dict[str, Any]]:
        """The units as plain rows; an infinite smd (no spread at all) is None."""
        return [asdict(unit) | {"smd": unit.smd if math.isfinite(unit.smd) else None} for unit in self.units]


def select_units(
    acts: ActivationStore,
    labels: TokenLabels,
    *,
    against: Sequence[str] | None = None,
    groups: str = "passage",
    statistic: str = "auroc",
    top: int = 20,
    permutations: int = 200,
    alpha: float = 0.05,
    test_share: float = 0.3,
    seed: int = 0,
) -> UnitSelection:
    """The `top` coordinates of every captured site, over all its layers.

    against: kinds of tokens to compare with (default: every kind). statistic: auroc, smd (|mu1 - mu0| / sd_pooled) or
    balanced_accuracy. permutations: 0 leaves the threshold out.
    Raises InputError for an unknown statistic, or too few passages to hold some out.
    """
    if statistic not in STATISTICS:
        raise InputError(f"unknown statistic {statistic!r}; use one of {', '.join(STATISTICS)}")
    if top < 1 or permutations < 0 or not 0 < alpha < 1:
        raise InputError(f"top is {top}, permutations {permutations}, alpha {alpha}: need >= 1, >= 0 and inside (0, 1)")
    acts.check(labels)
    rows = np.flatnonzero(labels.versus(*against)) if against else np.arange(len(labels))
    label, group = labels.label[rows], labels.units_of_split(groups)[rows]
    test = held_out(group, label, share=test_share, seed=seed)
    train_rows, test_rows, y, y_test = rows[~test], rows[test], label[~test], label[test]
    shuffled = permuted_labels(group[~test], y, permutations=permutations, seed=seed) if permutations else None
    maxima = np.zeros(permutations)
    candidates: dict[str, list[tuple[Place, dict[str, np.ndarray]]]] = {}
    for place in acts.arrays:
        for columns, values in acts.blocks(place, train_rows):
            found = _measure(values, y, shuffled, maxima)
            found["dimension"] = np.arange(columns.start, columns.stop)
            candidates.setdefault(place.site, []).append((place, found))
    threshold = permutation_threshold(maxima, alpha) if permutations else None
    units, passing, sizes = [], {}, {}
    for site, parts in candidates.items():
        away = np.concatenate([np.abs(found["auroc"] - 0.5) for _, found in parts])
        sizes[site] = len(away)
        passing[site] = 0 if threshold is None else int((away >= threshold).sum())
        merit = np.concatenate([_merits(found, statistic) for _, found in parts])
        homes = [(place, found, i) for place, found in parts for i in range(len(found["auroc"]))]
        for number in np.argsort(-merit, kind="stable")[:top]:
            place, found, i = homes[number]
            units.append(_unit(acts, place, found, int(i), test_rows, y_test, maxima))
    everywhere = np.zeros(len(labels), bool)
    everywhere[test_rows] = True
    edge = None if threshold is None else 0.5 + threshold
    return UnitSelection(tuple(units), statistic, permutations, alpha, edge, passing, sizes, everywhere)


def permutation_threshold(maxima: Float[np.ndarray, " permutations"], alpha: float) -> float:
    """The smallest observed maximum that is significant at `alpha`: just above the k-th smallest permuted one, k =
    ceil((1 - alpha)(B + 1)); infinite when B is too small for that alpha."""
    k = math.ceil((1 - alpha) * (len(maxima) + 1) - 1e-9)
    return float(np.nextafter(np.sort(maxima)[k - 1], np.inf)) if k <= len(maxima) else math.inf


def max_statistics(
    values: Float[np.ndarray, "tokens coordinates"], shuffled: Bool[np.ndarray, "permutations tokens"]
) -> Float[np.ndarray, " permutations"]:
    """max_j |A_j - .5| for every permuted labelling: one product of labels with ranks."""
    return _max_of_ranks(stats.rankdata(values, axis=0), shuffled)


def _max_of_ranks(ranks: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    m = shuffled.sum(1).astype(np.float64)[:, None]
    n = shuffled.shape[1] - m
    usable = (m > 0) & (n > 0)
    u = shuffled.astype(np.float64) @ ranks - m * (m + 1) / 2
    return np.where(usable, np.abs(u / np.where(usable, m * n, 1.0) - 0.5), 0.0).max(1)


def _measure(values, label, shuffled, maxima) -> dict[str, np.ndarray]:
    """All three statistics of a block of columns; `maxima` is raised in place."""
    ranks = stats.rankdata(values, axis=0)
    if shuffled is not None:
        np.maximum(maxima, _max_of_ranks(ranks, shuffled), out=maxima)
    accuracy, threshold, sign = best_threshold(values, label)
    return {
        "auroc": auroc_of_ranks(ranks, label),
        "smd": standardised_mean_difference(values, label),
        "balanced_accuracy": accuracy,
        "threshold": threshold,
        "threshold_sign": sign,
    }


def _merits(found: dict[str, np.ndarray], statistic: str) -> np.ndarray:
    if statistic == "auroc":
        return np.abs(found["auroc"] - 0.5)
    return np.abs(found["smd"]) if statistic == "smd" else found["balanced_accuracy"]


def _merit(unit: Unit, statistic: str) -> float:
    return abs(getattr(unit, statistic))


def _unit(acts: ActivationStore, place: Place, found, i: int, test_rows, y_test, maxima) -> Unit:
    dimension = int(found["dimension"][i])
    values = np.asarray(acts[place][:, dimension][test_rows], np.float64)
    raw = float(found["auroc"][i])
    sign = 1 if raw >= 0.5 else -1
    threshold, way = float(found["threshold"][i]), float(found["threshold_sign"][i])
    again = float(rank_auroc(sign * values[:, None], y_test)[0])
    accuracy = float(balanced_accuracy(way * values >= way * threshold, y_test))
    away = abs(raw - 0.5)
    p_value = (1 + int((maxima >= away).sum())) / (1 + len(maxima)) if len(maxima) else None
    return Unit(
        place.site, place.layer, dimension, sign, max(raw, 1 - raw), float(found["smd"][i]),
        float(found["balanced_accuracy"][i]), threshold, again, accuracy, p_value,
    )  # fmt: skip


def histograms(
    values: Float[np.ndarray, " tokens"], label: Bool[np.ndarray, " tokens"], *, bins: int = 40
) -> dict[str, list[float]]:
    """Two histograms of one coordinate over common bins, as densities: `edges` [bins + 1], `positive`, `negative`."""
    edges = np.histogram_bin_edges(values, bins)
    one, zero = (np.histogram(values[side], edges, density=True)[0] for side in (label, ~label))
    return {"edges": edges.tolist(), "positive": one.tolist(), "negative": zero.tolist()}
