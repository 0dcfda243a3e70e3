"""What each method computes on a batch: the losses of `losses`, on one model and, where needed, its frozen start.

Sequence likelihoods under the start model (NPO, DPO) are computed once per item before training; positions' logits and
states (KL, UNDIAL, RMU) come from a frozen copy, or, with LoRA, from the model with its adapters switched off.
Knows nothing about: optimisers, records, files.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rote.controls.editing.unlearning import losses
from rote.controls.editing.unlearning import settings as methods
from rote.controls.editing.unlearning.items import Batch, Item, collate
from rote.errors import InputError
from rote.runtime import derive_seed

RMU_DEPTH = 7 / 32  # layer 7 of the 32 of the models WMDP was made with


class Frozen:
    """The start model. `adapters` is the peft model whose base weights are the start model; None: a copy is made."""

    def __init__(self, hf: nn.Module, adapters: Any = None):
        self.adapters = adapters
        self.hf = hf if adapters is not None else copy.deepcopy(hf).eval().requires_grad_(False)

    def _off(self):
        return self.adapters.disable_adapter() if self.adapters is not None else nullcontext()

    def logits(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        with torch.no_grad(), self._off():
            return logits_of(self.hf, input_ids)

    def states(self, input_ids: Int[Tensor, "batch tokens"], layer: int) -> Float[Tensor, "batch tokens width"]:
        with torch.no_grad(), self._off():
            return states_of(self.hf, input_ids, layer)


class Objective(ABC):
    """Forget and retain loss of one method. Subclasses give `forget`; the retain loss is shared."""

    def __init__(self, hf: nn.Module, settings: methods.MethodSettings, *, adapters: Any = None):
        self.hf = hf
        self.settings = settings
        self.alpha = settings.alpha
        self.frozen = Frozen(hf, adapters) if self.uses_frozen else None

    @property
    def uses_frozen(self) -> bool:
        return self.settings.needs_retain and self.settings.retain_loss in ("kl", "embed_diff")

    def prepare(self, items: Sequence[Item], *, batch_size: int, device: torch.device) -> None:
        """Called once, before the first step; nothing by default."""
        return

    @abstractmethod
    def forget(self, batch: Batch) -> Float[Tensor, ""]:
        """The method's loss on a batch of the forget set."""

    def retain(self, batch: Batch) -> Float[Tensor, ""]:
        logits = logits_of(self.hf, batch.input_ids)
        if self.settings.retain_loss == "kl":
            assert self.frozen is not None
            return losses.kl_loss(logits, self.frozen.logits(batch.input_ids), batch.labels)
        return losses.nll_loss(logits, batch.labels)

    def after_step(self, epoch: float, retain_loss: float | None) -> None:
        """Called after every optimiser step with the epochs completed so far; nothing by default."""
        return


class Ascent(Objective):
    """GradAscent, GradDiff."""

    def forget(self, batch: Batch) -> Float[Tensor, ""]:
        return losses.gradient_ascent(logits_of(self.hf, batch.input_ids), batch.labels)


class Descent(Objective):
    """Fine-tuning: the anchor set is learned, not forgotten."""

    def forget(self, batch: Batch) -> Float[Tensor, ""]:
        return losses.nll_loss(logits_of(self.hf, batch.input_ids), batch.labels)


class Preference(Objective):
    """NPO, and DPO when `wins` (one preferred item for each forget item) are given."""

    def __init__(self, hf, settings, *, wins: Sequence[Item] | None = None, adapters: Any = None):
        super().__init__(hf, settings, adapters=adapters)
        self.wins = wins
        self.lose_reference = self.win_reference = torch.zeros(0)

    def prepare(self, items: Sequence[Item], *, batch_size: int, device: torch.device) -> None:
        self.lose_reference = _sequence_nll(self.hf, items, batch_size, device)
        if self.wins is not None:
            if len(self.wins) != len(items):
                raise InputError(f"{len(self.wins)} preferred answers for {len(items)} forget records: give one each")
            self.win_reference = _sequence_nll(self.hf, self.wins, batch_size, device)

    def forget(self, batch: Batch) -> Float[Tensor, ""]:
        beta: float = self.settings.beta  # pyright: ignore[reportAttributeAccessIssue]
        lose = losses.sequence_nll(logits_of(self.hf, batch.input_ids), batch.labels)
        lose_reference = self.lose_reference[batch.rows].to(lose)
        if self.wins is None:
            return losses.npo(lose, lose_reference, beta=beta)
        preferred = collate(self.wins, batch.rows, batch.input_ids.device)
        win = losses.sequence_nll(logits_of(self.hf, preferred.input_ids), preferred.labels)
        return losses.dpo(win, self.win_reference[batch.rows].to(win), lose, lose_reference, beta=beta)


class Simple(Objective):
    """SimNPO, WGA, SatImp, CE-U, PDU: a loss of the model's own logits."""

    def forget(self, batch: Batch) -> Float[Tensor, ""]:
        logits, s = logits_of(self.hf, batch.input_ids), self.settings
        match s:
            case methods.SimNPO():
                return losses.simnpo(logits, batch.labels, beta=s.beta, delta=s.delta)
            case methods.WGA():
                return losses.wga(logits, batch.labels, beta=s.beta)
            case methods.SatImp():
                return losses.satimp(logits, batch.labels, beta1=s.beta1, beta2=s.beta2)
            case methods.CEU():
                return losses.ce_u(logits, batch.labels, ignore_first=s.ignore_first)
            case methods.PDU():
                return losses.pdu(logits, batch.labels)
        raise InputError(f"no simple loss for {type(s).__name__}")

    def after_step(self, epoch: float, retain_loss: float | None) -> None:
        s = self.settings
        if isinstance(s, methods.PDU) and retain_loss is not None and epoch > s.warmup_epochs:
            assert s.eps is not None
            self.alpha = losses.dual_step(self.alpha, retain_loss, eps=s.eps, step=s.dual_step)


class Undial(Objective):
    """UNDIAL."""

    @property
    def uses_frozen(self) -> bool:
        return True

    def forget(self, batch: Batch) -> Float[Tensor, ""]:
        assert self.frozen is not None
        assert isinstance(self.settings, methods.UNDIAL)
        logits = logits_of(self.hf, batch.input_ids)
        return losses.undial(logits, self.frozen.logits(batch.input_ids), batch.labels, beta=self.settings.beta)


class Misdirection(Objective):
    """RMU: u is uniform on [0, 1)^d, scaled to unit norm, fixed by the seed."""

    def __init__(self, hf, settings: methods.RMU, *, seed: int, adapters: Any = None):
        super().__init__(hf, settings, adapters=adapters)
        self.layer = rmu_layer(hf, settings)
        generator = torch.Generator().manual_seed(derive_seed(seed, "rmu") % 2**63)
        direction = torch.rand(hf.get_input_embeddings().weight.shape[1], generator=generator)  # pyright: ignore
        self.target = settings.coefficient * direction / direction.norm()

    def forget(self, batch: Batch) -> Float[Tensor, ""]:
        hidden = states_of(self.hf, batch.input_ids, self.layer)
        return losses.rmu(hidden, self.target.to(hidden.device), batch.is_answer)

    def retain(self, batch: Batch) -> Float[Tensor, ""]:
        if self.settings.retain_loss != "embed_diff":
            return super().retain(batch)
        assert self.frozen is not None
        hidden = states_of(self.hf, batch.input_ids, self.layer)
        return losses.embed_diff(hidden, self.frozen.states(batch.input_ids, self.layer), batch.is_answer)


def rmu_layer(hf: nn.Module, settings: methods.RMU) -> int:
    """The decoder layer whose states RMU steers: the one given, or its default depth. Errors: `InputError`."""
    depth = len(decoder_layers(hf))
    layer = min(depth - 1, round(RMU_DEPTH * depth)) if settings.layer is None else settings.layer
    if not 0 <= layer < depth:
        raise InputError(f"rmu's layer {layer} does not exist: the model has layers 0 .. {depth - 1}")
    return layer


def objective_for(
    hf: nn.Module,
    settings: methods.MethodSettings,
    *,
    wins: Sequence[Item] | None = None,
    seed: int = 0,
    adapters: Any = None,
) -> Objective:
    """The objective of a method by its settings class; `wins` for IdkDPO and AltPO."""
    match settings:
        case methods.GradAscent() | methods.GradDiff():
            return Ascent(hf, settings, adapters=adapters)
        case methods.NPO():
            return Preference(hf, settings, adapters=adapters)
        case methods.IdkDPO() | methods.AltPO():
            if wins is None:
                raise InputError("a DPO method needs one preferred answer for each forget record")
            return Preference(hf, settings, wins=wins, adapters=adapters)
        case methods.RMU():
            return Misdirection(hf, settings, seed=seed, adapters=adapters)
        case methods.UNDIAL():
            return Undial(hf, settings, adapters=adapters)
        case methods.FineTune() | methods.TaskVector():
            return Descent(hf, settings, adapters=adapters)
    return Simple(hf, settings, adapters=adapters)


def logits_of(hf: nn.Module, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
    """Logits of every position, in the model's own precision; the losses go on in float32."""
    return hf(input_ids=input_ids, use_cache=False).logits


def states_of(hf: nn.Module, input_ids: Int[Tensor, "batch tokens"], layer: int) -> Float[Tensor, "batch tokens width"]:
    """The residual stream after decoder layer `layer` (0-based), before any final norm."""
    caught: list[Tensor] = []

    def catch(_module, _inputs, output):
        caught.append(output[0] if isinstance(output, tuple) else output)

    handle = decoder_layers(hf)[layer].register_forward_hook(catch)
    try:
        hf(input_ids=input_ids, use_cache=False)
    finally:
        handle.remove()
    return caught[0]


def decoder_layers(hf: nn.Module) -> nn.ModuleList:
    """The list of decoder layers, found by its length. Errors: `InputError` for an architecture without one."""
    depth = hf.config.get_text_config().num_hidden_layers  # pyright: ignore
    for module in hf.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise InputError(f"{type(hf).__name__} has no list of {depth} decoder layers: choose a method without a layer")


def _sequence_nll(hf: nn.Module, items: Sequence[Item], batch_size: int, device: torch.device) -> Float[Tensor, " n"]:
    training = hf.training
    hf.eval()
    found = torch.zeros(len(items))
    with torch.no_grad():
        for start in range(0, len(items), batch_size):
            rows = np.arange(start, min(start + batch_size, len(items)))
            batch = collate(items, rows, device)
            found[rows] = losses.sequence_nll(logits_of(hf, batch.input_ids), batch.labels).float().cpu()
    hf.train(training)
    return found
