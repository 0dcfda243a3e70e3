"""A linear probe for recited tokens, always reported beside the same probe on a model that never saw the texts.

One logistic probe per layer on standardised activations of one site; passages are never split between training and
test. Memorized texts differ from others in difficulty too, so a probe's accuracy says little by itself: the figure to
read is the gap to the control column, which has the same tokens, the same labels and the same folds, but activations of
a model that did not train on the texts. Beside it: what log p, entropy and max p of the output tell without looking
inside, and both together.

Knows activations and labels. Knows nothing about: files (`probe_files`), interventions.
Source: Slonski 2024, arXiv 2412.01014 (linear probes on labelled tokens); the split by passage, the control column and
the baselines are this implementation's, the paper's full text was not available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rote.errors import InputError
from rote.internals.neurons.activations import ActivationStore
from rote.internals.neurons.cross_validation import (
    C,
    Judged,
    LinearProbe,
    difference,
    fit_linear,
    group_weights,
    judge,
    out_of_fold,
    stratified_auroc,
)
from rote.internals.neurons.sites import Place
from rote.internals.neurons.splits import group_folds
from rote.measures.statistics import Estimate

if TYPE_CHECKING:
    from rote.internals.neurons.intervention import Direction
    from rote.internals.neurons.token_labels import TokenLabels
    from rote.models.causal_lm import CausalLM

NO_CONTROL = (
    "no control model was given: part of this accuracy is the difficulty of the texts, and how large a part is unknown"
)

CIRCULAR = (
    "labels are defined by the token's own probability, so the log p and output columns are circular against uncertain"
    " tokens; the comparison with certain ones, and the control column, are not"
)


@dataclass(frozen=True)
class ProbeReport:
    """Held-out figures, all on the same tokens and folds. gap: AUROC minus the control's. outputs: logistic on (log p,
    entropy, max log p); logp: the bare probability; combined: activations and outputs together. None without its
    model."""

    probe: Judged
    control: Judged | None
    gap: Estimate | None
    outputs: Judged
    logp: Judged
    combined: Judged
    against: tuple[str, ...]
    counts: dict[str, int]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("probe", "control", "gap", "outputs", "logp", "combined")}
        plain = {name: None if value is None else value.as_dict() for name, value in plain.items()}
        return {**plain, "against": list(self.against), "counts": self.counts, "notes": list(self.notes)}


@dataclass(frozen=True)
class Probe:
    """A fitted probe. linear: fitted on all labelled tokens (the figures of `report` are of probes that never saw the
    passage they judge). mean1, mean0: class means of the raw activations. model, control, labels: fingerprints."""

    place: Place
    linear: LinearProbe
    mean1: Float[np.ndarray, " dim"]
    mean0: Float[np.ndarray, " dim"]
    report: ProbeReport
    by_layer: tuple[dict[str, Any], ...]
    model: str
    control: str | None
    labels: str
    rule: Mapping[str, Any]

    @property
    def site(self) -> str:
        return self.place.site

    @property
    def layer(self) -> int:
        return self.place.layer

    @property
    def auroc(self) -> float:
        """On passages the probe was not trained on."""
        return self.report.probe.auroc.value

    @property
    def auroc_control(self) -> float | None:
        """The same probe on the control model's activations; None without a control."""
        return None if self.report.control is None else self.report.control.auroc.value

    @property
    def direction(self) -> Direction:
        """What an intervention needs: class means and probe direction."""
        from rote.internals.neurons.intervention import Direction

        return Direction(self.place, self.mean1, self.mean0, self.linear.raw_direction, model=self.model)

    def score(self, model: CausalLM, texts: str | Sequence[str]) -> Any:
        """P(memorized) of every token by one forward pass of the target model alone; see `token_scores`."""
        from rote.internals.neurons.scoring import token_scores

        if isinstance(texts, str):
            return token_scores(self, model, [texts])[0]
        return token_scores(self, model, texts)


def train_probe(
    acts: ActivationStore,
    labels: TokenLabels,
    *,
    site: str = "resid_post",
    layer: int | None = None,
    against: Sequence[str] | None = None,
    groups: str = "passage",
    control: ActivationStore | CausalLM | None = None,
    folds: int = 5,
    c: float = C,
    seed: int = 0,
) -> Probe:
    """Fit a probe at one site and layer, and judge it, its control and its baselines by cross-validation over passages.

    Kinds of negative tokens weigh alike, however many tokens there are of each (`cross_validation`).
    layer: None picks, inside every training part, the layer whose probe is best there; the held-out figures then
    include that choice. against: kinds of tokens that are negative (default: every other kind); compare with uncertain
    ones and with certain ones separately before believing either. control: a model that never saw the texts, or its
    activations of the same labels.
    Raises InputError for a missing site or layer, or too few passages.
    """
    acts.check(labels)
    layers = acts.layers(site)
    if layer is not None and layer not in layers:
        raise InputError(f"no activations of {site} layer {layer}; captured layers: {', '.join(map(str, layers))}")
    other = _control_store(control, labels, site, layers)
    against = tuple(against) if against else tuple(name for i, name in enumerate(labels.kinds) if i != 1)
    rows = np.flatnonzero(labels.versus(*against))
    label, kind, group = labels.label[rows], labels.kind[rows], labels.units_of_split(groups)[rows]
    fold = group_folds(group, label, folds=folds, seed=seed)
    weight = group_weights(group, seed=seed)
    outputs = acts.outputs[rows]
    fitted = {"c": c, "kind": kind}

    def judged(scores: np.ndarray) -> Judged:
        return judge(scores, label, fold, group, weight)

    def by_layer(store: ActivationStore | None) -> dict[int, np.ndarray]:
        if store is None:
            return {}
        return {at: out_of_fold(store[site, at][rows], label, fold, **fitted) for at in layers}

    mine, theirs = by_layer(acts), by_layer(other)
    if layer is None and len(layers) > 1:
        scores, picks = _nested(acts, site, layers, rows, label, kind, group, fold, mine, c, seed)
        layer = _best_layer(mine, label, fold)
        reference = None if other is None else _by_pick(theirs, picks, fold)
    else:
        layer = layers[0] if layer is None else layer
        scores, reference, picks = mine[layer], theirs.get(layer), dict.fromkeys(np.unique(fold).tolist(), layer)
    inside = np.concatenate([acts[site, layer][rows], outputs], axis=1)
    control_judged = None if reference is None else judged(reference)
    report = ProbeReport(
        judged(scores),
        control_judged,
        None if reference is None else difference(scores, reference, label, fold, group, weight),
        judged(out_of_fold(outputs, label, fold, **fitted)),
        judged(outputs[:, 0].astype(np.float64) + np.log(2)),  # called recited from p = .5 on, as labels are
        judged(out_of_fold(inside, label, fold, **fitted)),
        against,
        {name: count for name, count in labels.counts.items() if name in (labels.kinds[1], *against)},
        _notes(labels, other),
    )
    values = np.asarray(acts[site, layer][rows], np.float64)
    table = tuple(
        {
            "site": site,
            "layer": at,
            **judged(mine[at]).as_dict(),
            "control": judged(theirs[at]).as_dict() if at in theirs else None,
        }
        for at in layers
    )
    return Probe(
        Place(site, layer), fit_linear(values, label, **fitted), values[label].mean(0), values[~label].mean(0), report,
        table, acts.model, None if other is None else other.model, labels.fingerprint, labels.rule,
    )  # fmt: skip


def permuted_auroc(
    acts: ActivationStore,
    labels: TokenLabels,
    *,
    site: str,
    layer: int,
    against: Sequence[str] | None = None,
    groups: str = "passage",
    permutations: int = 20,
    folds: int = 5,
    c: float = C,
    seed: int = 0,
) -> Float[np.ndarray, " permutations"]:
    """Held-out AUROC of the same probe for labels permuted between passages: must scatter around .5.

    A pipeline that leaks (tokens of a passage on both sides, selection on the test part) shows here.
    """
    from rote.internals.neurons.splits import permuted_labels

    rows = np.flatnonzero(labels.versus(*against)) if against else np.arange(len(labels))
    group, values = labels.units_of_split(groups)[rows], acts[site, layer][rows]
    found = []
    for number, label in enumerate(permuted_labels(group, labels.label[rows], permutations=permutations, seed=seed)):
        fold = group_folds(group, label, folds=folds, seed=seed + number)
        found.append(float(stratified_auroc(out_of_fold(values, label, fold, c=c), label, fold)[0]))
    return np.array(found)


def cross_auroc(
    probe: Probe, acts: ActivationStore, labels: TokenLabels, *, against: Sequence[str] | None = None
) -> float:
    """AUROC of a probe on another task's tokens (never seen by it): about .5 when the two have nothing in common."""
    from rote.measures.roc import auroc

    acts.check(labels)
    rows = np.flatnonzero(labels.versus(*against)) if against else np.arange(len(labels))
    scores, label = probe.linear.logit(acts[probe.place][rows]), labels.label[rows]
    return auroc(scores[label], scores[~label])


def cosine(a: Probe, b: Probe) -> float:
    """Cosine of two probes' directions in the activations' own coordinates. Raises InputError at different places."""
    if a.place != b.place:
        raise InputError(f"directions at different places ({a.place} and {b.place}) cannot be compared")
    u, v = a.linear.raw_direction, b.linear.raw_direction
    return float(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))


def sequence_score(scores: Float[np.ndarray, " tokens"], *, threshold: float = 0.5) -> dict[str, float | int | None]:
    """A whole sequence's score: mean probability and share of tokens called memorized, over tokens that have a score.

    Inferred head, no smoothing beyond the mean.
    """
    known = scores[np.isfinite(scores)]
    if not len(known):
        return {"mean": None, "fraction": None, "tokens": 0}
    return {"mean": float(known.mean()), "fraction": float((known >= threshold).mean()), "tokens": len(known)}


def _notes(labels: TokenLabels, control: ActivationStore | None) -> tuple[str, ...]:
    by_probability = labels.rule.get("from") in ("contrast", "samples")
    return (*((NO_CONTROL,) if control is None else ()), *((CIRCULAR,) if by_probability else ()))


def _control_store(control, labels: TokenLabels, site: str, layers: list[int]) -> ActivationStore | None:
    if control is None or isinstance(control, ActivationStore):
        store = control
    else:
        store = ActivationStore.capture(control, labels, sites=site, layers=layers)
    if store is not None:
        store.check(labels)
        if missing := sorted({*layers} - {*store.layers(site)}):
            raise InputError(f"the control's activations lack {site} layers {', '.join(map(str, missing))}")
    return store


def _best_layer(scores: Mapping[int, np.ndarray], label, fold) -> int:
    return max(scores, key=lambda layer: float(stratified_auroc(scores[layer], label, fold)[0]))


def _nested(
    acts: ActivationStore,
    site: str,
    layers: list[int],
    rows: Int[np.ndarray, " tokens"],
    label: Bool[np.ndarray, " tokens"],
    kind: Int[np.ndarray, " tokens"],
    group: Int[np.ndarray, " tokens"],
    fold: Int[np.ndarray, " tokens"],
    scores: Mapping[int, np.ndarray],
    c: float,
    seed: int,
) -> tuple[Float[np.ndarray, " tokens"], dict[int, int]]:
    """For every fold the layer that is best inside the other folds, and that layer's out-of-fold scores."""
    picks = {}
    for number in np.unique(fold).tolist():
        train = fold != number
        inner = group_folds(group[train], label[train], folds=3, seed=seed)
        fitted = {"c": c, "kind": kind[train]}
        trial = {at: out_of_fold(acts[site, at][rows[train]], label[train], inner, **fitted) for at in layers}
        picks[number] = _best_layer(trial, label[train], inner)
    return _by_pick(scores, picks, fold), picks


def _by_pick(scores: Mapping[int, np.ndarray], picks: Mapping[int, int], fold) -> Float[np.ndarray, " tokens"]:
    chosen = np.empty(len(fold))
    for number, layer in picks.items():
        chosen[fold == number] = scores[layer][fold == number]
    return chosen
