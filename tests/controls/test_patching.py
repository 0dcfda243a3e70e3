"""Patching: a prompt patched with itself, every layer patched at once, and the last block's hand-over, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rote.controls.decoding import patching
from rote.controls.decoding.blocks import blocks_of, residual_states
from rote.controls.decoding.patching import Pair, Patch, causal_layer, mode_scores, patched
from rote.errors import InputError
from rote.models import CausalLM, small_gpt2, small_llama

VOCAB = 40


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt"])
def model(request):
    if request.param == "opt":
        from tests.conftest import tiny_config
        from transformers import AutoModelForCausalLM

        torch.manual_seed(1)
        config = tiny_config("opt", VOCAB)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
        hf = AutoModelForCausalLM.from_config(config)
    else:
        build = small_llama if request.param == "llama" else small_gpt2
        hf = build(vocab_size=VOCAB, context_length=32, width=32, layers=3, heads=2, seed=1)
    for parameter in hf.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return CausalLM(hf)


def some(n=6, seed=0, lengths=(7, 7, 5, 9, 7, 6)):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(3, VOCAB, lengths[i % len(lengths)]).tolist()) for i in range(n)]


def pairs(n=6):
    mem, gen = some(n), some(n, 1, (8, 7, 5, 6, 7, 9))
    rng = np.random.default_rng(2)
    answers = [tuple(rng.permutation(np.arange(3, VOCAB))[:6].tolist()) for _ in range(n)]
    return [Pair(m, g, a[:3], a[3:]) for m, g, a in zip(mem, gen, answers, strict=True)]


def last_logits(model, prompt):
    with torch.no_grad():
        return model.hf(input_ids=torch.tensor([prompt])).logits[0, -1]


def test_a_prompt_patched_with_itself_is_unchanged(model):
    chosen = pairs()
    prompts = [pair.memorized for pair in chosen]
    answers = [(pair.memorized_answer, pair.general_answer) for pair in chosen]
    states = residual_states(model, prompts)
    for score in patching.SCORES:
        plain = mode_scores(model, prompts, answers, score=score)
        for layer in range(states.shape[1]):
            same = mode_scores(model, prompts, answers, score=score, patch=Patch(layer, states[:, layer]))
            np.testing.assert_array_equal(plain, same)
    contributions = patching.prompt_contributions(model, prompts, [0, 1])
    for place, layer in enumerate((0, 1)):
        same = mode_scores(
            model, prompts, answers, score="logit_diff", patch=Patch(layer, contributions[:, place], "block")
        )
        np.testing.assert_allclose(mode_scores(model, prompts, answers, score="logit_diff"), same, atol=1e-4)


def test_scores_by_hand(model):
    chosen = pairs(3)
    answers = [(pair.memorized_answer, pair.general_answer) for pair in chosen]
    prompts = [pair.memorized for pair in chosen]
    differences = mode_scores(model, prompts, answers, score="logit_diff", batch_tokens=8)
    recited = mode_scores(model, prompts, answers, score="memorized_logp")
    for row, pair in enumerate(chosen):
        logits = last_logits(model, pair.memorized)
        expected = float(logits[pair.general_answer[0]] - logits[pair.memorized_answer[0]])
        assert differences[row] == pytest.approx(expected, abs=1e-4)
        total, sequence = 0.0, list(pair.memorized)
        for token in pair.memorized_answer:
            total += float(last_logits(model, sequence).log_softmax(-1)[token])
            sequence.append(token)
        assert recited[row] == pytest.approx(total, abs=1e-3)


def test_the_last_block_hands_over_the_sources_prediction(model):
    mem, gen = some(2), some(2, 5)
    states = residual_states(model, gen)
    top = len(blocks_of(model.hf)) - 1
    for row in range(2):
        ids = torch.tensor([mem[row]])
        patch = Patch(top, states[row : row + 1, top])
        with torch.no_grad(), patched(model, patch, np.array([0]), torch.tensor([len(mem[row]) - 1])):
            moved = model.hf(input_ids=ids).logits[0, -1]
        torch.testing.assert_close(moved.softmax(-1), last_logits(model, gen[row]).softmax(-1), atol=1e-6, rtol=1e-5)


def test_patching_every_position_of_every_layer_is_the_source_run(model):
    """All positions of one layer suffice: everything above is computed from them. Each layer is checked."""
    mem, gen = some(1)[0], some(1, 5)[0]
    source = torch.tensor([gen])
    for layer in range(len(blocks_of(model.hf))):
        states = residual_states(model, [gen], layers=[layer], positions=[range(len(gen))])[:, 0]
        handles = []
        try:
            for t in range(len(gen)):
                at = patched(model, Patch(layer, states[t : t + 1]), np.array([0]), torch.tensor([t]))
                at.__enter__()
                handles.append(at)
            with torch.no_grad():
                moved = model.hf(input_ids=torch.tensor([mem])).logits
        finally:
            while handles:
                handles.pop().__exit__(None, None, None)
        with torch.no_grad():
            torch.testing.assert_close(moved, model.hf(input_ids=source).logits, atol=1e-4, rtol=1e-4)


def test_the_curve_is_what_patching_one_pair_at_a_time_gives(model):
    chosen = pairs(4)
    found = causal_layer(model, chosen, score="logit_diff", batch_tokens=16)
    ratios = causal_layer(model, chosen, score="logit_diff", average="mean_of_ratios")
    blocks, effects, shares = blocks_of(model.hf), [], []
    for layer in range(len(blocks)):
        moved, whole = [], []
        for pair in chosen:
            kept = {}
            handle = blocks[layer].register_forward_hook(
                lambda module, args, out, kept=kept: kept.update(h=(out[0] if isinstance(out, tuple) else out)[0, -1])
            )
            source = last_logits(model, pair.general)
            handle.remove()

            def put(module, args, out, kept=kept):
                state = (out[0] if isinstance(out, tuple) else out).clone()
                state[0, -1] = kept["h"]
                return (state, *out[1:]) if isinstance(out, tuple) else state

            base = last_logits(model, pair.memorized)
            handle = blocks[layer].register_forward_hook(put)
            after = last_logits(model, pair.memorized)
            handle.remove()
            score = lambda z, pair=pair: float(z[pair.general_answer[0]] - z[pair.memorized_answer[0]])  # noqa: E731
            moved.append(score(after) - score(base))
            whole.append(score(source) - score(base))
        effects.append(sum(moved) / sum(whole))
        usable = np.abs(whole) > patching.SMALL
        shares.append(np.mean(np.array(moved)[usable] / np.array(whole)[usable]))
    np.testing.assert_allclose(found.denoising, effects, atol=1e-3)
    np.testing.assert_allclose(ratios.denoising, shares, rtol=2e-2, atol=1e-2)
    assert found.denoising[-1] == pytest.approx(1, abs=1e-4)
    assert found.noising[-1] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(np.cumsum(found.increments), found.denoising, atol=1e-12)
    assert found.l_star == found.by_increment == int(np.argmax(found.increments))


def test_the_noising_curve_is_the_denoising_curve_of_exchanged_partners(model):
    chosen = pairs(4)
    exchanged = [Pair(p.general, p.memorized, p.memorized_answer, p.general_answer) for p in chosen]
    for rule in patching.RULES:
        found = causal_layer(model, chosen, score="logit_diff", curve="noising", rule=rule)
        twin = causal_layer(model, exchanged, score="logit_diff", rule=rule)
        np.testing.assert_allclose(found.noising, twin.denoising, atol=1e-12)
        np.testing.assert_allclose(found.increments, twin.increments, atol=1e-12)
        assert (found.l_star, found.by_increment, found.by_share) == (twin.l_star, twin.by_increment, twin.by_share)
    assert found.curve == "noising"


def test_the_contribution_of_a_block_is_what_it_adds(model):
    prompts = some(3)
    added = patching.prompt_contributions(model, prompts, [0, 1])
    states = residual_states(model, prompts)
    np.testing.assert_allclose(added[:, 1], states[:, 1] - states[:, 0], atol=1e-4)
    found = causal_layer(model, pairs(4), score="logit_diff", part="block")
    assert found.part == "block"
    assert len(found.denoising) == len(blocks_of(model.hf))


def test_rules_of_choice():
    effect = np.array([0.14, 0.82, 0.92, 1.0])
    assert patching.layer_by_increment(effect) == 1
    assert patching.layer_by_share(effect) == 1
    assert patching.layer_by_share(effect, 0.9) == 2
    assert patching.layer_by_increment(np.array([0.9, 1.0])) == 0
    moved, whole = np.array([[1.0, 2.0, 9.0]]), np.array([2.0, 2.0, 0.0])
    assert patching.normalised(moved, whole, "mean_of_ratios")[0].tolist() == [0.75]
    assert patching.normalised(moved, whole, "mean_of_ratios")[1] == 1
    assert patching.normalised(moved, whole, "ratio_of_means")[0].tolist() == [3.0]


def test_what_cannot_be_patched_is_refused(model):
    chosen = pairs(2)
    for wrong, message in (
        ({"score": "x"}, "score is one of"), ({"rule": "argmax"}, "rule is one of"), ({"layers": [9]}, "blocks 0"),
        ({"answer_tokens": 0}, "at least 1"), ({"curve": "both"}, "curve is one of"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            causal_layer(model, chosen, **wrong)
    with pytest.raises(InputError, match="at least one pair"):
        causal_layer(model, [])
    same = Pair((3, 4, 5), (3, 4, 5), (6,), (7,))
    with pytest.raises(InputError, match="no effect to normalise by"):
        causal_layer(model, [same], score="logit_diff")
    with pytest.raises(InputError, match="do not differ in mode"):
        causal_layer(model, [same], score="logit_diff", average="mean_of_ratios")
    with pytest.raises(InputError, match="begin differently"):
        causal_layer(model, [Pair((3, 4), (5, 6), (7,), (7,))], score="logit_diff")
    with pytest.raises(InputError, match="needs the answers"):
        causal_layer(model, [Pair((3, 4), (5, 6), (7,))], score="logit_diff")
