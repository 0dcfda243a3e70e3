"""REMIND: does an unlearned model still show what it forgot? From loss queries alone.

The auditor brings a loss function (texts -> mean nats a token), texts that are known to be retained, forgotten and
never seen, and an embedding table for neighbours. Cost: (1 + shells * K) queries a text. Beside the landscape's
classifier stand what it must be compared with: pointwise losses from the same queries, a classifier that reads only the
text, and, where there is one, the same classes on a model retrained without the forget set (there nothing but chance is
right).

Read both ways: a forgotten text that looks retained is a residue; one that is flatter than unseen text is damage by the
unlearner, a fingerprint too. Ideal unlearning cannot be told from never having seen the text.
Knows nothing about how a model was unlearned.
Source: Cohen et al. 2025, arXiv 2511.04228; the parts that could not be read are reconstructed (see
`rote.measures.landscape`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.measures.blind import bag_of_words
from rote.measures.landscape import (
    CLASSES,
    LandscapeFeatures,
    confusion,
    cross_validated,
    flatness,
    landscape_features,
    matched_on_loss,
    multiclass_auroc,
    partial_auroc,
)
from rote.measures.roc import delong
from rote.records.table import RecordTable
from rote.scores.embedding_neighbours import EmbeddingNeighbours

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

Loss = Callable[[Sequence[str]], Float[np.ndarray, " texts"]]
FOLDS = 5


@dataclass(frozen=True)
class LandscapeScan:
    """Losses of every text and its neighbours, their features, and the pointwise baseline from the same queries.

    loss [texts], around and distance [texts, shells, K]; `queries` = texts (1 + shells K)."""

    loss: Float[np.ndarray, " texts"]
    around: Float[np.ndarray, "texts shells k"]
    distance: Float[np.ndarray, "texts shells k"]
    features: LandscapeFeatures
    pointwise: Float[np.ndarray, "texts features"]
    queries: int
    round_trip: float
    mean_length_change: float

    def first(self, k: int) -> LandscapeScan:
        """The scan with the first k neighbours of each shell: what a scan with this K and the same seed gives."""
        around, distance = self.around[:, :, :k], self.distance[:, :, :k]
        found = landscape_features(self.loss, around, distance)
        queries = len(self.loss) * (1 + around.shape[1] * around.shape[2])
        return LandscapeScan(
            self.loss, around, distance, found, self.pointwise, queries, self.round_trip, self.mean_length_change
        )


@dataclass(frozen=True)
class Comparison:
    """AUROC of a pair of classes under the landscape and under the pointwise losses, cross-validated, and where the
    pointwise losses were matched (`matched`: None with fewer than 20 pairs)."""

    landscape: float
    landscape_low: float
    landscape_high: float
    pointwise: float
    matched: float | None
    matched_low: float | None
    matched_high: float | None
    matched_pairs: int


@dataclass(frozen=True)
class RemindReport:
    """What REMIND finds on one model. AUROCs are macro one-vs-rest over held-out documents; chance is .5."""

    auroc: float
    auroc_pointwise: float
    auroc_text_only: float | None
    auroc_shuffled: float
    partial_auroc: float
    partial_auroc_pointwise: float
    pairs: dict[str, Comparison]
    flatness: dict[str, dict[str, float]]
    confusion: list[list[int]]
    importances: dict[str, float]
    counts: dict[str, int]
    queries: int
    notes: tuple[str, ...] = ()
    oracle: RemindReport | None = field(default=None)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def model_loss(model: CausalLM) -> Loss:
    """The loss of a loaded model as a plain function: mean nats a predicted token; equal texts are scored once."""
    from rote.scores.sequences import Split
    from rote.scores.tokens import score_in_memory

    def loss(texts: Sequence[str]) -> np.ndarray:
        place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        table = RecordTable.from_rows({"id": str(number), "text": text} for text, number in place.items())
        scores = score_in_memory(model, table, split=Split(long="truncate"))
        means = np.full(len(place), np.nan)
        means[scores.index] = -np.nanmean(scores.logp.astype(np.float64), axis=1)
        return means[[place[text] for text in texts]]

    return loss


def scan(
    loss: Loss,
    texts: Sequence[str],
    neighbours: EmbeddingNeighbours,
    *,
    k: int = 20,
    p: Sequence[float] = (0.05, 0.1, 0.2),
    ranks: tuple[int, int] = (1, 5),
    names: Sequence[str] | None = None,
    encoder: Any = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    block: int = 64,
) -> LandscapeScan:
    """Query the loss on every text and its neighbours. Raises InputError when the loss is not finite somewhere."""
    losses, around, distances, trips, changes = [], [], [], [], []
    for start in range(0, len(texts), block):
        part = list(texts[start : start + block])
        labels = None if names is None else list(names[start : start + block])
        made = neighbours.variants(part, k=k, p=p, ranks=ranks, names=labels, encoder=encoder, seed=seed)
        flat = [variant for shells in made.texts for shell in shells for variant in shell]
        values = np.asarray(loss([*part, *flat]), np.float64)
        if values.shape != (len(part) + len(flat),) or not np.isfinite(values).all():
            raise InputError("the loss function must give one finite number a text (a text of one token has none)")
        losses.append(values[: len(part)])
        around.append(values[len(part) :].reshape(len(part), len(p), k))
        distances.append(made.distance)
        trips.append(made.round_trip * len(part))
        changes.append(np.abs(made.length_change).mean() * len(part))
        if progress:
            progress(min(start + block, len(texts)), len(texts))
    own, cloud, distance = np.concatenate(losses), np.concatenate(around), np.concatenate(distances)
    return LandscapeScan(
        own,
        cloud,
        distance,
        landscape_features(own, cloud, distance),
        own[:, None],
        len(texts) * (1 + len(p) * k),
        sum(trips) / len(texts),
        sum(changes) / len(texts),
    )


def remind(
    scanned: LandscapeScan,
    labels: Int[np.ndarray, " texts"],
    texts: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    pointwise: Float[np.ndarray, "texts features"] | None = None,
    classifier: str = "random_forest",
    oracle: LandscapeScan | None = None,
    seed: int = 0,
    trees: int = 300,
) -> RemindReport:
    """Cross-validated classification of retained (0), forgotten (1) and holdout (2), with everything beside it.

    pointwise: scores of single losses to compare with (mean loss and Min-K%, ...); the mean loss alone when left out.
    groups: document or author of each text: never on both sides of a split. oracle: a scan of the same texts under a
    model retrained without the forget set. Raises InputError when a class is missing or too small.
    """
    labels = np.asarray(labels)
    present = [int(label) for label in np.unique(labels)]
    if any(label not in range(len(CLASSES)) for label in present) or len(present) < 2:
        raise InputError("labels are 0 retained, 1 forgotten, 2 holdout, and at least two of them must occur")
    baseline = scanned.pointwise if pointwise is None else np.asarray(pointwise, np.float64)
    settings = {"kind": classifier, "folds": FOLDS, "seed": seed, "trees": trees}
    proba = cross_validated(scanned.features.matrix, labels, groups, **settings)
    proba_pointwise = cross_validated(baseline, labels, groups, **settings)
    shuffled = np.random.default_rng(seed).permutation(labels)
    proba_shuffled = cross_validated(scanned.features.matrix, shuffled, None, **settings)
    names = [CLASSES[label] for label in present]
    pairs = {}
    for i, first in enumerate(present):
        for second in present[i + 1 :]:
            rows = (labels == first) | (labels == second)
            pairs[f"{CLASSES[first]} / {CLASSES[second]}"] = _pair(
                scanned.features.rows(rows), baseline[rows], labels[rows] == second, _subset(groups, rows), settings
            )
    from rote.measures.landscape import ResidualClassifier

    whole = ResidualClassifier(classifier, seed=seed, trees=trees).fit(scanned.features.matrix, labels).importances
    importances = {} if whole is None else dict(zip(scanned.features.names, map(float, whole), strict=True))
    flat = {
        kind: {name: float(np.median(flatness(scanned.features, by=kind)[labels == label]))
               for name, label in zip(names, present, strict=True)}
        for kind in ("std", "slope")
    }  # fmt: skip
    report = RemindReport(
        auroc=multiclass_auroc(proba, labels),
        auroc_pointwise=multiclass_auroc(proba_pointwise, labels),
        auroc_text_only=_text_only(texts, labels, groups, seed),
        auroc_shuffled=multiclass_auroc(proba_shuffled, shuffled),
        partial_auroc=_partial(proba, labels),
        partial_auroc_pointwise=_partial(proba_pointwise, labels),
        pairs=pairs,
        flatness=flat,
        confusion=confusion(proba, labels).tolist(),
        importances=dict(sorted(importances.items(), key=lambda item: -item[1])[:10]),
        counts={name: int((labels == label).sum()) for name, label in zip(names, present, strict=True)},
        queries=scanned.queries,
    )
    beside = None
    if oracle is not None:
        beside = remind(oracle, labels, texts, groups=groups, classifier=classifier, seed=seed, trees=trees)
    return _with_notes(report, beside, scanned)


def _pair(features, baseline, second, groups, settings) -> Comparison:
    """Second class against first: cross-validated scores of the second."""
    label = second.astype(int)
    score = cross_validated(features.matrix, label, groups, **settings)[:, 1]
    point = cross_validated(baseline, label, groups, **settings)[:, 1]
    estimate = delong(score[second], score[~second])
    pairs = matched_on_loss(features.column("loss"), second, ~second)
    matched = None
    if len(pairs) >= 20:
        # Shape features only, trained and judged where the two classes have the same losses; a pair is one group.
        rows = pairs.reshape(-1)
        shape = features.without_level().matrix[rows]
        there = np.tile([1, 0], len(pairs))
        together = np.repeat(np.arange(len(pairs)), 2).astype(str).tolist()
        found = cross_validated(shape, there, together, **settings)[:, 1]
        matched = delong(found[there == 1], found[there == 0])
    return Comparison(
        estimate.value, estimate.low, estimate.high, float(delong(point[second], point[~second]).value),
        None if matched is None else matched.value, None if matched is None else matched.low,
        None if matched is None else matched.high, len(pairs),
    )  # fmt: skip


def _text_only(texts: Sequence[str], labels: np.ndarray, groups: Sequence[str] | None, seed: int) -> float | None:
    """Macro one-vs-rest AUROC of a bag-of-words classifier: what the audit would say without asking the model."""
    found = []
    for label in np.unique(labels):
        guard = bag_of_words(list(texts), labels == label, groups=groups, seed=seed)
        if guard.value is None:
            return None
        found.append(guard.value)
    return float(np.mean(found))


def _partial(proba: np.ndarray, labels: np.ndarray) -> float:
    classes = np.unique(labels)
    return float(np.mean([partial_auroc(proba[labels == c, i], proba[labels != c, i]) for i, c in enumerate(classes)]))


def _subset(groups: Sequence[str] | None, rows: np.ndarray) -> list[str] | None:
    return None if groups is None else [groups[int(i)] for i in np.flatnonzero(rows)]


def _with_notes(report: RemindReport, oracle: RemindReport | None, scanned: LandscapeScan) -> RemindReport:
    notes = []
    if report.auroc_pointwise >= report.auroc:
        notes.append(
            f"single losses do as well ({report.auroc_pointwise:.2f} against {report.auroc:.2f}): the landscape adds"
            " nothing here"
        )
    if report.auroc_text_only is not None and report.auroc_text_only > 0.6:
        notes.append(
            f"the text alone tells the classes apart ({report.auroc_text_only:.2f}): part of the audit reads the choice"
            " of texts, not the model"
        )
    pair = report.pairs.get("forgotten / holdout")
    if pair is not None:
        clear = pair.landscape_low > 0.5
        spread = report.flatness["std"]
        flatter = spread["forgotten"] > spread["holdout"]
        notes.append(
            f"forgotten against never seen: AUROC {pair.landscape:.2f} ({pair.landscape_low:.2f} to"
            f" {pair.landscape_high:.2f}); " + (
                "they can be told apart, so the model does not look as if it had never seen them"
                + (" (flatter than unseen text: the unlearner's own trace)" if flatter else "")
                if clear else "they cannot be told apart here"
            )
        )  # fmt: skip
        if pair.matched is not None:
            enough = pair.matched_low is not None and pair.matched_low > 0.5
            notes.append(
                f"where forgotten and unseen text have the same loss ({pair.matched_pairs} pairs), the shape of the"
                f" landscape alone {'still tells' if enough else 'does not tell'} them apart ({pair.matched:.2f})"
            )
    if oracle is not None:
        null = oracle.pairs.get("forgotten / holdout")
        if null is not None and null.landscape_low > 0.5:
            notes.append(
                f"the null fails: even on the retrained model forgotten and holdout differ ({null.landscape:.2f}), so"
                " the two sets are not exchangeable"
            )
    if scanned.round_trip < 0.99:
        notes.append(f"{1 - scanned.round_trip:.1%} of the texts do not survive encoding and decoding unchanged")
    return RemindReport(**{**vars(report), "notes": tuple(notes), "oracle": oracle})
