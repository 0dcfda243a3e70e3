"""The attention-only Transformer of the capacity theory: one layer of parallel heads, a skip connection, no MLP.

Knows the formal definition, in NumPy, in whatever floating-point type its weights have. Deliberately knows no layer
norm, no 1/sqrt(d_h) scaling and no masking, because the definition has none, and nothing about how weights are found.

Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.theory.attention.checks import check_contexts

BLOCK = 1 << 23  # numbers in the largest intermediate array of one block of contexts


@dataclass(frozen=True)
class AttentionWeights:
    """Weights of T(t) = W_U (x(t,S) + W_O W_V A(t)), with x(t,s) = e(t_s) + pos_s.

    W_QK^h = (W_Q^h)^T W_K^h has rank at most r, the number of rows kept of queries and keys: r = 1 in a built memory,
    r = d_h in general. W_O is stored as the d x (H d_h) matrix of the definition, heads side by side.
    Errors: `InputError` when shapes do not fit together or a number is not finite.
    """

    embedding: Float[np.ndarray, "vocab d"]
    positions: Float[np.ndarray, "context d"]
    query: Float[np.ndarray, "heads r d"]
    key: Float[np.ndarray, "heads r d"]
    value: Float[np.ndarray, "heads d_head d"]
    output: Float[np.ndarray, "d heads*d_head"]
    unembedding: Float[np.ndarray, "vocab d"]

    def __post_init__(self):
        (vocab, d), heads, rank, d_head = self.embedding.shape, *self.query.shape[:2], self.value.shape[1]
        expected = {
            "positions": (self.positions.shape[0], d),
            "query": (heads, rank, d),
            "key": (heads, rank, d),
            "value": (heads, d_head, d),
            "output": (d, heads * d_head),
            "unembedding": (vocab, d),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise InputError(f"attention weights: {name} must be {shape}, got {getattr(self, name).shape}")
        for name, array in self.arrays().items():
            if not np.isfinite(array).all():
                raise InputError(f"attention weights: {name} holds a number that is not finite")

    @property
    def vocab(self) -> int:
        """N, the number of tokens."""
        return self.embedding.shape[0]

    @property
    def d(self) -> int:
        """Dimension of the residual stream."""
        return self.embedding.shape[1]

    @property
    def context(self) -> int:
        """S, the number of tokens read."""
        return self.positions.shape[0]

    @property
    def heads(self) -> int:
        """H."""
        return self.query.shape[0]

    @property
    def d_head(self) -> int:
        """d_h, the rank of each head's value-output map."""
        return self.value.shape[1]

    @property
    def parameters(self) -> int:
        """Numbers stored: d (S + 2N + 2(r + d_h) H), which is the paper's count for r = d_h and for r = 1."""
        return sum(array.size for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def cast(self, dtype) -> AttentionWeights:
        """The same weights rounded to another floating-point type (`numpy.float32`, `float64`, `longdouble`)."""
        return AttentionWeights(**{name: array.astype(dtype) for name, array in self.arrays().items()})


def attention_patterns(
    weights: AttentionWeights, contexts: Int[np.ndarray, "contexts context"]
) -> Float[np.ndarray, "contexts heads context"]:
    """a^h(t)_s = softmax_s( x(t,S)^T W_QK^h x(t,s) ). Range [0, 1]; sums to 1 over s."""
    contexts = check_contexts(contexts, vocab=weights.vocab, context=weights.context)
    return _patterns(weights, _inputs(weights, contexts))


def attention_reads(
    weights: AttentionWeights, contexts: Int[np.ndarray, "contexts context"]
) -> Float[np.ndarray, "contexts heads d"]:
    """A^h(t) = sum_s a^h(t)_s x(t,s): attention before output, not yet multiplied by W_V."""
    contexts = check_contexts(contexts, vocab=weights.vocab, context=weights.context)
    x = _inputs(weights, contexts)
    return _patterns(weights, x) @ x


def logits(
    weights: AttentionWeights, contexts: Int[np.ndarray, "contexts context"]
) -> Float[np.ndarray, "contexts vocab"]:
    """T(t) = W_U ( x(t,S) + W_O W_V A(t) ) for every context, in blocks; only the last position is read.

    Any real value; the type of the result is the type of the weights, so float32 weights are judged in float32.
    Errors: `InputError` for a token outside the vocabulary or a context of another length.
    """
    contexts = check_contexts(contexts, vocab=weights.vocab, context=weights.context)
    out = np.empty((len(contexts), weights.vocab), dtype=weights.embedding.dtype)
    per_context = weights.heads * (weights.context + 2 * weights.d) + weights.context * weights.d + weights.vocab
    for rows in _blocks(len(contexts), max(1, BLOCK // max(1, per_context))):
        x = _inputs(weights, contexts[rows])
        reads = _patterns(weights, x) @ x
        values = np.matmul(reads.transpose(1, 0, 2), weights.value.transpose(0, 2, 1))  # (heads, contexts, d_head)
        flat = values.transpose(1, 0, 2).reshape(len(x), -1)
        out[rows] = (x[:, -1] + flat @ weights.output.T) @ weights.unembedding.T
    return out


def margins(
    scores: Float[np.ndarray, "contexts vocab"], labels: Int[np.ndarray, " contexts"]
) -> Float[np.ndarray, " contexts"]:
    """Logit of the right token minus the largest other logit; positive exactly where the token is memorized."""
    rows = np.arange(len(scores))
    right = scores[rows, labels]
    others = scores.copy()
    others[rows, labels] = -np.inf
    return right - others.max(axis=1)


def log_softmax(scores: Float[np.ndarray, "contexts vocab"]) -> Float[np.ndarray, "contexts vocab"]:
    """log softmax over the vocabulary, shifted by the largest logit first."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def kl_by_context(
    pi: Float[np.ndarray, "contexts vocab"], scores: Float[np.ndarray, "contexts vocab"]
) -> Float[np.ndarray, " contexts"]:
    """KL(pi(.|t) || softmax T(t)) in nats for every context, with 0 log 0 = 0. Range [0, infinity)."""
    safe = np.where(pi > 0, pi, 1.0)
    return (pi * (np.log(safe) - log_softmax(scores))).sum(axis=1)


def _inputs(weights: AttentionWeights, contexts: np.ndarray) -> np.ndarray:
    return weights.embedding[contexts] + weights.positions


def _patterns(weights: AttentionWeights, x: np.ndarray) -> np.ndarray:
    queries = np.matmul(x[:, -1], weights.query.transpose(0, 2, 1))  # (heads, contexts, r)
    mapped = np.matmul(queries, weights.key).transpose(1, 0, 2)  # x(t,S)^T W_QK, (contexts, heads, d)
    scores = mapped @ x.transpose(0, 2, 1)
    scores = np.exp(scores - scores.max(axis=2, keepdims=True))
    return scores / scores.sum(axis=2, keepdims=True)


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
