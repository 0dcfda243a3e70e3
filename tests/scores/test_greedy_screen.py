"""The screen's verdicts are those of generating and comparing, and those of the full pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rote.errors import InputError
from rote.measures.extraction import greedy_extractable
from rote.models import CausalLM
from rote.records import RecordTable
from rote.scores.context_cache import ContextCache
from rote.scores.greedy_screen import greedy_screen, largest_error
from rote.scores.sequences import Split, prepare
from rote.scores.tokens import TokenScorer


def generated_records(model: CausalLM, lengths: list[tuple[int, int]], seed: int) -> RecordTable:
    """Records (a, k) whose suffix is what `generate` says, spoiled at a random place in two of three."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    bos = [] if model.bos_id is None else [model.bos_id]
    rows = []
    for number, (a, k) in enumerate(lengths):
        prefix = torch.randint(3, model.vocab_size, (1, a), generator=generator)
        asked = torch.cat([torch.tensor([bos], dtype=torch.int64), prefix], dim=1) if bos else prefix
        made = model.hf.generate(
            asked, attention_mask=torch.ones_like(asked), max_new_tokens=k, min_new_tokens=k, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )[0, len(bos) :].tolist()  # fmt: skip
        if number % 3:
            place = a + int(rng.integers(k))
            made[place] = (made[place] + 1) % model.vocab_size
        rows.append({"token_ids": made, "prefix_tokens": a})
    return RecordTable.from_rows(rows)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("batch_tokens", [None, 7])
def test_verdicts_are_those_of_generating(checkpoints, family, batch_tokens):
    model = CausalLM.load(checkpoints(family), device="cpu", dtype="float32", bos="auto")
    lengths = [(5, 9), (5, 9), (5, 1), (3, 2), (8, 6), (5, 12), (5, 9), (3, 7), (8, 6), (5, 5)]
    records = generated_records(model, lengths, seed=3)
    prepared = prepare(model, records, Split())
    expected = np.array([number % 3 == 0 for number in range(len(lengths))])
    rows = np.arange(len(records))
    assert (greedy_screen(prepared, rows, batch_tokens=batch_tokens) == expected).all()
    block = TokenScorer(model)(prepared, rows)
    assert (greedy_extractable(block.greedy, block.prefix, block.suffix) == expected).all()


def test_order_of_rows_is_kept_and_progress_counts_records(checkpoints):
    model = CausalLM.load(checkpoints("gpt2"), device="cpu", dtype="float32")
    records = generated_records(model, [(4, 6)] * 7, seed=5)
    prepared = prepare(model, records, Split())
    seen = []
    rows = np.array([6, 0, 5, 3])
    found = greedy_screen(prepared, rows, progress=lambda done, total: seen.append((done, total)))
    assert found.tolist() == [True, True, False, True]
    assert seen[-1] == (4, 4)


def test_a_model_without_cache_takes_the_full_pass(checkpoints, monkeypatch):
    model = CausalLM.load(checkpoints("gpt2"), device="cpu", dtype="float32")
    records = generated_records(model, [(4, 6)] * 4, seed=6)
    prepared = prepare(model, records, Split())
    expected = greedy_screen(prepared, np.arange(4))
    extend = model.extend
    monkeypatch.setattr(model, "extend", lambda ids, cache: (extend(ids, cache)[0], None))
    assert (greedy_screen(prepared, np.arange(4)) == expected).all()
    assert expected.any()
    assert not expected.all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_draft_changes_no_verdict(checkpoints, family, monkeypatch):
    model = CausalLM.load(checkpoints(family), device="cpu", dtype="float32", bos="auto")
    lengths = [(5, 9), (5, 9), (5, 1), (3, 2), (8, 6), (5, 12), (5, 9), (3, 7), (8, 6), (5, 5)]
    prepared = prepare(model, generated_records(model, lengths, seed=3), Split())
    rows = np.arange(len(lengths))
    draft = model.in_precision(torch.bfloat16)
    assert draft.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    seen, read = [], []
    encode = ContextCache.encode.__func__  # pyright: ignore[reportFunctionMemberAccess]
    counted = lambda cls, reader, ids: read.append((reader is model, len(ids))) or encode(cls, reader, ids)  # noqa: E731
    monkeypatch.setattr(ContextCache, "encode", classmethod(counted))
    found = greedy_screen(prepared, rows, draft=draft, progress=lambda done, total: seen.append(done))
    assert (found == (rows % 3 == 0)).all()
    assert sum(count for own, count in read if not own) == len(rows)
    # The others are dropped by the draft; a few may be too close to call.
    assert found.sum() <= sum(count for own, count in read if own) < len(rows)
    assert seen == sorted(seen)
    assert seen[-1] == len(rows)


@pytest.mark.parametrize("k", [1, 3])
def test_what_the_draft_cannot_tell_apart_the_model_decides(checkpoints, k):
    """Each record's token gets a twin that differs from it across the hidden state: rounding decides between them."""
    model = CausalLM.load(checkpoints("llama"), device="cpu", dtype="float32")
    ids = torch.tensor(generated_records(model, [(5, k)] * 90, seed=8).table.column("token_ids").to_pylist())[::3]
    records = RecordTable.from_rows({"token_ids": row, "prefix_tokens": 5} for row in ids.tolist())
    bos = [] if model.bos_id is None else [model.bos_id]
    hidden = model.hidden(torch.cat([torch.tensor([bos] * len(ids), dtype=torch.int64), ids[:, :-1]], dim=1))[:, -1]
    generator = torch.Generator().manual_seed(0)
    weight = model.hf.get_output_embeddings().weight
    assert weight.data_ptr() != model.hf.get_input_embeddings().weight.data_ptr()
    with torch.no_grad():
        for token, h in zip(ids[:, -1].tolist(), hidden, strict=True):
            across = torch.randn(len(h), generator=generator)
            across -= (across @ h) / (h @ h) * h
            sign = 1 if torch.rand(1, generator=generator) < 0.5 else -1
            weight[(token + 1) % model.vocab_size] = weight[token] + 0.05 * across + sign * 1e-4 * h / (h @ h)
    prepared = prepare(model, records, Split())
    rows = np.arange(len(records))
    block = TokenScorer(model)(prepared, rows)
    expected = greedy_extractable(block.greedy, block.prefix, block.suffix)
    assert 0 < expected.sum() < len(rows)
    draft = model.in_precision(torch.bfloat16)
    alone = greedy_screen(prepare(draft, records, Split()), rows, draft=None)
    assert (alone != expected).any()
    assert (greedy_screen(prepared, rows, draft=draft) == expected).all()


def test_the_error_of_a_draft_is_the_largest_of_the_centred_differences(checkpoints):
    model = CausalLM.load(checkpoints("llama"), device="cpu", dtype="float32")
    prepared = prepare(model, generated_records(model, [(5, 3), (6, 2)], seed=9), Split())
    draft = model.in_precision(torch.bfloat16)
    largest = 0.0
    for row in (0, 1):
        ids = torch.tensor([prepared.sequences(np.array([row]))[0].ids])
        ids = ids if model.bos_id is None else torch.cat([torch.tensor([[model.bos_id]]), ids], dim=1)
        with torch.no_grad():
            exact = model.hf(input_ids=ids).logits[0].double()
            hidden = draft.hf.model(input_ids=ids).last_hidden_state[0].double()
        head = model.hf.get_output_embeddings().weight.detach()
        rounded = (hidden @ head.bfloat16().double().T).bfloat16().double()
        for one, two in zip(rounded, exact, strict=True):
            error = [float(a - b) for a, b in zip(one, two, strict=True)]
            middle = sum(error) / len(error)
            largest = max(largest, *(abs(value - middle) for value in error))
    assert largest_error(draft, prepared, np.array([0, 1])) == pytest.approx(largest, rel=1e-3)


def test_the_draft_is_made_where_it_pays(checkpoints, monkeypatch):
    import rote.scores.greedy_screen as module

    model = CausalLM.load(checkpoints("gpt2"), device="cpu", dtype="float32")
    records = generated_records(model, [(4, 6)] * 7, seed=5)
    prepared = prepare(model, records, Split())
    made = []
    in_precision = CausalLM.in_precision
    monkeypatch.setattr(CausalLM, "in_precision", lambda self, dtype: made.append(dtype) or in_precision(self, dtype))
    monkeypatch.setattr(module, "speedup_of", lambda *_: 3.0)
    greedy_screen(prepared, np.arange(7))
    assert made == []  # too few records
    monkeypatch.setattr(module, "DRAFT_FROM", 7)
    assert greedy_screen(prepared, np.arange(7)).tolist() == [True, False, False] * 2 + [True]
    assert made == [torch.bfloat16]
    monkeypatch.setattr(module, "speedup_of", lambda *_: 1.1)
    greedy_screen(prepared, np.arange(7))
    assert len(made) == 1
    with pytest.raises(InputError, match="draft is 'fast'"):
        greedy_screen(prepared, np.arange(7), draft="fast")
