"""The curvature edit against sorting, heaps and closed forms; its way back, its checkpoint, and its baselines."""

import heapq
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rote.controls.editing import curvature as edit
from rote.controls.editing import curvature_sweep as sweeps
from rote.controls.editing import supermask
from rote.controls.editing.matrix_edit import MatrixEdit
from rote.controls.editing.selection import SLACK, lightest_pairs, random_pairs, select_by_mass, select_pairs
from rote.controls.editing.svd_truncation import kept_ranks, svd_truncated
from rote.errors import InputError, RoteError
from rote.internals import curvature as kfac
from rote.internals.curvature.eigenbasis import Eigenbasis, eigenbasis_of
from rote.internals.curvature.factors import LayerFactors
from rote.models import CausalLM, small_gpt2, small_llama
from rote.records import RecordTable

# ---- selection: the threshold search, a full stable sort in exact arithmetic, and a heap


def by_sorting(lam, mu, rho):
    """Every pair as an exact fraction, sorted stably, taken until the mass is reached (within the stated slack)."""
    lam, mu = (np.asarray(x, np.float32).astype(float) for x in (lam, mu))
    pairs = [(Fraction(a) * Fraction(b), i, j) for i, a in enumerate(lam) for j, b in enumerate(mu)]
    total = sum(mass for mass, _, _ in pairs)
    target = (Fraction(rho) - Fraction(SLACK)) * total
    chosen, held = set(), Fraction(0)
    for mass, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        chosen.add((i, j))
        held += mass
        if held >= target:
            return chosen


def by_heap(lam, mu, rho):
    """The paper's code's way: walk the frontier (i, j) -> (i + 1, j), (i, j + 1) with a heap."""
    lam, mu = (np.asarray(x, np.float32).astype(float) for x in (lam, mu))
    target, held, chosen, seen = (rho - SLACK) * lam.sum() * mu.sum(), 0.0, set(), {(0, 0)}
    frontier = [(-lam[0] * mu[0], 0, 0)]
    while frontier:
        mass, i, j = heapq.heappop(frontier)
        chosen.add((i, j))
        held -= mass
        if held >= target:
            break
        for following in ((i + 1, j), (i, j + 1)):
            if following[0] < len(lam) and following[1] < len(mu) and following not in seen:
                seen.add(following)
                heapq.heappush(frontier, (-lam[following[0]] * mu[following[1]], *following))
    return chosen


def chosen_by_search(lam, mu, rho):
    return {(int(i), int(j)) for i, j in select_pairs(lam, mu, rho).mask().nonzero()}


def spectrum(kind, size, seed):
    rng = np.random.default_rng(seed)
    values = {"steep": rng.lognormal(0, 3, size), "flat": rng.random(size) + 1, "ties": rng.integers(0, 4, size)}[kind]
    return np.sort(values)[::-1]


@pytest.mark.parametrize("kinds", [("steep", "steep"), ("steep", "flat"), ("flat", "flat"), ("ties", "steep")])
@pytest.mark.parametrize("rho", [0.05, 0.6, 0.75, 0.97, 0.999])
def test_search_is_sort_is_heap(kinds, rho):
    lam, mu = spectrum(kinds[0], 23, 1), spectrum(kinds[1], 17, 2)
    found = chosen_by_search(lam, mu, rho)
    assert found == by_sorting(lam, mu, rho)
    if "ties" not in kinds:
        assert found == by_heap(lam, mu, rho)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.floats(0.01, 1.0),
)
def test_ties_are_taken_in_row_major_order(lam, mu, rho):
    lam, mu = sorted(lam, reverse=True), sorted(mu, reverse=True)
    if not lam[0] * mu[0]:
        return
    assert chosen_by_search(lam, mu, rho) == by_sorting(lam, mu, rho)


def test_a_mask_made_by_hand():
    lam, mu = np.array([4.0, 1.0]), np.array([3.0, 1.0])  # products 12, 4, 3, 1 of 20
    wanted = {0.6: {(0, 0)}, 0.61: {(0, 0), (0, 1)}, 0.8: {(0, 0), (0, 1)}, 0.81: {(0, 0), (0, 1), (1, 0)}}
    for rho, pairs in wanted.items():
        assert chosen_by_search(lam, mu, rho) == pairs
    found = select_pairs(lam, mu, 0.61)
    assert (found.pairs, found.mass, found.threshold) == (2, pytest.approx(0.8), 4.0)
    assert (found.rows_used, found.columns_used) == (1, 2)


@pytest.mark.parametrize(("p", "q", "rho"), [(3, 3, 0.5), (5, 3, 0.6), (4, 7, 0.01), (6, 6, 1.0), (10, 10, 0.33)])
def test_a_flat_spectrum_keeps_the_count_it_must(p, q, rho):
    assert select_pairs(np.ones(p), np.ones(q), rho).pairs == int(np.ceil(rho * p * q - 1e-9))


def test_the_size_of_a_7b_projection():
    """11008 x 4096 in well under a second of work, checked against the definition of a threshold set."""
    lam, mu = spectrum("steep", 11008, 3), spectrum("steep", 4096, 4)
    found = select_pairs(lam, mu, 0.6)
    lam, mu = (np.asarray(x, np.float32).astype(float) for x in (lam, mu))
    total = lam.sum() * mu.sum()
    rows = np.flatnonzero(found.columns)
    last = lam[rows] * mu[found.columns[rows] - 1]
    inside = found.columns < 4096
    following = lam[inside] * mu[found.columns[inside]]
    assert last.min() == found.threshold >= following.max()
    held = sum(lam[i] * mu[: found.columns[i]].sum() for i in rows)
    assert held >= 0.6 * total * (1 - 1e-9)
    assert held - found.threshold < 0.6 * total
    assert found.mass == pytest.approx(held / total)


def test_measured_masses_are_selected_the_same_way():
    lam, mu = spectrum("steep", 12, 5), spectrum("steep", 9, 6)
    lam, mu = (np.asarray(x, np.float32).astype(float) for x in (lam, mu))
    for rho in (0.3, 0.8, 1.0):
        mask, mass = select_by_mass(torch.from_numpy(np.outer(lam, mu)), rho)
        found = select_pairs(lam, mu, rho)
        assert torch.equal(mask, found.mask())
        assert mass == pytest.approx(found.mass)


def test_the_controls_masks():
    generator = torch.Generator().manual_seed(0)
    assert int(random_pairs((5, 7), 11, generator).sum()) == 11
    lam, mu = np.array([4.0, 1.0]), np.array([3.0, 1.0])
    assert lightest_pairs(lam, mu, 2).tolist() == [[False, False], [True, True]]


def test_wrong_spectra_are_refused():
    for lam, mu, rho, word in (
        ([1.0, 2.0], [1.0], 0.5, "descend"),
        ([1.0, -1.0], [1.0], 0.5, "negative"),
        ([0.0], [1.0], 0.5, "no curvature mass"),
        ([1.0], [1.0], 0.0, "rho"),
        ([1.0], [1.0], 1.5, "rho"),
        ([float("nan")], [1.0], 0.5, "finite"),
    ):
        with pytest.raises(InputError, match=word):
            select_pairs(np.array(lam), np.array(mu), rho)


# ---- the edit of one matrix


def one_layer(p=8, q=6, seed=0):
    """A random W with random factors of wide spectra."""
    generator = torch.Generator().manual_seed(seed)
    a, g = torch.randn(400, q, generator=generator), torch.randn(400, p, generator=generator)
    a, g = a * torch.logspace(0, -2, q), g * torch.logspace(0, -2, p)
    W = torch.randn(p, q, generator=generator)
    return W, LayerFactors(a.T @ a / 400, g.T @ g / 400, 400)


def edited(W, factors, rho):
    basis = eigenbasis_of(factors)
    return edit.edited_weight(W, basis, select_pairs(basis.lam, basis.mu, rho).mask())


def test_the_edit_written_out():
    """Against numpy in float64, every pair made and sorted."""
    W, factors = one_layer()
    lam, left = np.linalg.eigh(factors.G.double().numpy())
    mu, right = np.linalg.eigh(factors.A.double().numpy())
    pairs = sorted(((lam[i] * mu[j], i, j) for i in range(8) for j in range(6)), reverse=True)
    held, wanted = 0.0, np.zeros((8, 6))
    for mass, i, j in pairs:
        if held >= 0.7 * lam.sum() * mu.sum():
            break
        wanted += np.outer(left[:, i], right[:, j]) * (left[:, i] @ W.double().numpy() @ right[:, j])
        held += mass
    torch.testing.assert_close(edited(W, factors, 0.7).double(), torch.from_numpy(wanted), rtol=0, atol=1e-5)


def test_keeping_everything_keeps_the_weight():
    W, factors = one_layer()
    torch.testing.assert_close(edited(W, factors, 1.0), W, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9])
def test_the_edit_is_an_orthogonal_projection(rho):
    W, factors = one_layer(seed=1)
    once = edited(W, factors, rho)
    torch.testing.assert_close(edited(once, factors, rho), once, rtol=0, atol=1e-5)
    assert once.norm() <= W.norm()
    assert abs(float(((W - once) * once).sum())) < 1e-4
    assert float((W - once).norm()) > 0


def test_rescaling_a_factor_changes_nothing():
    W, factors = one_layer(seed=2)
    scaled = LayerFactors(factors.A * 256.0, factors.G / 64.0, factors.rows)
    torch.testing.assert_close(edited(W, scaled, 0.6), edited(W, factors, 0.6), rtol=0, atol=1e-5)


def test_the_edit_keeps_the_top_and_full_rank():
    """Diagonal factors: pairs are entries of W, and the heaviest one must stay where SVD would lower the rank."""
    W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    factors = LayerFactors(torch.diag(torch.tensor([1.0, 3.0])), torch.diag(torch.tensor([1.0, 4.0])), 10)
    torch.testing.assert_close(edited(W, factors, 0.6), torch.tensor([[0.0, 0.0], [0.0, 4.0]]))
    torch.testing.assert_close(edited(W, factors, 0.81), torch.tensor([[0.0, 2.0], [3.0, 4.0]]))


# ---- models


def llama(**changes):
    settings = {"vocab_size": 40, "context_length": 16, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24}
    return CausalLM(small_llama(**(settings | changes)))


def gpt2(**changes):
    settings = {"vocab_size": 40, "context_length": 16, "width": 16, "layers": 2, "heads": 2}
    return CausalLM(small_gpt2(**(settings | changes)))


def windows(rows=30, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 40, (rows, width))


def state(model):
    return {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}


def test_conv1d_and_linear_are_edited_alike():
    """GPT-2 stores W transposed: the same map as a Linear, with the same factors, gives the same edited map."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    conv = nn.Sequential(Conv1D(5, 4))
    linear = nn.Sequential(nn.Linear(4, 5))
    linear[0].weight.data, linear[0].bias.data = conv[0].weight.data.T.clone(), conv[0].bias.data.clone()
    x = torch.randn(200, 4)
    for model in (conv, linear):
        factors = kfac.collect_classifier(model, x, layers=["0"], seed=1)
        edit.edit_by_curvature(model, factors, rho=0.6)
    torch.testing.assert_close(conv[0].weight.data.T, linear[0].weight.data)
    assert not torch.equal(conv[0].weight.data, torch.zeros(4, 5))


@pytest.mark.parametrize("build", [llama, gpt2])
def test_edit_and_restore(build):
    model = build()
    before, fingerprint = state(model), model.fingerprint
    layers = kfac.default_layers(model.hf)
    factors = kfac.collect_causal_lm(model, windows(), layers=layers)
    report = edit.edit_by_curvature(model, factors, rho=0.6)
    changed = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{layer}.weight" for layer in layers}
    assert model.fingerprint != fingerprint
    for figures in report.layers:
        assert figures.mass >= 0.6
        assert 0 < figures.pairs < figures.outputs * figures.inputs
        assert figures.share == figures.pairs / (figures.outputs * figures.inputs)
        assert 0 < figures.relative_change < 1
        assert 1 <= figures.rank_95_A <= figures.inputs
        assert figures.positions == 30 * 8
    report.restore()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    assert model.fingerprint == fingerprint
    with edit.edit_by_curvature(model, factors, rho=0.6):
        assert model.fingerprint != fingerprint
    assert model.fingerprint == fingerprint


def test_rho_one_is_exactly_nothing():
    model = llama()
    before, fingerprint = state(model), model.fingerprint
    factors = kfac.collect_causal_lm(model, windows(), layers=["*up_proj"])
    report = edit.edit_by_curvature(model, factors, rho=0.9999)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    assert all(layer.unchanged and layer.relative_change == 0 for layer in report.layers)
    assert model.fingerprint == fingerprint


def test_bfloat16_is_written_back_and_warned_about():
    model = CausalLM(small_llama(vocab_size=40, context_length=16, width=16, layers=2, heads=2).to(torch.bfloat16))
    factors = kfac.collect_causal_lm(model, windows(), layers=["*.1.mlp.*"])
    assert all(layer.A.dtype == torch.float32 for layer in factors.layers.values())
    report = edit.edit_by_curvature(model, factors, rho=0.7)
    assert model.hf.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16
    assert any("bfloat16" in warning for warning in report.warnings)


def test_ekfac_masses_are_an_option():
    model = llama()
    factors = kfac.collect_causal_lm(model, windows(), layers=["*.1.mlp.up_proj"])
    bases = kfac.decompose(factors)
    with pytest.raises(InputError, match="measured masses"):
        edit.edit_by_curvature(model, factors, rho=0.6, masses="ekfac")
    measured = kfac.ekfac_masses_causal_lm(model, windows(), bases)
    with edit.edit_by_curvature(model, factors, rho=0.6, masses="ekfac", bases=measured) as report:
        weight = model.hf.model.layers[1].mlp.up_proj.weight.detach().clone()
    basis = measured["model.layers.1.mlp.up_proj"]
    mask, _ = select_by_mass(basis.masses, 0.6)
    wanted = edit.edited_weight(model.hf.model.layers[1].mlp.up_proj.weight.detach(), basis, mask)
    torch.testing.assert_close(weight, wanted)
    assert report.layers[0].pairs == int(mask.sum())


def test_factors_of_another_model_are_refused():
    factors = kfac.collect_causal_lm(llama(seed=1), windows(), layers=["*up_proj"])
    model = llama()
    before = state(model)
    with pytest.raises(InputError, match="another checkpoint"):
        edit.edit_by_curvature(model, factors, rho=0.6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_a_broken_edit_leaves_the_model_alone():
    model = llama()
    factors = kfac.collect_causal_lm(model, windows(), layers=["*up_proj"])
    bases = kfac.decompose(factors)
    name = list(bases)[-1]
    basis = bases[name]
    bases[name] = Eigenbasis(basis.U_G * float("nan"), basis.lam, basis.U_A, basis.mu)
    before = state(model)
    with pytest.raises(RoteError, match="not finite"):
        edit.edit_by_curvature(model, factors, rho=0.6, bases=bases)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_the_committed_checkpoint_is_anybodys(checkpoints, tmp_path):
    """Treat a checkpoint from disk, commit it, load it with plain transformers: the same logits, one note beside."""
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = CausalLM.load(checkpoints("qwen2"), device="cpu")  # its embeddings are tied: they must stay so
    clean = RecordTable.from_rows({"text": f"{number} The quick brown fox jumps over the dog."} for number in range(60))
    stages = []
    report = edit.treat_by_curvature(
        model, clean, layers=(), rho=0.7, seed=0, sequence_tokens=32, progress=lambda *step: stages.append(step)
    )
    assert [layer.layer for layer in report.layers] == list(kfac.default_layers(model.hf))
    assert stages[-1][0] == "editing"
    assert any(stage == "curvature factors" and done == total for stage, done, total in stages)
    path = report.commit(tmp_path / "treated")
    loaded = AutoModelForCausalLM.from_pretrained(path)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(loaded(ids).logits, model.hf(ids).logits)
    assert AutoTokenizer.from_pretrained(path)("fox")["input_ids"] == model.tokenizer("fox")["input_ids"]
    about = json.loads((path / "rote_treatment.json").read_text())
    assert (about["method"], about["rho"]) == ("curvature", 0.7)
    assert about["layers"][0]["pairs"] == report.layers[0].pairs
    with pytest.raises(InputError, match="not empty"):
        report.commit(path)
    assert [child.name for child in tmp_path.iterdir()] == ["treated"]


def test_treatment_refuses_before_it_changes_anything(checkpoints):
    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    clean = RecordTable.from_rows([{"text": "The quick brown fox. " * 30}])
    arguments = {"seed": 0, "sequence_tokens": 16, "progress": lambda *step: None}
    with pytest.raises(InputError, match=r"transformer\.h\.\{0\.\.1\}"):
        edit.treat_by_curvature(model, clean, layers=["nothing.*"], rho=0.6, **arguments)
    with pytest.raises(InputError, match="rho"):
        edit.treat_by_curvature(model, clean, layers=(), rho=0, **arguments)
    with pytest.raises(InputError, match="several matrices"):
        edit.treat_by_curvature(model, clean, layers=["*c_attn"], rho=0.6, **arguments)


def test_matrix_edit_checks_shapes():
    model = llama()
    layer = kfac.select_matrices(model.hf, ["*.0.mlp.up_proj"])[0]
    with pytest.raises(InputError, match="the new matrix"):
        MatrixEdit(model).replace(layer, torch.zeros(2, 2))


# ---- baselines and the frontier


def test_svd_truncation_is_the_best_matrix_of_its_rank():
    W = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(W)
    found = svd_truncated(W, 0.4)
    assert int(torch.linalg.matrix_rank(found)) == kept_ranks((7, 5), 0.4) == 2
    assert float((W - found).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-4)
    assert torch.equal(svd_truncated(W, 1.0), W)
    with pytest.raises(InputError, match="share"):
        svd_truncated(W, 0.0)


def test_sweep_measures_every_method_and_restores():
    model = llama()
    before = state(model)
    factors = kfac.collect_causal_lm(model, windows(), layers=["*.1.mlp.{up,down}_proj"])
    bases = kfac.ekfac_masses_causal_lm(model, windows(), kfac.decompose(factors))
    original = {name: tensor for name, tensor in before.items() if ".1.mlp.up_proj" in name or ".1.mlp.down" in name}

    def distance():
        now = model.hf.state_dict()
        return sum(float((now[name] - tensor).norm()) for name, tensor in original.items())

    for method in sweeps.METHODS:
        rows = sweeps.sweep(
            model, factors, strengths=(0.3, 0.8), metrics={"distance": distance}, method=method, bases=bases
        )
        assert [row["strength"] for row in rows] == [0.3, 0.8]
        assert all(row["distance"] > 0 and row["relative_change"] > 0 for row in rows)
        assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
        if method == "noise":
            assert rows[0]["relative_change"] == pytest.approx(0.3, rel=1e-3)
        elif method.endswith("pairs"):
            assert rows[0]["share"] == pytest.approx(0.3, abs=0.01)
    with pytest.raises(InputError, match="unknown method"):
        sweeps.sweep(model, factors, strengths=(0.5,), metrics={}, method="magic")
    with pytest.raises(ZeroDivisionError):
        sweeps.sweep(model, factors, strengths=(0.5,), metrics={"broken": lambda: 1 / 0})
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_matched_perplexity_is_interpolated_in_its_logarithm():
    points = ((10.0, 1.0), (40.0, 0.0), (20.0, 0.4))
    rows = [{"perplexity": x, "strict": y} for x, y in points]
    assert sweeps.at_matched(rows, value=10.0, metric="strict") == 1.0
    assert sweeps.at_matched(rows, value=20 * 2**0.5, metric="strict") == pytest.approx(0.2)
    assert sweeps.at_matched(rows, value=41.0, metric="strict") is None
    assert sweeps.at_matched(rows, value=9.0, metric="strict") is None
    assert sweeps.at_matched(rows[:1], value=10.0, metric="strict") == 1.0


# ---- BalancedSubnet


def test_the_mask_removes_the_lowest_scores_and_passes_gradients_through():
    scores = torch.tensor([[0.5, -0.1], [0.2, -0.9]], requires_grad=True)
    mask = supermask.hard_mask(scores, 0.5)
    torch.testing.assert_close(mask.detach(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (mask * upstream).sum().backward()
    torch.testing.assert_close(scores.grad, upstream * scores.detach().sign())


def test_the_loss_balances_and_survives_a_batch_of_one_kind():
    losses = torch.tensor([1.0, 2.0, 6.0])
    forget = torch.tensor([True, True, False])
    assert float(supermask.balanced_loss(losses, forget, 0.7)) == pytest.approx(-0.3 * 1.5 + 0.7 * 6)
    assert float(supermask.balanced_loss(losses[:2], forget[:2], 0.7)) == pytest.approx(-0.3 * 1.5)
    assert float(supermask.balanced_loss(losses[2:], forget[2:], 0.7)) == pytest.approx(0.7 * 6)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_balanced_subnet_zeroes_its_share_and_nothing_else(build, tmp_path):
    model = build()
    before, layers = state(model), kfac.default_layers(model.hf)
    report = supermask.train_supermask(
        model,
        windows(rows=8, seed=1),
        windows(rows=8, seed=2),
        settings=supermask.SupermaskSettings(ratio=0.1, epochs=2, batch_size=5),
    )
    after = state(model)
    for name, tensor in after.items():
        if name.removesuffix(".weight") in layers:
            zeroed = (tensor == 0) & (before[name] != 0)
            assert int(zeroed.sum()) == report.removed[name.removesuffix(".weight")] == int(0.1 * tensor.numel())
            assert torch.equal(tensor[~zeroed], before[name][~zeroed])
        else:
            assert torch.equal(tensor, before[name])
    assert len(report.losses) == 2 * 4
    report.restore()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_training_can_stop_and_errors_leave_the_model_alone():
    model = llama()
    before = state(model)
    settings = supermask.SupermaskSettings(ratio=0.1, epochs=5, batch_size=16)
    seen = []

    def stop(epoch):
        seen.append((epoch, model.fingerprint))
        return epoch == 2

    report = supermask.train_supermask(
        model, windows(rows=8, seed=1), windows(rows=8, seed=2), settings=settings, stop=stop
    )
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert len(report.losses) == 2
    assert seen[-1][1] == model.fingerprint  # stopped with the mask that `stop` saw
    report.restore()
    with pytest.raises(ZeroDivisionError):
        supermask.train_supermask(
            model, windows(rows=8), windows(rows=8, seed=2), settings=settings, stop=lambda epoch: 1 / 0
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_balanced_subnet_raises_the_loss_of_what_it_must_forget():
    """On a model that memorized random windows: the trained mask hurts them more than the mask it started from, and
    spares what it was told to keep, which was memorized as well."""
    from rote.models import TrainingConfig, train_causal_lm

    both = windows(rows=32, width=12, seed=7)
    hf = small_llama(vocab_size=40, context_length=16, width=32, layers=2, heads=2, mlp_width=64)
    train_causal_lm(hf, np.tile(both, (60, 1)), TrainingConfig(batch_size=32, learning_rate=1e-2))
    model, forget, keep = CausalLM(hf), both[:16], both[16:]

    def loss(rows):
        batch = torch.from_numpy(rows)
        with torch.inference_mode():
            logits = model.hf(input_ids=batch[:, :-1], use_cache=False).logits
        return float(nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()))

    gaps = {}
    for rate in (1e-9, 0.3):
        chosen = supermask.SupermaskSettings(ratio=0.1, clean_weight=0.5, epochs=20, batch_size=16, learning_rate=rate)
        with supermask.train_supermask(model, forget, keep, settings=chosen):
            gaps[rate] = loss(forget) - loss(keep)
    assert gaps[0.3] > gaps[1e-9] + 0.2


def test_supermask_refuses_bad_input():
    with pytest.raises(InputError, match="ratio"):
        supermask.SupermaskSettings(ratio=0)
    with pytest.raises(InputError, match="equal width"):
        supermask.train_supermask(llama(), windows(width=8), windows(width=9))
    with pytest.raises(InputError, match="both"):
        supermask.train_supermask(llama(), windows(rows=0), windows())
