"""The two stress tests: rounding to a few bits, and relearning, against brute-force twins and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.controls.editing.unlearning import fake_quantise, quantised, relearn_curve, steps_to_recovery
from rote.controls.editing.unlearning.quantise import linear_weights
from rote.controls.editing.unlearning.relearn import RelearningCurve, halves
from rote.errors import InputError
from rote.models.causal_lm import CausalLM, fingerprint_in_memory
from rote.records.table import RecordTable
from rote.scores.tokens import score_in_memory


def by_hand(weight: np.ndarray, bits: int, group: int | None) -> np.ndarray:
    """One group at a time, nearest level by search over all levels."""
    out = np.zeros_like(weight, dtype=np.float64)
    top = 2 ** (bits - 1) - 1
    for row in range(weight.shape[0]):
        size = group or weight.shape[1]
        for start in range(0, weight.shape[1], size):
            values = weight[row, start : start + size].astype(np.float64)
            scale = np.abs(values).max() / top
            levels = scale * np.arange(-top, top + 1)
            out[row, start : start + size] = levels[np.abs(values[:, None] - levels[None]).argmin(1)]
    return out


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 17),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([None, 1, 4, 5, 100]),
    st.integers(0, 99),
)
def test_rounding_equals_the_nearest_level(rows, columns, bits, group, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = fake_quantise(weight, bits=bits, group_size=group)
    scale = np.abs(weight.numpy()).max() / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(found.numpy(), by_hand(weight.numpy(), bits, group), atol=1e-5 * scale + 1e-7)
    torch.testing.assert_close(
        fake_quantise(found, bits=bits, group_size=group), found
    )  # a second time changes nothing


def test_the_error_is_half_a_step_and_falls_with_bits():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    step = weight.abs().amax(1, keepdim=True) / 7
    assert ((fake_quantise(weight, bits=4) - weight).abs() <= step / 2 + 1e-6).all()
    errors = [(fake_quantise(weight, bits=bits) - weight).norm().item() for bits in (2, 3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert (fake_quantise(weight, bits=4, group_size=16) - weight).norm() < errors[2]
    assert fake_quantise(torch.zeros(2, 3), bits=4).tolist() == [[0.0] * 3] * 2
    assert fake_quantise(weight.bfloat16(), bits=4).dtype == torch.bfloat16
    # two weights less than half a step apart can round to the same value: what undoes gentle unlearning
    assert torch.equal(
        fake_quantise(torch.tensor([[7.0, 2.2]]), bits=4), fake_quantise(torch.tensor([[7.0, 1.8]]), bits=4)
    )
    with pytest.raises(InputError, match="16 bits"):
        fake_quantise(weight, bits=16)
    with pytest.raises(InputError, match="at least 1 weight"):
        fake_quantise(weight, bits=4, group_size=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_model_is_quantised_for_a_while(checkpoints, texts, family):
    model = CausalLM.load(checkpoints(family), device="cpu")
    records = RecordTable.from_rows({"id": str(n), "text": text[:60]} for n, text in enumerate(texts[:3]))
    before, print_before = score_in_memory(model, records).logp, model.fingerprint
    weights = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    with quantised(model, bits=3) as small:
        assert small is model
        inside = {name for name, p in model.hf.named_parameters() if not torch.equal(p, weights[name])}
        for name in inside:
            new, old = dict(model.hf.named_parameters())[name].detach(), weights[name]
            expected = fake_quantise(old.T, bits=3).T if family == "gpt2" else fake_quantise(old, bits=3)
            assert torch.equal(new, expected)
        assert model.fingerprint != print_before
        assert not np.array_equal(score_in_memory(model, records).logp, before, equal_nan=True)
    assert inside
    assert not any("embed" in name or "wte" in name or "lm_head" in name or "norm" in name for name in inside)
    assert len(inside) == len(linear_weights(model.hf))
    np.testing.assert_array_equal(score_in_memory(model, records).logp, before)
    assert model.fingerprint == print_before
    with pytest.raises(RuntimeError, match="stop"), quantised(model, bits=4):
        raise RuntimeError("stop")
    assert all(torch.equal(p, weights[name]) for name, p in model.hf.named_parameters())


# --- relearning ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(checkpoints):
    return CausalLM.load(checkpoints("llama"), device="cpu")


@pytest.fixture
def records(texts):
    return RecordTable.from_rows({"id": f"r{n}", "prefix": t[:20], "suffix": t[20:60]} for n, t in enumerate(texts[:8]))


def likelihood(records: RecordTable):
    def measure(model: CausalLM) -> float:
        return float(np.nanmean(score_in_memory(model, records).logp))

    return measure


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_relearning_leaves_the_model_alone(model, records, lora):
    before, named = fingerprint_in_memory(model.hf), model.fingerprint
    curve = relearn_curve(model, records, likelihood(records), name="arm", steps=(2, 5), lora=lora, seed=1,
                          trainer={"learning_rate": 5e-3, "batch_size": 4})  # fmt: skip
    assert fingerprint_in_memory(model.hf) == before
    assert model.fingerprint == named
    assert curve.steps == (0, 2, 5)
    assert curve.values[0] == pytest.approx(likelihood(records)(model))
    assert curve.values[2] > curve.values[1] > curve.values[0]
    again = relearn_curve(model, records, likelihood(records), name="arm", steps=(2, 5), lora=lora, seed=1,
                          trainer={"learning_rate": 5e-3, "batch_size": 4})  # fmt: skip
    assert again == curve
    assert curve.as_dict()["steps"] == [0, 2, 5]


def test_the_values_along_the_way_are_those_of_shorter_runs(model, records):
    """At a constant rate, measuring at step 3 of 6 is a run of 3 steps."""
    options = {"lora": None, "trainer": {"learning_rate": 1e-3, "batch_size": 4}, "seed": 0}
    long = relearn_curve(model, records, likelihood(records), steps=(3, 6), **options)
    short = relearn_curve(model, records, likelihood(records), steps=(3,), **options)
    assert long.values[1] == short.values[1]


def test_steps_to_recovery():
    curve = RelearningCurve("x", (0, 10, 20, 40), (0.1, 0.2, 0.6, 0.9))
    assert steps_to_recovery(curve, 0.05) == 0
    assert steps_to_recovery(curve, 0.4) == pytest.approx(15)
    assert steps_to_recovery(curve, 0.6) == pytest.approx(20)
    assert steps_to_recovery(curve, 0.75) == pytest.approx(30)
    assert steps_to_recovery(curve, 0.95) is None


@pytest.mark.parametrize("steps", [(), (0, 3), (3, 3), (5, 2)])
def test_steps_must_rise(model, records, steps):
    with pytest.raises(InputError, match="must rise from 1"):
        relearn_curve(model, records, likelihood(records), steps=steps)


def test_halves_are_disjoint_and_keep_groups_together():
    table = RecordTable.from_rows({"id": str(n), "text": f"text {n}", "group": f"g{n // 3}"} for n in range(20))
    a, b = halves(table, seed=4)
    assert sorted([*a.column("id"), *b.column("id")]) == sorted(table.column("id"))
    assert not set(a.column("group")) & set(b.column("group"))
    assert halves(table, seed=4)[0].column("id") == a.column("id") != halves(table, seed=5)[0].column("id")
    loose = RecordTable.from_rows({"id": str(n), "text": f"text {n}"} for n in range(10))
    assert [len(part) for part in halves(loose)] == [5, 5]
    with pytest.raises(InputError, match="at least two"):
        halves(table.take([0]))
