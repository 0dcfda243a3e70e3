"""The Ray engine gives the local engine's shards, finishes an interrupted store, and gives a failed shard back."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from rote.errors import InputError
from rote.models import CausalLM
from rote.records import read_records
from rote.scores import tokens
from rote.scores.schemes import DecodingScheme

ray = pytest.importorskip("ray")
SCHEMES = [DecodingScheme.parse("top_k=4")]


def test_shards_are_those_of_the_local_engine_and_resume(memorizer, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = CausalLM.load(memorizer[0], device="cpu", dtype="float32")
    records = read_records(memorizer[1])
    local = tokens.score_tokens(model, records, tmp_path / "local", schemes=SCHEMES)
    assert local.shards == 1
    seen = []
    spread = tokens.score_tokens(
        model, records, tmp_path / "ray", schemes=SCHEMES, engine="ray", progress=lambda *at: seen.append(at)
    )
    assert spread.key == local.key
    assert seen[-1][0] == seen[-1][1]
    for ours, theirs in zip(local, spread, strict=True):
        assert (ours.index == theirs.index).all()
        np.testing.assert_allclose(ours.logp, theirs.logp, atol=1e-5)
        np.testing.assert_allclose(ours.schemes["top_k=4"], theirs.schemes["top_k=4"], atol=1e-5)
        assert (ours.greedy == theirs.greedy).mean() > 0.999
    shard = next((tmp_path / "ray").glob("part-*.parquet"))
    before = shard.stat().st_mtime_ns
    tokens.score_tokens(model, records, tmp_path / "ray", schemes=SCHEMES, engine="ray")
    assert shard.stat().st_mtime_ns == before  # nothing was left to do


def test_a_model_in_memory_and_an_unknown_engine_are_refused(memorizer, tmp_path):
    loaded = CausalLM.load(memorizer[0], device="cpu", dtype="float32")
    records = read_records(memorizer[1])
    model = CausalLM(loaded.hf, loaded.tokenizer)
    with pytest.raises(InputError, match="checkpoint directory"):
        tokens.score_tokens(model, records, tmp_path / "a", engine="ray")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(InputError, match="unknown engine"):
        tokens.score_tokens(model, records, tmp_path / "a", engine="spark")


def test_a_shard_that_fails_is_tried_again(tmp_path):
    """The distribution alone, with workers that fail as told: no model, no cluster."""
    from types import SimpleNamespace

    from rote.errors import RoteError
    from rote.scores.ray_engine import _distribute

    class Failure(Exception):
        pass

    class Died(Failure):
        pass

    class FakeRay:
        exceptions = SimpleNamespace(RayError=Failure, RayActorError=Died)

        @staticmethod
        def wait(running, num_returns):
            return running[:1], running[1:]

        @staticmethod
        def get(outcome):
            if isinstance(outcome[1], Exception):
                raise outcome[1]
            return outcome[1]

    def worker(fails):
        def score(directory, key, shard):
            return (object(), fails.pop(shard)) if shard in fails else (object(), 10)

        return SimpleNamespace(score=SimpleNamespace(remote=score))

    store = SimpleNamespace(directory=tmp_path, key={})
    fails, started, counted = {0: Died("gone"), 2: Failure("once")}, [], []
    crew = [worker(fails)]
    _distribute(FakeRay, crew, lambda: started.append(1) or worker(fails), store, [0, 1, 2], counted.append)
    assert counted == [10, 10, 10]
    assert len(started) == 1  # only the worker that died was replaced

    always = SimpleNamespace(score=SimpleNamespace(remote=lambda *_: (object(), Failure("again and again"))))
    with pytest.raises(RoteError, match="failed 3 times"):
        _distribute(FakeRay, [always], lambda: always, store, [5], None)
