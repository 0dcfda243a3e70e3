"""Where and how strongly to intervene so that it is the direction that suppresses, not the disturbance.

    fall(c)    share of recited records that are no longer recited at dose c
    random(c)  the mean fall under random directions of the same norm, at the same dose and for the same tokens

Recitation of many tokens in a row is fragile: whatever is changed strongly enough at the right tokens ends it. So the
largest dose that the price allows says little about a direction. Here place and dose are those of the largest lead
fall(c) - AGAINST random(c), among the doses which cost less than `cost` of perplexity on tuning text.

Use records that the directions were not made from, and judge on others again.
Knows how to run a model under an intervention. Knows nothing about: labels, how the directions were found.
Inferred: how the paper chose its layers and doses is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rote.errors import InputError
from rote.internals.neurons.dose_response import Tokens, perplexity, recited, sequence_logp
from rote.internals.neurons.intervention import Directions, intervene, named, random_directions
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

DOSES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0, 6.0)
AGAINST = 1.25  # at 1 what random directions do grows with the dose as fast, at 2 the doses are timid


class Part(NamedTuple):
    """Directions, one for each place (or several made together, `placement.together`); records they were not made
    from, of `prefix` + `suffix` tokens or more; and ordinary text for the price."""

    directions: Sequence[Directions]
    records: Tokens
    tuning: Tokens


def choose_specific(
    model: CausalLM,
    parts: Sequence[Part],
    *,
    mode: str = "weighted",
    doses: Sequence[float] = DOSES,
    cost: float = 0.02,
    random_controls: int = 2,
    prefix: int = 16,
    suffix: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, float, list[dict[str, Any]]]:
    """(number of the place, dose, one row per place: site, layer, dose, cost, fall, random_fall).

    parts: one or more, with the same places in the same order, such as the two halves of the passages, each tried with
    the directions of the other; falls are shares of all their records, costs means over the parts. Records that the
    untouched model does not recite are left out. doses: from the smallest until the price is reached.
    A row's dose is None where the direction never leads. Of equal leads the first counts.
    Raises InputError when no record is recited, or nowhere the direction leads.
    """
    tried = [_Tried(model, part, mode, prefix, suffix) for part in parts]
    total = sum(len(part.known) for part in tried)
    if not total:
        raise InputError(
            f"none of the {sum(len(part.records) for part in parts)} records is recited: there is nothing to choose a"
            " dose by"
        )
    seeds = [derive_seed(seed, "chosen against", each) for each in range(random_controls)]
    rows = []
    for number, place in enumerate(parts[0].directions):
        row: dict[str, Any] = {**named(place), "dose": None, "fall": 0.0, "random_fall": 0.0}
        for dose in sorted(doses):
            price = float(np.mean([part.paid(part.directions[number], dose) for part in tried]))
            if price >= cost:
                break
            fall = sum(part.fallen(part.directions[number], dose) for part in tried) / total
            if fall <= lead(row):
                continue  # random directions can only make it less
            under_random = [
                part.fallen(random_directions(part.directions[number], seed=each), dose)
                for part in tried
                for each in seeds
            ]
            new = {"dose": dose, "cost": price, "fall": fall, "random_fall": sum(under_random) / (total * len(seeds))}
            if lead(new) > lead(row):
                row |= new
        rows.append(row)
        if progress:
            progress(number + 1, len(parts[0].directions))
    best = max(range(len(rows)), key=lambda number: lead(rows[number]))
    if rows[best]["dose"] is None:
        raise InputError(
            f"no place has a dose below {cost:.1%} of perplexity at which the direction does more than a random one"
        )
    return best, rows[best]["dose"], rows


def lead(row: Mapping[str, Any]) -> float:
    """fall(c) - AGAINST random(c)."""
    return row["fall"] - AGAINST * row["random_fall"]


class _Tried:
    """One part under interventions. known: its records that the untouched model recites."""

    def __init__(self, model: CausalLM, part: Part, mode: str, prefix: int, suffix: int):
        self.model, self.directions, self.tuning, self.mode = model, part.directions, part.tuning, mode
        self.window = {"prefix": prefix, "suffix": suffix}
        at_first = self._recited(part.records) if len(part.records) else []
        self.known = [record for record, is_recited in zip(part.records, at_first, strict=True) if is_recited]
        self.base = perplexity(sequence_logp(model, part.tuning)[0])

    def _recited(self, records: Tokens) -> np.ndarray:
        return recited(sequence_logp(self.model, records)[1], records, **self.window)

    def paid(self, direction: Directions, dose: float) -> float:
        with intervene(self.model, direction, mode=self.mode, scale=dose):
            return perplexity(sequence_logp(self.model, self.tuning)[0]) / self.base - 1

    def fallen(self, direction: Directions, dose: float) -> float:
        """How many known records are not recited any more."""
        if not self.known:
            return 0.0
        with intervene(self.model, direction, mode=self.mode, scale=dose):
            return len(self.known) - float(self._recited(self.known).sum())
