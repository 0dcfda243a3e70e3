"""A second reading of what `generate` is writing: another model, or the same one pushed, with a KV cache of its own.

A logits processor is shown the ids so far and nothing else; a side stream follows them token by token. Knows nothing
about: what is done with its logits.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int

from rote.errors import InputError


class SideStream:
    """Next-token logits of `hf` for the sequences generate is at.

    attention_mask: of the prompts, when they are left-padded. Greedy decoding and sampling only: beams that change
    places are refused, since the cache cannot follow them.
    """

    def __init__(self, hf: Any, attention_mask: Int[torch.Tensor, "rows tokens"] | None = None):
        self.hf, self._mask = hf, attention_mask
        self.restart()

    def restart(self) -> None:
        """Forget the sequences so far."""
        self._cache: Any = None
        self._seen: torch.Tensor | None = None

    def next_logits(self, input_ids: Int[torch.Tensor, "rows tokens"]) -> Float[torch.Tensor, "rows vocabulary"]:
        """float32 logits of the token that follows; a prompt is read whole, after that one token at a time."""
        seen = self._seen
        if seen is None or input_ids.shape != (len(seen), seen.shape[1] + 1):
            self._cache = None
        elif not torch.equal(input_ids[:, :-1], seen):
            raise InputError("contrastive decoding cannot follow beams that change places; use num_beams=1")
        self._seen = input_ids.clone()
        new = slice(None) if self._cache is None else slice(-1, None)
        with torch.inference_mode():
            out = self.hf(
                input_ids=input_ids[:, new],
                past_key_values=self._cache,
                use_cache=True,
                **self._padding(input_ids, new),
            )
        self._cache = out.past_key_values
        return out.logits[:, -1].float()

    def _padding(self, input_ids: torch.Tensor, new: slice) -> dict[str, torch.Tensor]:
        if self._mask is None:
            return {}
        mask = torch.ones_like(input_ids)
        mask[:, : self._mask.shape[1]] = self._mask.to(mask)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, new]
        known = inspect.signature(self.hf.forward).parameters
        extra = {"attention_mask": mask, "position_ids": positions}
        return {name: value for name, value in extra.items() if name in known}
