"""Similarity, channel weights and search, against loops that follow the equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rote.errors import InputError
from rote.memory.cases.backbone import ChannelTrunk, SpikeNet, TimeConvPair, convolutions, in_batches
from rote.memory.cases.channel_weights import MODES, channel_weights
from rote.memory.cases.search import Shortlist, search_exact, similarity_matrix
from rote.memory.cases.similarity import (
    IMPORTANCE,
    Codes,
    check_importance,
    make_codes,
    part_similarities,
    similarity,
)
from rote.memory.cases.statistics import Scaling, channel_statistics

C, T, D, N, Q = 5, 128, 6, 40, 7


@pytest.fixture(scope="module")
def world():
    g = torch.Generator().manual_seed(0)
    signals = 30 * torch.randn(N + Q, C, T, generator=g) * torch.rand(N + Q, C, 1, generator=g)
    latent = torch.randn(N + Q, C, D, generator=g)
    statistics = channel_statistics(signals)
    scaling = Scaling.fit(*(part[:N] for part in statistics[:2]))
    codes = make_codes(latent, *statistics, scaling)
    weights = torch.rand(Q, C, generator=g)
    weights = weights / weights.sum(1, keepdim=True)
    return signals.double().numpy(), latent.double().numpy(), codes.take(slice(N)), codes.take(slice(N, N + Q)), weights


def by_loop(signals, latent, weights, importance):
    """S of every query and case, one channel and one term at a time, in float64."""
    ranges, variances = np.ptp(signals, axis=2), signals.var(axis=2)
    bounds = np.quantile(ranges[:N], (0.03, 0.98)), np.quantile(variances[:N], (0.03, 0.97))
    scaled = [(v - low) / (high - low) for v, (low, high) in zip((ranges, variances), bounds, strict=True)]
    spectrum = np.abs(np.fft.fft(signals, axis=2))  # all T bins
    out = np.zeros((Q, N))
    for q in range(Q):
        for p in range(N):
            for c in range(C):
                x, y = latent[N + q, c], latent[p, c]
                parts = [
                    x @ y / np.linalg.norm(x) / np.linalg.norm(y),
                    min(max(1 - abs(scaled[0][N + q, c] - scaled[0][p, c]), 0), 1),
                    min(max(1 - abs(scaled[1][N + q, c] - scaled[1][p, c]), 0), 1),
                    min(1, 800 / (np.linalg.norm(spectrum[N + q, c] - spectrum[p, c]) + 0.001)),
                ]
                out[q, p] += weights[q, c] * np.dot(importance, parts)
    return out


def test_similarity_is_the_equation(world):
    signals, latent, cases, query, weights = world
    expected = by_loop(signals, latent, weights.double().numpy(), IMPORTANCE)
    assert np.abs(similarity(query, weights, cases).numpy() - expected).max() < 1e-4


def test_a_case_is_most_similar_to_itself_with_one(world):
    _, _, cases, _, _ = world
    weights = torch.rand(N, C, generator=torch.Generator().manual_seed(1))
    weights = weights / weights.sum(1, keepdim=True)
    scores = similarity(cases, weights, cases)
    assert torch.allclose(scores.diagonal(), torch.ones(N), atol=1e-5)
    assert (scores <= 1 + 1e-5).all()


def test_permuting_channels_with_their_weights_changes_nothing(world):
    _, _, cases, query, weights = world
    order = torch.tensor([3, 0, 4, 1, 2])
    turn = lambda codes: Codes(*(part[:, order] for part in vars(codes).values()))  # noqa: E731
    assert torch.allclose(
        similarity(turn(query), weights[:, order], turn(cases)), similarity(query, weights, cases), atol=1e-6
    )


def test_a_channel_without_weight_cannot_change_anything(world):
    _, _, cases, query, weights = world
    weights = weights.clone()
    weights[:, 2] = 0
    wild = Codes(*(part.clone() for part in vars(query).values()))
    wild.latent[:, 2] *= -1
    wild.range[:, 2] += 9
    wild.fft[:, 2] += 1e4
    assert torch.equal(similarity(wild, weights, cases), similarity(query, weights, cases))


def test_importance_of_the_latent_part_alone_is_the_weighted_cosine(world):
    _, _, cases, query, weights = world
    expected = torch.einsum("qc,qcd,pcd->qp", weights, query.latent, cases.latent)
    assert torch.allclose(similarity(query, weights, cases, (1.0, 0.0, 0.0, 0.0)), expected, atol=1e-6)


def test_parts_add_up_and_stay_in_range(world):
    _, _, cases, query, weights = world
    parts = part_similarities(query, cases)
    total = sum(a * torch.einsum("qc,qpc->qp", weights, s) for a, s in zip(IMPORTANCE, parts, strict=True))
    assert torch.allclose(total, similarity(query, weights, cases), atol=1e-6)
    assert all((part >= 0).all() and (part <= 1).all() for part in parts[1:])


def test_folded_spectrum_has_the_norm_of_all_bins():
    x = torch.randn(3, 2, 128, dtype=torch.float64)
    folded = channel_statistics(x)[2]
    assert folded.shape[-1] == 65
    assert torch.allclose(folded.norm(dim=-1), torch.fft.fft(x).abs().norm(dim=-1))


@pytest.mark.parametrize("wrong", [(0.5, 0.5, 0.5, -0.5), (1, 0, 0), (0.2, 0.2, 0.2, 0.2)])
def test_importance_must_be_a_simplex(wrong):
    with pytest.raises(InputError, match="four shares"):
        check_importance(wrong)


# --- search ----------------------------------------------------------------------------------------------------------


def test_blocks_and_single_queries_give_the_same(world):
    _, _, cases, query, weights = world
    whole = similarity_matrix(query, weights, cases, IMPORTANCE)
    small = similarity_matrix(query, weights, cases, IMPORTANCE, block=1)
    assert torch.allclose(whole, small, atol=1e-6)
    assert torch.allclose(whole, similarity(query, weights, cases), atol=1e-6)


def test_search_in_blocks_is_the_sorted_matrix_with_ties_to_the_earlier_case(world):
    _, _, cases, query, weights = world
    many = Codes(*(torch.cat([part] * 4) for part in vars(cases).values()))  # every case four times: ties
    scores = similarity_matrix(query, weights, many, IMPORTANCE).double().numpy()
    barred = np.random.default_rng(0).random(scores.shape) < 0.2
    for excluded in (None, barred):
        kept = scores if excluded is None else np.where(excluded, -np.inf, scores)
        wanted = np.argsort(-kept, axis=1, kind="stable")[:, :9]
        for block in (1, 2 * 4 * N, 1 << 20):
            found = search_exact(query, weights, many, IMPORTANCE, 9, excluded=excluded, block=block)
            assert np.allclose(found.similarity, np.take_along_axis(kept, wanted, 1), atol=1e-6)
            assert excluded is None or not np.take_along_axis(excluded, found.index, 1).any()
    found = search_exact(query, weights, many, (0.5, 0.125, 0.0625, 0.3125), 9)
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    with pytest.raises(InputError, match="k = 3"):
        search_exact(query, weights, cases, IMPORTANCE, 3, excluded=np.ones((Q, N), bool))


def test_shortlist_is_exact_on_the_factorised_part(world):
    _, _, cases, query, weights = world
    only = (1.0, 0.0, 0.0, 0.0)
    exact = search_exact(query, weights, cases, only, 5)
    listed = Shortlist(cases).search(query, weights, only, 5, candidates=6)
    assert (listed.index == exact.index).all()
    assert np.allclose(listed.similarity, exact.similarity, atol=1e-6)
    assert listed.certified.all()


def test_a_certified_result_is_the_exact_one_and_a_full_list_always_is(world):
    _, _, cases, query, weights = world
    exact = search_exact(query, weights, cases, IMPORTANCE, 5)
    full = Shortlist(cases).search(query, weights, IMPORTANCE, 5, candidates=N)
    assert (full.index == exact.index).all()
    assert full.certified.all()
    steep = (0.97, 0.01, 0.01, 0.01)
    exact = search_exact(query, weights, cases, steep, 3)
    some = Shortlist(cases).search(query, weights, steep, 3, candidates=20)
    assert some.certified.any()
    assert (some.index[some.certified] == exact.index[some.certified]).all()


def test_excluded_cases_never_come_back(world):
    _, _, cases, query, weights = world
    excluded = np.zeros((Q, N), bool)
    excluded[:, ::2] = True
    for found in (
        search_exact(query, weights, cases, IMPORTANCE, 4, excluded=excluded),
        Shortlist(cases).search(query, weights, IMPORTANCE, 4, candidates=N, excluded=excluded),
    ):
        assert (found.index % 2 == 1).all()
    for search in (search_exact, lambda q, w, c, a, k, **o: Shortlist(c).search(q, w, a, k, **o)):
        with pytest.raises(InputError, match="20 cases to choose from"):
            search(query, weights, cases, IMPORTANCE, 21, excluded=excluded)


# --- networks and channel weights ---------------------------------------------------


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(3)
    net = SpikeNet(C, T, width=0.15)
    net.train()
    for _ in range(3):  # running statistics that are not the initial ones
        net(40 * torch.randn(16, C, T))
    return net.eval()


def one_by_one(net, x, mode):
    """The whole detector, once for every channel."""
    n, c, _ = x.shape
    raw = np.zeros((n, c))
    with torch.no_grad():
        for i in range(n):
            for channel in range(c):
                alone = torch.zeros_like(x[i : i + 1])
                if mode == "leave-one-in":
                    alone[0, 0] = x[i, channel]
                elif mode == "leave-one-in-place":
                    alone[0, channel] = x[i, channel]
                else:
                    alone[0] = x[i]
                    alone[0, channel] = 0
                p = torch.sigmoid(net(alone)).item()
                whole = torch.sigmoid(net(x[i : i + 1])).item()
                raw[i, channel] = max(0, whole - p) if mode == "leave-one-out" else p
    total = raw.sum(1, keepdims=True)
    return np.where(total > 0, raw / np.where(total > 0, total, 1), 1 / c)


@pytest.mark.parametrize("mode", MODES)
def test_channel_weights_are_those_of_the_whole_detector(detector, mode):
    x = 60 * torch.randn(4, C, T, generator=torch.Generator().manual_seed(5))
    made = channel_weights(detector, x, mode, batch=3)
    assert torch.allclose(made.sum(1), torch.ones(4), atol=1e-6)
    assert (made >= 0).all()
    if mode == "equal":
        assert torch.allclose(made, torch.full((4, C), 1 / C))
    else:
        assert np.abs(made.numpy() - one_by_one(detector, x, mode)).max() < (1e-3 if mode == "leave-one-out" else 1e-6)
    with pytest.raises(InputError, match="leave-one-in, "):
        channel_weights(detector, x, "attention")


def test_two_convolutions_computed_as_one_are_the_two():
    torch.manual_seed(8)
    pair, x = TimeConvPair(6), torch.randn(3, 1, 64, C)
    plain = pair.second(pair.first(x))
    assert torch.allclose(pair(x), plain, atol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), list(pair.parameters())) for out in (pair(x), plain)]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("samples", [64, 128, 192])
def test_surgery_keeps_kernels_and_collapses_time(samples):
    torch.manual_seed(4)
    net = SpikeNet(C, samples, width=0.15)
    trunk = ChannelTrunk.from_spikenet(net)
    assert trunk(torch.randn(2, C, samples)).shape == (2, C, trunk.dim)
    convs = convolutions(trunk)
    assert torch.allclose(convs[2].weight[..., 0], net.mix.weight.mean(-1))
    last = convolutions(net.tail)[-1].weight
    steps = samples // 64
    assert convs[-1].weight.shape[2] == 8 + steps - 1
    assert torch.allclose(convs[-1].weight[:, :, :8], last)
    for extra in range(steps - 1):
        assert torch.allclose(convs[-1].weight[:, :, 8 + extra], last.mean(2))


def test_codes_do_not_depend_on_the_batch(detector):
    trunk = ChannelTrunk.from_spikenet(detector).eval()
    x = 40 * torch.randn(7, C, T, generator=torch.Generator().manual_seed(6))
    whole, single = in_batches(trunk, x, 7), torch.cat([in_batches(trunk, x[i : i + 1]) for i in range(7)])
    assert torch.allclose(whole, single, atol=1e-5)
    assert torch.allclose(in_batches(detector, x, 2), in_batches(detector, x, 7), atol=1e-5)
