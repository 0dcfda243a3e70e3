"""The study of neuron probes: its claims are the card's, its pieces run, each claim is decided by what was found."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest

from rote.models import CausalLM, TrainingConfig, small_gpt2, train_causal_lm
from rote.records import read_records
from rote.studies import _neuron_bed as bed
from rote.studies import neuron_probes
from rote.studies.protocol import StudyContext

# Section 5 of the card: (i), (ii), both halves of (iii), its control, (iv) twice, and the passages they need.
CARD = {
    "passages_are_memorized",
    "beyond_difficulty",
    "permuted_labels",
    "steering_is_selective",
    "not_any_direction",
    "recitation_stops",
    "repetition_is_seen",
    "repetition_is_not_memory",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Everything measured at the smallest size: 12 passages learned by heart, 12 unknown ones; the control model knows
    4 of the 12, so that some tokens are certain in both."""
    from rote.models import train_bpe
    from rote.records import stdlib_documents

    texts = [document.text for document in stdlib_documents() if len(document.text) > 1500][:40]
    tokenizer = train_bpe(texts, vocab_size=384)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][40:160] for text in texts]
    passages = [tokenizer.decode(row[:32]) for row in ids[:24]]
    unseen = np.array([row[40:88] for row in ids[24:40]])
    again = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in passages]
    known = np.array([[tokenizer.bos_token_id, *row[:32]] for row in again[:12]])
    models = []
    for seed, rows in ((0, known), (1, known[8:])):
        hf = small_gpt2(vocab_size=len(tokenizer), context_length=64, width=32, layers=2, heads=2, seed=seed)
        train_causal_lm(hf, np.concatenate([rows] * 110), TrainingConfig(batch_size=4, learning_rate=5e-3))
        models.append(CausalLM(hf, tokenizer, bos="always", name=f"model {seed}"))
    file = tmp_path_factory.mktemp("passages") / "passages.jsonl"
    rows = [{"id": f"p{i}", "text": text, "duplicates": 110 * (i < 12)} for i, text in enumerate(passages)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    effort = bed.Effort(permutations=3, unit_permutations=5, segments=10, random_directions=1, folds=2)
    return bed.measure(models[0], models[1], read_records([file]), unseen, recited_from=110, effort=effort)


def test_claims_are_the_cards():
    assert {claim.id for claim in neuron_probes.CLAIMS} == CARD
    assert neuron_probes.STUDY.slug == "neuron-probes"


def test_every_piece_runs_and_every_claim_is_decided(found, tmp_path):
    assert found.counts["memorized"] > 50
    assert found.passages["110"]["below"] == 12
    assert found.passages["0"]["below"] == 0
    assert {row["site"] for row in found.by_site} == set(bed.SITES)
    assert len(found.permuted) == 3
    assert set(found.repetition) == {"matched", "first", "random tokens"}
    assert len({(row["site"], row["layer"]) for row in found.repetition.values()}) == 1
    chosen = [row["mode"] for row in found.places if row["chosen"]]
    assert chosen.count("diff-means") == 2  # one place for each half
    assert chosen.count("weighted") <= 3  # one for each third, where the direction does more than a random one
    context = StudyContext(neuron_probes.STUDY, 0, tmp_path)
    neuron_probes.decide(context, found)
    assert set(context.decided) == CARD
    assert not context.decided["passages_are_memorized"]["holds"]  # 12 are fewer than 60
    recitation = context.decided["recitation_stops"]["observed"]
    assert recitation["before"] == recitation["one dose for all tokens"]["before"] == 1.0
    random_falls = [recitation["fallen by, random"], recitation["fallen by, random at equal cost"]]
    assert context.decided["recitation_stops"]["holds"] == (
        recitation["fallen by"] >= 0.5 and recitation["cost"] < 0.03 and max(random_falls) < recitation["fallen by"] / 2
    )
    copied = found.repetition["matched"]
    assert 0 <= copied["greedy right, second"] <= 1
    assert 0 <= copied["greedy right, first"] <= 1
    assert len(neuron_probes.comparison_rows(found)) == 15


def test_a_half_is_never_steered_by_its_own_direction(found):
    """Both halves are measured, at the fixed doses and at the price, beside a random direction of the same size."""
    kinds = {(row["part"], row["direction"], row["dose"]) for row in found.doses if row["mode"] == "diff-means"}
    assert kinds == {
        *((half, name, dose) for half in (0, 1) for name in ("selected", "random") for dose in ("fixed", "price")),
        (0, "none", "fixed"),
        (1, "none", "fixed"),
    }
    mean = bed.both_halves(found.doses, "selected", 1.0)
    mine = [
        row
        for row in found.doses
        if row["mode"] == "diff-means" and row["direction"] == "selected" and row["scale"] == 1.0
    ]
    assert mean["rise_memorized"] == pytest.approx(sum(row["rise_memorized"] for row in mine) / 2)
    assert sum(row["recited_records"] for row in mine) == 12


def test_every_third_is_judged_once_beside_both_random_controls(found):
    rows = [row for row in found.doses if row["mode"] == "weighted"]
    names = ("none", "selected", "random", "random, equal cost")
    assert {(row["part"], row["direction"]) for row in rows} == {(part, name) for part in range(3) for name in names}
    assert sum(row["recited_records"] for row in rows if row["direction"] == "selected") == 12
    for part in range(3):
        at = {row["direction"]: row for row in rows if row["part"] == part}
        assert at["selected"]["scale"] == at["random"]["scale"]
        assert at["random, equal cost"]["scale"] <= 4 * at["selected"]["scale"]


@pytest.mark.parametrize(("paid", "granted"), [(-0.03, 0.02), (0.01, 0.02), (0.05, 0.05)])
def test_random_directions_may_cost_what_the_selected_one_costs_and_the_price_at_least(monkeypatch, paid, granted):
    """Where the selected direction makes text likelier, random ones still get a dose worth the name."""
    import rote.internals.neurons as neurons
    from rote.internals.neurons import Direction, Place
    from rote.internals.neurons import dose_response as doses
    from rote.studies._neuron_recitation import RANDOM, at_equal_cost

    seen = []
    perplexities = iter([10.0, 10.0 * (1 + paid)])
    monkeypatch.setattr(doses, "sequence_logp", lambda model, texts: ([], []))
    monkeypatch.setattr(doses, "perplexity", lambda logp: next(perplexities))
    monkeypatch.setattr(neurons.intervention, "intervene", lambda *_, **__: nullcontext())
    monkeypatch.setattr(neurons, "dose_at_cost", lambda *_, cost, **__: seen.append(cost) or (1.0, cost), raising=False)
    monkeypatch.setattr(doses, "dose_response", lambda *_, **__: [{"extraction": 0.5, "scale": 1.0}])
    vector = np.ones(3)
    direction = Direction(Place("attn_out", 0), 2 * vector, vector, vector)
    row = at_equal_cost(None, direction, None, 2.0, [], 0.02, {"seed": 0})  # pyright: ignore[reportArgumentType]
    assert seen == pytest.approx([granted] * RANDOM)
    assert row == {"direction": "random, equal cost", "mode": "weighted", "extraction": 0.5, "scale": 1.0}


def test_figures_are_made(found, tmp_path):
    rows = neuron_probes.comparison_rows(found)
    assert len(list(neuron_probes.probes_figure(rows).data)) == 4
    row = neuron_probes.recitation_row(found, "weighted")
    bars = neuron_probes.recitation_figure(found).data
    keys = ("before", "after", "after, random", "after, random at equal cost")
    assert [bar.y[0] for bar in bars] == [row[key] for key in keys]
    assert row["after"] <= row["before"] == 1.0
    assert row["fallen by"] == pytest.approx(1 - row["after"])
    assert len(list(neuron_probes.doses_figure(found.doses).data)) == 8
    assert "AUROC" in neuron_probes.unit_figure(found).layout.title.text
    told = neuron_probes.repetition_figure(found).data
    assert [bar.name for bar in told] == ["repetition probe", "memorization probe", "log p, entropy, max p only"]
    assert told[1].y[2] == found.repetition["random tokens"]["probe M / C and U"]
