"""The shortest reciting prompt: found on a model that recites, not on one that knows nothing."""

import numpy as np
import pytest
import torch
from tests.conftest import FAMILIES
from transformers import GPT2Config, GPT2LMHeadModel

from rote.errors import InputError
from rote.models import CausalLM
from rote.records.table import RecordTable
from rote.scores.continuations import greedy_continuations
from rote.scores.prompt_search import GreedyCoordinateGradient, allowed_tokens, compress, compress_records

V, TARGET_TOKENS = 64, 24


def untrained(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=V,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


@pytest.fixture(scope="module")
def reciting():
    """A tiny GPT that says one 24-token text after a 2-token trigger and babbles after anything else."""
    torch.set_num_threads(1)
    hf = untrained()
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, V, (TARGET_TOKENS,), generator=generator)
    trigger = torch.tensor([7, 42])
    optimizer = torch.optim.AdamW(hf.parameters(), lr=5e-3)
    for _ in range(200):
        batch = torch.randint(0, V, (12, 36), generator=generator)
        for row in batch[:8]:  # anywhere in the noise
            start = int(torch.randint(0, 11, (1,), generator=generator))
            row[start : start + 2 + TARGET_TOKENS] = torch.cat([trigger, text])
        loss = torch.nn.functional.cross_entropy(hf(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = CausalLM(hf)
    assert greedy_continuations(model, [trigger.tolist()], TARGET_TOKENS)[0].tolist() == text.tolist()
    return model, text.tolist()


def test_a_recited_text_is_compressible(reciting):
    model, text = reciting
    result, prompt = compress(model, text, steps=40, batch=64, top_k=32)
    assert result.ratio > 1
    assert result.ratio == TARGET_TOKENS / result.prompt_tokens
    assert len(prompt) == result.prompt_tokens <= 5
    # the verdict of the teacher-forced pass is what greedy decoding from the prompt gives
    assert greedy_continuations(model, [prompt], TARGET_TOKENS)[0].tolist() == text


def test_an_unknown_text_and_an_untrained_model_are_not_compressible(reciting):
    model, text = reciting
    other = torch.randint(0, V, (TARGET_TOKENS,), generator=torch.Generator().manual_seed(9)).tolist()
    for candidate, target in ((model, other), (CausalLM(untrained()), text)):
        result, prompt = compress(candidate, target, steps=10, batch=32, top_k=16, cap=1)
        assert (result.ratio, prompt) == (0.0, None)
        assert [length for length, _, _ in result.trace] == [5, 10, 15, 20]
        assert not any(success for _, _, success in result.trace)


def test_records_are_seeded_by_their_ids(reciting):
    model, text = reciting
    rows = [{"id": "known", "token_ids": text}, {"id": "unknown", "token_ids": text[::-1]}]
    settings = {"steps": 8, "batch": 48, "top_k": 32, "cap": 1}
    found = compress_records(model, RecordTable.from_rows(rows), **settings)
    assert found.ratio[0] > 1
    assert found.ratio[1] == 0
    assert found.target_tokens.tolist() == [TARGET_TOKENS] * 2
    reverse = compress_records(model, RecordTable.from_rows(rows[::-1]), **settings)
    assert reverse.traces == found.traces[::-1]
    assert reverse.prompts == found.prompts[::-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_the_one_hot_rows(family, checkpoints):
    """Against autograd through onehot @ E, for every family and with BOS."""
    model = CausalLM.load(checkpoints(family), bos="always")
    prompt, target = torch.tensor([9, 30, 8]), [40, 41, 42, 43]
    search = GreedyCoordinateGradient(model, target)
    embed = model.hf.get_input_embeddings()
    onehot = torch.nn.functional.one_hot(prompt, len(search.allowed)).float().requires_grad_(True)
    matrix = embed(torch.arange(len(search.allowed))).detach()
    inputs = torch.cat([matrix[[model.bos_id]], onehot @ matrix, matrix[target[:-1]]])
    logits = model.hf(inputs_embeds=inputs[None]).logits[0, -len(target) :]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
    (expected,) = torch.autograd.grad(loss, onehot)
    torch.testing.assert_close(search.gradient(prompt), expected, rtol=1e-4, atol=1e-5)
    assert float(search._evaluate(prompt[None])[0][0]) == pytest.approx(loss.item(), abs=1e-5)


def test_candidates_are_different_single_exchanges_of_allowed_tokens(checkpoints):
    model = CausalLM.load(checkpoints("gpt2"))
    search = GreedyCoordinateGradient(model, [40, 41, 42], batch=20, top_k=6)
    prompt = torch.tensor([9, 30, 8, 77])
    candidates = search._candidates(prompt, np.random.default_rng(0))
    assert candidates.shape == (20, 4)
    assert ((candidates != prompt).sum(1) == 1).all()
    assert len({tuple(row) for row in candidates.tolist()}) == 20
    slope = search.gradient(prompt)
    for row in candidates:
        (place,) = torch.nonzero(row != prompt)[:, 0].tolist()
        assert (
            slope[place] < slope[place, row[place]]
        ).sum() <= 6 + 1  # of the six most promising (a special token aside)
    special = model.tokenizer.all_special_ids
    assert not allowed_tokens(model)[special].any()
    assert int(allowed_tokens(model).sum()) == len(model.tokenizer) - len(set(special))


def test_search_is_deterministic_and_keeps_the_best(checkpoints):
    model = CausalLM.load(checkpoints("gpt2"))
    search = GreedyCoordinateGradient(model, [40, 41, 42], batch=16, top_k=32)
    none = search.search(3, 0, seed=5)
    some = search.search(3, 8, seed=5)
    assert some == search.search(3, 8, seed=5)
    assert some.loss < none.loss
    assert float(search._evaluate(torch.tensor([some.tokens]))[0][0]) == pytest.approx(some.loss, abs=1e-5)


def test_wrong_use_is_refused(reciting):
    model, text = reciting
    with pytest.raises(InputError, match="needs a target"):
        GreedyCoordinateGradient(model, [])
    with pytest.raises(InputError, match="context window"):
        GreedyCoordinateGradient(model, text).search(50, 1, seed=0)
    with pytest.raises(InputError, match="length of at least 1"):
        GreedyCoordinateGradient(model, text).search(0, 1, seed=0)
