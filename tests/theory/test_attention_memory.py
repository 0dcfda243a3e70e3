"""The attention-only memory: the formal model against explicit loops, the exact solver, the floor, files."""

from __future__ import annotations

import importlib.util
import json
import math
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from rote.errors import InputError
from rote.theory.attention import (
    AttentionMemory,
    AttentionWeights,
    DistributionMemory,
    NumericallyInfeasible,
    attention_patterns,
    attention_reads,
    build_attention_distribution,
    build_attention_memory,
    circle_code,
    circle_margin,
    facts_from_text,
    floored,
    kl_by_context,
    log_softmax,
    logits,
    margins,
    sequence_encoder_floor,
)
from rote.theory.attention.features import draw_features, spectrum
from rote.theory.attention.linear import has_extended_precision, minimum_norm, minimum_norm_extended

EXACT = [  # N, S, d, d_h, H
    (10, 2, 2, 2, 20), (10, 3, 2, 2, 20), (10, 8, 2, 2, 15), (10, 2, 4, 4, 10), (50, 2, 10, 10, 20),
    (50, 2, 16, 16, 10),
]  # fmt: skip


def random_facts(vocab: int, context: int, count: int, *, seed: int = 0):
    rng = np.random.default_rng(seed)
    ranks = rng.choice(vocab**context, size=count, replace=False)
    contexts = np.stack([(ranks // vocab**position) % vocab for position in range(context)], axis=1)
    return contexts, rng.integers(0, vocab, count)


def random_weights(*, vocab=5, context=3, d=4, d_head=2, heads=3, rank=2, seed=0) -> AttentionWeights:
    rng = np.random.default_rng(seed)
    shapes = {
        "embedding": (vocab, d), "positions": (context, d), "query": (heads, rank, d), "key": (heads, rank, d),
        "value": (heads, d_head, d), "output": (d, heads * d_head), "unembedding": (vocab, d),
    }  # fmt: skip
    return AttentionWeights(**{name: rng.standard_normal(shape) for name, shape in shapes.items()})


def logits_by_loops(w: AttentionWeights, contexts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The definition of section 3, one number at a time: patterns, reads, logits."""
    patterns = np.zeros((len(contexts), w.heads, w.context))
    reads = np.zeros((len(contexts), w.heads, w.d))
    out = np.zeros((len(contexts), w.vocab))
    for t, tokens in enumerate(contexts):
        x = [w.embedding[token] + w.positions[s] for s, token in enumerate(tokens)]
        concatenated = []
        for h in range(w.heads):
            w_qk = w.query[h].T @ w.key[h]
            raw = [math.exp(x[-1] @ w_qk @ x[s]) for s in range(w.context)]
            for s in range(w.context):
                patterns[t, h, s] = raw[s] / sum(raw)
                reads[t, h] += patterns[t, h, s] * x[s]
            concatenated.extend(w.value[h] @ reads[t, h])
        out[t] = w.unembedding @ (x[-1] + w.output @ np.array(concatenated))
    return patterns, reads, out


# --- the formal model ------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_model_is_the_definition_written_out(seed, context, heads):
    weights = random_weights(context=context, heads=heads, seed=seed)
    contexts = np.random.default_rng(seed).integers(0, 5, (6, context))
    patterns, reads, scores = logits_by_loops(weights, contexts)
    np.testing.assert_allclose(attention_patterns(weights, contexts), patterns, atol=1e-10)
    np.testing.assert_allclose(attention_reads(weights, contexts), reads, atol=1e-10)
    np.testing.assert_allclose(logits(weights, contexts), scores, atol=1e-9, rtol=1e-9)
    np.testing.assert_allclose(attention_patterns(weights, contexts).sum(axis=2), 1.0, atol=1e-12)


def test_logits_do_not_depend_on_the_block_size(monkeypatch):
    weights, contexts = random_weights(), np.array(list(product(range(5), repeat=3)))
    whole = logits(weights, contexts)
    monkeypatch.setattr("rote.theory.attention.model.BLOCK", 40)
    np.testing.assert_allclose(logits(weights, contexts), whole, atol=1e-12)


def test_parameters_are_what_is_stored():
    weights = random_weights(vocab=5, context=3, d=4, d_head=2, heads=3, rank=2)
    assert weights.parameters == 4 * (3 + 2 * 5 + 2 * (2 + 2) * 3)


def test_margins_and_kl_by_hand():
    scores = np.array([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(margins(scores, np.array([1, 2])), [1.0, 0.0])
    pi = np.array([[0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    expected = math.log(1 + math.exp(-2) + math.exp(-1))
    np.testing.assert_allclose(kl_by_context(pi, scores), [expected, 0.0], atol=1e-12)


@pytest.mark.parametrize(("change", "message"), [
    ({"key": np.zeros((3, 2, 5))}, "key must be"),
    ({"output": np.zeros((4, 5))}, "output must be"),
    ({"positions": np.full((3, 4), np.nan)}, "positions holds a number that is not finite"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        AttentionWeights(**(random_weights().arrays() | change))


@pytest.mark.parametrize(("contexts", "message"), [
    (np.array([[0, 1]]), "2 tokens, the model reads 3"),
    (np.array([[0, 1, 1], [0, 5, 1]]), "context 1: a token lies outside the vocabulary of 5"),
    (np.array([[0.0, 1, 1]]), "whole-number"),
    (np.array([0, 1, 2]), "must be a matrix"),
])  # fmt: skip
def test_contexts_that_do_not_fit_are_refused(contexts, message):
    with pytest.raises(InputError, match=message):
        logits(random_weights(), contexts)


# --- exact construction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab", "context", "d", "d_head", "heads"), EXACT)
def test_exactly_h_dh_plus_d_associations(vocab, context, d, d_head, heads):
    stored = heads * d_head + d
    contexts, labels = random_facts(vocab, context, stored)
    memory = build_attention_memory(contexts, labels, d=d, d_head=d_head, heads=heads, vocab=vocab, seed=0)
    _, _, scores = logits_by_loops(memory.weights, contexts)  # an independent evaluation of the real network
    assert (scores.argmax(axis=1) == labels).all()
    ideal = circle_code(vocab)[labels] @ circle_code(vocab).T
    np.testing.assert_allclose(scores, ideal, atol=1e-8)
    assert memory.rank == stored
    assert memory.accuracy == 1.0
    assert memory.logit_error < 1e-8
    assert memory.min_margin == pytest.approx(1 - math.cos(2 * math.pi / vocab), abs=1e-8)
    assert memory.weights.parameters == d * (context + 2 * vocab + 2 * (d_head + 1) * heads)
    assert (memory.recall(contexts) == labels).all()


def test_a_head_smaller_than_d_stores_its_share():
    contexts, labels = random_facts(10, 2, 44)
    memory = build_attention_memory(contexts, labels, d=4, d_head=1, heads=40, vocab=10, seed=3)
    assert memory.rank == 44
    assert memory.accuracy == 1.0


@pytest.mark.parametrize("labels", [[4] * 12, [0, 5] * 6, [3] * 11 + [8]])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_labels_that_span_fewer_dimensions_than_the_code(labels, count):
    """All alike, opposite on the circle, and nearly all alike: the skip's matrix must still be invertible."""
    contexts, _ = random_facts(10, 2, count)
    memory = build_attention_memory(contexts, np.array(labels[:count]), d=4, d_head=2, heads=4, vocab=10, seed=0)
    assert memory.logit_error < 1e-8
    assert (logits_by_loops(memory.weights, contexts)[2].argmax(axis=1) == labels[:count]).all()


def test_no_heads_store_d_associations():
    contexts, labels = random_facts(10, 2, 6)
    memory = build_attention_memory(contexts, labels, d=6, d_head=2, heads=0, vocab=10, seed=0)
    assert memory.weights.heads == 0
    assert memory.accuracy == 1.0


def test_spare_heads_do_no_harm():
    contexts, labels = random_facts(10, 2, 42)
    memory = build_attention_memory(contexts, labels, d=2, d_head=2, heads=33, vocab=10, seed=0)
    assert memory.rank == 42
    assert memory.accuracy == 1.0


def test_one_too_many_keeps_the_rank_and_loses_accuracy():
    contexts, labels = random_facts(10, 2, 60)
    sizes = {"d": 2, "d_head": 2, "heads": 20, "vocab": 10, "seed": 0}
    with pytest.raises(InputError, match=r"60 contexts exceed the 42 .* use 29 heads"):
        build_attention_memory(contexts, labels, **sizes)
    memory = build_attention_memory(contexts, labels, excess="least_squares", **sizes)
    assert memory.rank == 42
    assert memory.accuracy < 1
    assert memory.accuracy == (logits_by_loops(memory.weights, contexts)[2].argmax(axis=1) == labels).mean()


def test_a_single_token_gives_rank_d_only():
    contexts = np.arange(8)[:, None]
    labels = np.arange(8)
    with pytest.raises(InputError, match="attention over one token is the identity"):
        build_attention_memory(contexts, labels, d=4, d_head=4, heads=9, seed=0)
    memory = build_attention_memory(contexts, labels, d=4, d_head=4, heads=9, seed=0, excess="least_squares")
    assert memory.rank == 4
    assert build_attention_memory(contexts[:4], labels[:4], d=4, d_head=4, heads=2, vocab=8, seed=0).accuracy == 1.0


def test_too_few_heads_keep_the_likeliest_and_theorem_1_bounds_the_rest():
    contexts, labels = random_facts(10, 2, 60)
    prior = np.random.default_rng(1).dirichlet(np.full(60, 0.2))
    memory = build_attention_memory(
        contexts, labels, d=2, d_head=2, heads=20, vocab=10, seed=0, prior=prior, excess="most_likely"
    )
    left = memory.remainder
    assert left is not None
    assert set(np.flatnonzero(memory.kept)) == set(np.argsort(-prior)[:42])
    assert (memory.recall(contexts[memory.kept]) == labels[memory.kept]).all()
    surprise = -log_softmax(logits_by_loops(memory.weights, contexts)[2])[np.arange(60), labels]
    assert left.kl == pytest.approx(prior @ surprise)
    assert left.eps == pytest.approx(prior[~memory.kept].sum())
    assert left.kl_rest == pytest.approx((prior * surprise)[~memory.kept].sum() / left.eps)
    assert left.kl <= left.bound


def test_greedy_choice_of_heads_conditions_better_than_the_first_ones():
    contexts, _ = random_facts(10, 2, 42)
    conds = {}
    for candidates in (1, 4):
        draws = [
            draw_features(contexts, vocab=10, d=2, d_head=2, heads=20, candidates=candidates, scales=(1.0, 30.0),
                          rng=np.random.default_rng(seed))
            for seed in range(5)
        ]  # fmt: skip
        conds[candidates] = np.median([spectrum(draw.features(contexts)).cond for draw in draws])
    assert conds[4] < conds[1]


@pytest.mark.skipif(not has_extended_precision(), reason="longdouble is float64 here")
def test_hopeless_in_float64_is_reported_and_extended_precision_helps():
    """402 contexts from one scale and no choice of heads: condition number above 1e12, as on the card."""
    contexts, labels = random_facts(30, 2, 402)
    plain = {"candidates": 1, "scales": (1.0, 1.0), "draws": 1}
    sizes = {"d": 2, "d_head": 2, "heads": 200, "vocab": 30, "seed": 0}
    with pytest.raises(NumericallyInfeasible, match="condition number") as failure:
        build_attention_memory(contexts, labels, extended=False, **sizes, **plain)
    assert failure.value.cond > 1e12
    assert failure.value.exit_status == 2
    assert build_attention_memory(contexts, labels, **sizes, **plain).accuracy == 1.0  # solved in longdouble
    chosen = build_attention_memory(contexts, labels, **sizes)  # chosen heads: float64 is enough
    assert chosen.cond < 1e8
    assert chosen.accuracy == 1.0


@pytest.mark.skipif(not has_extended_precision(), reason="longdouble is float64 here")
def test_extended_solver_against_float64_and_its_own_residual():
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((12, 17)), rng.standard_normal((12, 3))
    wide, found = minimum_norm_extended(features.astype(np.longdouble), targets)
    narrow, _ = minimum_norm(features, targets)
    np.testing.assert_allclose(wide.astype(float), narrow, atol=1e-12)
    np.testing.assert_allclose(narrow, np.linalg.pinv(features) @ targets, atol=1e-12)
    assert np.abs(features.astype(np.longdouble) @ wide - targets).max() < 1e-17
    assert found.rank == 12
    with pytest.raises(InputError, match="exceed"):
        minimum_norm_extended(features.T, rng.standard_normal((17, 3)))
    with pytest.raises(InputError, match="depends linearly"):
        minimum_norm_extended(np.zeros((2, 3)), np.zeros((2, 1)))


def test_infeasible_sizes_fail_loudly():
    contexts, labels = random_facts(2, 8, 101)
    with pytest.raises(NumericallyInfeasible, match="cannot be solved numerically: rank") as failure:
        build_attention_memory(contexts, labels, d=1, d_head=1, heads=100, vocab=2, seed=0, draws=1)
    assert failure.value.rank < 101
    many = np.array(list(product(range(26), repeat=3)))
    with pytest.raises(InputError, match="GiB"):
        build_attention_memory(many, many[:, 0], d=8, d_head=8, heads=2196, seed=0)


@pytest.mark.parametrize(("change", "message"), [
    ({"labels": [0, 1]}, "one whole-number token id for each of 3"),
    ({"labels": [0, 1, 9]}, "label 2 lies outside the vocabulary of 4"),
    ({"contexts": [[0, 1], [2, 3], [0, 1]]}, "context 2 repeats context 0 with another label"),
    ({"contexts": [[0, 1], [2, 3], [0, 1]], "labels": [1, 2, 1]}, "with the same label"),
    ({"contexts": [[0, 1], [2, 3], [3, 7]]}, "outside the vocabulary"),
    ({"d_head": 3}, "cannot exceed d"),
    ({"code": "cube"}, "unknown code"),
    ({"excess": "drop"}, "unknown excess"),
    ({"scale": 0.0}, "scale"),
    ({"prior": [1.0, -1.0, 0.0]}, "prior"),
    ({"candidates": 0}, "candidates"),
])  # fmt: skip
def test_bad_input_is_one_clear_error(change, message):
    values = {"contexts": [[0, 1], [2, 3], [1, 0]], "labels": [0, 1, 2], "d": 2, "d_head": 2, "heads": 2} | change
    contexts, labels = np.array(values.pop("contexts")), np.array(values.pop("labels"))
    with pytest.raises(InputError, match=message):
        build_attention_memory(contexts, labels, vocab=4, seed=0, **values)


def test_same_seed_same_weights_other_seed_others():
    contexts, labels = random_facts(6, 2, 14)
    sizes = {"d": 2, "d_head": 2, "heads": 6, "vocab": 6}
    first, again, other = (build_attention_memory(contexts, labels, seed=seed, **sizes) for seed in (0, 0, 1))
    for name, array in first.weights.arrays().items():
        np.testing.assert_array_equal(array, again.weights.arrays()[name])
    assert not np.array_equal(first.weights.query, other.weights.query)


def test_a_real_text_is_stored_in_full():
    """Two words -> the next one, in the source of a standard-library module that every Python has as a file."""
    found = importlib.util.find_spec("__future__")
    assert found is not None
    assert found.origin is not None
    words = Path(found.origin).read_text(encoding="utf-8").split()
    facts = facts_from_text(words, context=2)
    unique = (facts.counts > 0).sum(axis=1) == 1
    contexts, labels = facts.contexts[unique], facts.labels[unique]
    heads = -(-(len(contexts) - 16) // 16)
    memory = build_attention_memory(contexts, labels, d=16, d_head=16, heads=heads, vocab=facts.vocab, seed=0)
    assert len(contexts) > 100
    assert memory.accuracy == 1.0
    stored = {tuple(c): w for c, w in zip(contexts.tolist(), memory.recall(contexts).tolist(), strict=True)}
    for first, second, third in zip(words, words[1:], words[2:], strict=False):
        key = (facts.tokens.index(first), facts.tokens.index(second))
        if key in stored:
            assert facts.tokens[stored[key]] == third


def test_spread_code_survives_float32_where_the_certificate_says_so():
    contexts, labels = random_facts(50, 2, 210)
    memory = build_attention_memory(contexts, labels, d=10, d_head=10, heads=20, vocab=50, seed=0, code="spread")
    short = memory.rounded("float32")
    assert short.precision == "float32"
    assert (logits(short.weights, contexts).argmax(axis=1) == labels).all()
    assert short.min_margin > 50 * circle_margin(50)


def test_rounding_that_forgets_is_an_error():
    contexts, labels = random_facts(50, 2, 210)
    memory = build_attention_memory(contexts, labels, d=10, d_head=10, heads=20, vocab=50, seed=0)
    with pytest.raises(NumericallyInfeasible, match="rounded to float16 the memory forgets"):
        memory.rounded("float16")


# --- torch and files -------------------------------------------------------------------------------------------------


def test_torch_modules_compute_the_same_logits():
    contexts, labels = random_facts(10, 3, 14)
    memory = build_attention_memory(contexts, labels, d=4, d_head=2, heads=5, vocab=10, seed=0)
    tokens = torch.from_numpy(contexts)
    with torch.no_grad():
        formal = memory.to_torch()(tokens).numpy()
        stacked = memory.to_multihead_attention()(tokens).numpy()
    expected = logits(memory.weights, contexts)
    np.testing.assert_allclose(formal, expected, atol=1e-9)
    np.testing.assert_allclose(stacked, expected, atol=1e-9)


def test_a_torch_module_that_forgets_is_refused(monkeypatch):
    from rote.theory.attention import torch_model

    contexts, labels = random_facts(10, 3, 14)
    memory = build_attention_memory(contexts, labels, d=4, d_head=2, heads=5, vocab=10, seed=0)
    coarse = torch_model._tensor
    monkeypatch.setattr(torch_model, "_tensor", lambda array, dtype: coarse(np.round(array), dtype))
    for export in (memory.to_torch, memory.to_multihead_attention):
        with pytest.raises(NumericallyInfeasible, match="the torch module forgets"):
            export()


def test_saved_and_read_back_it_is_the_same_and_certified_again(tmp_path):
    contexts, labels = random_facts(10, 2, 42)
    memory = build_attention_memory(contexts, labels, d=2, d_head=2, heads=20, vocab=10, seed=0)
    again = AttentionMemory.load(memory.save(tmp_path / "memory"))
    assert again.min_margin == memory.min_margin
    assert again.accuracy == 1.0
    for name, array in memory.weights.arrays().items():
        np.testing.assert_array_equal(array, again.weights.arrays()[name])
    assert json.loads((tmp_path / "memory" / "memory.json").read_text())["parameters"] == memory.weights.parameters


@pytest.mark.skipif(not has_extended_precision(), reason="longdouble is float64 here")
def test_longdouble_weights_are_stored_without_loss(tmp_path):
    contexts, labels = random_facts(10, 2, 42)
    memory = build_attention_memory(contexts, labels, d=2, d_head=2, heads=20, vocab=10, seed=0, extended=True)
    assert memory.precision == "longdouble"
    assert memory.logit_error < 1e-15  # below float64's reach at this condition number
    again = AttentionMemory.load(memory.save(tmp_path))
    for name, array in memory.weights.arrays().items():
        np.testing.assert_array_equal(array, again.weights.arrays()[name])
    assert (memory.to_torch()(torch.from_numpy(contexts)).argmax(dim=1).numpy() == labels).all()


def damage_weights(path):
    from safetensors.numpy import load, save

    tensors = load((path / "memory.safetensors").read_bytes())
    tensors["output"] = np.zeros_like(tensors["output"])
    (path / "memory.safetensors").write_bytes(save(tensors))


@pytest.mark.parametrize(("damage", "message"), [
    (damage_weights, "do not recall what was stored"),
    (lambda path: (path / "memory.json").unlink(), "no built memory there"),
    (lambda path: (path / "memory.safetensors").write_bytes(b"short"), "damaged"),
    (lambda path: (path / "memory.json").write_text("[]"), "does not describe"),
    (lambda path: (path / "memory.json").write_text(
        (path / "memory.json").read_text().replace('"version": 1', '"version": 9')), "format version 9"),
    (lambda path: (path / "memory.json").write_text(
        (path / "memory.json").read_text().replace('"min_margin"', '"margin"')), "do not fit together"),
])  # fmt: skip
def test_damaged_files_are_refused(tmp_path, damage, message):
    contexts, labels = random_facts(6, 2, 10)
    build_attention_memory(contexts, labels, d=2, d_head=2, heads=4, vocab=6, seed=0).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        AttentionMemory.load(tmp_path)


# --- distributions ---------------------------------------------------------------------------------------------------


def dirichlet_targets(vocab: int, count: int, *, seed: int = 0) -> np.ndarray:
    return floored(np.random.default_rng(seed).dirichlet(np.ones(vocab), count), 1e-3)


def test_floor_of_one_dimension_against_a_search_over_all_directions():
    """N = 3, d = 1: W up to shift and scale is an angle; given it, each context's KL is convex in one number."""
    pi = dirichlet_targets(3, 5)
    plane = np.linalg.svd(np.eye(3) - 1 / 3)[0][:, :2]  # directions that softmax can see

    def best_at(angle: float) -> float:
        code = plane @ np.array([math.cos(angle), math.sin(angle)])
        total = 0.0
        for row in pi:
            total += minimize_scalar(lambda e, row=row: kl_by_context(row[None], e * code[None])[0], tol=1e-12).fun
        return total / len(pi)

    grid = np.linspace(0, math.pi, 241)
    start = grid[np.argmin([best_at(angle) for angle in grid])]
    refined = minimize_scalar(best_at, bounds=(start - 0.02, start + 0.02), method="bounded", options={"xatol": 1e-9})
    brute = refined.fun  # type: ignore[attr-defined]
    assert sequence_encoder_floor(pi, d=1).kl == pytest.approx(brute, abs=1e-7)


def test_distribution_task_reaches_the_floor_and_falls_with_d():
    contexts = np.array(list(product(range(6), repeat=2)))
    pi = dirichlet_targets(6, 36)
    floors = []
    for d in (2, 3, 4, 5):
        floor = sequence_encoder_floor(pi, d=d, starts=4)
        built = build_attention_distribution(contexts, pi, d=d, d_head=d, heads=-(-(36 - d) // d), seed=0, floor=floor)
        measured = kl_by_context(pi, logits_by_loops(built.weights, contexts)[2]).mean()
        assert measured == pytest.approx(floor.kl, abs=1e-6)
        assert built.kl == pytest.approx(measured, abs=1e-12)
        floors.append(float(floor))
    assert all(later < earlier for earlier, later in pairwise(floors))
    assert floors[-1] == pytest.approx(0, abs=1e-9)  # d = N - 1: Proposition 2
    assert floors[-2] > 1e-3  # and below it this pi is out of reach


def test_one_dimension_is_the_documented_exception():
    contexts = np.array(list(product(range(6), repeat=2)))
    with pytest.raises(NumericallyInfeasible, match="no draw comes within") as failure:
        build_attention_distribution(contexts, dirichlet_targets(6, 36), d=1, d_head=1, heads=35, seed=0, draws=2)
    assert failure.value.cond > 1e12


def test_floor_special_cases():
    association = np.eye(7)[[0, 3, 6, 3]]
    limit = sequence_encoder_floor(association, d=2)
    assert limit.exact
    assert not limit.attained
    assert limit.kl < 1e-11  # Proposition 3
    assert sequence_encoder_floor(np.full((4, 5), 0.2), d=1).kl == pytest.approx(0, abs=1e-12)
    assert sequence_encoder_floor(association, d=6).kl < 1e-12
    with pytest.raises(InputError, match="d = 1 and probabilities of exactly 0"):
        sequence_encoder_floor(association, d=1)
    with pytest.raises(InputError, match="row 1 is no distribution"):
        sequence_encoder_floor(np.array([[0.5, 0.5], [0.5, 0.6]]), d=1)
    with pytest.raises(InputError, match="d must be"):
        sequence_encoder_floor(association, d=0)


def test_prior_decides_what_the_floor_is_spent_on():
    pi = dirichlet_targets(4, 6)
    prior = np.array([1.0, 1.0, 0, 0, 0, 0])
    assert sequence_encoder_floor(pi, d=2, prior=prior).kl == pytest.approx(0, abs=1e-7)
    assert sequence_encoder_floor(pi, d=2).kl > 1e-4


def test_uniform_targets_are_built_too():
    """E = 0: no direction is needed at all."""
    contexts = np.array(list(product(range(4), repeat=2)))
    memory = build_attention_distribution(contexts, np.full((16, 4), 0.25), d=2, d_head=2, heads=7, seed=0)
    assert memory.kl == pytest.approx(0, abs=1e-12)


def test_partial_distribution_memory_obeys_theorem_1(tmp_path):
    contexts = np.array(list(product(range(6), repeat=2)))
    pi, prior = dirichlet_targets(6, 36), np.random.default_rng(0).dirichlet(np.full(36, 0.3))
    with pytest.raises(InputError, match="36 contexts exceed the 21"):
        build_attention_distribution(contexts, pi, d=3, d_head=3, heads=6, seed=0)
    memory = build_attention_distribution(
        contexts, pi, d=3, d_head=3, heads=6, seed=0, prior=prior, excess="most_likely"
    )
    assert memory.remainder is not None
    assert memory.kl <= memory.remainder.bound
    again = DistributionMemory.load(memory.save(tmp_path))
    assert again.kl == pytest.approx(memory.kl, abs=1e-12)
    np.testing.assert_allclose(again.distribution(contexts).sum(axis=1), 1)
    with torch.no_grad():
        scores = again.to_torch()(torch.from_numpy(contexts)).numpy()
    np.testing.assert_allclose(scores, logits(memory.weights, contexts), atol=1e-9)
    with pytest.raises(InputError, match="does not describe a built association memory"):
        AttentionMemory.load(tmp_path)
    damage_weights(tmp_path)
    with pytest.raises(InputError, match="do not give the KL"):
        DistributionMemory.load(tmp_path)


def test_bad_distribution_input():
    contexts = np.array([[0, 1], [0, 1]])
    pi = np.full((2, 3), 1 / 3)
    with pytest.raises(InputError, match="given twice"):
        build_attention_distribution(contexts, pi, d=2, d_head=2, heads=1, seed=0)
    with pytest.raises(InputError, match="2 rows for 1 contexts"):
        build_attention_distribution(contexts[:1], pi, d=2, d_head=2, heads=1, seed=0)
