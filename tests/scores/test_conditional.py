"""Records given a shared context: the cached pass against one joint pass without any cache, for every family."""

import numpy as np
import pytest
import torch
from tests.conftest import FAMILIES
from transformers import AutoModelForCausalLM

from rote.errors import InputError
from rote.models import CausalLM
from rote.records.table import RecordTable
from rote.scores.conditional import choose_shots, conditional_logp, shots_dropped
from rote.scores.tokens import score_in_memory

SHOTS = [
    "The river bank at noon.",
    "Return the sum of a list.",
    "Alice was tired of sitting by her sister on the bank.",
]


def jointly(model: CausalLM, reference, shots: list[str], ids: list[int], separator="\n\n") -> np.ndarray:
    """log p of the record's tokens from one plain forward pass over BOS, shots and record."""
    context = [] if model.bos_id is None else [model.bos_id]
    for shot in shots:
        context += model.tokenizer(shot + separator, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logp = reference(torch.tensor([context + ids]), use_cache=False).logits[0].double().log_softmax(-1)
    start = len(context)
    return np.array([float(logp[start + t - 1, token]) if start + t else np.nan for t, token in enumerate(ids)])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cached_pass_agrees_with_the_joint_pass(family, checkpoints, texts):
    """mistral has a window of 16 tokens: context and records are longer."""
    path = checkpoints(family)
    model = CausalLM.load(path)
    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    rows = [{"text": text[: 30 + 17 * number]} for number, text in enumerate(texts[:5])]
    scores = conditional_logp(model, RecordTable.from_rows(rows), SHOTS, first_token=True, batch_tokens=150)
    assert (scores.dropped == 0).all()
    for row, record in enumerate(rows):
        ids = model.encode([record["text"]])[0].ids
        np.testing.assert_allclose(scores.logp[row, : len(ids)], jointly(model, reference, SHOTS, ids), atol=1e-5)
        assert np.isnan(scores.logp[row, len(ids) :]).all()
    assert len({len(model.encode([record["text"]])[0].ids) for record in rows}) > 1


def test_layers_with_and_without_a_window_side_by_side(tokenizer, texts):
    """Gemma 2's every second layer sees a window only, here 12 tokens."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(2)
    hf = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=256,
            sliding_window=12,
            initializer_range=0.2,
        )
    )
    assert set(hf.config.layer_types) == {"sliding_attention", "full_attention"}
    model = CausalLM(hf, tokenizer)
    scores = conditional_logp(
        model, RecordTable.from_rows({"text": text} for text in texts[:3]), SHOTS, first_token=True
    )
    for row in range(3):
        ids = model.encode([texts[row]])[0].ids
        np.testing.assert_allclose(scores.logp[row, : len(ids)], jointly(model, hf, SHOTS, ids), atol=1e-5)


@pytest.mark.parametrize("bos", ["never", "always"])
def test_shots_are_dropped_from_the_front_record_by_record(checkpoints, texts, bos):
    path = checkpoints("gpt2")
    model = CausalLM.load(path, bos=bos)
    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    room = model.context_length - (bos == "always")
    filler = model.encode([" ".join(texts)])[0].ids
    shots = [text * 2 for text in SHOTS]
    shot_tokens = [len(model.encode([shot + "\n\n"])[0].ids) for shot in shots]
    sizes = [
        room,
        room - shot_tokens[2],
        room - shot_tokens[2] + 1,
        room - sum(shot_tokens[1:]),
        room - sum(shot_tokens),
    ]
    records = RecordTable.from_rows({"token_ids": filler[:size]} for size in sizes)
    scores = conditional_logp(model, records, shots, first_token=True)
    assert scores.dropped.tolist() == [3, 2, 3, 1, 0]
    for row, size in enumerate(sizes):
        expected = jointly(model, reference, shots[scores.dropped[row] :], filler[:size])
        np.testing.assert_allclose(scores.logp[row, :size], expected, atol=1e-5)
    # where no shot fits, the result is the pass without a context
    plain = score_in_memory(model, records)
    np.testing.assert_allclose(scores.logp[0], plain.logp[0], atol=1e-5)


def test_the_same_tokens_are_scored_with_and_without_context(checkpoints, texts):
    model = CausalLM.load(checkpoints("llama"))
    assert model.bos_id is None
    records = RecordTable.from_rows({"text": text} for text in texts[:3])
    conditional, plain = conditional_logp(model, records, SHOTS), score_in_memory(model, records)
    assert (np.isnan(conditional.logp) == np.isnan(plain.logp)).all()
    np.testing.assert_allclose(conditional.mean, np.nanmean(conditional.logp, axis=1))
    assert not np.allclose(conditional.mean, np.nanmean(plain.logp, axis=1), atol=1e-3)


def test_results_do_not_depend_on_batch_or_order(checkpoints, texts):
    model = CausalLM.load(checkpoints("gemma2"))
    rows = [{"text": text[: 20 + 9 * number]} for number, text in enumerate(texts[:9])]
    together = conditional_logp(model, RecordTable.from_rows(rows), SHOTS)
    alone = conditional_logp(model, RecordTable.from_rows(rows), SHOTS, batch_tokens=1)
    backwards = conditional_logp(model, RecordTable.from_rows(rows[::-1]), SHOTS)
    np.testing.assert_allclose(together.logp, alone.logp, atol=1e-5)
    np.testing.assert_allclose(together.logp, backwards.logp[::-1], atol=1e-5)


def test_bfloat16_agrees_with_float32_within_its_tolerance(checkpoints, texts):
    """0.03 nats on the mean of a record, as for the one pass."""
    records = RecordTable.from_rows({"text": text} for text in texts[:6])
    full = conditional_logp(CausalLM.load(checkpoints("llama")), records, SHOTS)
    half = conditional_logp(CausalLM.load(checkpoints("llama"), dtype="bfloat16"), records, SHOTS)
    assert 0 < np.abs(full.mean - half.mean).max() < 0.03


def test_shots_are_chosen_by_seed_and_left_out_of_the_evaluation(texts):
    rows = [{"id": f"r{number}", "text": text, "member": number % 2 == 0} for number, text in enumerate(texts)]
    records = RecordTable.from_rows(rows)
    shots = choose_shots(records, count=4, seed=1)
    assert len(shots.unseen) == len(shots.seen) == 4
    assert records.is_control[shots.unseen].all()
    assert not records.is_control[shots.seen].any()
    assert set(shots.evaluated(len(records))).isdisjoint({*shots.unseen, *shots.seen})
    assert len(shots.evaluated(len(records))) == len(records) - 8
    again = choose_shots(RecordTable.from_rows(rows[::-1]), count=4, seed=1)
    assert {len(rows) - 1 - row for row in again.unseen} == set(shots.unseen)  # the order of the rows does not matter
    assert any(set(choose_shots(records, count=4, seed=seed).unseen) != set(shots.unseen) for seed in (2, 3))
    few = choose_shots(RecordTable.from_rows([*rows[1:6:2], *rows[:2:2]]), count=12)
    assert (len(few.unseen), len(few.seen)) == (1, 0)  # never more than half


def test_duplicates_say_who_is_known(texts):
    rows = [{"text": text, "duplicates": number % 3} for number, text in enumerate(texts[:12])]
    shots = choose_shots(RecordTable.from_rows(rows), count=2)
    assert all(row % 3 == 0 for row in shots.unseen)
    assert all(row % 3 > 0 for row in shots.seen)


def test_wrong_use_is_refused(checkpoints, texts):
    records = RecordTable.from_rows({"text": text} for text in texts[:3])
    with pytest.raises(InputError, match="known to be unseen"):
        choose_shots(records)
    with pytest.raises(InputError, match="at least one shot"):
        conditional_logp(CausalLM.load(checkpoints("gpt2")), records, [])
    assert shots_dropped([5, 5], np.array([1, 6, 20]), 11).tolist() == [0, 1, 2]
    assert shots_dropped([5, 5], np.array([1, 600]), None).tolist() == [0, 0]
