"""Interventions do exactly what their equations say, and leave nothing behind."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import FAMILIES
from tests.internals.test_neuron_selection import labelled

from rote.errors import InputError, RunMismatchError
from rote.internals.neurons import (
    Direction,
    Place,
    choose_place,
    class_direction,
    dose_at_cost,
    fisher_reader,
    intervene,
    kind_nll,
    load_direction,
    output_matrix,
    placement,
    random_direction,
    random_directions,
    save_direction,
    sequence_logp,
)
from rote.internals.neurons.activations import ActivationStore
from rote.internals.neurons.dose_response import dose_response, perplexity, recited
from rote.internals.neurons.intervention import (
    each,
    named,
    project_to_mean,
    set_to_mean,
    subtract_difference,
    subtract_weighted,
)
from rote.internals.neurons.sites import SITES, attach
from rote.models import CausalLM
from rote.runtime import derive_seed
from rote.scores.continuations import greedy_continuations


def direction_at(
    model: CausalLM, site: str = "resid_post", layer: int = 0, *, units=(1, 4), seed: int = 0
) -> Direction:
    from rote.internals.neurons.stream import widths

    size = widths(model, [Place(site, layer)])[Place(site, layer)]
    rng = np.random.default_rng(seed)
    return Direction(Place(site, layer), *rng.standard_normal((3, size)), tuple(units))


@given(st.integers(0, 1000), st.floats(0, 3))
@settings(max_examples=40)
def test_equations_against_numpy(seed, scale):
    rng = np.random.default_rng(seed)
    h, mean0, w = rng.standard_normal((5, 7, 6)), rng.standard_normal(6), rng.standard_normal(6)
    units = rng.permutation(6)[:2]
    tensors = [torch.from_numpy(array) for array in (h, mean0, w)]
    put = set_to_mean(tensors[0], torch.from_numpy(units), tensors[1]).numpy()
    expected = h.copy()
    for unit in units:
        expected[..., unit] = mean0[unit]
    assert np.array_equal(put, expected)
    assert np.allclose(subtract_difference(tensors[0], tensors[2], scale).numpy(), h - scale * w)
    once = project_to_mean(tensors[0], tensors[2], tensors[1])
    u = w / np.linalg.norm(w)
    for i, j in np.ndindex(5, 7):
        assert np.allclose(once[i, j].numpy(), h[i, j] - (h[i, j] @ u) * u + (mean0 @ u) * u)
    # idempotent; nothing changes across the direction
    assert np.allclose(project_to_mean(once, tensors[2], tensors[1]).numpy(), once.numpy(), atol=1e-6)
    across = np.eye(6) - np.outer(u, u)
    assert np.allclose(once.numpy() @ across, h @ across, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_hooks_act_inside_and_are_gone_afterwards(family, site, checkpoints):
    model = CausalLM.load(checkpoints(family), device="cpu")
    ids = torch.arange(3, 15)[None].repeat(2, 1)
    direction = direction_at(model, site, 1)

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model.hf(ids).logits

    before = logits()
    for mode in ("diff-means", "projection", "set-to-mean"):
        with intervene(model, direction, mode=mode):
            inside = logits()
        assert not torch.equal(inside, before), mode
        assert torch.equal(logits(), before), mode  # bit for bit
    with pytest.raises(ZeroDivisionError), intervene(model, direction):
        raise ZeroDivisionError
    assert torch.equal(logits(), before)
    with intervene(model, direction, scale=0.0):
        assert torch.equal(logits(), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_ablating_a_planted_neuron_removes_exactly_its_row_of_the_output_matrix(checkpoints):
    """With unit j planted to the value v, setting it to mean 0 changes the residual by -v times row j of W_out."""
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    layer, unit, value = 1, 17, 3.0
    ids = torch.arange(5, 20)[None]

    def plant(activation: torch.Tensor) -> torch.Tensor:
        out = activation.clone()
        out[..., unit] = value
        return out

    def residual() -> torch.Tensor:
        kept = []
        handle = attach(model.hf, Place("resid_post", layer), lambda activation: kept.append(activation.clone()))
        with torch.no_grad():
            model.hf(ids)
        handle.remove()
        return kept[0]

    size = 4 * 32
    direction = Direction(Place("mlp_hidden", layer), np.ones(size), np.zeros(size), np.ones(size), (unit,))
    planted = attach(model.hf, Place("mlp_hidden", layer), plant)
    with_unit = residual()
    with intervene(model, direction, mode="set-to-mean"):
        without = residual()
    planted.remove()
    weight, _ = output_matrix(model.hf, layer)
    expected = value * weight[unit]
    assert torch.allclose(with_unit - without, expected.expand_as(with_unit), atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_generation_under_a_direction_equals_recomputing_without_a_cache(family, checkpoints):
    model = CausalLM.load(checkpoints(family), device="cpu")
    direction = direction_at(model, "resid_post", 0)
    prompt = torch.arange(7, 17)[None]
    with intervene(model, direction, scale=2.0):
        cached = model.hf.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        ids = prompt
        for _ in range(6):
            with torch.no_grad():
                ids = torch.cat([ids, model.hf(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(cached, ids)
    plain = model.hf.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert plain.shape == cached.shape


def test_only_the_last_position_is_changed_when_asked(checkpoints):
    model = CausalLM.load(checkpoints("llama"), device="cpu")
    direction, ids = direction_at(model, "resid_post", 1), torch.arange(3, 15)[None]
    with torch.no_grad():
        before = model.hf(ids).logits
        with intervene(model, direction, positions="last"):
            after = model.hf(ids).logits
    assert torch.equal(after[:, :-1], before[:, :-1])
    assert not torch.equal(after[:, -1], before[:, -1])


def test_the_random_control_has_the_same_size_and_another_direction(checkpoints):
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    direction = direction_at(model, "mlp_hidden", 0, units=(3, 5, 8))
    control = random_direction(direction, seed=1)
    assert np.linalg.norm(control.delta) == pytest.approx(np.linalg.norm(direction.delta))
    assert np.linalg.norm(control.w) == pytest.approx(np.linalg.norm(direction.w))
    assert len(control.units) == 3
    assert not {*control.units} & {3, 5, 8}
    cosine = control.delta @ direction.delta / np.linalg.norm(direction.delta) ** 2
    assert abs(cosine) < 0.4
    assert random_direction(direction, seed=1).units == control.units != random_direction(direction, seed=2).units


def test_likelihoods_and_recitation_are_the_models_own(checkpoints):
    """NLL against transformers' loss, teacher-forced recitation against greedy decoding, both under a hook."""
    model = CausalLM.load(checkpoints("gpt_neox"), device="cpu")
    rng = np.random.default_rng(0)
    sequences = [rng.integers(3, 300, length) for length in (12, 20, 20, 31)]
    direction = direction_at(model, "resid_post", 0)
    with intervene(model, direction):
        logp, greedy = sequence_logp(model, sequences)
        for sequence, row in zip(sequences, logp, strict=True):
            ids = torch.from_numpy(sequence)[None]
            with torch.no_grad():
                loss = float(model.hf(ids, labels=ids).loss)
            assert -np.nanmean(row) == pytest.approx(loss, abs=1e-4)
            assert np.isnan(row[0])
            assert np.isfinite(row[1:]).all()
        continued = greedy_continuations(model, [sequence[:6] for sequence in sequences], 5)
    made = [np.concatenate([sequence[:6], row]) for sequence, row in zip(sequences, continued, strict=True)]
    made[1][8] += 1
    with intervene(model, direction):
        _, greedy = sequence_logp(model, made)
    assert recited(greedy, made, prefix=6, suffix=5).tolist() == [1.0, 0.0, 1.0, 1.0]
    assert perplexity([np.log([0.5, 0.25]), np.array([np.nan])]) == pytest.approx(np.sqrt(8))
    with pytest.raises(InputError, match="needs 30"):
        recited(greedy, made, prefix=30, suffix=5)


def test_dose_response_against_single_measurements(checkpoints):
    model, labels = CausalLM.load(checkpoints("gpt2"), device="cpu"), labelled(passages=8)
    heldout = [np.random.default_rng(1).integers(3, 300, 20) for _ in range(4)]
    direction = direction_at(model, "mlp_out", 0)
    rows = dose_response(
        model, direction, labels, heldout=heldout, records=heldout, prefix=5, suffix=5, scales=(0.0, 2.0)
    )
    none, zero, random_zero, two, random_two = rows
    assert [row["direction"] for row in rows] == ["none", "selected", "random", "selected", "random"]
    for row in (zero, random_zero):
        assert row["cost"] == row["rise_memorized"] == row["greedy_changed"] == 0.0
    with intervene(model, direction, scale=2.0):
        inside = kind_nll(model, labels)
        paid = perplexity(sequence_logp(model, heldout)[0])
    assert two["nll_memorized"] == pytest.approx(inside["memorized"])
    assert two["rise_other"] == pytest.approx(inside["other"] - none["nll_other"])
    assert two["cost"] == pytest.approx(paid / none["perplexity"] - 1)
    assert random_two["nll_memorized"] != two["nll_memorized"]
    assert {row["extraction"] for row in rows} <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_the_dose_at_a_cost_costs_less_and_a_little_more_costs_more(checkpoints):
    model = CausalLM.load(checkpoints("llama"), device="cpu")
    starts = [[5, 9], [17, 40], [100, 7]]
    said = greedy_continuations(model, starts, 20)  # text the model itself says: every change costs
    heldout = [np.concatenate([start, row]) for start, row in zip(starts, said, strict=True)]
    base = perplexity(sequence_logp(model, heldout)[0])
    direction = direction_at(model, "resid_post", 1)
    dose, cost = dose_at_cost(model, direction, heldout, cost=0.02, largest=8, steps=12)
    assert 0 < dose < 8
    assert 0 < cost < 0.02
    with intervene(model, direction, scale=dose):
        assert perplexity(sequence_logp(model, heldout)[0]) / base - 1 == pytest.approx(cost, abs=1e-9)
    with intervene(model, direction, scale=dose + 8 / 2**12):
        assert perplexity(sequence_logp(model, heldout)[0]) / base - 1 >= 0.02


@pytest.mark.parametrize("share", [-10.0, 0.125, 10.0])
def test_the_place_is_the_one_with_the_largest_rise_where_random_directions_do_little(checkpoints, monkeypatch, share):
    """Places and sets of places against the rise measured again; where no place is specific, the one at which random
    directions do the smallest share."""
    model, labels = CausalLM.load(checkpoints("gpt2"), device="cpu"), labelled(passages=10)
    tuning = [np.random.default_rng(1).integers(3, 300, 20) for _ in range(3)]
    acts = ActivationStore.capture(model, labels, sites=["mlp_out", "attn_out"])
    monkeypatch.setattr(placement, "SHARE", share)
    direction, rows = choose_place(model, acts, labels, tuning, steps=4)
    places = [(row["site"], row["layer"]) for row in rows]
    assert places[:4] == [(place.site, place.layer) for place in acts.arrays]
    assert set(places[4:]) == {("mlp_out", "0, 1"), ("attn_out", "0, 1")}
    assert all(row["cost"] < 0.03 for row in rows)
    base = kind_nll(model, labels)["memorized"]

    def rise(directions, dose):
        with intervene(model, directions, scale=dose):
            return kind_nll(model, labels)["memorized"] - base

    measured = {}
    single = {place: class_direction(acts, labels, place) for place in acts.arrays}
    for row in rows:
        layers = [int(layer) for layer in str(row["layer"]).split(", ")]
        mine = [single[Place(row["site"], layer)] for layer in layers]
        found = rise(mine, row["dose"])
        seeds = [derive_seed(0, "placed against", number) for number in (0, 1)]
        random = np.mean([rise([random_direction(one, seed=s) for one in mine], row["dose"]) for s in seeds])
        assert row["rise_memorized"] == pytest.approx(found, abs=1e-6)
        assert row["random_rise"] == pytest.approx(random, abs=1e-6)
        measured[row["site"], row["layer"]] = found, random
    specific = {place: rise for place, (rise, random) in measured.items() if rise > 0 and random <= share * rise}
    shares = {place: random / rise for place, (rise, random) in measured.items() if rise > 0}
    assert bool(specific) == (share > 0)
    best = (
        max(specific, key=lambda place: specific[place]) if specific else min(shares, key=lambda place: shares[place])
    )
    assert named(direction) == {"site": best[0], "layer": best[1]}
    one = each(direction)[0]
    values = np.asarray(acts[one.place], np.float64)
    assert np.allclose(one.delta, values[labels.label].mean(0) - values[~labels.label].mean(0))


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_reader_is_fishers_and_the_weighted_dose_goes_where_it_points(seed):
    """Against the generalised eigenvalue problem, and with the mean score of both classes; the weighted change of class
    1 is the plain difference of means on average, that of class 0 nothing."""
    from scipy.linalg import eigh

    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((5, 5))
    one, zero = rng.standard_normal((40, 5)) @ mixing + rng.standard_normal(5), rng.standard_normal((60, 5)) @ mixing
    reader = fisher_reader(one, zero, shrinkage=0)
    delta = one.mean(0) - zero.mean(0)
    within = (np.cov(one.T) * 39 + np.cov(zero.T) * 59) / 98
    leading = eigh(np.outer(delta, delta), within)[1][:, -1]
    assert abs(leading @ reader) / np.linalg.norm(leading) / np.linalg.norm(reader) == pytest.approx(1)
    assert reader @ delta == pytest.approx(1)
    tensors = [torch.from_numpy(array) for array in (delta, reader, zero.mean(0))]
    lost = [(values - subtract_weighted(torch.from_numpy(values), *tensors, 2.0).numpy()) for values in (one, zero)]
    assert np.allclose(lost[0].mean(0), 2 * delta)
    assert np.allclose(lost[1].mean(0), 0, atol=1e-9)
    erased = subtract_weighted(torch.from_numpy(one), *tensors)
    assert torch.allclose(subtract_weighted(erased, *tensors), erased)  # dose 1 is a projection


def test_a_discriminant_of_nothing_is_refused():
    with pytest.raises(InputError, match="2 tokens or more"):
        fisher_reader(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(InputError, match="nothing to discriminate"):
        fisher_reader(np.ones((3, 3)), np.ones((4, 3)))


def test_a_weighted_direction_is_used_and_kept(checkpoints, tmp_path):
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    labels = labelled(vocabulary=60)
    acts = ActivationStore.capture(model, labels, sites="resid_post", layers=0)
    direction = class_direction(acts, labels, ("resid_post", 0), ordinary=acts)
    assert direction.reader is not None
    assert np.allclose(direction.mean0, acts["resid_post", 0].mean(0), atol=1e-6)
    save_direction(direction, tmp_path, {"mode": "weighted", "scale": 2.0, "positions": "all"})
    again, settings_ = load_direction(tmp_path)
    assert again.reader is not None
    assert np.array_equal(again.reader, direction.reader)
    before = sequence_logp(model, list(labels.sequences[:2]))[0]
    with intervene(model, again, **settings_):
        assert not np.allclose(sequence_logp(model, list(labels.sequences[:2]))[0][0][2:], before[0][2:])
    with pytest.raises(InputError, match="needs a reader"), intervene(model, direction_at(model), mode="weighted"):
        pass


def test_several_made_together_are_one_inside_the_other(checkpoints, tmp_path):
    """Together they are nested interventions, earlier layers first whatever the order; kept and found again; and when
    one of them means nothing no hook of the others is left."""
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    labels = labelled(vocabulary=60)
    acts = ActivationStore.capture(model, labels, sites=("attn_out", "mlp_out"))
    several = [class_direction(acts, labels, place, ordinary=acts) for place in acts.arrays]
    assert len(several) == 4
    texts = list(labels.sequences[:3])

    def logp(*contexts):
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            return np.concatenate(sequence_logp(model, texts)[0])

    settings_ = {"mode": "weighted", "scale": 1.5, "positions": "all"}
    before = logp()
    nested = logp(*(intervene(model, one, **settings_) for one in several))
    assert np.array_equal(nested, logp(intervene(model, several, **settings_)), equal_nan=True)
    assert np.array_equal(nested, logp(intervene(model, several[::-1], **settings_)), equal_nan=True)
    assert not np.allclose(nested, logp(intervene(model, several[0], **settings_)), equal_nan=True)
    save_direction(several, tmp_path, settings_)
    again, found = load_direction(tmp_path)
    assert np.array_equal(nested, logp(intervene(model, again, **found)), equal_nan=True)
    unread = replace(several[1], reader=None)
    with pytest.raises(InputError, match="needs a reader"), intervene(model, [several[0], unread], mode="weighted"):
        pass
    assert np.array_equal(before, logp(), equal_nan=True)
    others = random_directions(several, seed=4)
    assert [one.place for one in others] == [one.place for one in several]
    for one, other in zip(several, others, strict=True):
        assert np.linalg.norm(other.delta) == pytest.approx(np.linalg.norm(one.delta))
        assert abs(other.delta @ others[0].delta) < 0.9 * (other.delta @ other.delta) or other is others[0]


def test_a_direction_on_disk(checkpoints, tmp_path):
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    direction = direction_at(model, "mlp_hidden", 1)
    save_direction(direction, tmp_path, {"mode": "set-to-mean", "scale": 1.0, "positions": "all"})
    again, settings_ = load_direction(tmp_path)
    assert again.place == direction.place
    assert again.units == direction.units
    assert np.array_equal(again.delta, direction.delta)
    assert np.array_equal(again.w, direction.w)
    with intervene(model, again, **settings_):
        pass
    meta = json.loads((tmp_path / "direction.json").read_text())
    (tmp_path / "direction.json").write_text(json.dumps(meta | {"sha256": "0" * 64}))
    with pytest.raises(RunMismatchError, match="does not belong"):
        load_direction(tmp_path)
    (tmp_path / "direction.json").write_text("[]")
    with pytest.raises(InputError, match="is not a direction"):
        load_direction(tmp_path)
    with pytest.raises(InputError, match="holds no direction"):
        load_direction(tmp_path / "nowhere")


def test_settings_that_mean_nothing_are_refused(checkpoints):
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    direction = direction_at(model)
    for settings_, message in (
        ({"mode": "zero"}, "unknown intervention"),
        ({"mode": "projection", "scale": 2.0}, "between 0 and 1"),
        ({"scale": -1.0}, "0 or more"),
        ({"positions": "first"}, "positions"),
    ):
        with pytest.raises(InputError, match=message), intervene(model, direction, **settings_):
            pass
    with pytest.raises(InputError, match="needs units"), intervene(model, direction.with_units(()), mode="set-to-mean"):
        pass
    narrow = Direction(Place("resid_post", 0), np.ones(8), np.zeros(8), np.ones(8))
    with pytest.raises(InputError, match="another model or site"), intervene(model, narrow):
        model.hf(torch.arange(5)[None])
    with (
        pytest.raises(InputError, match="no layer 9"),
        intervene(model, Direction(Place("resid_post", 9), *np.ones((3, 32)))),
    ):
        pass
