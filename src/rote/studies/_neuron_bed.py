"""What the study of neuron probes measures on two models that differ in planted copies only.

Everything is judged on passages that nothing was fitted on: probes by cross-validation over passages, single units on
held-out ones, steering twice, each half of the passages under the direction of the other half, and recitation under
every token's own dose in thirds (`_neuron_recitation`).

Knows the library's neuron tools. Knows nothing about: claims, how the models were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from rote.runtime import derive_seed
from rote.studies._neuron_recitation import records_of, steer_thirds

if TYPE_CHECKING:
    from rote.internals.neurons import ActivationStore, Probe, TokenLabels, UnitSelection
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

SITES = ("resid_post", "mlp_hidden", "mlp_out", "attn_out")
STEERED = ("resid_post", "attn_out")  # sites whose coordinates are those of the residual stream
WEIGHED = ("attn_out",)  # where every token may get its own dose: what attention writes is cheapest to take out
CERTAINTY_SITES = ("resid_post", "mlp_hidden")
SCALES = (0.5, 1.0, 2.0, 4.0)
PREFIX, SUFFIX = 16, 16
MEMORIZED_NLL = 0.5  # nats per token: the card's "memorized passage"


@dataclass(frozen=True)
class Effort:
    """How much is measured. price: cost in perplexity the dose is tuned to, on text other than it is stated on; a third
    below the claim's, because two halves of the text differ by some tenths of a percent."""

    permutations: int = 20
    unit_permutations: int = 200
    segments: int = 300
    random_directions: int = 4
    price: float = 0.02
    folds: int = 5


@dataclass(frozen=True)
class Found:
    """Everything the claims and figures need. doses: one row per half, direction and dose, see `dose_response`."""

    passages: dict[str, Any]
    counts: dict[str, int]
    probes: dict[str, Probe]
    by_site: list[dict[str, Any]]
    permuted: np.ndarray
    units: UnitSelection
    units_rows: list[dict[str, Any]]
    best: dict[str, list[float]]
    certainty: list[dict[str, Any]]
    places: list[dict[str, Any]]
    doses: list[dict[str, Any]]
    repetition: dict[str, Any] = field(default_factory=dict)


def measure(
    model: CausalLM,
    control: CausalLM,
    passages: RecordTable,
    unseen: Int[np.ndarray, "sequences tokens"],
    *,
    recited_from: int,
    effort: Effort | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Found:
    """Measure everything. passages: records with `duplicates`, 0 for never planted. unseen: ordinary text of equal
    length that neither model saw. recited_from: copies of the passages that are tested for recitation."""
    from rote.internals.neurons import (
        ActivationStore,
        TokenLabels,
        certainty_units,
        histograms,
        ordinary_activations,
        permuted_auroc,
        select_units,
        train_probe,
        without_certainty,
    )

    effort = effort or Effort()
    progress("labels and activations of both models")
    labels = TokenLabels.from_contrast(model, control, passages, seed=seed)
    acts = ActivationStore.capture(model, labels, sites=SITES)
    other = ActivationStore.capture(control, labels, sites=SITES)

    progress("probes beside the control model")
    kept: dict[str, Any] = {"control": other, "folds": effort.folds, "seed": seed}
    probes = {
        "M / U": train_probe(acts, labels, site="resid_post", against=("uncertain",), **kept),
        "M / C": train_probe(acts, labels, site="resid_post", against=("certain",), **kept),
        "M / C and U": train_probe(acts, labels, site="resid_post", **kept),
    }
    by_site = [
        {"site": site, **row}
        for site in SITES
        for row in layer_rows(train_probe(acts, labels, site=site, layer=0, against=("uncertain",), **kept))
    ]
    permuted = permuted_auroc(
        acts, labels, site="resid_post", layer=probes["M / U"].layer, against=("uncertain",),
        permutations=effort.permutations, folds=effort.folds, seed=seed,
    )  # fmt: skip

    progress("single units")
    ordinary = list(unseen[: len(unseen) // 2])
    units = select_units(acts, labels, against=("uncertain",), permutations=effort.unit_permutations, seed=seed)
    best = units.best
    rows = labels.versus("uncertain")
    values = np.asarray(acts[best.site, best.layer][:, best.dimension][rows], np.float64)

    progress("steering, each half under the other half's direction")
    copied = dict(zip(passages.column("id"), passages.column("duplicates"), strict=True))
    places, doses = steer_halves(model, only(acts, STEERED), labels, copied, unseen, recited_from, effort, seed)
    progress("steering every token by its own dose, in thirds")
    more_places, more_doses = steer_thirds(
        model, only(acts, WEIGHED), labels, copied, unseen, recited_from, price=effort.price, prefix=PREFIX,
        suffix=SUFFIX, seed=seed,
    )  # fmt: skip
    progress("repetition")
    return Found(
        passage_losses(model, passages),
        labels.counts,
        probes,
        by_site,
        permuted,
        units,
        without_certainty(acts, labels, units),
        histograms(values, labels.label[rows]),
        [vars(unit) for unit in certainty_units(ordinary_activations(model, ordinary, sites=CERTAINTY_SITES), top=5)],
        places + more_places,
        doses + more_doses,
        repetition(model, probes, acts, labels, unseen, effort, seed),
    )


def layer_rows(probe: Probe) -> list[dict[str, Any]]:
    """AUROC of every layer and of the control, from a probe's own table."""
    return [
        {
            "layer": row["layer"],
            "auroc": row["auroc"]["value"],
            "low": row["auroc"]["low"],
            "high": row["auroc"]["high"],
            "control": row["control"]["auroc"]["value"] if row["control"] else None,
        }
        for row in probe.by_layer
    ]


def passage_losses(model: CausalLM, passages: RecordTable) -> dict[str, Any]:
    """{copies: {"passages", "nll", "below"}}: mean NLL in nats per token, and how many lie below MEMORIZED_NLL."""
    from rote.measures import membership
    from rote.scores.tokens import score_in_memory

    nll = -membership.loss(score_in_memory(model, passages).logp)
    copies = np.array(passages.column("duplicates"))
    return {
        str(level): {
            "passages": int((copies == level).sum()),
            "nll": float(nll[copies == level].mean()),
            "below": int((nll[copies == level] < MEMORIZED_NLL).sum()),
        }
        for level in np.unique(copies).tolist()
    }


def only(acts: ActivationStore, sites: Sequence[str]) -> ActivationStore:
    """The same tokens at some of the sites."""
    kept = {place: array for place, array in acts.arrays.items() if place.site in sites}
    return type(acts)(kept, acts.outputs, acts.model, acts.labels, acts.tokens)


def steer_halves(
    model: CausalLM,
    acts: ActivationStore,
    labels: TokenLabels,
    copied: Mapping[str, int],
    unseen: Int[np.ndarray, "sequences tokens"],
    recited_from: int,
    effort: Effort,
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(places tried, dose responses) of one dose for all tokens. For each half of the passages: place, direction and
    dose from the other half and one part of the unseen text; everything reported on this half and the other part."""
    from rote.internals.neurons import choose_place, dose_at_cost
    from rote.internals.neurons.dose_response import dose_response
    from rote.internals.neurons.intervention import named
    from rote.internals.neurons.splits import group_folds

    half = group_folds(labels.units_of_split(), labels.label, folds=2, seed=seed)
    order = np.random.default_rng(derive_seed(seed, "text halves")).permutation(len(unseen))
    texts = [list(unseen[np.sort(part)]) for part in np.array_split(order, 2)]
    found_places, found_doses = [], []
    for number in (0, 1):
        test, train = labels.take(half == number), labels.take(half != number)
        recited = records_of(test, copied, recited_from)
        cheap = texts[0][::2]  # places are many: a half of the text tells them apart
        direction, places = choose_place(
            model, acts.take(half != number, train), train, cheap, cost=effort.price, steps=5, seed=seed
        )
        dose, _ = dose_at_cost(model, direction, texts[0], cost=effort.price, largest=8.0, steps=8)
        rows = dose_response(
            model, direction, test, heldout=texts[1], records=recited, prefix=PREFIX, suffix=SUFFIX,
            scales=(*SCALES, dose), random_controls=effort.random_directions, seed=seed,
        )  # fmt: skip
        for row in rows:
            kind = "price" if row["scale"] == dose and dose not in SCALES else "fixed"
            found_doses.append({"part": number, "dose": kind, **row, "recited_records": len(recited)})
        chosen = named(direction)
        found_places += [
            {"part": number, "mode": "diff-means", **row, "chosen": {key: row[key] for key in chosen} == chosen}
            for row in places
        ]
    return found_places, found_doses


def both_halves(
    rows: Sequence[Mapping[str, Any]], direction: str, dose: float | str, mode: str = "diff-means"
) -> dict[str, float]:
    """The mean over both halves (thirds) of one direction at one dose (`"price"`: each part at its own)."""
    mine = [
        row
        for row in rows
        if row["direction"] == direction
        and row["mode"] == mode
        and (row["dose"] == "price" if dose == "price" else row["scale"] == dose)
    ]
    keys = [key for key, value in mine[0].items() if isinstance(value, float)]
    return {key: float(np.mean([row[key] for row in mine])) for key in keys}


def repetition(
    model: CausalLM,
    probes: Mapping[str, Probe],
    acts: ActivationStore,
    labels: TokenLabels,
    unseen: Int[np.ndarray, "sequences tokens"],
    effort: Effort,
    seed: int,
) -> dict[str, Any]:
    """A probe for the second occurrence of an unseen segment, each of it and the memorization probe on the other's
    tokens, and the cosine of their directions at the memorization probe's place.

    The repetition probe's site and layer are chosen on other segments than those it is judged on.
    """
    from rote.internals.neurons import ActivationStore, cosine, cross_auroc, repeated_segments, train_probe

    memory = probes["M / C and U"]
    cut: dict[str, Any] = {"segment": (10, 50), "gap": (3, 8), "room": unseen.shape[1] - 1}
    natural: dict[str, Any] = {"texts": list(unseen)}
    kept: dict[str, Any] = {"folds": effort.folds, "seed": seed}

    choosing = repeated_segments(effort.segments // 2, **natural, **cut, seed=derive_seed(seed, "repetition, place"))
    stored = ActivationStore.capture(model, choosing, sites=SITES)
    site, layer = best_place(stored, choosing, seed)

    found: dict[str, Any] = {}
    for name, source, negatives in (
        ("matched", natural, "matched"),
        ("first", natural, "first"),
        ("random tokens", {"vocabulary": model.vocab_size}, "matched"),
    ):
        repeated = repeated_segments(effort.segments, **source, **cut, negatives=negatives, seed=seed)
        there = ActivationStore.capture(model, repeated, sites=site, layers=layer)
        probe = train_probe(there, repeated, site=site, layer=layer, **kept)
        read = ActivationStore.capture(
            model, repeated, sites=memory.place.site, layers=sorted({each.layer for each in probes.values()})
        )
        same = train_probe(read, repeated, site=memory.place.site, layer=memory.layer, **kept)
        found[name] = {
            "auroc": probe.report.probe.auroc.as_dict(),
            "site": site,
            "layer": layer,
            "output only": probe.report.outputs.auroc.value,
            **{f"probe {which}": cross_auroc(each, read, repeated) for which, each in probes.items()},
            "on memorized tokens": cross_auroc(probe, acts, labels),
            "cosine": cosine(memory, same),
            # how far the model itself uses the repetition
            "nll, second": float(-there.outputs[repeated.label, 0].mean()),
            "nll, first": float(-there.outputs[~repeated.label, 0].mean()),
            "tokens": len(repeated),
            **copying(model, repeated),
        }
    return found


def best_place(acts: ActivationStore, labels: TokenLabels, seed: int) -> tuple[str, int]:
    """The (site, layer) whose probe is best over passages it was not fitted on."""
    from rote.internals.neurons import train_probe

    rows = [
        (row["auroc"]["value"], site, row["layer"])
        for site in SITES
        for row in train_probe(acts, labels, site=site, layer=0, folds=3, seed=seed).by_layer
    ]
    return max(rows)[1:]


def copying(model: CausalLM, labels: TokenLabels) -> dict[str, float]:
    """How far the model copies from its context at all: share of labelled tokens whose greedy prediction is right, on
    second occurrences and on the others."""
    from rote.internals.neurons import sequence_logp

    _, greedy = sequence_logp(model, list(labels.sequences))
    right = np.array(
        [
            greedy[sample][token] == labels.sequences[sample][token]
            for sample, token in zip(labels.sample, labels.token, strict=True)
        ]
    )
    return {
        "greedy right, second": float(right[labels.label].mean()),
        "greedy right, first": float(right[~labels.label].mean()),
    }
