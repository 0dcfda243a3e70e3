"""The study's smallest honest pieces: it decides every claim from what it measured, with equal search budgets."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from rote.measures.unlearned_classifier import tug_of_war
from rote.runtime import threads
from rote.studies import _unlearning_digits as digits
from rote.studies import unlearning_proxies as study
from rote.studies.protocol import run_study


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(digits, "EPOCHS", 2)
    for name, value in (("MODELS", 40), ("SIZE", 10), ("ALPHAS", study.ALPHAS[3:5]), ("VANILLA", study.VANILLA[:1]),
                        ("REFINED", study.REFINED[:1]), ("STEPS", 1), ("TUNING", 2), ("JUDGING", 2), ("REPEATS", 1),
                        ("JUDGED", 2), ("SHUFFLES", 2)):  # fmt: skip
        monkeypatch.setattr(study, name, value)


def test_every_claim_is_decided_and_every_arm_is_there(small, tmp_path):
    found = run_study("unlearning-proxies", seed=3, out=tmp_path)
    assert {claim["id"] for claim in found["claims"]} == {claim.id for claim in study.CLAIMS}
    with (tmp_path / "together.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    arms = {"untouched", "neggrad+", "rum", "rum, shuffled 0", "rum, shuffled 1", "rum by confidence", "oracles"}
    assert arms <= set(rows)
    assert {rows[name]["trials"] for name in ("neggrad+", "rum", "rum, shuffled 1")} == {"1"}
    with (tmp_path / "proxies.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 7


def test_search_budgets_are_equal_and_splits_do_not_overlap():
    assert len(study.VANILLA) == len(set(study.VANILLA)) == len(set(study.REFINED)) == 60
    assert digits.TRAIN + digits.HOLDOUT + digits.TEST == 1797
    assert (study.TUNING, study.JUDGING) == (4, 6)  # different oracles: what is chosen is not judged by its choosers


def test_the_judge_compares_with_networks_that_never_saw_the_forget_set(small):
    with threads(1):
        world = digits.make_world(0)
        judge = digits.Judge(world, np.arange(5, 15), 2, seed=1)
        assert not np.isin(judge.retain, judge.forget).any()
        assert len(judge.retain) == digits.TRAIN - 10
        wanted = [tug_of_war(judge.figures(world.model).shares(), oracle.shares()) for oracle in judge.oracles]
        assert judge.tow([world.model], slice(None)) == wanted
        assert judge.tow([judge.models[0]], slice(1)) == [1.0]
    assert world.noisy.sum() == digits.NOISY
