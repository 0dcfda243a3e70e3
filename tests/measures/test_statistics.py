"""Statistics: closed forms, brute-force twins over all pairs, and coverage of the intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rote.errors import InputError
from rote.measures import statistics
from rote.measures.roc import (
    auroc,
    best_balanced_accuracy,
    delong,
    delong_paired,
    delong_stratified,
    roc_points,
    tpr_at_fpr,
)
from rote.measures.statistics import (
    Estimate,
    benjamini_hochberg,
    bootstrap,
    bootstrap_difference,
    clopper_pearson,
    ks_two_sample,
    proportion,
    spearman,
    wilson,
)

few_levels = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)  # small alphabet: many ties


# --- proportions


@pytest.mark.parametrize(
    ("x", "n", "low", "high"), [(0, 100, 0.0, 0.036217), (5, 100, 0.016432, 0.112835), (100, 100, 0.963783, 1.0)]
)
def test_clopper_pearson_known_values(x, n, low, high):
    assert clopper_pearson(x, n) == pytest.approx((low, high), abs=5e-7)


def test_clopper_pearson_ends_are_binomial_tail_probabilities():
    low, high = clopper_pearson(7, 40, confidence=0.9)
    assert stats.binom.sf(6, 40, low) == pytest.approx(0.05)
    assert stats.binom.cdf(7, 40, high) == pytest.approx(0.05)


def test_clopper_pearson_is_vectorised_and_empty_groups_know_nothing():
    low, high = clopper_pearson(np.array([0, 5, 0]), np.array([100, 100, 0]))
    assert low == pytest.approx([0, 0.016432, 0], abs=1e-6)
    assert high == pytest.approx([0.036217, 0.112835, 1], abs=1e-6)


def test_wilson_known_value_and_ends():
    assert wilson(5, 100) == pytest.approx((0.021544, 0.111750), abs=5e-7)
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_impossible_counts_are_refused():
    for x, n in ((5, 4), (-1, 4)):
        with pytest.raises(InputError, match="between 0 and trials"):
            clopper_pearson(x, n)
    with pytest.raises(InputError, match="confidence"):
        wilson(1, 2, confidence=95)


def test_estimate_as_dict_has_no_nan():
    estimate = proportion(0, 0)
    assert estimate.as_dict() == {"value": None, "low": 0.0, "high": 1.0, "n": 0, "interval": "Clopper-Pearson 95%"}
    assert proportion(5, 100, method="wilson").as_dict()["interval"] == "Wilson 95%"


# --- AUROC


@given(few_levels, few_levels)
def test_auroc_is_the_share_of_ordered_pairs(a, b):
    pairs = [(x > y) + 0.5 * (x == y) for x, y in itertools.product(a, b)]
    assert auroc(a, b) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(b, a) == pytest.approx(1 - np.mean(pairs), abs=1e-12)


def _normal_quantiles(n):
    return stats.norm.ppf((np.arange(n) + 0.5) / n)


@pytest.mark.parametrize(("d", "expected"), [(0.5, 0.638163), (1.0, 0.760250)])
def test_auroc_of_two_normals(d, expected):
    z = _normal_quantiles(20_000)
    assert auroc(z + d, z) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("d", "expected"), [(1, (0.389144, 0.092362, 0.018298)), (2, (0.763760, 0.372081, 0.137805))])
def test_tpr_at_fpr_of_two_normals(d, expected):
    members, nonmembers = _normal_quantiles(100_000) + d, _normal_quantiles(1_000_000)
    for cap, tpr in zip((0.1, 0.01, 0.001), expected, strict=True):
        # the cut lies half a non-member beside the exact quantile: 3e-5 in TPR at FPR .001
        assert tpr_at_fpr(members, nonmembers, cap).value == pytest.approx(tpr, abs=6e-5)


def _delong_by_pairs(a, b):
    psi = (np.subtract.outer(a, b) > 0) + 0.5 * (np.subtract.outer(a, b) == 0)
    return psi.mean(), psi.mean(axis=1), psi.mean(axis=0)


@given(
    st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=12),
    st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=12),
)
def test_delong_standard_error_by_all_pairs(a, b):
    value, v10, v01 = _delong_by_pairs(np.array(a), np.array(b))
    se = math.sqrt(np.var(v10, ddof=1) / len(a) + np.var(v01, ddof=1) / len(b))
    estimate = delong(a, b)
    assert estimate.value == pytest.approx(value, abs=1e-12)
    assert estimate.se == pytest.approx(se, abs=1e-9)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_delong_agrees_with_the_bootstrap():
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 1, 200), rng.normal(0, 1, 300)
    draws = [auroc(rng.choice(a, 200), rng.choice(b, 300)) for _ in range(600)]
    assert delong(a, b).se == pytest.approx(np.std(draws), rel=0.12)


def test_delong_interval_covers():
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1.5 / math.sqrt(2))
    hits = 0
    for _ in range(400):
        estimate = delong(rng.normal(1.5, 1, 30), rng.normal(0, 1, 30))
        hits += estimate.low <= truth <= estimate.high
    assert 0.92 <= hits / 400 <= 0.985


def test_complete_separation_keeps_an_honest_lower_end():
    estimate = delong(np.arange(10) + 100.0, np.arange(20.0))
    assert (estimate.value, estimate.se, estimate.high) == (1.0, 0.0, 1.0)
    assert estimate.low == pytest.approx(0.025 ** (1 / 10))  # A^k = alpha/2 with k = 10 disjoint pairs
    reverse = delong(np.arange(20.0), np.arange(10) + 100.0)
    assert (reverse.value, reverse.low) == (0.0, 0.0)
    assert reverse.high == pytest.approx(1 - 0.025 ** (1 / 10))


def test_all_scores_tied_is_chance_with_a_wide_interval():
    estimate = delong([2.0] * 15, [2.0] * 12)
    assert estimate.value == 0.5
    assert estimate.low < 0.25
    assert estimate.high > 0.75


def test_one_member_has_no_variance_but_an_interval():
    estimate = delong([1.0], [0.0, 0.5, 2.0])
    assert estimate.value == pytest.approx(2 / 3)
    assert math.isnan(estimate.se)
    assert estimate.low < 0.1


def test_delong_paired_by_all_pairs_and_sign():
    rng = np.random.default_rng(5)
    base = rng.normal(size=60)
    member = np.arange(60) < 25
    good, poor = base + 1.5 * member, base + rng.normal(size=60) + 0.5 * member
    result = delong_paired(good[member], good[~member], poor[member], poor[~member])
    va, a10, a01 = _delong_by_pairs(good[member], good[~member])
    vb, b10, b01 = _delong_by_pairs(poor[member], poor[~member])
    se = math.sqrt(np.var(a10 - b10, ddof=1) / 25 + np.var(a01 - b01, ddof=1) / 35)
    assert result.difference.value == pytest.approx(va - vb)
    assert result.difference.value > 0
    assert result.se == pytest.approx(se)
    assert result.p_value == pytest.approx(2 * stats.norm.sf(abs(va - vb) / se))
    swapped = delong_paired(poor[member], poor[~member], good[member], good[~member])
    assert swapped.difference.value == pytest.approx(-result.difference.value)


def test_delong_paired_of_equal_scores_claims_nothing():
    a, b = [3.0, 4.0, 1.0], [0.0, 2.0]
    result = delong_paired(a, b, a, b)
    assert result.difference.value == 0
    assert result.p_value is None
    assert result.difference.low < -0.3
    assert result.difference.high > 0.3


def test_delong_paired_holds_its_level():
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(300):
        shared = rng.normal(size=80) + (np.arange(80) < 40)
        x, y = shared + rng.normal(size=80), shared + rng.normal(size=80)
        p_value = delong_paired(x[:40], x[40:], y[:40], y[40:]).p_value
        rejected += p_value is not None and p_value < 0.05
    assert 0.01 <= rejected / 300 <= 0.09


def test_stratified_auroc_never_compares_across_strata():
    first, second = ([3.0, 4.0], [1.0, 2.0]), ([103.0, 104.0, 105.0], [101.0, 102.0])
    assert delong_stratified([first, second]).value == 1.0
    shifted = delong_stratified([([1.0], [0.0, 2.0]), ([9.0, 9.0], [9.0])])
    assert shifted.value == pytest.approx((2 * 0.5 + 2 * 0.5) / 4)
    assert delong_stratified([first, ([], [1.0])]).n == 4
    with pytest.raises(InputError, match="none has both"):
        delong_stratified([([], [1.0])])


def test_scores_that_are_nan_or_missing_are_refused():
    with pytest.raises(InputError, match=r"members\[1\] is nan"):
        auroc([0.0, math.nan], [1.0])
    with pytest.raises(InputError, match="0 members"):
        auroc([], [1.0])
    assert auroc([math.inf, -math.inf], [0.0]) == 0.5


# --- ROC


@given(few_levels, few_levels, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_tpr_at_fpr_is_the_best_threshold(a, b, cap):
    a, b = np.array(a), np.array(b)
    best = max(np.mean(a >= t) for t in [*a, *b, math.inf] if np.mean(b >= t) <= cap + 1e-12)
    point = tpr_at_fpr(a, b, cap)
    assert point.value == pytest.approx(best)
    assert np.mean(a >= point.threshold) == pytest.approx(best)
    assert np.mean(b >= point.threshold) <= cap + 1e-12
    assert point.fpr <= cap + 1e-12


def test_tpr_interval_and_resolution():
    point = tpr_at_fpr(np.arange(100) + 0.5, np.arange(50.0), 0.01)
    assert point.n == 100
    assert point.value == pytest.approx(0.51)  # members above the largest non-member, 49
    assert (point.low, point.high) == pytest.approx(clopper_pearson(51, 100))
    assert not point.resolved
    assert tpr_at_fpr([1.0], np.arange(100.0), 0.01).resolved


def test_cap_that_is_not_a_binary_fraction_allows_its_whole_count():
    assert tpr_at_fpr([71.0], np.arange(100.0), 0.29).fpr == pytest.approx(0.29)


def test_roc_points_are_exact_when_few_and_true_points_when_thinned():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 30_000), rng.normal(0, 1, 20_000)
    curve = roc_points(a, b)
    assert len(curve.fpr) <= 200
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    assert np.all(np.diff(curve.fpr) >= 0)
    assert np.all(np.diff(curve.tpr) >= 0)
    for fpr, tpr, threshold in list(zip(curve.fpr, curve.tpr, curve.threshold, strict=True))[::17]:
        assert fpr == pytest.approx(np.mean(b >= threshold))
        assert tpr == pytest.approx(np.mean(a >= threshold))
    inside = (curve.fpr > 0) & (curve.fpr <= 1e-2)
    assert inside.sum() > 40  # the low end is what the logarithmic axis shows
    zero = curve.fpr == 0
    assert curve.tpr[zero].max() == pytest.approx(np.mean(a > b.max()))
    small = roc_points([2.0, 1.0, 1.0], [1.0, 0.0])
    assert small.fpr.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert small.tpr.tolist() == pytest.approx([0.0, 1 / 3, 1.0, 1.0])


def test_area_under_the_full_roc_is_the_auroc():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 8, 60).astype(float), rng.integers(-2, 6, 50).astype(float)
    curve = roc_points(a, b)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(auroc(a, b))


@given(few_levels, few_levels)
def test_best_balanced_accuracy_over_all_thresholds(a, b):
    a, b = np.array(a), np.array(b)
    best = max((np.mean(a >= t) + np.mean(b < t)) / 2 for t in [*a, *b, math.inf])
    value, threshold = best_balanced_accuracy(a, b)
    assert value == pytest.approx(best)
    assert (np.mean(a >= threshold) + np.mean(b < threshold)) / 2 == pytest.approx(best)


# --- bootstrap


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_matches_scipy(method):
    values = np.random.default_rng(2).exponential(size=80)
    ours = bootstrap(values, method=method, resamples=20_000, seed=4)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa" if method == "bca" else method, rng=1
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)
    assert ours.value == pytest.approx(values.mean())


def test_bca_moves_the_interval_towards_the_long_tail():
    values = np.random.default_rng(2).exponential(size=40)
    bca, percentile = (bootstrap(values, method=m, resamples=20_000) for m in ("bca", "percentile"))
    assert bca.low > percentile.low
    assert bca.high > percentile.high


def test_bootstrap_depends_on_the_seed_and_never_on_the_order():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap(values, seed=1) == bootstrap(values[::-1], seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)
    other = values + np.random.default_rng(9).normal(size=50)
    order = np.random.default_rng(1).permutation(50)
    assert bootstrap_difference(values, other) == bootstrap_difference(values[order], other[order])


def test_bootstrap_of_degenerate_samples():
    constant = bootstrap([0.1] * 30)
    assert (constant.value, constant.low, constant.high) == pytest.approx((0.1, 0.1, 0.1))
    single = bootstrap([3.0])
    assert single.value == 3.0
    assert math.isnan(single.low)
    with pytest.raises(InputError, match="at least one"):
        bootstrap([])
    with pytest.raises(InputError, match=r"values\[1\]"):
        bootstrap([1.0, math.nan])


def test_bootstrap_of_a_median_brackets_the_order_statistics():
    values = np.arange(101.0)
    estimate = bootstrap(values, statistic=np.median, method="percentile")
    assert estimate.value == 50
    low, high = stats.binom.ppf([0.025, 0.975], 101, 0.5)  # ranks of the exact median interval
    assert estimate.low == pytest.approx(low, abs=2.5)
    assert estimate.high == pytest.approx(high, abs=2.5)


def test_large_samples_use_the_grouped_jackknife_and_agree_with_theory():
    values = np.random.default_rng(0).normal(size=3000)
    estimate = bootstrap(values, resamples=2000)
    half = 1.959964 * values.std() / math.sqrt(3000)
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.08)


def test_paired_difference_is_after_minus_before_and_uses_the_pairing():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 10, 200)
    after = before - 1 + rng.normal(0, 0.1, 200)
    estimate = bootstrap_difference(after, before)
    assert estimate.value == pytest.approx(np.mean(after - before))
    assert estimate.high < -0.9
    assert estimate.high - estimate.low < 0.1
    with pytest.raises(InputError, match="equal lengths"):
        bootstrap_difference([1.0], [1.0, 2.0])


# --- association and comparison


def test_spearman_matches_scipy_with_ties():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 60)
    y = x + rng.integers(0, 5, 60)
    estimate = spearman(x, y)
    assert estimate.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert estimate.low < estimate.value < estimate.high
    assert spearman(x, -y).value == pytest.approx(-estimate.value)
    assert spearman(x, -y).high == pytest.approx(-estimate.low)


def test_spearman_interval_covers():
    rng = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.6 / 2)  # bivariate normal with correlation .6
    hits = 0
    for _ in range(400):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 50).T
        estimate = spearman(x, y)
        hits += estimate.low <= truth <= estimate.high
    assert 0.92 <= hits / 400 <= 0.98


def test_spearman_at_its_ends():
    perfect = spearman(np.arange(10), np.exp(np.arange(10)))
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert 0.8 < perfect.low < 1.0
    assert spearman(np.arange(10), -np.arange(10)).low == -1.0
    assert math.isnan(spearman([1, 1, 1, 1], [1, 2, 3, 4]).value)
    assert math.isnan(spearman([1, 2, 3], [1, 2, 3]).low)


def test_ks_known_values():
    ten = np.arange(1, 11) / 10
    result = ks_two_sample(ten, ten + 0.25)
    assert result.statistic == pytest.approx(0.3)
    assert result.p_value == pytest.approx(0.786930, abs=1e-6)
    doubled = np.repeat(ten, 2)
    assert ks_two_sample(doubled, doubled + 0.25).p_value == pytest.approx(0.335591, abs=1e-6)


def test_benjamini_hochberg_by_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.9])
    ranked = sorted(p)
    expected = [min(1, min(5 * ranked[j] / (j + 1) for j in range(5) if ranked[j] >= value)) for value in p]
    assert benjamini_hochberg(p) == pytest.approx(expected)
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))


def test_ranking_names_are_reachable_from_statistics():
    assert statistics.auroc is auroc
    assert isinstance(statistics.delong([1.0, 2.0], [0.0, 1.5]), Estimate)
    with pytest.raises(AttributeError):
        statistics.no_such_name  # noqa: B018


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(1, 40))
def test_binomial_intervals_contain_the_estimate_and_shrink(x, n):
    x = min(x, n)
    for method in ("clopper-pearson", "wilson"):
        estimate = proportion(x, n, method=method)
        assert estimate.low <= x / n <= estimate.high
        wider = proportion(x, n, method=method, confidence=0.99)
        assert wider.low <= estimate.low <= estimate.high <= wider.high
