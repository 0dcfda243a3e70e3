"""The one pass against transformers itself: every family, every scheme, any batch size, any padding."""

import itertools

import numpy as np
import pytest
import torch
from tests.conftest import FAMILIES
from transformers import AutoModelForCausalLM, GenerationConfig

from rote.models import CausalLM
from rote.records.table import RecordTable
from rote.scores import DecodingScheme, score_in_memory
from rote.scores.sequences import Split

SCHEMES = [
    "sample",
    "temperature=0.7",
    "top_k=5",
    "top_k=1",
    "top_p=0.6",
    "temperature=1.3,top_p=0.9",
    "min_p=0.1",
    "typical_p=0.5",
    "temperature=0.7,top_k=10,top_p=0.8",
    "top_k=12,min_p=0.05,typical_p=0.7",
    "epsilon_cutoff=0.01",
    "eta_cutoff=0.02",
    "repetition_penalty=1.4",
    "repetition_penalty=1.4,temperature=0.8,top_k=7,top_p=0.9",
]


def by_hand(model, ids, scheme: DecodingScheme):
    """log q of each token, by running transformers' own processor list on one position at a time."""
    config = GenerationConfig(**scheme.generation_kwargs(), eos_token_id=None, pad_token_id=0)
    processors = model._get_logits_processor(config, input_ids_seq_length=1, model_kwargs={})
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    rows = [
        processors(torch.tensor([ids[: t + 1]]), logits[t : t + 1].clone())[0].log_softmax(-1)[ids[t + 1]]
        for t in range(len(ids) - 1)
    ]
    return np.array([float(row) for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_its_own_logits(family, checkpoints, texts):
    path = checkpoints(family)
    model = CausalLM.load(path)
    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    scores = score_in_memory(model, RecordTable.from_rows({"text": text} for text in texts[:4]))
    for row in range(4):
        ids = scores.token_ids[row, : scores.length[row]].tolist()
        full = ids if model.bos_id is None else [model.bos_id, *ids]
        with torch.no_grad():
            logp = reference(torch.tensor([full])).logits[0].double().log_softmax(-1)
        skip = 0 if model.bos_id is not None else 1
        assert np.isnan(scores.logp[row, :skip]).all()
        for t in range(skip, len(ids)):
            before = logp[t - skip]
            p = before.exp()
            assert scores.logp[row, t] == pytest.approx(float(before[ids[t]]), abs=2e-5)
            assert scores.rank[row, t] == 1 + int((before > before[ids[t]]).sum())
            assert scores.entropy[row, t] == pytest.approx(float(-(p * before).sum()), abs=2e-5)
            assert scores.std[row, t] == pytest.approx(
                float(((p * before**2).sum() - (p * before).sum() ** 2).sqrt()), abs=1e-4
            )
            assert scores.greedy[row, t] == (int(before.argmax()) == ids[t])


def test_every_scheme_is_what_generate_samples_from(checkpoints, texts):
    path = checkpoints("llama")
    model = CausalLM.load(path)
    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    schemes = [DecodingScheme.parse(text) for text in SCHEMES]
    scores = score_in_memory(model, RecordTable.from_rows({"text": text} for text in texts[:2]), schemes=schemes)
    for scheme, row in itertools.product(schemes, range(2)):
        ids = scores.token_ids[row, : scores.length[row]].tolist()
        full = ids if model.bos_id is None else [model.bos_id, *ids]
        expected = by_hand(reference, full, scheme)
        mine = scores.schemes[scheme.name][row, : len(ids)][-len(expected) :]
        np.testing.assert_allclose(np.exp(mine), np.exp(expected), atol=1e-5, err_msg=scheme.name)
        assert (np.isneginf(mine) == np.isneginf(expected)).all(), scheme.name


@pytest.mark.parametrize(
    "scheme", ["sample", "temperature=0.7", "top_k=2", "top_p=0.6", "temperature=0.7,top_k=3,top_p=0.8", "top_k=1"]
)
def test_probabilities_of_all_suffixes_sum_to_one(scheme):
    """V = 5, three suffix tokens: the 125 p_z are a distribution under every scheme (the strongest single test)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    model = CausalLM(
        GPT2LMHeadModel(GPT2Config(vocab_size=5, n_embd=16, n_layer=1, n_head=2, n_positions=16, initializer_range=0.7))
    )
    rows = [{"token_ids": [1, 3, *suffix], "prefix_tokens": 2} for suffix in itertools.product(range(5), repeat=3)]
    parsed = DecodingScheme.parse(scheme)
    scores = score_in_memory(model, RecordTable.from_rows(rows), schemes=[parsed])
    total = np.exp(scores.schemes[parsed.name][:, 2:].astype(float).sum(1)).sum()
    assert total == pytest.approx(1.0, abs=1e-5)


def test_results_do_not_depend_on_batch_order_or_padding(checkpoints, texts):
    model = CausalLM.load(checkpoints("gpt2"))
    rows = [{"id": str(number), "text": text[: 20 + 9 * number]} for number, text in enumerate(texts[:12])]
    schemes = [DecodingScheme(top_k=40), DecodingScheme(top_p=0.9)]
    together = score_in_memory(model, RecordTable.from_rows(rows), schemes=schemes)
    alone = score_in_memory(model, RecordTable.from_rows(rows), schemes=schemes, batch_tokens=1)
    backwards = score_in_memory(model, RecordTable.from_rows(rows[::-1]), schemes=schemes, batch_tokens=200)
    for name in ("logp", "entropy", "std"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), atol=1e-5)
        np.testing.assert_allclose(getattr(together, name), getattr(backwards, name)[::-1], atol=1e-5)
    for scheme in schemes:
        np.testing.assert_allclose(together.schemes[scheme.name], alone.schemes[scheme.name], atol=1e-5)
    assert (together.rank == alone.rank).all()


def test_bfloat16_is_within_its_stated_tolerance(checkpoints, texts):
    """bfloat16 keeps 8 bits: log-probabilities agree with float32 to 0.15 nats each and 0.03 on average."""
    records = RecordTable.from_rows({"text": text} for text in texts[:8])
    full = score_in_memory(CausalLM.load(checkpoints("llama")), records)
    half = score_in_memory(CausalLM.load(checkpoints("llama"), dtype="bfloat16"), records)
    difference = np.abs(full.logp - half.logp)[np.isfinite(full.logp)]
    assert 0 < difference.max() < 0.15
    assert difference.mean() < 0.03


def test_prefix_and_suffix_are_cut_from_the_whole_text_not_tokenised_apart(checkpoints):
    from rote.scores import prepare

    model = CausalLM.load(checkpoints("gpt2"))
    rows = [
        {"id": "clean", "prefix": "The quick brown fox", "suffix": " jumps over the lazy dog"},
        {"id": "merged", "prefix": "The quick brown f", "suffix": "ox jumps over the lazy dog"},
    ]
    prepared = prepare(model, RecordTable.from_rows(rows))
    whole = model.encode(["The quick brown fox jumps over the lazy dog"])[0]
    clean, merged = prepared.sequences(np.arange(2))
    assert clean.ids == merged.ids == whole.ids
    assert prepared.merged.tolist() == [False, True]
    assert clean.ends[clean.prefix - 1] == len("The quick brown fox")
    assert merged.prefix < clean.prefix  # the straddling token belongs to the suffix
    assert Split(prefix=3, suffix=2).cut(10, None) == (3, 2)
    assert Split().cut(30, None) == (15, 15)
    assert Split().cut(200, None) == (50, 50)
