"""Learning events of sequences and holdout retraining of a tiny language model, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rote.errors import InputError
from rote.internals.sequence_proxies import holdout_retraining_lm, sequence_events
from rote.measures.proxies import learning_event, symmetric_kl
from rote.models import TrainingConfig, small_llama, train_causal_lm

RECIPE = TrainingConfig(batch_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def model():
    return small_llama(vocab_size=20, context_length=16, width=16, layers=1, heads=2, seed=0)


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 20, (12, 9))


def test_events_are_read_in_the_training_loop_and_only_there(model, windows):
    made, noted = small_llama(vocab_size=20, context_length=16, width=16, layers=1, heads=2, seed=0), []

    def twin(module, args, kwargs, output):
        if module.training:
            noted.append((kwargs["input_ids"].clone(), output.logits.detach().clone()))

    made.register_forward_hook(twin, with_kwargs=True)
    stream = np.concatenate([windows[:8], windows[4:8], windows[:4]])  # rows 0..7 twice
    with sequence_events(made) as events:
        train_causal_lm(made, stream, RECIPE)
        made.eval()
        made(input_ids=torch.from_numpy(windows[8:, :-1]))
    fed = windows[:8, :-1]  # what the loop feeds: all but the last token
    found = events.scores(list(fed))
    np.testing.assert_array_equal(events.shown(list(windows[:, :-1])), [2] * 8 + [0] * 4)
    for number, row in enumerate(fed):
        per_event = []
        for ids, logits in noted:
            for tokens, scores in zip(ids.numpy(), logits, strict=True):
                if np.array_equal(tokens, row):
                    p = scores[:-1].double().softmax(-1).numpy()
                    per_event.append({name: v.mean() for name, v in learning_event(p, tokens[1:]).items()})
        assert len(per_event) == 2
        for name, values in found.items():
            assert values[number] == pytest.approx(np.mean([event[name] for event in per_event]), abs=1e-5)
    with pytest.raises(InputError, match="sequence 0 was in no recorded step"):
        events.scores([windows[9, :-1]])


def test_padding_is_neither_scored_nor_part_of_the_name(model, windows):
    short = torch.from_numpy(windows[:1, :5])
    padded = torch.cat([short, torch.zeros(1, 3, dtype=torch.long)], 1)
    mask = torch.tensor([[1] * 5 + [0] * 3])
    model.train()
    with sequence_events(model) as plain, torch.no_grad():
        model(input_ids=short)
    with sequence_events(model) as other, torch.no_grad():
        model(input_ids=padded, attention_mask=mask)
    for name, values in plain.scores([windows[0, :5]]).items():
        assert other.scores([windows[0, :5]])[name] == pytest.approx(values, abs=1e-6)


def test_holdout_retraining_is_the_mean_symmetric_kl_to_the_tuned_copy(model, windows):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = holdout_retraining_lm(model, windows[:4], windows[4:], RECIPE, epochs=2, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    twin = small_llama(vocab_size=20, context_length=16, width=16, layers=1, heads=2, seed=0)
    rng = np.random.default_rng(1)
    train_causal_lm(twin, np.concatenate([rng.permutation(windows[4:]) for _ in range(2)]), RECIPE)
    for row, value in zip(windows[:4], found, strict=True):
        p, q = (
            side.eval()(input_ids=torch.from_numpy(row[None])).logits[0, :-1].detach().softmax(-1).numpy()
            for side in (model, twin)
        )
        assert value == pytest.approx(symmetric_kl(p, q).mean(), rel=1e-3)
    with pytest.raises(InputError, match="unseen text"):
        holdout_retraining_lm(model, windows[:4], windows[:4], RECIPE)
