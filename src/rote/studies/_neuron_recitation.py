"""Recitation under every token's own dose, each third of the passages judged once, by what the other two say.

    passages   other two thirds: each tried with the directions of the other | judged
    text       class 0, the reader | price                                   | cost

Place and dose are chosen on passages copied as often as those that are judged; then the directions there are made again
from both of the other thirds.

Beside it, with the same readers: random directions at the same dose, and at the dose that costs as much, or the price.

Knows the library's neuron tools. Knows nothing about: claims, how the models were trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from rote.errors import InputError
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.internals.neurons import ActivationStore, TokenLabels
    from rote.internals.neurons.intervention import Directions
    from rote.models.causal_lm import CausalLM

WEIGHTED = "weighted"
PARTS = 3
RANDOM = 4


def steer_thirds(
    model: CausalLM,
    acts: ActivationStore,
    labels: TokenLabels,
    copied: Mapping[str, int],
    unseen: Int[np.ndarray, "sequences tokens"],
    recited_from: int,
    *,
    price: float,
    prefix: int,
    suffix: int,
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(places tried, dose responses), one third of the passages after the other. copied: copies of every passage."""
    from rote.internals.neurons import ordinary_activations
    from rote.internals.neurons.dose_response import dose_response
    from rote.internals.neurons.intervention import each, named
    from rote.internals.neurons.placement import class_direction, together
    from rote.internals.neurons.specific import Part, choose_specific
    from rote.internals.neurons.splits import group_folds

    part = group_folds(labels.units_of_split(), labels.label, folds=PARTS, seed=seed)
    order = np.random.default_rng(derive_seed(seed, "text thirds")).permutation(len(unseen))
    zero, tuning, judged = (list(unseen[np.sort(rows)]) for rows in np.array_split(order, 3))
    sites = list(dict.fromkeys(place.site for place in acts.arrays))
    ordinary = ordinary_activations(model, zero, sites=sites)
    places, doses = [], []
    for number in range(PARTS):
        test, others = labels.take(part == number), labels.take(part != number)
        sides = [(number + step) % PARTS for step in (1, 2)]
        parts = []
        for step, (mine, other) in enumerate(zip(sides, sides[::-1], strict=True)):
            train = labels.take(part == other)
            stored = acts.take(part == other, train)
            made = [class_direction(stored, train, place, ordinary=ordinary) for place in acts.arrays]
            records = records_of(labels.take(part == mine), copied, recited_from)
            parts.append(Part(together(made), records, tuning[step::2]))
        try:
            best, dose, tried = choose_specific(
                model, parts, cost=price, prefix=prefix, suffix=suffix, random_controls=RANDOM, seed=seed
            )
        except InputError:  # nowhere is it the direction that works: nothing is changed, and it shows
            best, dose, tried = 0, 0.0, []
        chosen = [one.place for one in each(parts[0].directions[best])]
        stored = acts.take(part != number, others)
        again = [class_direction(stored, others, place, ordinary=ordinary) for place in chosen]
        where = named(again)
        places += [
            {"part": number, "mode": WEIGHTED, **row, "chosen": {key: row[key] for key in where} == where}
            for row in tried
        ]
        records = records_of(test, copied, recited_from)
        settings: dict[str, Any] = {
            "heldout": judged, "records": records, "prefix": prefix, "suffix": suffix, "mode": WEIGHTED, "seed": seed,
        }  # fmt: skip
        rows = dose_response(model, again, test, scales=(dose,), random_controls=RANDOM, **settings)
        rows.append(at_equal_cost(model, again, test, dose, tuning, price, settings))
        doses += [{"part": number, "dose": "price", **row, "recited_records": len(records)} for row in rows]
    return places, doses


def records_of(labels: TokenLabels, copied: Mapping[str, int], least: int) -> list[np.ndarray]:
    """Passages with labelled tokens that were planted at least so many times."""
    return [
        labels.sequences[sample]
        for sample in np.unique(labels.sample)
        if copied[labels.ids[sample].partition("/")[2]] >= least
    ]


def at_equal_cost(
    model: CausalLM,
    direction: Directions,
    test: TokenLabels,
    dose: float,
    tuning: Sequence[np.ndarray],
    price: float,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Mean over random directions, each at the dose that costs on tuning text what the selected one costs there, and
    the whole price where that one costs less: a direction that costs nothing would leave the others no dose."""
    from rote.internals.neurons import dose_at_cost
    from rote.internals.neurons.dose_response import dose_response, perplexity, sequence_logp
    from rote.internals.neurons.intervention import intervene, random_directions

    base = perplexity(sequence_logp(model, tuning)[0])
    with intervene(model, direction, mode=WEIGHTED, scale=dose):
        paid = perplexity(sequence_logp(model, tuning)[0]) / base - 1
    rows = []
    for number in range(RANDOM):
        other = random_directions(direction, seed=settings["seed"] + number)
        equal, _ = dose_at_cost(model, other, tuning, cost=max(paid, price), mode=WEIGHTED, largest=4 * dose, steps=6)
        rows.append(dose_response(model, other, test, scales=(equal,), random_controls=0, **settings)[-1])
    numbers = [key for key, value in rows[0].items() if isinstance(value, float)]
    means = {key: float(np.mean([row[key] for row in rows])) for key in numbers}
    return {"direction": "random, equal cost", "mode": WEIGHTED, **means}
