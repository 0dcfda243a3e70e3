"""Approximate extraction on real models: enumeration, and Monte Carlo through generate and through our own sampler."""

import itertools

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rote.errors import InputError
from rote.measures.approximate import DISTANCES
from rote.measures.statistics import clopper_pearson
from rote.models import CausalLM
from rote.records.table import RecordTable
from rote.scores import DecodingScheme, score_in_memory
from rote.scores.approximate import approximate_extraction
from rote.scores.continuations import greedy_continuations, sample_continuations

V, K = 5, 4
PREFIX = [1, 3]


def toy(vocabulary=V, seed=3, spread=0.7) -> CausalLM:
    torch.manual_seed(seed)
    return CausalLM(
        GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=16,
                n_layer=1,
                n_head=2,
                n_positions=32,
                initializer_range=spread,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    )


def suffix_table(suffixes, prefix=None) -> RecordTable:
    prefix = prefix or PREFIX
    return RecordTable.from_rows(
        {"id": f"s{i}", "token_ids": [*prefix, *map(int, s)], "prefix_tokens": len(prefix)}
        for i, s in enumerate(suffixes)
    )


def enumerated(model: CausalLM, scheme: DecodingScheme) -> tuple[np.ndarray, np.ndarray]:
    """All V^K suffixes and their probabilities, from the one pass."""
    suffixes = np.array(list(itertools.product(range(V), repeat=K)))
    scores = score_in_memory(model, suffix_table(suffixes), schemes=[scheme])
    return suffixes, np.exp(scores.schemes[scheme.name][:, len(PREFIX) :].astype(float).sum(1))


@pytest.mark.parametrize(
    "text", ["sample", "top_k=2", "top_k=3,temperature=0.7", "top_p=0.7", "repetition_penalty=1.6,top_k=3"]
)
def test_enumeration_equals_branches_equals_full_beam(text):
    model, scheme = toy(), DecodingScheme.parse(text)
    suffixes, q = enumerated(model, scheme)
    assert q.sum() == pytest.approx(1.0, abs=1e-5)
    targets = suffixes[[0, 77, 311, int(q.argmax()), 624]]
    distance = (suffixes[None] != targets[:, None]).sum(-1)
    records = suffix_table(targets)
    truth = np.where(distance <= 1, q, 0).sum(1)
    exact = approximate_extraction(model, records, scheme=scheme, method="hamming1")
    np.testing.assert_allclose(np.exp(exact.log_p), truth, atol=2e-6)
    assert exact.exact.all()
    for eps in range(K + 1):
        beam = approximate_extraction(model, records, scheme=scheme, method="beam", eps=eps, width=V**K)
        np.testing.assert_allclose(np.exp(beam.log_p), np.where(distance <= eps, q, 0).sum(1), atol=2e-6)
        assert beam.exact.all()
    narrow = [
        approximate_extraction(model, records, scheme=scheme, method="beam", width=width)
        for width in (1, 2, 4, 8, 16, 32)
    ]
    lower, upper = (np.exp([getattr(each, name) for each in narrow]) for name in ("log_low", "log_high"))
    assert (np.diff(lower, axis=0) >= -2e-6).all()  # float32 logits in batches of another size
    assert (lower <= truth + 2e-6).all()
    assert (upper >= truth - 2e-6).all()


@pytest.mark.parametrize("distance", sorted(DISTANCES))
def test_monte_carlo_estimates_every_distance(distance):
    """Agreement with the enumerated truth: 20 suffixes, 2,000 samples each, all inside their 99.99 % intervals."""
    model, scheme = toy(spread=0.5), DecodingScheme(top_k=4)
    suffixes, q = enumerated(model, scheme)
    targets = suffixes[np.random.default_rng(0).choice(len(suffixes), 20, p=q / q.sum())]
    eps = 0.3 if distance == "bleu" else 1
    truth = np.array([q[DISTANCES[distance](suffixes, target) <= eps].sum() for target in targets])
    found = approximate_extraction(
        model,
        suffix_table(targets),
        scheme=scheme,
        method="monte_carlo",
        distance=distance,
        eps=eps,
        samples=2_000,
        confidence=0.9999,
    )
    assert ((np.exp(found.log_low) <= truth) & (truth <= np.exp(found.log_high))).all()
    np.testing.assert_allclose(np.exp(found.log_p), found.hits / 2_000)
    assert (found.hits > 0).any()


@pytest.mark.parametrize("text", ["top_k=10", "temperature=0.8,top_p=0.9"])
def test_monte_carlo_agrees_with_the_closed_form(text):
    """p_z in [0.01, 0.9] of 100 suffixes: >= 90 % lie inside the 95 % Clopper-Pearson interval of 1,000 samples,
    whether transformers' own generate samples (every other setting off) or the sampler here does. (Of 30 suffixes, a
    right sampler leaves fewer than 27 inside once in twenty runs; of 100, fewer than 90 once in a hundred.)"""
    model, scheme = toy(vocabulary=24, seed=8, spread=0.55), DecodingScheme.parse(text)
    rng = np.random.default_rng(1)
    prefixes = [rng.integers(0, 24, 3).tolist() for _ in range(300)]
    suffixes = [
        sample_continuations(model, prefix, length=3, count=1, scheme=scheme, seed=i)[0]
        for i, prefix in enumerate(prefixes)
    ]
    records = RecordTable.from_rows(
        {"token_ids": [*prefix, *suffix.tolist()], "prefix_tokens": 3}
        for prefix, suffix in zip(prefixes, suffixes, strict=True)
    )
    scores = score_in_memory(model, records, schemes=[scheme])
    p_z = np.exp(scores.schemes[scheme.name][:, 3:].astype(float).sum(1))
    chosen = np.flatnonzero((p_z >= 0.01) & (p_z <= 0.9))[:100]
    assert len(chosen) == 100
    torch.manual_seed(0)
    ours, theirs = np.zeros((2, len(chosen)))
    for number, row in enumerate(chosen):
        drawn = sample_continuations(model, prefixes[row], length=3, count=1_000, scheme=scheme, seed=1_000 + int(row))
        ours[number] = (drawn == suffixes[row]).all(1).sum()
        ids = torch.tensor([prefixes[row]]).expand(1_000, -1)
        generated = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, pad_token_id=0, **scheme.generation_kwargs()
        )[:, 3:]
        assert generated.shape == (1_000, 3)
        theirs[number] = (generated.numpy() == suffixes[row]).all(1).sum()
    for hits in (ours, theirs):
        low, high = clopper_pearson(hits, 1_000)
        assert ((low <= p_z[chosen]) & (p_z[chosen] <= high)).mean() >= 0.9
        z = (hits - 1_000 * p_z[chosen]) / np.sqrt(1_000 * p_z[chosen] * (1 - p_z[chosen]))
        assert abs(z.mean()) < 0.4  # four standard errors
        assert 0.7 < z.std() < 1.3


def test_eps_0_is_the_verbatim_probability_and_order_does_not_matter(checkpoints, texts):
    model, scheme = CausalLM.load(checkpoints("mistral")), DecodingScheme(top_k=40)
    rows = [{"id": f"r{i}", "text": text} for i, text in enumerate(texts[:4])]
    records, reverse = RecordTable.from_rows(rows), RecordTable.from_rows(rows[::-1])
    scores = score_in_memory(model, records, schemes=[scheme])
    verbatim = np.where(scores.in_suffix, scores.schemes[scheme.name].astype(float), 0).sum(1)
    for method, settings in {
        "beam": {"eps": 0, "width": 4},
        "hamming1": {},
        "monte_carlo": {"eps": 30, "samples": 20},
    }.items():
        found = approximate_extraction(model, records, scheme=scheme, method=method, **settings)
        again = approximate_extraction(model, reverse, scheme=scheme, method=method, **settings)
        np.testing.assert_allclose(found.log_p, again.log_p[::-1], atol=1e-4)
        if method == "beam":
            np.testing.assert_allclose(found.log_p, verbatim, atol=1e-3)
        if method == "hamming1":
            assert (found.log_p >= verbatim - 1e-3).all()
            beam = approximate_extraction(model, records, scheme=scheme, eps=1, width=16)
            assert (beam.log_low <= found.log_p + 1e-3).all()
            assert (beam.log_high >= found.log_p - 1e-3).all()


def test_hamming1_against_one_pass_per_branch(checkpoints, texts):
    """Every branch as a record of its own, scored by the one pass (gemma2: soft cap, tied head)."""
    model, scheme = CausalLM.load(checkpoints("gemma2")), DecodingScheme(top_k=6)
    prefix = model.encode([texts[1]])[0].ids[:8]
    target = greedy_continuations(model, [prefix], 5)[0].tolist()
    suffixes = [target] + [
        [*target[:j], v, *target[j + 1 :]] for j in range(5) for v in range(model.vocab_size) if v != target[j]
    ]
    scores = score_in_memory(model, suffix_table(suffixes, prefix), schemes=[scheme])
    truth = np.logaddexp.reduce(scores.schemes[scheme.name][:, 8:].astype(float).sum(1))
    found = approximate_extraction(model, suffix_table([target], prefix), scheme=scheme, method="hamming1")
    np.testing.assert_allclose(found.log_p, truth, atol=1e-4)
    assert truth > -np.inf


def test_records_that_cannot_be_continued_are_listed_not_dropped():
    records = RecordTable.from_rows(
        [
            {"id": "empty", "token_ids": [1, 2, 3], "prefix_tokens": 0},
            {"id": "short", "token_ids": [1]},
            {"id": "fine", "token_ids": [1, 2, 3, 4]},
        ]
    )
    found = approximate_extraction(toy(), records, scheme=DecodingScheme(), width=4)
    assert found.index.tolist() == [2]
    assert set(found.skipped) == {0, 1}


def test_wrong_use_is_refused():
    model, records = toy(), suffix_table([(0, 1, 2, 3)])
    for settings, message in (
        ({"method": "magic"}, "unknown method"),
        ({"distance": "cosine"}, "unknown distance"),
        ({"distance": "bleu"}, "Hamming distance only"),
        ({"eps": -1}, "at least 0"),
        ({"eps": 1.5}, "whole number"),
        ({"method": "hamming1", "eps": 2}, "for eps = 1"),
        ({"width": 0}, "at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            approximate_extraction(model, records, scheme=DecodingScheme(), **settings)
