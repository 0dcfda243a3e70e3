"""The study of mode steering: its claims are the card's, its design has no surface cue, its pieces run."""

from __future__ import annotations

import numpy as np
import pytest

from rote.studies import _mode_design as design
from rote.studies import _mode_sweep as sweeps
from rote.studies import mode_steering
from rote.studies.protocol import StudyContext

# "Must hold" in section 5 of the card, in its order
CARD = [
    "both_modes",
    "probe_reads_the_mode",
    "shuffled_labels",
    "patch_identity",
    "recitation_falls",
    "flips_to_the_rule",
    "not_any_vector",
    "dynamic_beats_static",
    "prose_is_kept",
    "zero_is_greedy",
]


def test_claims_are_the_cards():
    assert [claim.id for claim in mode_steering.CLAIMS] == CARD
    assert mode_steering.STUDY.slug == "mode-steering"


def test_the_design_has_no_surface_cue():
    planted = design.exceptions(seed=3)
    assert len(set(design.codes(planted.tuples).tolist())) == design.PLANTED
    assert (planted.answers[:, 0] != design.ruled(planted.tuples)[:, 0]).all()
    assert (design.decoded(design.codes(planted.tuples)) == planted.tuples).all()
    rng = np.random.default_rng(0)
    fresh, near = design.fresh_tuples(5000, planted, rng), design.near_tuples(planted, planted, rng)
    partners = design.partner_tuples(planted, planted, rng)
    known = {tuple(row) for row in planted.tuples.tolist()}
    assert not known & {tuple(row) for row in [*fresh.tolist(), *near.tolist(), *partners.tolist()]}
    assert ((near != planted.tuples).sum(1) == 1).all()
    assert (design.ruled(partners)[:, 0] == design.ruled(planted.tuples)[:, 0]).all()
    assert abs((partners[:, :-1] == planted.tuples[:, :-1]).mean() - 1 / design.SYMBOLS) < 0.03
    for tuples, answers in ((planted.tuples, planted.answers), (fresh, design.ruled(fresh))):
        ids = design.rows(tuples, answers)
        assert [tuple(row) for row in ids[:, :6].tolist()] == design.prompts(tuples)
        assert set(ids[:, 1:5].flatten()) <= set(range(design.FIRST, design.VOCABULARY))
        # symbols are as frequent in exceptions as in fresh tuples: no token tells them apart
        counts = np.bincount(ids[:, 1:5].flatten(), minlength=design.VOCABULARY)[design.FIRST :]
        assert counts.std() < 2 * np.sqrt(counts.mean())


@pytest.fixture(scope="module")
def model_and_planted():
    """12 exceptions and a few steps: the exceptions are known, the rule is not yet."""
    planted = design.exceptions(24, seed=0)
    recipe = design.Recipe(width=32, mlp_width=64, heads=2, layers=3, steps=150, fresh=16, planted=24)
    return design.train(planted, recipe, seed=0), planted


def test_training_is_deterministic(model_and_planted):
    _, planted = model_and_planted
    recipe = design.Recipe(width=16, mlp_width=16, heads=2, layers=1, steps=3, fresh=4, planted=4)
    one, two = (design.train(planted, recipe, seed=7).fingerprint for _ in range(2))
    assert one == two != design.train(planted, recipe, seed=8).fingerprint


def test_rates_are_counted_answer_by_answer(model_and_planted):
    import torch

    model, planted = model_and_planted
    fitted, judged = sweeps.split_keys(model, planted, fresh=30, judged_fresh=40, seed=0)
    assert not set(design.codes(fitted.planted.tuples)) & set(design.codes(judged.planted.tuples))
    found = sweeps.rates(model, judged)
    recited = flipped = ruled = 0
    for tuples, answers in ((judged.planted.tuples, judged.planted.answers), (judged.fresh, None)):
        for number, (prompt, key) in enumerate(zip(design.prompts(tuples), tuples, strict=True)):
            ids = list(prompt)
            for _ in range(4):
                with torch.no_grad():
                    ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
            said = [token - design.FIRST for token in ids[-4:]]
            by_rule = said == key[::-1].tolist()
            if answers is None:
                ruled += by_rule
            else:
                recited += said == answers[number].tolist()
                flipped += by_rule
    assert found == {"recite": recited / 12, "flip": flipped / 12, "rule": ruled / 40}
    assert recited >= 6  # the exceptions have been learned, so there is something to steer


def test_every_claim_of_the_matched_design_is_decided(model_and_planted, tmp_path, monkeypatch):
    model, planted = model_and_planted
    sizes = {"FRESH": 30, "JUDGED_FRESH": 40, "SOME_FRESH": 20, "MANY_FRESH": 50, "MIDDLE": (1,), "SHUFFLES": 2}
    for name, value in {**sizes, "RANDOM_VECTORS": 1}.items():
        monkeypatch.setattr(mode_steering, name, value)
    monkeypatch.setattr(sweeps, "FEW", (2.0,))
    monkeypatch.setattr(sweeps, "ALPHAS", (1.0, 4.0))
    context = StudyContext(mode_steering.STUDY, 0, tmp_path)
    monkeypatch.setattr(context, "figure", lambda name, figure: None)
    mode_steering.matched(context, model, planted)
    assert set(context.decided) == set(CARD) - {"prose_is_kept"}
    for claim in ("patch_identity", "zero_is_greedy"):
        assert context.decided[claim]["holds"], claim


def test_static_at_equal_recitation_is_the_mildest_that_recites_no_more(model_and_planted):
    model, planted = model_and_planted
    fitted, judged = sweeps.split_keys(model, planted, fresh=30, judged_fresh=40, seed=0)
    _, vectors = sweeps.fit(fitted, seed=0)
    vector = vectors[1]
    step = 8.0
    while step > sweeps.PRECISION:
        step /= 2

    def static(alpha):
        return sweeps.sweep(model, judged, None, vector, alphas=[alpha], dynamic=False)[0]

    for target in (static(1.0)["recite"], static(4.0)["recite"]):
        found = sweeps.static_at_equal_recitation(model, judged, vector, target, most=8.0)
        assert found is not None
        assert found == static(found["alpha"])
        assert found["recite"] <= target
        milder = found["alpha"] - step
        assert milder == 0 or static(milder)["recite"] > target
    assert sweeps.static_at_equal_recitation(model, judged, vector, -1.0, most=8.0) is None


def test_prose_is_planted_fitted_and_priced(tmp_path, monkeypatch):
    from rote.records import stdlib_documents
    from rote.studies import _mode_prose as prose
    from rote.testbed.scoring import load_arm
    from rote.testbed.train import parse_arm, train_arms

    texts = [document.text[:1200] for document in stdlib_documents() if len(document.text) > 1200][:90]
    (tmp_path / "corpus").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "corpus" / f"{number}.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(prose, "LEVELS", {0: 24, 64: 12})
    bed = prose.build_bed(
        tmp_path / "bed", seed=0, corpus=tmp_path / "corpus",
        progress=lambda text: None, steps=160, batch_size=8, corpus_tokens=40_000, layers=2,
        width=32, vocab_size=512, unseen_passages=20,
    )  # fmt: skip
    train_arms(bed, ["perturbed"], workers=1)
    details, rows = prose.measure(load_arm(bed, parse_arm("perturbed")), bed, seed=0, alphas=(2.0,))
    assert [row["alpha"] for row in rows] == [0.0, 2.0]
    assert rows[0]["perplexity cost"] == rows[0]["perplexity whole cost"] == 0
    assert details["prompts"] == {"memorized": 6, "general": 12, "held_out": 6}
    assert rows[1]["perplexity"] > 1
