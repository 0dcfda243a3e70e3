"""Counterfactual memorization and influence: loops over records, known effects, and honest standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rote.errors import InputError
from rote.measures.counterfactual import counterfactual_memorization, influence, token_accuracy


def design(models=24, records=15, seed=0):
    rng = np.random.default_rng(seed)
    included = np.array([rng.permutation(models) < models // 2 for _ in range(records)]).T
    return rng, included


def test_memorization_by_loops():
    rng, included = design()
    performance = rng.random(included.shape)
    result = counterfactual_memorization(performance, included)
    for j in range(included.shape[1]):
        inside, outside = performance[included[:, j], j], performance[~included[:, j], j]
        assert result.value[j] == pytest.approx(inside.mean() - outside.mean())
        assert result.se[j] == pytest.approx(math.sqrt(inside.var(ddof=1) / 12 + outside.var(ddof=1) / 12))
        assert (result.inside[j], result.outside[j]) == pytest.approx((inside.mean(), outside.mean()))
    assert (result.n_inside == 12).all()
    assert (result.n_outside == 12).all()


def test_memorized_and_generalised_records_are_told_apart():
    _, included = design(records=3)
    performance = np.stack([included[:, 0].astype(float), np.ones(24), np.zeros(24)], axis=1)
    result = counterfactual_memorization(performance, included)
    assert result.value.tolist() == [1.0, 0.0, 0.0]
    assert result.se.tolist() == [0.0, 0.0, 0.0]


def test_standard_error_covers_the_truth():
    rng, included = design(models=20, records=2000, seed=3)
    performance = 0.5 + 0.2 * included + rng.normal(0, 0.1, included.shape)
    result = counterfactual_memorization(performance, included)
    z = (result.value - 0.2) / result.se
    assert z.std() == pytest.approx(1.06, abs=0.06)  # Student's t with 18 degrees of freedom


def test_influence_by_loops_and_its_diagonal_is_memorization():
    rng, included = design()
    performance = 1e6 + rng.random(included.shape)  # a large offset shows lost digits
    result = influence(performance, included)
    for i in (0, 3, 14):
        for j in (0, 7, 14):
            inside, outside = performance[included[:, i], j], performance[~included[:, i], j]
            assert result.value[i, j] == pytest.approx(inside.mean() - outside.mean(), abs=1e-8)
            expected = math.sqrt(inside.var(ddof=1) / 12 + outside.var(ddof=1) / 12)
            assert result.se[i, j] == pytest.approx(expected, rel=1e-5)
    assert np.diag(result.value) == pytest.approx(counterfactual_memorization(performance, included).value, abs=1e-8)


def test_influence_finds_the_record_behind_a_prediction():
    rng, included = design(models=60, records=10, seed=1)
    performance = 0.3 + 0.4 * included[:, [4]] + rng.normal(0, 0.05, (60, 3))
    result = influence(performance, included)
    assert result.value.shape == (10, 3)
    assert (result.value.argmax(axis=0) == 4).all()
    assert result.value[4] == pytest.approx([0.4] * 3, abs=0.06)


def test_one_model_on_a_side_has_no_standard_error():
    result = counterfactual_memorization(np.array([[1.0], [0.25], [0.75]]), np.array([[True], [False], [False]]))
    assert result.value[0] == 0.5
    assert math.isnan(result.se[0])
    assert np.isnan(influence(np.array([[1.0], [0.0]]), np.array([[True], [False]])).se).all()


def test_a_record_without_a_counterfactual_is_named():
    included = np.array([[True, True], [False, True]])
    with pytest.raises(InputError, match="record row 1 was in the training set of 2 of 2 models"):
        counterfactual_memorization(np.zeros((2, 2)), included)
    with pytest.raises(InputError, match="non-finite entry for model 1"):
        counterfactual_memorization(np.array([[0.0], [math.nan]]), np.array([[True], [False]]))
    with pytest.raises(InputError, match="boolean"):
        influence(np.zeros((2, 1)), np.array([[0.5], [1.0]]))


def test_token_accuracy_ignores_padding():
    greedy = np.array([[True, False, True, True], [True, True, True, True]])
    predicted = np.array([[True, True, True, False], [False, True, False, False]])
    assert token_accuracy(greedy, predicted) == pytest.approx([2 / 3, 1.0])
    with pytest.raises(InputError, match="row 1"):
        token_accuracy(greedy, predicted & np.array([[True], [False]]))
