"""Losses, prototypes and the training of the detector, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rote.errors import InputError
from rote.memory.cases import losses
from rote.memory.cases.backbone import ChannelTrunk, SpikeNet, centre_codes, in_batches
from rote.memory.cases.prototypes import Prototypes, encode
from rote.memory.cases.similarity import IMPORTANCE, similarity
from rote.memory.cases.statistics import Scaling, channel_statistics
from rote.memory.cases.training import TrainingSettings, channels_alone, drop_channels

R, N, P = 8, 12, 9
G = torch.Generator().manual_seed(0)
VOTES = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 0, 4])
CLASSES = torch.tensor([0, 0, 1, 4, 4, 7, 8, 8, 2])
SCORES = torch.rand(N, P, generator=G)
C, T = 4, 64


def test_cluster_and_separation_are_their_sums():
    cluster, separation = [], []
    for i in range(N):
        own = [SCORES[i, p].item() for p in range(P) if CLASSES[p] == VOTES[i]]
        cluster.append(VOTES[i].item() / R * max(own) if own else 0.0)
        far = [abs(VOTES[i] - CLASSES[p]).item() / R * SCORES[i, p].item() for p in range(P) if CLASSES[p] != VOTES[i]]
        separation.append(max(far))
    assert losses.cluster_cost(SCORES, VOTES, CLASSES, R).item() == pytest.approx(-np.mean(cluster), abs=1e-6)
    assert losses.separation_cost(SCORES, VOTES, CLASSES, R).item() == pytest.approx(np.mean(separation), abs=1e-6)


def test_weighted_bce_is_its_sum_and_the_weights_are_the_papers():
    logit, weight = torch.randn(N, generator=G), losses.vote_class_weights(VOTES, R)
    assert weight.tolist() == pytest.approx([1.11, 7.18, 6.20, 6.76, 5.22, 4.62, 2.29, 2.05, 1.0])
    total = 0.0
    for z, y in zip(logit.tolist(), VOTES.tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        total -= weight[y].item() * (y / R * math.log(p) + (1 - y / R) * math.log(1 - p))
    assert losses.weighted_bce(logit, VOTES, R, weight).item() == pytest.approx(total / N, rel=1e-5)
    other = losses.vote_class_weights(torch.tensor([0, 0, 0, 1]), 1)
    assert other.tolist() == [1.0, 3.0]


def test_head_weights_are_log_odds_of_the_vote_fraction():
    expected = [-2.944, -1.946, -1.099, -0.511, 0.0, 0.511, 1.099, 1.946, 2.944]
    assert losses.head_log_odds(8).tolist() == pytest.approx(expected, abs=1e-3)


def test_orthogonality_is_zero_for_orthogonal_prototypes():
    assert losses.orthogonality_cost(5 * torch.eye(4)).item() == pytest.approx(0, abs=1e-5)
    twins = torch.ones(2, 3)
    assert losses.orthogonality_cost(twins).item() == pytest.approx(math.sqrt(2), abs=1e-5)  # [[0, 1], [1, 0]]
    assert losses.statistics_cost(torch.tensor([0.5, 0.2, 0.1, 0.2])).item() == pytest.approx(0.4)


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(0)
    net = SpikeNet(C, T, width=0.12).eval()
    trunk = ChannelTrunk.from_spikenet(net)
    signals = 40 * torch.randn(N, C, T)
    scaling = Scaling.fit(*channel_statistics(signals)[:2])
    return net, trunk, signals, scaling, encode(trunk, signals, scaling)


def test_prototype_logit_is_the_weighted_vote_of_its_classes(world):
    codes = world[-1]
    model = Prototypes(codes.take(slice(0, 3)), torch.tensor([0, 8, 8]), R, IMPORTANCE, -1.0)
    weights = torch.full((N, C), 1 / C)
    scores = similarity(codes, weights, codes.take(slice(0, 3)))
    odds = math.log(0.05 / 0.95)
    expected = odds * scores[:, 0] - odds / 2 * (scores[:, 1] + scores[:, 2]) - 1
    logit, again = model(codes, weights)
    assert torch.allclose(logit, expected, atol=1e-4)
    assert torch.allclose(again, scores, atol=1e-5)
    assert torch.allclose(model.predict(codes, weights), torch.sigmoid(expected), atol=1e-5)
    logit.sum().backward()  # a prototype that is its own query has distance 0: the gradient must stay finite
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_projection_takes_the_nearest_case_of_the_class(world):
    codes = world[-1]
    weights = torch.softmax(torch.randn(N, C, generator=G), 1)
    start = encode(world[1], 40 * torch.randn(3, C, T, generator=G), world[3])
    model = Prototypes(start, torch.tensor([8, 0, 3]), R, IMPORTANCE, -1.0)
    before = similarity(codes, weights, model.codes(), IMPORTANCE)
    chosen = model.project(codes, weights, VOTES, IMPORTANCE)
    for at, vote in enumerate((8, 0, 3)):
        rows = [i for i in range(N) if VOTES[i] == vote]
        assert chosen[at].item() == max(rows, key=lambda i: before[i, at].item())
        assert torch.equal(model.latent[at].data, codes.latent[chosen[at]])
        assert torch.equal(model.fft[at].data, codes.fft[chosen[at]])


def test_the_fitted_head_is_the_most_likely_scale_and_bias(world):
    codes, weights = world[-1], torch.full((N, C), 1 / C)
    model = Prototypes(codes.take(slice(0, 3)), torch.tensor([8, 0, 3]), R, IMPORTANCE, -1.0)
    raw = (similarity(codes, weights, model.codes(), IMPORTANCE) @ model.head).double()
    votes = torch.bernoulli(torch.sigmoid(2 * (raw - raw.mean()) / raw.std()), generator=G).long() * R
    model.fit_head(codes, weights, votes)
    y = votes.double() / R
    best = torch.nn.functional.binary_cross_entropy(model.predict(codes, weights).double(), y)
    scale = float((model.head[0] / torch.logit(torch.tensor(0.95))).detach())
    for a, b in ((1.1, 0), (0.9, 0), (1, 0.1), (1, -0.1)):
        z = a * scale * (raw - raw.mean()) + scale * raw.mean() + model.bias.item() + b
        assert torch.nn.functional.binary_cross_entropy_with_logits(z, y) >= best - 1e-6


def test_centred_codes_have_mean_zero(world):
    torch.manual_seed(1)
    trunk = ChannelTrunk.from_spikenet(world[0])
    centre_codes(trunk, world[2])
    assert in_batches(trunk, world[2]).mean((0, 1)).abs().max() < 1e-5


def test_channels_shown_alone_are_what_a_whole_segment_of_one_channel_gives(world):
    net, signals = world[0], world[2]
    with torch.no_grad():
        made = channels_alone(net, net.channel_head(signals), 3, np.random.default_rng(4))
        chosen = np.random.default_rng(4).integers(C, size=(N, 3))
        net.eval()
        for i in range(N):
            for r in range(3):
                alone = torch.zeros(1, C, T)
                alone[0, 0] = signals[i, chosen[i, r]]
                assert torch.allclose(net.mix(net.channel_head(alone))[0], made[3 * i + r], atol=1e-4)


def test_dropped_channels_are_silent_and_the_rest_is_as_it_was():
    x = torch.rand(50, C, T) + 1
    made = drop_channels(x, 0.5, np.random.default_rng(0))
    gone = (made == 0).all(2)
    assert 0 < gone.any(1).float().mean() < 0.7
    assert torch.equal(made[~gone], x[~gone])
    assert torch.equal(drop_channels(x, 0.0, np.random.default_rng(0)), x)


@pytest.mark.parametrize(
    "wrong",
    [{"width": 0}, {"prototypes": 0}, {"rounds": -1}, {"channel_dropout": 2}, {"thin_from": -1}, {"single_weight": -1}],
)
def test_wrong_recipes_are_refused(wrong):
    with pytest.raises(InputError):
        TrainingSettings(**wrong)
    assert TrainingSettings.from_dict(TrainingSettings.small().to_dict()) == TrainingSettings.small()
