"""The one loop: forget items in random order, each paired with a random retain item; AdamW; clipping; no surprises.

Deterministic for a seed on one machine. A loss or gradient that is not finite stops the loop: the weights go back to
the last ones with a finite loss, and the error says at which step, at which rate, and which part was not finite.

Hooks for optimiser wrappers: `optimizer(parameters)` builds another optimiser (a second-order one, say);
`combine(forget_gradients, retain_gradients)` decides the step from the two gradients apart, as gradient surgery does.
Knows nothing about: methods' formulas, records, measures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rote.controls.editing.unlearning.items import Item, collate
from rote.controls.editing.unlearning.objectives import Objective, decoder_layers
from rote.controls.editing.unlearning.settings import TrainerSettings
from rote.errors import InputError, RoteError
from rote.runtime import threads, threads_for_width

Gradients = list[Tensor]
Combine = Callable[[Gradients, Gradients], Gradients]
Progress = Callable[[int, int, float], None]


class TrainingStopped(RoteError):
    """The loss stopped being finite. The model holds the last weights whose loss was finite, those after `step`
    steps."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class StepRecord:
    """One line of the log. `forget` is the method's own loss (it may be negative), `retain` None without a retain
    term, `alpha` the retain weight used; `gradient_norm` is before clipping."""

    step: int
    loss: float
    forget: float
    retain: float | None
    alpha: float
    learning_rate: float
    gradient_norm: float


def train(
    hf: nn.Module,
    objective: Objective,
    anchor: Sequence[Item],
    partner: Sequence[Item] | None,
    settings: TrainerSettings,
    *,
    seed: int = 0,
    trained: Sequence[nn.Parameter] | None = None,
    progress: Progress | None = None,
    optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer] | None = None,
    combine: Combine | None = None,
    after_step: Callable[[int], None] | None = None,
) -> list[StepRecord]:
    """Train `hf` in place; returns the log, one record a step.

    anchor: what an epoch runs over (the forget set; the retain set of a fine-tuning); partner: where each anchor item's
    random companion comes from, None for methods without a retain term. progress(step, steps, loss) after each step;
    after_step(steps done) too, for measurements along the way.
    Raises: TrainingStopped; InputError when the settings select no parameter.
    """
    device = next(hf.parameters()).device
    parameters = list(trained) if trained is not None else select_parameters(hf, settings)
    flags = {parameter: parameter.requires_grad for parameter in hf.parameters()}
    wanted = {id(parameter) for parameter in parameters}
    for parameter in hf.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    engine = (optimizer or _adamw(settings))(parameters)
    rates = [group.get("lr", settings.learning_rate) / settings.learning_rate for group in engine.param_groups]
    rng = np.random.default_rng([seed, 2506])
    steps, per_epoch = settings.steps_for(len(anchor)), settings.steps_per_epoch(len(anchor))
    width = int(getattr(hf.config.get_text_config(), "hidden_size", 0) or 0)  # pyright: ignore
    log: list[StepRecord] = []
    snapshot = _Snapshot(parameters)
    hf.train(settings.dropout)
    try:
        with threads(threads_for_width(width)) if device.type == "cpu" else nullcontext():
            objective.prepare(anchor, batch_size=settings.micro_batch_size or settings.batch_size, device=device)
            order = np.zeros(0, np.int64)
            for step in range(steps):
                at = step % per_epoch
                if at == 0:
                    order = rng.permutation(len(anchor))
                rows = order[at * settings.batch_size : (at + 1) * settings.batch_size]
                companions = rng.integers(0, len(partner), len(rows)) if partner else None
                rate = settings.learning_rate_at(step, steps)
                for group, share in zip(engine.param_groups, rates, strict=True):
                    group["lr"] = rate * share
                alpha = objective.alpha
                forget, retain = _gradients(
                    objective, parameters, anchor, partner, rows, companions, settings, device, combine
                )
                norm = _norm(parameters)
                loss = objective.settings.gamma * forget + (alpha * retain if retain is not None else 0.0)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    good = step if math.isfinite(loss) else snapshot.restore()
                    raise TrainingStopped(
                        f"training diverged at step {step} of {steps}: forget loss {forget:.4g}, "
                        f"retain loss {'none' if retain is None else format(retain, '.4g')}, gradient norm {norm:.4g}, "
                        f"learning rate {rate:.3g}; the weights are those after {good} steps, the last good ones. "
                        "Lower the learning rate, the steps, or train in float32",
                        good,
                    )
                if step % settings.snapshot_every == 0:
                    snapshot.take(step)
                if settings.clip_norm is not None and norm > settings.clip_norm:
                    for parameter in parameters:
                        if parameter.grad is not None:
                            parameter.grad.mul_(settings.clip_norm / (norm + 1e-6))
                engine.step()
                engine.zero_grad(set_to_none=True)
                log.append(StepRecord(step, loss, forget, retain, alpha, rate, norm))
                objective.after_step((step + 1) / per_epoch, retain)
                if progress:
                    progress(step + 1, steps, loss)
                if after_step:
                    hf.eval()
                    after_step(step + 1)
                    hf.train(settings.dropout)
            if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
                good = snapshot.restore()
                raise TrainingStopped(
                    f"training diverged at its last step, {steps}: a weight is not finite; "
                    f"the weights are those after {good} steps. Lower the learning rate",
                    good,
                )
    finally:
        for parameter, flag in flags.items():
            parameter.grad = None
            parameter.requires_grad_(flag)
        hf.eval()
    return log


def select_parameters(hf: nn.Module, settings: TrainerSettings) -> list[nn.Parameter]:
    """The parameters that `settings.parameters` and `settings.layers` choose (both must agree); tied ones once.

    Errors: `InputError` for a pattern or layer that matches nothing, with the names that exist; for a quantised model.
    """
    named = [(name, parameter) for name, parameter in hf.named_parameters() if parameter.is_floating_point()]
    if getattr(hf, "is_quantized", False) or len(named) < sum(1 for _ in hf.parameters()):
        raise InputError(
            "the model's weights are quantised and cannot be trained: use LoRA, or load it in float32 or bfloat16"
        )
    if settings.layers is not None:
        layers = decoder_layers(hf)
        for layer in settings.layers:
            if not 0 <= layer < len(layers):
                raise InputError(f"there is no decoder layer {layer}: the model has layers 0 .. {len(layers) - 1}")
        inside = {id(parameter) for layer in settings.layers for parameter in layers[layer].parameters()}
        named = [(name, parameter) for name, parameter in named if id(parameter) in inside]
    if settings.parameters is not None:
        for pattern in settings.parameters:
            try:
                found = any(re.search(pattern, name) for name, _ in named)
            except re.error as error:
                raise InputError(f"parameter pattern {pattern!r} is not a regular expression ({error})") from None
            if not found:
                kinds = sorted({re.sub(r"\.\d+\.", ".N.", name) for name, _ in named})
                raise InputError(f"no parameter matches {pattern!r}; there are: {', '.join(kinds)}")
        named = [(name, p) for name, p in named if any(re.search(pattern, name) for pattern in settings.parameters)]
    return [parameter for _, parameter in named]


def gradient_surgery(forget: Gradients, retain: Gradients) -> Gradients:
    """g_r + g_f, with the part of g_f that works against g_r taken out: g_f - (g_f . g_r / |g_r|^2) g_r if g_f . g_r
    < 0.

    The projection is over all parameters together. Source: Yu et al. 2020 (PCGrad), arXiv 2001.06782, one-sided, as
    GRU uses it for unlearning (Wang et al. 2025, arXiv 2503.09117) [their further steps are not included].
    """
    product = sum((f * r).sum() for f, r in zip(forget, retain, strict=True))
    size = sum(r.square().sum() for r in retain)
    share = torch.clamp(torch.as_tensor(product), max=0.0) / torch.clamp(torch.as_tensor(size), min=1e-20)
    return [f - share * r + r for f, r in zip(forget, retain, strict=True)]


def _gradients(
    objective, parameters, anchor, partner, rows, companions, settings, device, combine
) -> tuple[float, float | None]:
    """Leave the gradient of gamma L_f + alpha L_r in `.grad`; returns (L_f, L_r), averaged over micro-batches by
    items."""
    micro = settings.micro_batch_size or len(rows)
    parts = {"forget": 0.0, "retain": 0.0}
    apart: dict[str, Gradients] = {name: [torch.zeros_like(p) for p in parameters] for name in parts} if combine else {}
    for start in range(0, len(rows), micro):
        chosen = slice(start, start + micro)
        share = len(rows[chosen]) / len(rows)
        losses = [("forget", objective.settings.gamma, anchor, rows[chosen], objective.forget)]
        if companions is not None:
            losses.append(("retain", objective.alpha, partner, companions[chosen], objective.retain))
        for name, weight, items, numbers, loss_of in losses:
            loss = loss_of(collate(items, numbers, device))
            parts[name] += share * loss.item()
            scaled = share * weight * loss
            if not combine:
                scaled.backward()
                continue
            found = torch.autograd.grad(scaled, parameters, allow_unused=True)
            for total, gradient in zip(apart[name], found, strict=True):
                if gradient is not None:
                    total += gradient
    if combine:
        for parameter, gradient in zip(parameters, combine(apart["forget"], apart["retain"]), strict=True):
            parameter.grad = gradient
    return parts["forget"], parts["retain"] if companions is not None else None


def _adamw(settings: TrainerSettings):
    def build(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            list(parameters), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )

    return build


def _norm(parameters: Sequence[nn.Parameter]) -> float:
    norms = [parameter.grad.float().norm() for parameter in parameters if parameter.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


class _Snapshot:
    """A copy of the trained weights, kept up to date in place."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = parameters
        self.copies = [parameter.detach().clone() for parameter in parameters]
        self.step = 0

    def take(self, step: int) -> None:
        self.step = step
        with torch.no_grad():
            for kept, parameter in zip(self.copies, self.parameters, strict=True):
                kept.copy_(parameter)

    def restore(self) -> int:
        with torch.no_grad():
            for kept, parameter in zip(self.copies, self.parameters, strict=True):
                parameter.copy_(kept)
        return self.step
