"""LiRA against scipy's densities, RMIA bit for bit against the matrix of all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rote.errors import InputError
from rote.measures.reference_models import lira, logit, reference_probability, rmia, tune_a
from rote.measures.roc import auroc


def trainings(models=32, records=200, effect=2.0, seed=0):
    """phi = difficulty + effect if trained on the record + noise, for reference models and one target."""
    rng = np.random.default_rng(seed)
    included = rng.random((models + 1, records)) < 0.5
    phi = rng.normal(0, 3, records) + effect * included + rng.normal(0, 1, (models + 1, records))
    return phi[0], included[0], phi[1:], included[1:]


def test_logit_known_values():
    assert logit(np.log([0.5, 0.9, 0.01])) == pytest.approx([0.0, math.log(9), -math.log(99)])
    assert logit(np.array([-700.0]))[0] == pytest.approx(-700)
    assert np.isfinite(logit(np.array([0.0]))).all()
    assert logit(np.array([-1e-12]))[0] == pytest.approx(-math.log(1e-12), rel=1e-6)
    with pytest.raises(InputError):
        logit(np.array([0.5]))


def test_lira_is_the_ratio_of_fitted_normal_densities():
    phi, _, shadow, included = trainings(records=20)
    got = lira(phi, shadow, included)
    for j in range(20):
        inside, outside = shadow[included[:, j], j], shadow[~included[:, j], j]
        expected = stats.norm.logpdf(phi[j], inside.mean(), inside.std()) - stats.norm.logpdf(
            phi[j], outside.mean(), outside.std()
        )
        assert got[j] == pytest.approx(expected)


def test_offline_lira_is_the_z_score_whose_normal_cdf_is_the_papers():
    phi, _, shadow, included = trainings(records=20)
    got = lira(phi, shadow, included, mode="offline")
    for j in range(20):
        outside = shadow[~included[:, j], j]
        assert stats.norm.cdf(got[j]) == pytest.approx(stats.norm.cdf(phi[j], outside.mean(), outside.std()))
    far = lira(np.array([50.0, 60.0]), np.array([[0.0, 0.0], [1.0, 1.0]]), np.zeros((2, 2), bool), mode="offline")
    assert far[1] > far[0]  # Phi would have tied them at 1


def test_fixed_variance_pools_within_records():
    phi, _, shadow, included = trainings(records=30, models=12, seed=4)
    got = lira(phi, shadow, included, mode="offline", fixed_variance=True)
    groups = [shadow[~included[:, j], j] for j in range(30)]
    pooled = sum(((g - g.mean()) ** 2).sum() for g in groups) / sum(len(g) - 1 for g in groups)
    expected = [(phi[j] - groups[j].mean()) / math.sqrt(pooled) for j in range(30)]
    assert got == pytest.approx(expected)


def test_lira_finds_members_and_beats_the_raw_confidence():
    phi, member, shadow, included = trainings(records=600)
    for options in ({}, {"mode": "offline"}, {"fixed_variance": True}):
        score = lira(phi, shadow, included, **options)
        assert auroc(score[member], score[~member]) > auroc(phi[member], phi[~member]) + 0.15


def test_lira_names_the_record_with_too_few_models():
    shadow, included = np.zeros((3, 2)), np.array([[1, 1], [1, 1], [0, 1]], bool)
    with pytest.raises(InputError, match="record row 0 has 1 reference models without it"):
        lira(np.zeros(2), shadow, included)
    with pytest.raises(InputError, match="record row 1 has 0 reference models without it"):
        lira(np.zeros(2), shadow, included, mode="offline", fixed_variance=True)
    with pytest.raises(InputError, match="unknown LiRA mode"):
        lira(np.zeros(2), shadow, included, mode="both")


def dense_rmia(target, references, target_z, references_z, a, gamma):
    """The definition: every LR(x, z), by division, in one matrix."""
    p_x = ((1 + a) * np.exp(references).mean(axis=0) + (1 - a)) / 2
    p_z = ((1 + a) * np.exp(references_z).mean(axis=0) + (1 - a)) / 2
    ratio_x, ratio_z = np.exp(target) / p_x, np.exp(target_z) / p_z
    if gamma == 1.0:
        return (ratio_x[:, None] / ratio_z[None, :] > gamma).mean(axis=1)
    return (ratio_x[:, None] > gamma * ratio_z[None, :]).mean(axis=1)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1.0, 1.3, 0.5]))
def test_rmia_equals_the_dense_matrix_bit_for_bit(seed, a, gamma):
    rng = np.random.default_rng(seed)
    levels = np.log([0.1, 0.2, 0.3, 0.7])  # few levels: many exactly equal ratios, where strictness shows
    x, z = rng.choice(levels, 30), rng.choice(levels, 40)
    refs_x, refs_z = np.tile(rng.choice(levels, 30), (2, 1)), np.tile(rng.choice(levels, 40), (2, 1))
    assert (rmia(x, refs_x, z, refs_z, a=a, gamma=gamma) == dense_rmia(x, refs_x, z, refs_z, a, gamma)).all()
    x, z = np.log(rng.random(30)), np.log(rng.random(40))
    refs_x, refs_z = np.log(rng.random((3, 30))), np.log(rng.random((3, 40)))
    assert (rmia(x, refs_x, z, refs_z, a=a, gamma=gamma) == dense_rmia(x, refs_x, z, refs_z, a, gamma)).all()


def test_rmia_comparison_is_strict():
    same = np.full(5, -1.0)
    assert rmia(same, same[None], same, same[None]).tolist() == [0.0] * 5


def test_reference_probability_forms():
    logs = np.log(np.array([[0.2, 0.4], [0.4, 0.8]]))
    assert reference_probability(logs, a=0.3) == pytest.approx([(1.3 * 0.3 + 0.7) / 2, (1.3 * 0.6 + 0.7) / 2])
    assert reference_probability(logs, a=1.0) == pytest.approx([0.3, 0.6])
    included = np.array([[True, False], [False, True]])
    assert reference_probability(logs, included=included) == pytest.approx([0.3, 0.6])
    uneven = np.log(np.array([[0.2], [0.4], [0.6]]))
    mask = np.array([[True], [False], [False]])
    assert reference_probability(uneven, included=mask) == pytest.approx([(0.2 + 0.5) / 2])
    with pytest.raises(InputError, match="row 0 needs reference models on both sides"):
        reference_probability(logs, included=np.ones((2, 2), bool))
    with pytest.raises(InputError, match="a must lie"):
        reference_probability(logs, a=1.1)


def population(seed=0, records=400):
    rng = np.random.default_rng(seed)
    member = np.arange(records) < records // 2
    hard = rng.normal(-3, 1, records)
    target = np.minimum(hard + 0.8 * member + rng.normal(0, 0.2, records), -1e-3)
    references = np.minimum(hard + rng.normal(0, 0.2, (3, records)), -1e-3)
    hard_z = rng.normal(-3, 1, 500)
    z, refs_z = (
        np.minimum(hard_z + rng.normal(0, 0.2, 500), -1e-3),
        np.minimum(hard_z + rng.normal(0, 0.2, (3, 500)), -1e-3),
    )
    return target, references, z, refs_z, member


def test_rmia_finds_members():
    target, references, z, refs_z, member = population()
    score = rmia(target, references, z, refs_z, a=1.0)
    assert auroc(score[member], score[~member]) > 0.95
    assert auroc(target[member], target[~member]) < 0.8
    assert ((score >= 0) & (score <= 1)).all()


def test_tune_a_takes_the_best_of_the_grid():
    target, references, z, refs_z, member = population(seed=2)
    tuned = tune_a(target, references, z, refs_z, member)
    values = []
    for a in tuned.candidates:
        score = rmia(target, references, z, refs_z, a=a)
        values.append(auroc(score[member], score[~member]))
    assert tuned.candidates.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert tuned.auroc == pytest.approx(values)
    assert tuned.a == tuned.candidates[int(np.argmax(values))]


def test_rmia_at_scale_needs_no_matrix_of_pairs():
    rng = np.random.default_rng(0)
    n = 100_000
    score = rmia(np.log(rng.random(n)), np.log(rng.random((1, n))), np.log(rng.random(n)), np.log(rng.random((1, n))))
    assert score.mean() == pytest.approx(0.5, abs=0.01)


def test_rmia_refuses_bad_input():
    good = np.full(3, -1.0)
    with pytest.raises(InputError, match="log-probabilities"):
        rmia(np.full(3, 0.5), good[None], good, good[None])
    with pytest.raises(InputError, match="shape"):
        rmia(good, good[None], good, np.full((1, 4), -1.0))
    with pytest.raises(InputError, match="gamma"):
        rmia(good, good[None], good, good[None], gamma=0)
