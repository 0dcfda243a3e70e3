"""The unlearning losses against independent twins: float64 loops over tokens, closed forms, limits, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rote.controls.editing.unlearning import losses
from rote.errors import InputError

BATCH, TOKENS, VOCABULARY = 3, 5, 7


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(BATCH, TOKENS, VOCABULARY, generator=generator)
    reference = logits + torch.randn(logits.shape, generator=generator)
    labels = torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=generator)
    labels[0, :2] = labels[1, 3:] = labels[2, 0] = losses.IGNORED
    return logits, reference, labels


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def tokens_of(logits, labels):
    """(sequence, token, logits row in float64, label) of every label, by plain loops."""
    z = logits.double().numpy()
    for b in range(len(labels)):
        for t in range(labels.shape[1]):
            if labels[b, t] != losses.IGNORED:
                yield b, t, z[b, t], int(labels[b, t])


def sums(logits, labels) -> list[float]:
    total = [0.0] * len(labels)
    for b, _, z, y in tokens_of(logits, labels):
        total[b] -= math.log(softmax(z)[y])
    return total


def close(value, expected, rel=2e-5):
    assert value.item() == pytest.approx(expected, rel=rel, abs=1e-5)


def gradient(loss_of, logits):
    z = logits.clone().requires_grad_(True)
    return torch.autograd.grad(loss_of(z), z)[0]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


# --- values ----------------------------------------------------------------------------------------------------------


def test_cross_entropy_and_gradient_ascent(case):
    logits, _, labels = case
    nll = [-math.log(softmax(z)[y]) for _, _, z, y in tokens_of(logits, labels)]
    close(losses.nll_loss(logits, labels), np.mean(nll))
    close(losses.gradient_ascent(logits, labels), -np.mean(nll))
    np.testing.assert_allclose(losses.sequence_nll(logits, labels), sums(logits, labels), rtol=1e-5)


def test_npo_and_dpo_use_sequence_sums(case):
    logits, reference, labels = case
    now, then = sums(logits, labels), sums(reference, labels)
    expected = -(2 / 0.3) * np.mean([log_sigmoid(0.3 * (a - b)) for a, b in zip(now, then, strict=True)])
    tensors = [losses.sequence_nll(z, labels) for z in (logits, reference)]
    close(losses.npo(*tensors, beta=0.3), expected)
    win = torch.tensor([2.0, 5.0, 1.0]), torch.tensor([3.0, 4.0, 1.5])
    margins = [(w0 - w1) - (b - a) for w1, w0, a, b in zip(*(x.tolist() for x in win), now, then, strict=True)]
    close(losses.dpo(*win, *tensors, beta=0.3), -(2 / 0.3) * np.mean([log_sigmoid(0.3 * m) for m in margins]))


def test_simnpo(case):
    logits, _, labels = case
    counts = (labels != losses.IGNORED).sum(1).tolist()
    per_token = [s / n for s, n in zip(sums(logits, labels), counts, strict=True)]
    expected = -(2 / 4.5) * np.mean([log_sigmoid(4.5 * (x - 0.7)) for x in per_token])
    close(losses.simnpo(logits, labels, beta=4.5, delta=0.7), expected)


def test_weighted_ascent(case):
    logits, _, labels = case
    p = [softmax(z)[y] for _, _, z, y in tokens_of(logits, labels)]
    close(losses.wga(logits, labels, beta=2), -np.mean([q**2 * -math.log(q) for q in p]))
    close(losses.satimp(logits, labels, beta1=5, beta2=1), -np.mean([q**5 * (1 - q) * -math.log(q) for q in p]))


def test_undial_ce_u_and_kl(case):
    logits, reference, labels = case
    damped, others, divergence, last = [], [], [], -1
    ref = reference.double().numpy()
    for b, t, z, y in tokens_of(logits, labels):
        log_p, target = np.log(softmax(z)), ref[b, t].copy()
        divergence.append(np.sum(softmax(target) * (np.log(softmax(target)) - log_p)))
        target[y] -= 10
        damped.append(-np.sum(softmax(target) * log_p))
        if b == last:  # the first label of every sequence is left out
            without = z.copy()
            without[y] = -np.inf
            others.append(-np.sum(softmax(without) * log_p))
        last = b
    close(losses.undial(logits, reference, labels, beta=10), np.mean(damped))
    close(losses.ce_u(logits, labels, ignore_first=1), np.mean(others))
    close(losses.kl_loss(logits, reference, labels), np.mean(divergence))


def test_pdu_and_states(case):
    logits, reference, labels = case
    close(losses.pdu(logits, labels), np.mean([(z.max() - z.mean()) ** 2 for _, _, z, _ in tokens_of(logits, labels)]))
    counted = labels != losses.IGNORED
    differences = [
        np.mean((a - b) ** 2) for a, b in zip(logits[counted].numpy(), reference[counted].numpy(), strict=True)
    ]
    close(losses.embed_diff(logits, reference, counted), np.mean(differences))
    target = torch.arange(VOCABULARY).float()
    close(
        losses.rmu(logits, target, counted),
        np.mean([np.mean((h - target.numpy()) ** 2) for h in logits[counted].numpy()]),
    )


# --- limits and fixed points -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_npo_at_the_reference_is_gradient_ascent_on_sums(case, beta):
    logits, _, labels = case
    start = losses.sequence_nll(logits, labels)
    close(losses.npo(start, start, beta=beta), 2 / beta * math.log(2))
    npo = gradient(lambda z: losses.npo(losses.sequence_nll(z, labels), start, beta=beta), logits)
    ascent = gradient(lambda z: -losses.sequence_nll(z, labels).mean(), logits)
    torch.testing.assert_close(npo, ascent)


def test_npo_with_small_beta_is_gradient_ascent_plus_a_constant(case):
    logits, reference, labels = case
    now, then = losses.sequence_nll(logits, labels).double(), losses.sequence_nll(reference, labels).double()
    beta = 1e-6
    difference = losses.npo(now, then, beta=beta) - 2 / beta * math.log(2)
    assert difference.item() == pytest.approx(-(now - then).mean().item(), rel=1e-3)


def test_npo_with_large_beta_leaves_forgotten_text_alone(case):
    logits, _, labels = case
    start = losses.sequence_nll(logits, labels).detach() - 5.0  # already less likely than under the reference
    found = gradient(lambda z: losses.npo(losses.sequence_nll(z, labels), start, beta=100.0), logits)
    assert found.abs().max() < 1e-20


def test_simnpo_with_small_beta_is_ascent_per_token():
    """With equal numbers of labels the mean over sequences is the mean over tokens."""
    logits = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 6, (4, 3), generator=torch.Generator().manual_seed(2))
    simnpo = gradient(lambda z: losses.simnpo(z, labels, beta=1e-4), logits)
    torch.testing.assert_close(
        simnpo, gradient(lambda z: losses.gradient_ascent(z, labels), logits), rtol=1e-3, atol=1e-6
    )


def test_dpo_with_identical_answers_is_flat(case):
    logits, reference, labels = case
    then = losses.sequence_nll(reference, labels)

    def loss(z):
        now = losses.sequence_nll(z, labels)
        return losses.dpo(now, then, now, then, beta=0.1)

    close(loss(logits), 2 * math.log(2) / 0.1)
    assert gradient(loss, logits).abs().max() == 0


def test_satimp_and_wga_without_weights_are_gradient_ascent(case):
    logits, _, labels = case
    ascent = gradient(lambda z: losses.gradient_ascent(z, labels), logits)
    torch.testing.assert_close(gradient(lambda z: losses.satimp(z, labels, beta1=0, beta2=0), logits), ascent)
    torch.testing.assert_close(gradient(lambda z: losses.wga(z, labels, beta=0), logits), ascent)


def test_satimp_weights_carry_no_gradient(case):
    """d/dz of w nll with w constant is w (softmax - onehot) / labels."""
    logits, _, labels = case
    found = gradient(lambda z: losses.satimp(z, labels), logits)
    total = int((labels != losses.IGNORED).sum())
    expected = torch.zeros_like(logits)
    for b, t, z, y in tokens_of(logits, labels):
        p = softmax(z)
        expected[b, t] = torch.from_numpy(-(p[y] ** 5 * (1 - p[y])) * (p - np.eye(VOCABULARY)[y]) / total).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_satimp_keeps_its_digits_for_memorized_tokens():
    logits = torch.tensor([[[30.0, 0.0]]])
    loss = losses.satimp(logits, torch.tensor([[0]]), beta1=5, beta2=1)
    assert loss.item() == 0 or abs(loss.item()) < 1e-20  # p = 1 in float32: nothing to gain, and no NaN


def test_undial_without_damping_is_at_rest(case):
    logits, _, labels = case
    assert gradient(lambda z: losses.undial(z, logits, labels, beta=0.0), logits).abs().max() < 1e-7


def test_ce_u_rests_where_the_true_token_is_impossible(case):
    logits, _, labels = case
    index = torch.where(labels == losses.IGNORED, 0, labels)[..., None]
    forgotten = logits.scatter(-1, index, -60.0)
    assert gradient(lambda z: losses.ce_u(z, labels), forgotten).abs().max() < 1e-7
    assert gradient(lambda z: losses.ce_u(z, labels), logits).abs().max() > 1e-3


def test_pdu_of_uniform_logits_is_zero(case):
    _, _, labels = case
    assert losses.pdu(torch.full((BATCH, TOKENS, VOCABULARY), 4.2), labels).item() == pytest.approx(0, abs=1e-9)


def test_rmu_is_zero_at_its_target():
    target = 2.0 * torch.nn.functional.normalize(torch.rand(8), dim=0)
    hidden = target.expand(2, 3, 8).clone()
    assert losses.rmu(hidden, target, torch.ones(2, 3, dtype=torch.bool)).item() == 0


def test_kl_rests_at_the_reference(case):
    logits, _, labels = case
    close(losses.kl_loss(logits, logits, labels), 0)
    assert gradient(lambda z: losses.kl_loss(z, logits, labels), logits).abs().max() < 1e-7


def test_the_multiplier_of_pdu():
    assert losses.dual_step(1.0, 0.5, eps=0.3, step=2.0) == pytest.approx(1.4)
    assert losses.dual_step(0.1, 0.0, eps=0.3) == 0.0


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_must_be_positive(beta):
    with pytest.raises(InputError, match="beta"):
        losses.npo(torch.ones(1), torch.ones(1), beta=beta)


# --- padding ---------------------------------------------------------------------------------------------------------

ALL = {
    "nll": lambda z, r, y: losses.nll_loss(z, y),
    "kl": losses.kl_loss,
    "ascent": lambda z, r, y: losses.gradient_ascent(z, y),
    "npo": lambda z, r, y: losses.npo(losses.sequence_nll(z, y), losses.sequence_nll(r, y)),
    "simnpo": lambda z, r, y: losses.simnpo(z, y),
    "dpo": lambda z, r, y: losses.dpo(
        losses.sequence_nll(r, y), losses.sequence_nll(z, y), losses.sequence_nll(z, y), losses.sequence_nll(r, y)
    ),
    "undial": losses.undial,
    "wga": lambda z, r, y: losses.wga(z, y),
    "satimp": lambda z, r, y: losses.satimp(z, y),
    "ce_u": lambda z, r, y: losses.ce_u(z, y),
    "pdu": lambda z, r, y: losses.pdu(z, y),
    "embed_diff": lambda z, r, y: losses.embed_diff(z, r, y != losses.IGNORED),
    "rmu": lambda z, r, y: losses.rmu(z, torch.arange(z.shape[-1]), y != losses.IGNORED),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("filling", [0.0, 50.0, -50.0])
def test_padding_has_no_say(case, name, filling):
    """More padding, and whatever stands in it, changes neither a loss nor its gradient."""
    logits, reference, labels = case
    loss_of = ALL[name]
    before = loss_of(logits, reference, labels)
    extra = torch.full((BATCH, 4, VOCABULARY), filling)
    extra[..., 0] += 3.0
    wide = [torch.cat([part, extra + offset], dim=1) for offset, part in enumerate((logits, reference))]
    wide_labels = torch.nn.functional.pad(labels, (0, 4), value=losses.IGNORED)
    close(loss_of(*wide, wide_labels), before.item(), rel=1e-6)
    found = gradient(lambda z: loss_of(z, wide[1], wide_labels), wide[0])
    torch.testing.assert_close(found[:, :TOKENS], gradient(lambda z: loss_of(z, reference, labels), logits))
    assert found[:, TOKENS:].abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_the_ignored_label_is_no_index(case, name):
    """-100 must not reach into the vocabulary: changing entry V - 100 (here modulo V) of ignored rows changes
    nothing."""
    logits, reference, labels = case
    changed = logits.clone()
    changed[labels == losses.IGNORED] += 17.0 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3))
    close(ALL[name](changed, reference, labels), ALL[name](logits, reference, labels).item(), rel=1e-6)
