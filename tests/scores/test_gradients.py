"""Gradient norms against torch.autograd.grad on a model loaded independently."""

import math

import numpy as np
import pytest
import torch
from tests.conftest import FAMILIES
from transformers import AutoModelForCausalLM

from rote.errors import InputError
from rote.models import CausalLM
from rote.records.table import RecordTable
from rote.scores.gradients import gradient_norms
from rote.scores.tokens import score_in_memory


def by_hand(path, ids, order):
    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    logp = reference(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    loss = -logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean()
    names, parameters = zip(*reference.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norm = {1: lambda g: g.abs().sum(), 2: lambda g: g.pow(2).sum().sqrt(), math.inf: lambda g: g.abs().max()}[order]
    return names, [0.0 if g is None else norm(g).item() for g in gradients], loss.item()


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_every_family(family, checkpoints, texts):
    """gpt2 and qwen2 tie head and embedding: one tensor, with both gradients in it."""
    path = checkpoints(family)
    model = CausalLM.load(path)
    records = RecordTable.from_rows({"text": text} for text in texts[:2])
    found = gradient_norms(model, records)
    for row in range(2):
        names, expected, _ = by_hand(path, model.encode([texts[row]])[0].ids, 2)
        assert found.names == names
        np.testing.assert_allclose(found.norms[row], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.mean, found.norms.mean(1))


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_all_orders(order, checkpoints, texts):
    path = checkpoints("qwen2")
    model = CausalLM.load(path)
    records = RecordTable.from_rows([{"text": texts[3]}])
    _, expected, loss = by_hand(path, model.encode([texts[3]])[0].ids, order)
    found = gradient_norms(model, records, order=order)
    np.testing.assert_allclose(found.norms[0], expected, rtol=1e-4, atol=1e-6)
    # the loss differentiated is the loss of the one pass
    assert -np.nanmean(score_in_memory(model, records).logp[0]) == pytest.approx(loss, abs=1e-5)


def test_a_subset_equals_those_columns_and_the_model_is_left_as_found(checkpoints, texts):
    model = CausalLM.load(checkpoints("llama"), bos="always")
    records = RecordTable.from_rows({"text": text} for text in texts[:3])
    some = next(iter(model.hf.parameters()))
    some.grad = torch.ones_like(some)
    frozen = list(model.hf.parameters())[3]
    frozen.requires_grad_(False)
    before = [parameter.detach().clone() for parameter in model.hf.parameters()]
    whole = gradient_norms(model, records)
    part = gradient_norms(model, records, parameters=r"layers\.1\.mlp")
    assert len(part.names) == 3
    columns = [whole.names.index(name) for name in part.names]
    np.testing.assert_allclose(part.norms, whole.norms[:, columns], rtol=1e-5)
    assert torch.equal(some.grad, torch.ones_like(some))
    assert all(parameter.grad is None for parameter in model.hf.parameters() if parameter is not some)
    assert not frozen.requires_grad
    assert not model.hf.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.hf.parameters(), strict=True))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.hf.parameters())


def test_only_one_gradient_is_alive_at_a_time(checkpoints, texts):
    """When a tensor's gradient is complete, no other tensor holds one."""
    model = CausalLM.load(checkpoints("gpt2"))
    alive = []
    handles = [
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(other.grad is not None for other in model.hf.parameters()))
        )
        for parameter in model.hf.parameters()
    ]
    gradient_norms(model, RecordTable.from_rows([{"text": texts[0]}]))
    for handle in handles:
        handle.remove()
    assert len(alive) == len(list(model.hf.parameters()))
    assert max(alive) == 1


def test_wrong_use_is_refused(checkpoints, texts):
    model = CausalLM.load(checkpoints("gpt2"))
    records = RecordTable.from_rows([{"text": texts[0]}])
    with pytest.raises(InputError, match="1, 2 or inf"):
        gradient_norms(model, records, order=3)
    with pytest.raises(InputError, match="no tensor's name contains"):
        gradient_norms(model, records, parameters="nothing_like_this")
    with pytest.raises(InputError, match="regular expression"):
        gradient_norms(model, records, parameters="(")
