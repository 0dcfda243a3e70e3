"""Which site and layer to intervene at: where the most recitation is lost for the same price.

For every candidate place the class means are taken, the largest dose is found that costs less than `cost` of perplexity
on tuning text, and the rise in NLL of the labelled memorized tokens at that dose decides, among the places where random
directions of the same norm do at most `SHARE` of it: elsewhere it is the disturbance that works. Where there is no such
place, the one at which they do the smallest share is taken. Probing accuracy does not decide: a place can tell recited
tokens apart without causing them (late layers do).

Everything here uses training passages and tuning text only; what a treatment achieves is measured on others.
Inferred: how the paper chose its layers is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.errors import InputError
from rote.internals.neurons.cross_validation import fit_linear
from rote.internals.neurons.discriminant import fisher_reader
from rote.internals.neurons.dose_response import Tokens, dose_at_cost, kind_nll
from rote.internals.neurons.intervention import UNBOUNDED, Direction, Directions, intervene, named, random_directions
from rote.internals.neurons.sites import Place
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.internals.neurons.activations import ActivationStore
    from rote.internals.neurons.token_labels import TokenLabels
    from rote.models.causal_lm import CausalLM

SHARE = 1 / 8
RANDOM = 2


def class_direction(
    acts: ActivationStore,
    labels: TokenLabels,
    place: tuple[str, int],
    *,
    against: Sequence[str] | None = None,
    units: Sequence[int] = (),
    ordinary: ActivationStore | None = None,
) -> Direction:
    """Class means and the probe's direction of all labelled tokens at one place.

    ordinary: activations of ordinary text at the same place. Then mu_0 is its mean and the direction has a reader
    (`discriminant`), so that it can be subtracted token by token ("weighted").
    """
    acts.check(labels)
    rows = np.flatnonzero(labels.versus(*against)) if against else np.arange(len(labels))
    label, values = labels.label[rows], np.asarray(acts[place][rows], np.float64)
    w = fit_linear(values, label).raw_direction
    zero = values[~label] if ordinary is None else np.asarray(ordinary[place], np.float64)
    reader = None if ordinary is None else fisher_reader(values[label], zero)
    means = values[label].mean(0), zero.mean(0)
    return Direction(Place(*place), *means, w, tuple(int(unit) for unit in units), acts.model, reader)


def together(directions: Sequence[Direction], sets: int = 3) -> list[list[Direction]]:
    """Of each site the first 2 to all of its layers, at most `sets` sets. What is taken out early is written again
    further up, so that several small changes go further than a large one and disturb other text less."""
    found = []
    for site in dict.fromkeys(one.place.site for one in directions):
        mine = sorted((one for one in directions if one.place.site == site), key=lambda one: one.place.layer)
        if len(mine) > 1:
            sizes = np.linspace(2, len(mine), min(sets, len(mine) - 1)).round().astype(int)
            found += [mine[:size] for size in sizes]
    return found


def choose_place(
    model: CausalLM,
    acts: ActivationStore,
    labels: TokenLabels,
    tuning: Tokens,
    *,
    against: Sequence[str] | None = None,
    mode: str = "diff-means",
    ordinary: ActivationStore | None = None,
    cost: float = 0.03,
    largest: float = 4.0,
    steps: int = 6,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Directions, list[dict[str, Any]]]:
    """(the direction at the best captured place, one row per place: site, layer, dose, cost, rise_memorized,
    random_rise). Sets of places (`together`) are tried like single ones.

    tuning: ordinary text for the price. ordinary: as in `class_direction`, needed for weighted. largest: doses above it
    are not tried (1 for projection).
    Raises InputError for set-to-mean, whose units are chosen by `select_units`.
    """
    if mode == "set-to-mean":
        raise InputError("choose the place of set-to-mean by its units (select_units); name the layer")
    largest = largest if mode in UNBOUNDED else min(largest, 1.0)
    positive = labels.take(labels.label)
    name = labels.kinds[1]
    base = kind_nll(model, positive)[name]
    single = [class_direction(acts, labels, place, against=against, ordinary=ordinary) for place in acts.arrays]
    directions = [*single, *together(single)]

    def rise(direction: Directions, dose: float) -> float:
        with intervene(model, direction, mode=mode, scale=dose):
            return kind_nll(model, positive)[name] - base

    rows = []
    for number, direction in enumerate(directions):
        dose, paid = dose_at_cost(model, direction, tuning, cost=cost, mode=mode, largest=largest, steps=steps)
        seeds = [derive_seed(seed, "placed against", each) for each in range(RANDOM)]
        rows.append(
            {
                **named(direction),
                "dose": dose,
                "cost": paid,
                "rise_memorized": rise(direction, dose),
                "random_rise": float(np.mean([rise(random_directions(direction, seed=each), dose) for each in seeds])),
            }
        )
        if progress:
            progress(number + 1, len(directions))
    return directions[max(range(len(rows)), key=lambda number: _preference(rows[number]))], rows


def _preference(row: Mapping[str, Any]) -> tuple[float, float]:
    """The largest rise among specific places; where there are none, the smallest share of random directions."""
    rise, random = row["rise_memorized"], row["random_rise"]
    if rise <= 0:
        return -1.0, rise
    return (1.0, rise) if random <= SHARE * rise else (0.0, -random / rise)
