"""K-FAC factors against autograd itself, and everything that must be refused before one is collected."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rote.errors import InputError, RoteError
from rote.internals import curvature as kfac
from rote.internals.curvature.collect import add_gram, mirror
from rote.internals.curvature.labels import draw_labels, score_gradient
from rote.models import CausalLM, small_gpt2, small_llama


def llama(**changes):
    settings = {"vocab_size": 40, "context_length": 16, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24}
    return CausalLM(small_llama(**(settings | changes)))


def gpt2(**changes):
    settings = {"vocab_size": 40, "context_length": 16, "width": 16, "layers": 2, "heads": 2}
    return CausalLM(small_gpt2(**(settings | changes)))


def windows(rows=6, width=9, vocabulary=40, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, (rows, width))


def by_autograd(model, ids, name, lengths=None):
    """A and G of one layer from gradients of the gold-label loss, taken row by row with autograd.grad."""
    module = model.hf.get_submodule(name)
    inputs, gradients = [], []
    for row, tokens in enumerate(ids):
        true = len(tokens) if lengths is None else lengths[row]
        batch = torch.tensor(tokens[None, :true])
        kept = {}
        handle = module.register_forward_hook(lambda m, a, out, kept=kept: kept.update(a=a[0], out=out))
        logits = model.hf(input_ids=batch, use_cache=False).logits
        handle.remove()
        logp = torch.log_softmax(logits[0, :-1].double(), -1)
        loss = -logp.gather(1, batch[0, 1:, None]).sum()
        (g,) = torch.autograd.grad(loss, kept["out"])
        inputs.append(kept["a"].detach().reshape(true, -1)[:-1].double())
        gradients.append(g.reshape(true, -1)[:-1].double())
    a, g = torch.cat(inputs), torch.cat(gradients)
    return a.T @ a / len(a), g.T @ g / len(g), len(a)


CASES = [(llama, "model.layers.0.mlp.gate_proj"), (llama, "model.layers.1.mlp.down_proj"),
         (gpt2, "transformer.h.0.mlp.c_fc"), (gpt2, "transformer.h.1.mlp.c_proj")]  # fmt: skip


@pytest.mark.parametrize(("build", "name"), CASES)
@pytest.mark.parametrize("batch_tokens", [8, 32, 1000])
def test_factors_are_autograds(build, name, batch_tokens):
    """Whatever the batch size: 6 windows one by one, as 4 and 2, and together."""
    model, ids = build(), windows()
    found = kfac.collect_causal_lm(model, ids, layers=[name], labels="gold", batch_tokens=batch_tokens)
    A, G, rows = by_autograd(model, ids, name)
    assert found.layers[name].rows == rows == 6 * 8
    torch.testing.assert_close(found.layers[name].A.double(), A, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.layers[name].G.double(), G, rtol=1e-4, atol=1e-7)


def test_padding_counts_nowhere():
    model, name, ids = llama(), "model.layers.0.mlp.up_proj", windows()
    lengths = np.array([9, 4, 2, 9, 7, 3])
    found = kfac.collect_causal_lm(model, ids, layers=[name], labels="gold", lengths=lengths, batch_tokens=16)
    A, G, rows = by_autograd(model, ids, name, lengths)
    assert found.layers[name].rows == rows == (lengths - 1).sum()
    torch.testing.assert_close(found.layers[name].A.double(), A, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.layers[name].G.double(), G, rtol=1e-4, atol=1e-7)


def test_several_layers_in_one_pass_are_the_layers_alone():
    model, ids = llama(), windows()
    every = "model.layers.{0,1}.mlp.{gate,up,down}_proj"
    together = kfac.collect_causal_lm(model, ids, layers=[every], seed=3)
    assert len(together.layers) == 6
    for name, layer in together.layers.items():
        alone = kfac.collect_causal_lm(model, ids, layers=[name], seed=3).layers[name]
        torch.testing.assert_close(layer.A, alone.A)
        torch.testing.assert_close(layer.G, alone.G)
    gate, up = together.layers["model.layers.0.mlp.gate_proj"], together.layers["model.layers.0.mlp.up_proj"]
    assert gate.A is up.A  # they read the same tensor: one product, one copy


def test_drawn_labels_do_not_depend_on_the_batch():
    model, ids = gpt2(), windows()
    one, other = (kfac.collect_causal_lm(model, ids, layers=["*c_fc"], seed=1, batch_tokens=n) for n in (8, 32))
    different = kfac.collect_causal_lm(model, ids, layers=["*c_fc"], seed=2)
    for name, layer in one.layers.items():
        torch.testing.assert_close(layer.G, other.layers[name].G, rtol=1e-4, atol=1e-7)
        assert not torch.allclose(layer.G, different.layers[name].G, rtol=1e-3)


def test_collecting_leaves_the_model_as_it_was():
    model = llama()
    model.hf.train()
    model.hf.model.embed_tokens.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    kfac.collect_causal_lm(model, windows(), layers=["*.mlp.*"])
    assert model.hf.training
    assert [name for name, p in model.hf.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]
    assert all(p.grad is None for p in model.hf.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_position_0_can_be_left_out():
    model, ids, name = llama(), windows(), "model.layers.1.mlp.gate_proj"
    inputs = []
    handle = model.hf.get_submodule(name).register_forward_pre_hook(lambda m, a: inputs.append(a[0].detach()))
    model.hf(input_ids=torch.tensor(ids), use_cache=False)
    handle.remove()
    a = inputs[0][:, 1:-1].flatten(0, 1)
    found = kfac.collect_causal_lm(model, ids, layers=[name], skip_first=True).layers[name]
    assert found.rows == len(a)
    torch.testing.assert_close(found.A, a.T @ a / len(a), rtol=1e-4, atol=1e-6)


def test_sampled_labels_give_the_fisher_of_a_linear_softmax_classifier():
    """E[(p - e_y)(p - e_y)^T] = diag(p) - p p^T, with the same p for every input: equal inputs, many draws."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4))
    x = torch.randn(1, 3).repeat(20_000, 1)
    found = kfac.collect_classifier(model, x, layers=["0"], seed=1, batch_size=7_000).layers["0"]
    p = torch.softmax(model(x[:1])[0], -1).detach()
    torch.testing.assert_close(found.G, torch.diag(p) - p[:, None] * p, rtol=0, atol=0.01)
    torch.testing.assert_close(found.A, x[0][:, None] * x[0], rtol=1e-4, atol=1e-5)
    assert found.rows == 20_000


def test_labels_are_drawn_from_the_model():
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).repeat(40_000, 1)
    u = torch.from_numpy(np.random.default_rng(0).random(40_000))
    share = torch.bincount(draw_labels(p, u), minlength=4) / 40_000
    assert share[1] == 0
    torch.testing.assert_close(share, p[0], rtol=0, atol=0.01)
    assert draw_labels(p[:2], torch.tensor([0.0, 1.0])).tolist() == [0, 3]


def test_the_gradient_of_the_logits_is_autograds():
    torch.manual_seed(0)
    z = torch.randn(9, 6, requires_grad=True)
    y = torch.randint(0, 6, (9,))
    nn.functional.cross_entropy(z, y, reduction="sum").backward()
    torch.testing.assert_close(score_gradient(z, gold=y), z.grad)


def test_traces_agree_when_inputs_have_one_norm():
    """One Linear, one token: the exact Fisher's trace is E ||g||^2 ||a||^2; K-FAC's is tr G tr A; equal if ||a|| is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4))
    for constant in (True, False):
        x = torch.randn(300, 5)
        x = x / x.norm(dim=1, keepdim=True) if constant else x
        y = torch.randint(0, 4, (300,))
        found = kfac.collect_classifier(model, x, layers=["0"], labels="gold", gold=y).layers["0"]
        g = torch.softmax(model(x), -1).detach() - nn.functional.one_hot(y, 4)
        exact = float((g.square().sum(1) * x.square().sum(1)).mean())
        product = float(found.G.trace() * found.A.trace())
        assert (product == pytest.approx(exact, rel=1e-4)) == constant


class TinyVit(nn.Module):
    """Patches, a class token and one block: what a ViT's layer sees is (batch, tokens, width)."""

    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, 6))
        self.fc1, self.fc2, self.mix, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        tokens = torch.cat([self.cls.expand(len(x), 1, 6), x], 1)
        tokens = tokens + self.mix(tokens.mean(1, keepdim=True))
        return self.head((tokens + self.fc2(torch.relu(self.fc1(tokens))))[:, 0])


def test_the_class_token_alone():
    torch.manual_seed(0)
    model, x, y = TinyVit(), torch.randn(10, 4, 6), torch.randint(0, 3, (10,))
    found = kfac.collect_classifier(model, x, layers=["fc*"], labels="gold", gold=y, positions="cls", batch_size=4)
    every = kfac.collect_classifier(model, x, layers=["fc*"], labels="gold", gold=y, batch_size=4)
    tokens = torch.cat([model.cls.expand(10, 1, 6), x], 1)
    tokens = tokens + model.mix(tokens.mean(1, keepdim=True))
    out = model.fc1(tokens)
    logits = model.head((tokens + model.fc2(torch.relu(out)))[:, 0])
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), out)
    for positions, layer, rows in (((0,), found.layers["fc1"], 10), (range(5), every.layers["fc1"], 50)):
        a = tokens[:, list(positions)].detach().flatten(0, 1)
        b = g[:, list(positions)].flatten(0, 1)
        assert layer.rows == rows
        torch.testing.assert_close(layer.A, a.T @ a / rows, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.G, b.T @ b / rows, rtol=1e-4, atol=1e-7)


def test_a_wide_factor_by_its_lower_triangle():
    torch.manual_seed(0)
    rows = torch.randn(50, 1100)
    total = torch.zeros(1100, 1100)
    add_gram(total, rows[:20])
    add_gram(total, rows[20:])
    torch.testing.assert_close(mirror(total), rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_ekfac_masses_are_squared_example_gradients():
    """Against autograd: one window's weight gradient, rotated into the eigenbasis, squared, averaged over windows."""
    model, name, ids = gpt2(), "transformer.h.1.mlp.c_fc", windows()
    factors = kfac.collect_causal_lm(model, ids, layers=[name], labels="gold")
    basis = kfac.decompose(factors)
    found = kfac.ekfac_masses_causal_lm(model, ids, basis, labels="gold", batch_tokens=24)[name].masses
    wanted = torch.zeros_like(found)
    weight = model.hf.get_submodule(name).weight
    for row in ids:
        batch = torch.tensor(row[None])
        logits = model.hf(input_ids=batch, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[0, :-1], batch[0, 1:], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, weight)
        wanted += basis[name].coefficients(gradient.T).square() / len(ids)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_ekfac_equals_kfac_when_inputs_say_nothing_about_gradients():
    """Zero weights: p is the same for every input, so g (sampled) and a are independent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3))
    nn.init.zeros_(model[0].weight)
    x = torch.randn(60_000, 3) * torch.tensor([3.0, 1.0, 0.3])
    factors = kfac.collect_classifier(model, x, layers=["0"], seed=1)
    basis = kfac.decompose(factors)
    masses = kfac.ekfac_masses_classifier(model, x, basis, seed=2)["0"].masses
    torch.testing.assert_close(
        masses, torch.from_numpy(np.outer(basis["0"].lam, basis["0"].mu)).float(), rtol=0.05, atol=1e-3
    )


def test_eigenbasis_descends_and_rebuilds_the_factors():
    model = llama()
    factors = kfac.collect_causal_lm(model, windows(), layers=["*down_proj"])
    for name, basis in kfac.decompose(factors).items():
        assert (np.diff(basis.lam) <= 0).all()
        assert (np.diff(basis.mu) <= 0).all()
        assert basis.lam[-1] >= 0
        rebuilt = basis.U_A @ torch.diag(torch.from_numpy(basis.mu).float()) @ basis.U_A.T
        torch.testing.assert_close(rebuilt, factors.layers[name].A, rtol=1e-3, atol=1e-5)
    assert kfac.effective_rank(np.array([5.0, 4.0, 1.0, 0.0]), 0.9) == 2
    assert kfac.effective_rank(np.array([5.0, 4.0, 1.0, 0.0]), 0.95) == 3
    assert kfac.effective_rank(np.ones(7), 1.0) == 7


def test_band_strengths_are_projected_norms():
    model, ids = llama(), windows(vocabulary=40, seed=1)
    name = "model.layers.1.mlp.down_proj"
    bases = kfac.decompose(kfac.collect_causal_lm(model, windows(), layers=[name]))
    rows = kfac.band_strengths(model, bases, {"clean": windows(seed=2), "memorized": ids}, positions=slice(3, None))
    inputs = []
    handle = model.hf.get_submodule(name).register_forward_pre_hook(lambda m, a: inputs.append(a[0].detach()))
    for batch in (ids, windows(seed=2)):
        model.hf(input_ids=torch.tensor(batch), use_cache=False)
    handle.remove()
    masks = kfac.band_masks(24)
    assert [masks[band].stop - masks[band].start for band in kfac.BANDS] == [2, 4, 6, 12]
    for row in (row for row in rows if row["text"] == "memorized"):
        V = bases[name].U_A[:, masks[row["band"]]]
        strengths = [(x[:, 3:-1].flatten(0, 1) @ V).norm(dim=1).mean() for x in inputs]
        assert row["strength"] == pytest.approx(float(strengths[0]), rel=1e-4)
        assert row["ratio"] == pytest.approx(float(strengths[0] / strengths[1]), rel=1e-4)
    assert all(row["ratio"] == 1.0 for row in rows if row["text"] == "clean")
    singular = kfac.band_strengths(model, bases, {"clean": ids}, order="singular")
    total = math.sqrt(sum(row["strength"] ** 2 for row in singular))
    assert total == pytest.approx(float(inputs[0][:, :-1].norm(dim=-1).mean()), rel=0.1)
    with pytest.raises(InputError, match="reference"):
        kfac.band_strengths(model, bases, {"other": ids})


def test_factors_survive_the_disk_and_refuse_other_weights(tmp_path):
    model = llama()
    factors = kfac.collect_causal_lm(model, windows(), layers=["*.mlp.{gate,up}_proj"], seed=5)
    path = factors.save(tmp_path / "kfac")
    again = kfac.FactorSet.load(tmp_path / "kfac")
    assert path.name == "factors.safetensors"
    assert (again.fingerprint, again.labels, again.seed) == (model.fingerprint, "sampled", 5)
    assert list(again.layers) == list(factors.layers)
    for name, layer in factors.layers.items():
        assert torch.equal(again.layers[name].A, layer.A)
        assert torch.equal(again.layers[name].G, layer.G)
    again.refuse_unless_of(model.fingerprint)
    with pytest.raises(InputError, match="another checkpoint"):
        again.refuse_unless_of(llama(seed=1).fingerprint)
    (tmp_path / "kfac" / "factors.safetensors").write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        kfac.FactorSet.load(tmp_path / "kfac")
    with pytest.raises(InputError, match="no such file"):
        kfac.FactorSet.load(tmp_path / "none")


def test_too_few_tokens_are_said_so():
    factors = kfac.collect_causal_lm(llama(), windows(rows=2), layers=["*.0.mlp.up_proj"])
    assert "16 positions, fewer than 240" in factors.warnings()[0]


def test_mixing_protects_a_second_text():
    model = llama()
    one, two = (kfac.collect_causal_lm(model, windows(seed=s), layers=["*.0.mlp.up_proj"]) for s in (0, 1))
    name = "model.layers.0.mlp.up_proj"
    both = kfac.mixed(one, two, share=0.25).layers[name]
    a, b = one.layers[name].A, two.layers[name].A
    torch.testing.assert_close(both.A, a.trace() * (0.75 * a / a.trace() + 0.25 * b / b.trace()))
    with pytest.raises(InputError, match="another checkpoint"):
        kfac.mixed(one, kfac.collect_causal_lm(llama(seed=2), windows(), layers=[name]), share=0.5)


def test_patterns():
    assert kfac.expand_braces("a.{1..3}.{x,y}") == ["a.1.x", "a.1.y", "a.2.x", "a.2.y", "a.3.x", "a.3.y"]
    hf = llama(layers=3).hf
    names = [layer.name for layer in kfac.select_matrices(hf, ["model.layers.{1,2}.mlp.{gate,up}_proj"])]
    assert names == [f"model.layers.{i}.mlp.{side}_proj" for i in (1, 2) for side in ("gate", "up")]
    shorter = kfac.select_matrices(hf, ["layers.[12].mlp.{gate,up}_proj"])
    assert [layer.name for layer in shorter] == names
    nested = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert [layer.name for layer in kfac.select_matrices(nested, ["0"])] == ["0"]  # a full name goes first
    with pytest.raises(InputError, match=r"model\.layers\.\{0\.\.2\}\.mlp\.down_proj"):
        kfac.select_matrices(hf, ["model.layers.7.mlp.up_proj"])
    with pytest.raises(InputError, match="brace"):
        kfac.select_matrices(hf, ["a.{1"])


def test_conv1d_is_turned():
    layer = kfac.select_matrices(gpt2().hf, ["transformer.h.0.mlp.c_fc"])[0]
    assert layer.transposed
    assert layer.shape == (64, 16)


def test_default_layers_of_every_family(checkpoints):
    for family, wanted in {
        "gpt2": ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"],
        "gpt_neox": ["gpt_neox.layers.1.mlp.dense_h_to_4h", "gpt_neox.layers.1.mlp.dense_4h_to_h"],
        "opt": ["model.decoder.layers.1.fc1", "model.decoder.layers.1.fc2"],
        "llama": [f"model.layers.1.mlp.{side}_proj" for side in ("gate", "up", "down")],
        "gemma2": [f"model.layers.1.mlp.{side}_proj" for side in ("gate", "up", "down")],
    }.items():
        model = CausalLM.load(checkpoints(family), device="cpu")
        assert list(kfac.default_layers(model.hf)) == wanted
        factors = kfac.collect_causal_lm(model, windows(rows=2), layers=kfac.default_layers(model.hf))
        assert all(layer.rows == 16 for layer in factors.layers.values())
        assert all(float(layer.G.trace()) > 0 for layer in factors.layers.values())


@pytest.mark.parametrize(("blocks", "chosen"), [(32, (23, 24, 25)), (12, (9, 10, 11)), (3, (1, 2)), (2, (1,))])
def test_default_layers_lie_at_the_papers_depth(blocks, chosen):
    names = kfac.default_layers(llama(layers=blocks).hf)
    assert {int(name.split(".")[2]) for name in names} == set(chosen)
    assert any("down" in name for name in names) == (blocks < 12)


def test_what_cannot_be_one_matrix_is_refused():
    from transformers import Phi3Config, Phi3ForCausalLM

    with pytest.raises(InputError, match="several matrices in one"):
        kfac.select_matrices(gpt2().hf, ["*.attn.c_attn"])
    phi = Phi3ForCausalLM(
        Phi3Config(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                   pad_token_id=0)
    )  # fmt: skip
    with pytest.raises(InputError, match="several matrices in one"):
        kfac.select_matrices(phi, ["*gate_up_proj"])
    with pytest.raises(InputError, match="output head"):
        kfac.select_matrices(llama().hf, ["lm_head"])
    tied = llama().hf
    tied.model.layers[0].mlp.up_proj.weight = tied.model.layers[1].mlp.up_proj.weight
    with pytest.raises(InputError, match=r"tied to model\.layers\.1\.mlp\.up_proj\.weight"):
        kfac.select_matrices(tied, ["model.layers.0.mlp.up_proj"])
    quantised = llama().hf
    quantised.model.layers[0].mlp.up_proj.weight = nn.Parameter(
        torch.zeros(24, 16, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(InputError, match="quantised"):
        kfac.select_matrices(quantised, ["*.0.mlp.up_proj"])
    whole = llama().hf
    whole.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(InputError, match="quantised"):
        kfac.select_matrices(whole, ["*.0.mlp.up_proj"])
    parametrised = llama().hf
    nn.utils.parametrizations.weight_norm(parametrised.model.layers[0].mlp.up_proj)
    with pytest.raises(InputError, match="parametrised"):
        kfac.select_matrices(parametrised, ["*.0.mlp.up_proj"])


def test_lora_is_refused():
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(llama().hf, peft.LoraConfig(target_modules=["up_proj"], r=2))
    with pytest.raises(InputError, match="merge"):
        kfac.select_matrices(wrapped, ["*.layers.0.mlp.up_proj"])


def test_a_layer_used_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.fc(torch.relu(self.fc(x))))

    with pytest.raises(InputError, match="more than once"):
        kfac.collect_classifier(Twice(), torch.randn(5, 4), layers=["fc"])


def test_bad_input_is_named():
    model = llama()
    with pytest.raises(InputError, match="labels must be"):
        kfac.collect_causal_lm(model, windows(), layers=["*up_proj"], labels="true")
    with pytest.raises(InputError, match="2 tokens or more"):
        kfac.collect_causal_lm(model, windows(width=1), layers=["*up_proj"])
    with pytest.raises(InputError, match="gold"):
        kfac.collect_classifier(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), layers=["0"], labels="gold")
    broken = llama()
    broken.hf.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(RoteError, match="NaN"):
        kfac.collect_causal_lm(broken, windows(), layers=["*up_proj"])


def test_windows_are_packed(checkpoints):
    from rote.records import RecordTable

    model = CausalLM.load(checkpoints("gpt2"), device="cpu")
    texts = ["The quick brown fox jumps over the lazy dog.", "Alice was beginning to get very tired."]
    records = RecordTable.from_rows([{"text": texts[0]}, {"token_ids": [5, 6, 7]}, {"text": texts[1]}])
    stream = [*model.encode(texts[:1])[0].ids, 5, 6, 7, *model.encode(texts[1:])[0].ids]
    found = kfac.packed_windows(model, records, 8)
    assert found.flatten().tolist() == stream[: len(stream) // 8 * 8]
    with pytest.raises(InputError, match="fewer than one window"):
        kfac.packed_windows(model, records, 100)
    with pytest.raises(InputError, match="context"):
        kfac.packed_windows(model, records, 1000)
