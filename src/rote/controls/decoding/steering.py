"""Steer a model away from reciting while it decodes: as strongly as a probe says it is reciting, and no stronger.

    h'_{l*,t} = h_{l*,t} + alpha * m_t * v_gen,      m_t = sigmoid(w . h_{l*,t} + b) of the unsteered state

It acts at the position that predicts each generated token: the last prompt token for the first one, then every
generated token; earlier prompt tokens stay as they are. Probe and addition share one hook, so a step costs O(d) more.
With a KV cache, keys and values above l* keep what steered positions wrote: later steps see a steered history. Without
a cache the same positions are steered again, with the same result. Since nothing below l* is steered, m_t is always
that of the unsteered state: there is no feedback.

Prompts of a batch must be padded on the left, as generation needs anyway. Beam search is steered correctly with a
cache (the trace then has one row a beam, in the order the beams had at that step), and refused without one. Refused,
since a pass then holds several generated positions or other streams: assisted and speculative decoding, prompt
lookup, multi-token prediction, chunked prefill, contrastive search.

Source: Zhang 2025, arXiv 2510.22099: strength scaled by the live probability and by alpha, best alpha 1.4 [secondary].
Threshold, clip, norm preservation and decay are reconstructed options. Knows nothing about: how probe and vector were
found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from rote.controls.decoding.blocks import blocks_of, body_of, check_layer, hf_of, rewriting
from rote.controls.decoding.mode_probe import ModeProbe
from rote.controls.decoding.steering_vector import SteeringVector
from rote.controls.decoding.streams import Prompts, refuse_unsteerable
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

PAPER_ALPHA = 1.4  # Zhang 2025's best value, as reviews report it; in units of this module's "residual" scale or not
Starts = Callable[[Int[torch.Tensor, "batch length"]], Int[torch.Tensor, " batch"]]


@dataclass(frozen=True)
class SteeringSettings:
    """alpha: strength (0: nothing; negative: towards memorization). dynamic: scale by m_t; else m_t = 1 (static).
    threshold: act only where m_t exceeds it, in [0, 1). clip: most that is added, as a share of ||h_t||.
    norm_preserving: rescale the result to ||h_t||. decay: alpha falls by this factor with every generated token, in
    (0, 1]."""

    alpha: float = PAPER_ALPHA
    dynamic: bool = True
    threshold: float | None = None
    clip: float | None = None
    norm_preserving: bool = False
    decay: float = 1.0

    def __post_init__(self):
        for ok, message in (
            (np.isfinite(self.alpha), f"alpha must be a finite number, not {self.alpha}"),
            (self.threshold is None or 0 <= self.threshold < 1, f"threshold must lie in [0, 1), not {self.threshold}"),
            (self.clip is None or self.clip > 0, f"clip must be above 0, not {self.clip}"),
            (0 < self.decay <= 1, f"decay must lie in (0, 1], not {self.decay}"),
        ):
            if not ok:
                raise InputError(f"steering: {message}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trace:
    """What happened to one batch of prompts: for each row and generated token, m_t in [0, 1] and the norm of what was
    added. Without a probe m_t is NaN."""

    mode_score: Float[np.ndarray, "rows tokens"]
    added_norm: Float[np.ndarray, "rows tokens"]


def mode_score(
    h: Float[torch.Tensor, "*rows width"], w: Float[torch.Tensor, " width"], b: float
) -> Float[torch.Tensor, "*rows"]:
    """m = sigmoid(w . h + b) in float32."""
    return torch.sigmoid(h.float() @ w + b)


def steered(
    h: Float[torch.Tensor, "*rows width"],
    m: Float[torch.Tensor, "*rows"] | None,
    v: Float[torch.Tensor, " width"],
    settings: SteeringSettings,
    step: Int[torch.Tensor, "*rows"] | int = 0,
) -> tuple[Float[torch.Tensor, "*rows width"], Float[torch.Tensor, "*rows"]]:
    """(h', norm of what was added), computed in float32 and returned in h's own precision.

    `step` counts generated tokens from 0 (for `decay`). Where the strength is 0, h' is h, bit for bit.
    """
    x = h.float()
    strength = torch.full(h.shape[:-1], settings.alpha, device=h.device)
    if settings.decay != 1:
        strength = strength * settings.decay ** torch.as_tensor(step, device=h.device)
    if settings.dynamic:
        assert m is not None
        strength = strength * m
    if settings.threshold is not None:
        assert m is not None
        strength = torch.where(m > settings.threshold, strength, 0.0)
    added = strength[..., None] * v
    norm = strength.abs() * v.norm()
    if settings.clip is not None:
        most = settings.clip * x.norm(dim=-1)
        shrink = torch.clamp(most / norm.clamp(min=torch.finfo(torch.float32).tiny), max=1.0)
        added, norm = added * shrink[..., None], norm * shrink
    changed = x + added
    if settings.norm_preserving:
        length = changed.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        changed = torch.where(strength[..., None] == 0, x, changed * (x.norm(dim=-1, keepdim=True) / length))
    return changed.to(h.dtype), norm


def mode_steering(
    model: CausalLM | Any,
    probe: ModeProbe | None,
    vector: SteeringVector,
    *,
    alpha: float = PAPER_ALPHA,
    layer: int | None = None,
    dynamic: bool = True,
    threshold: float | None = None,
    clip: float | None = None,
    norm_preserving: bool = False,
    decay: float = 1.0,
    starts: Starts | None = None,
) -> ModeSteering:
    """A context in which `model.generate` (or any forward pass) is steered; `.trace` tells what was done.

        with mode_steering(model, probe, vector, alpha=1.4) as s:
            out = model.generate(**inputs)
        s.trace.mode_score

    Args:
        model: a transformers causal LM, or the adapter.
        probe: fitted at the vector's block. May be None for static steering without threshold.
        layer: the vector's own block; another one is refused (a direction means nothing elsewhere).
        starts: for whole texts in one pass (scoring): the first position to steer in each row, from the row's ids.
            Then every position from there on is steered, with its own m_t, in passes outside of `generate`. Without
            it, all passes are taken to be generation.
    Raises: InputError for what cannot be steered; see the head of this file.
    """
    settings = SteeringSettings(alpha, dynamic, threshold, clip, norm_preserving, decay)
    return ModeSteering(model, probe, vector, settings, layer=layer, starts=starts)


class ModeSteering:
    """The context manager behind `mode_steering`. Can be entered again after it was left; traces start anew."""

    def __init__(
        self,
        model: CausalLM | Any,
        probe: ModeProbe | None,
        vector: SteeringVector,
        settings: SteeringSettings,
        *,
        layer: int | None = None,
        starts: Starts | None = None,
    ):
        self.hf = hf_of(model)
        self.layer = check_layer(self.hf, vector.layer)
        if layer is not None and layer != vector.layer:
            raise InputError(f"the steering vector belongs to block {vector.layer}, not {layer}: make one for {layer}")
        if probe is None and (settings.dynamic or settings.threshold is not None):
            raise InputError("dynamic steering and a threshold need a probe; without one use dynamic=False")
        width = int(self.hf.config.get_text_config().hidden_size)
        if len(vector.v) != width:
            raise InputError(f"the steering vector has {len(vector.v)} numbers, the model's states have {width}")
        self.settings, self.starts = settings, starts
        self._v = torch.from_numpy(np.asarray(vector.v, np.float32).copy())
        self._probe: tuple[torch.Tensor, float] | None = None
        if probe is not None:
            w, b = probe.at(self.layer)
            if len(w) != width:
                raise InputError(f"the probe reads {len(w)} numbers, the model's states have {width}")
            self._probe = torch.from_numpy(np.asarray(w, np.float32).copy()), b
        self._close: list[Callable[[], object]] = []
        self._forget()

    @property
    def trace(self) -> Trace:
        """The latest batch of prompts. Raises InputError when nothing was generated yet."""
        if not self._traces:
            raise InputError(
                "nothing was generated in this context yet (or it scores whole texts, which have no trace)"
            )
        return self._as_trace(self._traces[-1])

    @property
    def traces(self) -> list[Trace]:
        """One trace for every batch of prompts so far."""
        return [self._as_trace(steps) for steps in self._traces]

    @property
    def mean_mode_score(self) -> float | None:
        """Mean m_t over all steered positions so far; None without a probe or without positions."""
        return float(self._sum / self._count) if self._count and self._probe is not None else None

    def __enter__(self) -> ModeSteering:
        if self._close:
            raise InputError("this steering is already active")
        self._forget()
        body = body_of(self.hf)
        handle = body.register_forward_pre_hook(self._before, with_kwargs=True)
        self._close.append(handle.remove)
        inner = rewriting(blocks_of(self.hf)[self.layer], self._rewrite)
        inner.__enter__()
        self._close.append(lambda: inner.__exit__(None, None, None))
        self._guard_generate()
        return self

    def __exit__(self, *exception: object) -> None:
        while self._close:
            self._close.pop()()

    # ---- what passes look like

    def _before(self, module: Any, args: tuple, kwargs: dict) -> None:
        self._prompts.see(args, kwargs)
        self._starts = None
        if self.starts is not None and not self._prompts.in_generate:
            ids = self._prompts.ids
            if ids is None:
                raise InputError("scoring whole texts under steering needs token ids, not embeddings")
            # Behind a cache the text goes on: everything that is new counts as generated.
            self._starts = torch.zeros(len(ids), dtype=torch.int64) if self._prompts.past else self.starts(ids)

    def _rewrite(self, h: torch.Tensor) -> torch.Tensor:
        h_v = self._v = self._v.to(h.device)
        if self._probe is not None:
            self._probe = self._probe[0].to(h.device), self._probe[1]
        position = torch.arange(h.shape[1], device=h.device)[None]
        if self._starts is not None:
            first = self._starts.to(h.device)[:, None]
            where, step = position >= first, (position - first).clamp(min=0)
            m = None if self._probe is None else mode_score(h, *self._probe)
            changed, _ = steered(h, m, h_v, self.settings, step)
            if m is not None:
                self._sum, self._count = self._sum + (m * where).sum(), self._count + where.sum()
            return torch.where(where[..., None], changed, h)
        first = self._prompts.first_steered
        part = h[:, first:]
        m = None if self._probe is None else mode_score(part, *self._probe)
        changed, norm = steered(part, m, h_v, self.settings, position[:, first:] - first + self._prompts.step_of_first)
        self._record(None if m is None else m[:, -1], norm[:, -1])
        return changed if first == 0 else torch.cat([h[:, :first], changed], dim=1)

    def _record(self, m: torch.Tensor | None, norm: torch.Tensor) -> None:
        """Kept on the device: asking for numbers here would stop an accelerator at every token."""
        norm = norm.detach()
        m = torch.full_like(norm, torch.nan) if m is None else m.detach()
        if self._prompts.fresh:
            self._traces.append([])
            self._prompts.fresh = False
        self._traces[-1].append((m, norm))
        self._sum, self._count = self._sum + m.sum(), self._count + len(m)

    def _guard_generate(self) -> None:
        """`generate` is asked whether it can be steered before it starts, and tells where a prompt begins."""
        generate = getattr(self.hf, "generate", None)
        if generate is None:
            return
        own = self.hf.__dict__.get("generate")

        @functools.wraps(generate)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            refuse_unsteerable(self.hf, args, kwargs)
            with self._prompts.generating():
                return generate(*args, **kwargs)

        self.hf.generate = guarded

        def undo() -> None:
            if own is None:
                del self.hf.generate
            else:
                self.hf.generate = own

        self._close.append(undo)

    def _forget(self) -> None:
        self._prompts = Prompts()
        self._starts: torch.Tensor | None = None
        self._traces: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self._sum: Any = 0.0
        self._count: Any = 0

    @staticmethod
    def _as_trace(steps: list[tuple[torch.Tensor, torch.Tensor]]) -> Trace:
        rows = max(len(norm) for _, norm in steps)  # rows that end early leave NaN behind

        def table(part: int) -> np.ndarray:
            found = np.full((rows, len(steps)), np.nan, np.float32)
            for t, step in enumerate(steps):
                found[: len(step[part]), t] = step[part].float().cpu().numpy()
            return found

        return Trace(table(0), table(1))
