"""Abstention, DoLa, the smaller amateur and identifiability, each against a plain loop or a closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import eigh, solve
from tests.conftest import tiny_config
from transformers import AutoModelForCausalLM, LogitsProcessorList

from rote.controls.decoding import decoding_baselines as baselines
from rote.controls.decoding import identifiability
from rote.controls.decoding.mode_probe import ModeProbe
from rote.errors import InputError
from rote.models import CausalLM, small_llama

VOCAB, WIDTH = 64, 32


def build(family, layers=None):
    torch.manual_seed(3)
    config = tiny_config(family, VOCAB)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, None, 0
    if layers:
        config.num_hidden_layers = layers
        config.layer_types = None
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


def prompts(rows=2, length=6):
    return torch.from_numpy(np.random.default_rng(1).integers(1, VOCAB, (rows, length)))


def generated(model, ids, processor, tokens=4, **options):
    with torch.no_grad(), processor:
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0,
            logits_processor=LogitsProcessorList([processor]), **{"eos_token_id": None, **options},
        )  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_dola_is_the_contrast_with_the_farthest_early_block(family):
    model, ids = build(family, layers=4 if family == "llama" else None), prompts(1)
    candidates = [1, 2] if family == "llama" else [0]
    out = generated(model, ids, baselines.DoLa(model, candidates=candidates))
    body = getattr(model, model.base_model_prefix)
    norm = next(getattr(body, name) for name in baselines.FINAL_NORMS if hasattr(body, name))
    cap = getattr(model.config, "final_logit_softcapping", None)
    for _ in range(4):
        with torch.no_grad():
            passed = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        q = passed.logits[0, -1].double().softmax(-1)
        best, far = None, -1.0
        for layer in candidates:
            with torch.no_grad():
                early = model.get_output_embeddings()(norm(passed.hidden_states[layer + 1][0, -1]))
            early = cap * torch.tanh(early / cap) if cap else early
            p = early.double().softmax(-1)
            m = (p + q) / 2
            distance = float((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
            if distance > far:
                best, far = p, distance
        scores = (q / best).log()
        scores[q < 0.1 * q.max()] = -torch.inf
        ids = torch.cat([ids, scores.argmax()[None, None]], 1)
    assert torch.equal(out, ids)


def test_dola_refuses_what_it_cannot_exit_from():
    model = build("llama", layers=4)
    assert baselines.DoLa(model, candidates="low").layers == (0, 1)
    assert baselines.DoLa(model, candidates="high").layers == (2,)
    for wrong, message in (("middle", "low"), ([3], "last one is not early"), ([], "early blocks")):
        with pytest.raises(InputError, match=message):
            baselines.DoLa(model, candidates=wrong)
    with pytest.raises(InputError, match="cannot exit early"):
        baselines.DoLa(build("opt"), candidates=[0])
    with pytest.raises(InputError, match="inside its own"):
        baselines.DoLa(model)(prompts(1), torch.zeros(1, VOCAB))


def test_jensen_shannon_of_known_pairs():
    same = torch.tensor([[0.2, 0.8]]).log()
    apart = torch.tensor([[1 - 1e-7, 1e-7]]).log()
    assert float(baselines.jensen_shannon(same, same)) == pytest.approx(0, abs=1e-7)
    assert float(baselines.jensen_shannon(apart, apart.flip(-1))) == pytest.approx(np.log(2), abs=1e-4)


def test_the_amateurs_favourites_are_taken_away():
    model, ids = build("llama"), prompts()
    amateur = small_llama(vocab_size=VOCAB, context_length=64, width=16, layers=1, heads=2, seed=2).eval()
    out = generated(model, ids, baselines.SmallerAmateur(amateur))
    for _ in range(4):
        with torch.no_grad():
            p, q = (m(input_ids=ids, use_cache=False).logits[:, -1].log_softmax(-1) for m in (model, amateur))
        scores = (p - q).masked_fill(p < p.amax(-1, keepdim=True) + np.log(0.1), -torch.inf)
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    assert torch.equal(out, ids)
    other = small_llama(vocab_size=VOCAB + 2, context_length=64, width=16, layers=1, heads=2).eval()
    with pytest.raises(InputError, match="one vocabulary"):
        generated(model, prompts(), baselines.SmallerAmateur(other))


def test_abstention_ends_rows_that_recite_and_no_others():
    model, ids = build("llama"), prompts(4)
    rng = np.random.default_rng(0)
    probe = ModeProbe((1,), rng.normal(0, 0.3, (1, WIDTH)).astype(np.float32), np.zeros(1, np.float32))
    with torch.no_grad():
        plain = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False,
                               eos_token_id=None, pad_token_id=0)  # fmt: skip
        states = model(input_ids=plain, output_hidden_states=True).hidden_states
    hidden = []
    handle = model.model.layers[1].register_forward_hook(lambda module, args, out: hidden.append(out))
    with torch.no_grad():
        model(input_ids=plain)
    handle.remove()
    m = probe.score(hidden[0][:, 5:-1].reshape(-1, WIDTH).numpy(), 1).reshape(4, 5)
    assert len(states) == 3
    threshold = float(np.median(m.max(1)))
    end_of_text = min(set(range(2, VOCAB)) - set(plain.flatten().tolist()))
    processor = baselines.Abstention(model, probe, layer=1, threshold=threshold, eos_id=end_of_text)
    out = generated(model, ids, processor, tokens=5, eos_token_id=end_of_text)
    for row in range(4):
        over = np.flatnonzero(m[row] > threshold)
        end = int(over[0]) if len(over) else 5
        assert torch.equal(out[row, 6 : 6 + end], plain[row, 6 : 6 + end])
        if end < 5:
            assert out[row, 6 + end] == end_of_text
            assert (out[row, 7 + end :] == 0).all()
    with pytest.raises(InputError, match="threshold"):
        baselines.Abstention(model, probe, layer=1, threshold=1.5, eos_id=2)


# ---- identifiability


def test_items_that_survive_in_the_state_are_found_and_bounded_by_log_n():
    rng = np.random.default_rng(0)
    items = rng.normal(size=(50, 20))
    clear = [items + 0.1 * rng.normal(size=items.shape) for _ in range(2)]
    nothing = [rng.normal(size=items.shape) for _ in range(2)]
    assert identifiability.retrieval_accuracy(*clear) == 1
    assert identifiability.retrieval_accuracy(*nothing) < 0.2
    assert identifiability.infonce_bound(*clear) == pytest.approx(np.log(50), abs=0.05)
    assert identifiability.infonce_bound(*clear) <= np.log(50)
    assert identifiability.infonce_bound(*nothing) < 0.2
    a, b = clear
    centre = (a.mean(0) + b.mean(0)) / 2
    total = 0.0
    for i in range(50):
        sims = [
            np.dot(a[i] - centre, y - centre) / np.linalg.norm(a[i] - centre) / np.linalg.norm(y - centre) for y in b
        ]
        weights = np.exp(np.array(sims) / 0.1)
        total += np.log(50 * weights[i] / weights.sum())
    assert identifiability.infonce_bound(a, b) == pytest.approx(total / 50, rel=1e-6)
    with pytest.raises(InputError, match="two views"):
        identifiability.retrieval_accuracy(a, b[:3])


def test_infonce_stays_below_the_true_information_of_gaussians():
    """Z = item + noise of correlation rho per coordinate has I = -d/2 log(1 - rho^2)."""
    rng = np.random.default_rng(1)
    for rho in (0.3, 0.6):
        common, d, n = rng.normal(size=(800, 3)), 3, 800
        views = [np.sqrt(rho) * common + np.sqrt(1 - rho) * rng.normal(size=(n, d)) for _ in range(2)]
        assert identifiability.infonce_bound(*views, temperature=0.5) <= -d / 2 * np.log(1 - rho**2) + 0.05


def test_the_gaussian_bottleneck_curve_is_that_of_the_optimal_projection():
    """The twin builds Chechik's projection A from a covariance and takes both informations from determinants."""
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(5, 5))
    whole = mix @ mix.T + 0.5 * np.eye(5)
    sx, sy, sxy = whole[:3, :3], whole[3:, 3:], whole[:3, 3:]
    given = sx - sxy @ solve(sy, sxy.T)
    lam, right = eigh(given, sx)  # given v = lam sx v: v are left eigenvectors of given sx^-1, with v' sx v = 1
    betas = np.array([1.01, 3.0, 20.0, 500.0])
    relevance, complexity = identifiability.gaussian_ib_curve(lam, betas)
    for place, beta in enumerate(betas):
        weight = np.maximum(beta * (1 - lam) - 1, 0) / lam
        A = np.sqrt(weight)[:, None] * right.T
        i_xz = 0.5 * np.linalg.slogdet(A @ sx @ A.T + np.eye(3))[1]
        i_zy = i_xz - 0.5 * np.linalg.slogdet(A @ given @ A.T + np.eye(3))[1]
        assert complexity[place] == pytest.approx(i_xz, abs=1e-9)
        assert relevance[place] == pytest.approx(i_zy, abs=1e-9)
        best = i_xz - beta * i_zy
        for _ in range(200):  # no other projection does better
            B = A + 0.3 * rng.normal(size=A.shape)
            other = 0.5 * np.linalg.slogdet(B @ sx @ B.T + np.eye(3))[1]
            relevant = other - 0.5 * np.linalg.slogdet(B @ given @ B.T + np.eye(3))[1]
            assert other - beta * relevant >= best - 1e-9
    assert (np.diff(relevance) >= 0).all()
    total = -0.5 * np.log(lam).sum()
    assert relevance[-1] == pytest.approx(total, abs=0.05)
    with pytest.raises(InputError, match="at most at 1"):
        identifiability.gaussian_ib_curve(np.array([1.1]), betas)


def test_the_adapter_and_the_model_give_the_same_dola():
    model, ids = build("llama"), prompts(1)
    assert torch.equal(
        generated(model, ids, baselines.DoLa(model, candidates=[0])),
        generated(model, ids, baselines.DoLa(CausalLM(model), candidates=[0])),
    )
