"""Planted heads look where they should, against a scan of the context; planted models continue what recurs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rote.errors import InputError
from rote.models.builders import small_gpt2, small_llama
from rote.models.copying_heads import plant_copying_heads

BEGIN, VOCAB = 0, 500


def made(seed=3, width=96, heads=3, **changed):
    shape = {"vocab_size": VOCAB, "context_length": 64, "layers": 4, "attention_bias": True, "eos_id": BEGIN}
    model = small_llama(**(shape | {"width": width, "heads": heads, "seed": seed} | changed))
    return model.eval()


def planted(seed=3, **changed):
    model = made(seed, **changed)
    plant_copying_heads(model, begin_id=BEGIN, seed=seed)
    return model


def repeated(rows=16, segment=20, gap=5, seed=0):
    """[begin, segment, gap, segment], every token of a row once before the segment comes back."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.choice(np.arange(1, VOCAB), segment + gap, replace=False) for _ in range(rows)])
    return torch.from_numpy(np.concatenate([np.full((rows, 1), BEGIN), drawn, drawn[:, :segment]], axis=1))


def attentions(model, ids):
    model.config._attn_implementation = "eager"
    with torch.inference_mode():
        return [layer.numpy() for layer in model(ids, output_attentions=True).attentions]


def behind_the_same(row, i, length):
    """The place behind the last `length` tokens up to i, where they stood before; None where they did not."""
    for j in range(i - 1, length - 2, -1):
        if list(row[j - length + 1 : j + 1]) == list(row[i - length + 1 : i + 1]):
            return j + 1
    return None


@pytest.mark.parametrize("shape", [{}, {"width": 128, "heads": 4}], ids=["96", "128"])
def test_heads_attend_where_a_scan_of_the_context_says(shape):
    ids = repeated()
    layers = attentions(planted(**shape), ids)
    for head in (0, 1):
        back = np.diagonal(layers[0][:, head], offset=-(head + 1), axis1=1, axis2=2)
        assert back[:, 2:].mean() > 0.95
    for head, length in ((0, 1), (1, 2)):
        on_place, on_begin = [], []
        for row, attention in zip(ids.tolist(), layers[1][:, head], strict=True):
            for i in range(3, len(row)):
                place = behind_the_same(row, i, length)
                (on_begin if place is None else on_place).append(attention[i, 0 if place is None else place])
        assert np.mean(on_place) > 0.5
        assert np.mean(on_begin) > 0.2  # among 25 places, when nothing stood there before


def test_what_recurs_is_continued_and_only_that():
    ids = repeated()
    for model, least, most in ((planted(), 0.5, 1.0), (made(), 0.0, 0.05)):
        with torch.inference_mode():
            greedy = model(ids[:, :-1]).logits.argmax(-1)
        right = (greedy == ids[:, 1:]).float()
        assert least <= right[:, -18:].mean() <= most
        assert right[:, :24].mean() < 0.1


def test_training_on_recurring_rows_keeps_the_heads():
    from rote.models.training import TrainingConfig, train_causal_lm
    from rote.records.recurring import recurring_rows

    rng = np.random.default_rng(1)
    text = rng.choice(np.arange(1, VOCAB), 4000, p=np.arange(VOCAB - 1, 0, -1) / (VOCAB * (VOCAB - 1) / 2))
    rows = recurring_rows(8 * 150, 49, text, np.arange(1, VOCAB), drawn=0.5)
    model = planted()
    train_causal_lm(model, np.insert(rows, 0, BEGIN, axis=1), TrainingConfig(batch_size=8))
    ids = repeated(seed=9)
    with torch.inference_mode():
        right = model(ids[:, :-1]).logits.argmax(-1) == ids[:, 1:]
    assert right[:, -18:].float().mean() > 0.5
    assert right[:, :24].float().mean() < 0.05


def test_weights_depend_on_the_seed_alone_and_the_random_state_is_left():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = planted(), planted(), planted(4)
    assert torch.equal(before, torch.get_rng_state())
    states = [dict(model.named_parameters()) for model in (first, again, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])
    assert all(torch.isfinite(value).all() for value in states[0].values())


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"layers": 2}, "3 layers"),
        ({"heads": 2}, "3 heads"),
        ({"heads": 6}, "24 dimensions"),
        ({"attention_bias": False}, "attention_bias"),
        ({"tied": True}, "untied"),
        ({"kv_heads": 1}, "key head"),
    ],
)
def test_models_that_cannot_hold_them_are_refused(changed, word):
    model = made(**changed)
    with pytest.raises(InputError, match=word):
        plant_copying_heads(model, begin_id=BEGIN)


def test_only_a_llama_is_taken():
    model = small_gpt2(vocab_size=VOCAB, context_length=64, width=96, layers=4, heads=3)
    with pytest.raises(InputError, match="Llama"):
        plant_copying_heads(model, begin_id=BEGIN)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("begin", [-1, VOCAB])
def test_a_begin_token_the_model_does_not_have_is_refused(begin):
    with pytest.raises(InputError, match="begin"):
        plant_copying_heads(made(), begin_id=begin)
