"""Small models and tokenizers are ordinary Hugging Face ones: saved, loaded by the Auto classes, and equal."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rote.errors import InputError
from rote.models.builders import BUILDERS, initial_sigma
from rote.models.tokenizers import END_OF_TEXT, train_bpe

TEXTS = ["the quick brown fox jumps over the lazy dog", "the dog sleeps", "naïve café — 東京", "x\ty\n\n  z"] * 20


@pytest.mark.parametrize("kind", sorted(BUILDERS))
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_is_loaded_by_the_auto_class_and_equal(kind, tied, tmp_path):
    model = BUILDERS[kind](vocab_size=300, context_length=16, width=32, layers=2, heads=4, tied=tied, seed=1).eval()
    model.save_pretrained(tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, loaded(input_ids=ids).logits)
    same = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert same is tied


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_weights_depend_on_the_seed_and_leave_the_callers_randomness_alone(kind):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    models = [BUILDERS[kind](vocab_size=260, context_length=8, width=16, layers=1, heads=2, seed=s) for s in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    first, again, other = (m.get_input_embeddings().weight for m in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_initial_spread_is_gpt2s_own_at_its_own_width():
    assert initial_sigma(768) == 0.02
    model = BUILDERS["gpt2"](vocab_size=1000, context_length=8, width=192, layers=1, heads=4)
    assert math.isclose(model.get_input_embeddings().weight.std().item(), 0.04, rel_tol=0.05)


def test_the_fused_gelu_is_gpt2s_gelu():
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 1001)
    assert torch.allclose(ACT2FN["gelu_pytorch_tanh"](x), ACT2FN["gelu_new"](x), atol=1e-6)


def test_a_width_the_heads_do_not_divide_is_refused():
    with pytest.raises(InputError, match="width 30 with 4 heads"):
        BUILDERS["llama"](vocab_size=300, context_length=8, width=30, heads=4)


def test_any_text_survives_the_tokenizer_and_saving(tmp_path):
    tokenizer = train_bpe(TEXTS, vocab_size=300)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in (*TEXTS[:4], "\u202eright to left", "emoji 🦊", "tabs\t and   spaces "):
        ids = tokenizer(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids) == text
        assert loaded.eos_token_id not in ids
    assert (loaded.eos_token, loaded.eos_token_id) == (END_OF_TEXT, 0)
    assert len(loaded) == 300


def test_training_a_tokenizer_is_deterministic():
    first, again = (train_bpe(iter(TEXTS), vocab_size=320).backend_tokenizer.to_str() for _ in range(2))
    assert first == again


@pytest.mark.parametrize(("texts", "size", "message"), [([], 300, "empty"), (["a"], 100, "at least 257")])
def test_no_text_or_no_room_for_the_bytes_is_refused(texts, size, message):
    with pytest.raises(InputError, match=message):
        train_bpe(texts, vocab_size=size)
