"""Which site and layer to intervene at: where the most recitation is lost for the same price.

For every candidate place the class means are taken, the largest dose is found that costs less than `cost` of perplexity
on tuning text, and the rise in NLL of the labelled memorized tokens at that dose decides. Probing accuracy does not
decide: a place can tell recited tokens apart without causing them (late layers do).

Everything here uses training passages and tuning text only; what a treatment achieves is measured on others.
Inferred: how the paper chose its layers is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.errors import InputError
from rote.internals.neurons.cross_validation import fit_linear
from rote.internals.neurons.discriminant import fisher_reader
from rote.internals.neurons.dose_response import Tokens, dose_at_cost, kind_nll
from rote.internals.neurons.intervention import UNBOUNDED, Direction, intervene
from rote.internals.neurons.sites import Place

if TYPE_CHECKING:
    from rote.internals.neurons.activations import ActivationStore
    from rote.internals.neurons.token_labels import TokenLabels
    from rote.models.causal_lm import CausalLM


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
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Direction, list[dict[str, Any]]]:
    """(the direction at the best captured place, one row per place: site, layer, dose, cost, rise_memorized).

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
    rows, directions = [], []
    for number, place in enumerate(acts.arrays):
        direction = class_direction(acts, labels, place, against=against, ordinary=ordinary)
        dose, paid = dose_at_cost(model, direction, tuning, cost=cost, mode=mode, largest=largest, steps=steps)
        with intervene(model, direction, mode=mode, scale=dose):
            rise = kind_nll(model, positive)[name] - base
        rows.append({"site": place.site, "layer": place.layer, "dose": dose, "cost": paid, "rise_memorized": rise})
        directions.append(direction)
        if progress:
            progress(number + 1, len(acts.arrays))
    best = int(np.argmax([row["rise_memorized"] for row in rows]))
    return directions[best], rows
