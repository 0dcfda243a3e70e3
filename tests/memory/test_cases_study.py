"""The study's pieces at their smallest honest size: every claim is decided from what that run measured."""

from __future__ import annotations

import numpy as np
import pytest

from rote.studies import proto_eeg_knn
from rote.studies.proto_eeg_knn import ARMS, STUDY, Size, mean_by_patient, run, test_patients, turn_votes
from rote.studies.protocol import StudyContext


def test_every_claim_is_decided_and_every_table_written(tmp_path, monkeypatch):
    monkeypatch.setattr(proto_eeg_knn, "RESAMPLES", 200)
    context = StudyContext(STUDY, 3, tmp_path)
    run(
        context, Size(segments=120, patients=24, detector_epochs=1, warm_epochs=0, epochs=1, width=0.12, scan_seconds=6)
    )
    assert set(context.decided) == {claim.id for claim in STUDY.claims}
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.csv" for name in ("arms", "neighbours", "calibration", "leakage", "scan")} <= names
    assert context.decided["cases_are_used"]["holds"]  # true of any memory, however badly trained
    arms = (tmp_path / "arms.csv").read_text().splitlines()
    assert len(arms) == 1 + len(ARMS) + 2


def test_turned_votes_are_the_opposite_and_ties_stay():
    votes = np.array([0, 1, 4, 7, 8] * 20)
    turned, mask = turn_votes(votes, 8, 0.1, seed=0)
    assert mask.sum() == 10
    assert not mask[votes == 4].any()
    assert (turned[mask] == 8 - votes[mask]).all()
    assert (turned[~mask] == votes[~mask]).all()


def test_intervals_resample_patients_and_splits_keep_them_whole():
    groups = np.repeat([f"P{number:02d}" for number in range(20)], 5)
    values = np.repeat(np.arange(20) / 20, 5)  # constant within patients: 20 observations, not 100
    found = mean_by_patient(values, groups)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(20), rel=0.15)
    held = test_patients(groups, 0.25)
    assert len(set(groups[held])) == 5
    assert not set(groups[held]) & set(groups[~held])


def test_ablations_stay_on_the_simplex():
    for importance, _ in ARMS.values():
        assert sum(importance) == pytest.approx(1)
