"""Sampled and greedy continuations against transformers' generate, and against sampling without any sharing."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tests.conftest import FAMILIES
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from rote.errors import InputError
from rote.models import CausalLM
from rote.records.table import RecordTable
from rote.scores import DecodingScheme, score_in_memory
from rote.scores.continuations import (
    NextLogQ,
    draw,
    encode_prefix,
    greedy_continuations,
    next_logq,
    sample_continuations,
)

SCHEMES = [
    "sample",
    "temperature=0.7",
    "top_k=5",
    "top_k=1",
    "top_p=0.6",
    "min_p=0.1",
    "typical_p=0.5",
    "temperature=0.7,top_k=10,top_p=0.8",
    "epsilon_cutoff=0.01",
    "eta_cutoff=0.02",
    "repetition_penalty=1.4",
    "repetition_penalty=1.4,temperature=0.8,top_k=7,top_p=0.9",
]


def toy(vocabulary=7, seed=3) -> CausalLM:
    torch.manual_seed(seed)
    return CausalLM(
        GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.6)
        )
    )


def one_by_one(model: CausalLM, prefix, *, length, count, scheme, seed) -> np.ndarray:
    """The same draws without cache, sharing or batches: one sample, one token, one whole forward pass at a time."""
    uniform = np.random.default_rng(seed).random((count, length))
    out = np.zeros((count, length), int)
    for i, t in itertools.product(range(count), range(length)):
        ids = torch.tensor([[*([] if model.bos_id is None else [model.bos_id]), *prefix, *out[i, :t].tolist()]])
        with torch.no_grad():
            logits = model.hf(ids, use_cache=False).logits[0, -1:].float()
        q = next_logq(logits, scheme, ids)[0].double().exp().numpy()
        out[i, t] = np.searchsorted(np.cumsum(q) / q.sum(), uniform[i, t], side="right")
    return out


@pytest.mark.parametrize("text", SCHEMES)
def test_next_logq_is_generates_own_processor_list(text, checkpoints):
    model = CausalLM.load(checkpoints("gpt2"))
    scheme = DecodingScheme.parse(text)
    ids = torch.tensor([[5, 9, 5, 30, 41, 7], [8, 8, 8, 1, 2, 3]])
    with torch.no_grad():
        logits = model.hf(ids).logits[:, -1].float()
    config = GenerationConfig(**scheme.generation_kwargs(), eos_token_id=None, pad_token_id=0)
    expected = model.hf._get_logits_processor(config, input_ids_seq_length=1, model_kwargs={})(ids, logits.clone())
    found = next_logq(logits, scheme, ids)
    np.testing.assert_allclose(found.exp(), expected.softmax(-1), atol=1e-6)
    np.testing.assert_allclose(found.exp().sum(-1), 1.0, atol=1e-5)


def test_draw_is_the_inverse_of_the_distribution_function():
    q = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25, 0.0]]).log()
    row = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    uniform = torch.tensor([0.0, 0.49, 0.5, 1.0, 0.0, 0.26, 0.74, np.nextafter(1, 0)], dtype=torch.float64)
    assert draw(q, row, uniform).tolist() == [1, 1, 3, 3, 0, 1, 2, 3]
    wide = torch.full((3, 1000), -torch.inf)
    wide[:, [3, 500, 997]] = torch.tensor([0.2, 0.3, 0.5]).log()  # few possible tokens among many
    assert draw(wide, torch.tensor([0, 1, 2]), torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)).tolist() == [
        3,
        500,
        997,
    ]


@pytest.mark.parametrize("text", ["sample", "top_k=3", "temperature=0.7,top_p=0.8", "repetition_penalty=1.5,top_k=4"])
def test_shared_beginnings_change_nothing(text):
    model = toy()
    scheme = DecodingScheme.parse(text)
    arguments = {"length": 5, "count": 40, "scheme": scheme, "seed": 11}
    expected = one_by_one(model, [1, 2, 3], **arguments)
    np.testing.assert_array_equal(sample_continuations(model, [1, 2, 3], **arguments), expected)
    for rows in (1, 3, 7):
        np.testing.assert_array_equal(sample_continuations(model, [1, 2, 3], rows=rows, **arguments), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_samples_what_it_samples_without_a_cache(family, checkpoints, texts):
    model = CausalLM.load(checkpoints(family))
    prefix = model.encode([texts[0]])[0].ids[:25]
    arguments = {"length": 6, "count": 5, "scheme": DecodingScheme(top_k=20), "seed": 2}
    np.testing.assert_array_equal(
        sample_continuations(model, prefix, **arguments), one_by_one(model, prefix, **arguments)
    )


def test_samples_are_dropped_when_no_longer_of_interest():
    model = toy()
    arguments = {"length": 5, "count": 300, "scheme": DecodingScheme(), "seed": 4}
    everything = sample_continuations(model, [1, 2], **arguments)
    target = everything[0]

    def near(tokens):
        return (tokens != target[: tokens.shape[1]]).sum(1) <= 1

    pruned = sample_continuations(model, [1, 2], keep=near, **arguments)
    close = near(everything)
    np.testing.assert_array_equal(pruned[close], everything[close])
    assert (pruned[~close] == -1).all()
    assert 0 < close.sum() < 300


def test_sampled_frequencies_are_the_probabilities():
    """All 49 continuations of two tokens: chi-square of 20,000 samples against q from the one pass."""
    model, scheme = toy(), DecodingScheme(temperature=0.9)
    rows = [{"token_ids": [1, 2, *suffix], "prefix_tokens": 2} for suffix in itertools.product(range(7), repeat=2)]
    scores = score_in_memory(model, RecordTable.from_rows(rows), schemes=[scheme])
    q = np.exp(scores.schemes[scheme.name][:, 2:].astype(float).sum(1))
    drawn = Counter(
        map(tuple, sample_continuations(model, [1, 2], length=2, count=20_000, scheme=scheme, seed=5).tolist())
    )
    observed = np.array([drawn[tuple(row["token_ids"][2:])] for row in rows])
    frequent = q * 20_000 >= 5
    observed = np.append(observed[frequent], observed[~frequent].sum())
    expected = np.append(q[frequent], q[~frequent].sum()) * 20_000
    kept = expected > 0
    assert chisquare(observed[kept], expected[kept] * observed.sum() / expected[kept].sum()).pvalue > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mistral", "opt"])
@pytest.mark.parametrize("bos", ["never", "always"])
def test_greedy_continuations_are_generates(family, bos, checkpoints, texts):
    model = CausalLM.load(checkpoints(family), bos=bos)
    model.hf.generation_config.eos_token_id = None  # nothing may end a continuation
    encoded = [encoding.ids for encoding in model.encode(texts[:6])]
    prefixes = [ids[:size] for ids, size in zip(encoded, (20, 20, 9, 20, 9, 1), strict=True)]
    lengths = [7, 3, 8, 5, 2, 4]
    found = greedy_continuations(model, prefixes, lengths, batch=2)
    np.testing.assert_array_equal(found, greedy_continuations(model, prefixes, lengths))
    for row, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True)):
        ids = torch.tensor([[*([] if model.bos_id is None else [model.bos_id]), *prefix]])
        expected = model.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=length,
            min_new_tokens=None,
            pad_token_id=0,
        )
        assert found[row, :length].tolist() == expected[0, ids.shape[1] :].tolist()
        assert (found[row, length:] == -1).all()


def test_greedy_verdicts_equal_those_of_the_one_pass(checkpoints, texts):
    model = CausalLM.load(checkpoints("llama"))
    prefixes = [encoding.ids[:10] for encoding in model.encode(texts[:4])]
    own = greedy_continuations(model, prefixes, 8)
    rows = [
        {"token_ids": [*prefix, *suffix.tolist()], "prefix_tokens": 10}
        for prefix, suffix in zip(prefixes, own, strict=True)
    ]
    rows += [{**row, "token_ids": [*row["token_ids"][:-1], (row["token_ids"][-1] + 1) % 300]} for row in rows]
    scores = score_in_memory(model, RecordTable.from_rows(rows))
    recited = (scores.greedy | ~scores.in_suffix).all(1)
    assert recited.tolist() == [True] * 4 + [False] * 4


def test_next_logq_follows_any_beams(checkpoints, texts):
    model = CausalLM.load(checkpoints("mistral"))
    prefix = model.encode([texts[0]])[0].ids[:30]
    scheme = DecodingScheme(top_k=30)
    ask = NextLogQ(model, prefix, scheme)

    def slowly(tokens):
        rows = torch.tensor([[*prefix, *row] for row in tokens.tolist()])
        with torch.no_grad():
            return next_logq(model.hf(rows, use_cache=False).logits[:, -1].float(), scheme).numpy()

    steps = [
        np.zeros((1, 0), int),
        np.array([[4], [9], [7]]),
        np.array([[9, 1], [4, 2], [9, 3]]),
        np.array([[4, 2, 8], [9, 3, 8]]),
        np.array([[6, 6, 6]]),
        np.zeros((2, 0), int),
    ]  # the last two do not follow
    for tokens in steps:
        found, expected = ask(tokens), slowly(tokens)
        assert found.shape == expected.shape
        assert (np.isneginf(found) == np.isneginf(expected)).all()
        np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=1e-5)


def test_wrong_use_is_refused():
    model = toy()
    with pytest.raises(InputError, match="context window"):
        sample_continuations(model, [1] * 30, length=3, count=1, seed=0)
    with pytest.raises(InputError, match="context window"):
        greedy_continuations(model, [[1] * 30], 3)
    with pytest.raises(InputError, match="empty context"):
        encode_prefix(model, [])
    with pytest.raises(InputError, match="at least 1 token"):
        sample_continuations(model, [1], length=0, count=1, seed=0)
