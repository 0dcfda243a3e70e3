"""What the TNT study rests on: surprise falls by the step, bold steps make the chunk matter, its small pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rote.memory.tnt import RecallTask, rechunked
from rote.memory.tnt.chunkwise import FastWeights, scan
from rote.memory.tnt.coefficients import titans_coefficients
from rote.memory.tnt.memory_functions import MemoryFunction
from rote.studies import load_study
from rote.studies import tnt as study


def test_surprise_of_a_second_telling_is_exact_for_orthogonal_keys():
    """Linear memory, W_0 = 0, unit keys: ||u|| is 2 ||v|| first and (1 - 2 theta) of it when told again."""
    d, theta = 6, 0.3
    keys, values = torch.eye(d).double(), torch.randn(d, d, generator=torch.Generator().manual_seed(0)).double()
    k, v = torch.cat([keys, keys])[None], torch.cat([values, values])[None]
    zero = [torch.zeros(1, d, d).double()]
    rates = {"theta": torch.full((1, 2 * d), theta).double()}
    rule = lambda rows, position, reads: titans_coefficients(rows["theta"], reads=reads)  # noqa: E731
    for chunk in (1, 2, 3, d):
        *_, norms = scan(
            MemoryFunction(depth=1), FastWeights(zero, zero), k, k, v, rates, rule, chunk=chunk, return_surprise=True
        )
        torch.testing.assert_close(norms[0, :d], 2 * values.norm(dim=-1))
        torch.testing.assert_close(norms[0, d:], (1 - 2 * theta) * norms[0, :d])


def test_bold_steps_make_the_chunk_matter_and_timid_ones_hide_it():
    task = RecallTask(pairs=14, queries=14)
    ids, _ = task.batch(2, np.random.default_rng(0))
    moved = {}
    for name, rate in (("timid", 1 / 32), ("bold", 2.0)):
        model = study.model(
            0, architecture="titans", chunk=32, momentum=False, forget=False, rate_max=rate, clip=8.0,
            **study.recall_settings(task),
        )  # fmt: skip
        if name == "bold":
            study.bold(model)
        with torch.inference_mode():
            here, there = model(ids).logits, rechunked(model, chunk=4)(ids).logits
        moved[name] = float((here - there).norm() / here.norm())
    assert moved["timid"] < 0.1 * moved["bold"]


@pytest.mark.parametrize("chunk", [2, 4])
def test_one_chunk_adds_where_two_replace(chunk):
    """Linear memory, theta = 1/2, unit keys: told v then w, a new chunk holds w, one and the same chunk holds v + w."""
    d = 4
    g = torch.Generator().manual_seed(0)
    v, w = (torch.randn(1, 1, d, generator=g).double() for _ in range(2))
    key = torch.eye(d)[:1].double()[None]
    still = torch.zeros(1, 1, d).double()  # a key of 0 writes nothing
    k = torch.cat([key, still, key, still], 1)
    value = torch.cat([v, still, w, still], 1)
    zero = [torch.zeros(1, d, d).double()]
    rule = lambda rows, position, reads: titans_coefficients(rows["theta"], reads=reads)  # noqa: E731
    rates = {"theta": torch.full((1, 4), 0.5).double()}
    _, fast, _ = scan(MemoryFunction(depth=1), FastWeights(zero, zero), k, k, value, rates, rule, chunk=chunk)
    held = key[0] @ fast.now[0][0]
    torch.testing.assert_close(held, w[0] if chunk == 2 else (v + w)[0])


def test_claims_are_those_of_the_card():
    found = {claim.id: claim for claim in load_study("tnt").claims}
    assert set(found) == {"speed", "mismatch_smaller", "mismatch_larger", "cure", "global_memory", "surprise"}
    assert ">= 3 at 4,096" in found["speed"].threshold
    assert "at most half" in found["mismatch_smaller"].threshold
    assert "lower at 64 than at 32" in found["mismatch_larger"].threshold
    assert ">= 5 times" in found["cure"].threshold


def test_surprise_compares_the_same_place():
    task = RecallTask(pairs=14, queries=14)
    linear = study.model(0, architecture="titans", memory="linear", chunk=4, **study.recall_settings(task))
    found = study.surprise(linear, task, 0)
    assert found["observed"]["strings"] == study.STRINGS
    assert found["observed"]["median"] == pytest.approx(study.surprise(linear, task, 0)["observed"]["median"])
