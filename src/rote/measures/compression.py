"""Adversarial compression ratio: a text is memorized when a prompt shorter than itself makes the model recite it.

Knows the arithmetic and MiniPrompt's search over prompt lengths. Knows nothing about how a prompt of a given length is
found (greedy coordinate gradient on a real model): that is a callable handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from rote.errors import InputError
from rote.measures.statistics import Estimate, proportion


def compression_ratio(target_tokens: int, prompt_tokens: int) -> float:
    """ACR(y) = |y| / min{|x| : greedy(x) = y}, both in tokens; above 1 = memorized.

    An optimiser's prompt is an upper bound on the shortest one, so a measured ratio is a lower bound on ACR.
    Source: Schwarzschild et al. 2024, arXiv 2404.15146, def. 3.1.
    """
    if target_tokens < 1 or prompt_tokens < 1:
        raise InputError(f"token counts must be positive, got target {target_tokens} and prompt {prompt_tokens}")
    return target_tokens / prompt_tokens


@dataclass(frozen=True)
class MiniPrompt:
    """State of MiniPrompt's search (alg. 1): next prompt length `length` with `steps` optimiser steps.

    A hit at n: remember it, try n - 1. A miss at n: try n + `stride` with `growth` x steps. The search ends when the
    next length leaves the open interval (longest miss, shortest hit), or reaches the cap.
    """

    length: int
    steps: int
    missed: int  # longest length that failed; 0 at the start
    hit: int  # shortest length that worked; the cap (exclusive) before any did
    best: int | None = None
    stride: int = 5
    growth: float = 1.2
    started: bool = False

    @classmethod
    def start(
        cls,
        target_tokens: int,
        *,
        length: int = 5,
        steps: int = 200,
        stride: int = 5,
        growth: float = 1.2,
        cap: int = 5,
    ) -> MiniPrompt:
        """Defaults of the paper: 5 free tokens, 200 steps, give up at `cap` = 5 times the target's length."""
        if target_tokens < 1 or min(length, steps, stride, cap) < 1 or growth < 1:
            raise InputError(
                "MiniPrompt needs target_tokens, length, steps, stride and cap of at least 1, and growth >= 1"
            )
        return cls(min(length, cap * target_tokens), steps, 0, cap * target_tokens, stride=stride, growth=growth)

    @property
    def done(self) -> bool:
        return self.started and not self.missed < self.length < self.hit

    def advance(self, success: bool) -> MiniPrompt:
        """The state after `length` free tokens recited the target (`success`) or did not."""
        if self.done:
            raise InputError("the search has ended; read `best`")
        if success:
            return replace(self, length=self.length - 1, hit=self.length, best=self.length, started=True)
        return replace(
            self, length=self.length + self.stride, steps=int(self.steps * self.growth), missed=self.length,
            started=True
        )  # fmt: skip


@dataclass(frozen=True)
class CompressionResult:
    """Shortest reciting prompt found (None: none found), the ratio (then 0), each (length, steps, success) tried."""

    target_tokens: int
    prompt_tokens: int | None
    ratio: float
    trace: tuple[tuple[int, int, bool], ...]


def mini_prompt(
    target_tokens: int,
    try_prompt_length: Callable[[int, int], bool],
    *,
    length: int = 5,
    steps: int = 200,
    stride: int = 5,
    growth: float = 1.2,
    cap: int = 5,
) -> CompressionResult:
    """Search for the shortest reciting prompt; `try_prompt_length(n, steps) -> bool` optimises n free tokens and
    decodes greedily.

    A miss is the optimiser's failure, not a proof that no prompt exists; hence 0, never "not memorized", in `ratio`'s
    place.
    """
    state = MiniPrompt.start(target_tokens, length=length, steps=steps, stride=stride, growth=growth, cap=cap)
    trace = []
    while not state.done:
        success = bool(try_prompt_length(state.length, state.steps))
        trace.append((state.length, state.steps, success))
        state = state.advance(success)
    ratio = 0.0 if state.best is None else compression_ratio(target_tokens, state.best)
    return CompressionResult(target_tokens, state.best, ratio, tuple(trace))


def portion_memorized(ratios: Iterable[float], *, confidence: float = 0.95) -> Estimate:
    """Share of texts with ACR > 1, with its Clopper-Pearson interval."""
    values = np.asarray(list(ratios), dtype=np.float64)
    if np.isnan(values).any():
        raise InputError(f"ratios[{int(np.argmax(np.isnan(values)))}] is NaN")
    return proportion(int((values > 1).sum()), len(values), confidence=confidence)
