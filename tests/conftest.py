"""Fixtures that are expensive, made once a session: small checkpoints of every architecture family, and a tokenizer."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

WORDS = [
    "The quick brown fox jumps over the lazy dog near the river bank at noon.",
    "Memorization in language models is measured by the probability of a suffix given its prefix.",
    "Alice was beginning to get very tired of sitting by her sister on the bank.",
    "Return the sum of a list of numbers, or the start value if the list is empty.",
    "Her phone number is 555-0199 and her email address is alice@example.org, said Bob.",
]


@pytest.fixture(autouse=True)
def _one_thread():
    """Small models are fastest on one thread, and workers share the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [f"{text} {other}" for text in WORDS for other in WORDS]


@pytest.fixture(scope="session")
def tokenizer(texts):
    from rote.models import train_bpe

    return train_bpe(texts, vocab_size=384)


def tiny_config(family: str, vocab_size: int):
    """A small random configuration of one architecture family."""
    import transformers as hf

    common = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "max_position_embeddings": 128}
    return {
        "gpt2": lambda: hf.GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=128),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**common),
        "llama": lambda: hf.LlamaConfig(**common, num_key_value_heads=2),
        "olmo2": lambda: hf.Olmo2Config(**common),
        "qwen2": lambda: hf.Qwen2Config(**common, num_key_value_heads=2, tie_word_embeddings=True),
        "gemma2": lambda: hf.Gemma2Config(**common, num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0),
        "mistral": lambda: hf.MistralConfig(**common, num_key_value_heads=2, sliding_window=16),
        "opt": lambda: hf.OPTConfig(vocab_size=vocab_size, hidden_size=32, ffn_dim=64, num_hidden_layers=2,
                                    num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=16),
        "granite": lambda: hf.GraniteConfig(**common, num_key_value_heads=2, logits_scaling=4.0),
    }[family]()


FAMILIES = ("gpt2", "gpt_neox", "llama", "olmo2", "qwen2", "gemma2", "mistral", "opt", "granite")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tokenizer):
    """`checkpoints(family)` is the directory of a small random checkpoint, made when first asked for."""
    import torch
    from transformers import AutoModelForCausalLM

    made = {}

    def checkpoint(family: str = "gpt2"):
        if family not in made:
            torch.manual_seed(len(family))
            path = tmp_path_factory.mktemp(f"checkpoint-{family}")
            model = AutoModelForCausalLM.from_config(tiny_config(family, len(tokenizer)))
            for parameter in model.parameters():  # sharper than the default initialisation: distinct probabilities
                if parameter.dim() > 1:
                    parameter.data.mul_(4)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[family] = path
        return made[family]

    return checkpoint
