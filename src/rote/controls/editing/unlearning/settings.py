"""What can be set: the training recipe, LoRA, and one settings class for every unlearning method.

Total loss = gamma * forget_loss + alpha * retain_loss; the losses and their sources are in `losses`. The defaults are
those of the field's public suite (OpenUnlearning, arXiv 2506.12618). They are starting points, not a ranking: on small
models ten epochs at 1e-5 are known to over-unlearn, so report tuned numbers too.

Knows nothing about: models, torch. Printable, comparable, JSON-able.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

from rote.errors import InputError

RetainLoss = Literal["none", "nll", "kl", "embed_diff"]


@dataclass(frozen=True)
class TrainerSettings:
    """The recipe of one run. Defaults: TOFU's (Maini et al. 2024, arXiv 2401.06121; the public suite's configuration).

    steps           optimiser steps; None: `epochs` passes over the forget set.
    batch_size      forget items per step, each paired with one random retain item (the *effective* batch).
    micro_batch_size  items in one forward pass; None: all of the batch. Gradients are weighted by items.
    warmup          share of the steps in which the rate rises linearly from 0 (TOFU: 1 epoch of 10).
    schedule        after the warm-up: "linear" to 0, or "constant" (MUSE).
    clip_norm       gradients are scaled down to this global norm; None: never.
    parameters      regular expressions; only parameters whose name one of them matches are trained. None: all.
    layers          only parameters of these decoder layers (0-based) are trained. None: all.
    dropout         train with the checkpoint's dropout. Off by default, so that a method's reference is exact.
    long            "error" or "truncate": what to do with a record longer than the context window.
    snapshot_every  steps between copies of the trained weights, to which a diverged run returns.
    """

    steps: int | None = None
    epochs: float = 10.0
    batch_size: int = 32
    micro_batch_size: int | None = None
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Literal["linear", "constant"] = "linear"
    clip_norm: float | None = 1.0
    parameters: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    dropout: bool = False
    long: Literal["error", "truncate"] = "error"
    snapshot_every: int = 1

    def __post_init__(self):
        _at_least("batch_size", self.batch_size, 1)
        _at_least("snapshot_every", self.snapshot_every, 1)
        for name in ("steps", "micro_batch_size"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("epochs", "learning_rate"):
            _positive(name, getattr(self, name))
        if self.clip_norm is not None:
            _positive("clip_norm", self.clip_norm)
        _at_least("weight_decay", self.weight_decay, 0.0)
        if not 0.0 <= self.warmup <= 1.0:
            raise InputError(f"warmup is a share of the steps and must lie in [0, 1], not {self.warmup}")
        _one_of("schedule", self.schedule, ("linear", "constant"))
        _one_of("long", self.long, ("error", "truncate"))

    def steps_for(self, items: int) -> int:
        """Optimiser steps over a set of `items`: given, or `epochs` times the batches of one pass."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil(self.epochs * self.steps_per_epoch(items)))

    def steps_per_epoch(self, items: int) -> int:
        return max(1, math.ceil(items / self.batch_size))

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Rate of step `step` (from 0): warm-up over the first warmup * steps, then the schedule."""
        warm = round(self.warmup * steps)
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (steps - step) / max(1, steps - warm)


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters through peft (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) B A, only A and B are
    trained, without dropout.

    target_modules: names as peft takes them; None is every linear layer but the head. merge: write the adapters into
    the weights at the end, so that a plain checkpoint comes out; otherwise the adapter stays on the model.
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: tuple[str, ...] | None = None
    merge: bool = True

    def __post_init__(self):
        _at_least("rank", self.rank, 1)
        _positive("alpha", self.alpha)


@dataclass(frozen=True)
class MethodSettings:
    """gamma, alpha and the retain loss: "nll" (mean CE), "kl" (KL to the start model), "embed_diff" (RMU), "none"."""

    gamma: float = 1.0
    alpha: float = 1.0
    retain_loss: RetainLoss = "nll"
    recipe: ClassVar[Mapping[str, Any]] = {}  # what this method changes in TrainerSettings by default

    def __post_init__(self):
        _one_of("retain_loss", self.retain_loss, ("none", "nll", "kl", "embed_diff"))
        for name in ("gamma", "alpha"):
            _at_least(name, getattr(self, name), 0.0)
        if self.retain_loss == "embed_diff" and not isinstance(self, RMU):
            raise InputError("retain_loss 'embed_diff' compares hidden states of RMU's layer: use it with method rmu")

    @property
    def needs_retain(self) -> bool:
        return self.retain_loss != "none" and self.alpha > 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class GradAscent(MethodSettings):
    """-CE(D_f), no retain term: destroys the model when it runs long. A baseline."""

    retain_loss: RetainLoss = "none"


@dataclass(frozen=True)
class GradDiff(MethodSettings):
    """-gamma CE(D_f) + alpha L_r. gamma 1, alpha 1, NLL."""


@dataclass(frozen=True)
class NPO(MethodSettings):
    """Negative preference optimisation. beta .1, gamma 1, alpha 1: small beta is close to gradient ascent."""

    beta: float = 0.1


@dataclass(frozen=True)
class SimNPO(MethodSettings):
    """NPO without a reference, length-normalised. beta 4.5, delta 0, gamma .125, alpha 1."""

    gamma: float = 0.125
    beta: float = 4.5
    delta: float = 0.0


@dataclass(frozen=True)
class IdkDPO(MethodSettings):
    """DPO: a refusal is preferred to the answer. beta .1. Records need prefix and suffix; one refusal each, by seed."""

    beta: float = 0.1


@dataclass(frozen=True)
class AltPO(MethodSettings):
    """DPO: a plausible other answer is preferred. beta .1 (tuned range .05-.5; alpha 1-5)."""

    beta: float = 0.1


@dataclass(frozen=True)
class RMU(MethodSettings):
    """Steer layer l's states of the forget set to c u, hold the retain set's. c 2 (suite; its class default is 20).

    layer: None is 7 of 32 layers, rescaled to the model's depth [derived]. Trains all parameters, as the suite does;
    the authors' own scripts train only the MLP output matrices of layers l-2 .. l (`TrainerSettings.parameters`).
    Recipe: WMDP's, 80 steps of 16 at 5e-5.
    """

    retain_loss: RetainLoss = "embed_diff"
    layer: int | None = None
    coefficient: float = 2.0
    recipe: ClassVar[Mapping[str, Any]] = {"steps": 80, "batch_size": 16, "learning_rate": 5e-5}


@dataclass(frozen=True)
class UNDIAL(MethodSettings):
    """Self-distillation towards logits with the true token damped by beta. beta 10, alpha 0, rate 1e-4."""

    alpha: float = 0.0
    beta: float = 10.0
    recipe: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4}


@dataclass(frozen=True)
class WGA(MethodSettings):
    """Gradient ascent weighted by p^beta. beta 1, gamma 1, alpha 1, 5 epochs."""

    beta: float = 1.0
    recipe: ClassVar[Mapping[str, Any]] = {"epochs": 5.0}


@dataclass(frozen=True)
class SatImp(MethodSettings):
    """Gradient ascent weighted by p^beta1 (1 - p)^beta2. beta1 5, beta2 1; gamma .1, alpha 1 (the suite's
    configuration; its text says gamma 1, alpha .1: both are settings here)."""

    gamma: float = 0.1
    beta1: float = 5.0
    beta2: float = 1.0


@dataclass(frozen=True)
class CEU(MethodSettings):
    """Cross-entropy to the distribution without the true token; the first answer token is left out; no retain term."""

    retain_loss: RetainLoss = "none"
    ignore_first: int = 1


@dataclass(frozen=True)
class PDU(MethodSettings):
    """Flat logits on the forget set subject to L_r <= eps. alpha is the multiplier's first value; after
    `warmup_epochs` it moves by `dual_step` (L_r - eps) after every optimiser step."""

    eps: float | None = None  # required: what retain loss is acceptable, nats per token
    dual_step: float = 1.0
    warmup_epochs: float = 5.0

    def __post_init__(self):
        super().__post_init__()
        if self.eps is None:
            raise InputError("pdu needs eps, the retain loss (nats per token) that must be kept; try 1.1 times today's")
        if self.retain_loss == "none":
            raise InputError("pdu is a constrained method: it needs a retain loss, not retain_loss 'none'")

    @property
    def needs_retain(self) -> bool:
        return True


@dataclass(frozen=True)
class TaskVector(MethodSettings):
    """theta - a (theta_ft(D_f) - theta): over-fit a copy on the forget set and go the other way. a = 5 (the MUSE
    script; its leaderboard used 512), 10 epochs. MUSE's rate is constant."""

    retain_loss: RetainLoss = "none"
    scale: float = 5.0
    recipe: ClassVar[Mapping[str, Any]] = {"schedule": "constant", "warmup": 0.0}


@dataclass(frozen=True)
class FineTune(MethodSettings):
    """Baseline: CE on the retain set, nothing else."""

    @property
    def needs_retain(self) -> bool:
        return True


@dataclass(frozen=True)
class Retrain(FineTune):
    """Baseline: random weights, then CE on the retain set. The oracle, if retain is all the other training data."""


Settings = TypeVar("Settings")


def settings_from(kind: type[Settings], values: Settings | Mapping[str, Any] | None, *, what: str) -> Settings:
    """An instance of a settings class from itself, a mapping, or nothing. Errors: `InputError` with the nearest
    name."""
    if values is None:
        return kind()
    if isinstance(values, kind):
        return values
    if not isinstance(values, Mapping):
        raise InputError(f"{what} takes {kind.__name__} or a mapping of its fields, not {type(values).__name__}")
    known = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise InputError(f"{what} has no setting {name!r}; {hint}")
    return kind(**values)


def recipe_for(method: MethodSettings, given: TrainerSettings | Mapping[str, Any] | None) -> TrainerSettings:
    """The trainer's settings: those given, or the defaults with what the method changes."""
    if isinstance(given, TrainerSettings):
        return given
    values = {**type(method).recipe, **(given or {})}
    if given and "epochs" in given and "steps" not in given:
        values.pop("steps", None)  # the method's own number of steps must not overrule the epochs asked for
    return settings_from(TrainerSettings, values, what="the trainer")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be positive, not {value}")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise InputError(f"{name} must be at least {least:g}, not {value}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}, not {value!r}")
