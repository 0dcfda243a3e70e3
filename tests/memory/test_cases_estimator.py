"""ProtoKNN: its prediction is its memory; patients are kept apart; files of two models are never mixed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from rote.errors import InputError, RunMismatchError
from rote.memory.cases import (
    ProtoKNN,
    SignalSettings,
    TrainingSettings,
    audit_cases,
    leave_one_patient_out,
    load_case_base,
    patient_folds,
    save_case_base,
)
from rote.memory.cases.evaluation import auroc, evaluate_votes, r_squared
from rote.memory.cases.explain_figure import carriers, channel_groups, row_positions, save_figure, scale
from rote.memory.cases.scan import Scan, electrode_weights, merge_hits, quiet_threshold, region, scan_recording
from rote.memory.cases.splits import held_out_patients
from rote.records.simulated_eeg import simulate_eeg, simulate_recording

TINY = TrainingSettings(
    width=0.12, detector_epochs=1, batch_size=32, prototypes=2, warm_epochs=1, rounds=1, epochs=1, per_class=3
)


@pytest.fixture(scope="module")
def segments():
    made = simulate_eeg(150, patients=25, seed=11)
    new = made.groups >= "P20"
    return made.take(~new), made.take(new)


@pytest.fixture(scope="module")
def fitted(segments):
    train, _ = segments
    return ProtoKNN(k=5, training=TINY, random_state=1).fit(train.data, train.votes, groups=train.groups, ids=train.ids)


# --- prediction ------------------------------------------------------------------------------------------------------


def test_the_prediction_is_the_mean_vote_of_the_neighbours(fitted, segments):
    new = segments[1]
    found = fitted.kneighbors(new.data)
    base = fitted.cases_
    by_hand = [np.mean([base.votes[at] / 8 for at in row]) for row in found.index]
    assert np.allclose(fitted.predict_vote(new.data), by_hand)
    proba = fitted.predict_proba(new.data)
    assert np.allclose(proba.sum(1), 1)
    assert np.allclose(proba[:, 1], np.interp(by_hand, *fitted.calibration_))
    assert (fitted.predict(new.data) == (proba[:, 1] >= 0.5)).all()


def test_all_cases_as_neighbours_give_the_global_mean_vote(fitted, segments):
    found = fitted.kneighbors(segments[1].data, k=len(fitted.cases_))
    assert np.allclose(fitted.cases_.fraction[found.index].mean(1), fitted.cases_.fraction.mean())


def test_one_by_one_is_the_batch(fitted, segments):
    new = segments[1].data[:6]
    whole = fitted.kneighbors(new)
    single = [fitted.kneighbors(new[row : row + 1]) for row in range(6)]
    assert np.allclose(whole.similarity, np.concatenate([one.similarity for one in single]), atol=1e-5)
    assert (whole.index == np.concatenate([one.index for one in single])).mean() > 0.95  # ties may swap


def test_a_case_is_not_its_own_neighbour_nor_is_its_patient(fitted, segments):
    train, base = segments[0], fitted.cases_
    rows = [train.ids.tolist().index(name) for name in base.ids[:8]]
    for found in (fitted.kneighbors(train.data[rows]), fitted.kneighbors(train.data[rows] + 0)):
        assert all(at not in found.index[at] for at in range(8))
    apart = fitted.kneighbors(train.data[rows], groups=train.groups[rows])
    assert not (base.groups[apart.index] == train.groups[rows][:, None]).any()
    index = leave_one_patient_out(fitted)[1]
    assert not (base.groups[index] == base.groups[:, None]).any()


def test_faiss_shortlist_of_everything_is_the_exact_search(fitted, segments):
    new = segments[1].data
    exact = fitted.kneighbors(new)
    other = clone(fitted).set_params(search="faiss", candidates=10_000)
    for name, value in vars(fitted).items():
        if name.endswith("_"):
            setattr(other, name, value)
    assert np.allclose(other.kneighbors(new).similarity, exact.similarity, atol=1e-5)


def test_fitting_twice_gives_the_same_and_calibration_patients_are_no_cases(fitted, segments):
    train, new = segments
    again = clone(fitted).fit(train.data, train.votes, groups=train.groups, ids=train.ids)
    assert np.array_equal(again.predict_vote(new.data), fitted.predict_vote(new.data))
    assert not set(again.cases_.groups) & set(again.validation_groups_)


def test_an_interrupted_fit_goes_on_with_its_detector(fitted, segments, tmp_path, monkeypatch):
    train, _ = segments
    options = {"groups": train.groups, "ids": train.ids, "resume": tmp_path}
    before = [value.clone() for value in fitted.model_.detector.state_dict().values()]

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rote.memory.cases.estimator.train_prototypes", stop)
        with pytest.raises(KeyboardInterrupt):
            clone(fitted).fit(train.data, train.votes, **options)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("rote.memory.cases.estimator.train_detector", stop)
    again = clone(fitted).fit(train.data, train.votes, **options)  # the detector is not trained again
    whole = [value.clone() for value in again.model_.detector.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, whole, strict=True))
    assert np.array_equal(again.predict_vote(train.data), fitted.predict_vote(train.data))
    with pytest.raises(KeyboardInterrupt):  # other votes: another detector
        clone(fitted).fit(train.data, 8 - train.votes, **options)
    next(tmp_path.iterdir()).write_bytes(b"broken")
    with pytest.raises(InputError, match="remove it to train anew"):
        clone(fitted).fit(train.data, train.votes, **options)


def test_channel_order_and_names_do_not_matter(fitted, segments):
    new = segments[1]
    order = np.random.default_rng(0).permutation(19)
    names = [f"EEG {new.names[at].upper()}-REF" for at in order]
    shuffled = fitted.predict_vote(new.data[:, order], ch_names=names)
    assert np.allclose(shuffled, fitted.predict_vote(new.data))


def test_any_multichannel_epochs_with_yes_or_no_labels(segments):
    """Four channels of another signal at another rate: nothing is about EEG but the defaults."""
    rng = np.random.default_rng(0)
    data = rng.normal(0, 30, (60, 4, 80)).astype(np.float32)
    labels = np.arange(60) % 2
    data[labels == 1, 1, 30:50] += 150
    model = ProtoKNN(
        montage="average", k=3, calibrate=False, prototype_phase=False, weights="equal",
        signal=SignalSettings(sfreq=50, crop=64, low=0, high=1e5), training=TINY,
    )  # fmt: skip
    model.fit(data[:40], labels[:40], groups=np.arange(40) // 4, raters=1, ch_names=["a", "b", "c", "d"], sfreq=50)
    assert (model.predict(data[40:]) == labels[40:]).mean() == 1.0
    with pytest.raises(InputError, match="no prototypes"):
        model.predict_prototypes(data[40:])


# --- the memory ------------------------------------------------------------------------------------------------------


def test_taking_out_the_neighbours_lowers_the_similarity_of_the_new_ones(fitted, segments):
    new = segments[1].data[:1]
    before = fitted.kneighbors(new)
    cases = fitted.cases_
    try:
        assert fitted.forget(ids=cases.ids[before.index[0]]) == 5
        after = fitted.kneighbors(new)
        assert not set(fitted.cases_.ids[after.index[0]]) & set(cases.ids[before.index[0]])
        assert (after.similarity <= before.similarity).all()
        assert after.similarity.mean() < before.similarity.mean()
        with pytest.raises(InputError, match="no case 'nobody'"):
            fitted.forget(ids=["nobody"])
        with pytest.raises(InputError, match="fewer than k = 5"):
            fitted.forget(groups=np.unique(fitted.cases_.groups))
    finally:
        fitted.cases_ = cases


def test_remembered_segments_become_neighbours(fitted, segments):
    new, cases = segments[1], fitted.cases_
    try:
        count = fitted.remember(new.data[:3], new.votes[:3], groups=new.groups[:3], ids=["x", "y", "z"])
        assert count == len(cases) + 3
        noisy = new.data[:1] + np.random.default_rng(0).normal(0, 0.1, (1, 19, 192)).astype(np.float32)
        assert fitted.cases_.ids[fitted.kneighbors(noisy).index[0, 0]] == "x"
        with pytest.raises(InputError, match="'x' is there more than once"):
            fitted.remember(new.data[3:4], new.votes[3:4], groups=new.groups[3:4], ids=["x"])
    finally:
        fitted.cases_ = cases


def test_audit_finds_a_copied_case_and_a_turned_label(fitted, segments):
    cases, new = fitted.cases_, segments[1]
    try:
        fitted.remember(segments[0].data[:1], [0], groups=["other"], ids=["copy"])
        found = audit_cases(fitted, resamples=50)
        pair = next(one for one in found.duplicates if "copy" in (one.first, one.second))
        assert pair.identical
        assert pair.across
        loo = found.loo
        gaps = np.abs(fitted.cases_.fraction - loo)
        assert [one.conflict for one in found.conflicts] == pytest.approx(np.sort(gaps)[::-1][:50].tolist())
        json.dumps(found.to_dict(), allow_nan=False)
        assert new.groups[0] not in cases.groups
    finally:
        fitted.cases_ = cases


# --- explanation -----------------------------------------------------------------------------------------------------


def test_both_breakdowns_of_a_neighbour_add_up_to_its_similarity(fitted, segments):
    new = segments[1]
    found = fitted.explain(new.data[2], id="P99$x", group=new.groups[2])
    exact = fitted.kneighbors(new.data[2:3])
    assert [one.id for one in found.neighbours] == fitted.cases_.ids[exact.index[0]].tolist()
    for one, s in zip(found.neighbours, exact.similarity[0], strict=True):
        assert one.similarity == pytest.approx(s, abs=1e-5)
        assert one.per_channel.sum() == pytest.approx(s, abs=1e-5)
        assert sum(one.per_statistic.values()) == pytest.approx(s, abs=1e-5)
    assert found.channel_weights.sum() == pytest.approx(1, abs=1e-5)
    assert found.vote == pytest.approx(np.mean([one.votes / one.raters for one in found.neighbours]))
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(InputError, match="one segment, got 2"):
        fitted.explain(new.data[:2])


def test_the_figure_shows_all_channels_and_neighbours(fitted, segments, tmp_path):
    found = fitted.explain(segments[1].data[0], id="a $name$ with_signs")
    figure = found.plot()
    texts = [text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title, *axes.get_yticklabels()]]
    texts += [axes.get_title(loc="left") for axes in figure.axes]
    assert any("a $name$ with_signs" in text for text in texts)
    for name in found.montage.channels:
        assert name.replace("-avg", "") in texts
    for one in found.neighbours[:4]:
        assert any(one.id in text and f"{one.votes} of {one.raters} experts" in text for text in texts)
    assert any("µV, negative up" in text for text in texts)
    figure.set_size_inches(3, 2)  # the drawing is the same, the file is quick
    assert save_figure(figure, tmp_path / "case.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match=r"\.png"):
        save_figure(figure, tmp_path / "case.pdf")


def test_layout_of_the_figure(fitted):
    montage = fitted.model_.montage
    groups = channel_groups(montage)
    assert sorted(at for _, rows in groups for at in rows) == list(range(37))
    assert [len(rows) for _, rows in groups] == [8, 3, 8, 4, 4, 4, 4, 2]
    assert len(np.unique(row_positions(montage)[0])) == 37
    assert scale([np.array([[-30.0] * 50 + [60.0]])]) in (50, 100)
    assert carriers(np.array([0.1, 0.5, 0.2, 0.2])).tolist() == [False, True, False, False]
    assert carriers(np.array([0.3, 0.3, 0.4])).sum() == 2


# --- scanning --------------------------------------------------------------------------------------------------------


def test_scan_asks_every_window_and_merges_hits(fitted):
    made = simulate_recording(12, per_minute=20, seed=4)
    found = scan_recording(fitted, made.data, made.names, 128.0, stride=0.5, threshold=0.05)
    starts = np.arange(0, 12 * 128 - 127, 64)
    by_hand = fitted.predict_proba(np.stack([made.data[:, at : at + 128] for at in starts]))[:, 1]
    assert np.allclose(found.probability, by_hand, atol=1e-6)
    assert np.allclose(found.times, starts / 128 + 0.5)
    assert len(found.events) >= 1
    assert len(found.to_annotations()) == len(found.events)


def test_the_threshold_of_quiet_recordings_is_the_least_that_keeps_the_rate():
    rng = np.random.default_rng(0)
    scans = [
        Scan((), np.arange(200) * 0.125 + 0.5, np.round(rng.random(200) ** 4, 2), 30.0, 0.5, 0.25) for _ in range(3)
    ]
    events = lambda t: sum(len(merge_hits(s.times, s.probability >= t, 0.25)) for s in scans)  # noqa: E731
    for rate in (2.0, 5.0, 12.0):
        found = quiet_threshold(scans, per_minute=rate)
        levels = np.unique(np.concatenate([s.probability for s in scans]))
        assert all(events(t) <= rate * 1.5 for t in levels[levels >= found])
        assert events(levels[np.searchsorted(levels, found) - 1]) > rate * 1.5
    with pytest.raises(InputError, match="cannot be had"):
        quiet_threshold(scans, per_minute=0.0)
    with pytest.raises(InputError, match="one scan or more"):
        quiet_threshold([])


def test_merging_and_regions(fitted):
    times = np.arange(8) * 0.5
    runs = merge_hits(times, np.array([1, 1, 0, 1, 0, 0, 0, 1], bool), 1.0)
    assert [run.tolist() for run in runs] == [[0, 1, 3], [7]]
    assert merge_hits(times, np.zeros(8, bool), 1.0) == []
    montage, weights = fitted.model_.montage, np.zeros(37)
    weights[montage.channels.index("T4-T6")] = 1.0
    assert electrode_weights(montage, weights).sum() == pytest.approx(1)
    assert region(montage, weights) == "right temporal"


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(fitted, tmp_path):
    return save_case_base(fitted, tmp_path / "base")


def test_a_loaded_case_base_predicts_the_same(fitted, saved, segments):
    again, new = load_case_base(saved), segments[1]
    assert np.array_equal(again.predict_proba(new.data), fitted.predict_proba(new.data))
    assert np.allclose(again.predict_prototypes(new.data), fitted.predict_prototypes(new.data))
    assert again.model_.fingerprint == fitted.model_.fingerprint
    assert sorted(path.name for path in saved.iterdir()) == [
        "case_base.json", "cases.safetensors", "model.safetensors",
    ]  # fmt: skip


def test_files_of_another_model_are_refused(fitted, saved, segments, tmp_path):
    other = clone(fitted).set_params(random_state=2, prototype_phase=False, calibrate=False)
    other.fit(segments[0].data, segments[0].votes, groups=segments[0].groups, ids=segments[0].ids)
    foreign = save_case_base(other, tmp_path / "other")
    shutil.copy(foreign / "cases.safetensors", saved / "cases.safetensors")
    with pytest.raises(RunMismatchError, match="another model version"):
        load_case_base(saved)


@pytest.mark.parametrize(
    ("change", "error", "part"),
    [
        ({"encoder_version": 0}, RunMismatchError, "encoder version 0"),
        ({"version": 99}, InputError, "format version 99"),
        ({"fingerprint": "0" * 64}, RunMismatchError, "made by another model"),
        ({"weights": "equal"}, RunMismatchError, "made by another model"),
        ({"format": "x"}, InputError, "does not describe a case base"),
        ({"ids": []}, InputError, "is damaged"),
        ({"network": {}}, InputError, "is damaged"),
    ],
)
def test_a_changed_description_is_refused(saved, change, error, part):
    file = saved / "case_base.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(error, match=part):
        load_case_base(saved)


def test_other_directories_are_left_alone(fitted, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(InputError, match="is no case base"):
        save_case_base(fitted, tmp_path / "mine")
    with pytest.raises(InputError, match=r"holds no case_base\.json"):
        load_case_base(tmp_path / "mine")
    with pytest.raises(NotFittedError):
        save_case_base(ProtoKNN(), tmp_path / "new")


# --- patients and bad input ------------------------------------------------------------------------------------------


def test_evaluation_refuses_known_patients(fitted, segments):
    train, new = segments
    found = fitted.evaluate(new.data, new.votes, groups=new.groups, resamples=100)
    assert found.auroc.patients == 5
    with pytest.raises(InputError, match="in the case base too"):
        fitted.evaluate(train.data[:9], train.votes[:9], groups=train.groups[:9])
    with pytest.raises(InputError, match="groups are missing"):
        fitted.evaluate(new.data, new.votes, groups=None)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"groups": None}, "groups are missing"),
        ({"groups": ["a"]}, "groups of shape"),
        ({"groups": [""] * 120}, "group of segment 0 is empty"),
        ({"votes": None}, "votes are missing"),
        ({"votes": np.zeros(120)}, "one class"),
        ({"votes": np.full(120, 8)}, "one class"),
        ({"votes": np.full(120, 0.5)}, "whole numbers"),
        ({"votes": np.full(120, 9)}, "whole numbers from 0 to raters = 8"),
        ({"votes": np.r_[np.nan, np.zeros(119)]}, "whole numbers"),
        ({"ids": ["a", "b"]}, "2 ids"),
        ({"sfreq": 256.0}, "256 Hz, the model works at 128"),
        ({"ch_names": ["a"] * 19}, "missing: Fp1"),
    ],
)
def test_bad_input_is_named(segments, change, part):
    train = segments[0]
    given = {"votes": train.votes, "groups": train.groups} | change
    with pytest.raises(InputError, match=part):
        ProtoKNN(training=TINY).fit(train.data, **given)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"weights": "none"}, "leave-one-in"),
        ({"importance": (1, 1, 1, 1)}, "four shares"),
        ({"search": "annoy"}, "exact, faiss"),
        ({"k": 0}, "k is 0"),
        ({"montage": "10-5"}, "no montage"),
    ],
)
def test_bad_settings_are_named(segments, change, part):
    train = segments[0]
    with pytest.raises(InputError, match=part):
        ProtoKNN(training=TINY, **change).fit(train.data, train.votes, groups=train.groups)


def test_volts_are_detected_when_predicting(fitted, segments):
    with pytest.raises(InputError, match="looks like volts"):
        fitted.predict(segments[1].data * 1e-6)
    broken = segments[1].data.copy()
    broken[1, 3, 7] = np.nan
    with pytest.raises(InputError, match="first: segment 1, P3"):
        fitted.predict(broken)


def test_folds_and_held_out_patients_keep_patients_whole():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 300).astype(str)
    positive = rng.random(300) < 0.4
    fold = patient_folds(groups, positive, folds=5, seed=1)
    held = held_out_patients(groups, positive, share=0.3, seed=1)
    for name in np.unique(groups):
        assert len(np.unique(fold[groups == name])) == 1
        assert len(np.unique(held[groups == name])) == 1
    one_patient = np.where(groups == "3", True, False)
    with pytest.raises(InputError, match="one class only"):
        patient_folds(groups, one_patient, folds=5)
    with pytest.raises(InputError, match="one class only"):
        held_out_patients(groups, one_patient, share=0.3)


def test_statistics_are_those_of_pairs_and_sums():
    rng = np.random.default_rng(2)
    score, truth = rng.integers(0, 6, 40) / 5, rng.integers(0, 9, 40) / 8
    positive = truth >= 0.5
    pairs = [(p > n) + 0.5 * (p == n) for p in score[positive] for n in score[~positive]]
    assert auroc(score, positive)[0] == pytest.approx(np.mean(pairs))
    expected = 1 - ((truth - score) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    assert r_squared(score, truth)[0] == pytest.approx(expected)
    times = rng.integers(0, 3, 40)  # integer weights are repeated segments
    again = np.repeat(np.arange(40), times)
    weight = times[None].astype(float)
    assert auroc(score, positive, weight)[0] == pytest.approx(auroc(score[again], positive[again])[0])
    assert r_squared(score, truth, weight)[0] == pytest.approx(r_squared(score[again], truth[again])[0])
    found = evaluate_votes(score, truth, (np.arange(40) // 4).astype(str), resamples=300)
    assert found.auroc.low <= found.auroc.value <= found.auroc.high
    with pytest.raises(InputError, match="one class"):
        evaluate_votes(score, np.zeros(40), np.arange(40).astype(str))


def test_learned_importance_stays_on_the_simplex(segments):
    train = segments[0]
    model = ProtoKNN(k=3, training=TINY, learn_importance=True, calibrate=False, random_state=0)
    model.fit(train.data[:60], train.votes[:60], groups=train.groups[:60])
    assert sum(model.importance_) == pytest.approx(1, abs=1e-5)
    assert model.importance_ != pytest.approx((0.5, 0.125, 0.0625, 0.3125), abs=1e-6)
    assert torch.isfinite(model.cases_.codes.latent).all()
