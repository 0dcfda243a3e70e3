"""REMIND end to end through a plain loss function: what must be found is found, what must not is not."""

from __future__ import annotations

import numpy as np
import pytest

from rote.audit.remind import model_loss, remind, scan
from rote.errors import InputError
from rote.models import CausalLM
from rote.scores.embedding_neighbours import EmbeddingNeighbours

WORDS = [
    "module", "return", "value", "error", "import", "class", "object", "list", "number", "string", "index",
    "function", "loop", "type", "key", "file",
]  # fmt: skip


@pytest.fixture(scope="module")
def neighbours(tokenizer):
    rng = np.random.default_rng(0)
    return EmbeddingNeighbours(tokenizer, rng.normal(size=(len(tokenizer), 12)), top=5)


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 8)) for _ in range(90)]


def test_scan_is_a_loop_over_the_loss_and_counts_queries(neighbours, sentences):
    asked = []

    def loss(batch):
        asked.extend(batch)
        return np.array([len(text) / 10 for text in batch])

    found = scan(loss, sentences[:20], neighbours, k=4, p=(0.1, 0.4), block=7)
    assert found.queries == len(asked) == 20 * (1 + 2 * 4)
    np.testing.assert_allclose(found.loss, [len(text) / 10 for text in sentences[:20]])
    again = scan(loss, sentences[:20], neighbours, k=2, p=(0.1, 0.4))
    np.testing.assert_array_equal(found.first(2).features.matrix, again.features.matrix)
    assert found.first(2).queries == again.queries


def test_a_plateau_is_found_and_no_difference_is_not(neighbours, sentences):
    labels = np.repeat([0, 1, 2], 30)
    noise = np.random.default_rng(1)
    flat = scan(lambda batch: 2.0 + 0.1 * noise.random(len(batch)), sentences, neighbours, k=6, p=(0.3,))
    # Forgotten texts stay on their plateau; the neighbours of all others cost more.
    bent = flat.around.copy()
    bent[labels != 1] += np.random.default_rng(2).gamma(2, 0.5, bent[labels != 1].shape)
    from rote.audit.remind import LandscapeScan
    from rote.measures.landscape import landscape_features

    made = LandscapeScan(
        flat.loss, bent, flat.distance, landscape_features(flat.loss, bent, flat.distance), flat.pointwise,
        flat.queries, flat.round_trip, flat.mean_length_change,
    )  # fmt: skip
    report = remind(made, labels, sentences, oracle=flat, trees=40)
    assert report.pairs["retained / forgotten"].landscape > 0.9
    assert report.pairs["forgotten / holdout"].landscape > 0.9
    assert 0.3 < report.pairs["retained / holdout"].landscape < 0.7
    assert report.flatness["std"]["forgotten"] > report.flatness["std"]["holdout"]
    assert 0.3 < report.oracle.pairs["forgotten / holdout"].landscape < 0.7
    assert 0.3 < report.auroc_shuffled < 0.7
    assert any("can be told apart" in note for note in report.notes)
    assert sum(map(sum, report.confusion)) == 90


def test_model_loss_is_the_mean_nll_and_equal_texts_are_asked_once(memorizer):
    import torch

    model = CausalLM.load(memorizer[0], device="cpu", dtype="float32")
    loss = model_loss(model)
    found = loss(["import the module", "return a value now", "import the module"])
    assert found[0] == found[2]
    ids = torch.tensor([model.tokenizer("return a value now", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        expected = float(model.hf(input_ids=ids, labels=ids).loss)
    assert found[1] == pytest.approx(expected, rel=1e-5)


def test_wrong_labels_and_losses_are_refused(neighbours, sentences):
    found = scan(lambda batch: np.ones(len(batch)), sentences[:12], neighbours, k=2, p=(0.2,))
    with pytest.raises(InputError, match="labels are 0 retained"):
        remind(found, np.zeros(12, int), sentences[:12])
    with pytest.raises(InputError, match="one finite number"):
        scan(lambda batch: np.full(len(batch), np.nan), sentences[:3], neighbours, k=1)
