"""The training loop: the order it was given, the schedule it promises, the same result after an interruption."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from rote.errors import InputError, RoteError
from rote.models.builders import small_gpt2, small_llama
from rote.models.training import TrainingConfig, train_causal_lm


def tiny(seed=0, **changes):
    return small_gpt2(
        **({"vocab_size": 50, "context_length": 12, "width": 16, "layers": 1, "heads": 2, "seed": seed} | changes)
    )


def stream(rows=64, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 50, (rows, width)).astype(np.int32)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


CONFIG = TrainingConfig(batch_size=4, threads=1)


def test_the_first_steps_are_adamw_written_out_by_hand():
    """Two steps against the update rule of Loshchilov and Hutter 2019, matrices decayed and vectors not.

    Left out are entries whose gradient is rounding noise (keys' biases: attention does not depend on them), because
    Adam divides noise by noise.
    """
    model, data = tiny(), stream(rows=8)
    twin = tiny()
    losses = train_causal_lm(model, data, CONFIG)
    first = {n: torch.zeros_like(p) for n, p in twin.named_parameters()}
    second = {n: torch.zeros_like(p) for n, p in twin.named_parameters()}
    real = {n: torch.ones_like(p, dtype=torch.bool) for n, p in twin.named_parameters()}
    for step in range(2):
        batch = torch.from_numpy(data[4 * step : 4 * step + 4].astype(np.int64))
        twin.zero_grad()
        logp = torch.log_softmax(twin(input_ids=batch[:, :-1]).logits, -1)
        loss = -logp.gather(-1, batch[:, 1:, None]).mean()
        loss.backward()
        assert losses[step] == pytest.approx(loss.item(), abs=1e-5)
        norm = torch.sqrt(sum((p.grad**2).sum() for p in twin.parameters()))
        clip = min(1.0, CONFIG.clip_norm / (norm.item() + 1e-6))
        rate = CONFIG.learning_rate_at(step, 2)
        with torch.no_grad():
            for n, p in twin.named_parameters():
                gradient = p.grad * clip
                real[n] &= (gradient.abs() > 1e-6) | (gradient == 0)
                first[n] = 0.9 * first[n] + 0.1 * gradient
                second[n] = 0.95 * second[n] + 0.05 * gradient**2
                m = first[n] / (1 - 0.9 ** (step + 1))
                v = second[n] / (1 - 0.95 ** (step + 1))
                if p.dim() >= 2:
                    p.mul_(1 - rate * CONFIG.weight_decay)
                p.sub_(rate * m / (v.sqrt() + 1e-8))
    chosen = torch.cat([mask.flatten() for mask in real.values()])
    assert chosen.float().mean() > 0.98
    assert torch.allclose(weights(model)[chosen], weights(twin)[chosen], atol=2e-5)


def test_the_schedule_warms_up_peaks_and_ends_at_its_share():
    config = TrainingConfig(learning_rate=1.0, final_share=0.1, warmup_share=0.1)
    rates = [config.learning_rate_at(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99] == rates[100] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.55)  # half-way down the cosine
    assert rates[1000] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[100:]))


def test_training_is_deterministic_and_sees_rows_in_order():
    first, again, other = tiny(), tiny(), tiny()
    data = stream()
    losses = train_causal_lm(first, data, CONFIG)
    assert np.array_equal(losses, train_causal_lm(again, data, CONFIG))
    assert torch.equal(weights(first), weights(again))
    changed = data.copy()
    changed[40:] = stream(seed=1)[40:]
    late = train_causal_lm(other, changed, CONFIG)
    assert np.array_equal(losses[:10], late[:10])  # rows 40 and on are batch 10 and on
    assert not np.array_equal(losses[10:], late[10:])


def test_it_learns_a_repeated_text():
    row = np.arange(9)
    losses = train_causal_lm(tiny(), np.tile(row, (600, 1)), TrainingConfig(batch_size=4, learning_rate=1e-2))
    assert losses[0] > 3.0
    assert losses[-1] < 0.1


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "build", [tiny, lambda: small_llama(vocab_size=50, context_length=12, width=16, layers=1, heads=2)]
)
def test_an_interrupted_run_goes_on_to_the_same_bits(build, tmp_path):
    data = stream()
    whole = build()
    expected = train_causal_lm(whole, data, CONFIG)

    def stop(step, steps, loss):
        if step == 11:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_causal_lm(build(), data, CONFIG, progress=stop, checkpoint=tmp_path / "c", checkpoint_every=4)
    seen = []
    resumed = build()
    losses = train_causal_lm(
        resumed, data, CONFIG, progress=lambda s, n, loss: seen.append(s), checkpoint=tmp_path / "c", checkpoint_every=4
    )
    assert seen[0] == 9  # steps 1 to 8 were not repeated
    assert np.array_equal(losses, expected)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_checkpoint_of_another_stream_is_refused_and_a_damaged_one_too(tmp_path):
    train_causal_lm(tiny(), stream(), CONFIG, checkpoint=tmp_path / "c", checkpoint_every=4)
    with pytest.raises(InputError, match="another run"):
        train_causal_lm(tiny(), stream(seed=1), CONFIG, checkpoint=tmp_path / "c", checkpoint_every=4)
    (file,) = (tmp_path / "c").iterdir()
    for broken in (b"broken", file.read_bytes()[:-9]):
        file.write_bytes(broken)
        with pytest.raises(InputError, match="remove it to train anew"):
            train_causal_lm(tiny(), stream(), CONFIG, checkpoint=tmp_path / "c")


def test_divergence_stops_with_the_step_and_the_cause():
    model = tiny()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RoteError, match=r"diverged at step 0 of 16: loss nan.*learning rate"):
        train_causal_lm(model, stream(), CONFIG)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (stream(rows=3), "fewer than one batch"),
        (stream(width=20), "the model's context is 12"),
        (stream() + 45, "the model knows 0 .. 49"),
        (stream()[0], "matrix"),
    ],
)
def test_bad_streams_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        train_causal_lm(tiny(), data, CONFIG)


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"learning_rate": 0.0}, {"final_share": 2.0}])
def test_bad_recipes_are_refused(changes):
    with pytest.raises(InputError):
        TrainingConfig(**changes)
