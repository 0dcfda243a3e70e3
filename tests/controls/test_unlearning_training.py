"""The unlearning loop on small real checkpoints: what is trained, on which tokens, how it stops, what comes out."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rote.controls.editing.unlearning import (
    METHODS,
    REFUSALS,
    LoraSettings,
    TrainerSettings,
    TrainingStopped,
    add_task_vector,
    gradient_surgery,
    losses,
    task_vector,
    unlearn,
)
from rote.controls.editing.unlearning.items import collate, items_of
from rote.controls.editing.unlearning.methods import canonical_name, method_settings, sampled_alternatives
from rote.controls.editing.unlearning.objectives import Misdirection, decoder_layers, objective_for, states_of
from rote.controls.editing.unlearning.refusals import assign_refusals
from rote.controls.editing.unlearning.settings import PDU, RMU, GradDiff, recipe_for
from rote.controls.editing.unlearning.task_vectors import reinforced_logits, weights_of
from rote.errors import InputError, MissingDependencyError
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable
from rote.scores.tokens import score_in_memory

QUICK = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
SPECIAL = {"pdu": {"eps": 0.1}}


@pytest.fixture
def model(checkpoints):
    return CausalLM.load(checkpoints("llama"), device="cpu")


@pytest.fixture(scope="session")
def forget(texts):
    return RecordTable.from_rows({"id": f"f{n}", "prefix": t[:30], "suffix": t[30:70]} for n, t in enumerate(texts[:6]))


@pytest.fixture(scope="session")
def retain(texts):
    return RecordTable.from_rows({"id": f"r{n}", "text": t[:80]} for n, t in enumerate(texts[6:14]))


def weights(model: CausalLM) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def changed(model: CausalLM, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in model.hf.named_parameters() if not torch.equal(p, before[name])}


# --- which tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", ["never", "always"])
def test_labels_are_the_answer_wherever_bos_stands(checkpoints, forget, retain, bos):
    model = CausalLM.load(checkpoints("llama"), device="cpu", bos=bos)
    items = items_of(model, forget, name="forget")
    batch = collate(items, np.arange(len(items)), "cpu")
    for row, (text, cut) in enumerate(zip(forget.column("text"), forget.column("prefix_chars"), strict=True)):
        labels = batch.labels[row][batch.labels[row] != losses.IGNORED].tolist()
        told = model.decode(labels)
        assert text.endswith(told)
        assert 0 <= len(told) - len(text[cut:]) < 12  # a token that straddles the boundary belongs to the answer
        assert batch.input_ids[row][batch.is_answer[row]].tolist() == labels
        position = int(torch.argmax((batch.labels[row] != losses.IGNORED).int()))
        assert batch.input_ids[row, position + 1] == labels[0]  # a label is the next input
    whole = items_of(model, retain, name="retain")
    ids = model.encode(retain.column("text"))
    assert [item.ids[int(bos == "always") :] for item in whole] == [tuple(e.ids) for e in ids]
    assert {item.answer for item in whole} == {1}


def test_the_trained_tokens_are_the_measured_ones(model, forget):
    """NLL of the items = NLL of the scoring pass over the suffix."""
    items = items_of(model, forget, name="forget")
    batch = collate(items, np.arange(len(items)), "cpu")
    with torch.no_grad():
        nll = losses.sequence_nll(model.hf(input_ids=batch.input_ids).logits, batch.labels)
    scores = score_in_memory(model, forget)
    expected = -np.where(scores.in_suffix, scores.logp, 0).sum(1)
    np.testing.assert_allclose(nll.numpy(), expected, rtol=1e-4)


def test_a_record_that_cannot_be_trained_is_named(model):
    table = RecordTable.from_rows([{"id": "short", "token_ids": [5]}])
    with pytest.raises(InputError, match=r"nothing to score|short"):
        items_of(model, table, name="forget")
    with pytest.raises(InputError, match="forget set is empty"):
        items_of(model, table.take([]), name="forget")
    long = RecordTable.from_rows([{"id": "long", "token_ids": list(range(2, 200))}])
    with pytest.raises(InputError, match=r"'long'.*context window"):
        items_of(model, long, name="retain")
    assert len(items_of(model, long, name="retain", long="truncate")[0].ids) == 128


# --- one step against a twin -----------------------------------------------------------------------------------------


def test_a_step_of_grad_diff_is_the_gradient_of_the_whole_batch(model, forget, retain):
    """Plain SGD, all of the forget set in one batch, one retain text: compare with autograd by hand; in micro-batches
    too, where all sequences have one length."""
    start, one = weights(model), retain.take([0])
    same = RecordTable.from_rows({"id": str(n), "token_ids": list(range(n, n + 12))} for n in range(4))
    rate = 1e-2
    expected = copy.deepcopy(model.hf)
    rows = np.zeros(4, int)
    f, r = (
        collate(items_of(model, same, name="f"), np.arange(4), "cpu"),
        collate(items_of(model, one, name="r"), rows, "cpu"),
    )
    loss = -0.5 * torch.nn.functional.cross_entropy(
        expected(input_ids=f.input_ids).logits[:, :-1].flatten(0, 1), f.input_ids[:, 1:].flatten()
    ) + 2.0 * torch.nn.functional.cross_entropy(
        expected(input_ids=r.input_ids).logits[:, :-1].flatten(0, 1), r.input_ids[:, 1:].flatten()
    )
    loss.backward()
    for micro in (None, 1, 2):
        with torch.no_grad():
            for name, parameter in model.hf.named_parameters():
                parameter.copy_(start[name])
        report = unlearn(
            model, method="grad_diff", forget=same, retain=one, settings={"gamma": 0.5, "alpha": 2.0},
            trainer={"steps": 1, "batch_size": 4, "micro_batch_size": micro, "clip_norm": None, "learning_rate": rate,
                     "warmup": 0.0, "schedule": "constant"},
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate),
        )  # fmt: skip
        assert report.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for name, parameter in expected.named_parameters():
            new = dict(model.hf.named_parameters())[name]
            torch.testing.assert_close(new, start[name] - rate * parameter.grad, rtol=1e-4, atol=1e-6)


def test_clipping_and_schedule():
    settings = TrainerSettings(learning_rate=1.0, warmup=0.2)
    rates = [settings.learning_rate_at(step, 10) for step in range(10)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2:] == pytest.approx([1 - n / 8 for n in range(8)])
    flat = TrainerSettings(learning_rate=1.0, warmup=0.0, schedule="constant")
    assert {flat.learning_rate_at(step, 10) for step in range(10)} == {1.0}
    assert TrainerSettings(batch_size=32, epochs=10).steps_for(33) == 20


# --- every method ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_says_what_it_did(model, forget, retain, method):
    before, calls = weights(model), []
    report = unlearn(
        model, method=method, forget=forget, retain=retain, settings=SPECIAL.get(method), trainer=QUICK, seed=1,
        progress=lambda *args: calls.append(args),
    )  # fmt: skip
    assert changed(model, before)
    assert report.steps == 2 == len(report.history)
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]
    assert all(np.isfinite(row["loss"]) and np.isfinite(row["gradient_norm"]) for row in report.history)
    assert report.fingerprint_before != report.fingerprint_after == model.fingerprint
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.hf.parameters())
    assert not model.hf.training
    import json

    json.dumps(report.as_dict(), allow_nan=False)


@pytest.mark.parametrize(("method", "settings"), [
    ("grad_diff", {}), ("npo", {}), ("simnpo", {"gamma": 1.0}), ("wga", {}), ("satimp", {"gamma": 1.0, "beta1": 0.5}),
    ("ce_u", {}), ("undial", {}), ("idk_dpo", {}), ("task_vector", {"scale": 2.0}),
])  # fmt: skip
def test_methods_raise_the_loss_of_what_they_forget(checkpoints, forget, retain, method, settings):
    """On a model that recites the forget set; the answers must become less likely."""
    model = CausalLM.load(checkpoints("llama"), device="cpu")
    recipe = {"steps": 30, "batch_size": 6, "learning_rate": 5e-3, "schedule": "constant"}
    unlearn(model, method="fine_tune", forget=forget, retain=forget, trainer=recipe)
    before = _loss(model, forget)
    assert before < 1.0
    unlearn(model, method=method, forget=forget, retain=retain, settings=settings,
            trainer={"steps": 12, "batch_size": 6, "learning_rate": 1e-3, "schedule": "constant"})  # fmt: skip
    assert _loss(model, forget) > before + 0.1


def _loss(model: CausalLM, records: RecordTable) -> float:
    scores = score_in_memory(model, records)
    return -float(np.nanmean(np.where(scores.in_suffix, scores.logp, np.nan)))


def test_deterministic_for_a_seed(checkpoints, forget, retain):
    found = []
    for seed in (0, 0, 1):
        model = CausalLM.load(checkpoints("llama"), device="cpu")
        torch.manual_seed(len(found))  # the caller's random state must not matter
        report = unlearn(model, method="npo", forget=forget, retain=retain, trainer=QUICK, seed=seed)
        found.append((report.fingerprint_after, report.history))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


def test_a_retain_set_is_asked_for(model, forget):
    with pytest.raises(InputError, match="npo needs a retain set"):
        unlearn(model, method="npo", forget=forget)
    unlearn(model, method="npo", forget=forget, settings={"retain_loss": "none"}, trainer=QUICK)


# --- methods' own parts ----------------------------------------------------------------------------------------------


def test_rmu_steers_states_to_its_target(model, forget, retain):
    objective = objective_for(model.hf, RMU(layer=1, coefficient=3.0), seed=5)
    assert isinstance(objective, Misdirection)
    assert objective.target.norm().item() == pytest.approx(3.0, rel=1e-5)
    assert (objective.target >= 0).all()
    torch.testing.assert_close(objective.target, objective_for(model.hf, RMU(coefficient=3.0), seed=5).target)
    items = items_of(model, forget, name="forget")
    batch = collate(items, np.arange(len(items)), "cpu")
    assert objective.retain(batch).item() == 0  # the start model is its own reference
    report = unlearn(model, method="rmu", forget=forget, retain=retain, settings={"layer": 1, "coefficient": 3.0},
                     trainer={"steps": 15, "batch_size": 6, "learning_rate": 3e-3}, seed=5)  # fmt: skip
    assert report.history[-1]["forget"] < report.history[0]["forget"] / 2
    with pytest.raises(InputError, match=r"layer 9 does not exist.*0 .. 1"):
        unlearn(model, method="rmu", forget=forget, retain=retain, settings={"layer": 9}, trainer=QUICK)


def test_states_are_the_residual_stream(model, forget):
    batch = collate(items_of(model, forget, name="forget"), np.arange(2), "cpu")
    with torch.no_grad():
        found = states_of(model.hf, batch.input_ids, 0)
        expected = model.hf(input_ids=batch.input_ids, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(found, expected)
    assert len(decoder_layers(model.hf)) == 2


def test_pdu_moves_its_multiplier_after_the_warm_up(model, forget, retain):
    recipe = {"steps": 6, "batch_size": 3, "learning_rate": 1e-5}  # two steps an epoch
    report = unlearn(model, method="pdu", forget=forget, retain=retain, trainer=recipe,
                     settings=PDU(eps=0.5, dual_step=0.1, warmup_epochs=2.0))  # fmt: skip
    alphas = [row["alpha"] for row in report.history]
    assert alphas[:5] == [1.0] * 5  # the first move is after step 5, the first past two epochs
    assert alphas[5] == pytest.approx(1.0 + 0.1 * (report.history[4]["retain"] - 0.5))
    with pytest.raises(InputError, match="pdu needs eps"):
        method_settings("pdu")


def test_refusals_and_alternatives(model, forget, retain, texts):
    assert len(set(REFUSALS)) == len(REFUSALS) >= 20
    assert assign_refusals(5, seed=1) == assign_refusals(5, seed=1) != assign_refusals(5, seed=2)
    whole = RecordTable.from_rows([{"id": "no-prefix", "text": texts[0][:60]}])
    with pytest.raises(InputError, match="'no-prefix' has no prefix"):
        unlearn(model, method="idk_dpo", forget=whole, retain=retain, trainer=QUICK)
    with pytest.raises(InputError, match="1 alternatives for 6"):
        unlearn(model, method="alt_po", forget=forget, retain=retain, alternatives=["x"], trainer=QUICK)
    with pytest.raises(InputError, match="refusals is empty"):
        unlearn(model, method="dpo", forget=forget, retain=retain, refusals=[" "], trainer=QUICK)
    items = items_of(model, forget, name="forget")
    answers, same = sampled_alternatives(model, items, seed=3)
    assert same == 0
    assert [len(a) for a in answers] == [len(item.ids) - item.answer for item in items]
    assert all(tuple(a) != item.ids[item.answer :] for a, item in zip(answers, items, strict=True))


def test_task_vectors(model, forget):
    start = weights_of(model.hf)
    unlearn(model, method="task_vector", forget=forget, settings={"scale": 0.0}, trainer=QUICK)
    assert not changed(model, start)  # a = 0 changes nothing
    unlearn(model, method="task_vector", forget=forget, settings={"scale": 1.0}, trainer=QUICK)
    there = weights_of(model.hf)
    tuned = CausalLM(copy.deepcopy(model.hf), model.tokenizer)
    tuned.hf.load_state_dict({**tuned.hf.state_dict(), **start})
    unlearn(
        tuned,
        method="fine_tune",
        forget=forget,
        retain=forget,
        trainer={**QUICK, "schedule": "constant", "warmup": 0.0},
    )
    vector = task_vector(tuned.hf, start)
    for name, parameter in model.hf.named_parameters():
        torch.testing.assert_close(parameter, start[name] - vector[name], rtol=1e-5, atol=1e-6)
    add_task_vector(model.hf, vector, 1.0)  # adding it back restores
    for name, parameter in model.hf.named_parameters():
        torch.testing.assert_close(parameter, start[name], rtol=1e-5, atol=1e-6)
    assert there.keys() == start.keys()
    with pytest.raises(InputError, match="their parameters differ"):
        task_vector(model.hf, {"x": torch.zeros(1)})
    z, reinforced = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 1.0])
    assert reinforced_logits(z, reinforced, strength=2.0).tolist() == [-5.0, 2.0]


def test_retrain_forgets_where_it_started(model, checkpoints, forget, retain):
    other = CausalLM.load(checkpoints("llama"), device="cpu")
    with torch.no_grad():
        for parameter in other.hf.parameters():
            parameter.mul_(0.5)
    for one in (model, other):
        unlearn(one, method="retrain", forget=forget, retain=retain, trainer=QUICK, seed=2)
    assert not changed(model, weights(other))


# --- what is trained -------------------------------------------------------------------------------------------------


def test_only_the_chosen_parameters_change(model, forget, retain):
    before = weights(model)
    unlearn(model, method="npo", forget=forget, retain=retain,
            trainer={**QUICK, "layers": (1,), "parameters": (r"mlp\.down_proj",)})  # fmt: skip
    assert changed(model, before) == {"model.layers.1.mlp.down_proj.weight"}
    with pytest.raises(InputError, match=r"no parameter matches 'c_fc'; there are: .*model\.layers\.N\.mlp"):
        unlearn(model, method="npo", forget=forget, retain=retain, trainer={**QUICK, "parameters": ("c_fc",)})
    with pytest.raises(InputError, match=r"no decoder layer 7: the model has layers 0 \.\. 1"):
        unlearn(model, method="npo", forget=forget, retain=retain, trainer={**QUICK, "layers": (7,)})
    with pytest.raises(InputError, match="not a regular expression"):
        unlearn(model, method="npo", forget=forget, retain=retain, trainer={**QUICK, "parameters": ("(",)})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_merges_into_a_plain_checkpoint(checkpoints, tmp_path, forget, retain, family):
    model = CausalLM.load(checkpoints(family), device="cpu")
    before, kind = weights(model), type(model.hf)
    report = unlearn(model, method="npo", forget=forget, retain=retain, settings={"retain_loss": "kl"},
                     trainer={**QUICK, "learning_rate": 1e-2}, lora={"rank": 2, "alpha": 4})  # fmt: skip
    assert report.history[0]["retain"] == pytest.approx(0, abs=1e-6)  # B = 0: the model is its own reference
    assert report.history[0]["forget"] == pytest.approx(2 / 0.1 * np.log(2), rel=1e-5)
    assert report.trained_parameters < sum(p.numel() for p in model.hf.parameters()) / 2
    assert type(model.hf) is kind
    found = changed(model, before)
    assert found
    assert not any("embed" in name or "wte" in name or "norm" in name or "ln_" in name for name in found)
    model.hf.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model.hf(input_ids=ids).logits)


def test_lora_merged_says_what_the_adapters_said(checkpoints, forget, retain):
    """Not merging leaves adapters on the model; its logits are those of the merged one."""
    logits, ids = [], torch.arange(10)[None]
    for merge in (True, False):
        model = CausalLM.load(checkpoints("llama"), device="cpu")
        report = unlearn(
            model,
            method="grad_diff",
            forget=forget,
            retain=retain,
            trainer=QUICK,
            lora=LoraSettings(rank=2, merge=merge),
        )
        assert any("adapters were left" in note for note in report.notes) == (not merge)
        with torch.no_grad():
            logits.append(model.hf(input_ids=ids).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


def test_lora_errors(model, forget, retain, monkeypatch):
    with pytest.raises(InputError, match=r"its linear layers are: .*down_proj"):
        unlearn(model, method="npo", forget=forget, retain=retain, trainer=QUICK, lora={"target_modules": ("c_attn",)})
    with pytest.raises(InputError, match="no setting 'rnak'; did you mean rank"):
        unlearn(model, method="npo", forget=forget, retain=retain, trainer=QUICK, lora={"rnak": 3})
    with pytest.raises(InputError, match="cannot be done with LoRA"):
        unlearn(model, method="retrain", forget=forget, retain=retain, trainer=QUICK, lora={})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"rote\[peft\]"):
        unlearn(model, method="npo", forget=forget, retain=retain, trainer=QUICK, lora={})


# --- stopping --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(model, checkpoints, tmp_path, forget, retain):
    def trap(done: int) -> None:
        if done == 3:
            with torch.no_grad():
                next(model.hf.parameters()).fill_(float("nan"))  # what an overflowing step leaves behind

    recipe = {"steps": 9, "batch_size": 6, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0}
    with pytest.raises(
        TrainingStopped, match=r"npo: training diverged at step 3 of 9: forget loss nan.*saved in"
    ) as stopped:
        unlearn(model, method="npo", forget=forget, retain=retain, trainer=recipe, after_step=trap, last_good=tmp_path)
    assert stopped.value.step == 2
    twin = CausalLM.load(checkpoints("llama"), device="cpu")
    unlearn(twin, method="npo", forget=forget, retain=retain, trainer={**recipe, "steps": 2})
    saved = CausalLM.load(tmp_path, device="cpu")
    for one in (model, saved):
        assert not changed(one, weights(twin))
        assert all(p.requires_grad for p in one.hf.parameters())


def test_a_rate_far_too_high_never_leaves_broken_weights(model, forget, retain):
    with pytest.raises(TrainingStopped, match="Lower the learning rate"):
        unlearn(model, method="grad_ascent", forget=forget,
                trainer={"steps": 50, "learning_rate": 1e30, "clip_norm": None})  # fmt: skip
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.hf.parameters())


def test_the_adapter_notices_that_weights_changed(checkpoints, forget, retain):
    """In bfloat16 the adapter keeps a float32 copy of the head: a stale one would score the old model."""
    model = CausalLM.load(checkpoints("llama"), device="cpu", dtype="bfloat16")
    before = score_in_memory(model, forget).logp
    report = unlearn(model, method="grad_diff", forget=forget, retain=retain, trainer={**QUICK, "learning_rate": 1e-1})
    assert any("bfloat16" in note for note in report.notes)
    after = score_in_memory(model, forget).logp
    fresh = score_in_memory(CausalLM(model.hf, model.tokenizer), forget).logp
    np.testing.assert_array_equal(after, fresh)
    assert not np.array_equal(after, before, equal_nan=True)


# --- hooks and names -------------------------------------------------------------------------------------------------


def test_gradient_surgery_takes_out_what_hurts_the_retain_set(model, forget, retain):
    f, r = [torch.tensor([1.0, -2.0]), torch.tensor([3.0])], [torch.tensor([1.0, 1.0]), torch.tensor([-1.0])]
    out = gradient_surgery(f, r)  # f . r = -4, |r|^2 = 3
    left = [o - b for o, b in zip(out, r, strict=True)]
    assert sum((a * b).sum() for a, b in zip(left, r, strict=True)).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(left[0], f[0] + 4 / 3 * r[0])
    agreeing = gradient_surgery(r, r)
    torch.testing.assert_close(agreeing, [2 * part for part in r])

    def plain_sum(a, b):
        return [x + y for x, y in zip(a, b, strict=True)]

    found = []
    for combine in (None, plain_sum):
        one = CausalLM(copy.deepcopy(model.hf), model.tokenizer)
        unlearn(one, method="grad_diff", forget=forget, retain=retain, trainer=QUICK, combine=combine)
        found.append(weights(one))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


def test_names_and_settings_are_checked():
    assert canonical_name("GA") == "grad_ascent"
    assert canonical_name("Idk-DPO") == "idk_dpo"
    with pytest.raises(InputError, match="no unlearning method 'sim_npo'; did you mean simnpo"):
        canonical_name("sim_npo")
    with pytest.raises(InputError, match="npo has no setting 'betta'; did you mean beta"):
        method_settings("npo", {"betta": 1})
    with pytest.raises(InputError, match="retain_loss must be one of"):
        GradDiff(retain_loss="mse")
    with pytest.raises(InputError, match="use it with method rmu"):
        GradDiff(retain_loss="embed_diff")
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        TrainerSettings(batch_size=0)
    rmu = recipe_for(RMU(), {"epochs": 2})
    assert (rmu.steps, rmu.epochs, rmu.batch_size) == (None, 2, 16)
    assert recipe_for(RMU(), None).steps == 80
