"""Memorization scores, proxies, strata, and the distance to an oracle: hand values and loops beside the fast paths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rote.errors import InputError
from rote.measures import proxies as px
from rote.measures import unlearned_classifier as uc


def probabilities(rng, rows, classes=4):
    return rng.dirichlet(np.full(classes, 0.5), size=rows)


def test_feldman_scores_by_hand():
    member = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    correct = np.array([[1, 0], [1, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal(px.feldman_scores(correct, member).scores, [1.0, 0.5])


@pytest.mark.parametrize("constant", [0, 1])
def test_an_example_without_one_side_is_refused_not_zero(constant):
    member = np.array([[1, constant], [0, constant], [1, constant], [0, constant]])
    with pytest.raises(InputError, match="record row 1"):
        px.feldman_scores(np.ones((4, 2), int), member)


def test_leave_one_out_of_a_nearest_neighbour_classifier():
    """1-NN, exact leave-one-out as subsets: duplicates have mem 0, the only example of its class has mem 1."""
    x, y = np.array([0.0, 0.0, 1.0, 1.0, 9.0]), np.array([0, 0, 1, 1, 2])
    member = np.vstack([np.ones((1, 5), bool), ~np.eye(5, dtype=bool)])
    correct = np.zeros((6, 5), bool)
    for row, inside in enumerate(member):
        nearest = np.abs(x[:, None] - x[inside]).argmin(1)
        correct[row] = y[inside][nearest] == y
    np.testing.assert_array_equal(px.feldman_scores(correct, member).scores, [0, 0, 0, 0, 1])


def test_split_half_of_perfect_and_of_random_scores():
    rng = np.random.default_rng(0)
    member = rng.random((400, 60)) < 0.7
    memorized = np.linspace(0, 1, 60)
    correct = member | (rng.random((400, 60)) > memorized)
    assert px.split_half(correct, member).value > 0.9
    noise = px.split_half(rng.random((400, 60)) < 0.5, member)
    assert noise.low < 0 < noise.high or abs(noise.value) < 0.3
    member[:, 7] = np.arange(400) == 3  # inside one model only: one half has no inside
    assert px.split_half(correct, member).n == 59
    assert px.feldman_scores(correct[:3], np.array([[1] * 60, [0] * 60, [1] * 60])).split_half is None


def test_learning_events_against_a_loop_and_certainty_is_no_nan():
    rng = np.random.default_rng(1)
    p, y = probabilities(rng, 30).reshape(5, 6, 4), rng.integers(0, 4, (5, 6))
    p[0, 0] = [0, 1, 0, 0]
    found = px.learning_event(p, y)
    for e, i in np.ndindex(5, 6):
        row = p[e, i]
        assert found["confidence"][e, i] == row[y[e, i]]
        assert found["max_confidence"][e, i] == max(row)
        assert found["binary_accuracy"][e, i] == (int(np.argmax(row)) == y[e, i])
        wanted = sum(v * math.log(v) for v in row if v > 0)
        assert found["negative_entropy"][e, i] == pytest.approx(wanted, abs=1e-8)
    assert found["negative_entropy"][0, 0] == 0
    with pytest.raises(InputError, match="labels must lie"):
        px.learning_event(p, y + 4)


def test_symmetric_kl_is_symmetric_and_zero_only_for_the_same():
    rng = np.random.default_rng(2)
    p, q = probabilities(rng, 8), probabilities(rng, 8)
    np.testing.assert_array_equal(px.symmetric_kl(p, p), 0)
    np.testing.assert_allclose(px.symmetric_kl(p, q), px.symmetric_kl(q, p), rtol=1e-12)
    clamped = [np.maximum(side, 1e-10) for side in (p, q)]
    wanted = [
        0.5 * sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(u, v, strict=True))
        for u, v in zip(*clamped, strict=True)
    ]
    np.testing.assert_allclose(px.symmetric_kl(p, q), wanted, rtol=1e-9)


def test_report_has_sign_interval_p_value_and_cost():
    mem = np.linspace(0, 1, 50)
    rows = px.proxy_report(mem, {"confidence": -(mem**3), "curvature": -mem}, {"confidence": 0.5})
    assert [row.sign_as_expected for row in rows] == [True, False]
    assert rows[0].spearman.value == pytest.approx(-1)
    assert rows[0].seconds == 0.5
    noisy = np.random.default_rng(0).normal(size=50) + mem
    row = px.proxy_report(mem, {"curvature": noisy})[0]
    assert row.p_value == pytest.approx(stats.spearmanr(mem, noisy)[1])
    assert row.as_dict()["direction"] == "higher = more memorized"
    with pytest.raises(InputError, match="did you mean confidence"):
        px.proxy_report(mem, {"confidense": mem})
    with pytest.raises(InputError, match=r"curvature\[3\]"):
        px.proxy_report(mem, {"curvature": np.where(np.arange(50) == 3, np.nan, mem)})


def test_the_catalogue_knows_every_score_and_its_direction():
    from rote.measures.catalog import MEASURES

    for name, sign in px.DIRECTIONS.items():
        entry = MEASURES["memorization.classifier" if name == px.MEMORIZATION else f"proxy.{name}"]
        assert entry.direction == ("higher = more memorized" if sign > 0 else "lower = more memorized")


@pytest.mark.parametrize("values", ["ties", "distinct", "constant"])
@pytest.mark.parametrize("proxy", ["memorization", "confidence"])
def test_strata_are_disjoint_even_with_ties(values, proxy):
    rng = np.random.default_rng(3)
    scores = {"ties": rng.choice([0.0, 0.5, 1.0], 40), "distinct": rng.random(40), "constant": np.ones(40)}[values]
    found = px.extreme_strata(scores, 13, proxy=proxy)
    assert len(np.unique(np.concatenate(list(found.values())))) == 39
    ordered = px.DIRECTIONS[proxy] * scores
    assert ordered[found["low"]].max() <= ordered[found["high"]].min()
    parts = px.refine(np.arange(5, 25), scores, k=3, proxy=proxy)
    assert list(parts) == ["low", "medium", "high"]
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(5, 25))
    assert ordered[parts["low"]].max() <= ordered[parts["medium"]].min()
    assert ordered[parts["medium"]].max() <= ordered[parts["high"]].min()


def test_a_falling_proxy_swaps_the_ends():
    scores = np.arange(9.0)
    up, down = (px.extreme_strata(scores, 2, proxy=name) for name in ("holdout_retraining", "confidence"))
    assert set(up["low"]) == set(down["high"]) == {0, 1}
    assert set(up["high"]) == set(down["low"]) == {7, 8}
    assert 4 in up["medium"]
    assert 4 in down["medium"]


def test_bad_forget_sets_are_named():
    scores = np.arange(9.0)
    with pytest.raises(InputError, match="twice"):
        px.refine(np.array([1, 1]), scores)
    with pytest.raises(InputError, match="row 9"):
        px.refine(np.array([1, 2, 9]), scores)
    with pytest.raises(InputError, match="3 strata"):
        px.refine(np.array([1, 2]), scores)
    with pytest.raises(InputError, match="12 examples"):
        px.extreme_strata(scores, 4)


def test_tug_of_war_by_hand():
    one = {"forget": 0.5, "retain": 0.9, "test": 0.8}
    assert uc.tug_of_war(one, one) == 1
    other = {"forget": 0.6, "retain": 0.7, "test": 0.8}
    assert uc.tug_of_war(one, other) == pytest.approx(0.72)
    attacked = [{**side, "mia": value} for side, value in ((one, 0.3), (other, 0.8))]
    assert uc.tug_of_war_mia(*attacked) == pytest.approx(0.5 * 0.8)
    with pytest.raises(InputError, match="percentages"):
        uc.tug_of_war({**one, "retain": 90.0}, other)


def test_modified_entropy_against_a_loop():
    rng = np.random.default_rng(4)
    p, y = probabilities(rng, 20), rng.integers(0, 4, 20)
    wanted = []
    for row, label in zip(p, y, strict=True):
        value = -(1 - row[label]) * math.log(max(row[label], 1e-10))
        value -= sum(v * math.log(max(1 - v, 1e-10)) for k, v in enumerate(row) if k != label)
        wanted.append(value)
    np.testing.assert_allclose(uc.modified_entropy(p, y), wanted, rtol=1e-9)
    assert uc.modified_entropy(np.eye(4)[:1], np.array([0]))[0] == 0


def test_the_attack_is_blind_on_equal_distributions_and_sees_different_ones():
    rng = np.random.default_rng(5)
    # One attack on pure noise may lean to either side (it must predict something); over draws it has no lean.
    draws = [uc.population_mia(*(rng.random((60, 1)) for _ in range(3))) for _ in range(60)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.12)
    sure, unsure = rng.normal(3, 0.1, (100, 1)), rng.normal(-3, 0.1, (100, 1))
    assert uc.population_mia(sure, unsure, sure) == 0
    assert uc.population_mia(sure, unsure, unsure) == 1


def test_every_membership_feature_has_its_shape():
    rng = np.random.default_rng(6)
    p, y = probabilities(rng, 7), rng.integers(0, 4, 7)
    for name in uc.FEATURES:
        assert uc.membership_feature(name, p, y).shape == (7, 4 if name == "probability" else 1)
    np.testing.assert_allclose(uc.membership_feature("entropy", p, y)[:, 0], stats.entropy(p, axis=1), atol=1e-8)


def test_the_per_example_attack_sees_leakage_on_both_sides_and_not_an_oracle():
    rng = np.random.default_rng(8)

    def side(shift):
        z = rng.normal(size=(60,)) * 0.3 + base
        return {"forget": 1 / (1 + np.exp(-z[:30] - shift)), "test": 1 / (1 + np.exp(-z[30:]))}

    base = rng.normal(size=60)
    oracles = [side(0.0) for _ in range(3)]
    # the score by hand: distance from the oracles' mean logit over one pooled deviation
    model = side(2.0)
    z = np.array([[np.log(p / (1 - p)) for p in (*o["forget"], *o["test"])] for o in (model, *oracles)])
    spread = np.sqrt(((z[1:] - z[1:].mean(0)) ** 2).sum() / (2 * 60))
    scores = (z[0] - z[1:].mean(0)) / spread
    wanted = np.mean([(a > b) + 0.5 * (a == b) for a in scores[:30] for b in scores[30:]])
    assert uc.per_example_mia(model, oracles).value == pytest.approx(wanted)
    assert wanted > 0.95
    assert uc.per_example_mia(side(-2.0), oracles).value < 0.05
    assert uc.per_example_mia(side(0.0), oracles).value == pytest.approx(0.5, abs=0.2)
    with pytest.raises(InputError, match="two oracles"):
        uc.per_example_mia(model, oracles[:1])


def test_entanglement_by_hand_and_its_direction():
    a, b = np.array([[0.0], [2.0]]), np.array([[10.0], [12.0]])
    assert uc.entanglement(a, b) == pytest.approx(2 / 25)  # variances 1 + 1; means 1 and 11, each 5 from 6
    assert uc.entanglement(a, a + 1) > uc.entanglement(a, b)
    assert uc.entanglement(a, a) == math.inf


def test_intervals_over_oracles_and_their_ceiling():
    rng = np.random.default_rng(7)
    labels = {name: rng.integers(0, 4, 40) for name in uc.SETS}
    models = [{name: probabilities(rng, 40) for name in uc.SETS} for _ in range(4)]
    figures = [uc.classifier_figures(model, labels, features=["confidence"]) for model in models]
    found = uc.against_oracles(figures[0], figures[1:])
    tows = [uc.tug_of_war(figures[0].shares(), other.shares()) for other in figures[1:]]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(tows), scale=stats.sem(tows))
    assert (found.tow.value, found.tow.low, found.tow.high) == pytest.approx((np.mean(tows), max(low, 0), min(high, 1)))
    assert found.ceiling is not None
    assert found.ceiling.n == 3
    assert found.tow_mia is not None
    assert found.lira is not None
    assert 0 < found.lira_oracle < 1
    single = uc.against_oracles(figures[0], figures[:1])
    assert single.tow.value == 1
    assert single.as_dict()["tow"]["low"] is None
    assert single.ceiling is single.lira is single.lira_oracle is None
    with pytest.raises(InputError, match="no oracle"):
        uc.against_oracles(figures[0], [])
