"""Single coordinates: statistics against brute force, a planted neuron is found, noise is not."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import FAMILIES

from rote.errors import InputError, RunMismatchError
from rote.internals.neurons import (
    ActivationStore,
    Place,
    RunningMoments,
    TokenLabels,
    certainty_units,
    histograms,
    ordinary_tokens,
    output_matrix,
    partial_auroc,
    rank_auroc,
    select_units,
    standardised_mean_difference,
    two_thresholds,
    without_certainty,
)
from rote.internals.neurons.certainty import CertaintyUnit, correlations
from rote.internals.neurons.coordinates import best_threshold
from rote.internals.neurons.selection import max_statistics, permutation_threshold
from rote.internals.neurons.sites import attach, parse_places
from rote.internals.neurons.splits import group_folds, held_out, permuted_labels
from rote.models import CausalLM

VALUES = st.integers(-3, 3).map(float)  # few values: ties everywhere


def labelled(tokens_per_passage: int = 6, passages: int = 20, vocabulary: int = 300, seed: int = 0) -> TokenLabels:
    """Random sequences; passages of even number are positive."""
    rng = np.random.default_rng(seed)
    sequences = tuple(rng.integers(3, vocabulary, tokens_per_passage + 3) for _ in range(passages))
    token = np.tile(np.arange(2, tokens_per_passage + 2), passages)
    sample = np.repeat(np.arange(passages), tokens_per_passage)
    names = tuple(f"passage-{number}" for number in range(passages))
    return TokenLabels(
        sequences, names, names, sample, token, (sample % 2 == 0).astype(np.int8), ("other", "memorized"),
        np.zeros(len(token), bool), np.zeros(len(token), np.float32), {"from": "a test"},
    )  # fmt: skip


def store(values: np.ndarray, labels: TokenLabels, site: str = "mlp_hidden") -> ActivationStore:
    outputs = np.zeros((len(labels), 3), np.float32)
    return ActivationStore({Place(site, 0): values}, outputs, "model", labels.fingerprint, len(labels))


@given(st.lists(VALUES, min_size=1, max_size=9), st.lists(VALUES, min_size=1, max_size=9))
def test_statistics_against_all_pairs_and_all_cuts(ones, zeros):
    values = np.array(ones + zeros)[:, None]
    label = np.array([True] * len(ones) + [False] * len(zeros))
    wins = [(a > b) + (a == b) / 2 for a, b in product(ones, zeros)]
    assert rank_auroc(values, label)[0] == pytest.approx(np.mean(wins))
    accuracy, threshold, sign = best_threshold(values, label)
    cuts = [s * (np.mean([s * a >= s * t for a in ones]) + np.mean([s * b < s * t for b in zeros])) / 2 * s
            for s in (1, -1) for t in np.arange(-3.5, 4)]  # fmt: skip
    assert accuracy[0] == pytest.approx(max(cuts))
    called = sign[0] * values[:, 0] >= sign[0] * threshold[0]
    if len(set(values[:, 0])) > 1:
        assert (called[label].mean() + (~called[~label]).mean()) / 2 == pytest.approx(accuracy[0])
    spread = np.sqrt((np.var(ones) * len(ones) + np.var(zeros) * len(zeros)) / max(len(values) - 2, 1))
    gap = np.mean(ones) - np.mean(zeros)
    smd = gap / spread if spread > 0 else 0.0 if gap == 0 else np.sign(gap) * np.inf
    assert standardised_mean_difference(values, label)[0] == pytest.approx(smd)


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=2), min_size=1, max_size=30), st.integers(1, 7))
@settings(max_examples=50)
def test_running_moments_are_those_of_everything_at_once(rows, size):
    values, moments = np.array(rows), RunningMoments()
    for start in range(0, len(values), size):
        moments.add(values[start : start + size])
    assert moments.count == len(values)
    assert np.allclose(moments.mean, values.mean(0), rtol=1e-9, atol=1e-9)
    assert np.allclose(moments.sd, values.std(0), rtol=1e-6, atol=1e-6)


def test_a_planted_neuron_is_found_first_by_every_statistic(checkpoints):
    """A coordinate of a real model's MLP hidden state made equal to the label, by a hook: rank 1, AUROC 1."""
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    labels = labelled()
    planted = {(int(s), int(t)): float(k) for s, t, k in zip(labels.sample, labels.token, labels.kind, strict=True)}
    by_ids = {tuple(sequence): number for number, sequence in enumerate(labels.sequences)}
    current: dict[str, torch.Tensor] = {}
    reader = model.hf.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: current.update(ids=kwargs["input_ids"]), with_kwargs=True
    )

    def plant(activation: torch.Tensor) -> torch.Tensor:
        out = activation.clone()
        for row, ids in enumerate(current["ids"].tolist()):
            number = by_ids.get(tuple(ids))
            for position in range(len(ids)) if number is not None else ():
                out[row, position, 17] = planted.get((number, position + 1), 0.0)
        return out

    writer = attach(model.hf, Place("mlp_hidden", 1), plant)
    try:
        acts = ActivationStore.capture(model, labels, sites="mlp_hidden")
    finally:
        reader.remove()
        writer.remove()
    assert np.array_equal(acts["mlp_hidden", 1][:, 17], labels.label)
    for statistic in ("auroc", "smd", "balanced_accuracy"):
        selection = select_units(
            acts, labels, statistic=statistic, top=3, permutations=50 if statistic == "auroc" else 0
        )
        best = selection.best
        assert (best.site, best.layer, best.dimension, best.sign) == ("mlp_hidden", 1, 17, 1)
        assert best.auroc == best.auroc_held_out == best.balanced_accuracy == best.balanced_accuracy_held_out == 1.0
    selection = select_units(acts, labels, permutations=200)
    assert selection.passing["mlp_hidden"] >= 1
    assert selection.best.p_value == pytest.approx(1 / 201, abs=0.02)
    assert selection.coordinates == {"mlp_hidden": 2 * 128}
    assert len(selection.units) == 20
    assert selection.at("mlp_hidden", 1)[0] == 17
    two = histograms(acts["mlp_hidden", 1][:, 17], labels.label, bins=4)
    assert np.argmax(two["positive"]) == 3
    assert np.argmax(two["negative"]) == 0


def test_held_out_figures_are_of_other_passages():
    """A coordinate that names the passage looks perfect on the passages it was chosen on, and only there."""
    labels = labelled(passages=30)
    test = select_units(store(np.zeros((len(labels), 1)), labels), labels, top=1, permutations=0, seed=5).held_out
    rng = np.random.default_rng(0)
    values = rng.standard_normal((len(labels), 4))
    values[:, 2] = np.where(test, rng.standard_normal(len(labels)), labels.label + 0.01 * rng.random(len(labels)))
    selection = select_units(store(values, labels), labels, top=1, permutations=0, seed=5)
    assert selection.best.dimension == 2
    assert selection.best.auroc == 1.0
    assert selection.best.auroc_held_out == pytest.approx(rank_auroc(values[test][:, 2:3], labels.label[test])[0])
    assert selection.best.auroc_held_out < 0.8
    assert not {*labels.sample[test]} & {*labels.sample[~test]}


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(12, 40))
@settings(max_examples=60)
def test_no_passage_is_on_two_sides(seed, folds, passages):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, passages, 400)
    label = rng.random(400) < np.where(group % 3 == 0, 0.0, np.where(group % 3 == 1, 1.0, 0.5))
    fold = group_folds(group, label, folds=folds, seed=seed)
    assert all(len({*fold[group == number]}) <= 1 for number in range(passages))
    assert {*fold} == {*range(folds)}
    test = held_out(group, label, share=0.3, seed=seed)
    assert not {*group[test]} & {*group[~test]}
    for shuffled in permuted_labels(group, label, permutations=3, seed=seed):
        for number in range(passages):  # tokens of one passage and one label stay together
            for side in (label, ~label):
                assert len({*shuffled[(group == number) & side]}) <= 1


def test_the_maximum_over_permutations_against_a_loop():
    rng = np.random.default_rng(0)
    values, label = rng.integers(0, 4, (30, 5)).astype(float), np.arange(30) % 3 == 0
    shuffled = permuted_labels(np.arange(30), label, permutations=25, seed=2)
    slow = [max(abs(rank_auroc(values, permuted) - 0.5)) for permuted in shuffled]
    assert np.allclose(max_statistics(values, shuffled), slow)
    assert permutation_threshold(np.arange(1.0, 20.0), 0.05) == np.nextafter(19.0, np.inf)  # k = 19 of 19
    assert permutation_threshold(np.arange(1.0, 200.0), 0.05) == np.nextafter(190.0, np.inf)
    assert permutation_threshold(np.arange(5.0), 0.05) == np.inf


def test_noise_passes_the_permutation_threshold_at_most_at_its_rate():
    """200 runs on pure noise with passage effects: the share of runs with any discovery is 5 % up to chance, the share
    of coordinates discovered is far below 5 %."""
    from scipy.stats import binomtest

    labels = labelled(tokens_per_passage=3, passages=24)
    discoveries = []
    for run in range(200):
        rng = np.random.default_rng(1000 + run)
        passage = rng.standard_normal((24, 20))[labels.sample]
        values = passage + 0.5 * rng.standard_normal((len(labels), 20))
        selection = select_units(store(values, labels), labels, top=1, permutations=99, seed=run)
        discoveries.append(selection.passing["mlp_hidden"])
    any_discovery = int(np.count_nonzero(discoveries))
    assert binomtest(any_discovery, 200, 0.05, alternative="greater").pvalue > 0.01
    assert np.mean(discoveries) / 20 <= 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_of_every_family_against_the_models_own_arithmetic(family, checkpoints):
    """a_l W_out + b is the MLP's output, and the residual is what transformers reports."""
    model = CausalLM.load(checkpoints(family), device="cpu")
    labels = labelled(passages=6)
    sites = ("resid_post", "mlp_hidden", "mlp_out", "attn_out", "attn_heads")
    acts = ActivationStore.capture(model, labels, sites=sites, batch_tokens=30)
    bos = 0 if model.bos_id is None else 1
    for layer in (0, 1):
        weight, bias = output_matrix(model.hf, layer)
        expected = acts["mlp_hidden", layer] @ weight.numpy() + (0 if bias is None else bias.numpy())
        scale = np.abs(expected).max()
        assert np.allclose(acts["mlp_out", layer], expected, atol=1e-5 * scale)
        assert acts["attn_heads", layer].shape == acts["attn_out", layer].shape == (len(labels), 32)
    front = [] if bos == 0 else [model.bos_id]
    for i in (0, 7, 20):
        ids = torch.tensor([[*front, *labels.sequences[labels.sample[i]]]])
        with torch.no_grad():
            states = model.hf(ids, output_hidden_states=True).hidden_states
        position = labels.token[i] - 1 + bos
        expected = states[1][0, position].numpy()
        assert np.allclose(acts["resid_post", 0][i], expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_places_that_do_not_exist_are_listed(checkpoints):
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    assert parse_places(model.hf, "resid_post", -1) == [Place("resid_post", 1)]
    with pytest.raises(InputError, match="there are: resid_post, mlp_hidden"):
        parse_places(model.hf, "residual", "all")
    with pytest.raises(InputError, match="layers 0 to 1"):
        parse_places(model.hf, "resid_post", [0, 2])
    labels = labelled(passages=6)
    acts = ActivationStore.capture(model, labels, sites="resid_post", layers=[1])
    with pytest.raises(InputError, match="it has: resid_post 1"):
        _ = acts["mlp_out", 1]
    with pytest.raises(RunMismatchError, match="other labels"):
        acts.check(labelled(passages=6, seed=1))


def test_a_store_on_disk_is_the_same_resumes_and_refuses_others(checkpoints, tmp_path):
    model, labels = CausalLM.load(checkpoints("llama"), device="cpu"), labelled(passages=8)
    memory = ActivationStore.capture(model, labels, sites=["resid_post", "mlp_hidden"], batch_tokens=10_000)
    disk = ActivationStore.capture(
        model, labels, sites=["resid_post", "mlp_hidden"], directory=tmp_path / "acts", batch_tokens=20
    )
    for place in memory.arrays:
        assert isinstance(disk[place], np.memmap)
        assert np.allclose(disk[place], memory[place], atol=1e-5)
    assert np.allclose(disk.outputs, memory.outputs, atol=1e-4)
    again = ActivationStore.capture(model, labels, sites=["resid_post", "mlp_hidden"], directory=tmp_path / "acts")
    assert np.array_equal(again["resid_post", 0], disk["resid_post", 0])
    with pytest.raises(RunMismatchError, match="places"):
        ActivationStore.capture(model, labels, sites="attn_out", directory=tmp_path / "acts")
    half = ActivationStore.capture(model, labels, sites="resid_post", dtype="float16", directory=tmp_path / "half")
    assert half["resid_post", 1].dtype == np.float16
    assert np.allclose(half["resid_post", 1], memory["resid_post", 1], rtol=1e-3, atol=1e-3)
    handle = attach(model.hf, Place("resid_post", 0), lambda activation: activation * 1e7)
    try:
        with pytest.raises(InputError, match="beyond float16"):
            ActivationStore.capture(model, labels, sites="resid_post", dtype="float16")
    finally:
        handle.remove()
    with pytest.raises(InputError, match="holds no activations"):
        ActivationStore.capture(model, labels, sites="resid_post", directory=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_certainty_against_numpy_and_what_is_left_without_it(checkpoints, texts):
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    plain = ordinary_tokens(model, texts[:6])
    acts = ActivationStore.capture(model, plain, sites=["resid_post", "mlp_hidden"])
    units = certainty_units(acts, top=5)
    sure = np.exp(acts.outputs[:, 2].astype(float))
    every = {
        (place.site, place.layer, j): np.corrcoef(acts[place][:, j].astype(float), sure)[0, 1]
        for place in acts.arrays
        for j in range(acts[place].shape[1])
    }
    best = max(every, key=lambda key: abs(every[key]))
    assert (units[0].site, units[0].layer, units[0].dimension) == best
    assert units[0].r_max_probability == pytest.approx(every[best], abs=1e-6)
    assert units[0].tokens == len(plain)

    rng = np.random.default_rng(0)
    label, certainty = np.arange(400) % 2 == 0, rng.standard_normal(400)
    says_certain = (certainty + 2 * label)[:, None]  # certainty differs between the kinds, the unit only repeats it
    both = certainty + 2 * label
    assert rank_auroc(says_certain, label)[0] > 0.85
    assert abs(partial_auroc(says_certain + 1e-9 * rng.random((400, 1)), label, both[:, None])[0] - 0.5) < 0.1
    own = (label + 0.2 * rng.standard_normal(400) + both)[:, None]
    residual = own[:, 0] - np.polyval(np.polyfit(both, own[:, 0], 1), both)
    assert partial_auroc(own, label, both[:, None])[0] == pytest.approx(rank_auroc(residual[:, None], label)[0])
    assert correlations(np.ones((5, 1)), np.arange(5.0))[0] == 0.0

    labels = labelled()
    values = rng.standard_normal((len(labels), 3))
    values[:, 1] = labels.label + 0.1 * values[:, 0]
    kept = store(values, labels)
    selection = select_units(kept, labels, top=1, permutations=0)
    row = without_certainty(kept, labels, selection, certainty=CertaintyUnit("mlp_hidden", 0, 0, 1.0, -1.0, 10))[0]
    assert row["dimension"] == 1
    assert row["partial_auroc_held_out"] == 1.0


def test_two_thresholds_cross_when_classes_are_clear():
    values, label = np.concatenate([np.arange(100.0), 60 + np.arange(100.0)]), np.arange(200) >= 100
    lower, upper = two_thresholds(values, label)
    assert upper == pytest.approx(np.percentile(np.arange(100.0), 95))
    assert lower == pytest.approx(np.percentile(60 + np.arange(100.0), 5))
    apart = np.concatenate([np.arange(100.0), 500 + np.arange(100.0)])
    lower, upper = two_thresholds(apart, label)
    assert lower == pytest.approx(94.05)
    assert upper == pytest.approx(504.95)
    with pytest.raises(InputError):
        two_thresholds(values, np.ones(200, bool))
