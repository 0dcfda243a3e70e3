"""Contexts encoded once: their keys and values and last hidden state, from which any number of continuations go on.

A ContextCache is never changed by its users: `read` scores continuations and throws their keys and values away layer by
layer, `extend` makes a new cache one token longer. Rows of one cache all have the same length, so nothing is padded on
the left and positions are the model's own. Works for full and sliding-window attention layers; layers of another kind
(recurrent states) are copied whole.

Knows nothing about: records, schemes, sampling.
"""

from __future__ import annotations

import copy
import types
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int

from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

CACHE_BYTES = {
    "cpu": 256 << 20,
    "cuda": 8 << 30,
    "mps": 512 << 20,
}  # keys and values alive in one batch of continuations


class ContextCache:
    """Rows of equally long contexts. `ids` [rows, length] are their tokens (BOS included), `last` [rows, width] the
    hidden states that predict what comes next."""

    def __init__(
        self,
        model: CausalLM,
        ids: Int[torch.Tensor, "rows length"],
        last: Float[torch.Tensor, "rows width"],
        cache: Any,
    ):
        self.model = model
        self.ids = ids
        self.last = last
        self._cache = cache

    @classmethod
    def encode(cls, model: CausalLM, ids: Int[torch.Tensor, "rows length"]) -> ContextCache:
        """Run the model over the contexts. Raises InputError for an empty context or a model without a KV cache."""
        if ids.shape[1] == 0:
            raise InputError("an empty context predicts nothing: give at least one token, or a model with a BOS token")
        ids = ids.to(model.device)
        hidden, cache = model.extend(ids, None)
        if cache is None or not hasattr(cache, "layers"):
            raise InputError(f"{model.name}: this architecture keeps no keys and values that continuations could share")
        return cls(model, ids, hidden[:, -1], cache)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row_bytes(self) -> int:
        """Bytes of keys and values that one more row of this length takes, over all layers."""
        return sum(
            tensor.nbytes // max(1, len(tensor))
            for layer in self._cache.layers
            for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
            if tensor is not None
        )

    def rows_that_fit(self, more_tokens: int) -> int:
        """How many continuations of `more_tokens` tokens to hold at a time."""
        budget = CACHE_BYTES.get(self.model.device.type, 256 << 20)
        longer = 1 + more_tokens / max(1, self.ids.shape[1])
        return max(1, int(budget // max(1, self.row_bytes * longer)))

    def logits(self) -> Float[torch.Tensor, "rows vocabulary"]:
        """Next-token logits of every row, float32."""
        return self.model.logits(self.last)

    def read(
        self,
        input_ids: Int[torch.Tensor, "continuations tokens"],
        parents: Int[torch.Tensor, " continuations"] | None = None,
    ) -> Float[torch.Tensor, "continuations tokens width"]:
        """Hidden states of continuations of row `parents[i]` (row 0 when left out); padding goes to the right."""
        parents = self._parents(parents, len(input_ids))
        return self.model.extend(
            input_ids.to(self.ids.device), _selected(self._cache, parents, len(self), frozen=True)
        )[0]

    def extend(self, parents: Int[torch.Tensor, " rows"] | None, tokens: Int[torch.Tensor, " rows"]) -> ContextCache:
        """New rows: row `parents[i]` followed by `tokens[i]`."""
        parents = self._parents(parents, len(tokens))
        tokens = tokens.to(self.ids.device)
        hidden, cache = self.model.extend(tokens[:, None], _selected(self._cache, parents, len(self), frozen=False))
        return ContextCache(self.model, torch.cat([self.ids[parents], tokens[:, None]], dim=1), hidden[:, -1], cache)

    def _parents(self, parents, count: int) -> torch.Tensor:
        if parents is None:
            return torch.zeros(count, dtype=torch.int64, device=self.ids.device)
        return parents.to(self.ids.device)


def _selected(cache: Any, parents: torch.Tensor, rows: int, *, frozen: bool) -> Any:
    """A cache over the chosen rows. Known layers grow by concatenation, so sharing their tensors is safe."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        whole = copy.deepcopy(cache)
        whole.batch_select_indices(parents)
        return whole
    same = len(parents) == rows and bool((parents == torch.arange(rows, device=parents.device)).all())
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in chosen.layers:
        if not layer.is_initialized:
            continue  # layers that share another layer's keys and values stay empty
        if frozen:
            layer.update = types.MethodType(_concatenate(parents, rows, same), layer)
        elif not same:
            layer.keys, layer.values = _rows(layer.keys, parents, rows), _rows(layer.values, parents, rows)
    return chosen


def _concatenate(parents: torch.Tensor, rows: int, same: bool):
    """A layer's `update` that hands out context and continuation, and stores nothing: one copy is alive at a time."""

    def update(layer, key_states, value_states, *_args, **_kwargs):
        keys = layer.keys if same else _rows(layer.keys, parents, rows)
        values = layer.values if same else _rows(layer.values, parents, rows)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    return update


def _rows(tensor: torch.Tensor, parents: torch.Tensor, rows: int) -> torch.Tensor:
    if rows == 1:
        return tensor.expand(len(parents), *tensor.shape[1:])
    return tensor.index_select(0, parents)
