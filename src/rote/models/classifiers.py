"""Small classifiers, and the one loop that trains any classifier by SGD: used for training, unlearning and proxies.

A classifier is any `torch.nn.Module` that maps inputs [batch, ...] to logits [batch, classes] (or to an object with
`logits`). Examples are tensors in memory; ids are their row numbers. Deterministic for a seed on one number of threads.
Knows nothing about: memorization, files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

    # observer(ids, train-mode logits of this very step, labels), before the update
    Observer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


class Examples(NamedTuple):
    """Inputs and their labels, row by row."""

    x: Float[torch.Tensor, "examples ..."]
    y: Int[torch.Tensor, " examples"]

    def rows(self, ids: np.ndarray | Sequence[int]) -> Examples:
        """The examples with these row numbers, in that order."""
        import torch

        chosen = torch.as_tensor(np.asarray(ids, dtype=np.int64), device=self.x.device)
        return Examples(self.x[chosen], self.y[chosen])


@dataclass(frozen=True)
class SgdRecipe:
    """SGD with momentum. `schedule` cosine: eta_e = eta (1 + cos(pi e / E)) / 2, stepped once an epoch; or constant."""

    learning_rate: float = 0.1
    epochs: int = 30
    batch_size: int = 50
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}: it must be positive")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise InputError("momentum must lie in [0, 1) and weight_decay must not be negative")
        if self.schedule not in ("cosine", "constant"):
            raise InputError(f"unknown schedule {self.schedule!r}; choose cosine or constant")

    def learning_rate_at(self, epoch: int) -> float:
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


@dataclass(frozen=True)
class ClassifierSpec:
    """A built-in architecture: `mlp` (Linear-ReLU stack) or `cnn` (3 x 3 convolution, group norm, ReLU, halving; then a
    linear head). `hidden`: widths of the layers, or channels of the blocks."""

    architecture: str
    input_shape: tuple[int, ...]
    classes: int
    hidden: tuple[int, ...] = field(default=(128,))

    def __post_init__(self):
        if self.architecture not in ("mlp", "cnn"):
            raise InputError(f"unknown architecture {self.architecture!r}; choose mlp or cnn")
        if self.classes < 2 or not self.hidden or min(self.hidden) < 1 or min(self.input_shape, default=0) < 1:
            raise InputError("a classifier needs 2 classes or more, and positive sizes")
        if self.architecture == "cnn" and len(self.input_shape) not in (2, 3):
            raise InputError(f"a cnn needs images [channels, height, width], got input shape {self.input_shape}")

    def build(self, seed: int = 0) -> nn.Module:
        """The network with PyTorch's default initialisation drawn from this seed; the global generator is untouched."""
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            if self.architecture == "mlp":
                sizes = [math.prod(self.input_shape), *self.hidden]
                layers: list[nn.Module] = [nn.Flatten()]
                for narrow, wide in pairwise(sizes):
                    layers += [nn.Linear(narrow, wide), nn.ReLU()]
                return nn.Sequential(*layers, nn.Linear(sizes[-1], self.classes))
            shape = self.input_shape if len(self.input_shape) == 3 else (1, *self.input_shape)
            channels = [shape[0], *self.hidden]
            layers = [] if len(self.input_shape) == 3 else [nn.Unflatten(1, (1, self.input_shape[0]))]
            for narrow, wide in pairwise(channels):
                layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.GroupNorm(1, wide), nn.ReLU()]
                layers += [nn.MaxPool2d(2, ceil_mode=True)]
            area = math.prod(-(-side // 2 ** len(self.hidden)) for side in shape[1:])
            return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * area, self.classes))


def logits_of(model: nn.Module, x: torch.Tensor) -> Float[torch.Tensor, "batch classes"]:
    """The model's logits, also when it answers with an object that has them (Hugging Face classifiers)."""
    found = model(x)
    return found.logits if hasattr(found, "logits") else found


def shuffled_batches(count: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """One epoch: every row once, in a drawn order, in batches (the last may be smaller)."""
    import torch

    return torch.randperm(count, generator=generator).split(size)


def sgd_of(model: nn.Module, recipe: SgdRecipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the parameters that train."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("the model has no parameter that trains; set requires_grad_(True)")
    return torch.optim.SGD(
        parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def fit(
    model: nn.Module,
    data: Examples,
    recipe: SgdRecipe,
    *,
    seed: int = 0,
    observers: Sequence[Observer] = (),
    on_epoch: Callable[[int, float], bool | None] | None = None,
) -> nn.Module:
    """Train in place by cross-entropy; returns the model, in eval mode.

    `observers` see (row numbers, train-mode logits, labels) of every step before its update;
    `on_epoch(epoch, mean running loss)` may return True to stop.
    Errors: `InputError` for labels the model has no class for, or a loss that is not a number.
    """
    import torch
    from torch.nn.functional import cross_entropy

    check_examples(model, data)
    optimizer = sgd_of(model, recipe)
    generator = torch.Generator().manual_seed(seed % 2**63)
    model.train()
    with torch.random.fork_rng(devices=_cuda(data.x)):
        torch.manual_seed(seed % 2**63)
        for epoch in range(recipe.epochs):
            set_learning_rate(optimizer, recipe.learning_rate_at(epoch))
            total = 0.0
            for ids in shuffled_batches(len(data.y), recipe.batch_size, generator):
                logits, labels = logits_of(model, data.x[ids]), data.y[ids]
                loss = cross_entropy(logits, labels)
                for observer in observers:
                    observer(ids, logits.detach(), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(ids)
            mean = finite_loss(total, epoch) / len(data.y)
            if on_epoch is not None and on_epoch(epoch, mean):
                break
    return model.eval()


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def finite_loss(total: object, epoch: int) -> float:
    """An epoch's summed loss as a number. Errors: `InputError` when training diverged."""
    value = float(total)  # type: ignore[arg-type]
    if not math.isfinite(value):
        raise InputError(f"the loss is {value} in epoch {epoch + 1}: training diverged; lower the learning rate")
    return value


def check_examples(model: nn.Module, data: Examples) -> int:
    """The model's number of classes. Errors: `InputError` for no examples, a shape it cannot read, unknown labels."""
    import torch

    if len(data.y) == 0 or len(data.x) != len(data.y):
        raise InputError(f"{len(data.x)} inputs with {len(data.y)} labels: give one label for each, at least one")
    was_training = model.training
    try:
        with torch.no_grad():
            classes = logits_of(model.eval(), data.x[:2]).shape[-1]
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"the model cannot read inputs of shape {tuple(data.x.shape[1:])}: {first}") from None
    finally:
        model.train(was_training)
    low, high = int(data.y.min()), int(data.y.max())
    if low < 0 or high >= classes:
        raise InputError(f"labels run from {low} to {high}, but the model has classes 0..{classes - 1}")
    return classes


def probabilities(
    model: nn.Module, x: Float[torch.Tensor, "examples ..."], *, batch_size: int = 1024
) -> Float[np.ndarray, "examples classes"]:
    """softmax of the logits in eval mode, in float64 from float32 logits; the model's mode is restored."""
    import torch

    was_training = model.training
    model.eval()
    with torch.no_grad():
        blocks = [logits_of(model, block).double().softmax(-1).cpu() for block in x.split(batch_size)]
    model.train(was_training)
    return torch.cat(blocks).numpy()


def penultimate(
    model: nn.Module, x: Float[torch.Tensor, "examples ..."], *, batch_size: int = 1024
) -> Float[np.ndarray, "examples d"]:
    """The input of the model's last linear layer, in eval mode: the features of the entanglement score."""
    import torch
    from torch import nn

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError("the model has no linear layer; its penultimate features are not defined")
    seen: list[torch.Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(1).cpu()))
    try:
        probabilities(model, x, batch_size=batch_size)
    finally:
        handle.remove()
    return torch.cat(seen).double().numpy()


def _cuda(x: torch.Tensor) -> list[int]:
    return [x.device.index or 0] if x.device.type == "cuda" else []
