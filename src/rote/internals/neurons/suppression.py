"""Suppress the recitation of given records at inference, in one call: labels, place, dose, probe, and what it costs.

    labels      against a reference model that never saw the records where there is one, else forget against retain
    place       a site's layers (at most 12, evenly spaced), one at a time and several together: where most recitation
                is lost for the price
    dose        difference of means: the largest that costs less than `cost` of perplexity on half of the retain text
                weighted: the one with the largest lead over random directions, on passages set aside (`specific`)
    held out    the same with a direction from 70 % of the passages, measured on the other 30 % and the other half

Knows everything in this package. Knows nothing about: audits, the command line.
Source: Slonski 2024, arXiv 2412.01014 (that intervening suppresses recitation); all the choices here are inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from rote.errors import InputError
from rote.internals.neurons.activations import ActivationStore
from rote.internals.neurons.certainty import ordinary_activations
from rote.internals.neurons.dose_response import dose_at_cost, dose_response
from rote.internals.neurons.intervention import (
    MODES,
    UNBOUNDED,
    Direction,
    Directions,
    check_mode,
    each,
    intervene,
    named,
    save_direction,
)
from rote.internals.neurons.placement import choose_place, class_direction, together
from rote.internals.neurons.probes import train_probe
from rote.internals.neurons.selection import select_units
from rote.internals.neurons.sites import Place, blocks
from rote.internals.neurons.specific import Part, choose_specific
from rote.internals.neurons.splits import group_folds, held_out
from rote.internals.neurons.token_labels import TokenLabels
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

Progress = Callable[[str, int, int], None]
MOST_SAMPLES = 1_000  # of either set: more do not change a mean of a few thousand coordinates
MOST_LAYERS = 12
SITES_OF_MODE = {"set-to-mean": ["mlp_hidden"], "weighted": ["mlp_out", "attn_out"]}
TUNING_TOKENS = 8_192
UNITS = 20  # card section 3.4, m = 20; inferred
RECITED = 16  # tokens given, and tokens that follow, where a dose is chosen by recitation
NO_REFERENCE = (
    "labels come from forget against retain alone: without a reference model that never saw the records, what is"
    " suppressed may partly be their kind of text"
)


@dataclass(frozen=True)
class Suppression:
    """A direction, or several together, with settings. details: how it was found and what it does on passages it was
    not made from."""

    direction: Directions
    mode: str
    scale: float
    positions: str
    details: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `intervene`."""
        return {"mode": self.mode, "scale": self.scale, "positions": self.positions}

    def on(self, model: CausalLM | Any) -> AbstractContextManager[None]:
        """The context manager under which `model` is controlled."""
        return intervene(model, self.direction, **self.settings)

    def save(self, folder: str | Path) -> None:
        """What `load_direction` reads."""
        save_direction(self.direction, folder, self.settings)


def fit_suppression(
    model: CausalLM,
    forget: RecordTable,
    retain: RecordTable,
    *,
    reference: CausalLM | None = None,
    site: str | None = None,
    layer: int | None = None,
    mode: str = "diff-means",
    scale: float | None = None,
    positions: str = "all",
    cost: float = 0.03,
    seed: int = 0,
    progress: Progress | None = None,
) -> Suppression:
    """Find what to change in `model` so that `forget` is recited less and `retain` stays.

    site: default mlp_out, for weighted attn_out too, for set-to-mean mlp_hidden. layer: None chooses it. scale: None
    is the dose of the head of this file for diff-means and weighted, 1 otherwise. Where no passage set aside is
    recited, or no dose qualifies, weighted falls back on the dose of diff-means and says so in the notes.
    Raises InputError when nothing of forget is recited (there is nothing to suppress), or a setting means nothing.
    """
    if mode not in MODES:
        raise InputError(f"unknown intervention {mode!r}; use one of {', '.join(MODES)}")
    if not 0 < cost < 1:
        raise InputError(f"the price must lie strictly between 0 and 1 of perplexity, not {cost}")
    tell = progress or (lambda stage, done, total: None)
    sites = [site] if site else SITES_OF_MODE.get(mode, ["mlp_out"])
    forget, retain = _some(forget, seed), _some(retain, seed)
    labels = _labels(model, forget, retain, reference, seed)
    tuning, testing = _halves(model, retain, seed)
    layers = _layers(model, layer)
    acts = ActivationStore.capture(
        model, labels, sites=sites, layers=layers, progress=lambda done, total: tell("activations", done, total)
    )
    against = tuple(name for number, name in enumerate(labels.kinds) if number != 1)
    # every predicted token of the tuning half of retain: what `weighted` must leave alone
    ordinary = ordinary_activations(model, tuning, sites=sites, layers=layers) if mode == "weighted" else None
    notes = [] if reference is not None else [NO_REFERENCE]
    specific = None
    if ordinary is not None and scale is None:
        specific = _by_specificity(model, acts, labels, against, ordinary, tuning, cost, seed, notes)
    if specific is not None:
        places, scale, table = specific
        made = [class_direction(acts, labels, place, against=against, ordinary=ordinary) for place in places]
        direction = made[0] if len(made) == 1 else made
    elif mode == "set-to-mean":
        direction, table = _by_units(acts, labels, against, seed)
    elif layer is None:
        direction, table = choose_place(
            model, acts, labels, tuning, against=against, mode=mode, ordinary=ordinary, cost=cost, seed=seed,
            progress=lambda done, total: tell("layers tried", done, total),
        )  # fmt: skip
    else:
        place, table = (sites[0], acts.layers(sites[0])[0]), []
        direction = class_direction(acts, labels, place, against=against, ordinary=ordinary)
    if scale is None and mode in UNBOUNDED:
        scale, _ = dose_at_cost(model, direction, tuning, cost=cost, mode=mode)
    scale = 1.0 if scale is None else scale
    for one in each(direction):
        check_mode(one, mode=mode, scale=scale, positions=positions)
    details = {
        **named(direction),
        "mode": mode,
        "scale": scale,
        "positions": positions,
        "units": [unit for one in each(direction) for unit in one.units],
        "labels": {**labels.rule, "counts": labels.counts},
        "places": table,
        "probe": _probe(acts, labels, each(direction)[-1].place, reference, seed, notes),
        "held_out": _held_out(model, acts, labels, direction, testing, ordinary, mode, scale, positions, seed, notes),
    }
    paid = [row["cost"] for row in details["held_out"] or () if row["direction"] == "selected"]
    if paid and paid[0] > cost:
        notes.append(
            f"on the half of retain that the dose was not tuned on it costs {paid[0]:.1%} of perplexity, not"
            f" {cost:.1%}: give more retain text, or a lower price"
        )
    return Suppression(direction, mode, scale, positions, details, tuple(notes))


def _some(records: RecordTable, seed: int) -> RecordTable:
    if len(records) <= MOST_SAMPLES:
        return records
    rng = np.random.default_rng(derive_seed(seed, "samples"))
    return records.take(np.sort(rng.permutation(len(records))[:MOST_SAMPLES]))


def _labels(model, forget, retain, reference, seed: int) -> TokenLabels:
    if reference is not None:
        return TokenLabels.from_contrast(model, reference, forget, other=retain, long="truncate", seed=seed)
    return TokenLabels.from_samples(model, memorized=forget, other=retain, long="truncate", seed=seed)


def _halves(model: CausalLM, retain: RecordTable, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Retain records, at most TUNING_TOKENS in either half: one to find the dose, the other to state its cost."""
    from rote.scores.sequences import Split, prepare

    prepared = prepare(model, retain, Split(long="truncate"))
    rows = np.random.default_rng(derive_seed(seed, "tuning")).permutation(np.sort(prepared.order))
    if len(rows) < 2:
        raise InputError("retain needs at least 2 records of 2 tokens or more: a dose is tuned on one half of them")
    halves = []
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        sequences = [np.asarray(s.ids, np.int64) for s in prepared.sequences(part)]
        before = np.cumsum([0, *map(len, sequences)])[:-1]
        halves.append([s for s, start in zip(sequences, before, strict=True) if start < TUNING_TOKENS])
    return halves[0], halves[1]


def _layers(model: CausalLM, layer: int | None) -> Sequence[int] | str:
    if layer is not None:
        return [layer]
    count = len(blocks(model.hf))
    return [int(number) for number in np.unique(np.linspace(0, count - 1, min(count, MOST_LAYERS)).round())]


def _by_units(acts, labels, against, seed: int) -> tuple[Direction, list[dict[str, Any]]]:
    """The units of the layer that holds the best one."""
    chosen = select_units(acts, labels, against=against, top=UNITS * len(acts.arrays), permutations=0, seed=seed)
    place = Place(chosen.best.site, chosen.best.layer)
    units: Int[np.ndarray, " units"] = chosen.at(*place, top=UNITS)
    rows = [row for row in chosen.rows() if (row["site"], row["layer"]) == place][:UNITS]
    return class_direction(acts, labels, place, against=against, units=units.tolist()), rows


def _by_specificity(
    model, acts, labels, against, ordinary, tuning, cost: float, seed: int, notes: list[str]
) -> tuple[list[Place], float, list[dict[str, Any]]] | None:
    """(places, dose, table) on passages that `_held_out` does not judge: each half of them tried with the directions of
    the other half."""
    try:
        free = ~held_out(labels.units_of_split(), labels.label, share=0.3, seed=seed)
        rest = labels.take(free)
        half = group_folds(rest.units_of_split(), rest.label, folds=2, seed=derive_seed(seed, "set aside"))
        stored = acts.take(free, rest)
        parts = []
        for number in (0, 1):
            train, tune = rest.take(half != number), rest.take(half == number)
            made = [
                class_direction(stored.take(half != number, train), train, place, against=against, ordinary=ordinary)
                for place in acts.arrays
            ]
            texts = [labels.sequences[sample] for sample in np.unique(tune.sample[tune.label])]
            texts = [text for text in texts if len(text) >= 2 * RECITED]
            parts.append(Part(together(made) or made, texts, tuning[number::2] or tuning))
        best, dose, table = choose_specific(model, parts, cost=cost, prefix=RECITED, suffix=RECITED, seed=seed)
    except InputError as error:
        notes.append(f"the dose is the largest for the price: {error}")
        return None
    return [one.place for one in each(parts[0].directions[best])], dose, table


def _probe(acts, labels, place: Place, reference, seed: int, notes: list[str]) -> dict[str, Any] | None:
    try:
        probe = train_probe(acts, labels, site=place.site, layer=place.layer, control=reference, seed=seed)
    except InputError as error:
        notes.append(f"no probe was judged: {error}")
        return None
    return probe.report.as_dict()


def _held_out(
    model, acts, labels, direction: Directions, testing, ordinary, mode, scale, positions, seed: int, notes: list[str]
) -> list[dict[str, Any]] | None:
    """Dose response of a direction from 70 % of the passages, on the tokens of the others."""
    try:
        test = held_out(labels.units_of_split(), labels.label, share=0.3, seed=seed)
    except InputError as error:
        notes.append(f"nothing was held out: {error}")
        return None
    train = labels.take(~test)
    part = acts.take(~test, train)
    trial = [class_direction(part, train, one.place, units=one.units, ordinary=ordinary) for one in each(direction)]
    return dose_response(
        model, trial, labels.take(test), heldout=testing, mode=mode, scales=(scale,), positions=positions, seed=seed
    )
