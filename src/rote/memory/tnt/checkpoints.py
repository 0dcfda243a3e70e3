"""Texts and checkpoint directories around a TNT model: pack, make, save whole, load with a clear word.

A checkpoint is an ordinary Hugging Face directory (config.json, model.safetensors, tokenizer files), so `rote audit lm`
reads it. It appears under its name only when it is complete.

Knows nothing about: the loop of training, the closed form.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from rote.atomic import whole_directory
from rote.errors import InputError
from rote.memory.tnt.configuration import MODEL_TYPE, TNTConfig
from rote.memory.tnt.modeling import TNTForCausalLM
from rote.models.safe_loading import has_tokenizer, inspect_checkpoint


def pack(tokenizer: Any, texts: Iterable[str], context: int) -> Int[np.ndarray, "sequences tokens"]:
    """All texts as one stream, an end-of-text token behind each, cut in rows of `context` + 1 tokens.

    A last row that would not be full is left out. Raises InputError for a context below 1, or less text than one row.
    """
    if context < 1:
        raise InputError(f"context is {context}: it must be 1 or more")
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
    width = context + 1
    rows = len(stream) // width
    if not rows:
        raise InputError(
            f"the text has {len(stream)} tokens, fewer than one row of {width}: give more, or less context"
        )
    return np.asarray(stream[: rows * width]).reshape(rows, width)


def split(
    stream: Int[np.ndarray, "sequences tokens"], share: float, seed: int
) -> tuple[Int[np.ndarray, "train tokens"], Int[np.ndarray, "held tokens"]]:
    """(training rows, held-out rows), the held-out share drawn by the seed, both in shuffled order."""
    order = np.random.default_rng(seed).permutation(len(stream))
    held = max(1, round(share * len(stream)))
    if held >= len(stream):
        raise InputError(f"{len(stream)} rows are too few to hold {held} of them out: give more text, or less context")
    return stream[order[held:]], stream[order[:held]]


def make(config: TNTConfig, seed: int) -> TNTForCausalLM:
    """A model with seeded weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        return TNTForCausalLM(config)
    finally:
        torch.random.set_rng_state(state)


def save_checkpoint(model: TNTForCausalLM, tokenizer: Any, path: str | Path) -> Path:
    """Write model and tokenizer to a directory, whole or not at all; refuses one that is not empty."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: is there already; give another directory, or remove it first")
    with whole_directory(target) as part:
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
    return target


def load_checkpoint(path: str | Path) -> tuple[TNTForCausalLM, Any]:
    """(model, tokenizer) of a directory that `save_checkpoint` or save_pretrained wrote.

    Raises InputError for what `inspect_checkpoint` finds, for a model of another kind, and without a tokenizer.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    checkpoint = inspect_checkpoint(path)
    kind = checkpoint.config.get("model_type")
    if kind != MODEL_TYPE:
        raise InputError(f"{path}: a {kind} model, not a test-time memory; `rote memory tnt train` makes one")
    if not has_tokenizer(checkpoint.path):
        raise InputError(f"{path}: has no tokenizer files; save the tokenizer beside the model")
    logging.disable_progress_bar()
    try:
        model = TNTForCausalLM.from_pretrained(checkpoint.path, use_safetensors=True, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{path}: cannot be loaded ({str(error).strip().splitlines()[0]})") from None
    return model.eval(), tokenizer
