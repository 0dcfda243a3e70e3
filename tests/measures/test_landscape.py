"""Landscape features, classifier and curves against closed forms, loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from rote.errors import InputError
from rote.measures import landscape as m


def cloud(seed: int, texts: int = 7, shells: int = 2, k: int = 9):
    rng = np.random.default_rng(seed)
    return rng.gamma(2, 1, texts), rng.gamma(2, 1, (texts, shells, k)), rng.uniform(0.01, 1, (texts, shells, k))


def test_features_equal_a_loop():
    loss, around, distance = cloud(0)
    found = m.landscape_features(loss, around, distance)
    for i in range(len(loss)):
        for s in range(around.shape[1]):
            values = around[i, s]
            delta = values - loss[i]
            slope = np.abs(delta / (distance[i, s] + m.EPSILON))
            expected = {
                "mean": values.mean(), "std": values.std(), "min": min(values), "max": max(values),
                "range": max(values) - min(values), "skew": stats.skew(values), "q10": np.quantile(values, 0.1),
                "q50": np.median(values), "q90": np.quantile(values, 0.9), "delta_mean": delta.mean(),
                "delta_std": delta.std(), "delta_abs": np.abs(delta).mean(), "delta_negative": np.mean(delta < 0),
                "delta_relative": delta.mean() / loss[i], "slope_mean": slope.mean(), "slope_std": slope.std(),
                "slope_max": slope.max(),
            }  # fmt: skip
            for name, value in expected.items():
                assert found.column(f"shell{s + 1}.{name}")[i] == pytest.approx(value, rel=1e-9, abs=1e-9), name
        d, delta = distance[i].ravel(), (around[i] - loss[i]).ravel()
        a, b = np.linalg.lstsq(np.stack([d, d**2], 1), delta, rcond=None)[0]
        assert found.column("fit_linear")[i] == pytest.approx(a, rel=1e-4)
        assert found.column("fit_quadratic")[i] == pytest.approx(b, rel=1e-4)
    proxy = (around[:, 1] - loss[:, None]).mean(1) - 2 * (around[:, 0] - loss[:, None]).mean(1)
    np.testing.assert_allclose(found.column("curvature_proxy"), proxy)


def test_a_constant_loss_is_flat_and_a_text_equal_to_its_neighbours_has_no_nan():
    loss = np.full(4, 2.5)
    found = m.landscape_features(loss, np.full((4, 3, 5), 2.5), np.zeros((4, 3, 5)))
    level = {"loss", "mean", "min", "max", "q10", "q50", "q90"}
    for name in found.names:
        expected = 2.5 if name.split(".")[-1] in level else 0.0
        np.testing.assert_array_equal(found.column(name), expected)
    assert (m.flatness(found) == 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), a=st.floats(0.1, 5), b=st.floats(-1, 3))
def test_an_affine_change_of_the_losses_scales_spread_and_slope(seed, a, b):
    loss, around, distance = cloud(seed)
    before = m.landscape_features(loss, around, distance)
    after = m.landscape_features(a * loss + b, a * around + b, distance)
    for name in ("std", "range", "delta_mean", "delta_std", "delta_abs", "slope_mean", "slope_std", "slope_max"):
        column = f"shell1.{name}"
        np.testing.assert_allclose(after.column(column), a * before.column(column), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(after.column("shell2.skew"), before.column("shell2.skew"), atol=1e-6)


def test_a_quadratic_loss_has_the_two_moments_of_the_closed_form():
    """L = L_0 + u'Hu/2 with isotropic u of variance s^2: E[Delta] = s^2 tr(H)/2, Var[Delta] = s^4 |H|_F^2 / 2."""
    rng = np.random.default_rng(3)
    root = rng.normal(size=(4, 4))
    H, s = root @ root.T, 0.3
    u = rng.normal(0, s, (2, 1, 200_000, 4))
    delta = 0.5 * np.einsum("tsku,uv,tskv->tsk", u, H, u)
    found = m.landscape_features(np.array([1.0, 1.0]), 1.0 + delta, np.ones(delta.shape))
    np.testing.assert_allclose(found.column("shell1.delta_mean"), s**2 * np.trace(H) / 2, rtol=0.02)
    np.testing.assert_allclose(found.column("shell1.delta_std") ** 2, s**4 * (H**2).sum() / 2, rtol=0.05)


def test_shape_features_leave_out_the_level():
    loss, around, distance = cloud(1)
    names = m.landscape_features(loss, around, distance).without_level().names
    assert "shell1.std" in names
    assert "shell2.slope_mean" in names
    assert not {"loss", "shell1.mean", "shell2.q50", "shell1.max"} & set(names)


def test_multiclass_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    proba = rng.dirichlet(np.ones(3), 120)
    assert m.multiclass_auroc(proba, labels) == pytest.approx(roc_auc_score(labels, proba, multi_class="ovr"))
    two = labels < 2
    half = proba[two][:, :2]
    assert m.multiclass_auroc(half, labels[two]) == pytest.approx(roc_auc_score(labels[two], half[:, 1]))


def test_partial_area_by_hand_and_against_the_curve():
    # One of four members above every other: TPR .25 at FPR 0, rising at the first other.
    members, others = np.array([9.0, 5.0, 1.0, 0.0]), np.arange(2, 8.0)
    fpr, tpr, _ = roc_curve(np.r_[np.ones(4), np.zeros(6)], np.r_[members, others], drop_intermediate=False)
    grid = np.linspace(0, 0.1, 100_001)
    assert m.partial_auroc(members, others, most_fpr=0.1) == pytest.approx(
        np.trapezoid(np.interp(grid, fpr, tpr), grid) / 0.1, abs=1e-4
    )
    assert m.partial_auroc(np.ones(3), np.zeros(300)) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    noise = m.partial_auroc(rng.normal(size=4000), rng.normal(size=4000))
    assert noise == pytest.approx(0.005, abs=0.004)


def test_the_classifier_finds_a_planted_difference_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    groups = [f"doc{i // 2}" for i in range(180)]
    noise = rng.normal(size=(180, 4))
    planted = noise + 3 * np.eye(3)[labels][:, [0, 1, 2, 2]]
    for kind in m.CLASSIFIERS:
        found = m.multiclass_auroc(m.cross_validated(planted, labels, groups, kind=kind, trees=50), labels)
        null = m.multiclass_auroc(m.cross_validated(noise, labels, groups, kind=kind, trees=50), labels)
        assert found > 0.9, kind
        assert 0.35 < null < 0.65, kind


def test_texts_of_one_document_are_never_on_both_sides():
    """Copies of one row under another label would be learnt by heart if they could be."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=(60, 3))
    matrix = np.repeat(base, 4, axis=0)
    documents = np.repeat(np.arange(60), 4)
    labels = np.repeat(rng.integers(0, 2, 60), 4)
    honest = m.multiclass_auroc(m.cross_validated(matrix, labels, documents.astype(str), trees=50), labels)
    leaking = m.multiclass_auroc(m.cross_validated(matrix, labels, None, trees=50), labels)
    assert leaking > 0.95
    assert honest < 0.75


def test_matching_pairs_equal_losses():
    loss = np.array([1.0, 2.0, 3.0, 1.01, 2.04, 9.0])
    first = np.array([True, True, True, False, False, False])
    pairs = m.matched_on_loss(loss, first, ~first)
    assert pairs.tolist() == [[0, 3], [1, 4]]


def test_errors_name_the_cause():
    loss, around, distance = cloud(0)
    with pytest.raises(InputError, match="finite"):
        m.landscape_features(loss * np.nan, around, distance)
    with pytest.raises(InputError, match="shells"):
        m.landscape_features(loss, around[:, 0], distance[:, 0])
    with pytest.raises(InputError, match="documents of each class"):
        m.cross_validated(np.zeros((6, 1)), np.array([0, 0, 0, 1, 1, 1]))
    with pytest.raises(InputError, match="no landscape feature"):
        m.landscape_features(loss, around, distance).column("std")
