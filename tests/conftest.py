"""Fixtures that are expensive, made once a session: small checkpoints of every architecture family, and a tokenizer."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json

import numpy as np
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

    common = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    return {
        "gpt2": lambda: hf.GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=128),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**common),
        "llama": lambda: hf.LlamaConfig(**common, num_key_value_heads=2),
        "olmo2": lambda: hf.Olmo2Config(**common),
        "qwen2": lambda: hf.Qwen2Config(**common, num_key_value_heads=2, tie_word_embeddings=True),
        "gemma2": lambda: hf.Gemma2Config(**common, num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0),
        "mistral": lambda: hf.MistralConfig(**common, num_key_value_heads=2, sliding_window=16),
        "opt": lambda: hf.OPTConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=16,
        ),
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


COPIES = (1, 8, 40)


@pytest.fixture(scope="session")
def memorizer(tmp_path_factory):
    """(checkpoint, targets.jsonl, controls.jsonl): passages of this Python's documentation, planted 1, 8 or 40
    times."""
    from rote.models import TrainingConfig, small_gpt2, train_bpe, train_causal_lm
    from rote.records import stdlib_documents

    root = tmp_path_factory.mktemp("memorizer")
    documents = [document.text for document in stdlib_documents() if len(document.text) > 1500][:120]
    tokenizer = train_bpe(documents, vocab_size=512)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    width, rng = 65, np.random.default_rng(0)
    stream = np.concatenate([[*encode(text), tokenizer.eos_token_id] for text in documents[:70]])
    stream = stream[: len(stream) // width * width].reshape(-1, width)[:700].copy()
    passages = [tokenizer.decode(encode(text[200:800])[:48]) for text in documents[70:]]
    slots = iter(rng.permutation(len(stream)))
    rows, controls = [], []
    for number, text in enumerate(passages):
        copies = (0, 0, *COPIES)[number % 5]
        for _ in range(copies):
            ids = encode(text)[: width - 1]
            stream[next(slots), : len(ids)] = ids
        row = {"id": f"passage-{number}", "text": text}
        if copies:
            rows.append(row | {"duplicates": copies})
        else:
            controls.append(row)
    model = small_gpt2(vocab_size=len(tokenizer), context_length=96, width=64, layers=2, heads=4, seed=0)
    epochs = np.concatenate([stream[rng.permutation(len(stream))] for _ in range(5)])
    train_causal_lm(model, epochs, TrainingConfig(batch_size=8))
    path = root / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    for name, content in (("targets", rows), ("controls", controls)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return path, root / "targets.jsonl", root / "controls.jsonl"
