"""The language model: Auto classes, generate at constant size, padding, stages, sweep, recall, surprise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from rote.cli.main import main
from rote.errors import InputError, RoteError
from rote.memory.tnt import (
    RecallTask,
    TNTConfig,
    TNTForCausalLM,
    chunk_sweep,
    evaluate,
    finetune,
    most_surprising,
    rechunked,
    sweep_figure,
    token_surprise,
    train,
    train_recall,
)
from rote.models import TrainingConfig

VOCAB = 40
TNT = {"architecture": "tnt", "global_chunk": 6, "local_chunks": [2, 3], "shard": 8}
KINDS = {
    "tnt": TNT,
    "titans": {"architecture": "titans", "chunk": 4},
    "ttt": {"architecture": "ttt", "chunk": 4, "memory": "linear"},
}


def model(kind="tnt", **more):
    torch.manual_seed(0)
    config = TNTConfig(vocab_size=VOCAB, hidden_size=8, num_heads=2, **KINDS[kind] | more)
    return TNTForCausalLM(config).eval()


def ids(rows=2, tokens=19, seed=0):
    return torch.randint(1, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def generate(m, text, **options):
    return m.generate(text, max_new_tokens=12, do_sample=False, pad_token_id=0, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_generate_reads_as_the_whole_pass_does(kind):
    m, text = model(kind), ids()
    found = generate(m, text)
    with torch.inference_mode():
        assert torch.equal(m(found).logits[:, 18:-1].argmax(-1), found[:, 19:])
    without = generate(m, text, use_cache=False)
    assert torch.equal(found, without)
    beams = generate(m, text, num_beams=3)
    assert beams.shape == (2, 31)


def test_left_padding_changes_nothing():
    m, text = model(), ids()
    padded, mask = text.clone(), torch.ones_like(text)
    padded[1, :7], mask[1, :7] = 0, 0
    found = generate(m, padded, attention_mask=mask)
    assert torch.equal(found[0], generate(m, text[:1])[0])
    assert torch.equal(found[1, 7:], generate(m, text[1:, 7:])[0])
    beams = generate(m, padded, attention_mask=mask, num_beams=2)
    assert torch.equal(beams[1, 7:], generate(m, text[1:, 7:], num_beams=2)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_does_not_grow(kind):
    m = model(kind)
    sizes = set()
    with torch.inference_mode():
        for length in (7, 31, 63):  # at the same place inside a chunk and a shard
            sizes.add(m(ids(1, length), use_cache=True).past_key_values.numel)
    assert len(sizes) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_load_by_the_auto_classes(kind, tmp_path):
    m = model(kind)
    m.save_pretrained(tmp_path)
    back = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(back) is TNTForCausalLM
    assert torch.equal(m(ids()).logits, back(ids()).logits)
    assert not list(tmp_path.glob("*.bin"))


def test_another_chunk_size_is_refused(tmp_path):
    m, stream = model(), ids(8, 17).numpy()
    train(m, stream, TrainingConfig(batch_size=4))
    m.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"local_chunks \[2, 3\] in training, \[1, 1\] now"):
        AutoModelForCausalLM.from_pretrained(tmp_path, local_chunks=[1, 1])
    other = AutoModelForCausalLM.from_pretrained(tmp_path, local_chunks=[1, 1], chunk_mismatch="allow")
    text = ids()
    torch.testing.assert_close(other(text).logits, rechunked(m, local_chunks=[1, 1])(text).logits)
    assert (other(text).logits - m(text).logits).abs().max() > 0
    assert other.config.local_rates == m.config.local_rates  # the bound of the step is kept
    for wrong in ({"chunk": 2}, {"local_chunks": [1]}, {}):
        with pytest.raises(InputError):
            rechunked(m, **wrong)
    with pytest.raises(InputError):
        rechunked(model("ttt"), chunk=2)


def test_stage_two_trains_the_local_memories_only():
    m, stream = model(), ids(12, 17).numpy()
    before = {name: value.clone() for name, value in m.state_dict().items()}
    tuned = finetune(m, stream, local_chunks=[1, 1], trainable="local", config=TrainingConfig(batch_size=4))
    assert tuned.config.trained_chunks == {"global_chunk": 6, "local_chunks": [1, 1], "shard": 8}
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".paths.1." in name or ".paths.2." in name for name in moved)
    assert all(torch.equal(value, before[name]) for name, value in m.state_dict().items())
    with pytest.raises(InputError, match="local memories"):
        finetune(model("titans"), stream, chunk=2, trainable="local")
    with pytest.raises(InputError, match="trainable"):
        finetune(m, stream, local_chunks=[1, 1], trainable="none")


def test_the_ordinary_trainer_trains_it(tmp_path):
    m, rows = model(), ids(16, 12)
    data = [{"input_ids": row, "labels": row} for row in rows]
    first = m(rows, labels=rows).loss.item()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=8, learning_rate=2e-2, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no", lr_scheduler_type="constant",
    )  # fmt: skip
    Trainer(model=m, args=arguments, train_dataset=data).train()
    m.eval()
    assert m(rows, labels=rows).loss.item() < first


def test_divergence_is_an_error_not_a_number():
    m = model("titans", clip=None)
    with torch.no_grad():
        m.model.blocks[0].memory.paths[0].initial[0].fill_(1e30)
    with pytest.raises(RoteError, match="diverged"):
        train(m, ids(8, 17).numpy(), TrainingConfig(batch_size=4))
    with pytest.raises(RoteError, match="diverged"):
        evaluate(m, ids(8, 17).numpy())


def test_evaluate_is_the_mean_loss():
    m, rows = model(), ids(5, 12)
    found = evaluate(m, rows.numpy(), batch_size=2)
    with torch.inference_mode():
        expected = m(rows, labels=rows).loss.item()
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    for wrong in (np.zeros((0, 4), int), np.zeros((2, 1), int), np.full((2, 4), VOCAB)):
        with pytest.raises(InputError):
            evaluate(m, wrong)


def test_sweep_has_a_row_for_every_chunk():
    m, rows = model(local_chunks=[2, 2]), ids(4, 12).numpy()
    found = chunk_sweep(m, rows, [1, 2, 4])
    assert [(row["chunk"], row["trained"]) for row in found] == [(1, False), (2, True), (4, False)]
    assert found[1]["loss"] == pytest.approx(evaluate(m, rows).loss)
    assert len(sweep_figure(found).data) == 1
    for wrong in ([], [0], [9]):
        with pytest.raises(InputError):
            chunk_sweep(m, rows, wrong)


def test_surprise_is_the_layer_s_own():
    m, text = model(), ids(1, 19)[0]
    values = token_surprise(m, text)
    with torch.inference_mode():
        blocks = m.model.surprise(text[None])
    expected = sum(block[0, :, 1].square().sum(-1) for block in blocks).sqrt()
    torch.testing.assert_close(values, expected)
    rows = most_surprising(m, text, top=3)
    assert rows[0]["position"] == int(values.argmax())
    position = rows[0]["position"]
    assert rows[0]["shard"] == position // 8
    assert rows[0]["chunk"] == 4 * (position // 8) + position % 8 // 2
    with pytest.raises(InputError):
        token_surprise(m, text, path=5)


def test_recall_task_asks_for_what_it_told():
    task = RecallTask(pairs=4, length=24, queries=6, keys=10, values=7)
    ids_, targets = task.batch(20, np.random.default_rng(0))
    for row, target in zip(ids_.tolist(), targets.tolist(), strict=True):
        told = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        asked = [(row[t], value) for t, value in enumerate(target) if value >= 0]
        assert len(asked) == 6
        assert all(told[key] == value for key, value in asked)
        assert all(token < task.fillers for t, token in enumerate(row[8:], 8) if target[t] < 0)
    for wrong in ({"pairs": 99}, {"queries": 90}):
        with pytest.raises(InputError):
            RecallTask(**wrong)


def test_keys_told_again_are_asked_for_by_their_last_value():
    task = RecallTask(pairs=4, retold=2, length=30, queries=8, keys=10, values=7)
    ids_, targets = task.batch(20, np.random.default_rng(0))
    assert task.told == 12
    changed = 0
    for row, target in zip(ids_.tolist(), targets.tolist(), strict=True):
        told = {}
        for key, value in zip(row[0:12:2], row[1:12:2], strict=True):
            changed += key in told and told[key] != value
            told[key] = value
        assert len(told) == 4
        assert row[8:12:2] == row[0:4:2]
        assert all(target[t] in (told[row[t]], -100) for t in range(12, 30) if row[t] in told)
        assert sum(value >= 0 for value in target) == 8
    assert changed > 20  # of 40; a value drawn anew may be the old one
    for wrong in ({"retold": 99}, {"retold": 8, "pairs": 8, "length": 34, "queries": 4}):
        with pytest.raises(InputError):
            RecallTask(**wrong)


def test_recall_training_lowers_the_loss():
    task = RecallTask(pairs=2, length=8, queries=2, keys=3, values=3, fillers=1)
    torch.manual_seed(0)
    m = TNTForCausalLM(TNTConfig(vocab_size=task.vocab_size, hidden_size=16, num_hidden_layers=1, **KINDS["titans"]))
    losses = train_recall(m, task, steps=40, batch_size=16, learning_rate=1e-2)
    assert np.mean(losses[-8:]) < losses[0]


def test_wrong_inputs_of_the_model():
    m = model()
    for wrong in ({}, {"input_ids": ids(), "inputs_embeds": torch.zeros(2, 19, 8)}, {"input_ids": ids()[:, :0]}):
        with pytest.raises(InputError):
            m(**wrong)
    with pytest.raises(InputError, match="attention mask"):
        m(ids(), attention_mask=torch.ones(2, 3))
    cache = m(ids(), use_cache=True).past_key_values
    with pytest.raises(InputError, match="rows"):
        m(ids(3, 1), past_key_values=cache, use_cache=True)
    with pytest.raises(InputError, match="cropped"):
        cache.crop(3)
    for wrong in ({"architecture": "mamba"}, {"chunk_mismatch": "maybe"}, {"local_chunks": [0]}):
        with pytest.raises(InputError):
            TNTConfig(**wrong)


def test_rote_audit_lm_runs_on_it(tmp_path, tokenizer, texts):
    """End to end: a saved TNT checkpoint is audited like any other."""
    torch.manual_seed(0)
    m = TNTForCausalLM(TNTConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, **TNT))
    m.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"id": str(i), "text": text, "member": i % 2 == 0} for i, text in enumerate(texts[:8])]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    status = main(
        ["audit", "lm", str(tmp_path / "model"), str(tmp_path / "records.jsonl"), "--prefix", "8", "--suffix", "8",
         "--out", str(run), "-q"]
    )  # fmt: skip
    assert status == 0
    findings = json.loads((run / "findings.json").read_text())
    assert "TNTForCausalLM" in json.dumps(findings)
