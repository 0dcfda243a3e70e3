"""Place and dose by effect beside random directions, against the whole table computed one generation at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rote.errors import InputError
from rote.internals.neurons import (
    ActivationStore,
    Part,
    TokenLabels,
    choose_specific,
    class_direction,
    random_directions,
    together,
)
from rote.internals.neurons.intervention import Direction, intervene, named
from rote.internals.neurons.sites import Place
from rote.internals.neurons.specific import lead
from rote.internals.neurons.splits import group_folds
from rote.models import CausalLM
from rote.records import read_records
from rote.runtime import derive_seed

DOSES, PREFIX, SUFFIX = (1.0, 3.0), 4, 6


@pytest.fixture(scope="module")
def known(memorizer):
    """Two halves of the memorized passages, each with directions of the other half; and ordinary text."""
    model = CausalLM.load(memorizer[0], device="cpu")
    forget, retain = (read_records([file]) for file in memorizer[1:3])
    labels = TokenLabels.from_samples(model, memorized=forget, other=retain, long="truncate")
    acts = ActivationStore.capture(model, labels, sites=("mlp_out", "attn_out"))
    half = group_folds(labels.units_of_split(), labels.label, folds=2, seed=0)
    texts = [np.asarray(e.ids, np.int64) for e in model.encode(list(retain.column("text")))][:6]
    parts = []
    for number in (0, 1):
        train, test = labels.take(half != number), labels.take(half == number)
        stored = acts.take(half != number, train)
        single = [class_direction(stored, train, place, ordinary=acts) for place in acts.arrays]
        records = [labels.sequences[sample] for sample in np.unique(test.sample[test.label])]
        records = [row for row in records if len(row) >= PREFIX + SUFFIX]
        parts.append(Part([*single, *together(single)], records, texts[3 * number : 3 * number + 3]))
    return model, parts


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


def test_the_dose_with_the_largest_lead_over_random_directions_is_chosen(known):
    model, parts = known
    best, dose, rows = choose_specific(model, parts, doses=DOSES, cost=10.0, prefix=PREFIX, suffix=SUFFIX)
    assert [{"site": row["site"], "layer": row["layer"]} for row in rows] == [
        named(place) for place in parts[0].directions
    ]
    assert {row["layer"] for row in rows} == {0, 1, "0, 1"}
    recited = [[row for row in part.records if decoded(model, row, part.directions[0], 0.0)] for part in parts]
    total = sum(map(len, recited))
    assert all(recited)
    found = {}
    for number in range(len(rows)):
        for each in DOSES:
            falls = np.zeros(3)  # the directions, and two random ones for each
            for part, records in zip(parts, recited, strict=True):
                controls = [
                    random_directions(part.directions[number], seed=derive_seed(0, "chosen against", k)) for k in (0, 1)
                ]
                for k, one in enumerate((part.directions[number], *controls)):
                    falls[k] += sum(not decoded(model, row, one, each) for row in records)
            found[number, each] = falls[0] / total, falls[1:].mean() / total
    leads = {place: fall - 1.25 * random for place, (fall, random) in found.items()}
    assert leads[best, dose] == pytest.approx(max(leads.values()))
    assert leads[best, dose] > 0
    assert (rows[best]["fall"], rows[best]["random_fall"]) == pytest.approx(found[best, dose])
    for number, row in enumerate(rows):
        assert row["fall"] - 1.25 * row["random_fall"] == pytest.approx(
            max(0, *(leads[number, each] for each in DOSES))
        )
    costs = [
        np.exp(
            mean_nll(model, part.tuning, part.directions[best], dose)
            - mean_nll(model, part.tuning, part.directions[best], 0.0)
        )
        - 1
        for part in parts
    ]
    assert rows[best]["cost"] == pytest.approx(np.mean(costs), abs=1e-4)


def test_no_dose_above_the_price_and_nothing_to_choose_by(known):
    model, parts = known
    settings = {"doses": DOSES, "prefix": PREFIX, "suffix": SUFFIX}
    with pytest.raises(InputError, match="no place has a dose below"):
        choose_specific(model, parts, cost=-1.0, **settings)
    nothing = [Part(parts[0].directions, [row[::-1].copy() for row in parts[0].records[:6]], parts[0].tuning)]
    with pytest.raises(InputError, match="none of the 6 records is recited"):
        choose_specific(model, nothing, **settings)


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


def test_what_random_directions_do_counts_one_and_a_quarter_times():
    assert lead({"fall": 0.8, "random_fall": 0.4}) == pytest.approx(0.3)
