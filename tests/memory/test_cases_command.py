"""`rote memory cases`: from simulated EEG to an explained detection, through real EDF files; bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rote.cli.main import main
from rote.errors import InputError
from rote.memory.cases import ProtoKNN, TrainingSettings, save_case_base
from rote.records.eeg_head import FOCI, TEN_TWENTY_NAMES, spherical_head
from rote.records.eeg_recordings import read_recording, read_segments, segments_from_events, write_edf
from rote.records.simulated_eeg import rater_votes, simulate_eeg, simulate_recording

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "eeg"
TINY = TrainingSettings(width=0.12, detector_epochs=1, batch_size=32, prototypes=1, warm_epochs=1, rounds=0)


def call(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with sim.npz (patients 0 to 14), new.npz (15 to 19), a case base and a recording."""
    root = tmp_path_factory.mktemp("cases")
    made = simulate_eeg(120, patients=20, seed=5)
    new = made.groups >= "P15"
    made.take(~new).save(root / "sim.npz")
    made.take(new).save(root / "new.npz")
    train = made.take(~new)
    estimator = ProtoKNN(k=5, training=TINY, random_state=0)
    estimator.fit(train.data, train.votes, groups=train.groups, ids=train.ids)
    save_case_base(estimator, root / "base")
    night = simulate_recording(12, per_minute=30, seed=1)
    events = [(float(onset), "IED") for onset in night.onsets]
    write_edf(root / "night.edf", night.data, [f"EEG {name}-REF" for name in night.names], night.sfreq, events=events)
    return root


def test_simulate_fit_predict_end_to_end(desk, tmp_path, capsys):
    status, out, _ = call(capsys, "memory", "cases", "simulate", "-o", tmp_path / "s.npz", "--n", 60, "--json")
    assert status == 0
    assert sum(json.loads(out)["votes"]) == 60
    status, out, _ = call(
        capsys, "memory", "cases", "fit", "--segments", desk / "sim.npz", "-o", tmp_path / "base", "--width", 0.12,
        "--epochs", 1, "--k", 5, "--no-prototype-phase", "--json",
    )  # fmt: skip
    assert status == 0
    assert json.loads(out)["cases"] + 0 > 50
    status, out, _ = call(
        capsys, "memory", "cases", "predict", tmp_path / "base", desk / "new.npz", "-o", tmp_path / "p.tsv",
        "--resamples", 100, "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert status == 0
    assert set(found["cases"]) == {"auroc", "r2", "accuracy"} == set(found["black_box"])
    rows = (tmp_path / "p.tsv").read_text().splitlines()
    assert len(rows) == found["segments"] + 1
    status, _, err = call(capsys, "memory", "cases", "predict", tmp_path / "base", desk / "sim.npz")
    assert status == 2
    assert "are in the case base too" in err


def test_explain_scan_and_audit(desk, tmp_path, capsys):
    base = desk / "base"
    status, out, _ = call(capsys, "memory", "cases", "explain", base, desk / "night.edf", "--at", 4.2, "--json")
    found = json.loads(out)
    assert status == 0
    assert len(found["neighbours"]) == 5
    assert sum(found["channel_weights"].values()) == pytest.approx(1, abs=1e-4)
    names = read_segments(desk / "new.npz").ids
    status, out, _ = call(capsys, "memory", "cases", "explain", base, desk / "new.npz", "--id", names[0])
    assert status == 0
    assert "votes, S = " in out
    status, out, _ = call(
        capsys, "memory", "cases", "scan", base, desk / "night.edf", "-o", tmp_path / "n.tsv", "--stride", 0.5,
        "--threshold", 0.05, "--json",
    )  # fmt: skip
    scanned = json.loads(out)
    assert status == 0
    header, *rows = (tmp_path / "n.tsv").read_text().splitlines()
    assert header.split("\t") == ["onset", "duration", "probability", "vote", "region", "neighbours"]
    assert len(rows) == len(scanned["events"])
    again = (
        "memory",
        "cases",
        "scan",
        base,
        desk / "night.edf",
        "--stride",
        0.5,
        "--quiet-recording",
        desk / "night.edf",
    )
    status, out, _ = call(capsys, *again, "--false-per-minute", 30, "--json")
    calm = json.loads(out)
    assert status == 0
    assert len(calm["events"]) <= 30 * calm["seconds"] / 60  # the recording itself is taken to be quiet
    assert calm["threshold"] != 0.5
    status, out, _ = call(capsys, *again[:-2], "--threshold", 0.9)
    assert "give --quiet-recording" in out
    status, out, _ = call(capsys, "memory", "cases", "audit", base, "--resamples", 50, "--top", 3, "--json")
    assert status == 0
    assert len(json.loads(out)["conflicts"]) == 3


def test_fit_from_recordings_and_events(desk, tmp_path, capsys):
    (tmp_path / "edf").mkdir()
    lines = ["file\tonset\tvotes\tsubject"]
    for patient in range(4):
        night = simulate_recording(15, per_minute=16, seed=20 + patient)
        write_edf(tmp_path / "edf" / f"p{patient}.edf", night.data, night.names, night.sfreq)
        lines += [f"p{patient}.edf\t{onset:.3f}\t8\tp{patient}" for onset in night.onsets]
        lines += [f"p{patient}.edf\t{onset:.3f}\t0\tp{patient}" for onset in (1.0, 13.9)]
    table = tmp_path / "events.tsv"
    table.write_text("\n".join(lines) + "\n")
    command = ["memory", "cases", "fit", "--recordings", tmp_path / "edf", "--events", table, "-o", tmp_path / "b"]
    status, _, err = call(capsys, *command)
    assert status == 2
    assert "no column 'patient'" in err
    status, out, err = call(
        capsys, *command, "--groups", "subject", "--width", 0.12, "--epochs", 1, "--k", 3, "--no-prototype-phase",
        "--no-calibrate", "--json",
    )  # fmt: skip
    assert status == 0, err
    assert json.loads(out)["patients"] == 4
    night = simulate_recording(15, per_minute=16, seed=20)
    made = segments_from_events(tmp_path / "edf", table, samples=192, sfreq=128.0, group="subject")
    start = round(float(lines[1].split("\t")[1]) * 128) - 96
    assert np.allclose(made.data[0], night.data[:, start : start + 192], atol=0.1)  # 16-bit steps of the file


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["explain", "BASE", "night.edf"], "--at SECONDS"),
        (["explain", "BASE", "night.edf", "--at", "11.9"], "leaves the recording"),
        (["explain", "BASE", "new.npz", "--id", "nobody"], "give the --id of one of its"),
        (["explain", "BASE", "missing.edf", "--at", "1"], "no such file"),
        (["explain", "nowhere", "night.edf", "--at", "1"], "holds no case_base.json"),
        (["scan", "BASE", "sim.npz"], "not a recording Rote reads"),
        (["scan", "BASE", "broken.edf"], "cannot be read as .edf"),
        (["scan", "BASE", "fast.edf"], "sampled at 256 Hz"),
        (["scan", "BASE", "few.edf"], "missing: "),
        (["scan", "BASE", "volts.edf"], "looks like volts"),
        (["predict", "BASE", "broken.npz"], "cannot be read as .npz"),
        (["predict", "BASE", "lacking.npz"], "holds no votes, groups"),
        (["fit", "-o", "x"], "give the segments"),
        (["fit", "-o", "sim.npz", "--segments", "sim.npz"], "exists and is no case base"),
        (["fit", "-o", "x", "--segments", "nan.npz"], "hold NaN or infinite samples"),
        (["fit", "-o", "x", "--segments", "healthy.npz"], "of one class"),
        (["fit", "-o", "x", "--segments", "sim.npz", "--events", "e.tsv"], "either --segments"),
        (["fit", "-o", "x", "--segments", "sim.npz", "--weights", "most"], "leave-one-in"),
        (["simulate", "-o", "x.npz", "--n", "1"], "at least 2 patients"),
        (["simulate", "-o", "x.csv"], "a .npz file"),
        (["simulate", "-o", "x.edf", "--seconds", "9", "--per-minute", "90"], "do not fit"),
    ],
)
def test_bad_input_is_one_line(desk, capsys, monkeypatch, arguments, part):
    monkeypatch.chdir(desk)
    if not (desk / "broken.edf").exists():
        night = simulate_recording(8, seed=2)
        Path("broken.edf").write_bytes(b"0       not an EDF")
        write_edf("fast.edf", night.data, night.names, 256.0)
        write_edf("few.edf", night.data[:5], night.names[:5], 128.0)
        write_edf("volts.edf", night.data * 1e-6, night.names, 128.0)
        Path("broken.npz").write_bytes(b"PK nothing")
        whole = dict(np.load("sim.npz"))
        holes = whole["data"].copy()
        holes[2, 5] = np.nan
        np.savez("nan.npz", **(whole | {"data": holes}))
        np.savez("healthy.npz", **(whole | {"votes": 0 * whole["votes"]}))
        np.savez("lacking.npz", data=np.zeros((2, 19, 192)), names=np.array(TEN_TWENTY_NAMES), sfreq=128.0)
    words = ["base" if word == "BASE" else word for word in arguments]
    status, _, err = call(capsys, "memory", "cases", *words)
    assert status == 2, err
    assert part in " ".join(err.split())
    assert "Traceback" not in err


def test_resampling_is_on_request(desk, capsys, monkeypatch):
    monkeypatch.chdir(desk)
    night = simulate_recording(8, seed=3)
    fast = np.repeat(night.data, 2, axis=1)
    write_edf("double.edf", fast, night.names, 256.0)
    read = read_recording("double.edf", sfreq=128.0, resample=True)
    assert read.sfreq == 128.0
    assert read.data.shape == night.data.shape
    status, _out, err = call(
        capsys, "memory", "cases", "scan", "base", "double.edf", "--resample", "--stride", 1, "--json"
    )
    assert status == 0, err


def test_mne_epochs_are_volts_and_are_converted(desk):
    mne = pytest.importorskip("mne")
    given = read_segments(desk / "new.npz")
    info = mne.create_info(list(given.names), 128.0, "eeg")
    epochs = mne.EpochsArray(given.data * 1e-6, info, verbose="error")
    from rote.memory.cases import load_case_base

    model = load_case_base(desk / "base")
    assert np.allclose(model.predict_vote(epochs), model.predict_vote(given.data))
    with pytest.raises(InputError, match="other names"):
        model.predict(epochs, ch_names=["a"])
    with pytest.raises(InputError, match="Hz; leave it out"):
        model.predict(epochs, sfreq=100.0)


# --- the simulator ---------------------------------------------------------------------------------------------------


def test_simulated_segments_are_what_they_say():
    made = simulate_eeg(300, patients=30, seed=9)
    again = simulate_eeg(300, patients=30, seed=9)
    assert np.array_equal(made.data, again.data)
    assert not np.array_equal(made.data, simulate_eeg(300, patients=30, seed=10).data)
    assert made.data.shape == (300, 19, 192)
    ied = made.kind == "ied"
    assert (made.votes[ied] >= 4).mean() > 0.85  # raters mostly see what is there,
    assert (made.votes[~ied] < 4).mean() > 0.9  # and mostly not what is not
    share = np.bincount(made.votes, minlength=9) / 300
    assert share[[0, 7, 8]].sum() > 0.6  # the U shape of real vote tables
    for name in np.unique(made.groups):
        rows = (made.groups == name) & ied
        assert len(set(made.focus[rows])) <= 1
        assert len(set(made.morphology[rows])) <= 1
    assert 5 < np.median(made.data.std(2)) < 40  # microvolts


def test_foci_are_where_their_names_say():
    head = spherical_head()
    for name, patches in FOCI.items():
        field = head.focus(name)
        peak = TEN_TWENTY_NAMES[int(np.argmax(field))]
        assert field.max() == pytest.approx(1)
        assert any(peak in electrodes for electrodes, _ in patches), f"{name} peaks at {peak}"


def test_votes_follow_the_logit():
    rng = np.random.default_rng(0)
    assert rater_votes(np.full(200, -9.0), rng).max() <= 1
    assert rater_votes(np.full(200, 9.0), rng).min() >= 7
    assert 3 < rater_votes(np.zeros(400), rng).mean() < 5


# --- real files ------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data/eeg")
def test_real_recordings_are_read_in_microvolts():
    edf = read_recording(SHARED / "mne_test.edf", sfreq=128.0, resample=True)
    assert len(edf.names) > 100
    assert edf.sfreq == 128.0
    fif = read_recording(SHARED / "yasa_resting_EO_200Hz_raw.fif")
    assert fif.sfreq == 200.0
    assert 1 < np.median(fif.data.std(1)) < 200
