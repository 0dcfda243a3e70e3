"""The screen's verdicts are those of generating and comparing, and those of the full pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rote.measures.extraction import greedy_extractable
from rote.models import CausalLM
from rote.records import RecordTable
from rote.scores.greedy_screen import greedy_screen
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
