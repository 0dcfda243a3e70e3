"""Which positions of a forward pass predict generated tokens: prompts, cached steps, and passes without a cache.

    pass                                       steered positions
    a prompt (nothing cached)                  the last one
    one token behind a cache                   that one
    the same prompt again, tokens longer       from the prompt's last one on   (generation without a cache)

Anything else (several tokens behind a cache: speculative decoding, chunks of a prompt) cannot be told apart from
inside a pass and is refused. Knows nothing about: what is done at those positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int

from rote.errors import InputError


class Prompts:
    """Follows the passes of one model. `first_steered`: first position of the current pass to steer; `step_of_first`:
    which generated token it predicts, counted from 0; `fresh`: a new batch of prompts began; `past`: cached tokens;
    `in_generate`: the pass belongs to a call of `generate`."""

    def __init__(self) -> None:
        self.ids: Int[torch.Tensor, "batch length"] | None = None
        self.first_steered = 0
        self.step_of_first = 0
        self.fresh = False
        self.past = 0
        self._prompt: int | None = None
        self._previous: torch.Tensor | None = None
        self.in_generate = False

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Inside a call of `generate`: the next pass is a prompt, all others continue it."""
        self.in_generate, self._prompt, self._previous = True, None, None
        try:
            yield
        finally:
            self.in_generate, self._prompt, self._previous = False, None, None

    def see(self, args: tuple, kwargs: dict) -> None:
        """Take note of a pass about to run. Raises InputError when its positions cannot be told."""
        self.ids = kwargs.get("input_ids", args[0] if args else None)
        tokens = self.ids if self.ids is not None else kwargs.get("inputs_embeds")
        if tokens is None:
            raise InputError("a forward pass without input_ids or inputs_embeds cannot be steered")
        length, self.past = int(tokens.shape[1]), cached_tokens(kwargs.get("past_key_values"))
        if self._prompt is None or self._restarts(kwargs.get("past_key_values") is not None):
            self._begin(length, kwargs.get("attention_mask"))
        elif self.past:
            if length != 1:
                raise InputError(
                    f"a pass holds {length} positions behind a cache: speculative decoding or a prompt in chunks cannot"
                    " be steered; hand the whole prompt over in one pass and decode one token at a time"
                )
            self.first_steered, self.step_of_first = 0, self.step_of_first + 1
        else:
            self.first_steered, self.step_of_first = self._prompt - 1, 0
        if not self.in_generate and not self.past:
            self._previous = self.ids

    def _restarts(self, brings_cache: bool) -> bool:
        """Is a pass that follows another one a new batch of prompts? Inside `generate` never; otherwise when it brings
        an empty cache, or when nothing is cached and it is not the previous batch with one more token each."""
        if self.in_generate or self.past:
            return False
        if brings_cache:
            return True
        before, now = self._previous, self.ids
        if before is None or now is None or now.shape != (len(before), before.shape[1] + 1):
            return True
        return not torch.equal(now[:, :-1], before)

    def _begin(self, length: int, mask: Any) -> None:
        if self.past and not self.in_generate:
            raise InputError("a pass continues a cache that was filled outside of steering; steer from the prompt on")
        if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not bool(mask[:, -1].all()):
            raise InputError(
                "a prompt of the batch is padded on the right, so its last position is padding;"
                " pad on the left (tokenizer.padding_side = 'left')"
            )
        self._prompt, self.fresh = length, True
        self.first_steered, self.step_of_first = length - 1, 0


def cached_tokens(cache: Any) -> int:
    """How many tokens a KV cache holds (0 for none)."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2])


def refuse_unsteerable(hf: Any, args: tuple, kwargs: dict) -> None:
    """Raises InputError for ways of generating in which a pass does not hold one new position of one stream."""
    config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or hf.generation_config

    def setting(name: str) -> Any:
        return kwargs[name] if name in kwargs else getattr(config, name, None)

    beams = int(setting("num_beams") or 1)
    for name, wrong in (
        ("assistant_model", kwargs.get("assistant_model") is not None),
        ("prompt_lookup_num_tokens", setting("prompt_lookup_num_tokens") is not None),
        ("assistant_early_exit", setting("assistant_early_exit") is not None),
        ("use_mtp", bool(setting("use_mtp"))),
        ("prefill_chunk_size", setting("prefill_chunk_size") is not None),
        ("penalty_alpha", bool(setting("penalty_alpha"))),
    ):
        if wrong:
            raise InputError(
                f"generate({name}=...) cannot be steered: its passes hold several generated positions or other streams;"
                " use greedy decoding, sampling or beam search"
            )
    if beams > 1 and setting("use_cache") is False:
        raise InputError("beam search can only be steered with a cache (use_cache=True)")
