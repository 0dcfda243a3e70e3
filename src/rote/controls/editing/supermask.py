"""BalancedSubnet: learn which weights recite, from examples of what to forget and what to keep, and zero them.

    W' = W * m,   m = 0 for the `ratio` of entries with the smallest |s| of their layer, 1 elsewhere
    loss = -(1 - w) mean_{memorized} L + w mean_{clean} L,   L = a sequence's mean cross-entropy

The scores s have W's shape and start random (Kaiming-uniform, a = sqrt 5), so the first mask already removes `ratio` of
the weights at random. Only s is trained; m passes its gradient to |s| unchanged (straight-through). SGD with momentum.
A batch that happens to hold only one of the two kinds contributes that kind's term alone (a mean of nothing is not a
number). Needs examples of what to forget: unlike the curvature edit it cannot reach what it was not shown.

Knows nothing about: curvature, recitation.
Source: Sakarvadia et al. 2024, arXiv 2410.02159 (BalancedSubnet), in the form the card gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int

from rote.controls.editing.matrix_edit import MatrixEdit
from rote.errors import InputError, RoteError
from rote.internals.curvature.layers import MatrixLayer, default_layers, select_matrices
from rote.internals.curvature.passes import frozen
from rote.models.causal_lm import CausalLM


@dataclass(frozen=True)
class SupermaskSettings:
    """`ratio` of each layer's weights removed; `clean_weight` w of the loss; the rest is SGD on the scores."""

    ratio: float = 0.01
    clean_weight: float = 0.7
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise InputError(f"ratio is {self.ratio}: the share of weights to remove must lie between 0 and 1")
        if not 0.0 <= self.clean_weight <= 1.0:
            raise InputError(f"clean_weight is {self.clean_weight}: it must lie in [0, 1]")
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise InputError("epochs and batch_size must be 1 or more, learning_rate positive")


@dataclass(frozen=True)
class SupermaskReport:
    """An applied mask: weights removed per layer, the losses of every step, and the way back."""

    removed: dict[str, int]
    losses: Float[np.ndarray, " steps"]
    edit: MatrixEdit = field(repr=False, compare=False)

    def restore(self) -> None:
        self.edit.restore()

    def commit(self, directory: str | Path) -> Path:
        path = self.edit.commit(directory, {"method": "balanced-subnet", "removed": self.removed})
        self.edit.keep()
        return path

    def __enter__(self) -> SupermaskReport:
        return self

    def __exit__(self, *exception: object) -> None:
        self.edit.__exit__(*exception)


def hard_mask(scores: Float[torch.Tensor, "out in"], ratio: float) -> Float[torch.Tensor, "out in"]:
    """m: 0 at the floor(ratio * size) entries of smallest |s|, 1 elsewhere; d m / d |s| is taken to be 1."""
    strength = scores.abs()
    count = int(ratio * strength.numel())
    mask = torch.ones_like(strength)
    if count:
        lowest = strength.detach().flatten().topk(count, largest=False).indices
        mask.view(-1)[lowest] = 0.0
    return mask + strength - strength.detach()


def train_supermask(
    model: CausalLM,
    memorized: Int[np.ndarray, "windows tokens"],
    clean: Int[np.ndarray, "windows tokens"],
    *,
    layers: Sequence[str] = (),
    settings: SupermaskSettings | None = None,
    seed: int = 0,
    stop: Callable[[int], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SupermaskReport:
    """Learn the mask and write W * m into the model, in place.

    Args:
        memorized, clean: windows of equal length.
        layers: patterns; empty for `default_layers`.
        stop: called as stop(epochs done) after every epoch, with the mask so far written into the model; True ends the
            training there. The number of epochs is tuned in the paper too, and the loss has no lower bound: trained for
            too long, the mask destroys the model.
    Raises InputError for windows that do not fit or unusable layers; RoteError when the loss is not finite (the model
    is then as before).
    """
    settings = settings or SupermaskSettings()
    memorized, clean = np.asarray(memorized, np.int64), np.asarray(clean, np.int64)
    if memorized.ndim != 2 or clean.ndim != 2 or memorized.shape[1] != clean.shape[1] or memorized.shape[1] < 2:
        raise InputError(
            f"memorized and clean windows must be matrices of equal width, got {memorized.shape} and {clean.shape}"
        )
    if not len(memorized) or not len(clean):
        raise InputError("BalancedSubnet needs both memorized and clean windows")
    chosen = select_matrices(model.hf, tuple(layers) or default_layers(model.hf))
    generator = torch.Generator().manual_seed(seed)
    scores = {layer.name: _initial_scores(layer, generator) for layer in chosen}
    weights = {layer.name: layer.weight.clone() for layer in chosen}
    edit = MatrixEdit(model)
    optimizer = torch.optim.SGD(
        scores.values(), lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    windows = torch.from_numpy(np.concatenate([memorized, clean]))
    forget = torch.arange(len(windows)) < len(memorized)
    batches = math.ceil(len(windows) / settings.batch_size)
    losses = []
    with frozen(model.hf), _restoring(edit):
        for epoch in range(settings.epochs):
            order = torch.randperm(len(windows), generator=generator)
            for rows in order.split(settings.batch_size):
                masked = _masked(chosen, weights, scores, settings.ratio)
                per_sequence = _losses(model, masked, windows[rows].to(model.device))
                loss = balanced_loss(per_sequence, forget[rows].to(per_sequence.device), settings.clean_weight)
                if not math.isfinite(loss.item()):
                    raise RoteError("BalancedSubnet's loss is not finite; lower the learning rate or the ratio")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                if progress:
                    progress(len(losses), settings.epochs * batches)
            if stop is None and epoch + 1 < settings.epochs:
                continue
            removed = _write(edit, chosen, weights, scores, settings.ratio)
            if stop is not None and stop(epoch + 1):
                break
    return SupermaskReport(removed, np.array(losses), edit)


def balanced_loss(
    per_sequence: Float[torch.Tensor, " batch"], forget: Bool[torch.Tensor, " batch"], clean_weight: float
) -> Float[torch.Tensor, ""]:
    """-(1 - w) mean L over what to forget + w mean L over the rest; a kind that is absent contributes nothing."""
    loss = per_sequence.new_zeros(())
    if bool(forget.any()):
        loss = loss - (1 - clean_weight) * per_sequence[forget].mean()
    if bool((~forget).any()):
        loss = loss + clean_weight * per_sequence[~forget].mean()
    return loss


def _initial_scores(layer: MatrixLayer, generator: torch.Generator) -> torch.Tensor:
    """Kaiming-uniform with a = sqrt 5: uniform on +-1 / sqrt(inputs)."""
    bound = 1 / math.sqrt(layer.shape[1])
    scores = (torch.rand(layer.shape, generator=generator) * 2 - 1) * bound
    return scores.to(layer.stored.device).requires_grad_(True)


@contextmanager
def _restoring(edit: MatrixEdit) -> Iterator[None]:
    """After an error the model is as it was."""
    try:
        yield
    except BaseException:
        edit.restore()
        raise


def _masked(
    layers: Sequence[MatrixLayer], weights: dict[str, torch.Tensor], scores: dict[str, torch.Tensor], ratio: float
) -> dict[str, torch.Tensor]:
    """Parameter name -> W * m in the module's own orientation, with a graph to the scores."""
    masked = {}
    for layer in layers:
        W = weights[layer.name] * hard_mask(scores[layer.name], ratio).to(layer.stored.dtype)
        masked[f"{layer.name}.weight"] = W.T if layer.transposed else W
    return masked


def _losses(model: CausalLM, masked: dict[str, torch.Tensor], ids: torch.Tensor) -> Float[torch.Tensor, " batch"]:
    """Mean cross-entropy of every sequence with the masked weights in place of the model's own."""
    with torch.enable_grad():
        out = torch.func.functional_call(model.hf, masked, kwargs={"input_ids": ids[:, :-1], "use_cache": False})
        each = F.cross_entropy(out.logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(1)


@torch.no_grad()
def _write(
    edit: MatrixEdit,
    layers: Sequence[MatrixLayer],
    weights: dict[str, torch.Tensor],
    scores: dict[str, torch.Tensor],
    ratio: float,
) -> dict[str, int]:
    """Put W * m into the model; returns how many weights each layer lost."""
    removed = {}
    for layer in layers:
        mask = hard_mask(scores[layer.name], ratio).round()  # the straight-through terms cancel but for rounding
        removed[layer.name] = int((mask == 0).sum())
        edit.replace(layer, weights[layer.name] * mask)
    return removed
