"""Where and how strongly to intervene so that it is the direction that suppresses, not the disturbance.

    fall(c)    share of recited records that are no longer recited at dose c
    random(c)  the mean fall under random directions of the same norm, at the same dose and for the same tokens

Recitation of many tokens in a row is fragile: whatever is changed strongly enough at the right tokens ends it. So the
largest dose that the price allows says little about a direction. Here place and dose are those of the largest fall,
among the doses at which random(c) <= `share` fall(c) and which cost less than `cost` of perplexity on tuning text.

Use records that the directions were not made from, and judge on others again.
Knows how to run a model under an intervention. Knows nothing about: labels, how the directions were found.
Inferred: how the paper chose its layers and doses is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.errors import InputError
from rote.internals.neurons.dose_response import Tokens, perplexity, recited, sequence_logp
from rote.internals.neurons.intervention import Direction, Directions, intervene, named, random_directions
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

DOSES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
SHARE = 1 / 3


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


def choose_specific(
    model: CausalLM,
    directions: Sequence[Directions],
    records: Tokens,
    tuning: Tokens,
    *,
    mode: str = "weighted",
    doses: Sequence[float] = DOSES,
    cost: float = 0.02,
    share: float = SHARE,
    random_controls: int = 2,
    prefix: int = 16,
    suffix: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Directions, float, list[dict[str, Any]]]:
    """(direction, dose, one row per place: site, layer, dose, cost, fall, random_fall).

    directions: one per place, or several made together (`together`). records: at least `prefix` + `suffix` tokens each;
    those that the untouched model does not recite are left out. tuning: ordinary text for the price. doses: from the
    smallest until the price is reached.
    A row's dose is None where no dose qualifies. Of equal falls the one with less under random directions counts.
    Raises InputError when no record is recited, or no place has a dose that qualifies.
    """

    def under(direction: Directions | None, dose: float) -> Any:
        return intervene(model, direction, mode=mode, scale=dose) if direction else nullcontext()

    def reciting(direction: Directions | None, dose: float, which: Tokens) -> np.ndarray:
        with under(direction, dose):
            return recited(sequence_logp(model, which)[1], which, prefix=prefix, suffix=suffix)

    def paid(direction: Directions | None, dose: float) -> float:
        with under(direction, dose):
            return perplexity(sequence_logp(model, tuning)[0])

    at_first = reciting(None, 0.0, records)
    known = [record for record, is_recited in zip(records, at_first, strict=True) if is_recited]
    if not known:
        raise InputError(f"none of the {len(records)} records is recited: there is nothing to choose a dose by")
    base = paid(None, 0.0)
    rows = []
    for number, direction in enumerate(directions):
        controls = [
            random_directions(direction, seed=derive_seed(seed, "chosen against", each))
            for each in range(random_controls)
        ]
        row: dict[str, Any] = {**named(direction), "dose": None, "fall": 0.0}
        for dose in sorted(doses):
            price = paid(direction, dose) / base - 1
            if price >= cost:
                break
            fall = 1 - float(reciting(direction, dose, known).mean())
            if fall <= row["fall"]:
                continue
            random_fall = 1 - float(np.mean([reciting(control, dose, known).mean() for control in controls]))
            if random_fall <= share * fall:
                row |= {"dose": dose, "cost": price, "fall": fall, "random_fall": random_fall}
        rows.append(row)
        if progress:
            progress(number + 1, len(directions))
    best = max(range(len(rows)), key=lambda number: (rows[number]["fall"], -rows[number].get("random_fall", 1.0)))
    if rows[best]["dose"] is None:
        raise InputError(
            f"no place has a dose below {cost:.1%} of perplexity at which a random direction does at most {share:.0%}"
            " of what this one does"
        )
    return directions[best], rows[best]["dose"], rows
