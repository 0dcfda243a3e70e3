"""Unlearning measures against hand cases, closed forms, other libraries, and figures published with TOFU's own logs."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from rote.errors import InputError, MissingDependencyError
from rote.measures import membership, unlearning
from rote.measures.roc import auroc

# predictions against labels 1 2 3 4; ES and EM by hand
CASES = [
    ([1, 2, 3, 4], 1.0, 1.0),
    ([9, 2, 3, 4], 0.75, 0.75),
    ([9, 9, 3, 4], 0.5, 0.5),
    ([1, 2, 3, 9], 0.0, 0.75),
    ([9, 9, 9, 9], 0.0, 0.0),
    ([1, 9, 3, 4], 0.5, 0.75),
]


def test_extraction_strength_and_exact_memorization():
    labels = np.array([1, 2, 3, 4])
    greedy = np.array([[*(np.array(p) == labels), True, False] for p, _, _ in CASES])  # two padded columns
    greedy = np.concatenate([np.ones((len(CASES), 1), bool), greedy], axis=1)  # and one of the prompt
    answer = np.zeros_like(greedy)
    answer[:, 1:5] = True
    assert unlearning.extraction_strength(greedy, answer).tolist() == [es for _, es, _ in CASES]
    assert unlearning.exact_memorization(greedy, answer).tolist() == [em for _, _, em in CASES]
    floor = unlearning.extraction_strength(greedy, answer, suite_floor=True)
    assert floor.tolist() == [max(es, 0.25) for _, es, _ in CASES]
    with pytest.raises(InputError, match="row 0 has no answer"):
        unlearning.extraction_strength(greedy, np.zeros_like(answer))


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength_is_the_smallest_prompt_that_suffices(right):
    """By trying every k."""
    total = len(right)
    smallest = next(k for k in range(total + 1) if all(right[k:]))
    found = unlearning.extraction_strength(np.array([right]), np.ones((1, total), bool))
    assert found[0] == pytest.approx(1 - smallest / total)


def test_probabilities_and_truth_ratio():
    nll, wrong = np.array([0.5, 2.0]), np.array([[1.0, 3.0, np.nan], [2.0, 2.0, 2.0]])
    np.testing.assert_allclose(unlearning.probability(nll), np.exp(-nll))
    others = [math.exp(-1) + math.exp(-3), 3 * math.exp(-2)]
    expected = [math.exp(-a) / (math.exp(-a) + b) for a, b in zip(nll, others, strict=True)]
    np.testing.assert_allclose(unlearning.choice_probability(nll, wrong), expected)
    ratio = unlearning.truth_ratio(nll, wrong)
    np.testing.assert_allclose(ratio, [math.exp(0.5 - 2.0), 1.0])
    np.testing.assert_allclose(unlearning.extent_of_knowledge(ratio), 1 / (1 + ratio))
    # item "0" of the logs that TOFU's repository ships (Llama-2-7B, full model): its losses and its truth ratio
    losses = np.array([[3.3558183, 3.6901972, 3.7194076, 4.4322419, 2.9736681]])
    assert unlearning.truth_ratio(np.array([2.2287230]), losses)[0] == pytest.approx(0.2452337, abs=1e-7)
    with pytest.raises(InputError, match="item 1 has no wrong answer"):
        unlearning.truth_ratio(nll, np.array([[1.0], [np.nan]]))


def test_truth_ratio_scores():
    ratio = np.array([0.0, 0.25, 1.0, 4.0, np.inf])
    assert unlearning.truth_ratio_score(ratio, forget=True).tolist() == [0, 0.25, 1, 0.25, 0]
    assert unlearning.truth_ratio_score(ratio, forget=False).tolist() == [1, 0.75, 0, 0, 0]
    swapped = unlearning.truth_ratio_score(1 / ratio[1:4], forget=True)
    np.testing.assert_allclose(swapped, unlearning.truth_ratio_score(ratio[1:4], forget=True))


# --- forget quality --------------------------------------------------------------------------------------------------


def at_distance(gap: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of n whose distribution functions differ by exactly gap / n at most."""
    return np.arange(n) + 0.5, np.arange(n) + gap


@pytest.mark.parametrize(("gap", "p"), [(119, 1.834066e-21), (114, 1.096624e-19), (104, 2.194274e-16), (0, 1.0)])
def test_forget_quality_of_tofus_logs(gap, p):
    """D = .396667, .38, .346667 at n = m = 300: the p-values of full against retain-90 models in TOFU's own logs."""
    a, b = at_distance(gap, 300)
    if gap == 0:
        b = a
    found = unlearning.forget_quality(a + 1, b + 1)
    assert found.statistic == pytest.approx(gap / 300)
    assert found.p_value == pytest.approx(p, rel=1e-6)
    assert found.log10_p == pytest.approx(math.log10(p), abs=1e-6)
    assert found.indistinguishable == (p > 0.05)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_forget_quality_is_symmetric_and_blind_to_inversion(seed):
    rng = np.random.default_rng(seed)
    a, b = np.exp(rng.normal(size=40)), np.exp(rng.normal(0.5, 1, size=50))
    found = unlearning.forget_quality(a, b).p_value
    assert unlearning.forget_quality(b, a).p_value == pytest.approx(found)
    assert unlearning.forget_quality(1 / a, 1 / b).p_value == pytest.approx(found)
    assert found == pytest.approx(stats.ks_2samp(a, b).pvalue)


def test_log_p_outlives_p():
    n = 700  # separate samples: p = 2 / C(1400, 700), below the smallest double
    found = unlearning.forget_quality(np.arange(n) + 0.0, np.arange(n) + 2.0 * n)
    ways = special.gammaln(2 * n + 1) - 2 * special.gammaln(n + 1)
    assert found.log10_p == pytest.approx((math.log(2) - ways) / math.log(10), rel=1e-9)
    small = unlearning.forget_quality(np.arange(30.0), np.arange(30.0) + 100)
    assert small.log10_p == pytest.approx(math.log10(2 / math.comb(60, 30)), rel=1e-9)
    assert unlearning.forget_quality(np.array([0.0, np.inf]), np.array([0.0, np.inf])).p_value == 1


# --- utility ---------------------------------------------------------------------------------------------------------


def test_utility_of_tofus_logs():
    """The nine means of the full Llama-2-7B model, and the utility that its repository reports for them."""
    nine = {
        "retain": (0.989527, 0.985655, 0.474699),
        "real authors": (0.455482, 0.933, 0.596229),
        "world facts": (0.418562, 0.882479, 0.539033),
    }
    parts = {name: {str(n): np.full(4, value) for n, value in enumerate(values)} for name, values in nine.items()}
    found = unlearning.model_utility(parts)
    assert found.value == pytest.approx(0.622677, abs=1e-6)
    assert found.low == found.high == pytest.approx(found.value)


def test_harmonic_mean():
    assert unlearning.harmonic_mean([0.5, 0.25, 1.0]) == pytest.approx(stats.hmean([0.5, 0.25, 1.0]))
    assert unlearning.harmonic_mean([0.5, 0.0, 1.0]) == 0
    with pytest.raises(InputError):
        unlearning.harmonic_mean([])
    with pytest.raises(InputError):
        unlearning.harmonic_mean([-1.0])


def test_utility_interval_covers_and_a_dead_part_is_zero():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        parts = {s: {m: rng.uniform(0, 1, 60) for m in "abc"} for s in "xy"}
        found = unlearning.model_utility(parts, resamples=400, seed=seed)
        hits += found.low <= 0.5 <= found.high
    assert hits >= 50  # 95 % nominal; 50 of 60 or fewer would happen once in thousands of runs
    assert unlearning.model_utility({"x": {"a": np.zeros(5), "b": np.ones(5)}}).value == 0


# --- privacy ---------------------------------------------------------------------------------------------------------


def test_privleak():
    assert unlearning.privleak(0.4772, 0.4772) == 0
    assert unlearning.privleak(0.001, 0.4772) == pytest.approx(-99.79, abs=0.01)
    assert unlearning.privleak(1.0, 0.5) == 100
    assert unlearning.privleak(0.999, 1 - 0.4772, direction="member") == pytest.approx(
        unlearning.privleak(0.001, 0.4772)
    )
    with pytest.raises(InputError, match="is 0 here"):
        unlearning.privleak(0.5, 1.0, direction="member")
    with pytest.raises(InputError, match="direction"):
        unlearning.privleak(0.5, 0.5, direction="up")


def test_privleak_of_scores_flags_both_directions():
    rng = np.random.default_rng(0)
    unseen, oracle = rng.normal(size=300), rng.normal(size=300)
    for shift, leaks, over in ((3.0, True, False), (0.0, False, False), (-3.0, False, True)):
        found = unlearning.privleak_of_scores(rng.normal(shift, 1, 300), unseen, oracle, unseen)
        assert (found.leaks, found.over_unlearned) == (leaks, over)
        assert found.muse.low <= found.muse.value <= found.muse.high
        direct = unlearning.privleak(1 - found.auc.value, 1 - auroc(oracle, unseen))
        assert found.muse.value == pytest.approx(direct)
        assert found.member == pytest.approx(100 * (found.auc.value - found.reference) / found.reference)
    same = unlearning.privleak_of_scores(oracle, unseen, oracle, unseen)
    assert same.muse.value == same.muse.low == same.muse.high == 0  # the same records under the same model
    alone = unlearning.privleak_of_scores(oracle, unseen)
    assert not alone.has_oracle
    assert alone.reference == 0.5
    with pytest.raises(InputError, match="same records"):
        unlearning.privleak_of_scores(oracle, unseen, oracle[1:], unseen)


def test_aurocs_of_many_rows():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, (7, 9)).astype(float), rng.integers(0, 5, (7, 4)).astype(float)
    found = unlearning._aurocs(a, b)
    np.testing.assert_allclose(found, [auroc(x, y) for x, y in zip(a, b, strict=True)])


def test_the_suites_attacks_are_ours_with_the_sign_turned():
    """The suite scores non-members high: loss = nll, zlib = nll / len(zlib(text)), Min-K = -mean of the lowest k."""
    rng = np.random.default_rng(2)
    logp = -rng.exponential(size=(5, 10))
    size = rng.integers(20, 40, 5)
    np.testing.assert_allclose(-membership.loss(logp), -logp.mean(1))
    np.testing.assert_allclose(-membership.zlib(logp, size), -logp.mean(1) / size)
    np.testing.assert_allclose(-membership.min_k(logp, k=0.4), -np.sort(logp, 1)[:, :4].mean(1))
    entropy, std = rng.uniform(1, 2, (5, 10)), rng.uniform(0, 1, (5, 10))
    z = (logp + entropy) / np.sqrt(np.maximum(std**2, 1e-6))
    np.testing.assert_allclose(membership.min_k_plus_plus(logp, entropy, std, k=0.4), np.sort(z, 1)[:, :4].mean(1))


# --- text ------------------------------------------------------------------------------------------------------------

WORDS = st.lists(
    st.sampled_from(["author", "authors", "Writing", "writes", "born", "in", "Taipei,", "1991.", "ponies", "é", "-"]),
    max_size=12,
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS, st.booleans())
def test_rouge_l_equals_the_rouge_score_package(candidate, reference, stem):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    expected = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stem).score(reference, candidate)["rougeL"]
    found = unlearning.rouge_l_scores(candidate, reference, stem=stem)
    assert (found.precision, found.recall, found.f1) == pytest.approx(tuple(expected))


def test_rouge_l_by_hand(monkeypatch):
    found = unlearning.rouge_l_scores("the cat sat", "The cat, it sat down!")
    assert (found.precision, found.recall) == (1.0, 0.6)
    assert found.f1 == pytest.approx(0.75)
    assert unlearning.rouge_l_scores("", "x") == unlearning.RougeL(0, 0, 0)
    assert unlearning.rouge_l_scores("writes", "writing").f1 == 0
    monkeypatch.setitem(sys.modules, "nltk.stem.porter", None)
    with pytest.raises(MissingDependencyError, match="nltk"):
        unlearning.rouge_l_scores("a", "b", stem=True)


def test_distinct_n():
    assert unlearning.distinct_n([[1, 2, 3], [1, 2, 4]], n=2) == 0.75
    assert unlearning.distinct_n([[7, 7, 7, 7]], n=2) == pytest.approx(1 / 3)
    assert math.isnan(unlearning.distinct_n([[1], []], n=2))


# --- measures of measures --------------------------------------------------------------------------------------------


def test_meta_evaluate_and_stability():
    assert unlearning.meta_evaluate(np.array([3.0, 4.0]), np.array([1.0, 2.0])).value == 1
    assert unlearning.meta_evaluate(np.array([1.0, 2.0]), np.array([1.0, 2.0])).value == 0.5
    assert unlearning.stability(0.5, 0.25) == 1
    assert unlearning.stability(0.2, 0.8) == pytest.approx(0.25)
    assert unlearning.stability(0.0, 0.5) == 0
    with pytest.raises(InputError):
        unlearning.stability(-1, 0)
