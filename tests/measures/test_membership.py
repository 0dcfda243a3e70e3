"""Membership scores against loops written from the definitions, on ragged NaN-padded matrices."""

from __future__ import annotations

import inspect
import math
import zlib
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.measures import membership as m
from rote.measures.catalog import ATTACKS, MEASURES

PROBABILITIES = np.array([0.9, 0.5, 0.05, 0.6, 0.01, 0.8, 0.3, 0.95, 0.2, 0.7])


def padded(rows, width=None):
    """Left entries may be NaN too (first token without BOS); the right is padding."""
    width = width or max(len(r) for r in rows) + 2
    out = np.full((len(rows), width), np.nan)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@st.composite
def batches(draw):
    """A float32 batch of scores as the pass writes it: lengths differ, some first tokens unpredicted, right padding."""
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    n, width = int(rng.integers(1, 6)), int(rng.integers(3, 12))
    logp, entropy, std = (np.full((n, width), np.nan, dtype=np.float32) for _ in range(3))
    ids = np.full((n, width), -1, dtype=np.int32)
    for i in range(n):
        length = int(rng.integers(2, width + 1))
        start = int(rng.integers(0, 2))
        logp[i, start:length] = np.log(rng.uniform(1e-6, 1, length - start))
        entropy[i, start:length] = rng.uniform(0, 4, length - start)
        std[i, start:length] = rng.choice([0.0, 1e-5, 1.0, 3.0], length - start)
        ids[i, :length] = rng.integers(0, 5, length)
    return logp, entropy, std, ids


def rows_of(batch):
    logp, entropy, std, ids = batch
    for i in range(len(logp)):
        keep = ~np.isnan(logp[i])
        yield *(a[i][keep].astype(float) for a in (logp, entropy, std)), ids[i], np.flatnonzero(keep)


# --- closed forms


def test_loss_and_min_k_known_values():
    logp = padded([np.log(PROBABILITIES)])
    assert m.loss(logp)[0] == pytest.approx(-1.235476, abs=5e-7)
    assert m.min_k(logp, k=0.2)[0] == pytest.approx(-3.800451, abs=5e-7)


@pytest.mark.parametrize(("token", "z"), [(0, 0.633092), (1, -1.148612), (2, -2.134419)])
def test_min_k_plus_plus_known_values(token, z):
    p = np.array([0.7, 0.2, 0.1])
    mu = np.sum(p * np.log(p))
    std = math.sqrt(np.sum(p * np.log(p) ** 2) - mu**2)
    assert (mu, std) == pytest.approx((-0.801819, 0.703126), abs=5e-7)
    got = m.standardised_logp(padded([[math.log(p[token])]]), padded([[-mu]]), padded([[std]]))
    assert got[0, 0] == pytest.approx(z, abs=5e-7)
    assert np.isnan(got[0, 1:]).all()


def test_standardised_logp_has_mean_zero_and_unit_variance_under_the_model():
    p = np.random.default_rng(0).dirichlet(np.ones(9))
    mu = np.sum(p * np.log(p))
    std = math.sqrt(np.sum(p * np.log(p) ** 2) - mu**2)
    z = m.standardised_logp(np.log(p)[:, None], np.full((9, 1), -mu), np.full((9, 1), std))[:, 0]
    assert np.sum(p * z) == pytest.approx(0, abs=1e-12)
    assert np.sum(p * z**2) == pytest.approx(1)


def test_certain_positions_do_not_explode():
    z = m.standardised_logp(np.array([[-1e-7]]), np.array([[0.0]]), np.array([[0.0]]))
    assert z[0, 0] == pytest.approx(-1e-7 / 1e-3)  # sigma is floored at sqrt(1e-6)


# --- brute-force twins


@given(batches(), st.sampled_from([0.05, 0.2, 0.35, 1.0]))
def test_one_pass_scores_by_loops(batch, k):
    logp, entropy, std, _ = batch
    for i, (lp, h, s, _, _) in enumerate(rows_of(batch)):
        keep = max(1, int(len(lp) * k))
        assert m.loss(logp)[i] == pytest.approx(np.mean(lp))
        assert m.min_k(logp, k=k)[i] == pytest.approx(np.mean(sorted(lp)[:keep]))
        z = sorted((a + b) / max(c, 1e-3) for a, b, c in zip(lp, h, s, strict=True))
        assert m.min_k_plus_plus(logp, entropy, std, k=k)[i] == pytest.approx(np.mean(z[:keep]), rel=1e-6)


@given(batches(), st.sampled_from([0.2, 0.5, 1.0]))
def test_surp_by_loops(batch, k):
    logp, entropy, _, _ = batch
    got = m.surp(logp, entropy, entropy_cap=2.0, k=k)
    for i, (lp, h, _, _, _) in enumerate(rows_of(batch)):
        chosen = [a for a, b in zip(lp, h, strict=True) if b < 2.0 and a < np.quantile(lp, k) - 1e-12]
        if not chosen:
            confident = [a for a, b in zip(lp, h, strict=True) if b < 2.0]
            chosen = [min(confident)] if confident else [lp[np.argmin(h)]]
        assert got[i] == pytest.approx(np.mean(chosen))


@given(batches())
def test_dc_pdd_by_loops(batch):
    logp, _, _, ids = batch
    counts = np.array([50, 0, 3, 7, 1])
    frequency = (counts + 1) / (61 + 5)
    got = m.dc_pdd(logp, ids, counts, cap=0.3)
    for i, (lp, _, _, row, positions) in enumerate(rows_of(batch)):
        first = [t for t in positions if row[t] not in row[:t]]
        if not first:
            first = [t for t in positions if row[t] not in [row[s] for s in positions if s < t]]
        alpha = [min(0.3, math.exp(logp[i, t]) * math.log(1 / frequency[row[t]])) for t in first]
        assert got[i] == pytest.approx(np.mean(alpha), rel=1e-5)
        assert len(lp) == len(positions)


def test_dc_pdd_discounts_common_tokens_and_repeats():
    counts = np.array([10_000, 10])
    likely = padded([[math.log(0.9)], [math.log(0.9)]])
    common, rare = m.dc_pdd(likely, np.array([[0, -1, -1], [1, -1, -1]]), counts, cap=10.0)
    assert rare > 100 * common
    once = m.dc_pdd(padded([[-1.0, -5.0]]), np.array([[1, 0, -1, -1]]), counts)
    repeated = m.dc_pdd(padded([[-1.0, -5.0, -0.01]]), np.array([[1, 0, 1, -1, -1]]), counts)
    assert repeated == pytest.approx(once)


def test_first_occurrence_at_an_unpredicted_position_is_lost():
    logp = np.array([[np.nan, -1.0, -2.0]])
    counts = np.array([5, 5, 5])
    smooth = math.log(18 / 6)
    assert m.dc_pdd(logp, np.array([[0, 0, 1]]), counts, cap=9.0)[0] == pytest.approx(math.exp(-2) * smooth)
    assert m.dc_pdd(logp, np.array([[0, 0, 0]]), counts, cap=9.0)[0] == pytest.approx(math.exp(-1) * smooth)


def test_first_occurrences():
    got = m.first_occurrences(np.array([[3, 1, 3, 1, 2], [0, 0, -1, -1, -1]]))
    assert got.tolist() == [[True, True, False, False, True], [True, False, False, False, False]]


# --- second passes


def test_ratio_and_difference_scores():
    logp, other, third = padded([[-1.0, -3.0], [-2.0]]), padded([[-4.0, -4.0, -1.0], [-5.0]]), padded([[-2.5], [-1.0]])
    assert m.lowercase(logp, other) == pytest.approx([3.0 / 2.0, 5.0 / 2.0])
    assert m.reference(logp, other) == pytest.approx([1.0, 3.0])
    assert m.recall(logp, other) == pytest.approx([1.5, 2.5])
    assert m.con_recall(logp, other, third, gamma=0.4) == pytest.approx([(-3 + 0.4 * 2.5) / -2, (-5 + 0.4) / -2])
    assert m.con_recall(logp, other, third, gamma=0.0) == pytest.approx(m.recall(logp, other))
    assert m.zlib(logp, np.array([10, 20])) == pytest.approx([-0.2, -0.1])
    neighbours = np.array([[-3.0, -5.0, np.nan], [-2.5, np.nan, np.nan]])
    assert m.neighbourhood(logp, neighbours) == pytest.approx([2.0, 0.5])
    assert m.gradient_norm(np.array([[1.0, 3.0], [0.0, 1.0]])) == pytest.approx([-2.0, -0.5])


def test_larger_means_more_member_like_for_every_attack():
    """Row 0 behaves like training data in the sense of each attack, row 1 like unseen text."""
    inputs = {
        "logp": padded([[-0.1, -0.2, -0.5, -0.1], [-2.0, -3.0, -6.0, -1.0]]),
        "entropy": padded([[1.0] * 4, [1.0] * 4]),
        "std": padded([[1.0] * 4, [1.0] * 4]),
        "token_ids": np.array([[0, 1, 2, 3, -1, -1]] * 2),
        "unigram_counts": np.array([1, 1, 1, 1]),
        "zlib_bytes": np.array([40, 40]),
        "logp_lowercase": padded([[-2.0], [-3.2]]),
        "logp_reference": padded([[-2.0], [-3.0]]),
        "neighbour_means": np.array([[-1.5], [-3.0]]),
        "logp_nonmember_prefix": padded([[-0.9], [-3.1]]),
        "logp_member_prefix": padded([[-0.2], [-2.5]]),
        "norms": np.array([[0.1, 0.2], [3.0, 4.0]]),
    }
    inputs["unigram_counts"] = np.array([1, 1, 1, 1])
    scores = m.battery(inputs)
    single = [name for name, info in ATTACKS.items() if info.module.endswith("membership")]
    assert sorted(scores) == sorted(single)
    for name, score in scores.items():
        assert score[0] > score[1] or (name == "dc_pdd" and score[0] == score[1] == 0.01), name


def test_perfect_recitation_and_impossible_tokens_stay_finite():
    logp = padded([[0.0, 0.0], [-math.inf, -1.0]])
    scores = [
        m.loss(logp), m.min_k(logp), m.recall(logp, padded([[0.0], [-1.0]])), m.lowercase(logp, logp),
        m.reference(logp, logp), m.surp(logp, np.where(np.isnan(logp), np.nan, 0.0), k=0.5),
    ]  # fmt: skip
    for score in scores:
        assert np.isfinite(score).all()
    assert scores[0][1] < -300


# --- shapes, padding, order


@settings(max_examples=30)
@given(batches())
def test_padding_and_order_do_not_matter(batch):
    logp, entropy, std, ids = batch
    counts = np.ones(5, dtype=int)

    def all_scores(lp, h, s, t):
        return np.stack([m.loss(lp), m.min_k(lp), m.min_k_plus_plus(lp, h, s), m.surp(lp, h), m.dc_pdd(lp, t, counts)])

    base = all_scores(logp, entropy, std, ids)
    assert np.isfinite(base).all()
    wide = [np.pad(a, ((0, 0), (0, 3)), constant_values=np.nan) for a in (logp, entropy, std)]
    assert all_scores(*wide, np.pad(ids, ((0, 0), (0, 3)), constant_values=-1)) == pytest.approx(base)
    assert all_scores(logp[::-1], entropy[::-1], std[::-1], ids[::-1]) == pytest.approx(base[:, ::-1])


def test_short_records_use_at_least_one_token():
    assert m.min_k(padded([[-2.0], [-1.0, -4.0]]), k=0.2).tolist() == [-2.0, -4.0]


def test_inputs_are_not_changed():
    logp = padded([[-1.0, -2.0]])
    before = logp.copy()
    m.battery({"logp": logp})
    np.testing.assert_array_equal(logp, before)


# --- errors


def test_a_record_without_a_predicted_token_is_named():
    logp = padded([[-1.0], [], [-2.0]])
    for score in (m.loss, m.min_k):
        with pytest.raises(InputError, match="row 1 has no predicted token"):
            score(logp)


def test_probabilities_in_place_of_log_probabilities_are_refused():
    with pytest.raises(InputError, match=r"row 0 holds positive values"):
        m.loss(PROBABILITIES[None])
    assert m.loss(np.array([[1e-7]]))[0] == pytest.approx(1e-7)  # rounding of a float32 log-softmax


def test_misaligned_companions_are_refused():
    logp = padded([[-1.0, -2.0]])
    with pytest.raises(InputError, match="entropy row 0 is NaN"):
        m.surp(logp, padded([[1.0]], width=4))
    with pytest.raises(InputError, match="std must have logp's shape"):
        m.min_k_plus_plus(logp, np.zeros((1, 4)), np.zeros((1, 3)))
    with pytest.raises(InputError, match="outside the 2 unigram counts"):
        m.dc_pdd(logp, np.array([[0, 2, -1, -1]]), np.array([1, 1]))
    with pytest.raises(InputError, match="2 rows for 1 records"):
        m.reference(logp, padded([[-1.0], [-1.0]]))
    with pytest.raises(InputError, match="zlib_bytes"):
        m.zlib(logp, np.array([1, 2]))
    with pytest.raises(InputError, match="norms row 1"):
        m.gradient_norm(np.array([[1.0], [math.nan]]))
    for bad in (0.0, 1.5):
        with pytest.raises(InputError, match="k is a share"):
            m.min_k(logp, k=bad)
    with pytest.raises(InputError, match="gamma"):
        m.con_recall(logp, logp, logp, gamma=2)


# --- battery, catalogue, zlib


def test_battery_runs_what_the_inputs_allow():
    logp = padded([[-1.0, -2.0]])
    assert sorted(m.battery({"logp": logp})) == ["loss", "min_k"]
    assert list(m.battery({"logp": logp}, attacks=["min_k"])) == ["min_k"]
    with pytest.raises(InputError, match="needs zlib_bytes"):
        m.battery({"logp": logp}, attacks=["zlib"])
    with pytest.raises(InputError, match="unknown attack 'mink'"):
        m.battery({"logp": logp}, attacks=["mink"])


def test_catalogue_names_the_arguments_that_the_functions_take():
    for name, info in ATTACKS.items():
        parameters = inspect.signature(getattr(import_module(info.module), name)).parameters
        required = [p.name for p in parameters.values() if p.default is p.empty]
        assert list(info.needs) == required, name
        assert info.definition
        assert info.source


def test_catalogue_of_measures_is_complete():
    expected = {
        "extraction.rate", "extraction.greedy_rate", "extraction.ceiling", "extraction.queries", "extraction.strength",
        "extraction.longest_run", "membership.auroc", "membership.tpr", "dose.loss", "dose.log_pz", "exposure.bits",
        "privacy.epsilon_lower", "memorization.counterfactual", "compression.acr", "mosaic.rho",
    }  # fmt: skip
    assert expected <= set(MEASURES)
    for name, info in MEASURES.items():
        assert info.name == name
        assert all([info.title, info.definition, info.direction, info.unit, info.source, info.informs])
        low, high = info.range
        assert low is None or high is None or low < high


def test_zlib_sizes():
    texts = ["a" * 1000, "the quick brown fox", "", "\ud800 lone", "\x00"]
    sizes = m.zlib_bytes(texts)
    assert sizes[1] == len(zlib.compress(b"the quick brown fox"))
    assert sizes[0] < 40
    assert (sizes > 0).all()
    assert (m.zlib_bits(texts) == 8 * sizes).all()
