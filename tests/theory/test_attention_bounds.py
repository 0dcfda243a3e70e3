"""Bounds as calculators against hand arithmetic and brute force; codes; what training finds beside the bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.theory.attention import (
    AttentionWeights,
    Run,
    accuracy_from_associations,
    associations_from_accuracy,
    attention_plan,
    build_attention_memory,
    capacity,
    circle_code,
    circle_kl,
    circle_margin,
    code_margin,
    coherence,
    corollary2_accuracy,
    floored,
    heads_for,
    kim_rate,
    kl_by_context,
    line_before_saturation,
    log_log_exponent,
    logits,
    lookup_encoder,
    lookup_task,
    mahdavi_capacity,
    mahdavi_heads,
    measure_attention,
    parameter_count,
    rank_limit_at_best,
    rank_limit_of,
    scaling_rows,
    sequence_encoder_floor,
    slope_figure,
    smallest_useful_d,
    spread_code,
    t_epsilon,
    theorem1_bound,
    theorem1_constant,
    theorem2,
    train_runs,
    zero_floor_dimension,
)
from rote.theory.attention.bounds import attention_as_mlp_rate, linear_memory_capacity, relu_mlp_neurons
from rote.theory.attention.codes import circle_scale_for
from rote.theory.attention.features import draw_features, spectrum
from rote.theory.attention.lookup_bound import negative_entropy

# --- capacity and parameters -----------------------------------------------------------------------------------------


def test_corollary_1_takes_364_parameters():
    heads = heads_for(42, d=2, d_head=2)
    assert heads == 20
    assert capacity(d=2, d_head=2, heads=20, context=2) == 42
    assert parameter_count(vocab=10, context=2, d=2, d_head=2, heads=20) == 364 == 2 * (2 + 20 + 4 * (42 - 2))


def test_parameter_count_is_what_a_built_memory_stores():
    contexts = np.array(list(product(range(6), repeat=2)))[:14]
    memory = build_attention_memory(contexts, contexts[:, 0], d=4, d_head=2, heads=5, vocab=6, seed=0)
    assert memory.weights.parameters == parameter_count(vocab=6, context=2, d=4, d_head=2, heads=5, rank_one=True)


@given(st.integers(1, 400), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_heads_for_is_the_fewest(associations, d, d_head):
    if d_head > d:
        with pytest.raises(InputError, match="cannot exceed d"):
            heads_for(associations, d=d, d_head=d_head)
        return
    found = heads_for(associations, d=d, d_head=d_head)
    brute = next(heads for heads in range(1000) if heads * d_head + d >= associations)
    assert found == brute


def test_single_token_capacity_is_d():
    assert capacity(d=4, d_head=4, heads=100, context=1) == 4
    assert capacity(d=4, d_head=4, heads=100, context=2) == 404
    assert zero_floor_dimension(6) == 5


# --- the rank that contexts allow -------------------------------------------------------------------------------------


def affine_span_by_rank(contexts) -> int:
    """g by linear algebra: the rank of the rows (one-hot token, one-hot position) that occur."""
    vocab, length = contexts.max() + 1, contexts.shape[1]
    rows = {(int(token), s) for row in contexts for s, token in enumerate(row)}
    return int(np.linalg.matrix_rank([[*np.eye(vocab)[token], *np.eye(length)[s]] for token, s in rows]))


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_measured_rank_never_exceeds_the_structural_limit(seed):
    rng = np.random.default_rng(seed)
    vocab, length, d = int(rng.integers(2, 7)), int(rng.integers(1, 4)), int(rng.integers(1, 8))
    d_head, heads = int(rng.integers(1, d + 1)), int(rng.integers(0, 5))
    every = np.array(list(product(range(vocab), repeat=length)))
    contexts = every[every[:, -1] < rng.integers(1, vocab + 1)]
    contexts = contexts[rng.permutation(len(contexts))[: int(rng.integers(1, heads * d_head + d + 4))]]
    limit = rank_limit_of(contexts, d=d, d_head=d_head)
    assert limit.span == affine_span_by_rank(contexts)
    assert limit.last_tokens == len({int(row[-1]) for row in contexts})
    draw = draw_features(
        contexts, vocab=vocab, d=d, d_head=d_head, heads=heads, candidates=2, scales=(1.0, 30.0), rng=rng
    )
    assert spectrum(draw.features(contexts)).rank <= min(len(contexts), limit.with_heads(heads))


@pytest.mark.parametrize(("vocab", "length", "last", "d", "d_head", "heads", "rank"), [
    (6, 3, 6, 4, 2, 3, 10),  # enough last tokens: H d_h + d
    (6, 3, 2, 4, 2, 3, 8),  # two last tokens: 2 + H d_h
    (3, 3, 3, 5, 5, 3, 15),  # d = N + S - 1: a head's constant is not new
    (3, 2, 3, 6, 6, 2, 9),  # d > N + S - 1: no head spans more than N + S - 2 new directions; 9 contexts
    (6, 1, 6, 4, 4, 3, 4),  # a single token
])  # fmt: skip
def test_the_limit_is_reached(vocab, length, last, d, d_head, heads, rank):
    every = np.array(list(product(range(vocab), repeat=length)))
    contexts = every[every[:, -1] < last]
    assert min(len(contexts), rank_limit_of(contexts, d=d, d_head=d_head).with_heads(heads)) == rank
    labels = np.random.default_rng(0).integers(0, vocab, len(contexts))
    memory = build_attention_memory(
        contexts, labels, d=d, d_head=d_head, heads=heads, vocab=vocab, seed=0, excess="least_squares"
    )
    assert memory.rank == rank


def test_no_heads_tell_contexts_with_one_last_token_apart():
    """T_0 = 2 <= d = 2 as Theorem 1 is printed, but the output depends on the last token alone."""
    contexts, labels = np.array([[0, 1], [2, 1]]), np.array([0, 1])
    assert capacity(d=2, d_head=2, heads=0, context=2) == 2
    with pytest.raises(InputError, match=r"exceed the rank 1 .* use 1 heads"):
        build_attention_memory(contexts, labels, d=2, d_head=2, heads=0, vocab=3, seed=0)
    assert build_attention_memory(contexts, labels, d=2, d_head=2, heads=1, vocab=3, seed=0).accuracy == 1.0


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_any_contexts_within_the_limit_are_stored(seed):
    rng = np.random.default_rng(seed)
    vocab, length, d = int(rng.integers(4, 8)), int(rng.integers(2, 4)), int(rng.integers(2, 5))
    d_head = int(rng.integers(1, d + 1))
    every = np.array(list(product(range(vocab), repeat=length)))
    contexts = every[rng.permutation(len(every))[: int(rng.integers(1, 25))]]
    labels = rng.integers(0, vocab, len(contexts))
    heads = rank_limit_of(contexts, d=d, d_head=d_head).heads_for(len(contexts))
    memory = build_attention_memory(contexts, labels, d=d, d_head=d_head, heads=heads + 1, vocab=vocab, seed=seed)
    assert (memory.recall(contexts) == labels).all()


def test_the_likeliest_contexts_that_fit_are_kept():
    """Without heads each last token holds one context: its likeliest."""
    contexts = np.array([[0, 1], [2, 1], [0, 2], [1, 2], [1, 0]])
    memory = build_attention_memory(
        contexts, np.array([0, 1, 2, 0, 1]), d=3, d_head=1, heads=0, vocab=3, seed=0, excess="most_likely",
        prior=np.array([0.3, 0.25, 0.1, 0.2, 0.15]),
    )  # fmt: skip
    assert memory.kept.tolist() == [True, False, False, True, True]
    assert memory.remainder.left_out == 2
    assert memory.remainder.bound > memory.remainder.kl


def test_theorem_1_is_not_quoted_where_the_skip_was_filled_up():
    contexts = np.array(list(product(range(6), [0, 1])))
    memory = build_attention_memory(
        contexts, contexts[:, 0], d=4, d_head=2, heads=2, vocab=6, seed=0, excess="most_likely"
    )
    assert memory.kept.sum() == 6  # two last tokens and H d_h = 4
    assert memory.remainder.bound is None
    assert memory.remainder.constant is None


def test_plan_for_a_small_vocabulary_says_why_it_needs_more_heads():
    plan = attention_plan(n_facts=19, vocab=3, context=3, d=5, d_head=5)
    assert (plan.heads_by_formula, plan.heads_needed) == (3, 4)
    assert "rank is at most 3 + H * 4" in plan.caveat
    assert rank_limit_at_best(vocab=3, context=3, d=5, d_head=5).with_heads(4) == plan.capacity == 19
    contexts = np.array(list(product(range(6), [0, 1])))
    assert attention_plan(n_facts=12, vocab=6, context=2, d=4, d_head=4, contexts=contexts).heads_needed == 3
    assert attention_plan(n_facts=12, vocab=6, context=2, d=4, d_head=4).caveat is None


# --- T_eps -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.5, 0.9]))
@settings(max_examples=80, deadline=None)
def test_t_epsilon_against_all_subsets(counts, eps):
    if sum(counts) == 0:
        with pytest.raises(InputError, match="not all 0"):
            t_epsilon(counts, eps)
        return
    total, wanted = sum(counts), 1 - Fraction(str(eps))
    if eps == 0:
        expected = sum(count > 0 for count in counts)
    else:
        expected = next(
            size
            for size in range(1, len(counts) + 1)
            if any(Fraction(sum(chosen), total) > wanted for chosen in combinations(counts, size))
        )
    assert t_epsilon(counts, eps) == expected


def test_t_epsilon_is_strict_and_exact():
    assert t_epsilon([0.1] * 10, 0.1) == 10  # nine of ten make exactly 0.9, which is not more than 0.9
    assert t_epsilon([0.1] * 10, 0.11) == 9
    assert t_epsilon([0.5, 0.5, 0.0], 0) == 2
    for bad in ([], [-1.0, 2.0], [float("inf")]):
        with pytest.raises(InputError, match="finite weights"):
            t_epsilon(bad, 0.1)
    with pytest.raises(InputError, match="eps must be"):
        t_epsilon([1.0], 1.0)


# --- Theorem 1 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "count"), [(4, 9), (7, 8), (5, 5)])
def test_theorem_1_constant_is_the_papers_matrix(rank, count):
    """C from W_V A' = U I_Sigma P_1 V written out with the full singular value decomposition."""
    rng = np.random.default_rng(rank)
    features = rng.standard_normal((count, rank))
    kept = np.zeros(count, dtype=bool)
    kept[:rank] = True
    _, _, v = np.linalg.svd(features.T, full_matrices=True)
    p1, p2 = np.eye(count)[:rank], np.eye(count)[rank:]
    inner = np.linalg.inv(p1 @ v @ p1.T)
    spill = np.linalg.norm(inner @ p1 @ v @ p2.T, 2) if count > rank else 0.0
    found = theorem1_constant(features, kept)
    assert found.published == pytest.approx(2 * math.sqrt(1 + spill**2))
    if count > rank:
        assert found.preprint == pytest.approx(math.sqrt(1 + np.linalg.norm(inner, 2) ** 2))
    else:
        assert found.preprint is None


def test_theorem_1_constant_needs_independent_features():
    with pytest.raises(InputError, match="linearly independent"):
        theorem1_constant(np.ones((3, 2)), np.array([True, True, False]))
    assert theorem1_bound(floor=0.1, constant=2.0, eps=0.5, logit_norm=3.0) == pytest.approx(3.1)


# --- accuracy, other people's bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "expected"), [(1, 0.136), (5, 0.208), (9, 0.28), (13, 0.352), (17, 0.424)])
def test_corollary_2_at_the_papers_smallest_experiment(heads, expected):
    found = corollary2_accuracy(vocab=10, contexts=100, d=2, d_head=2, heads=heads)
    assert found == pytest.approx(expected, abs=1e-12)


def test_phi_and_its_inverse():
    assert accuracy_from_associations(0, vocab=4, contexts=16) == 0.25
    assert accuracy_from_associations(16, vocab=4, contexts=16) == 1
    assert accuracy_from_associations(99, vocab=4, contexts=16) == 1  # clipped
    for stored in (0.0, 3.5, 16.0):
        accuracy = accuracy_from_associations(stored, vocab=4, contexts=16)
        assert associations_from_accuracy(accuracy, vocab=4, contexts=16) == pytest.approx(stored)


def test_mahdavi_bound():
    assert mahdavi_capacity(heads=24, d_head=10, d=10, context=2) == 217
    assert mahdavi_capacity(heads=24, d_head=10, d=10, context=2, query_rank=3) == 49
    assert mahdavi_capacity(heads=15, d_head=2, d=2, context=8) is None  # S > d
    assert mahdavi_heads(210, d_head=10, d=10, context=2) == 24
    assert mahdavi_heads(5, d_head=1, d=4, context=2) is None
    for wanted in range(1, 60):
        heads = mahdavi_heads(wanted, d_head=4, d=6, context=3)
        brute = next(h for h in range(1, 100) if h * 3 + 1 >= wanted)
        assert heads == brute


def test_rates_are_labelled_as_rates():
    rate = kim_rate(associations=100, vocab=10, context=2)
    assert rate.value == pytest.approx(12 + math.sqrt(100 * math.log(100)))
    assert "rate only" in rate.label
    assert attention_as_mlp_rate(associations=100, vocab=10, context=2, d=3).value == 5 * 112
    assert relu_mlp_neurons(7) == linear_memory_capacity(7) == 7


# --- Theorem 2 -------------------------------------------------------------------------------------------------------


def noisy_lookup(vocab: int, noise: float, *, seed: int = 0):
    rng = np.random.default_rng(seed)
    lookup = rng.integers(0, vocab, 12)
    share = noise * rng.random((12, 1))
    return floored((1 - share) * np.eye(vocab)[lookup] + share * rng.dirichlet(np.ones(vocab), 12), 1e-3), lookup


def test_theorem_2_is_vacuous_until_d_exceeds_128_log():
    pi, lookup = noisy_lookup(6, 0.3)
    least = smallest_useful_d(6)
    assert least == math.floor(128 * math.log(7)) + 1
    assert coherence(least, 6) < 0.5 <= coherence(least - 1, 6)
    assert theorem2(pi, lookup, d=least - 1).label.startswith("vacuous")
    assert theorem2(pi, lookup, d=least - 1).bound is None
    assert theorem2(pi, lookup, d=least).bound > 0


def test_theorem_2_by_hand():
    """One context, N = 3, C given: every term written out."""
    pi, c = np.array([[0.7, 0.2, 0.1]]), 0.1
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    distance = 0.5 * (abs(2 / 3 - 1 / 2) + abs(1 / 3 - 1 / 2))
    growth = math.log(2 / (math.exp(entropy) - 1))
    found = theorem2(pi, np.array([0]), measured_coherence=c)
    assert found.bound == pytest.approx(0.3 * growth * (1 + 2 * c + c * distance) / (1 - 2 * c))
    assert found.simple == pytest.approx(0.3 * growth * (1 + 4 * c) / (1 - 2 * c))
    assert found.derived == pytest.approx(0.3 * growth * (1 + 2 * c) / (1 - 2 * c))


@pytest.mark.parametrize("noise", [0.05, 0.5, 1.0])
def test_theorem_2_bounds_its_own_encoder(noise):
    """With a real nearly orthogonal W the theorem's encoder lies below the bound, and the best encoder below it."""
    rng = np.random.default_rng(3)
    directions = rng.standard_normal((5, 400))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    measured = np.abs(directions @ directions.T - np.eye(5)).max()
    pi, lookup = noisy_lookup(5, noise)
    encoder = lookup_encoder(pi, lookup, directions)
    kl = kl_by_context(pi, encoder).mean()
    found = theorem2(pi, lookup, measured_coherence=measured)
    assert kl <= found.derived <= found.bound
    # lambda solves -H = log sum_j exp(lambda (W_j - W_g)^T W_g): log-sum-exp minus the look-up's logit is the entropy
    rows = np.arange(len(pi))
    gap = np.log(np.exp(encoder).sum(axis=1)) - encoder[rows, lookup]
    np.testing.assert_allclose(gap, -negative_entropy(pi), atol=1e-9)


def test_theorem_2_at_its_two_ends():
    """The bound is 0 for a point mass and for the uniform distribution; a wrong look-up of a sure token is vacuous."""
    lookup = np.array([0, 2])
    assert theorem2(np.eye(4)[lookup], lookup, measured_coherence=0.1).bound == 0
    uniform = np.full((2, 4), 0.25)
    assert theorem2(uniform, lookup, measured_coherence=0.1).bound == pytest.approx(0, abs=1e-12)
    assert theorem2(np.eye(4)[lookup], np.array([1, 2]), measured_coherence=0.1).label.startswith("vacuous")
    assert negative_entropy(np.eye(4)).tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(negative_entropy(uniform), -math.log(4))


def test_theorem_2_refuses_what_it_cannot_read():
    pi, lookup = noisy_lookup(4, 0.2)
    with pytest.raises(InputError, match="one of the two"):
        theorem2(pi, lookup)
    with pytest.raises(InputError, match="look-up table"):
        theorem2(pi, lookup[:3], d=5000)
    with pytest.raises(InputError, match="point mass"):
        lookup_encoder(np.eye(4)[lookup], lookup, np.eye(4))
    with pytest.raises(InputError, match="coherence is too high"):
        lookup_encoder(pi, lookup, np.ones((4, 3)))


# --- planning --------------------------------------------------------------------------------------------------------


def test_the_cards_plan():
    plan = attention_plan(n_facts=210, vocab=50, context=2, d=10, d_head=10)
    assert plan.heads_needed == 20
    assert plan.capacity == 210
    assert plan.prior_bound_heads == 24
    assert plan.parameters == 10 * (2 + 100 + 4 * 10 * 20)
    assert plan.parameters_rank_one == 10 * (2 + 100 + 2 * 11 * 20)
    assert plan.circle_margin == pytest.approx(1 - math.cos(2 * math.pi / 50))
    assert circle_kl(50, plan.circle_scale) <= 0.01
    assert plan.distribution_dimension == 49
    rows = scaling_rows(plan)
    assert next(row for row in rows if row["heads"] == 20)["capacity"] == 210
    assert next(row for row in rows if row["heads"] == 20)["parameters"] == plan.parameters


@pytest.mark.parametrize(("change", "message"), [
    ({"n_facts": 0}, "n_facts must be at least 1"),
    ({"vocab": 1}, "vocab must be at least 2"),
    ({"context": 0}, "context must be at least 1"),
    ({"d_head": 5}, "cannot exceed d"),
    ({"n_facts": 101}, "make only 100 contexts"),
    ({"context": 1, "n_facts": 9}, "at most d = 4 facts, not 9"),
    ({"d": 1, "d_head": 1}, "no direction of its own"),
])  # fmt: skip
def test_plans_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        attention_plan(**({"n_facts": 50, "vocab": 10, "context": 2, "d": 4, "d_head": 4} | change))


# --- codes and margins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [2, 3, 6, 50])
def test_circle_margin_is_the_closed_form(vocab):
    code = circle_code(vocab)
    brute = min((code[i] - code[j]) @ code[i] for i in range(vocab) for j in range(vocab) if i != j)
    assert circle_margin(vocab) == pytest.approx(brute, abs=1e-12)
    assert code_margin(code) == pytest.approx(brute, abs=1e-12)


@pytest.mark.parametrize(("vocab", "scale"), [(2, 0.5), (6, 0.0), (6, 3.0), (20, 40.0)])
def test_proposition_3_kl_is_the_encoders(vocab, scale):
    code = circle_code(vocab)
    pi = np.eye(vocab)
    assert circle_kl(vocab, scale) == pytest.approx(kl_by_context(pi, scale * code @ code.T).mean(), abs=1e-12)


def test_spread_code_is_wider_than_the_circle_and_the_simplex_is_optimal():
    assert code_margin(spread_code(50, 10, seed=0)) > 50 * circle_margin(50)
    simplex = spread_code(7, 6, seed=0)
    np.testing.assert_allclose(np.linalg.norm(simplex, axis=1), 1, atol=1e-12)
    assert code_margin(simplex) == pytest.approx(1 + 1 / 6)
    assert spread_code(7, 9, seed=0).shape == (7, 9)
    with pytest.raises(InputError, match="cannot all win"):
        spread_code(3, 1, seed=0)


def test_a_scale_for_a_wanted_kl():
    assert circle_kl(30, circle_scale_for(30, 1e-3)) <= 1e-3
    with pytest.raises(InputError, match="above 0"):
        circle_scale_for(30, 0.0)
    with pytest.raises(InputError, match="lambda"):
        circle_kl(30, -1.0)


# --- training --------------------------------------------------------------------------------------------------------


def test_a_run_is_the_same_alone_and_in_a_batch():
    contexts, labels = lookup_task(4, 2, seed=0)
    pi = np.eye(4)[labels]
    runs = [Run(1, 0, 5), Run(3, 0, 6), Run(1, 4, 7)]
    together = train_runs(contexts, np.stack([pi] * 3), runs, d=2, d_head=2, steps=5)
    for number, run in enumerate(runs):
        alone = train_runs(contexts, pi[None], [run], d=2, d_head=2, steps=5)
        assert alone.kl[0] == pytest.approx(together.kl[number], rel=1e-5)


def test_training_forward_is_the_formal_model(monkeypatch):
    """The batched, padded forward pass against the NumPy model with the same weights."""
    from rote.theory.attention import training

    seen = {}
    original = training._forward

    def spy(weights, tokens, head_mask, unit_mask):
        out = original(weights, tokens, head_mask, unit_mask)
        seen["weights"], seen["logits"] = {n: t.detach().double().numpy() for n, t in weights.items()}, out.detach()
        return out

    monkeypatch.setattr(training, "_forward", spy)
    contexts, labels = lookup_task(4, 3, seed=1)
    pi = np.eye(4)[labels]
    train_runs(contexts, np.stack([pi] * 2), [Run(2, 0, 0), Run(1, 0, 1)], d=3, d_head=2, steps=3)
    for number, heads in enumerate((2, 1)):
        own = {name: tensor[number] for name, tensor in seen["weights"].items()}
        weights = AttentionWeights(
            embedding=own["embedding"], positions=own["positions"], query=own["query"][:heads], key=own["key"][:heads],
            value=own["value"][:heads], output=np.concatenate(list(own["output"][:heads]), axis=1),
            unembedding=own["unembedding"],
        )  # fmt: skip
        np.testing.assert_allclose(seen["logits"][number].numpy().T, logits(weights, contexts), atol=1e-4)


def test_measured_curve_has_the_bound_the_parameters_and_a_fit():
    curve = measure_attention(N=5, d=2, d_head=2, heads=[1, 4, 7], seeds=2, steps=150)
    assert curve.accuracy.shape == (2, 3)
    np.testing.assert_allclose(curve.bound, [0.2 + 0.8 * (2 * h + 2) / 25 for h in (1, 4, 7)])
    assert curve.parameters.tolist() == [2 * (2 + 10 + 8 * h) for h in (1, 4, 7)]
    assert curve.slope is not None
    assert curve.slope_ratio == curve.slope / 2
    assert curve.mean_accuracy[-1] > curve.mean_accuracy[0]
    again = measure_attention(N=5, d=2, d_head=2, heads=[1, 4, 7], seeds=2, steps=150)
    np.testing.assert_array_equal(curve.accuracy, again.accuracy)
    mlp = measure_attention(N=5, d=2, d_head=2, heads=[1, 4], seeds=1, steps=50, mlp=True)
    assert mlp.parameters.tolist() == curve.parameters[:2].tolist()
    assert mlp.rows()[0]["kind"] == "mlp"
    doubled = replace(curve, d=4, slope=5 * curve.slope)
    figure = slope_figure([curve, doubled, replace(curve, slope=None)], "slopes")
    trained, guaranteed, quadratic, cubic = (line["y"] for line in figure["data"])
    assert (trained, guaranteed) == ([curve.slope, 5 * curve.slope], [2, 4])
    assert (quadratic[1], cubic[1]) == (4 * curve.slope, 8 * curve.slope)


def test_line_before_saturation_leaves_saturated_points_out():
    stored = np.array([10.0, 20.0, 30.0])
    accuracy = [*(0.1 + 0.9 * stored / 100), 0.99]
    slope, r2 = line_before_saturation([1, 2, 3, 9], accuracy, vocab=10, contexts=100)
    assert slope == pytest.approx(10)
    assert r2 == pytest.approx(1)
    assert line_before_saturation([1, 2], [0.3, 0.99], vocab=10, contexts=100) == (None, None)


def test_training_does_not_beat_the_floor():
    """Proposition 1 on trained models."""
    contexts = np.array(list(product(range(4), repeat=2)))
    pi = floored(np.random.default_rng(0).dirichlet(np.ones(4), 16), 1e-3)
    floor = sequence_encoder_floor(pi, d=2)
    trained = train_runs(contexts, np.stack([pi] * 2), [Run(8, 0, 0), Run(12, 0, 1)], d=2, d_head=2, steps=400)
    assert trained.kl.min() >= floor.kl - 1e-6


@pytest.mark.parametrize(("call", "message"), [
    (lambda: measure_attention(N=5, d=2, d_head=2, heads=[0], seeds=1), "at least 1"),
    (lambda: measure_attention(N=5, d=2, d_head=2, heads=[1], seeds=0), "at least one seed"),
    (lambda: measure_attention(N=5, d=2, d_head=3, heads=[1], seeds=1), "cannot exceed d"),
    (lambda: measure_attention(N=100, d=2, d_head=2, heads=[1], seeds=1, S=3), "too many"),
    (lambda: train_runs(np.zeros((2, 2), int), np.zeros((1, 3, 4)), [Run(1, 0, 0)], d=2, d_head=2, steps=1), "not fit"),
])  # fmt: skip
def test_training_refuses_what_it_cannot_do(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.slow
def test_the_study_decides_every_claim_at_its_smallest(monkeypatch, tmp_path):
    """Everything that is exact must hold even when training is cut to almost nothing."""
    from rote.studies import attention_memorization as study
    from rote.studies import run_study

    for name, value in {
        "REPEATS": 1, "HEADS": (1, 5, 9), "STEPS": 60, "WIDE_REPEATS": 1, "WIDE_HEADS": (1, 2, 4), "WIDE_STEPS": 20,
        "WIDE_D": (3, 6), "STARTS": 4,
    }.items():  # fmt: skip
        monkeypatch.setattr(study, name, value)
    found = run_study("attention-memorization", seed=11, out=tmp_path)
    holds = {claim["id"]: claim["holds"] for claim in found["claims"]}
    exact = (
        "exact", "one_too_many", "single_token", "last_tokens", "parameters", "distribution", "floor", "partial",
        "real_text",
    )  # fmt: skip
    assert all(holds[name] for name in exact), holds
    assert {"trained.csv", "trained_d.html", "distributions.csv", "constructions.csv"} <= set(found["artifacts"])


def test_log_log_exponent():
    assert log_log_exponent([3, 4, 6, 8], [2 * 3**1.7, 2 * 4**1.7, 2 * 6**1.7, 2 * 8**1.7]) == pytest.approx(1.7)
    with pytest.raises(InputError, match="above 0"):
        log_log_exponent([1, 2], [1, -1])
