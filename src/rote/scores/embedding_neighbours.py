"""Texts with some tokens swapped for their nearest tokens in an embedding table, the same for every audited model.

A common tokenizer and embedding (the paper: GPT-2's) make the neighbourhoods: encode, swap, decode to text; the audited
model then reads the text with its own tokenizer. Token i is replaced with probability p by its j-th nearest token by
cosine similarity, j uniform in a range of ranks. Each text has its own random stream, so neither order nor company of
the texts changes its neighbours. Special tokens are never replaced nor proposed; twins that differ in case or spaces
only can be left out, since they fill the first ranks of real tables.

Knows nothing about: the audited model, what is made of the losses (`rote.measures.landscape`).
Source: Cohen et al. 2025, arXiv 2511.04228, algorithms 1 and 2 (ranks, p and K are reconstructed defaults).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.runtime import derive_seed

SKIPS = ("special", "case_twins", "punctuation")
BLOCK = 1_024  # rows of the similarity matrix alive at a time


@dataclass(frozen=True)
class Neighbourhood:
    """Variants of texts: `texts[i][s][k]`, the distance of each to its original, and how many tokens were swapped.

    distance: 1 - cosine of the mean token embeddings (or of a given encoder's sentence embeddings).
    length_change: tokens of the variant minus tokens of the original, after decoding and encoding again.
    """

    texts: list[list[list[str]]]
    distance: Float[np.ndarray, "texts shells k"]
    swapped: Int[np.ndarray, "texts shells k"]
    length_change: Int[np.ndarray, "texts shells k"]
    round_trip: float  # share of the originals that decode(encode(x)) gives back exactly


class EmbeddingNeighbours:
    """A tokenizer with, for every token, its nearest tokens. `table` [vocabulary, top], -1 where there are fewer."""

    def __init__(
        self,
        tokenizer: Any,
        embeddings: Float[np.ndarray, "vocabulary width"],
        *,
        top: int = 10,
        skip: Sequence[str] = ("special", "case_twins"),
    ):
        for name in skip:
            if name not in SKIPS:
                raise InputError(f"unknown kind of token to skip: {name!r}; use {', '.join(SKIPS)}")
        if top < 1:
            raise InputError(f"neighbours of a token: at least 1, not {top}")
        self.tokenizer = tokenizer
        self.skip = tuple(skip)
        self.embeddings = np.asarray(embeddings, np.float32)
        self.table = nearest_tokens(self.embeddings, top=top, banned=self._banned(), twins=self._twins())

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, top: int = 10, skip: Sequence[str] = ("special", "case_twins")):
        """From a local checkpoint directory: its tokenizer and input embeddings."""
        from rote.models.causal_lm import CausalLM

        model = CausalLM.load(directory, device="cpu", dtype="float32")
        if model.tokenizer is None:
            raise InputError(f"{directory}: has no tokenizer, so it cannot make neighbours")
        weight = model.hf.get_input_embeddings().weight.detach().numpy()
        return cls(model.tokenizer, weight, top=top, skip=skip)

    def perturb(
        self, ids: Sequence[int], *, p: float, ranks: tuple[int, int], random: np.random.Generator
    ) -> tuple[list[int], int]:
        """(new ids, how many were swapped): each token with a neighbour is replaced with probability p."""
        tokens = np.asarray(ids, np.int64)
        low, high = ranks
        draw, rank = random.random(len(ids)), random.integers(low - 1, high, len(ids))
        rows = self.table[np.clip(tokens, 0, len(self.table) - 1)]
        available = (rows >= 0).sum(1)
        chosen = rows[np.arange(len(ids)), np.minimum(rank, np.maximum(available - 1, 0))]
        swap = (draw < p) & (available > 0)
        return np.where(swap, chosen, tokens).tolist(), int(swap.sum())

    def variants(
        self,
        texts: Sequence[str],
        *,
        k: int = 20,
        p: Sequence[float] = (0.05, 0.1, 0.2),
        ranks: tuple[int, int] = (1, 5),
        names: Sequence[str] | None = None,
        encoder: Any = None,
        seed: int = 0,
    ) -> Neighbourhood:
        """K variants of every text in each shell p.

        names: one a text (its id), from which its random stream is derived; the text itself when left out. encoder:
        callable(list of texts) -> [texts, width] sentence embeddings for the distances. Raises InputError for p outside
        [0, 1], ranks outside 1..top, k < 1 or an empty text.
        """
        low, high = ranks
        if not p or not all(0 <= share <= 1 for share in p):
            raise InputError(f"shares p of swapped tokens must lie in [0, 1], not {tuple(p)}")
        if k < 1 or not 1 <= low <= high <= self.table.shape[1]:
            raise InputError(f"variants need k >= 1 and 1 <= ranks <= {self.table.shape[1]}, not {k} and {ranks}")
        keys = list(texts) if names is None else list(names)
        shape = (len(texts), len(p), k)
        out: list[list[list[str]]] = []
        distance, swapped, change = np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        same = 0
        for i, text in enumerate(texts):
            ids = self._encode(text)
            if not ids:
                raise InputError(f"text {i} has no tokens, so it has no neighbours")
            same += self._decode(ids) == text
            centre = self._mean(ids)
            shells = []
            for s, share in enumerate(p):
                random = np.random.default_rng(derive_seed(seed, "landscape", keys[i], s))
                shell = []
                for j in range(k):
                    new, swapped[i, s, j] = self.perturb(ids, p=share, ranks=ranks, random=random)
                    made = self._decode(new) if swapped[i, s, j] else text
                    distance[i, s, j] = _cosine_distance(centre, self._mean(new))
                    change[i, s, j] = len(self._encode(made)) - len(ids)
                    shell.append(made)
                shells.append(shell)
            out.append(shells)
        if encoder is not None:
            distance = _encoder_distance(encoder, list(texts), out, shape)
        return Neighbourhood(out, distance, swapped, change, same / max(1, len(texts)))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def _mean(self, ids: Sequence[int]) -> np.ndarray:
        return self.embeddings[np.asarray(ids)].mean(0)

    def _pieces(self) -> list[str]:
        return [self.tokenizer.decode([token]) for token in range(len(self.embeddings))]

    def _banned(self) -> np.ndarray:
        """Tokens that are never replaced nor proposed."""
        banned = np.zeros(len(self.embeddings), bool)
        beyond = len(self.tokenizer)
        banned[beyond:] = True  # padding rows of the embedding have no token
        if "special" in self.skip:
            banned[[token for token in self.tokenizer.all_special_ids if token < len(banned)]] = True
        if "punctuation" in self.skip:
            banned |= np.array([not any(c.isalnum() for c in piece) for piece in self._pieces()])
        return banned

    def _twins(self) -> list[str] | None:
        return [piece.strip().lower() for piece in self._pieces()] if "case_twins" in self.skip else None


def nearest_tokens(
    embeddings: Float[np.ndarray, "vocabulary width"],
    *,
    top: int,
    banned: np.ndarray | None = None,
    twins: Sequence[str] | None = None,
) -> Int[np.ndarray, "vocabulary top"]:
    """For every token its `top` nearest by cosine similarity, nearest first, itself excluded; -1 where there are fewer.

    banned tokens have and are no neighbours; neither are tokens with a zero embedding, nor those of the same `twins`
    word. Blocks of rows, so that vocabulary x vocabulary is never in memory.
    """
    matrix = np.asarray(embeddings, np.float32)
    norms = np.linalg.norm(matrix, axis=1)
    usable = norms > 0
    if banned is not None:
        usable &= ~banned
    unit = matrix / np.where(norms > 0, norms, 1.0)[:, None]
    words = np.unique(np.asarray(twins, dtype=str), return_inverse=True)[1] if twins is not None else None
    table = np.full((len(matrix), top), -1, np.int64)
    for start in range(0, len(matrix), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(matrix)))
        similarity = unit[rows] @ unit.T
        similarity[:, ~usable] = -np.inf
        similarity[np.arange(len(rows)), rows] = -np.inf
        if words is not None:
            similarity[words[rows][:, None] == words[None]] = -np.inf
        keep = min(top, len(matrix) - 1)
        best = np.argpartition(-similarity, keep - 1, axis=1)[:, :keep]
        values = np.take_along_axis(similarity, best, axis=1)
        order = np.lexsort((best, -values), axis=1)
        best, values = np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)
        table[rows, :keep] = np.where(np.isfinite(values), best, -1)
        table[rows[~usable[rows]]] = -1
    return table


def _cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return max(0.0, 1.0 - float(a @ b) / size) if size > 0 and not np.array_equal(a, b) else 0.0


def _encoder_distance(encoder: Any, texts: list[str], variants: list, shape: tuple[int, int, int]) -> np.ndarray:
    flat = [variant for shells in variants for shell in shells for variant in shell]
    found = np.asarray(encoder([*texts, *flat]), np.float64)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    centres, rest = found[: len(texts)], found[len(texts) :].reshape(*shape, -1)
    return np.maximum(0.0, 1.0 - np.einsum("tw,tskw->tsk", centres, rest))
