"""The chunkwise closed form is the loop over tokens, to float64 precision: Titans, TTT, linear and MLP memories."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch.func import functional_call, grad, vmap

from rote.errors import InputError
from rote.memory.tnt.chunkwise import FastWeights, scan
from rote.memory.tnt.coefficients import segment_products, titans_coefficients, ttt_coefficients
from rote.memory.tnt.memory_functions import MemoryFunction

N, T, D = 2, 13, 3


def draw(function, seed=0, tokens=T):
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    q, k, v = (normal(N, tokens, D) for _ in range(3))
    uniform = lambda: torch.rand(N, tokens, generator=generator, dtype=torch.float64)  # noqa: E731
    rates = {"theta": 0.05 * uniform(), "alpha": 0.5 * uniform(), "eta": uniform()}
    weights = [0.5 * normal(N, *shape) for shape in function.shapes(D)]
    norm = (1 + 0.2 * normal(N, 1, D), 0.2 * normal(N, 1, D)) if function.head == "residual" else None
    return q, k, v, rates, weights, norm


def titans(rows, position, reads):
    return titans_coefficients(rows["theta"], rows.get("alpha"), rows.get("eta"), reads=reads)


def ttt(scale):
    return lambda rows, position, reads: ttt_coefficients(
        rows["theta"], scale[position : position + rows["theta"].shape[-1]],
        fresh=position == 0, reads=reads,
    )  # fmt: skip


def single(function, weights, x, norm):
    """f of one memory on one vector, written again from its definition."""
    z = x
    act = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu,
           "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh")}[function.activation]  # fmt: skip
    for layer, weight in enumerate(weights):
        z = (torch.cat([z, z.new_ones(1)]) if function.bias else z) @ weight
        z = act(z) if layer < len(weights) - 1 else z
    if norm is None:
        return z
    return x + torch.nn.functional.layer_norm(z, z.shape, eps=1e-6) * norm[0] + norm[1]


def loop(function, weights, q, k, v, rates, norm, *, chunk, read="token", scale=None):
    """Token by token with autograd, exactly as the recurrences are written; returns reads, weights and ||u_t||."""
    total = q.shape[1]
    ys, surprises, ends = [], [], []
    for n in range(N):
        now = [w[n] for w in weights]
        momentum = [torch.zeros_like(w) for w in now]
        pair = None if norm is None else (norm[0][n, 0], norm[1][n, 0])

        def loss(parts, key, value, pair=pair):
            error = single(function, parts, key, pair) - value
            return error.square().sum() * (0.5 if pair is not None else 1.0)

        for t in range(total):
            if t % chunk == 0:
                frozen = now
                if scale is not None:
                    momentum = [torch.zeros_like(w) for w in now]
            u = grad(loss)(frozen, k[n, t], v[n, t])
            surprises.append(torch.stack([g.square().sum() for g in u]).sum().sqrt())
            if function.clip is not None:
                # The clipped row g_l times the input x_l is u_l * min(1, clip / ||g_l||), as u_l = x_l^T g_l.
                _, rows = function.gradients([w[None] for w in frozen], k[n, None, t, None], v[n, None, t, None])
                u = [g * (function.clip / row[0, 0].norm()).clamp_max(1) for g, row in zip(u, rows, strict=True)]
            theta = rates["theta"][n, t]
            eta = rates["eta"][n, t] if "eta" in rates else 0.0
            alpha = rates["alpha"][n, t] if "alpha" in rates else 0.0
            if scale is None:
                momentum = [eta * s - theta * g for s, g in zip(momentum, u, strict=True)]
                now = [(1 - alpha) * w + s for w, s in zip(now, momentum, strict=True)]
            else:
                momentum = [s - theta * g for s, g in zip(momentum, u, strict=True)]
                now = [w + scale[t % chunk] * s for w, s in zip(frozen, momentum, strict=True)]
            ys.append(single(function, now if read == "token" else frozen, q[n, t], pair))
        ends.append(now)
    return (
        torch.stack(ys).view(N, total, -1),
        [torch.stack([end[layer] for end in ends]) for layer in range(len(weights))],
        torch.stack(surprises).view(N, total),
    )


FUNCTIONS = {
    "linear": MemoryFunction(depth=1),
    "mlp": MemoryFunction(depth=2, activation="silu"),
    "deep": MemoryFunction(depth=3, activation="gelu", bias=True),
    "clipped": MemoryFunction(depth=2, activation="gelu_tanh", clip=0.7),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("chunk", [1, 3, 5, 13, 20])  # 3 and 5 do not divide 13, 20 is longer
def test_chunk_form_is_the_loop(name, chunk):
    function = FUNCTIONS[name]
    q, k, v, rates, weights, norm = draw(function)
    for parts in itertools.islice(itertools.product((True, False), repeat=2), None if chunk == 5 else 1):
        used = {key: rates[key] for key, on in zip(("theta", "alpha", "eta"), (True, *parts), strict=True) if on}
        for read in ("token", "chunk"):
            state = FastWeights(weights, weights)
            y, end, norms = scan(function, state, q, k, v, used, titans, chunk=chunk, read=read, return_surprise=True)
            expected, last, surprises = loop(function, weights, q, k, v, used, norm, chunk=chunk, read=read)
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
            torch.testing.assert_close(norms, surprises, rtol=0, atol=1e-10)
            torch.testing.assert_close(end.now, last, rtol=0, atol=1e-10)
            assert end.position == T % chunk


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_ttt_chunk_form_is_the_loop(depth, chunk):
    function = MemoryFunction(depth=depth, expansion=4, activation="gelu_tanh", head="residual", bias=True)
    q, k, v, rates, weights, norm = draw(function)
    scale = 1 / torch.arange(1, chunk + 1, dtype=torch.float64) + 0.1
    used = {"theta": rates["theta"]}
    y, end, _ = scan(function, FastWeights(weights, weights), q, k, v, used, ttt(scale), chunk=chunk, norm=norm)
    expected, last, _ = loop(function, weights, q, k, v, used, norm, chunk=chunk, scale=scale)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    if T % chunk == 0:
        torch.testing.assert_close(end.now, last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", ["titans", "ttt"])
@pytest.mark.parametrize("cuts", [(4, 9), (1, 2, 3, 7), tuple(range(1, T))])
def test_whole_is_pieces_is_token_by_token(rule, cuts):
    residual = rule == "ttt"
    function = MemoryFunction(depth=2, head="residual" if residual else "plain", bias=residual)
    q, k, v, rates, weights, norm = draw(function)
    used = {"theta": rates["theta"]} if residual else rates
    how = ttt(1 / torch.arange(1, 6, dtype=torch.float64)) if residual else titans
    whole, end, _ = scan(function, FastWeights(weights, weights), q, k, v, used, how, chunk=5, norm=norm)
    state, parts = FastWeights(weights, weights), []
    for a, b in itertools.pairwise((0, *cuts, T)):
        piece = {key: value[:, a:b] for key, value in used.items()}
        y, state, _ = scan(function, state, q[:, a:b], k[:, a:b], v[:, a:b], piece, how, chunk=5, norm=norm)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.now, end.now, rtol=0, atol=1e-12)


def test_vmap_of_grad_is_a_second_oracle():
    """Rows and inputs against torch.func: per-token gradients of a module called functionally."""
    function = MemoryFunction(depth=3, activation="silu")
    _, k, v, _, weights, _ = draw(function)
    shapes = function.shapes(D)
    module = torch.nn.Sequential(
        torch.nn.Linear(*shapes[0], bias=False), torch.nn.SiLU(),
        torch.nn.Linear(*shapes[1], bias=False), torch.nn.SiLU(), torch.nn.Linear(*shapes[2], bias=False),
    ).double()  # fmt: skip

    def loss(parameters, key, value):
        return (functional_call(module, parameters, (key,)) - value).square().sum()

    inputs, rows = function.gradients(weights, k, v)
    for n in range(N):
        parameters = {f"{2 * layer}.weight": w[n].T for layer, w in enumerate(weights)}
        found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, k[n], v[n])
        for layer, (x, g) in enumerate(zip(inputs, rows, strict=True)):
            mine = torch.einsum("ci,cj->cji", x[n], g[n])
            torch.testing.assert_close(mine, found[f"{2 * layer}.weight"], rtol=0, atol=1e-10)


def run(function, weights, q, k, v, rates, chunk):
    return scan(function, FastWeights(weights, weights), q, k, v, rates, titans, chunk=chunk)[0]


def test_one_token_chunks_are_online_gradient_descent():
    function = MemoryFunction(depth=2)
    q, k, v, rates, weights, _ = draw(function)
    now, ys = [w[0] for w in weights], []
    for t in range(T):
        leaves = [w.detach().requires_grad_() for w in now]
        (single(function, leaves, k[0, t], None) - v[0, t]).square().sum().backward()
        now = [w.detach() - rates["theta"][0, t] * w.grad for w in leaves]
        ys.append(single(function, now, q[0, t], None))
    mine = run(function, weights, q, k, v, {"theta": rates["theta"]}, 1)[0]
    torch.testing.assert_close(mine, torch.stack(ys), rtol=0, atol=1e-12)


def test_total_forgetting_erases_everything_before():
    """alpha_t = 1 with eta_t = 0: what was read before t no longer matters, inside a chunk and across chunks."""
    function = MemoryFunction(depth=1)
    q, k, v, rates, weights, _ = draw(function)
    rates["alpha"][:, 7], rates["eta"][:, 7] = 1.0, 0.0
    other = k.clone()
    other[:, :5] += 1
    # A linear memory's gradient depends on the frozen weights, so the chunk must begin at the forgetting token.
    for chunk in (7, 1):
        a = run(function, weights, q, k, v, rates, chunk)
        b = run(function, [w + 1 for w in weights], q, other, v, rates, chunk)
        if chunk == 7:
            theta = rates["theta"][:, 7, None]
            start = scan(function, FastWeights(weights, weights), q[:, :7], k[:, :7], v[:, :7],
                         {n: r[:, :7] for n, r in rates.items()}, titans, chunk=7)[1].now[0]  # fmt: skip
            written = -theta[..., None] * 2 * k[:, 7, :, None] * (k[:, 7, None] @ start - v[:, 7, None])
            torch.testing.assert_close(a[:, 7, None], q[:, 7, None] @ written, rtol=0, atol=1e-12)
        else:
            assert (a[:, 7:] - b[:, 7:]).abs().max() > 0  # the frozen weights at 7 are still the old ones
    rates["theta"][:, 7] = 0.0
    a = run(function, weights, q, k, v, rates, 1)
    b = run(function, [w + 1 for w in weights], q, other, v, rates, 1)
    torch.testing.assert_close(a[:, 7:], b[:, 7:], rtol=0, atol=1e-14)


def test_no_step_and_no_decay_returns_the_initial_memory():
    function = MemoryFunction(depth=2)
    q, k, v, rates, weights, _ = draw(function)
    still = {"theta": 0 * rates["theta"], "alpha": 0 * rates["alpha"], "eta": rates["eta"]}
    torch.testing.assert_close(
        run(function, weights, q, k, v, still, 4), function.forward(weights, q), atol=1e-14, rtol=0
    )


def test_no_momentum_and_no_decay_is_plain_descent():
    function = MemoryFunction(depth=2)
    q, k, v, rates, weights, _ = draw(function)
    zeros = {"theta": rates["theta"], "alpha": 0 * rates["alpha"], "eta": 0 * rates["eta"]}
    plain = run(function, weights, q, k, v, {"theta": rates["theta"]}, 4)
    torch.testing.assert_close(run(function, weights, q, k, v, zeros, 4), plain, rtol=0, atol=1e-12)


def test_linear_memory_in_one_chunk_is_causal_linear_attention():
    """W_0 = 0, one chunk, constant step: y_t = 2 theta sum_{i<=t} (q_t . k_i) v_i."""
    function = MemoryFunction(depth=1)
    q, k, v, _, weights, _ = draw(function)
    rates = {"theta": torch.full((N, T), 0.2, dtype=torch.float64)}
    attention = 2 * 0.2 * (q @ k.transpose(1, 2)).tril() @ v
    torch.testing.assert_close(run(function, [0 * weights[0]], q, k, v, rates, T), attention, rtol=0, atol=1e-12)


@pytest.mark.parametrize("read", ["token", "chunk"])
def test_the_past_never_sees_the_future(read):
    function = MemoryFunction(depth=2, clip=1.0)
    q, k, v, rates, weights, _ = draw(function)
    before, *_ = scan(function, FastWeights(weights, weights), q, k, v, rates, titans, chunk=4, read=read)
    for j in (2, 6, 12):
        moved = [x.clone() for x in (q, k, v)]
        for x in moved:
            x[:, j] += 1
        after, *_ = scan(function, FastWeights(weights, weights), *moved, rates, titans, chunk=4, read=read)
        assert torch.equal(before[:, :j], after[:, :j])
        assert not torch.equal(before[:, j], after[:, j])


def test_gradients_flow_through_the_inner_steps_and_recomputing_changes_nothing():
    """Outer gradients against finite differences: second-order terms are there. Checkpointed chunks give the same."""
    function = MemoryFunction(depth=2, expansion=1)
    q, k, v, rates, weights, _ = draw(function, tokens=5)
    leaves = [x.requires_grad_() for x in (*weights, q, k, v, *rates.values())]

    def outer(first, second, *rest, checkpoint=False):
        used = dict(zip(rates, rest[3:], strict=True))
        state = FastWeights([first, second], [first, second])
        return scan(function, state, *rest[:3], used, titans, chunk=2, checkpoint=checkpoint)[0].sum()

    assert torch.autograd.gradcheck(outer, leaves)
    plain = torch.autograd.grad(outer(*leaves), leaves)
    again = torch.autograd.grad(outer(*leaves, checkpoint=True), leaves)
    torch.testing.assert_close(plain, again, rtol=0, atol=1e-12)


def test_segment_products_are_products_also_at_zero():
    factors = torch.tensor([0.5, 0.0, 0.25, 1.0], dtype=torch.float64, requires_grad=True)
    found = segment_products(factors)
    for t, j in itertools.product(range(4), repeat=2):
        expected = factors[j + 1 : t + 1].prod() if j <= t else torch.tensor(0.0)
        assert found[t, j].item() == pytest.approx(expected.item(), abs=1e-15)
    found.sum().backward()
    assert torch.isfinite(factors.grad).all()


def test_wrong_settings_are_refused():
    for bad in ({"depth": 0}, {"activation": "relu6"}, {"head": "none"}, {"clip": 0.0}):
        with pytest.raises(InputError):
            MemoryFunction(**bad)
    function = MemoryFunction(depth=1)
    q, k, v, rates, weights, _ = draw(function)
    for bad in ({"chunk": 0}, {"chunk": 2, "read": "end"}):
        with pytest.raises(InputError):
            scan(function, FastWeights(weights, weights), q, k, v, rates, titans, **bad)
