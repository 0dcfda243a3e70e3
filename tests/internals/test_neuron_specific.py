"""Place and dose by effect beside random directions, against the whole table computed one generation at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rote.errors import InputError
from rote.internals.neurons import (
    ActivationStore,
    TokenLabels,
    choose_specific,
    class_direction,
    random_directions,
    together,
)
from rote.internals.neurons.intervention import Direction, intervene, named
from rote.internals.neurons.sites import Place
from rote.models import CausalLM
from rote.records import read_records
from rote.runtime import derive_seed

DOSES, PREFIX, SUFFIX = (1.0, 3.0), 4, 6


@pytest.fixture(scope="module")
def known(memorizer):
    model = CausalLM.load(memorizer[0], device="cpu")
    forget, retain = (read_records([file]) for file in memorizer[1:3])
    labels = TokenLabels.from_samples(model, memorized=forget, other=retain, long="truncate")
    acts = ActivationStore.capture(model, labels, sites=("mlp_out", "attn_out"))
    single = [class_direction(acts, labels, place, ordinary=acts) for place in acts.arrays]
    directions = [*single, *together(single)]
    texts = {
        name: [np.asarray(e.ids, np.int64) for e in model.encode(list(table.column("text")))]
        for name, table in (("forget", forget), ("retain", retain))
    }
    records = [row for row in texts["forget"] if len(row) >= PREFIX + SUFFIX]
    return model, directions, records, texts["retain"][:6]


def decoded(model: CausalLM, record: np.ndarray, direction, dose: float) -> bool:
    """Greedy decoding itself, token by token, without a cache."""
    ids = record[:PREFIX].tolist()
    with intervene(model, direction, mode="weighted", scale=dose):
        for _ in range(SUFFIX):
            with torch.no_grad():
                ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[PREFIX:] == record[PREFIX : PREFIX + SUFFIX].tolist()


def mean_nll(model: CausalLM, texts, direction, dose: float) -> float:
    lost = []
    with intervene(model, direction, mode="weighted", scale=dose), torch.no_grad():
        for row in texts:
            logp = model.hf(torch.tensor([row.tolist()])).logits[0].log_softmax(-1)
            lost += [-float(logp[place, token]) for place, token in enumerate(row[1:])]
    return float(np.mean(lost))


def test_the_most_effective_specific_dose_is_chosen(known):
    model, directions, records, tuning = known
    chosen, dose, rows = choose_specific(
        model, directions, records, tuning, doses=DOSES, cost=10.0, share=0.5, prefix=PREFIX, suffix=SUFFIX
    )
    recited = [row for row in records if decoded(model, row, directions[0], 0.0)]
    assert len(recited) > 0
    qualified = {}
    for direction in directions:
        controls = [random_directions(direction, seed=derive_seed(0, "chosen against", each)) for each in (0, 1)]
        for each in DOSES:
            falls = [1 - np.mean([decoded(model, row, one, each) for row in recited]) for one in (direction, *controls)]
            if falls[0] > 0 and np.mean(falls[1:]) <= 0.5 * falls[0]:
                qualified[str(named(direction)), each] = falls[0], -np.mean(falls[1:])
    best = max(qualified.values())
    assert qualified[str(named(chosen)), dose] == pytest.approx(best)
    assert max(row["fall"] for row in rows) == pytest.approx(best[0])
    assert {row["layer"] for row in rows} == {0, 1, "0, 1"}
    row = next(row for row in rows if {"site": row["site"], "layer": row["layer"]} == named(chosen))
    paid = mean_nll(model, tuning, chosen, dose) - mean_nll(model, tuning, chosen, 0.0)
    assert np.log1p(row["cost"]) == pytest.approx(paid, abs=1e-4)


def test_no_dose_above_the_price_and_nothing_to_choose_by(known):
    model, directions, records, tuning = known
    settings = {"doses": DOSES, "prefix": PREFIX, "suffix": SUFFIX}
    with pytest.raises(InputError, match="no place has a dose below"):
        choose_specific(model, directions, records, tuning, cost=-1.0, **settings)
    with pytest.raises(InputError, match="none of the 6 records is recited"):
        choose_specific(model, directions, [row[::-1].copy() for row in records[:6]], tuning, **settings)


def test_sets_are_the_first_layers_of_each_site():
    vector = np.ones(2)
    places = [(site, layer) for layer in (4, 1, 9, 2, 7) for site in ("mlp_out", "attn_out")]
    directions = [Direction(Place(*place), vector, vector, vector) for place in places]
    layers = [[one.place.layer for one in chosen] for chosen in together(directions)]
    assert layers == [[1, 2], [1, 2, 4, 7], [1, 2, 4, 7, 9]] * 2
    assert [{one.place.site for one in chosen} for chosen in together(directions)] == [{"mlp_out"}] * 3 + [
        {"attn_out"}
    ] * 3
    assert together(directions[:2]) == []
    assert len(together(directions[:4])) == 2
