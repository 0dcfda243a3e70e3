"""VISTA's two attentions against brute force: N x N matrices, hand-written gradients, one candidate at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rote.errors import InputError
from rote.memory.vista import (
    Decoder,
    Histories,
    Summariser,
    TargetAttention,
    TrainingSettings,
    Vista,
    VistaConfig,
    dequantise,
    isolated_attention,
    quantise,
    quasi_linear_attention,
    reconstruction_error,
    shuffled_gap,
    summarise_user,
    update,
)
from rote.memory.vista.hstu import FullAttentionLayer, QuasiLinearLayer
from rote.memory.vista.quasi_linear import identity, shifted_elu
from rote.memory.vista.training import request_logits


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_matrix(q, k, v, candidates, mask, scale, phi1):
    """The N x N twin: every row sees the kept history rows, a candidate also itself."""
    n, s = q.shape[-2], q.shape[-2] - candidates
    allowed = torch.zeros(n, n, dtype=torch.bool)
    allowed[:, :s] = mask[None]
    allowed[range(s, n), range(s, n)] = True
    return (phi1(q) @ phi1(k).transpose(-1, -2) * allowed * scale) @ v


@pytest.mark.parametrize("phi1", [identity, F.silu, shifted_elu])
@pytest.mark.parametrize("candidates", [0, 3])
def test_linear_form_equals_the_masked_matrix(phi1, candidates):
    q, k, v = rows(3, 2, 9, 4)
    mask = torch.tensor([True] * 4 + [False] + [True] * (4 - candidates))
    found = quasi_linear_attention(q, k, v, candidates=candidates, mask=mask, scale=0.3, phi1=phi1, phi2=identity)
    expected = by_matrix(q, k, v, candidates, mask, 0.3, phi1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_second_nonlinearity_acts_on_the_state():
    q, k, v = rows(3, 7, 4)
    state = F.silu(k).T @ v
    assert torch.allclose(quasi_linear_attention(q, k, v, scale=0.5), F.silu(q) @ F.silu(0.5 * state), atol=1e-14)


@pytest.mark.parametrize("phi", [identity, F.silu, shifted_elu])
def test_gradients_are_appendix_bs(phi):
    """dQ, dK, dV from the saved state Z and the diagonal, phi' multiplied in, against autograd."""
    q, k, v = (part.clone().requires_grad_() for part in rows(3, 8, 4, seed=1))
    s = 5
    out = quasi_linear_attention(q, k, v, candidates=3, phi1=phi, phi2=identity)
    d_out = rows(8, 4, seed=2)
    found = torch.autograd.grad(out, (q, k, v), d_out)
    with torch.no_grad():
        pq, pk = phi(q), phi(k)
        z = v[:s].T @ pk[:s]
        w = pq.T @ d_out
        diagonal = lambda a, b: (a * b).sum(1, keepdim=True)  # noqa: E731
        dq = torch.cat([d_out[:s] @ z, d_out[s:] @ z + diagonal(d_out[s:], v[s:]) * pk[s:]])
        dk = torch.cat([v[:s] @ w.T, diagonal(d_out[s:], v[s:]) * pq[s:]])
        dv = torch.cat([pk[:s] @ w, diagonal(pq[s:], pk[s:]) * d_out[s:]])
    slope = [torch.autograd.functional.jvp(phi, x.detach(), torch.ones_like(x))[1] for x in (q, k)]
    for got, expected in zip(found, (dq * slope[0], dk * slope[1], dv), strict=True):
        assert torch.allclose(got, expected, atol=1e-13)  # pyright: ignore[reportArgumentType]


def test_gradcheck_of_the_quasi_linear_form():
    q, k, v = (part.clone().requires_grad_() for part in rows(3, 6, 3))
    assert torch.autograd.gradcheck(lambda *x: quasi_linear_attention(*x, candidates=2, scale=0.2), (q, k, v))


def test_history_is_a_set_for_candidates():
    q, k, v = rows(3, 9, 4)
    order = torch.cat([torch.randperm(6, generator=torch.Generator().manual_seed(3)), torch.tensor([6, 7, 8])])
    plain = quasi_linear_attention(q, k, v, candidates=3)[6:]
    shuffled = quasi_linear_attention(q[order], k[order], v[order], candidates=3)[6:]
    assert torch.allclose(plain, shuffled, atol=1e-14)


def test_padding_adds_nothing_although_keys_have_a_bias():
    torch.manual_seed(0)
    layer = QuasiLinearLayer(8, 2).double()
    torch.nn.init.normal_(layer.key_value.bias)
    x, mask = rows(1, 6, 8), torch.tensor([[True] * 4 + [False] * 2])
    assert torch.allclose(layer.state(x, mask), layer.state(x[:, :4]), atol=1e-14)
    summariser = Summariser(8, 2, seeds=3, layers=2).double()
    assert torch.allclose(summariser(x, mask)[0], summariser(x[:, :4], mask[:, :4])[0], atol=1e-13)


def test_full_hstu_attention_is_causal_and_equals_the_loop():
    torch.manual_seed(0)
    layer = FullAttentionLayer(8, 2, longest=16).double()
    torch.nn.init.normal_(layer.position_bias)
    torch.nn.init.normal_(layer.time_bias)
    x, times = rows(1, 5, 8), torch.tensor([[0.0, 3, 90, 91, 7000]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, True]])
    found = layer(x, mask, times)
    u, q = layer.gates_and_queries(x)
    k, v = layer.keys_and_values(x)
    attended = torch.zeros(1, 2, 5, 4, dtype=torch.float64)
    for h in range(2):
        for i in range(5):
            for j in range(i + 1):
                gap = max(1.0, float(times[0, i] - times[0, j]))
                bucket = min(63, int(torch.log(torch.tensor(gap, dtype=torch.float64)) / 0.301))
                bias = layer.position_bias[i - j] + layer.time_bias[bucket]
                weight = F.silu(F.silu(q[0, h, i]) @ F.silu(k[0, h, j]) + bias) / 5 * float(mask[0, j])
                attended[0, h, i] += weight * F.silu(v[0, h, j])
    assert torch.allclose(found, layer.close(x, u, attended), atol=1e-12)


# ---- stage 2


def test_isolated_attention_equals_one_softmax_per_candidate():
    q, k, v = rows(3, 1, 2, 4, 3)
    token_k, token_v = rows(2, 1, 2, 5, 3, seed=1)
    mask = torch.tensor([[True, False, True, True, False]])
    found = isolated_attention(q, k, v, token_k, token_v, mask)
    for h in range(2):
        for t in range(4):
            keys = torch.cat([token_k[0, h][mask[0]], k[0, h, t : t + 1]])
            values = torch.cat([token_v[0, h][mask[0]], v[0, h, t : t + 1]])
            expected = torch.softmax(keys @ q[0, h, t] / 3**0.5, 0) @ values
            assert torch.allclose(found[0, h, t], expected, atol=1e-14)


@pytest.fixture(scope="module")
def stage2():
    torch.manual_seed(0)
    return TargetAttention(32, 4, 2, tasks=2).eval()


def test_a_candidates_score_never_depends_on_the_others(stage2):
    tokens, candidates = rows(8, 32, dtype=torch.float32), rows(300, 32, seed=1, dtype=torch.float32)
    together = stage2.score(tokens, candidates)
    assert together.shape == (300, 2)
    for at in (0, 1, 37, 127, 128, 211, 299):
        assert torch.equal(stage2.score(tokens, candidates[at : at + 1])[0], together[at])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(stage2.score(tokens, candidates[order]), together[order])
    other = torch.cat([rows(99, 32, seed=5, dtype=torch.float32) * 50, candidates[3:4]])
    assert torch.equal(stage2.score(tokens, other)[-1], together[3])
    assert torch.allclose(stage2(tokens[None], candidates[None])[0], together, atol=1e-5)
    assert stage2.score(tokens, candidates[:0]).shape == (0, 2)


def test_masked_tokens_are_as_good_as_absent(stage2):
    tokens, candidates = rows(1, 8, 32, dtype=torch.float32), rows(1, 3, 32, seed=1, dtype=torch.float32)
    mask = torch.tensor([[True] * 5 + [False] * 3])
    assert torch.allclose(stage2(tokens, candidates, mask), stage2(tokens[:, :5], candidates), atol=1e-6)


# ---- reconstruction


def test_decoder_is_causal_and_the_loss_is_its_formula():
    torch.manual_seed(0)
    decoder = Decoder(8, 2, 2).double()
    summary, events = rows(2, 3, 8), rows(2, 6, 8, seed=1)
    told = decoder(summary, events)
    for j in range(6):
        changed = events.clone()
        changed[:, j] = rows(2, 8, seed=9 + j)
        again = decoder(summary, changed)
        assert torch.allclose(again[:, :j], told[:, :j], atol=1e-13)
        assert not torch.allclose(again[:, j], told[:, j])
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    error = reconstruction_error(told, events, mask)
    for user, length in enumerate((6, 3)):
        terms = [((told[user, i] - events[user, i + 1]) ** 2).sum() for i in range(length - 1)]
        assert torch.allclose(error[user], torch.stack(terms).mean())
    alone = reconstruction_error(told[:, :1], events[:, :1], mask[:, :1])
    assert alone.tolist() == [0, 0]


def test_targets_of_the_loss_get_no_gradient():
    told, events = rows(1, 4, 3), rows(1, 4, 3, seed=1).requires_grad_()
    reconstruction_error(told.requires_grad_(), events, torch.ones(1, 4, dtype=torch.bool)).sum().backward()
    assert events.grad is None


def test_shuffle_gives_everybody_another_users_summary():
    torch.manual_seed(0)
    decoder = Decoder(8, 2, 1)
    summary, events = rows(5, 3, 8, dtype=torch.float32), rows(5, 4, 8, seed=1, dtype=torch.float32)
    mask = torch.ones(5, 4, dtype=torch.bool)
    own, other = shuffled_gap(decoder, summary, events, mask, torch.Generator().manual_seed(0))
    assert torch.allclose(own, reconstruction_error(decoder(summary, events), events, mask))
    assert not (own == other).any()


# ---- the whole model


def small(**more):
    settings = {"items": 40, "actions": 2, "categories": 4, "dim": 16, "heads": 2, "seeds": 4, "stage1_layers": 2,
                "stage2_layers": 2, "order": "recency", "raw_events": 3}  # fmt: skip
    return Vista(VistaConfig(**(settings | more)), category_of=torch.arange(40) % 4, seed=1).eval()


def some_histories(model, lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    item = [torch.randint(40, (n,), generator=draw).tolist() for n in lengths]
    action = [torch.randint(2, (n,), generator=draw).tolist() for n in lengths]
    time = [torch.cumsum(torch.rand(n, generator=draw, dtype=torch.float64) * 9e4, 0).tolist() for n in lengths]
    return model.histories(item, action, time)


def test_reading_in_blocks_holds_one_block(monkeypatch):
    """No layer is ever given more rows than a block has: what bounds the memory for a million events."""
    model, held = small(stage1_layers=3), []
    for layer in model.stage1.layers:
        for name in ("state", "read"):
            real = getattr(layer, name)
            monkeypatch.setattr(layer, name, lambda x, *more, real=real: (held.append(x.shape[1]), real(x, *more))[1])
    batch = some_histories(model, [100])
    model.summarise_long(batch.item[0], batch.action[0], batch.time[0], block=16)
    assert max(held) == 16
    assert held.count(16) == 6 * (1 + 2 + 3)  # layer l: l - 1 reads and a state for each of six full blocks


@pytest.mark.parametrize("order", ["none", "gap", "recency"])
def test_reading_in_blocks_equals_reading_at_once(order):
    model = small(order=order, stage1_layers=3)
    batch = some_histories(model, [37, 5, 0])
    whole, states = model.stage1(model.embedding(batch), batch.mask)
    for user, length in enumerate([37, 5, 0]):
        parts = (value[user, :length] for value in (batch.item, batch.action, batch.time))
        z, own = model.summarise_long(*parts, block=8)
        assert torch.allclose(z, whole[user], atol=2e-5)
        for a, b in zip(own, states, strict=True):
            assert torch.allclose(a, b[user], atol=2e-5)


def test_padding_and_batch_do_not_change_a_summary():
    model = small()
    together, alone = some_histories(model, [12, 3, 30]), None
    z = model.summarise(together)
    for user, length in enumerate([12, 3, 30]):
        alone = Histories(
            *(getattr(together, name)[user : user + 1, :length] for name in ("item", "action", "time", "mask"))
        )
        assert torch.allclose(model.summarise(alone)[0], z[user], atol=1e-5)


def test_cut_and_tail_are_what_they_say():
    model = small()
    batch = some_histories(model, [6, 2])
    at = torch.tensor([4, 2])
    assert batch.cut(at).mask.sum(1).tolist() == [4, 2]
    tail = batch.tail(at, 3)
    assert tail.item[0].tolist() == batch.item[0, 1:4].tolist()
    assert tail.mask.tolist() == [[True] * 3, [True, True, False]]
    assert tail.item[1, :2].tolist() == batch.item[1, :2].tolist()


@pytest.mark.parametrize("order", ["none", "gap", "recency"])
def test_an_empty_history_still_scores(order):
    model = small(order=order)
    batch = some_histories(model, [0])
    assert batch.item.shape == (1, 0)
    z = model.summarise(batch)
    assert torch.isfinite(z).all()
    assert torch.isfinite(model.score(z[0], torch.arange(40))).all()
    assert torch.isfinite(model.reconstruction(z, batch)).all()


@pytest.mark.parametrize("order", ["gap", "none"])
def test_centred_summaries_change_no_score_and_quantise_better(order):
    model, batch = small(order=order, stage1_layers=1), None
    batch = some_histories(model, [30, 12, 5, 1, 40, 9])
    with torch.no_grad():
        z, candidates = model.summarise(batch), torch.arange(40).expand(6, -1)
        before, told, version = model.logits(z, candidates), model.reconstruction(z, batch), model.version
        model.centre_summaries(batch)
        centred = model.summarise(batch)
    assert torch.allclose(centred.mean(0), torch.zeros(4, 16), atol=1e-6)
    assert torch.allclose(model.restored(centred), z, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(model.logits(centred, candidates), before, atol=1e-5)
        assert torch.allclose(model.reconstruction(centred, batch), told, atol=1e-5)
        assert torch.allclose(model.restored(centred[:, :2]), z[:, :2], atol=1e-6)  # a summary cut to its first vectors
    assert model.version != version
    error = [
        np.abs(np.stack([dequantise(quantise(row, "int8"), 4, 16, "int8") - row for row in part.numpy()])).mean()
        for part in (z, centred)
    ]
    assert error[1] < error[0]
    # Every way to a summary is centred alike.
    parts = [value[0, :30] for value in (batch.item, batch.action, batch.time)]
    assert torch.allclose(model.summarise_long(*parts, block=7)[0], centred[0], atol=2e-5)
    early = summarise_user(model, *(part[:20].numpy() for part in parts), keep_states=True)
    later = update(model, early, *(part[20:].numpy() for part in parts))
    assert np.allclose(later.vectors, centred[0].numpy(), atol=2e-5)
    again = some_histories(model, [])
    model.centre_summaries(again)
    assert not model.stage1.centre.any()


def test_raw_events_are_read_before_the_summary():
    """Against the layer by hand; a user without raw events is scored from the summary alone, to the last bit."""
    model = small(raw_events=6)
    batch = some_histories(model, [9, 0, 3])
    raw, items = batch.tail(batch.mask.sum(1), 6), torch.arange(40).expand(3, -1)
    with torch.no_grad():
        z = model.summarise(batch)
        found, alone = model.logits(z, items, raw), model.logits(z, items)
        for user in (0, 2):
            kept = raw.rows(torch.tensor([user]))
            tokens = model.raw_norm(model.embedding(kept))[:, kept.mask[0]]
            read = model.embedding.candidates(items[:1])
            for layer in model.stage2_raw:
                _, read = layer(tokens, None, read)
            expected = model.stage2(model.restored(z[user : user + 1]), read)
            assert torch.allclose(found[user], expected[0], atol=1e-5)
            assert (found[user] - alone[user]).abs().max() > 1e-3
    assert torch.equal(found[1], alone[1])
    one = raw.rows(torch.tensor([0]))
    together = model.score(z[0], items[0], one)
    assert torch.allclose(together, found[0], atol=1e-5)
    for at in (0, 17, 39):
        assert torch.equal(model.score(z[0], items[0, at : at + 1], one)[0], together[at])


@pytest.mark.parametrize(("share", "seen"), [(0.0, 400), (1.0, 0), (0.25, 300)])
def test_a_share_of_requests_is_trained_without_raw_events(share, seen):
    model = small(raw_events=4, recon_weight=0.0)
    batch = some_histories(model, [12] * 400)
    at, items = torch.full((400,), 9), torch.arange(5).expand(400, -1)
    settings = TrainingSettings(without_raw=share)
    with torch.no_grad():
        found, extra = request_logits(model, batch, at, items, settings, torch.Generator().manual_seed(0))
        z = model.summarise(batch.cut(at))
        ways = [model.logits(z, items, raw) for raw in (None, batch.tail(at, 4))]
    alone, beside = ((found - way).abs().flatten(1).amax(1) < 1e-5 for way in ways)
    assert extra == 0
    assert (alone ^ beside).all()
    assert abs(int(beside.sum()) - seen) <= 25 * (0 < share < 1)
    with pytest.raises(InputError, match="without_raw"):
        TrainingSettings(without_raw=1.5)


def test_version_is_of_weights_and_settings():
    model = small()
    assert model.version == small().version
    assert model.version != small(raw_events=2).version
    before = model.version
    with torch.no_grad():
        model.stage1.seeds[0, 0] += 1e-3
    assert model.version != before


@pytest.mark.parametrize(("setting", "value"), [("dim", 15), ("seeds", 0), ("order", "time"), ("recon_weight", -1.0)])
def test_bad_settings_are_refused(setting, value):
    with pytest.raises(InputError, match=setting if setting != "dim" else "width"):
        small(**{setting: value})


def test_numbers_outside_the_vocabulary_are_refused():
    with pytest.raises(InputError, match="item number 40"):
        small().histories([[3, 40]], [[0, 0]], [[0, 1]])
