"""What steering is compared with while decoding: abstention, DoLa, contrastive decoding with a smaller model.

baseline            next-token scores, over tokens with p >= 0.1 max p where marked *
Abstention          the model's own, until m_t exceeds a threshold; then end of text
DoLa *              log q_N - log q_M, M = argmax over early blocks of JSD(q_N, q_M), q_l = softmax(head(norm(h_l)))
SmallerAmateur *    log p_expert - log p_amateur

Each is a logits processor for `generate` and a context manager. Greedy decoding, static steering and a random vector
are `steering` with other arguments. Sources: Chuang et al. 2024 (DoLa, arXiv 2309.03883, section 2); Li et al. 2023
(contrastive decoding, arXiv 2210.15097, section 3); abstention is reconstructed from the card. Knows nothing about:
how a probe was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from rote.controls.decoding.blocks import blocks_of, body_of, chosen_layers, hf_of, rewriting
from rote.controls.decoding.contrastive import PLAUSIBLE, plausible
from rote.controls.decoding.mode_probe import ModeProbe
from rote.controls.decoding.side_stream import SideStream
from rote.controls.decoding.steering import mode_score
from rote.errors import InputError
from rote.models.causal_lm import CausalLM

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_norm")


class _Looking:
    """Keeps the last position's state of some blocks from the latest pass of `generate`."""

    def __init__(self, hf: Any, layers: Sequence[int]):
        self.hf, self.layers = hf, tuple(layers)
        self.last: dict[int, torch.Tensor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Any:
        for layer in self.layers:

            def look(h: torch.Tensor, layer: int = layer) -> None:
                self.last[layer] = h[:, -1].detach()

            self._stack.enter_context(rewriting(blocks_of(self.hf)[layer], look))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self.last.clear()

    def state(self, layer: int) -> torch.Tensor:
        if layer not in self.last:
            raise InputError("this logits processor works inside its own `with` block only")
        return self.last[layer]


class Abstention(_Looking):
    """Ends a sequence as soon as m_t of block `layer` exceeds `threshold` in [0, 1). Ended rows stay ended."""

    def __init__(self, model: CausalLM | Any, probe: ModeProbe, *, layer: int, threshold: float, eos_id: int):
        super().__init__(hf_of(model), [layer])
        if not 0 <= threshold < 1:
            raise InputError(f"threshold must lie in [0, 1), not {threshold}")
        w, self._b = probe.at(layer)
        self._w = torch.from_numpy(np.asarray(w, np.float32).copy())
        self.threshold, self.eos_id = threshold, eos_id

    def __call__(
        self, input_ids: Int[torch.Tensor, "rows tokens"], scores: Float[torch.Tensor, "rows vocabulary"]
    ) -> Float[torch.Tensor, "rows vocabulary"]:
        state = self.state(self.layers[0])
        recites = mode_score(state, self._w.to(state.device), self._b) > self.threshold
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.eos_id] = 0.0
        return torch.where(recites[:, None].to(scores.device), ended, scores)


class DoLa(_Looking):
    """Contrast with the early block whose prediction differs most from the last one's, chosen anew for every token.

    candidates: early blocks; "low" or "high" is the lower or upper half of the blocks, without the last one.
    """

    def __init__(
        self, model: CausalLM | Any, *, candidates: str | Sequence[int] = "high", plausibility: float = PLAUSIBLE
    ):
        hf = hf_of(model)
        count = len(blocks_of(hf))
        if isinstance(candidates, str):
            if candidates not in ("low", "high"):
                raise InputError(f"DoLa's candidates are 'low', 'high' or block numbers, not {candidates!r}")
            candidates = range(count // 2) if candidates == "low" else range(count // 2, count - 1)
        layers = chosen_layers(hf, list(candidates))
        if not layers or count - 1 in layers:
            raise InputError("DoLa needs early blocks to contrast with, and the last one is not early")
        super().__init__(hf, layers)
        self.plausibility = plausibility
        body = body_of(hf)
        found = [name for name in FINAL_NORMS if isinstance(getattr(body, name, None), torch.nn.Module)]
        if not found or getattr(body, "project_out", None) is not None:
            raise InputError(
                f"{type(hf).__name__}: its way from a block to logits is unknown, so DoLa cannot exit early"
            )
        self._norm = getattr(body, found[0])
        # The adapter knows what else happens to logits (soft caps, scales).
        self._adapter = model if isinstance(model, CausalLM) else CausalLM(hf, fingerprint="unnamed")

    def __call__(
        self, input_ids: Int[torch.Tensor, "rows tokens"], scores: Float[torch.Tensor, "rows vocabulary"]
    ) -> Float[torch.Tensor, "rows vocabulary"]:
        final = scores.float().log_softmax(-1)
        with torch.inference_mode():
            early = torch.stack([self._adapter.logits(self._norm(self.state(k))).log_softmax(-1) for k in self.layers])
        if early.shape[-1] != final.shape[-1]:
            raise InputError("the way from a block to logits is unknown, DoLa cannot exit early")
        far = jensen_shannon(final[None].expand_as(early), early).argmax(0)
        contrasted = final - early[far, torch.arange(len(final), device=final.device)]
        return contrasted.masked_fill(~plausible(final, self.plausibility), -torch.inf).to(scores.dtype)


class SmallerAmateur:
    """log p_expert - log p_amateur over plausible tokens; the amateur is a smaller model with the same vocabulary."""

    def __init__(
        self,
        amateur: CausalLM | Any,
        *,
        plausibility: float = PLAUSIBLE,
        attention_mask: Int[torch.Tensor, "rows tokens"] | None = None,
    ):
        self._stream = SideStream(hf_of(amateur), attention_mask)
        self.plausibility = plausibility

    def __enter__(self) -> SmallerAmateur:
        self._stream.restart()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.restart()

    def __call__(
        self, input_ids: Int[torch.Tensor, "rows tokens"], scores: Float[torch.Tensor, "rows vocabulary"]
    ) -> Float[torch.Tensor, "rows vocabulary"]:
        expert, amateur = scores.float().log_softmax(-1), self._stream.next_logits(input_ids).log_softmax(-1)
        if amateur.shape != expert.shape:
            raise InputError(
                f"the amateur predicts {amateur.shape[1]} tokens, the model {expert.shape[1]}: they need one vocabulary"
            )
        return (expert - amateur).masked_fill(~plausible(expert, self.plausibility), -torch.inf).to(scores.dtype)


def jensen_shannon(
    logp: Float[torch.Tensor, "*rows vocabulary"], logq: Float[torch.Tensor, "*rows vocabulary"]
) -> Float[torch.Tensor, "*rows"]:
    """JSD(p, q) = KL(p | m) / 2 + KL(q | m) / 2 with m = (p + q) / 2, in nats, in [0, log 2]."""
    mean = torch.logaddexp(logp, logq) - float(np.log(2))
    return 0.5 * ((logp.exp() * (logp - mean)).sum(-1) + (logq.exp() * (logq - mean)).sum(-1))
