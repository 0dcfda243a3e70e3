"""Layers: streaming, padding, causality, resets, gradients to W_init, parts switched off, states on disk, TTT twin."""

from __future__ import annotations

import itertools

import pytest
import torch

from rote.errors import InputError
from rote.memory.tnt import HierarchicalMemory, MemoryState, NeuralMemory, TTTLayer
from rote.memory.tnt.projection import project_queries

DIM = 8


def layer(name):
    torch.manual_seed(0)
    made = {
        "titans": lambda: NeuralMemory(DIM, heads=2, chunk=4),
        "linear": lambda: NeuralMemory(DIM, memory="linear", chunk=5, read="chunk"),
        "ttt": lambda: TTTLayer(DIM, heads=2, depth=2, chunk=4, gate=True, conv=3),
        "tnt": lambda: HierarchicalMemory(DIM, heads=2, global_chunk=6, local_chunks=(2, 3), shard=8),
        "momentum": lambda: HierarchicalMemory(
            DIM, global_chunk=5, local_chunks=(3,), shard=7, momentum=True, forget=True, projection_scale="count"
        ),
    }[name]().double()
    with torch.no_grad():
        for path in made.paths:
            for weight in path.initial:  # a memory that knows something: the last layer begins at zero
                weight.add_(0.3 * torch.randn_like(weight))
    return made


NAMES = ("titans", "linear", "ttt", "tnt", "momentum")


def inputs(rows=2, tokens=21, seed=1):
    return torch.randn(rows, tokens, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuts", [(9,), (1, 8, 16), tuple(range(1, 21))])
def test_whole_is_pieces_is_token_by_token(name, cuts):
    memory, x = layer(name), inputs()
    whole, end, norms = memory(x, return_surprise=True)
    state, parts, found = None, [], []
    for a, b in itertools.pairwise((0, *cuts, 21)):
        y, state, surprise = memory(x[:, a:b], state, return_surprise=True)
        parts.append(y)
        found.append(surprise)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-11)
    torch.testing.assert_close(torch.cat(found, 1), norms, rtol=0, atol=1e-11)
    assert state.tokens == end.tokens == 21
    assert state.numel == end.numel


@pytest.mark.parametrize("name", NAMES)
def test_padding_leaves_no_trace(name):
    """Right padding: outputs of the real tokens and the weights behind them are those of the sequence alone."""
    memory, x = layer(name), inputs(tokens=14)
    mask = torch.ones(2, 14, dtype=torch.bool)
    mask[1, 9:] = False
    padded, state = memory(x, mask=mask)
    alone, _ = memory(x[1:, :9])
    torch.testing.assert_close(padded[1:, :9], alone, rtol=0, atol=1e-12)
    noisy = x.clone()
    noisy[1, 9:] += 5
    again, after = memory(noisy, mask=mask)
    torch.testing.assert_close(again[0], padded[0], rtol=0, atol=0)
    for one, other in zip(state.paths, after.paths, strict=True):
        torch.testing.assert_close(one.fast.now, other.fast.now, rtol=0, atol=0)
    for one, path in zip(memory(x, mask=mask & False)[1].paths, memory.paths, strict=True):
        torch.testing.assert_close(one.fast.now, path.fresh(2).fast.now, rtol=0, atol=1e-15)  # nothing was written


@pytest.mark.parametrize("name", NAMES)
def test_no_output_sees_a_later_token(name):
    memory, x = layer(name), inputs()
    before, _ = memory(x)
    for j in (3, 7, 8, 20):
        moved = x.clone()
        moved[:, j] += 1
        after, _ = memory(moved)
        assert torch.equal(before[:, :j], after[:, :j])
        assert not torch.equal(before[:, j], after[:, j])


def test_a_reset_forgets_the_other_shards():
    torch.manual_seed(0)
    memory = HierarchicalMemory(DIM, global_chunk=None, local_chunks=(3, 4), shard=8).double()
    x = inputs()
    moved = x.clone()
    moved[:, 8:16] += 1
    before, after = memory(x)[0], memory(moved)[0]
    assert torch.equal(before[:, :8], after[:, :8])
    assert torch.equal(before[:, 16:], after[:, 16:])
    assert not torch.equal(before[:, 8:16], after[:, 8:16])
    # With the global memory on, the local reads alone have the property.
    both = HierarchicalMemory(DIM, global_chunk=8, local_chunks=(3,), shard=8).double()
    local = both.paths[1]
    assert torch.equal(local(x)[0][:, 16:], local(moved)[0][:, 16:])
    assert not torch.equal(both(x)[0][:, 16:], both(moved)[0][:, 16:])


def test_every_shard_sends_gradient_to_the_learned_start():
    torch.manual_seed(0)
    memory = HierarchicalMemory(3, global_chunk=None, local_chunks=(2,), shard=4, expansion=1, conv=0).double()
    x = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    path = memory.paths[0]
    for m in range(3):  # the last shard is not full
        memory.zero_grad()
        memory(x)[0][:, 4 * m : 4 * m + 4].square().sum().backward()
        assert all(weight.grad.abs().max() > 0 for weight in path.initial)
    start = list(path.initial)

    def outer(*weights):
        path.initial = torch.nn.ParameterList()
        object.__setattr__(path, "fresh", lambda rows: path_state(rows, weights))
        return memory(x)[0].sum()

    def path_state(rows, weights):
        from rote.memory.tnt.chunkwise import FastWeights
        from rote.memory.tnt.path import PathState

        spread = [w.expand(rows, *w.shape[1:]) for w in weights]
        return PathState(FastWeights(spread, spread))

    assert torch.autograd.gradcheck(outer, [w.detach().requires_grad_() for w in start])


def test_titans_is_tnt_with_its_parts_switched_off():
    torch.manual_seed(0)
    titans = NeuralMemory(DIM, heads=2, chunk=4, momentum=False, forget=False).double()
    tnt = HierarchicalMemory(
        DIM, heads=2, global_chunk=None, local_chunks=(4,), shard=21, qk_projection=False
    ).double()  # fmt: skip
    tnt.load_state_dict(titans.state_dict())
    x = inputs()
    torch.testing.assert_close(tnt(x)[0], titans(x)[0], rtol=0, atol=1e-12)


def test_projection_is_masked_attention_over_the_keys():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, 150, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    unit = k / k.norm(dim=-1, keepdim=True)
    running = torch.einsum("nti,ntj->ntij", unit, unit).cumsum(1)
    expected = torch.einsum("ntij,ntj->nti", running, q)
    for scale, factor in (("none", 1), ("count", 1 / torch.arange(1, 151, dtype=torch.float64)[:, None])):
        found, pi, seen = project_queries(q, k, scale=scale)
        torch.testing.assert_close(found, expected * factor, rtol=0, atol=1e-11)
        torch.testing.assert_close(pi, running[:, -1], rtol=0, atol=1e-11)
        assert seen.tolist() == [150.0] * 3
    found, *_ = project_queries(q, k, scale="l2")
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3, 150, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [4, 7])  # at a chunk's border and inside one
def test_a_state_survives_the_disk(name, at, tmp_path):
    memory, x = layer(name), inputs()
    _, state = memory(x[:, :at])
    back = MemoryState.load(state.save(tmp_path / "state.safetensors", memory), memory)
    assert torch.equal(memory(x[:, at:], state)[0], memory(x[:, at:], back)[0])
    assert (back.tokens, back.rows, back.numel) == (state.tokens, state.rows, state.numel)
    swapped = state.select(torch.tensor([1, 0]))
    expected = memory(x[:, at:], state)[0][[1, 0]]
    torch.testing.assert_close(memory(x[[1, 0], at:], swapped)[0], expected, rtol=0, atol=1e-13)


def test_states_are_never_mixed(tmp_path):
    memory, x = layer("titans"), inputs()
    _, state = memory(x)
    file = state.save(tmp_path / "state.safetensors", memory)
    other = NeuralMemory(DIM, heads=2, chunk=8).double()
    with pytest.raises(InputError, match="other settings"):
        other(x, state)
    with pytest.raises(InputError, match="other settings"):
        MemoryState.load(file, other)
    with pytest.raises(InputError, match="hold"):
        memory(x[:1], state)
    torch.manual_seed(9)
    with pytest.raises(InputError, match="other weights"):
        MemoryState.load(file, NeuralMemory(DIM, heads=2, chunk=4).double())
    (tmp_path / "broken").write_bytes(file.read_bytes()[:200])
    for bad in ("broken", "absent"):
        with pytest.raises(InputError):
            MemoryState.load(tmp_path / bad, memory)


def test_wrong_input_is_refused():
    memory = layer("titans")
    for bad in (torch.zeros(2, 3, DIM + 1), torch.zeros(3, DIM), torch.zeros(2, 0, DIM)):
        with pytest.raises(InputError):
            memory(bad.double())
    with pytest.raises(InputError, match="mask"):
        memory(inputs(), mask=torch.ones(2, 3, dtype=torch.bool))
    for settings in ({"heads": 3}, {"chunk": 0}, {"memory": "tree"}, {"depth": 1}, {"rate_max": 0.0}, {"conv": -1}):
        with pytest.raises(InputError):
            NeuralMemory(DIM, **settings)
    for settings in ({"global_chunk": None, "local_chunks": ()}, {"shard": 4}, {"local_rates": (0.1, 0.2)}):
        with pytest.raises(InputError):
            HierarchicalMemory(DIM, **settings)


def test_half_precision_keeps_fast_weights_in_float32():
    torch.manual_seed(0)
    memory = HierarchicalMemory(DIM, heads=2, global_chunk=8, local_chunks=(4,), shard=8)
    x = inputs().float()
    y, _ = memory(x)
    half, state = memory.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert all(w.dtype == torch.float32 for path in state.paths for w in path.fast.now)
    assert (half.float() - y).abs().max() < 0.1 * y.abs().max()


def test_ttt_layer_is_the_published_recipe():
    """TTT-MLP written a second time, one sequence, one head, one token at a time, by autograd."""
    torch.manual_seed(0)
    memory = TTTLayer(4, depth=2, chunk=4, gate=True).double()
    path = memory.paths[0]
    with torch.no_grad():
        for p in path.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    x = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    k, v, q = ((x[0] @ w.T) for w in (path.qkv.weight[4:8], path.qkv.weight[8:], path.qkv.weight[:4]))

    def rope(vector, position):
        out = vector.clone()
        for i in range(2):
            angle = torch.tensor(position * 10_000 ** (-2 * i / 4), dtype=torch.float64)
            a, b = vector[2 * i], vector[2 * i + 1]
            out[2 * i], out[2 * i + 1] = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
        return out

    def f(weights, z):
        w1, w2 = weights
        hidden = torch.nn.functional.gelu(z @ w1[:-1] + w1[-1], approximate="tanh")
        normal = torch.nn.functional.layer_norm(hidden @ w2[:-1] + w2[-1], (4,), eps=1e-6)
        return z + path.gamma[0] * normal + path.beta[0]

    weights, ys = [w[0] for w in path.initial], []
    for t in range(10):
        j = t % 4
        if j == 0:
            start = [w.detach() for w in weights]
            total = [torch.zeros_like(w) for w in start]
        leaves = [w.clone().requires_grad_() for w in start]
        loss = 0.5 * (f(leaves, rope(k[t], j)) - v[t]).square().sum()
        rate = torch.sigmoid(path.rates.weight[0] @ x[0, t] + path.rates.bias[0]) / 4
        total = [s + rate * g for s, g in zip(total, torch.autograd.grad(loss, leaves), strict=True)]
        scale = max(0.0, 1 / (j + 1) + path.scale_offset[j].item())
        weights = [w - scale * s for w, s in zip(start, total, strict=True)]
        ys.append(f(weights, rope(q[t], j)))
    read = torch.stack(ys)[None]
    gate = torch.nn.functional.gelu(x @ memory.gate.weight.T, approximate="tanh")
    expected = (memory.norm(read) * gate) @ memory.out.weight.T
    torch.testing.assert_close(memory(x)[0], expected, rtol=0, atol=1e-10)
