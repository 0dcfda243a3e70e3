"""A local masked language model that rewrites a few words of a text: the proposer of the neighbourhood attack.

Only the characters of a replaced token change; the rest of the text stays as it is, whatever the masked model's own
tokenizer would make of it. Safetensors only, no remote code, nothing is fetched.

Knows nothing about: the audited model, records, scores.
Source: Mattern et al. 2023, arXiv 2305.18462, section 3 (word substitutions by a masked language model).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rote.errors import InputError
from rote.models.safe_loading import inspect_checkpoint
from rote.scores.continuations import draw

ROWS = 32  # masked variants in one forward pass
CONTINUES = "##"  # WordPiece: not the beginning of a word
BEGINS = ("Ġ", "▁")  # byte-level BPE and SentencePiece: the beginning of a word


class MaskedLM:
    """A masked language model with its fast tokenizer."""

    def __init__(self, hf: Any, tokenizer: Any, *, name: str, fingerprint: str):
        if not tokenizer.is_fast or tokenizer.mask_token_id is None:
            raise InputError(f"{name}: needs a fast tokenizer with a mask token to propose neighbours")
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprint = fingerprint
        self.before = [tokenizer.cls_token_id] if tokenizer.cls_token_id is not None else []
        self.after = [tokenizer.sep_token_id] if tokenizer.sep_token_id is not None else []
        # RoBERTa counts positions from 2, so two of its position embeddings are never for tokens.
        self.window = int(hf.config.max_position_embeddings) - 2 - len(self.before) - len(self.after)
        self._prepare_vocabulary(int(hf.get_output_embeddings().weight.shape[0]))

    @classmethod
    def load(cls, directory: str | Path, *, device: str = "cpu") -> MaskedLM:
        """Raises InputError for what `inspect_checkpoint` finds and for a model that is no masked language model."""
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        checkpoint = inspect_checkpoint(directory)
        path = checkpoint.path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                hf = AutoModelForMaskedLM.from_pretrained(
                    path, use_safetensors=True, local_files_only=True, trust_remote_code=False, dtype=torch.float32
                )
                tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"{path}: cannot be loaded as a masked language model ({first})") from None
        return cls(hf.to(device), tokenizer, name=path.resolve().name, fingerprint=checkpoint.fingerprint)

    def rewrite(self, text: str, count: int, rate: float, random: np.random.Generator) -> list[str]:
        """`count` variants of `text`, each with a share `rate` of its words replaced; [] for a text without words."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.array(encoded["input_ids"], np.int64)
        spans = [_stripped(text, *offset) for offset in encoded["offset_mapping"]]
        eligible = np.array(
            [
                t
                for t, (start, end) in enumerate(spans)
                if any(map(str.isalnum, text[start:end])) and ids[t] not in self._special
            ],
            np.int64,
        )
        if not len(eligible):
            return []
        gaps = max(1, round(rate * len(eligible)))
        at = np.stack([np.sort(random.permutation(eligible)[:gaps]) for _ in range(count)])
        uniform = random.random(at.shape)
        new = np.zeros_like(at)
        for start in range(0, len(ids), self.window):
            inside = (at >= start) & (at < start + self.window)
            rows = np.flatnonzero(inside.any(1))
            for first in range(0, len(rows), ROWS):
                part = rows[first : first + ROWS]
                variant, gap = np.nonzero(inside[part])
                positions = at[part[variant], gap]
                new[part[variant], gap] = self._fill(
                    ids[start : start + self.window], len(part), variant, positions - start, uniform[part[variant], gap]
                )
        return [self._spliced(text, spans, positions, tokens) for positions, tokens in zip(at, new, strict=True)]

    def _fill(
        self, ids: np.ndarray, variants: int, variant: np.ndarray, position: np.ndarray, uniform: np.ndarray
    ) -> np.ndarray:
        """One token for each masked position, drawn from the masked model, never the word that was there."""
        inputs = np.tile(np.concatenate([self.before, ids, self.after]).astype(np.int64), (variants, 1))
        originals = ids[position]
        inputs[variant, position + len(self.before)] = self.tokenizer.mask_token_id
        device = next(self.hf.parameters()).device
        with torch.inference_mode():
            batch = torch.from_numpy(inputs).to(device)
            logits = self.hf(input_ids=batch, attention_mask=torch.ones_like(batch)).logits
            logits = logits[torch.from_numpy(variant), torch.from_numpy(position + len(self.before))].float().cpu()
        forbidden = (self._shape[None] != self._shape[originals][:, None]) | (self._shape == 0)[None]
        for row, original in enumerate(originals):
            forbidden[row, self._same_word[self._words[original]]] = True
        allowed = ~forbidden.all(1)
        logits = logits.masked_fill(torch.from_numpy(forbidden & allowed[:, None]), -torch.inf)
        drawn = draw(logits.log_softmax(-1), torch.arange(len(logits)), torch.from_numpy(uniform)).numpy()
        return np.where(allowed, drawn, originals)

    def _spliced(self, text: str, spans: list[tuple[int, int]], positions: np.ndarray, tokens: np.ndarray) -> str:
        parts, end = [], 0
        for position, token in zip(positions, tokens, strict=True):
            start, stop = spans[position]
            word = self._pieces[token]
            if text[start].isupper():  # an uncased model must not take the capitals away
                word = word[:1].upper() + word[1:]
            parts += [text[end:start], word]
            end = stop
        return "".join([*parts, text[end:]])

    def _prepare_vocabulary(self, size: int) -> None:
        """Each token's text, and its shape: 0 unusable, 1 begins a word, 2 continues one. Like replaces like."""
        known = self.tokenizer.convert_ids_to_tokens(list(range(min(size, len(self.tokenizer)))))
        names = [name or "" for name in known] + [""] * (size - len(known))
        self._special = set(self.tokenizer.all_special_ids)
        marked = any(name.startswith(BEGINS) for name in names)
        self._pieces, self._shape = [], np.zeros(size, np.int8)
        self._same_word: dict[str, list[int]] = defaultdict(list)
        for token, name in enumerate(names):
            word = "" if not name else self.tokenizer.decode([token]).strip().removeprefix(CONTINUES)
            self._pieces.append(word)
            self._same_word[word.lower()].append(token)
            if (
                token not in self._special
                and any(map(str.isalnum, word))
                and "\ufffd" not in word
                and len(word.split()) == 1
            ):
                continues = not name.startswith(BEGINS) if marked else name.startswith(CONTINUES)
                self._shape[token] = 2 if continues else 1
        self._words = [word.lower() for word in self._pieces]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the blanks that byte-level tokenizers count as part of a word."""
    span = text[start:end]
    return start + len(span) - len(span.lstrip()), end - len(span) + len(span.rstrip())
