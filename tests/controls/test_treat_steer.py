"""`rote treat steer` end to end on a model that memorized: fitted, audited, undone at the end, loaded again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rote.controls.decoding import load_steering
from rote.controls.decoding import treat as fitting
from rote.controls.decoding.steering import SteeringSettings
from rote.errors import InputError
from rote.models import CausalLM
from rote.records import RecordTable, read_records
from rote.scores.sequences import Split


@pytest.fixture(scope="module")
def sets(memorizer, tmp_path_factory):
    """(checkpoint, forget file of often planted passages, retain file of unseen ones)."""
    path, targets, controls = memorizer
    folder = tmp_path_factory.mktemp("steer")
    rows = [json.loads(line) for line in targets.read_text().splitlines()]
    (folder / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["duplicates"] >= 8))
    (folder / "retain.jsonl").write_text(controls.read_text())
    return path, folder / "forget.jsonl", folder / "retain.jsonl"


@pytest.fixture(scope="module")
def fitted(sets):
    model = CausalLM.load(sets[0], device="cpu", dtype="float32")
    forget, retain = read_records([sets[1]]), read_records([sets[2]])
    found = fitting.fit_steering(model, forget, retain, split=Split(16, 16), settings=SteeringSettings(1.0), seed=3)
    return model, forget, retain, found


def test_what_is_fitted_and_what_is_held_out_never_overlap(fitted):
    model, forget, _, found = fitted
    assert set(found.fitted.tolist()).isdisjoint(found.held_out.tolist())
    assert len(found.fitted) + len(found.held_out) == len(forget)
    assert len(found.fitted) == pytest.approx(len(forget) / 2, abs=1)
    assert found.probe.n_memorized == len(found.fitted)
    assert found.vector.layer == found.causal.l_star == found.details["layer"]
    assert any("reconstruction" in note for note in found.notes)
    cuts = fitting.cut_records(model, forget, Split(16, 16))
    chosen = set(found.fitted.tolist())
    # The vector is that of the fitted half alone: without the others it is the same.
    again = fitting.fit_steering(
        model, forget.take(sorted(chosen)), fitted[2], split=Split(16, 16), settings=SteeringSettings(1.0), seed=3,
        fit_share=1.0, layer=found.vector.layer,
    )  # fmt: skip
    np.testing.assert_allclose(again.vector.v, found.vector.v, atol=1e-5)
    assert len(cuts) == len(forget)


def test_prompts_of_both_modes_are_equally_long(fitted):
    model, _, retain, _ = fitted
    lengths = [5, 9, 9, 30]
    prompts, groups = fitting.matched_prompts(model, retain, lengths, seed=0)
    assert set(map(len, prompts)) <= {*lengths, *(n for n in map(len, prompts) if n < 30)}
    assert {len(prompt) for prompt in prompts} & {5, 9}
    assert len(prompts) == len(groups) == len(retain)


def test_partners_end_in_the_same_token(fitted):
    """Otherwise exchanging the state after block 0 exchanges the token, and block 0 would be the causal one always."""
    model, forget, retain, _ = fitted
    cuts = fitting.cut_records(model, forget, Split(16, 16))
    prompts, _ = fitting.matched_prompts(model, retain, [16], seed=0)
    pairs = fitting.nearest_pairs(cuts, prompts)
    assert len(pairs) == len(cuts)
    assert all(pair.general[-1] == pair.memorized[-1] for pair in pairs)
    assert {pair.general[:-1] for pair in pairs} <= {prompt[:-1] for prompt in prompts}


def test_positions_inside_the_continuation_are_read_when_asked(fitted):
    """Probe and mean difference from the last prompt token and 5 tokens after it: the means are those of a plain
    forward pass over every text by itself."""
    model, forget, retain, _ = fitted
    found = fitting.fit_steering(
        model, forget, retain, split=Split(16, 16), settings=SteeringSettings(1.0), seed=3, layer=0, scale="raw",
        continuation_tokens=5,
    )  # fmt: skip
    cuts = {cut.index: cut.ids[:21] for cut in fitting.cut_records(model, forget, Split(16, 16))}
    prompts, tails, _ = fitting.matched_cuts(model, retain, [16], seed=0)  # every prompt has 16 tokens
    sides = []
    for rows in ([cuts[i] for i in found.fitted], [(*a, *b[:5]) for a, b in zip(prompts, tails, strict=True)]):
        states = []
        for row in rows:
            with torch.no_grad():
                hidden = model.hf(torch.tensor([list(row)]), output_hidden_states=True).hidden_states[1][0]
            states.append(hidden[15:21].numpy())
        sides.append(np.concatenate(states).mean(0))
    np.testing.assert_allclose(found.vector.v, sides[1] - sides[0], atol=1e-4)
    assert found.probe.n_memorized == 6 * len(found.fitted)


def test_groups_stay_together():
    groups = ["a"] * 4 + ["b"] * 4 + ["c", "d", "e", "f"]
    for seed in range(5):
        chosen = fitting.fitting_half(groups, 0.5, seed)
        assert chosen[:4].all() or not chosen[:4].any()
        assert 6 <= chosen.sum() <= 9
    assert fitting.fitting_half(groups, 1.0, 0).all()
    table = RecordTable.from_rows([{"id": "x", "text": "one two", "group": "g"}, {"id": "y", "text": "three"}])
    assert fitting.record_groups(table) == ["group g", "y"]


def test_greedy_recitation_is_what_generate_shows(fitted):
    model, forget, _, found = fitted
    cuts = fitting.cut_records(model, forget, Split(16, 16))[:6]

    def by_generate():
        hits = []
        for cut in cuts:
            ids = torch.tensor([cut.ids[:16]])
            with torch.no_grad():
                made = model.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False,
                                         eos_token_id=None, pad_token_id=0)  # fmt: skip
            hits.append(made[0, 16:].tolist() == list(cut.ids[16:32]))
        return hits

    assert fitting.greedy_recitation(model, cuts).tolist() == by_generate()
    with found.on(model):
        steered = fitting.greedy_recitation(model, cuts).tolist()
        assert steered == by_generate()
    seen = fitting.recitation_before_after(model, forget, found, split=Split(16, 16))
    assert set(seen) == {"fitted", "held_out"}
    assert seen["fitted"]["records"] == len(found.fitted)
    assert 0 <= seen["held_out"]["after"] <= 1
    whole = fitting.recitation_before_after(
        model, forget.take(found.fitted), fitting.FittedSteering(**{
            **vars(found), "fitted": np.arange(len(found.fitted)), "held_out": np.zeros(0, int)}),
        split=Split(16, 16),
    )  # fmt: skip
    assert whole["held_out"]["before"] is None


def test_too_little_to_fit_is_said(fitted):
    model, forget, retain, _ = fitted
    with pytest.raises(InputError, match="2 documents"):
        fitting.fit_steering(model, forget.take([0, 1]), retain, split=Split(16, 16))
    with pytest.raises(InputError, match="fit_share"):
        fitting.fit_steering(model, forget, retain, fit_share=0.0)


def test_what_the_fit_would_refuse_is_refused_before_any_pass(fitted):
    model, forget, retain, _ = fitted
    kept = {"split": Split(16, 16), "seed": 0}
    fitting.check_steerable(model, forget, retain, layer=1, scale="raw", **kept)
    for wrong, message in (({"layer": 9}, "blocks 0"), ({"scale": "big"}, "scale must be one of"),
                           ({"fit_share": 2.0}, "fit_share")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            fitting.check_steerable(model, forget, retain, **kept, **wrong)
    with pytest.raises(InputError, match="2 documents"):
        fitting.check_steerable(model, forget.take([0, 1]), retain, **kept)
    with pytest.raises(InputError, match="2 documents"):
        fitting.check_steerable(model, forget, retain.take([0]), **kept)


@pytest.mark.parametrize("wrong", [["--alpha", "nan"], ["--layer", "9"], ["--scale", "big"], ["--threshold", "1"]])
def test_a_wrong_option_leaves_nothing_behind(sets, tmp_path, wrong):
    import typer

    from rote.cli.treat_steer import steer

    app = typer.Typer()
    app.command()(steer)
    path, forget, retain = map(str, sets)
    with pytest.raises(InputError):
        app([path, "--forget", forget, "--retain", retain, "-o", str(tmp_path / "out"), "--prefix", "16", "--suffix",
             "16", "--device", "cpu", "-q", *wrong], standalone_mode=False)  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(sets, tmp_path, capsys):
    import typer

    from rote.cli.treat_steer import steer

    app = typer.Typer()
    app.command()(steer)
    path, forget, retain = map(str, sets)
    out = tmp_path / "steered"
    arguments = [path, "--forget", forget, "--retain", retain, "-o", str(out), "--prefix", "16", "--suffix", "16",
                 "--scheme", "top_k=4", "--alpha", "0.6", "--device", "cpu", "-q"]  # fmt: skip
    app(arguments, standalone_mode=False)
    capsys.readouterr()
    summary = json.loads((out / "treatment.json").read_text())
    seen = summary["details"]["greedy_recitation"]
    assert summary["control"] == "control"
    assert summary["details"]["reconstructed"] is True
    assert seen["fitted"]["before"] > 0
    assert summary["method_settings"]["alpha"] == 0.6
    model = CausalLM.load(path, device="cpu", dtype="float32")
    saved = load_steering(out / "control", model)
    assert saved.settings.alpha == 0.6
    table = read_records([sets[1]])
    cuts = fitting.cut_records(model, table, Split(16, 16))
    before = fitting.greedy_recitation(model, cuts)
    with saved.on(model):
        after = fitting.greedy_recitation(model, cuts)
    counts = [seen[part]["records"] for part in ("fitted", "held_out")]
    for rate, key in ((before.mean(), "before"), (after.mean(), "after")):
        told = sum(n * seen[part][key] for n, part in zip(counts, ("fitted", "held_out"), strict=True)) / sum(counts)
        assert rate == pytest.approx(told, abs=1e-4)
