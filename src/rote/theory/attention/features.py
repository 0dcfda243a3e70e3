"""Draw embeddings and rank-1 attention patterns until the heads' outputs are linearly independent over the contexts.

Knows Lemma 2's requirement: Phi(t) = [x'(t,S); W_V'^1 A'^1(t); ...; W_V'^H A'^H(t)] must have full rank over the
contexts to store. Lemma 2's proof covers one head at a time; that every further head adds its d_h is generic, not
proved in full, and false for a single token (S = 1). So rank and condition number are always measured here.

Instead of one scale for all heads, several candidate heads per place are drawn with scales spread over decades, and a
greedy choice keeps those whose output is farthest from the span of what is there (a block-pivoted QR decomposition; our
addition, it lowers condition numbers by orders of magnitude). Deliberately knows nothing about labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

SCALES = (1.0, 30.0)  # range of |W_QK'|, log-uniform: below it features are nearly linear, above it the softmax is hard


@dataclass(frozen=True)
class FeatureDraw:
    """One draw in the primed basis. `query` and `key` are u^h and s v^h: W_QK'^h = s u^h (v^h)^T."""

    embedding: Float[np.ndarray, "vocab d"]
    positions: Float[np.ndarray, "context d"]
    query: Float[np.ndarray, "heads d"]
    key: Float[np.ndarray, "heads d"]
    value: Float[np.ndarray, "heads d_head d"]

    def features(self, contexts: Int[np.ndarray, "contexts context"], dtype: Any = np.float64) -> np.ndarray:
        """Phi over the contexts, (contexts, d + heads * d_head), computed in `dtype`."""
        x = self.embedding.astype(dtype)[contexts] + self.positions.astype(dtype)
        blocks = head_outputs(x, self.query.astype(dtype), self.key.astype(dtype), self.value.astype(dtype))
        return np.concatenate([x[:, -1], blocks.transpose(1, 0, 2).reshape(len(x), -1)], axis=1)


@dataclass(frozen=True)
class Spectrum:
    """Numerical rank and condition number of Phi. cond = largest / smallest of min(contexts, columns) singular values;
    infinite when the smallest is 0."""

    rank: int
    cond: float


def head_outputs(
    x: Float[np.ndarray, "contexts context d"],
    query: Float[np.ndarray, "heads d"],
    key: Float[np.ndarray, "heads d"],
    value: Float[np.ndarray, "heads d_head d"],
) -> Float[np.ndarray, "heads contexts d_head"]:
    """W_V'^h A'^h(t) for rank-1 patterns: scores (u^h . x(t,S)) (v^h . x(t,s)). One head at a time, to bound memory."""
    out = np.empty((len(query), len(x), value.shape[1]), dtype=x.dtype)
    for head in range(len(query)):
        scores = (x[:, -1] @ query[head])[:, None] * (x @ key[head])
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        out[head] = np.matmul(scores[:, None, :], x)[:, 0] @ value[head].T
    return out


def draw_features(
    contexts: Int[np.ndarray, "contexts context"],
    *,
    vocab: int,
    d: int,
    d_head: int,
    heads: int,
    candidates: int,
    scales: tuple[float, float],
    rng: np.random.Generator,
) -> FeatureDraw:
    """Gaussian embeddings and `candidates` heads per place, of which the greedy choice keeps `heads`.

    Each head's value map has orthonormal rows, rescaled so that its outputs have root mean square 1.
    """
    embedding = rng.standard_normal((vocab, d))
    positions = rng.standard_normal((contexts.shape[1], d))
    pool = heads * candidates
    query, key = (_unit(rng.standard_normal((pool, d))) for _ in range(2))
    key = key * np.exp(rng.uniform(*np.log(scales), size=(pool, 1)))
    value = np.linalg.qr(rng.standard_normal((pool, d, d_head)))[0].transpose(0, 2, 1)
    x = embedding[contexts] + positions
    outputs = head_outputs(x, query, key, value)
    size = np.sqrt((outputs**2).mean(axis=(1, 2), keepdims=True))
    size[size == 0] = 1.0
    outputs /= size
    value = value / size
    chosen = np.arange(heads) if candidates == 1 else _independent_heads(x[:, -1], outputs, heads)
    return FeatureDraw(embedding, positions, query[chosen], key[chosen], value[chosen])


def _independent_heads(
    base: Float[np.ndarray, "contexts d"], outputs: Float[np.ndarray, "pool contexts d_head"], heads: int
) -> Int[np.ndarray, " heads"]:
    """Indices of heads chosen one after another: the block whose weakest new direction is longest.

    Only the Gram matrix of what is left of each candidate is kept up to date, by subtracting its projections on the
    new orthonormal directions; the choice is a heuristic, so rounding there costs nothing but quality.
    """
    pool, rows, width = outputs.shape
    flat = np.ascontiguousarray(outputs.transpose(1, 0, 2)).reshape(rows, pool * width)
    gram = np.matmul(outputs.transpose(0, 2, 1), outputs)
    basis = np.empty((rows, min(rows, base.shape[1] + heads * width)))
    filled = 0

    def absorb(block: np.ndarray) -> None:
        nonlocal filled, gram
        room = basis.shape[1] - filled
        if room == 0:
            return
        for _ in range(2):  # twice is enough (Kahan): the second pass removes what rounding left
            block = block - basis[:, :filled] @ (basis[:, :filled].T @ block)
        left, singular, _ = np.linalg.svd(block, full_matrices=False)
        new = left[:, : min(room, int((singular > 1e-13 * max(1.0, singular[0])).sum()))]
        basis[:, filled : filled + new.shape[1]] = new
        filled += new.shape[1]
        shadows = (new.T @ flat).reshape(new.shape[1], pool, width).transpose(1, 0, 2)
        gram = gram - np.matmul(shadows.transpose(0, 2, 1), shadows)

    absorb(base)
    free = np.ones(pool, dtype=bool)
    chosen = []
    for _ in range(heads):
        spectrum = np.linalg.eigvalsh(gram)
        # Where fewer than d_h directions are left to fill, only that many of a block can count.
        room = min(width, basis.shape[1] - filled)
        score = np.where(free, spectrum[:, -max(1, room)], -np.inf)
        head = int(score.argmax())
        chosen.append(head)
        free[head] = False
        absorb(outputs[head])
    return np.array(chosen, dtype=np.int64)


def spectrum(features: Float[np.ndarray, "contexts columns"]) -> Spectrum:
    """Rank (singular values above max(shape) * eps * largest) and condition number, by SVD in float64."""
    singular = np.linalg.svd(np.asarray(features, dtype=np.float64), compute_uv=False)
    return spectrum_of(singular, features.shape)


def spectrum_of(singular: Float[np.ndarray, " values"], shape: tuple[int, ...]) -> Spectrum:
    rank = int((singular > max(shape) * np.finfo(np.float64).eps * singular[0]).sum())
    return Spectrum(rank, float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf"))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
