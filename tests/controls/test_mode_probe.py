"""Labels, probe and vector against closed forms: planted Gaussian directions, LDA, hand-counted overlaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from rote.controls.decoding import labelling, mode_probe
from rote.controls.decoding import steering_vector as vectors
from rote.controls.decoding.blocks import prompt_ids, residual_states
from rote.controls.decoding.labelling import DROPPED, GENERAL, MEMORIZED, LabelledPrompts, labels_by_rule
from rote.controls.decoding.mode_probe import ModeProbe, fit_logistic
from rote.errors import InputError
from rote.models import CausalLM, small_llama

# ---- diversity and labels


def test_identical_samples_have_no_diversity_and_count_as_memorized():
    same = np.tile(np.arange(8), (10, 1))
    assert labelling.pairwise_diversity(same) == labelling.distinct_diversity(same) == 0.0
    different = np.arange(80).reshape(10, 8)
    assert labelling.pairwise_diversity(different) == labelling.distinct_diversity(different) == 1.0
    spread = np.array([0.0, 0.0, 0.5, 1.0])
    unknown = np.full(4, np.nan)
    assert labels_by_rule(spread, unknown)[0] == MEMORIZED
    assert labels_by_rule(np.zeros(4), unknown).tolist() == [MEMORIZED] * 4  # no spread: all of them recite


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=2, max_size=6))
def test_overlap_is_counted_pair_by_pair(rows):
    samples, overlaps = np.array(rows), []
    for i in range(len(rows)):
        for j in range(i):
            left = list(rows[j])
            overlaps.append(sum(1 for token in rows[i] if token in left and not left.remove(token)) / 4)
    assert labelling.pairwise_diversity(samples) == pytest.approx(1 - np.mean(overlaps))
    assert labelling.distinct_diversity(samples) == (len(set(map(tuple, rows))) - 1) / (len(rows) - 1)


def test_labels_by_quantiles_and_by_exact_match():
    diversity = np.array([0.1, 0.1, 0.2, 0.5, 0.8, 0.9, 0.9, 1.0])
    match = np.array([1.0, 0.2, np.nan, np.nan, np.nan, 0.1, 0.95, 0.0])
    assert labels_by_rule(diversity, match, quantiles=(0.25, 0.75)).tolist() == [1, -1, -1, -1, -1, 0, -1, 0]
    assert labels_by_rule(diversity, match, rule="exact_match").tolist() == [1, 0, -1, -1, -1, 0, 1, 0]
    with pytest.raises(InputError, match="references"):
        labels_by_rule(diversity, np.full(8, np.nan), rule="exact_match")
    with pytest.raises(InputError, match="quantiles"):
        labels_by_rule(diversity, match, quantiles=(0.7, 0.3))
    assert labelling.exact_match([1, 2, 3, 4], [1, 0, 3]) == pytest.approx(2 / 3)
    assert labelling.exact_match([1], [1, 0, 3]) == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def recorded(memorizer):
    """The memorizer's prompts: 40 copies against none."""
    from rote.records import read_records

    path, targets, controls = memorizer
    model = CausalLM.load(path, device="cpu", dtype="float32")
    known, unseen = read_records(targets), read_records(controls)
    often = [text for text, n in zip(known.column("text"), known.column("duplicates"), strict=True) if n == 40]
    ids = [encoding.ids[:40] for encoding in model.encode([*often, *unseen.column("text")[:10]])]
    return model, ids, len(often)


def test_what_a_model_recites_is_labelled_memorized(recorded):
    model, ids, often = recorded
    found = labelling.label_prompts(
        model, [row[:16] for row in ids], references=[row[16:] for row in ids], samples=4, max_new_tokens=12,
        rule="exact_match", seed=1,
    )  # fmt: skip
    assert (found.labels[:often] == MEMORIZED).mean() >= 0.7
    assert (found.labels[often:] == GENERAL).all()
    for row in range(3):  # greedy by the plainest loop
        sequence = list(ids[row][:16])
        for _ in range(12):
            import torch

            with torch.no_grad():
                sequence.append(int(model.hf(input_ids=torch.tensor([sequence])).logits[0, -1].argmax()))
        expected = np.mean([a == b for a, b in zip(sequence[16:], ids[row][16:28], strict=True)])
        assert found.exact_match[row] == pytest.approx(expected)
    assert found.diversity[:often].mean() < found.diversity[often:].mean()
    by_diversity = labelling.label_prompts(model, [row[:16] for row in ids], samples=4, max_new_tokens=12, seed=1)
    np.testing.assert_allclose(by_diversity.diversity, found.diversity)
    assert any("diversity alone" in note for note in by_diversity.notes)
    entropy = labelling.label_prompts(model, [row[:16] for row in ids], max_new_tokens=12, measure="entropy", samples=2)
    np.testing.assert_allclose(entropy.diversity, found.entropy / np.log(model.vocab_size))


def test_guards_name_what_else_tells_the_classes_apart():
    prompts = [[1] * 4] * 6 + [[1] * 12] * 6
    labels = np.array([1] * 6 + [0] * 6)
    entropy = np.random.default_rng(0).random(12)
    notes = labelling.label_notes(prompts, labels, entropy, references_known=True)
    assert len(notes) == 1
    assert "differ in length" in notes[0]
    x, y = np.array([1.0, 3.0]), np.array([2.0, 6.0])
    assert labelling.standardised_difference(x, y) == pytest.approx((2 - 4) / np.sqrt((1 + 4) / 2))


def test_labelled_prompts_refuse_nonsense(recorded):
    with pytest.raises(InputError, match="as many labels"):
        LabelledPrompts.known([[1]], [1, 0])
    with pytest.raises(InputError, match="no prompt is labelled general"):
        _ = LabelledPrompts.known([[1], [2]], [1, DROPPED]).used
    with pytest.raises(InputError, match="has no tokens"):
        prompt_ids(recorded[0], [[]])
    with pytest.raises(InputError, match="another tokenizer"):
        prompt_ids(recorded[0], [[10**6]])
    assert prompt_ids(recorded[0], ["the list"]) == prompt_ids(recorded[0], [recorded[0].encode(["the list"])[0].ids])


# ---- states


def test_states_are_transformers_own_hidden_states(recorded):
    import torch

    model, ids, _ = recorded
    rows = [row[:n] for row, n in zip(ids, (5, 16, 9), strict=False)]
    states = residual_states(model, rows, batch_tokens=20)
    several = residual_states(model, rows, layers=[1, 0], positions=[[0, 4], [], [8]])
    for i, row in enumerate(rows):
        with torch.no_grad():
            hidden = model.hf(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(states[i, 0], hidden[1][0, -1].numpy(), atol=1e-5)
    assert several.shape == (3, 2, states.shape[2])
    np.testing.assert_allclose(several[1], states[0], atol=1e-5)
    np.testing.assert_allclose(several[2], states[2], atol=1e-5)
    with pytest.raises(InputError, match="no position 7"):
        residual_states(model, [[1, 2]], positions=[[7]])


# ---- the probe


def gaussians(n=400, d=30, gap=2.0, seed=0):
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=d)
    direction /= np.linalg.norm(direction)
    labels = np.arange(2 * n) % 2
    x = rng.normal(size=(2 * n, d)) + gap * (labels - 0.5)[:, None] * direction
    return x.astype(np.float32), labels, direction


def test_the_probe_finds_a_planted_direction_and_the_mean_difference_is_lda():
    x, labels, direction = gaussians(n=1000)
    groups = np.arange(len(x)).astype(str)
    probe = ModeProbe.from_states(x[:, None], labels, groups, layers=[3])
    w, _ = probe.at(3)
    assert w @ direction / np.linalg.norm(w) >= 0.95
    # With isotropic covariance LDA's direction is the difference of means: cov^-1 (mu_1 - mu_0).
    v = vectors.mean_difference(x, labels)
    within = np.cov((x - np.stack([x[labels == c].mean(0) for c in labels])).T)
    lda = -np.linalg.solve(within, x[labels == 1].mean(0) - x[labels == 0].mean(0))
    assert v @ lda / np.linalg.norm(v) / np.linalg.norm(lda) >= 0.95
    assert -v @ direction / np.linalg.norm(v) >= 0.95
    theory = norm.cdf(2.0 / np.sqrt(2))  # of two unit normals 2 apart
    assert probe.figures[0].auc == pytest.approx(theory, abs=0.02)
    assert probe.figures[0].ece < 0.05
    fresh, y, _ = gaussians(n=1000, seed=0)
    np.testing.assert_allclose(probe.score(fresh, 3), 1 / (1 + np.exp(-(fresh @ w + probe.at(3)[1]))), atol=1e-6)
    assert roc_auc_score(y, probe.score(fresh, 3)) > theory - 0.02


def test_shuffled_labels_carry_nothing():
    x, labels, _ = gaussians(n=200, d=10)
    aucs = []
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(labels)
        aucs.append(fit_logistic(x, shuffled, np.arange(len(x)).astype(str)).figures.auc)
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.06)


def test_the_fit_minimises_the_penalised_loss():
    """The twin minimises the same loss with scipy, with more rows than features and with fewer."""
    for n, d in ((60, 5), (12, 40)):
        x, labels, _ = gaussians(n=n // 2, d=d, seed=3)
        weights = mode_probe.class_weights(labels, "balanced")
        (w, b), C = mode_probe._path(x.astype(float), labels, weights, (0.1,))[0], 0.1
        z = (x - x.mean(0)) / x.std(0)
        y = 2.0 * labels - 1

        def loss(theta, z=z, y=y, weights=weights, C=C):
            return (
                0.5 * theta[:-1] @ theta[:-1] + C * (weights * np.logaddexp(0, -y * (z @ theta[:-1] + theta[-1]))).sum()
            )

        best = minimize(loss, np.zeros(d + 1), method="BFGS", options={"gtol": 1e-8}).x
        np.testing.assert_allclose(w * x.std(0), best[:-1], atol=2e-3)
        np.testing.assert_allclose(x @ w + b, z @ best[:-1] + best[-1], atol=5e-3)


def test_folds_never_divide_a_document_and_leakage_is_not_rewarded():
    """Rows of one document are copies: judged by rows a probe could recognise them, judged by documents it cannot."""
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(40, 60))
    labels = np.repeat(rng.permutation(np.arange(40) % 2), 8)
    x = np.repeat(documents, 8, axis=0) + 0.01 * rng.normal(size=(320, 60))
    groups = np.repeat(np.arange(40), 8).astype(str)
    fold_of = mode_probe.group_folds(labels, groups, seed=1)
    for group in set(groups):
        assert len(set(fold_of[groups == group])) == 1
    assert all(len(set(labels[fold_of != fold])) == 2 for fold in set(fold_of))
    by_document = fit_logistic(x, labels, groups).figures.auc
    by_row = fit_logistic(x, labels, np.arange(320).astype(str)).figures.auc
    assert by_row > 0.99
    assert by_document < 0.75
    with pytest.raises(InputError, match="2 documents"):
        fit_logistic(x[:16], np.repeat([0, 1], 8), np.repeat(["a", "b"], 8))


def test_calibration_keeps_a_probe_from_being_sure_of_nothing(monkeypatch):
    """With hardly any penalty, and more features than rows, the probe saturates on whatever it sees."""
    monkeypatch.setattr(mode_probe, "PENALTIES", (1e3,))
    x, labels, _ = gaussians(n=60, d=150, gap=1.0, seed=5)
    groups = np.arange(len(x)).astype(str)
    sure, calm = (fit_logistic(x, labels, groups, calibrate=flag) for flag in (False, True))
    assert sure.figures.brier > 0.3
    assert calm.figures.brier < 0.26
    assert np.mean(np.abs(sure.held_out - 0.5) > 0.45) > 0.5 > np.mean(np.abs(calm.held_out - 0.5) > 0.45)
    a, c = mode_probe.platt(np.array([3.0, 2.0, -1.0, -4.0]), np.array([0, 0, 1, 1]), np.ones(4))
    assert (a, c) == (0.0, 0.0)  # scores that point the wrong way say nothing


def test_expected_calibration_error_by_hand():
    m, y = np.array([0.05, 0.05, 0.95, 1.0]), np.array([0, 1, 1, 1])
    expected = 0.5 * abs(0.05 - 0.5) + 0.5 * abs(0.975 - 1.0)
    assert mode_probe.expected_calibration_error(m, y) == pytest.approx(expected)
    assert mode_probe.expected_calibration_error(y.astype(float), y) == 0
    weights = np.array([3.0, 1.0, 2.0, 2.0])
    expected = 4 / 8 * abs(0.05 - 1 / 4) + 4 / 8 * abs(0.975 - 1.0)
    assert mode_probe.expected_calibration_error(m, y, weights) == pytest.approx(expected)


def test_a_probe_of_a_model_and_its_surface_baselines(recorded):
    model, ids, often = recorded
    prompts = [row[:16] for row in ids]
    labels = [1] * often + [0] * (len(ids) - often)
    labelled = LabelledPrompts.known(prompts, labels, continuations=[row[16:20] for row in ids])
    probe = ModeProbe.fit(model, labelled, layers=[1])
    inside = ModeProbe.fit(model, labelled, layers=[1], continuation_tokens=2)
    assert (inside.n_memorized, inside.n_general) == (3 * often, 3 * (len(ids) - often))
    assert set(probe.baselines) == {"bag of tokens", "length"}
    assert probe.baselines["length"].auc == 0.5  # all prompts are equally long
    assert [row["layer"] for row in probe.as_rows()] == [1, "bag of tokens", "length"]
    assert probe.best_layer == 1
    with pytest.raises(InputError, match="carry their continuations"):
        ModeProbe.fit(model, LabelledPrompts.known(prompts, labels), continuation_tokens=2)
    with pytest.raises(InputError, match="no block 0"):
        probe.at(0)


# ---- the vector


def test_the_vector_flips_with_the_labels_and_has_the_norm_asked_for():
    x, labels, _ = gaussians()
    for scale in vectors.SCALES:
        v = vectors.vector_from_states(x, labels, layer=2, scale=scale)
        flipped = vectors.vector_from_states(x, 1 - labels, layer=2, scale=scale)
        np.testing.assert_allclose(v.v, -flipped.v, atol=1e-6)
        wanted = {"unit": 1.0, "raw": np.linalg.norm(vectors.mean_difference(x, labels)),
                  "residual": np.linalg.norm(x, axis=1).mean()}[scale]  # fmt: skip
        assert np.linalg.norm(v.v) == pytest.approx(wanted, rel=1e-5)
    assert 0.8 < v.cosine_low <= v.cosine_median <= 1
    other = vectors.random_vector(v, seed=1)
    assert np.linalg.norm(other.v) == pytest.approx(np.linalg.norm(v.v), rel=1e-5)
    assert abs(other.v @ v.v) / np.linalg.norm(v.v) ** 2 < 0.6


def test_other_kinds_of_vectors():
    x, labels, direction = gaussians(n=1000)
    probe = ModeProbe.from_states(x[:, None], labels, np.arange(len(x)).astype(str), layers=[0])
    by_probe = vectors.vector_from_states(x, labels, layer=0, kind="probe", scale="unit", probe=probe)
    np.testing.assert_allclose(by_probe.v, -probe.w[0] / np.linalg.norm(probe.w[0]), atol=1e-5)
    pairs = [(int(m), int(g)) for m, g in zip(np.flatnonzero(labels == 1), np.flatnonzero(labels == 0), strict=True)]
    component = vectors.vector_from_states(x, labels, layer=0, kind="pair_pc", scale="unit", pairs=pairs)
    differences = np.stack([x[g] - x[m] for m, g in pairs])
    _, basis = np.linalg.eigh(differences.T @ differences)
    assert abs(basis[:, -1] @ component.v) == pytest.approx(1, abs=1e-4)
    assert component.v @ -direction > 0.9
    correct = np.arange(len(x)) % 3 > 0
    chosen = vectors.vector_from_states(x, labels, layer=0, kind="correct", scale="raw", correct=correct)
    np.testing.assert_allclose(chosen.v, vectors.mean_difference(x[correct], labels[correct]), atol=1e-5)
    for kind, message in (
        ("probe", "fitted probe"),
        ("pair_pc", "pairs"),
        ("correct", "correctly"),
        ("x", "kind must"),
    ):
        with pytest.raises(InputError, match=message):
            vectors.vector_from_states(x, labels, layer=0, kind=kind)
    with pytest.raises(InputError, match="vector is zero"):
        vectors.vector_from_states(np.ones((4, 3)), [0, 1, 0, 1], layer=0)


def test_the_vector_of_a_model_is_the_difference_of_its_states():
    model = CausalLM(small_llama(vocab_size=50, context_length=32, width=16, layers=2, heads=2))
    prompts = np.random.default_rng(0).integers(0, 50, (8, 6)).tolist()
    labelled = LabelledPrompts.known(prompts, [1, 1, 1, 0, 0, 0, 0, -1])
    states = residual_states(model, prompts, layers=[1])[:, 0]
    v = vectors.steering_vector(model, labelled, layer=1, scale="raw")
    np.testing.assert_allclose(v.v, states[3:7].mean(0) - states[:3].mean(0), atol=1e-6)
    assert (v.n_memorized, v.n_general) == (3, 4)
    assert v.residual_norm == pytest.approx(np.linalg.norm(states[:7], axis=1).mean(), rel=1e-5)
