"""Ordinary text as equal windows of token ids: what curvature factors are collected from.

Documents are tokenised without special tokens and laid end to end, as the paper packs its text; what does not fill a
last window is left out. Knows nothing about: factors, layers, edits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

BLOCK = 1024  # records tokenised at a time


def check_window(model: CausalLM, tokens: int) -> None:
    """Refuse, with an InputError, windows shorter than 2 tokens or longer than the model's context."""
    if tokens < 2:
        raise InputError(f"windows of {tokens} token(s) predict nothing; use 2 or more")
    if model.context_length is not None and tokens > model.context_length:
        raise InputError(
            f"windows of {tokens:,} tokens are longer than the model's context of {model.context_length:,};"
            " use shorter ones"
        )


def packed_windows(model: CausalLM, records: RecordTable, tokens: int) -> Int[np.ndarray, "windows tokens"]:
    """All records' token ids, in order, cut into windows of `tokens`.

    Raises InputError for windows shorter than 2 tokens or longer than the model's context, for token ids outside its
    vocabulary, and when the records together do not fill one window.
    Source: Merullo et al. 2025, arXiv 2510.24256 (512 tokens, packed without special tokens).
    """
    check_window(model, tokens)
    ids: list[np.ndarray] = []
    for start in range(0, len(records), BLOCK):
        part = records.take(np.arange(start, min(start + BLOCK, len(records))))
        texts, given = part.column("text"), part.column("token_ids")
        with_text = [row for row, text in enumerate(texts) if text is not None]
        encoded = (
            dict(zip(with_text, model.encode([texts[row] for row in with_text]), strict=True)) if with_text else {}
        )
        for row in range(len(texts)):
            ids.append(np.asarray(encoded[row].ids if row in encoded else given[row], np.int64))
    stream = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    if len(stream) and not 0 <= stream.min() <= stream.max() < model.vocab_size:
        raise InputError(
            f"the clean text has token ids {stream.min()} .. {stream.max()}, the model knows"
            f" 0 .. {model.vocab_size - 1}: wrong tokenizer?"
        )
    count = len(stream) // tokens
    if not count:
        raise InputError(
            f"the clean text has {len(stream):,} tokens, fewer than one window of {tokens:,}; give more, or use shorter"
            " windows"
        )
    return stream[: count * tokens].reshape(count, tokens)
