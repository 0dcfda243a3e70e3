"""The attention-only Transformer as PyTorch modules: the formal model, and one `nn.MultiheadAttention` a head.

Knows the formal definition and PyTorch's conventions (its attention divides scores by sqrt(d)). Deliberately knows
nothing about how weights came to be.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rote.theory.attention.model import AttentionWeights


class AttentionOnly(nn.Module):
    """T(t) = W_U ( x(t,S) + W_O W_V A(t) ), no norm, no scaling. Dana et al. 2024 (arXiv 2411.10115, section 3)."""

    embedding: Tensor
    positions: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    unembedding: Tensor

    def __init__(self, weights: AttentionWeights, *, dtype: torch.dtype = torch.float64):
        super().__init__()
        for name, array in weights.arrays().items():
            self.register_parameter(name, nn.Parameter(_tensor(array, dtype)))

    def forward(self, contexts: Int[Tensor, "contexts context"]) -> Float[Tensor, "contexts vocab"]:
        """Logits of the next token after every context; token ids in, one row of N logits out."""
        x = self.embedding[contexts] + self.positions
        queries = torch.einsum("td,hrd->thr", x[:, -1], self.query)
        mapped = torch.einsum("thr,hrd->thd", queries, self.key)
        patterns = torch.einsum("thd,tsd->ths", mapped, x).softmax(dim=-1)
        reads = torch.einsum("ths,tsd->thd", patterns, x)
        values = torch.einsum("thd,hvd->thv", reads, self.value).flatten(1)
        return (x[:, -1] + values @ self.output.T) @ self.unembedding.T


class MultiheadStack(nn.Module):
    """The same function from H parallel single-head `nn.MultiheadAttention` layers, as in the paper's experiments.

    PyTorch's head divides scores by sqrt(d), so queries are stored times sqrt(d); value and output maps of rank d_h < d
    and patterns of rank r < d are padded with zero rows.
    """

    def __init__(self, weights: AttentionWeights, *, dtype: torch.dtype = torch.float64):
        super().__init__()
        d = weights.d
        self.embedding = nn.Embedding.from_pretrained(_tensor(weights.embedding, dtype), freeze=False)
        self.positions = nn.Parameter(_tensor(weights.positions, dtype))
        self.unembedding = nn.Linear(d, weights.vocab, bias=False, dtype=dtype)
        heads = [nn.MultiheadAttention(d, 1, bias=False, batch_first=True, dtype=dtype) for _ in range(weights.heads)]
        self.heads = nn.ModuleList(heads)
        with torch.no_grad():
            self.unembedding.weight.copy_(_tensor(weights.unembedding, dtype))
            for number, head in enumerate(heads):
                columns = slice(number * weights.d_head, (number + 1) * weights.d_head)
                packed = np.zeros((3, d, d))
                packed[0, : weights.query.shape[1]] = weights.query[number] * math.sqrt(d)
                packed[1, : weights.key.shape[1]] = weights.key[number]
                packed[2, : weights.d_head] = weights.value[number]
                out = np.zeros((d, d))
                out[:, : weights.d_head] = weights.output[:, columns]
                cast(Tensor, head.in_proj_weight).copy_(_tensor(packed.reshape(3 * d, d), dtype))
                head.out_proj.weight.copy_(_tensor(out, dtype))

    def forward(self, contexts: Int[Tensor, "contexts context"]) -> Float[Tensor, "contexts vocab"]:
        x = self.embedding(contexts) + self.positions
        hidden = x[:, -1]
        for head in self.heads:
            hidden = hidden + head(x[:, -1:], x, x, need_weights=False)[0][:, 0]
        return self.unembedding(hidden)


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.tensor(np.asarray(array, dtype=np.float64), dtype=dtype)
