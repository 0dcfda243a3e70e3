"""Steering written as contrastive decoding: the model pushed by +v against the same model pushed by -v.

    form        logits_cd                                                    to first order in v
    expert      (1 + gamma_t) logits(h + v) - gamma_t logits(h - v)          logits + (1 + 2 gamma_t) J v
    symmetric   logits + gamma_t / 2 (logits(h + v) - logits(h - v))         logits + gamma_t J v

with gamma_t = alpha m_t and J = d logits / d h_{l*}; tokens with p < 0.1 max p under the unsteered model are excluded.
"symmetric" is what the hook of `steering` does, to first order, and is the unsteered model at gamma = 0. "expert" is
the usual contrastive form; at gamma = 0 it is the model pushed by +v, not the unsteered one.

A token costs three passes: the unsteered one of `generate`, which also gives m_t, and one for each push. Each push has
its own KV cache, so its history is pushed at every generated position, and the prompt at its last position only.

Source: Zhang 2025, arXiv 2510.22099 frames steering as self-contrastive decoding [abstract]; both forms, and the mask
after Li et al. 2023 (contrastive decoding), are reconstructed. Knows nothing about: how probe and vector were found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from rote.controls.decoding.blocks import blocks_of, check_layer, hf_of, rewriting
from rote.controls.decoding.mode_probe import ModeProbe
from rote.controls.decoding.side_stream import SideStream
from rote.controls.decoding.steering import mode_score
from rote.controls.decoding.steering_vector import SteeringVector
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

FORMS = ("expert", "symmetric")
PLAUSIBLE = 0.1  # share of the largest probability below which a token is no candidate (Li et al. 2023)


def contrast(
    base: Float[torch.Tensor, "rows vocabulary"],
    plus: Float[torch.Tensor, "rows vocabulary"],
    minus: Float[torch.Tensor, "rows vocabulary"],
    gamma: Float[torch.Tensor, " rows"],
    form: str,
) -> Float[torch.Tensor, "rows vocabulary"]:
    """The contrasted logits of one form; see the head of this file."""
    gamma = gamma[:, None]
    if form == "expert":
        return (1 + gamma) * plus - gamma * minus
    return base + gamma / 2 * (plus - minus)


def plausible(logits: Float[torch.Tensor, "rows vocabulary"], share: float) -> Float[torch.Tensor, "rows vocabulary"]:
    """Boolean mask of tokens with p >= share * max p."""
    return logits >= logits.amax(-1, keepdim=True) + float(np.log(share))


class ContrastiveSteering:
    """A context manager and a logits processor for `generate`:

        with ContrastiveSteering(model, probe, vector, alpha=1.4) as processor:
            model.generate(**inputs, logits_processor=[processor])

    Args:
        probe: gives m_t; None takes m_t = 1.
        form: "expert" (the card's) or "symmetric". plausibility: share of the largest probability; 0 excludes nothing.
        attention_mask: of the prompts, when they are left-padded (a logits processor is not shown it).
    For greedy decoding and sampling; beams are refused when they change places, since the pushed streams cannot follow.
    Raises: InputError for an unknown form, or when used outside its context.
    """

    def __init__(
        self,
        model: CausalLM | Any,
        probe: ModeProbe | None,
        vector: SteeringVector,
        *,
        alpha: float = 1.4,
        form: str = "expert",
        plausibility: float = PLAUSIBLE,
        attention_mask: Int[torch.Tensor, "rows tokens"] | None = None,
    ):
        if form not in FORMS:
            raise InputError(f"the contrastive form is one of {', '.join(FORMS)}, not {form!r}")
        if not 0 <= plausibility <= 1:
            raise InputError(f"plausibility must lie in [0, 1], not {plausibility}")
        self.hf, self.alpha, self.form, self.plausibility = hf_of(model), alpha, form, plausibility
        self.layer = check_layer(self.hf, vector.layer)
        self._v = torch.from_numpy(np.asarray(vector.v, np.float32).copy())
        self._probe = None if probe is None else probe.at(self.layer)
        self._streams = {sign: SideStream(self.hf, attention_mask) for sign in (1.0, -1.0)}
        self._push = 0.0
        self._m: torch.Tensor | None = None
        self._close: Callable[[], object] | None = None

    def __enter__(self) -> ContrastiveSteering:
        inner = rewriting(blocks_of(self.hf)[self.layer], self._hook)
        inner.__enter__()
        self._close = lambda: inner.__exit__(None, None, None)
        for stream in self._streams.values():
            stream.restart()
        self._m = None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._close is not None:
            self._close()
        self._close = None

    def __call__(
        self, input_ids: Int[torch.Tensor, "rows tokens"], scores: Float[torch.Tensor, "rows vocabulary"]
    ) -> Float[torch.Tensor, "rows vocabulary"]:
        """Contrasted logits for the token that follows `input_ids`; `scores` are the unsteered ones."""
        if self._close is None or self._m is None:
            raise InputError("contrastive steering works inside `with ContrastiveSteering(...)` only")
        plus, minus = (self._pushed_logits(input_ids, sign) for sign in (1.0, -1.0))
        mixed = contrast(scores.float(), plus, minus, self.alpha * self._m.to(scores.device), self.form)
        if self.plausibility:
            mixed = mixed.masked_fill(~plausible(scores.float(), self.plausibility), -torch.inf)
        return mixed.to(scores.dtype)

    def _hook(self, h: torch.Tensor) -> torch.Tensor | None:
        last = h[:, -1:]
        if self._push == 0:
            if self._probe is None:
                self._m = torch.ones(len(h), device=h.device)
            else:
                w, b = self._probe
                self._m = mode_score(last, torch.from_numpy(np.asarray(w, np.float32)).to(h.device), b)[:, 0]
            return None
        changed = (last.float() + self._push * self._v.to(h.device)).to(h.dtype)
        return torch.cat([h[:, :-1], changed], dim=1)

    def _pushed_logits(self, input_ids: torch.Tensor, sign: float) -> torch.Tensor:
        m, self._push = self._m, sign
        try:
            return self._streams[sign].next_logits(input_ids)
        finally:
            self._push, self._m = 0.0, m
