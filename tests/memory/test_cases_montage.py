"""Montage, units, artefact rule and augmentations of case-based EEG, each against a plain re-computation."""

from __future__ import annotations

import numpy as np
import pytest

from rote.errors import InputError
from rote.memory.cases.montage import Montage, canonical, make_montage, ten_twenty
from rote.memory.cases.preprocessing import (
    SignalSettings,
    augment,
    centre_crop,
    check_segments,
    prepare,
    zero_artifacts,
)

M = ten_twenty()


@pytest.fixture
def segments():
    return np.random.default_rng(0).normal(0, 20, (5, 19, 192)).astype(np.float32)


def test_there_are_19_average_and_18_bipolar_channels():
    assert len(M.channels) == 37
    assert len(M.pairs) == 18
    assert M.channels[0] == "Fp1-avg"
    assert M.channels[19] == "Fp1-F7"
    assert M.channels[36] == "Cz-Pz"


def test_average_rows_sum_to_zero_and_bipolar_rows_are_differences(segments):
    made = M.apply(segments.astype(np.float64))
    assert np.allclose(made[:, :19].sum(1), 0, atol=1e-9)
    for row, (a, b) in enumerate(M.pairs):
        difference = segments[:, M.electrodes.index(a)] - segments[:, M.electrodes.index(b)].astype(np.float64)
        assert np.allclose(made[:, 19 + row], difference, atol=1e-9)
    for row in range(19):
        assert np.allclose(made[:, row], segments[:, row] - segments.astype(np.float64).mean(1), atol=1e-9)


def test_a_shift_common_to_all_electrodes_changes_nothing(segments):
    x = segments.astype(np.float64)
    drift = np.random.default_rng(1).normal(0, 500, (5, 1, 192))  # any common signal, not only a constant
    assert np.allclose(M.apply(x + drift), M.apply(x), atol=1e-9)
    assert np.allclose(M.matrix.sum(1), 0, atol=1e-12)


def test_mirror_exchanges_sides_twice_is_nothing(segments):
    order, channels = M.mirror(), M.mirror_channels()
    assert [M.electrodes[order[M.electrodes.index(name)]] for name in ("Fp1", "T4", "Cz")] == ["Fp2", "T3", "Cz"]
    assert (order[order] == np.arange(19)).all()
    assert (channels[channels] == np.arange(37)).all()
    assert np.allclose(M.apply(segments[:, order]), M.apply(segments)[:, channels], atol=1e-3)


def test_names_of_files_are_understood():
    assert [canonical(name) for name in ("EEG FP1-REF", "Fp1.", "T7", "eeg P8-LE", "O2-A1")] == [
        "fp1", "fp1", "t3", "t6", "o2",
    ]  # fmt: skip
    names = ["EKG", *[f"EEG {name.upper()}-REF" for name in reversed(M.electrodes)]]
    assert [names[at] for at in M.order(names)] == [f"EEG {name.upper()}-REF" for name in M.electrodes]


@pytest.mark.parametrize(
    ("names", "part"),
    [(list(M.electrodes[1:]), "missing: Fp1"), ([*M.electrodes, "EEG Cz"], "more than one channel is called Cz")],
)
def test_a_montage_that_does_not_fit_is_refused(names, part):
    with pytest.raises(InputError, match=part):
        M.order(names)


def test_any_multichannel_signal_has_a_montage(segments):
    mine = make_montage("average", ["a", "b", "c"])
    assert mine.channels == ("a-avg", "b-avg", "c-avg")
    assert mine.mirror_channels() is not None
    assert np.allclose(mine.apply(segments[:, :3]).sum(1), 0, atol=1e-3)
    assert Montage("pairs", ("x", "y"), (("x", "y"),), average=False).matrix.tolist() == [[1, -1]]
    for call in (lambda: make_montage("10-10"), lambda: make_montage("average"), lambda: Montage("m", ("a", "a"))):
        with pytest.raises(InputError):
            call()


def test_channels_outside_20_to_2000_uv_become_zero():
    t = np.linspace(0, 2 * np.pi, 128)
    channels = (np.array([9.9, 10.2, 900, 1100])[None, :, None] * np.sin(t)).astype(np.float32)
    made = zero_artifacts(channels, 20, 2000)
    assert (made[0, [0, 3]] == 0).all()
    assert np.array_equal(made[0, [1, 2]], channels[0, [1, 2]])


def test_centre_crop_and_its_shift():
    x = np.arange(192)[None, None]
    assert centre_crop(x, 128)[0, 0, 0] == 32
    assert centre_crop(x, 128, shift=2)[0, 0, 0] == 34
    assert centre_crop(x, 192, shift=5)[0, 0, 0] == 0


def test_every_augmentation_is_one_of_the_twelve(segments):
    signal = SignalSettings(zero_artifacts=False)
    for seed in range(4):
        made = augment(segments, M, signal, np.random.default_rng(seed))
        for row in range(5):
            plain = [
                prepare(x, M, signal, shift=shift)[0]
                for shift in (0, 2, -2)
                for x in (segments[row : row + 1], segments[row : row + 1][:, M.mirror()])
            ]
            nearest = min(np.abs(made.channels[row] - each).max() for each in plain)
            gaps = [np.abs(made.channels[row] - each).std() / each.std() for each in plain]
            assert nearest < 1e-3 or min(gaps) < 0.15  # exactly one of six, or jittered by 10 %


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda x: x * 1e-6, "looks like volts. Multiply by 1e6"),
        (lambda x: x * 1e-3, "looks like millivolts"),
        (lambda x: x * 1e3, "nanovolts"),
        (lambda x: x * 0, "constant"),
        (lambda x: np.where(np.arange(19)[:, None] == 4, np.nan, x), "NaN.*segment 0, F7"),
        (lambda x: x[:, :18], "has 19 electrodes, the data have 18"),
        (lambda x: x[:, :, :100], "100 samples, the model needs 128"),
        (lambda x: x[0], "expected \\(segments, electrodes, samples\\)"),
        (lambda x: x[:0], "there are none"),
    ],
)
def test_bad_segments_are_named(segments, change, part):
    with pytest.raises(InputError, match=part):
        check_segments(change(segments), M, SignalSettings())


def test_another_sampling_rate_is_refused(segments):
    with pytest.raises(InputError, match="200 Hz, the model works at 128 Hz"):
        check_segments(segments, M, SignalSettings(), sfreq=200.0)
    for broken in ({"sfreq": 0}, {"crop": 100}, {"low": 30, "high": 20}):
        with pytest.raises(InputError):
            SignalSettings(**broken)
