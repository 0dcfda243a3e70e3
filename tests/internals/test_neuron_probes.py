"""Probes: exact on a planted neuron, honest without one, the same after a trip to disk, and on the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.internals.test_neuron_selection import labelled, store
from typer.testing import CliRunner

from rote.errors import InputError, RunMismatchError
from rote.internals.neurons import (
    ActivationStore,
    Place,
    Probe,
    ProbeLabeller,
    cosine,
    cross_auroc,
    label_stream,
    labels_of_stream,
    load_probe,
    permuted_auroc,
    read_stream,
    save_probe,
    score_texts,
    select_units,
    sequence_score,
    threshold_labeller,
    train_probe,
)
from rote.internals.neurons.cross_validation import (
    equal_weights,
    fit_linear,
    group_weights,
    out_of_fold,
    stratified_auroc,
)
from rote.internals.neurons.scoring import windows
from rote.internals.neurons.splits import group_folds
from rote.models import CausalLM


def with_noise(labels, strength: float, *, seed: int = 0, layers: int = 1, site: str = "resid_post") -> ActivationStore:
    """Passage effects and noise in 12 coordinates; the label stands in coordinate 3 of the last layer."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for layer in range(layers):
        values = rng.standard_normal((len(labels.ids), 12))[labels.sample] + rng.standard_normal((len(labels), 12))
        values[:, 3] += strength * labels.label * (layer == layers - 1)
        arrays[Place(site, layer)] = values.astype(np.float32)
    outputs = rng.standard_normal((len(labels), 3)).astype(np.float32)
    return ActivationStore(arrays, outputs, f"model-{strength}", labels.fingerprint, len(labels))


def test_a_planted_unit_gives_accuracy_one_and_the_control_none():
    labels = labelled(passages=40)
    values = np.random.default_rng(0).standard_normal((len(labels), 8))
    values[:, 5] = labels.label
    probe = train_probe(
        store(values, labels), labels, site="mlp_hidden", layer=0, c=10.0,
        control=store(np.random.default_rng(1).standard_normal((len(labels), 8)), labels),
    )  # fmt: skip
    report = probe.report
    assert report.probe.accuracy == report.probe.balanced_accuracy == report.probe.f1 == 1.0
    assert probe.auroc == 1.0
    assert np.argmax(np.abs(probe.linear.w)) == 5
    assert probe.auroc_control is not None
    assert abs(probe.auroc_control - 0.5) < 0.15
    assert report.gap is not None
    assert report.gap.value == pytest.approx(1.0 - probe.auroc_control)
    assert report.gap.low > 0.3
    assert probe.mean1[5] == 1.0
    assert probe.mean0[5] == 0.0
    assert report.notes == ()


def test_without_a_control_the_report_says_what_is_missing():
    labels = labelled(passages=20)
    probe = train_probe(with_noise(labels, 2.0), labels)
    assert probe.auroc_control is None
    assert "difficulty of the texts" in probe.report.notes[0]


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_stratified_auroc_against_all_pairs_with_multiplicities(seed):
    rng = np.random.default_rng(seed)
    scores, label = rng.integers(0, 5, 24).astype(float), rng.random(24) < 0.5
    fold, group = rng.integers(0, 3, 24), rng.integers(0, 6, 24)
    weight = group_weights(group, resamples=4, seed=seed)
    for w, found in zip(weight, stratified_auroc(scores, label, fold, weight), strict=True):
        wins = pairs = 0.0
        for i in np.flatnonzero(label):
            for j in np.flatnonzero(~label & (fold == fold[i])):
                wins += w[i] * w[j] * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
                pairs += w[i] * w[j]
        assert found == pytest.approx(wins / pairs) if pairs else np.isnan(found)
    assert (weight.sum(1) > 0).all()


def test_the_probe_is_scikit_learns_on_standardised_values():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    labels = labelled(passages=20)
    values = with_noise(labels, 1.0)["resid_post", 0].astype(np.float64)
    values[:, 7] = 4.0  # constant: must not divide by zero
    fitted = fit_linear(values, labels.label)
    scaler = StandardScaler().fit(values)
    reference = LogisticRegression(C=0.05, class_weight="balanced", tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(values), labels.label)
    expected = reference.decision_function(scaler.transform(values))
    assert np.allclose(fitted.logit(values), expected, atol=1e-3)
    fold = np.arange(len(labels)) // 12 % 5
    scores = out_of_fold(values, labels.label, fold)
    again = fit_linear(values[fold != 2], labels.label[fold != 2])
    assert np.array_equal(scores[fold == 2], again.logit(values[fold == 2]))


def test_kinds_of_a_class_weigh_alike_as_if_each_token_of_the_rarer_came_more_often():
    """The twin repeats rows until every kind is there as often."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], [60, 40, 20])
    values = rng.standard_normal((120, 3)) + np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0]])[kind]
    values = (values - values.mean(0)) / values.std(0)
    more = np.repeat(np.arange(120), np.array([1, 3, 3])[kind])  # 60 of each negative kind, 120 positive
    twin = LogisticRegression(C=0.05 * 120 / 240, max_iter=2000, tol=1e-8).fit(values[more], kind[more] == 1)
    found = fit_linear(values, kind == 1, kind=kind)
    assert found.w == pytest.approx(twin.coef_[0], abs=1e-4)
    assert found.b == pytest.approx(twin.intercept_[0], abs=1e-4)
    plain = fit_linear(values, kind == 1)
    assert abs(plain.w - found.w).max() > 0.05
    few = np.array([0, 0, 0, 1, 2])
    assert equal_weights(few == 1, few) == pytest.approx([5 / 12, 5 / 12, 5 / 12, 5 / 2, 5 / 4])


def test_a_passage_fingerprint_fools_a_split_by_tokens_and_not_this_one():
    """Activations that only name the passage: split by tokens a probe looks perfect, by passage it is chance."""
    labels = labelled(passages=40)
    names = np.random.default_rng(0).standard_normal((40, 60))[labels.sample]
    acts = store(names + 0.01 * np.random.default_rng(1).standard_normal(names.shape), labels)
    honest = train_probe(acts, labels, site="mlp_hidden", layer=0, c=1.0)
    by_token = np.random.default_rng(2).integers(0, 5, len(labels))
    fooled = stratified_auroc(out_of_fold(acts["mlp_hidden", 0], labels.label, by_token, c=1.0), labels.label, by_token)
    assert fooled[0] > 0.99
    assert abs(honest.auroc - 0.5) < 0.25
    assert honest.report.probe.auroc.low < 0.5 + 0.1


def test_permuted_labels_give_one_half():
    labels = labelled(passages=40)
    acts = with_noise(labels, 6.0)
    assert train_probe(acts, labels).auroc > 0.95
    permuted = permuted_auroc(acts, labels, site="resid_post", layer=0, permutations=20)
    assert len(permuted) == 20
    assert abs(permuted.mean() - 0.5) < 0.05


def test_the_layer_is_chosen_inside_the_training_folds():
    labels = labelled(passages=40)
    acts, control = with_noise(labels, 4.0, layers=3), with_noise(labels, 0.0, layers=3, seed=7)
    probe = train_probe(acts, labels, control=control)
    assert probe.layer == 2
    assert [row["layer"] for row in probe.by_layer] == [0, 1, 2]
    fixed = train_probe(acts, labels, layer=2, control=control)
    assert probe.auroc == pytest.approx(fixed.auroc, abs=0.02)
    assert probe.by_layer[2]["auroc"]["value"] == pytest.approx(fixed.auroc)
    noise = with_noise(labels, 0.0, layers=8, seed=3)
    best_seen = max(row["auroc"]["value"] for row in train_probe(noise, labels).by_layer)
    assert train_probe(noise, labels).auroc < best_seen  # the choice is not reported as if it had been free
    with pytest.raises(InputError, match="captured layers: 0, 1, 2"):
        train_probe(acts, labels, layer=5)
    with pytest.raises(InputError, match="at least 15 passages"):
        train_probe(with_noise(labelled(passages=20), 1.0), labelled(passages=20), folds=15)


def test_kinds_can_be_compared_separately():
    labels = labelled(passages=60)
    three = replace(labels, kinds=("uncertain", "memorized", "certain"),
                    kind=np.where(labels.label, 1, np.where(labels.sample % 4 == 1, 0, 2)).astype(np.int8))  # fmt: skip
    acts = with_noise(three, 0.0)
    values = acts.arrays[Place("resid_post", 0)]
    values[:, 0] += 4 * (three.kind == 0)  # tells uncertain tokens apart, not certain ones
    easy, hard = (train_probe(acts, three, against=[kind]) for kind in ("uncertain", "certain"))
    assert easy.auroc > 0.9 > hard.auroc
    assert easy.report.counts == {"uncertain": 90, "memorized": 180}
    rows = np.flatnonzero((three.kind != 2) | (three.sample % 20 == 3))  # certain tokens are few
    few = three.take(rows)
    both = train_probe(acts.take(rows, few), few)
    equal, plain = (fit_linear(values[rows], few.label, kind=kind) for kind in (few.kind, None))
    assert both.linear.w == pytest.approx(equal.w)
    assert abs(equal.w - plain.w).max() > 0.02
    fold = group_folds(few.units_of_split(), few.label, folds=5, seed=0)
    kept, counted = (out_of_fold(values[rows], few.label, fold, kind=kind) for kind in (few.kind, None))
    assert both.auroc == pytest.approx(float(stratified_auroc(kept, few.label, fold)[0]))
    assert both.auroc != pytest.approx(float(stratified_auroc(counted, few.label, fold)[0]), abs=1e-6)
    with pytest.raises(InputError, match="there are"):
        train_probe(acts, three, against=["random"])


def test_one_probe_on_another_task():
    labels = labelled(passages=40)
    acts = with_noise(labels, 6.0)
    probe = train_probe(acts, labels)
    other = with_noise(labels, 0.0, seed=5)
    values = other["resid_post", 0]
    values[:, 8] += 6 * labels.label
    second = train_probe(other, labels)
    assert cross_auroc(probe, acts, labels) > 0.95
    assert abs(cross_auroc(probe, other, labels) - 0.5) < 0.2
    assert abs(cosine(probe, second)) < 0.5 < cosine(probe, probe)
    assert cosine(probe, probe) == pytest.approx(1.0)


@given(st.integers(1, 500), st.one_of(st.none(), st.integers(2, 60)))
def test_windows_score_every_token_once_with_half_a_window_of_context(tokens, room):
    scored = []
    for start, stop, first in windows(tokens, room):
        assert room is None or stop - start <= room
        assert start <= first < stop
        assert start == 0 or first - start >= (room or 0) - max(1, (room or 0) // 2) - 1
        scored += range(first, stop)
    assert scored == list(range(tokens))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """(model directory, probe of the model): a random small model, labels by parity of the passage's number."""
    from rote.models import small_gpt2, train_bpe

    texts = [f"passage number {number} speaks of {word} and of {word}s" for number in range(20) for word in ("a", "be")]
    tokenizer = train_bpe(texts, vocab_size=300)
    hf = small_gpt2(vocab_size=len(tokenizer), context_length=24, width=32, layers=2, heads=4, seed=1)
    path = tmp_path_factory.mktemp("probed") / "model"
    hf.save_pretrained(path)
    tokenizer.save_pretrained(path)
    model = CausalLM.load(path, device="cpu")
    labels = labelled(passages=20, vocabulary=len(tokenizer))
    acts = ActivationStore.capture(model, labels, sites=["resid_post", "mlp_hidden"])
    return model, path, train_probe(acts, labels, site="mlp_hidden", layer=1), acts, labels, texts


def test_scores_are_those_of_the_captured_activations(fitted):
    model, _, probe, acts, labels, _ = fitted
    from rote.internals.neurons.scoring import probability, score_sequences

    scores = score_sequences(model, probe.place, probability(probe), labels.sequences, batch_tokens=40)
    expected = probability(probe)(acts[probe.place])
    for i in range(len(labels)):
        assert scores[labels.sample[i]][labels.token[i]] == pytest.approx(expected[i], abs=1e-5)
    assert all(np.isnan(row[:2]).all() for row in scores)  # no BOS: nothing is read from the first input position
    whole = probe.score(model, "passage number 3 speaks of be")
    assert whole.ndim == 1
    assert np.nanmin(whole) > 0
    assert np.nanmax(whole) < 1


def test_long_text_is_read_in_windows(fitted):
    model, _, probe, *_ = fitted
    long = " ".join(f"passage number {number} speaks" for number in range(30))
    (scored,) = score_texts(probe, model, [long])
    assert len(scored.score) > 3 * 24
    assert np.isfinite(scored.score[2:]).all()
    ids, place = torch.tensor(scored.ids), probe.place
    start, stop, first = windows(len(ids), 24)[2]
    kept = []
    from rote.internals.neurons.sites import attach

    handle = attach(model.hf, place, lambda activation: kept.append(activation[0].clone()))
    with torch.no_grad():
        model.hf(ids[start:stop][None])
    handle.remove()
    expected = 1 / (1 + np.exp(-probe.linear.logit(kept[0][first - start - 1 : -1].numpy())))
    assert np.allclose(scored.score[first:stop], expected, atol=1e-5)


def test_sequence_scores():
    assert sequence_score(np.array([np.nan, 0.2, 0.9, 0.5])) == {
        "mean": pytest.approx(1.6 / 3), "fraction": pytest.approx(2 / 3), "tokens": 3
    }  # fmt: skip
    assert sequence_score(np.array([np.nan])) == {"mean": None, "fraction": None, "tokens": 0}


def test_a_probe_on_disk_is_the_same_probe(fitted, tmp_path):
    model, _, probe, *_ = fitted
    path = save_probe(probe, tmp_path / "deep" / "probe", extra={"source": {"model": "m"}})
    again: Probe = load_probe(path)
    assert np.array_equal(again.linear.w, probe.linear.w)
    assert np.array_equal(again.mean1, probe.mean1)
    assert (again.place, again.model, again.labels) == (probe.place, probe.model, probe.labels)
    assert again.report.probe.auroc == probe.report.probe.auroc
    assert np.array_equal(
        again.score(model, "passage number 7"), probe.score(model, "passage number 7"), equal_nan=True
    )
    other = CausalLM(model.hf, model.tokenizer, name="other", fingerprint="f" * 64)
    with pytest.raises(RunMismatchError, match="another model than other"):
        again.score(other, "passage")
    assert len(score_texts(again, other, ["passage number"], any_model=True)) == 1
    content = path.read_bytes()
    path.write_bytes(content[:-8] + b"\0" * 8)
    with pytest.raises(RunMismatchError, match="sha256"):
        load_probe(path)
    path.write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="not a safetensors"):
        load_probe(path)
    with pytest.raises(InputError, match="does not exist"):
        load_probe(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match=r"is a \.safetensors"):
        save_probe(probe, tmp_path / "probe.bin")


def test_labelling_a_stream_stops_goes_on_and_refuses_others(fitted, tmp_path):
    model, _, probe, *_, texts = fitted
    documents = [(f"d{number}", text) for number, text in enumerate([*texts[:11], "a"])]
    labeller = ProbeLabeller(probe, 0.4, 0.6)
    whole = label_stream(model, labeller, documents, tmp_path / "whole", shard_documents=4)
    assert (whole["shards"], whole["documents"], whole["skipped"]) == (3, 12, ["d11"])
    tables = list(read_stream(tmp_path / "whole"))
    for name, text in documents[:11]:
        rows = [row for table in tables for row in table.to_pylist() if row["document"] == name]
        (scored,) = score_texts(probe, model, [text])
        assert [row["token_id"] for row in rows] == scored.ids.tolist()
        for row, value in zip(rows, scored.score, strict=True):
            expected = -1 if np.isnan(value) else 1 if value >= 0.6 else 0 if value <= 0.4 else -1
            assert row["label"] == expected
            assert row["score"] == (None if np.isnan(value) else pytest.approx(value, abs=1e-5))

    class Stop(Exception):
        pass

    def interrupted():
        for number, document in enumerate(documents):
            if number == 6:
                raise Stop
            yield document

    with pytest.raises(Stop):
        label_stream(model, labeller, interrupted(), tmp_path / "two", shard_documents=4)
    with pytest.raises(InputError, match="no finished labelling"):
        list(read_stream(tmp_path / "two"))
    written = (tmp_path / "two" / "part-00000.parquet").stat().st_mtime_ns
    (tmp_path / "two" / ".part-00001.parquet.abcd_123.tmp").write_bytes(b"PAR1")  # what kill -9 leaves
    again = label_stream(model, labeller, documents, tmp_path / "two", shard_documents=4)
    assert again == whole
    assert (tmp_path / "two" / "part-00000.parquet").stat().st_mtime_ns == written
    for mine, theirs in zip(read_stream(tmp_path / "two"), tables, strict=True):
        assert mine.equals(theirs)
    names = sorted(file.name for file in (tmp_path / "two").iterdir())
    assert names == ["key.json", "labels.json", *(f"part-0000{shard}.parquet" for shard in range(3))]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".key.json.abcd_123.tmp").write_text("{")  # killed at once: begins again
    label_stream(model, labeller, documents[:4], tmp_path / "begun", shard_documents=4)
    assert len(list((tmp_path / "begun").iterdir())) == 3

    with pytest.raises(RunMismatchError, match="labeller changed"):
        label_stream(model, ProbeLabeller(probe, 0.3, 0.6), documents, tmp_path / "two", shard_documents=4)
    with pytest.raises(RunMismatchError, match="other documents"):
        label_stream(model, labeller, documents[1:], tmp_path / "two", shard_documents=4)
    with pytest.raises(RunMismatchError, match="more documents"):
        label_stream(model, labeller, documents[:4], tmp_path / "two", shard_documents=4)

    labels = labels_of_stream(tmp_path / "whole", cap=3)
    assert np.bincount(labels.sample).max() <= 3
    assert set(labels.counts) == {"other", "memorized"}
    acts = ActivationStore.capture(model, labels, sites="mlp_hidden", layers=1)
    from rote.internals.neurons.scoring import probability

    scores = probability(probe)(acts["mlp_hidden", 1])
    assert (scores[labels.label] >= 0.6 - 1e-5).all()
    assert (scores[~labels.label] <= 0.4 + 1e-5).all()


def test_the_best_unit_labels_with_two_thresholds(fitted):
    _, _, _, acts, labels, _ = fitted
    unit = select_units(acts, labels, top=1, permutations=0).best
    labeller = threshold_labeller(acts, labels, unit)
    assert labeller.lower <= labeller.upper
    values = labeller.score(acts[labeller.place])
    called = labeller.call(values)
    assert np.array_equal(called == 1, values >= labeller.upper)
    assert np.array_equal(called == 0, (values <= labeller.lower) & ~(values >= labeller.upper))
    oriented = unit.sign * acts[labeller.place][:, unit.dimension]
    percentiles = np.percentile(oriented[~labels.label], 95), np.percentile(oriented[labels.label], 5)
    assert [labeller.lower, labeller.upper] == pytest.approx(sorted(percentiles))


def app() -> typer.Typer:
    from rote.cli.probe import probe_app

    root = typer.Typer()
    root.add_typer(probe_app, name="probe")
    return root


def test_score_and_label_on_the_command_line(fitted, tmp_path):
    _, path, probe, *_, texts = fitted
    save_probe(probe, tmp_path / "p", extra={"source": {"model": str(path)}})
    hostile = 'passage <script>alert("x")</script> & number'
    (tmp_path / "t.jsonl").write_text(
        "".join(
            json.dumps({"id": f"<b>{number}", "text": text}) + "\n" for number, text in enumerate([*texts[:3], hostile])
        )
    )
    run = CliRunner()
    base = ["probe", "score", "--probe", str(tmp_path / "p.safetensors"), "--text", str(tmp_path / "t.jsonl")]
    result = run.invoke(app(), [*base, "--json", "--html", str(tmp_path / "page.html")], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    expected = probe.score(CausalLM.load(path, device="cpu"), texts[0])
    assert found["records"][0]["scores"][:2] == [None, None]
    assert found["records"][0]["scores"][2:] == pytest.approx(expected[2:].tolist(), abs=1e-5)
    assert "text" not in found["records"][0]
    page = (tmp_path / "page.html").read_text()
    assert "passage" not in page.partition("</style>")[2].replace("passages", "")
    assert "<script" not in page
    assert "<b>0" not in page
    assert "\u2592" in page
    assert run.invoke(app(), [*base, "--html", str(tmp_path / "open.html"), "--reveal", "-q"]).exit_code == 0
    revealed = (tmp_path / "open.html").read_text()
    assert "<script>" not in revealed
    assert "&lt;" in revealed
    label = ["probe", "label", str(tmp_path / "t.jsonl"), "--probe", str(tmp_path / "p"), "-o", str(tmp_path / "l")]
    result = run.invoke(app(), [*label, "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["documents"] == 4
    assert run.invoke(app(), [*base, "--json"], catch_exceptions=False).stdout == json.dumps(found, indent=1) + "\n"


def test_fit_on_the_command_line(memorizer, tmp_path):
    run = CliRunner()
    base = [
        "probe",
        "fit",
        "--model",
        str(memorizer[0]),
        "--memorized",
        str(memorizer[1]),
        "--other",
        str(memorizer[2]),
    ]
    result = run.invoke(
        app(), [*base, "--site", "mlp_hidden", "--folds", "3", "-o", str(tmp_path / "probe"), "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    meta = json.loads(result.stdout)
    assert meta == json.loads((tmp_path / "probe.json").read_text())
    assert meta["rule"]["from"] == "samples"
    assert meta["report"]["control"] is None
    assert load_probe(tmp_path / "probe").auroc == meta["report"]["probe"]["auroc"]["value"] > 0.5
    # every memorized token has p >= .5, so calling tokens by that finds all of them
    logp = meta["report"]["logp"]
    assert logp["balanced_accuracy"] > 0.5
    refused = run.invoke(app(), [*base, "--long", "perhaps", "-o", str(tmp_path / "other")])
    assert "error or truncate" in str(refused.exception)


def test_weighted_suppression_chooses_its_dose_below_the_price(memorizer, monkeypatch, tmp_path):
    """Class 0 is ordinary text, the dose is the one with the largest lead over random directions below the price, and
    held-out passages lose more than by chance; several layers are changed together unless one is named; with nothing to
    choose the dose by it is the largest for the price, and a note says so."""
    from rote.internals.neurons import load_direction, suppression
    from rote.internals.neurons.specific import DOSES, lead
    from rote.internals.neurons.suppression import fit_suppression
    from rote.records import read_records

    model = CausalLM.load(memorizer[0], device="cpu")
    forget, retain = (read_records([file]) for file in memorizer[1:3])
    found = fit_suppression(model, forget, retain, mode="weighted", layer=0, cost=0.05)
    assert found.direction.reader is not None
    assert found.direction.reader @ found.direction.delta == pytest.approx(1)
    assert found.settings == {"mode": "weighted", "scale": found.scale, "positions": "all"}
    rows = {row["site"]: row for row in found.details["places"]}
    assert set(rows) == {"mlp_out", "attn_out"}
    row = rows[found.direction.place.site]
    assert found.scale == row["dose"] in DOSES
    assert lead(row) == max(lead(row) for row in rows.values()) > 0
    assert row["cost"] < 0.05
    held_out = {row["direction"]: row for row in found.details["held_out"]}
    assert held_out["selected"]["rise_memorized"] > held_out["random"]["rise_memorized"]
    several = fit_suppression(model, forget, retain, mode="weighted", cost=0.05)
    assert {row["layer"] for row in several.details["places"]} == {"0, 1"}
    assert [one.place.layer for one in several.direction] == [0, 1]
    several.save(tmp_path)
    again, found_settings = load_direction(tmp_path)
    assert [one.place for one in again] == [one.place for one in several.direction]
    assert found_settings == several.settings
    monkeypatch.setattr(suppression, "RECITED", 40)  # passages have 48 tokens: none can be tested for recitation
    found = fit_suppression(model, forget, retain, mode="weighted", layer=0, cost=0.05)
    assert found.scale > 0
    assert any(note.startswith("the dose is the largest for the price") for note in found.notes)


@pytest.mark.slow
def test_treating_by_neurons_from_labels_to_audit(memorizer, tmp_path):
    """The whole command on a model that recites: the direction costs memorized tokens more than a random one does, is
    kept for use, and the weights are untouched."""
    from rote.cli.treat_neurons import neurons
    from rote.internals.neurons import load_direction
    from rote.internals.neurons.intervention import named

    root = typer.Typer()
    root.command("neurons")(neurons)
    out = tmp_path / "out"
    result = CliRunner().invoke(
        root,
        [
            str(memorizer[0]), "--forget", str(memorizer[1]), "--retain", str(memorizer[2]), "--scale", "2",
            "--device", "cpu", "--json", "-o", str(out),
        ],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    rows = {row["direction"]: row for row in summary["details"]["held_out"]}
    assert rows["selected"]["rise_memorized"] > rows["random"]["rise_memorized"]
    direction, found = load_direction(out / "control")
    assert found == {"mode": "diff-means", "scale": 2.0, "positions": "all"}
    assert named(direction) == {"site": "mlp_out", "layer": summary["details"]["layer"]}
    assert any("reference model" in note for note in summary["notes"])
    assert summary["checkpoint"] is None
    assert (out / "compare.html").exists()
