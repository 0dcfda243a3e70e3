"""Fused activations: the composed function's values and gradients, and nothing else about the model changes."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import ACT2FN

from rote.models import CausalLM
from rote.models.fused import fuse_activations


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_the_fused_kernel_is_the_same_function(name):
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), ACT2FN[name])
    composed = copy.deepcopy(net[1])
    assert fuse_activations(net) == 1
    x = torch.linspace(-12, 12, 2001, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(net[1](x), composed(x), rtol=1e-9, atol=1e-12)
    (fused,) = torch.autograd.grad(net[1](x).sum(), x)
    (plain,) = torch.autograd.grad(composed(x).sum(), x)
    torch.testing.assert_close(fused, plain, rtol=1e-8, atol=1e-10)


def test_other_activations_stay():
    net = torch.nn.Sequential(ACT2FN["gelu"], ACT2FN["silu"], torch.nn.GELU(approximate="tanh"))
    before = [type(module) for module in net]
    assert fuse_activations(net) == 0
    assert [type(module) for module in net] == before


def test_a_checkpoint_read_through_the_adapter_is_unchanged(tmp_path):
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
    ids = torch.arange(12)[None] % 64
    expected = copy.deepcopy(plain)(input_ids=ids).logits
    model = CausalLM(plain, name="m", fingerprint="f")
    torch.testing.assert_close(model.logits(model.hidden(ids)[0]), expected[0], rtol=1e-5, atol=1e-5)
    model.hf.save_pretrained(tmp_path)
    assert GPT2LMHeadModel.from_pretrained(tmp_path).config.activation_function == "gelu_new"
