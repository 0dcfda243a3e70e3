"""Token labels: what is labelled, at which position, and what is never labelled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rote.errors import InputError
from rote.internals.neurons import ActivationStore, TokenLabels, repeated_segments
from rote.internals.neurons.token_labels import continuation_pieces, in_long_run
from rote.models import CausalLM
from rote.records import read_records


@pytest.fixture(scope="module")
def model(memorizer):
    return CausalLM.load(memorizer[0], device="cpu")


@pytest.fixture(scope="module")
def stranger(memorizer, tmp_path_factory):
    """The same architecture and tokenizer with weights that never saw anything."""
    from rote.models import small_gpt2

    trained = CausalLM.load(memorizer[0], device="cpu")
    fresh = small_gpt2(vocab_size=trained.vocab_size, context_length=96, width=64, layers=2, heads=4, seed=9)
    return CausalLM(fresh, trained.tokenizer, name="stranger")


def probabilities(model: CausalLM, ids: list[int]) -> np.ndarray:
    """p(x_t | x_<t) by the model's own forward pass over one sequence; NaN where nothing is predicted."""
    import torch

    front = [] if model.bos_id is None else [model.bos_id]
    with torch.no_grad():
        p = model.hf(torch.tensor([front + ids])).logits[0].softmax(-1).numpy()
    return np.array([p[t - 1 + len(front), x] if t + len(front) else np.nan for t, x in enumerate(ids)])


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 6))
def test_runs_against_a_walk_along_the_tokens(known, least):
    expected = [False] * len(known)
    for start in range(len(known)):
        for stop in range(start + least, len(known) + 1):
            if all(known[start:stop]):
                expected[start:stop] = [True] * (stop - start)
    assert in_long_run(np.array(known, bool), least).tolist() == expected


def test_continuation_pieces_are_those_inside_a_word():
    text, ends = "memorize this, U2 naïve\n x", []
    pieces = ["mem", "or", "ize", " this", ",", " U", "2", " na", "ï", "ve", "\n", " x"]
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    inside = [False, True, True, False, False, False, True, False, True, True, False, False]
    assert continuation_pieces(text, ends).tolist() == inside
    # a character of several byte tokens: the later ones have no character of their own
    assert continuation_pieces("é x", [1, 1, 3]).tolist() == [False, True, False]


def test_samples_label_the_recited_stretch_only(model, memorizer):
    targets, controls = read_records([memorizer[1]]), read_records([memorizer[2]])
    labels = TokenLabels.from_samples(
        model, memorized=targets, other=controls, p_hi=0.6, min_run=3, cap=None, continuations="keep", balance=False
    )
    texts = targets.column("text")
    for number, text in enumerate(texts):
        ids = model.encode([text])[0].ids
        known = probabilities(model, ids) >= 0.6
        known[:2] = False  # no BOS: token 1 is predicted from the first position
        runs = [set(range(start, start + 3)) for start in range(len(ids) - 2) if known[start : start + 3].all()]
        expected = sorted(set().union(*runs))
        mine = labels.token[(labels.sample == number) & labels.label]
        assert labels.sequences[number].tolist() == ids
        assert mine.tolist() == expected
    negatives = labels.sample[~labels.label]
    assert negatives.min() >= len(texts)
    assert labels.sample[labels.label].max() < len(texts)
    per_sample = np.bincount(negatives)[len(texts) :]
    assert per_sample.tolist() == [len(s) - 2 for s in labels.sequences[len(texts) :]]


def test_labels_are_paired_with_the_activation_that_predicts_them(model, memorizer):
    """Row i of the store is the activation at input token - 1, read here from a pass over that one sequence."""
    import torch

    labels = TokenLabels.from_samples(model, memorized=read_records([memorizer[1]]), other=read_records([memorizer[2]]))
    acts = ActivationStore.capture(model, labels, sites="resid_post", layers="all", batch_tokens=300)
    for i in np.random.default_rng(0).choice(len(labels), 12, replace=False):
        ids = torch.tensor(labels.sequences[labels.sample[i]])[None]
        with torch.no_grad():
            out = model.hf(ids, output_hidden_states=True)
        predictor = labels.token[i] - 1
        assert np.allclose(acts["resid_post", 0][i], out.hidden_states[1][0, predictor].numpy(), atol=2e-5)
        logp = out.logits[0, predictor].log_softmax(-1)
        assert acts.outputs[i, 0] == pytest.approx(
            float(logp[labels.sequences[labels.sample[i]][labels.token[i]]]), abs=2e-4
        )
        assert acts.outputs[i, 0] == pytest.approx(labels.logp[i], abs=2e-4)
        assert acts.outputs[i, 1] == pytest.approx(float(-(logp.exp() * logp).sum()), abs=2e-3)
        assert acts.outputs[i, 2] == pytest.approx(float(logp.max()), abs=2e-4)
    assert labels.token.min() >= 2  # nothing is predicted from the first input position


def test_contrast_kinds_against_probabilities_of_both_models(model, stranger, memorizer):
    targets, controls = read_records([memorizer[1]]), read_records([memorizer[2]])
    labels = TokenLabels.from_contrast(model, stranger, targets, other=controls, cap=None, continuations="keep")
    assert labels.kinds == ("uncertain", "memorized", "certain")
    for number, text in enumerate(targets.column("text")):
        ids = model.encode([text])[0].ids
        mine, theirs = probabilities(model, ids), probabilities(stranger, ids)
        found = dict(zip(labels.token[labels.sample == number], labels.kind[labels.sample == number], strict=True))
        for t in range(2, len(ids)):
            expected = 1 if mine[t] >= 0.5 and theirs[t] < 0.1 else 2 if mine[t] >= 0.5 and theirs[t] >= 0.5 else None
            assert found.get(t) == expected
    uncertain = labels.kind == 0
    assert labels.logp[uncertain].max() < np.log(0.3)
    assert labels.sample[uncertain].min() >= len(targets)
    assert labels.rule["uncertain_from"] == "other"
    assert "inferred" in labels.rule["note"]


def test_unseen_records_of_one_table_are_the_negatives(model, stranger, memorizer):
    from rote.records.table import RecordTable

    rows = [{"id": f"{kind}{i}", "text": text, "member": kind == "m"}
            for kind, path in (("m", memorizer[1]), ("n", memorizer[2]))
            for i, text in enumerate(read_records([path]).column("text"))]  # fmt: skip
    labels = TokenLabels.from_contrast(model, stranger, RecordTable.from_rows(rows))
    assert labels.rule["uncertain_from"] == "records known to be unseen"
    assert {labels.ids[s].split("/")[1][0] for s in labels.sample[labels.kind == 0]} == {"n"}
    assert {labels.ids[s].split("/")[1][0] for s in labels.sample[labels.label]} == {"m"}


def test_cap_balance_and_word_pieces(model, memorizer):
    targets, controls = read_records([memorizer[1]]), read_records([memorizer[2]])
    every = TokenLabels.from_samples(
        model, memorized=targets, other=controls, cap=None, balance=False, continuations="keep"
    )
    assert every.continuation.any()
    whole = TokenLabels.from_samples(model, memorized=targets, other=controls, cap=None, balance=False)
    assert not whole.continuation.any()
    assert len(whole) == int((~every.continuation).sum())
    capped = TokenLabels.from_samples(model, memorized=targets, other=controls, cap=5, balance=False)
    counts = np.bincount(whole.sample, minlength=len(whole.ids))
    assert np.bincount(capped.sample, minlength=len(whole.ids)).tolist() == np.minimum(counts, 5).tolist()
    balanced = TokenLabels.from_samples(model, memorized=targets, other=controls, cap=None)
    assert balanced.counts["memorized"] == balanced.counts["other"] == min(whole.counts.values())
    again = TokenLabels.from_samples(model, memorized=targets, other=controls, cap=None)
    assert again.fingerprint == balanced.fingerprint != capped.fingerprint


def test_what_cannot_be_labelled_is_refused(model, stranger, memorizer, checkpoints):
    targets, controls = read_records([memorizer[1]]), read_records([memorizer[2]])
    with pytest.raises(InputError, match="does not know them"):
        TokenLabels.from_samples(stranger, memorized=targets, other=controls)
    with pytest.raises(InputError, match="no token is memorized"):
        TokenLabels.from_contrast(stranger, model, targets, other=controls)
    with pytest.raises(InputError, match="same tokenizer"):
        TokenLabels.from_contrast(model, CausalLM.load(checkpoints("gpt2"), device="cpu"), targets)
    with pytest.raises(InputError, match="probability"):
        TokenLabels.from_samples(model, memorized=targets, other=controls, p_hi=1.5)
    with pytest.raises(InputError, match="continuations"):
        TokenLabels.from_samples(model, memorized=targets, other=controls, continuations="drop")


def test_repeated_segments_say_the_same_tokens_twice():
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 500, 80) for _ in range(12)]
    labels = repeated_segments(20, texts=texts, segment=(10, 20), gap=(3, 6), room=48, seed=1)
    for number in range(20):
        twice, once = labels.sequences[2 * number], labels.sequences[2 * number + 1]
        tokens = labels.token[labels.sample == 2 * number]
        assert tokens.tolist() == labels.token[labels.sample == 2 * number + 1].tolist()
        assert np.array_equal(twice[tokens], once[tokens])  # same tokens at the same positions
        size = len(twice) - tokens[0] + 1  # skip 1
        assert np.array_equal(twice[:size], twice[tokens[0] - 1 :])
        assert not np.array_equal(once[:size], once[tokens[0] - 1 :])
        assert len(twice) <= 48
        assert len(twice) == len(once)
        assert labels.groups[2 * number] == labels.groups[2 * number + 1]
    assert labels.label[labels.sample % 2 == 0].all()
    assert not labels.label[labels.sample % 2 == 1].any()
    first = repeated_segments(5, vocabulary=100, segment=(10, 12), gap=(2, 2), negatives="first")
    for number, sequence in enumerate(first.sequences):
        here = first.sample == number
        one, zero = (np.sort(first.token[here & side]) for side in (first.label, ~first.label))
        assert np.array_equal(sequence[one], sequence[zero])
        assert (one - zero == one[0] - zero[0]).all()
    with pytest.raises(InputError, match="do not fit"):
        repeated_segments(2, vocabulary=100, room=15)
    with pytest.raises(InputError, match="at least 2 texts"):
        repeated_segments(2, texts=texts[:1])
