"""A bed whose models copy: what its arms train on, what they begin with, and that other beds are untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rote.errors import InputError
from rote.testbed.bed import Bed, BedSettings
from rote.testbed.build import build
from rote.testbed.copying import initial_model, with_practice
from rote.testbed.train import train_arms

SHAPE = {"width": 72, "layers": 3, "heads": 3, "architecture": "llama"}
SIZES = {"vocab_size": 300, "batch_size": 4, "steps": 12, "passages": 8, "passage_tokens": 16, "unseen_passages": 4}
SETTINGS = BedSettings(**SIZES, **SHAPE, copying_rows=3, weights={0: 4, 4: 4})


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ba", "do", "ki", "lu") for b in ("ran", "til", "von", "zek")]
    for number in range(120):
        (corpus / f"{number:03d}.txt").write_text(" ".join(rng.choice(words, rng.integers(20, 40))) + ".")
    return build(tmp_path_factory.mktemp("bed") / "bed", settings=SETTINGS, corpus=corpus)


def test_every_batch_holds_the_beds_rows_and_the_same_practice_in_every_arm(bed):
    perturbed, standard = (bed.planted_stream(window=window)[0] for window in ((0.0, 1.0), None))
    rows, others = with_practice(bed, perturbed), with_practice(bed, standard)
    assert rows.shape == (12 * (4 + 3), 49 + 1)
    assert (rows[:, 0] == bed.eos_id).all()
    batches, other_batches = rows[:, 1:].reshape(12, 7, 49), others[:, 1:].reshape(12, 7, 49)
    assert np.array_equal(batches[:, :4].reshape(-1, 49), perturbed)
    assert np.array_equal(other_batches[:, :4].reshape(-1, 49), standard)
    assert np.array_equal(batches[:, 4:], other_batches[:, 4:])
    planted = [bytes(np.asarray(ids, np.int64)) for ids in bed.probe_tokens]
    practice = [bytes(row.astype(np.int64)) for row in batches[:, 4:].reshape(-1, 49)]
    assert not any(text in row for text in planted for row in practice)


def test_arms_begin_with_heads_that_copy_and_are_ordinary_checkpoints(bed):
    begun = initial_model(bed)
    ids = torch.tensor([[bed.eos_id, *range(20, 40), *range(20, 40)]])
    with torch.inference_mode():
        greedy = begun.eval()(ids[:, :-1]).logits.argmax(-1)
    assert (greedy[:, 22:] == ids[:, 23:]).float().mean() > 0.4  # 24 dimensions a head are the fewest that do
    paths = train_arms(bed, ["standard", "perturbed"], workers=1)
    for path in paths.values():
        model = AutoModelForCausalLM.from_pretrained(path)
        assert model.config.attention_bias
        assert not torch.equal(model.lm_head.weight, begun.lm_head.weight)


def test_a_bed_without_them_is_what_it_was(bed, tmp_path):
    plain = BedSettings(**SIZES, **SHAPE)
    assert "copying_rows" not in plain.to_json()
    assert BedSettings.from_json(plain.to_json()) == plain
    assert BedSettings.from_json(SETTINGS.to_json()) == SETTINGS == bed.settings
    stands = Bed(bed.path, {**bed.manifest, "settings": plain.to_json()})
    stream = stands.clean_stream()
    assert with_practice(stands, stream) is stream
    assert not initial_model(stands).config.attention_bias


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"architecture": "gpt2"}, "llama"),
        ({"copying_rows": -1}, "0 or more"),
        ({"width": 48}, "24 dimensions"),
        ({"layers": 2}, "3 layers"),
        ({"sequence_tokens": 48}, "comes twice"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, word):
    with pytest.raises(InputError, match=word):
        BedSettings(**(SIZES | SHAPE | {"copying_rows": 3} | changed))
