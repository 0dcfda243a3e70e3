"""Steering against hand-made twins: exact on a linear toy, the same with and without cache, padding, batch, beams."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import FAMILIES, tiny_config
from torch import nn
from transformers import AutoModelForCausalLM, LogitsProcessorList

from rote.controls.decoding import blocks, files, steering, teacher_forced
from rote.controls.decoding.contrastive import ContrastiveSteering, contrast
from rote.controls.decoding.mode_probe import ModeProbe
from rote.controls.decoding.steering import SteeringSettings, mode_steering
from rote.controls.decoding.steering_vector import SteeringVector, random_vector
from rote.errors import InputError
from rote.models import CausalLM, small_llama
from rote.records import RecordTable
from rote.scores.sequences import Split
from rote.scores.tokens import score_in_memory

VOCAB, WIDTH = 64, 32
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def build(family: str):
    torch.manual_seed(len(family))
    config = tiny_config(family, VOCAB)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, None, 0
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


@pytest.fixture(scope="module")
def llama():
    return build("llama")


def parts(layer=0, width=WIDTH, seed=0, norm=8.0, layers=2):
    """A random probe that is neither sure nor constant, and a random vector."""
    rng = np.random.default_rng(seed)
    probe = ModeProbe(tuple(range(layers)), rng.normal(0, 0.3, (layers, width)).astype(np.float32),
                      np.zeros(layers, np.float32))  # fmt: skip
    v = rng.normal(size=width)
    return probe, SteeringVector(layer, (v / np.linalg.norm(v) * norm).astype(np.float32), "random", "raw", 1, 1, 1, 1)


def prompts(rows=3, length=7, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, VOCAB, (rows, length)))


def generated(model, ids, tokens=6, **options):
    with torch.no_grad():
        return model.generate(
            ids, attention_mask=options.pop("attention_mask", torch.ones_like(ids)), max_new_tokens=tokens, **GREEDY,
            **options,
        )  # fmt: skip


def by_hand(model, ids, probe, vector, alpha, tokens=6, dynamic=True):
    """The twin: one prompt, no cache, no hook on several positions: the block's output is edited position by position
    in a loop over the sequence. Returns (sequence, m_t, last logits)."""
    w, b = probe.at(vector.layer)
    ids, first = ids.clone(), ids.shape[1] - 1
    for _ in range(tokens):
        seen = []

        def edit(module, args, output, seen=seen):
            state = output[0] if isinstance(output, tuple) else output
            state = state.clone()
            seen.clear()
            for t in range(first, state.shape[1]):
                m = 1 / (1 + np.exp(-(float(state[0, t].double() @ torch.from_numpy(w).double()) + b)))
                seen.append(m)
                state[0, t] += alpha * (m if dynamic else 1.0) * torch.from_numpy(vector.v)
            return (state, *output[1:]) if isinstance(output, tuple) else state

        handle = blocks.blocks_of(model)[vector.layer].register_forward_hook(edit)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        handle.remove()
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids, np.array(seen), logits


# ---- (1) nothing at alpha = 0 or m = 0; (2) hooks are gone afterwards


@pytest.mark.parametrize("family", FAMILIES)
def test_alpha_zero_changes_nothing_in_any_architecture(family):
    model, ids = build(family), prompts(2)
    plain = generated(model, ids, 3, output_logits=True, return_dict_in_generate=True)
    probe, vector = parts(layer=1)
    with mode_steering(model, probe, vector, alpha=0.0) as s:
        same = generated(model, ids, 3, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(plain.sequences, same.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, same.logits, strict=True))
    assert (s.trace.added_norm == 0).all()
    assert ((s.trace.mode_score > 0) & (s.trace.mode_score < 1)).all()


def test_m_zero_changes_nothing(llama):
    _, vector = parts()
    never = ModeProbe((0, 1), np.zeros((2, WIDTH), np.float32), np.full(2, -1e4, np.float32))
    ids = prompts()
    with torch.no_grad():
        plain = llama(input_ids=ids).logits
        with mode_steering(llama, never, vector, alpha=5.0):
            same = llama(input_ids=ids).logits
    assert torch.equal(plain, same)


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_hooks_and_the_guard_are_gone_after_an_exception_too(llama):
    before, probe_vector = hooks_of(llama), parts()
    s = mode_steering(llama, *probe_vector)

    def fail():
        with s:
            assert hooks_of(llama) != before
            assert "generate" in vars(llama)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hooks_of(llama) == before
    assert "generate" not in vars(llama)
    ids = prompts()
    plain = generated(llama, ids)
    with s:  # may be entered again
        steered = generated(llama, ids)
    assert not torch.equal(plain, steered)
    assert torch.equal(plain, generated(llama, ids))


def test_nested_steering_leaves_in_order(llama):
    probe, vector = parts()
    ids = prompts()
    with mode_steering(llama, probe, vector, alpha=1.0):
        once = generated(llama, ids)
        with mode_steering(llama, None, random_vector(vector, seed=3), alpha=1.0, dynamic=False):
            generated(llama, ids)
        assert torch.equal(once, generated(llama, ids))
    assert "generate" not in vars(llama)


# ---- against the twin that knows no cache and no batch


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_what_editing_each_position_by_hand_gives(family):
    """With and without cache: the positions of all generated tokens are steered, and no others."""
    model, ids, tokens = build(family), prompts(2), 4
    probe, vector = parts(layer=0)
    twins = [by_hand(model, ids[row : row + 1], probe, vector, 1.0, tokens) for row in range(2)]
    for cached in (True, False):
        with mode_steering(model, probe, vector, alpha=1.0) as s:
            out = generated(model, ids, tokens, use_cache=cached, output_logits=True, return_dict_in_generate=True)
        assert s.trace.mode_score.shape == (2, tokens)
        for row, (sequence, m, logits) in enumerate(twins):
            assert torch.equal(out.sequences[row : row + 1], sequence), cached
            np.testing.assert_allclose(s.trace.mode_score[row], m, atol=2e-5)
            np.testing.assert_allclose(s.trace.added_norm[row], m * np.linalg.norm(vector.v), rtol=2e-4)
            torch.testing.assert_close(out.logits[-1][row], logits[0], atol=2e-4, rtol=1e-4)
    assert not torch.equal(out.sequences, generated(model, ids, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padded_prompts_are_steered_as_if_alone(family):
    model = build(family)
    probe, vector = parts(layer=1)
    rows = [prompts(1, n, seed=n)[0] for n in (4, 9, 6)]
    ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, 9 - len(row) :], mask[i, 9 - len(row) :] = row, 1
    with mode_steering(model, probe, vector, alpha=1.0) as s:
        together = generated(model, ids, 4, attention_mask=mask)
        trace = s.trace
        for i, row in enumerate(rows):
            alone = generated(model, row[None], 4)
            assert torch.equal(together[i, 9:], alone[0, len(row) :])
            np.testing.assert_allclose(trace.mode_score[i], s.trace.mode_score[0], atol=1e-4)
    assert len(s.traces) == 4


def test_tuple_outputs_are_handled(llama):
    """Some versions' blocks return (hidden states, ...): the twin is the same model with bare tensors."""

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return (self.inner(*args, **kwargs), "rest")

    seen, probe_vector, h = [], parts(), torch.randn(2, 5, WIDTH)
    block = Wrapped(nn.Identity())
    with blocks.rewriting(block, lambda state: state + 1):
        out = block(h)
    assert isinstance(out, tuple)
    assert out[1] == "rest"
    assert torch.equal(out[0], h + 1)
    with blocks.rewriting(block, lambda state: seen.append(state)):
        assert block(h)[0] is h
    assert torch.equal(seen[0], h)
    assert probe_vector[1].layer == 0


# ---- (3) a constant probe is static steering; (4) a linear toy


def test_a_probe_that_is_always_sure_is_static_steering(llama):
    sure = ModeProbe((0, 1), np.zeros((2, WIDTH), np.float32), np.full(2, 1e4, np.float32))
    _, vector = parts()
    ids = prompts()
    with mode_steering(llama, sure, vector, alpha=0.7):
        dynamic = generated(llama, ids)
    with mode_steering(llama, None, vector, alpha=0.7, dynamic=False) as s:
        static = generated(llama, ids)
    assert torch.equal(dynamic, static)
    assert np.isnan(s.trace.mode_score).all()
    expected, _, _ = by_hand(llama, ids[:1], sure, vector, 0.7, dynamic=False)
    assert torch.equal(static[:1], expected)


def linear_toy():
    """Block 1 is the identity and so is the final norm: from h_0 on the model is W_U."""

    class Same(nn.Module):
        def forward(self, hidden_states, **kwargs):
            return hidden_states

    model = small_llama(vocab_size=VOCAB, context_length=32, width=WIDTH, layers=2, heads=2, seed=3).eval()
    model.model.layers[1], model.model.norm = Same(), nn.Identity()
    return model


def test_on_a_linear_toy_the_logits_move_by_alpha_m_wv():
    model, ids, alpha = linear_toy(), prompts(), 1.7
    probe, vector = parts(norm=1.0)
    states = blocks.residual_states(CausalLM(model), ids.tolist(), layers=[0])[:, 0]
    m = probe.score(states, 0)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with mode_steering(model, probe, vector, alpha=alpha):
            moved = model(input_ids=ids).logits
    push = model.lm_head.weight.detach().numpy() @ vector.v
    np.testing.assert_allclose((moved - plain)[:, -1].numpy(), alpha * m[:, None] * push, atol=2e-5)
    assert torch.equal(moved[:, :-1], plain[:, :-1])  # earlier prompt positions are untouched


# ---- (5) the contrastive forms and their first order


def jv(model, ids, vector):
    """J v by forward-mode differentiation of the last logits in the state at the last position."""
    block = blocks.blocks_of(model)[vector.layer]

    def last_logits(scale):
        def add(state):
            return torch.cat([state[:, :-1], state[:, -1:] + scale * torch.from_numpy(vector.v).double()], 1)

        with blocks.rewriting(block, add):
            return model(input_ids=ids, use_cache=False).logits[:, -1]

    at = torch.zeros((), dtype=torch.float64)
    return torch.autograd.functional.jvp(last_logits, at, torch.ones_like(at))[1].detach(), last_logits


@pytest.mark.parametrize(("form", "falls"), [("expert", 4.0), ("symmetric", 8.0)])
def test_the_contrastive_form_is_the_first_order_form_up_to_v_squared(form, falls):
    """Halve ||v||: the gap falls 4 times (8 times for the symmetric form, whose second order cancels)."""
    model = small_llama(vocab_size=VOCAB, context_length=32, width=WIDTH, layers=2, heads=2, seed=3).double().eval()
    model.set_attn_implementation("eager")  # the fused kernel has no second derivative
    ids, gamma = prompts(), torch.tensor([0.3, 0.9, 1.4], dtype=torch.float64)
    gaps = []
    for norm in (0.02, 0.01):
        _, vector = parts(norm=norm)
        slope, logits = jv(model, ids, vector)
        with torch.no_grad():
            base, plus, minus = (logits(torch.tensor(s, dtype=torch.float64)) for s in (0.0, 1.0, -1.0))
        first_order = base + ((1 + 2 * gamma) if form == "expert" else gamma)[:, None] * slope
        gaps.append(float((contrast(base, plus, minus, gamma, form) - first_order).abs().max()))
    assert gaps[0] / gaps[1] == pytest.approx(falls, rel=0.15)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt"])
@pytest.mark.parametrize("padded", [False, True])
def test_two_pass_decoding_with_caches_is_two_passes_without(family, padded):
    model = build(family)
    probe, vector = parts(layer=0, norm=2.0)
    ids = prompts(2, 6)
    mask = torch.ones_like(ids)
    if padded:
        ids, mask = torch.cat([torch.zeros(2, 2, dtype=torch.long), ids], 1), torch.cat([0 * mask[:, :2], mask], 1)
    with ContrastiveSteering(model, probe, vector, alpha=1.0, attention_mask=mask if padded else None) as processor:
        out = generated(model, ids, attention_mask=mask, logits_processor=LogitsProcessorList([processor]), tokens=4)
    block, w_b = blocks.blocks_of(model)[0], probe.at(0)
    for row in range(2):
        sequence = prompts(2, 6)[row : row + 1]
        first = sequence.shape[1] - 1
        for _ in range(4):
            state = blocks.residual_states(CausalLM(model), sequence.tolist(), layers=[0])[:, 0]
            m = 1 / (1 + np.exp(-(state @ w_b[0] + w_b[1])))
            logits = {}
            for sign in (0.0, 1.0, -1.0):

                def push(h, sign=sign, first=first):
                    h = h.clone()
                    h[:, first:] += sign * torch.from_numpy(vector.v)
                    return h

                with torch.no_grad(), blocks.rewriting(block, push):
                    logits[sign] = model(input_ids=sequence, use_cache=False).logits[:, -1]
            mixed = (1 + m[0]) * logits[1.0] - m[0] * logits[-1.0]
            p = logits[0.0].softmax(-1)
            mixed[p < 0.1 * p.max()] = -torch.inf
            sequence = torch.cat([sequence, mixed.argmax(-1, keepdim=True)], 1)
        assert torch.equal(out[row, -4:], sequence[0, -4:])


def test_contrastive_steering_refuses_beams_and_use_outside_its_context(llama):
    probe, vector = parts()
    processor = ContrastiveSteering(llama, probe, vector)
    with pytest.raises(InputError, match="inside"):
        generated(llama, prompts(), logits_processor=LogitsProcessorList([processor]))
    with pytest.raises(InputError, match="num_beams=1"), processor:
        generated(llama, prompts(), logits_processor=LogitsProcessorList([processor]), num_beams=3, tokens=8)
    with pytest.raises(InputError, match="expert, symmetric"):
        ContrastiveSteering(llama, probe, vector, form="other")


# ---- ways of generating


def test_beam_search_scores_are_those_of_the_steered_model(llama):
    """The twin scores the returned beams in one pass, steered from the prompt's last token on."""
    probe, vector = parts()
    ids = prompts(2)
    with mode_steering(llama, probe, vector, alpha=1.0):
        out = generated(llama, ids, num_beams=3, num_return_sequences=3, output_scores=True,
                        return_dict_in_generate=True, length_penalty=0.0)  # fmt: skip
    whole = out.sequences
    starts = lambda rows: torch.full((len(rows),), ids.shape[1] - 1)  # noqa: E731
    with torch.no_grad(), mode_steering(llama, probe, vector, alpha=1.0, starts=starts):
        logp = llama(input_ids=whole).logits.log_softmax(-1)
    chosen = logp[:, :-1].gather(2, whole[:, 1:, None])[..., 0]
    torch.testing.assert_close(chosen[:, ids.shape[1] - 1 :].sum(1), out.sequences_scores, atol=1e-4, rtol=1e-4)


def test_sampling_several_sequences_is_steered(llama):
    probe, vector = parts()
    with mode_steering(llama, probe, vector, alpha=1.0) as s, torch.no_grad():
        llama.generate(prompts(2), max_new_tokens=5, do_sample=True, num_return_sequences=4, pad_token_id=0,
                       eos_token_id=None)  # fmt: skip
    assert s.trace.mode_score.shape == (8, 5)
    assert 0 < s.mean_mode_score < 1


@pytest.mark.parametrize(("options", "named"), [
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
    ({"prefill_chunk_size": 2}, "prefill_chunk_size"),
    ({"num_beams": 2, "use_cache": False}, "with a cache"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
])  # fmt: skip
def test_what_cannot_be_steered_is_refused(llama, options, named):
    with pytest.raises(InputError, match=named), mode_steering(llama, *parts()):
        generated(llama, prompts(1), **options)


def test_assisted_generation_is_refused(llama):
    with pytest.raises(InputError, match="assistant_model"), mode_steering(llama, *parts()):
        llama.generate(prompts(1), assistant_model=build("llama"), max_new_tokens=3)


def test_right_padding_and_chunks_behind_a_cache_are_refused(llama):
    ids = prompts(2)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    with pytest.raises(InputError, match="pad on the left"), mode_steering(llama, *parts()):
        generated(llama, ids, attention_mask=mask)
    with torch.no_grad(), mode_steering(llama, *parts()):
        cache = llama(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(InputError, match="2 positions behind a cache"):
            llama(input_ids=ids[:, :2], past_key_values=cache)
    with pytest.raises(InputError, match="filled outside"), mode_steering(llama, *parts()), torch.no_grad():
        llama(input_ids=ids[:, :1], past_key_values=cache)


def test_a_loop_of_ones_own_is_followed_with_and_without_cache(llama):
    probe, vector = parts()
    ids = prompts(2)
    with mode_steering(llama, probe, vector, alpha=1.0), torch.no_grad():
        wanted = generated(llama, ids)
        for cached in (True, False):
            rows, cache = ids, None
            for _ in range(6):
                new = rows[:, -1:] if cache is not None else rows
                out = llama(input_ids=new, past_key_values=cache, use_cache=cached)
                cache = out.past_key_values if cached else None
                rows = torch.cat([rows, out.logits[:, -1].argmax(-1, keepdim=True)], 1)
            assert torch.equal(rows, wanted), cached


def test_wrong_parts_are_refused(llama):
    probe, vector = parts()
    with pytest.raises(InputError, match="belongs to block 0"):
        mode_steering(llama, probe, vector, layer=1)
    with pytest.raises(InputError, match=r"blocks 0 \.\. 1"):
        mode_steering(llama, probe, parts(layer=5)[1])
    with pytest.raises(InputError, match="need a probe"):
        mode_steering(llama, None, vector)
    with pytest.raises(InputError, match="16 numbers"):
        mode_steering(llama, probe, parts(width=16)[1])
    with pytest.raises(InputError, match="no block 0"):
        mode_steering(llama, ModeProbe((1,), probe.w[1:], probe.b[1:]), vector)
    for wrong in ({"alpha": float("nan")}, {"threshold": 1.0}, {"clip": 0.0}, {"decay": 0.0}):
        with pytest.raises(InputError, match="steering"):
            mode_steering(llama, probe, vector, **wrong)
    with pytest.raises(InputError, match="nothing was generated"):
        _ = mode_steering(llama, probe, vector).trace


# ---- the pure function and its options


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.floats(-3, 3), st.booleans(), st.none() | st.floats(0, 0.9),
    st.none() | st.floats(0.05, 2), st.booleans(), st.floats(0.2, 1),
)  # fmt: skip
def test_options_against_scalars(seed, alpha, dynamic, threshold, clip, keep_norm, decay):
    rng = np.random.default_rng(seed)
    h, v, m = rng.normal(size=(2, 3, 5)), rng.normal(size=5), rng.random((2, 3))
    step = rng.integers(0, 4, (2, 3))
    options = SteeringSettings(alpha, dynamic, threshold, clip, keep_norm, decay)
    made, norm = steering.steered(*(torch.from_numpy(x).float() for x in (h, m, v)), options, torch.from_numpy(step))
    for i in range(2):
        for t in range(3):
            strength = alpha * decay ** step[i, t] * (m[i, t] if dynamic else 1)
            if threshold is not None and not np.float32(m[i, t]) > threshold:
                strength = 0.0
            push = strength * v
            limit = np.inf if clip is None else clip * np.linalg.norm(h[i, t])
            if np.linalg.norm(push) > limit:
                push *= limit / np.linalg.norm(push)
            expected = h[i, t] + push
            if keep_norm:
                expected *= np.linalg.norm(h[i, t]) / np.linalg.norm(expected)
            np.testing.assert_allclose(made[i, t].numpy(), expected, atol=3e-5, rtol=1e-4)
            np.testing.assert_allclose(float(norm[i, t]), np.linalg.norm(push), atol=2e-5)


def test_bfloat16_states_stay_bfloat16_and_untouched_at_zero():
    h = torch.randn(4, WIDTH).bfloat16()
    v = torch.randn(WIDTH)
    same, _ = steering.steered(h, torch.zeros(4), v, SteeringSettings(3.0, norm_preserving=True))
    assert same.dtype == torch.bfloat16
    assert torch.equal(same, h)
    moved, _ = steering.steered(h, torch.ones(4), v, SteeringSettings(1.0))
    assert torch.equal(moved, (h.float() + v).bfloat16())


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_a_bfloat16_model_can_be_steered(family):
    model = build(family).bfloat16()
    with mode_steering(model, *parts(), alpha=1.0) as s:
        generated(model, prompts())
    assert np.isfinite(s.trace.mode_score).all()


# ---- whole texts in one pass


def test_scoring_a_text_gives_what_generation_gives(llama):
    """log p of the generated tokens in one steered pass = from generation's own logits."""
    probe, vector = parts()
    ids = prompts(2)
    adapter = CausalLM(llama)
    with mode_steering(llama, probe, vector, alpha=1.0):
        out = generated(llama, ids, output_logits=True, return_dict_in_generate=True)
    wanted = torch.stack(out.logits, 1).log_softmax(-1).gather(2, out.sequences[:, 7:, None])[..., 0]
    table = RecordTable.from_rows(
        {"id": str(i), "token_ids": row, "prefix_tokens": 7} for i, row in enumerate(out.sequences.tolist())
    )
    starts = teacher_forced.starts_from_records(adapter, [table], Split())
    with mode_steering(adapter, probe, vector, alpha=1.0, starts=starts) as s:
        scores = score_in_memory(adapter, table)
        assert torch.equal(out.sequences, generated(llama, ids))  # generate inside it is generation all the same
    np.testing.assert_allclose(scores.logp[:, 7:13], wanted.numpy(), atol=1e-4)
    plain = score_in_memory(adapter, table)
    np.testing.assert_array_equal(scores.logp[:, 1:7], plain.logp[:, 1:7])  # the prompt is not steered
    assert s.mean_mode_score == pytest.approx(float(s.mean_mode_score))


def test_records_are_found_again_in_any_batch():
    rng = np.random.default_rng(0)
    known = [(rng.integers(1, 99, n).tolist(), a, k) for n, a, k in ((20, 8, 10), (12, 6, 6), (30, 8, 10))]
    for bos in (0, 1):
        starts = teacher_forced.RecordStarts(known, bos=bos)
        other = rng.integers(1, 99, 8).tolist() + known[0][0][8:18]  # the same suffix behind another prefix
        unknown = rng.integers(1, 99, 25).tolist()
        rows = [known[1][0], known[0][0], other, unknown, known[2][0]]
        batch = torch.zeros(5, 31, dtype=torch.long)
        for i, row in enumerate(rows):
            batch[i, :bos], batch[i, bos : bos + len(row)] = 7, torch.tensor(row)
        assert starts(batch).tolist() == [5 + bos, 7 + bos, 7 + bos, 0, 7 + bos]


def test_unknown_texts_are_steered_from_their_first_token(llama):
    probe, vector = parts()
    ids = prompts(1)
    starts = lambda rows: torch.zeros(len(rows), dtype=torch.long)  # noqa: E731
    w, b = probe.at(0)
    with torch.no_grad(), mode_steering(llama, probe, vector, alpha=1.0, starts=starts):
        whole = llama(input_ids=ids).logits

    def everywhere(h):
        return h + torch.sigmoid(h @ torch.from_numpy(w) + b)[..., None] * torch.from_numpy(vector.v)

    with torch.no_grad(), blocks.rewriting(blocks.blocks_of(llama)[0], everywhere):
        torch.testing.assert_close(whole, llama(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


# ---- files


def test_a_saved_steering_steers_the_same_and_only_its_model(llama, tmp_path):
    probe, vector = parts()
    files.save_steering(tmp_path / "s", llama, probe, vector, SteeringSettings(0.9, threshold=0.2))
    ids = prompts()
    with mode_steering(llama, probe, vector, alpha=0.9, threshold=0.2):
        wanted = generated(llama, ids)
    saved = files.load_steering(tmp_path / "s", llama)
    with saved.on(llama):
        assert torch.equal(generated(llama, ids), wanted)
    with saved.on(llama, alpha=0.0):
        assert not torch.equal(generated(llama, ids), wanted)
    other = build("llama")
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    with pytest.raises(InputError, match="another model"):
        files.load_steering(tmp_path / "s", other)


def test_the_adapters_fingerprint_is_enough_in_any_precision(checkpoints, tmp_path):
    path = checkpoints("llama")
    adapter = CausalLM.load(path, device="cpu", dtype="float32")
    files.save_steering(tmp_path, adapter, *parts())
    files.load_steering(tmp_path, CausalLM.load(path, device="cpu", dtype="bfloat16"))
    for dtype in (torch.float32, torch.bfloat16):  # without the adapter, the weights themselves are compared
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        with files.load_steering(tmp_path, plain).on(plain) as steering:
            plain.generate(torch.ones(1, 3, dtype=torch.int64), max_new_tokens=2, do_sample=False)
        assert steering.trace.mode_score.shape == (1, 2)
    with pytest.raises(InputError, match="another model"):
        files.load_steering(tmp_path, CausalLM.load(checkpoints("gpt2"), device="cpu"))


def test_damaged_steering_files_are_refused(llama, tmp_path):
    with pytest.raises(InputError, match="holds no steering"):
        files.load_steering(tmp_path, llama)
    files.save_steering(tmp_path, llama, *parts())
    good = json.loads((tmp_path / files.ABOUT).read_text())
    for damage in ({"format": "other"}, {"vector": {}}, {"settings": {"alpha": "x", "no_such": 1}}):
        (tmp_path / files.ABOUT).write_text(json.dumps({**good, **damage}))
        with pytest.raises(InputError, match=r"damaged|unknown"):
            files.load_steering(tmp_path, llama)
    (tmp_path / files.ABOUT).write_text(json.dumps(good))
    (tmp_path / files.TENSORS).write_bytes(b"\x80\x04not a safetensors file")
    with pytest.raises(InputError, match="damaged"):
        files.load_steering(tmp_path, llama)
