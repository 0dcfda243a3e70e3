"""Input loss curvature: how fast the input gradient of an example's loss turns along its own sign direction.

Knows nothing about: weight curvature (that is `rote.internals.curvature`), training.
Sources: Garg et al. 2024, arXiv 2307.05831 (curvature averaged over epochs); Moosavi-Dezfooli et al. 2019 (CURE), arXiv
1811.09716 (the finite difference); Zhao & Triantafillou 2024, arXiv 2410.16516 (as a proxy).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.models.classifiers import Examples, logits_of

if TYPE_CHECKING:
    import torch
    from torch import nn

_GUARD = 1e-7


def loss_curvature(
    model: nn.Module,
    x: Float[torch.Tensor, "examples ..."],
    y: Int[torch.Tensor, " examples"],
    *,
    h: float = 0.01,
    batch_size: int = 512,
) -> Float[np.ndarray, " examples"]:
    """|| grad_x l(x + z, y) - grad_x l(x, y) ||_2, z = h sign(g) / (||sign(g)||_2 + 1e-7), g = grad_x l(x, y).

    Not divided by h (as the proxy's authors compute it): divide to compare values at different h. Eval mode; the
    model's mode is restored. Two forward and backward passes.
    Errors: `InputError` for inputs that are not floating point (a gradient with respect to ids does not exist).
    """
    import torch

    if not x.is_floating_point():
        raise InputError(f"curvature needs floating-point inputs, got {x.dtype}; take it with respect to embeddings")
    if not h > 0:
        raise InputError(f"h is {h}: it must be positive")
    was_training = model.training
    model.eval()
    found = []
    for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        g = _input_gradient(model, inputs, labels)
        sign = g.sign()
        norm = sign.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
        moved = _input_gradient(model, inputs + h * sign / (norm + _GUARD), labels)
        found.append((moved - g).flatten(1).norm(dim=1).double().cpu())
    model.train(was_training)
    return torch.cat(found).numpy()


def _input_gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn.functional import cross_entropy

    with torch.enable_grad():
        inputs = x.detach().requires_grad_(True)
        loss = cross_entropy(logits_of(model, inputs), y, reduction="sum")  # rows do not mix in eval mode
        return torch.autograd.grad(loss, inputs)[0]


class CurvatureRecorder:
    """Mean over epochs of `loss_curvature`: pass it as `on_epoch` of `rote.models.classifiers.fit`.

    `seconds` is the wall-clock it took.
    """

    def __init__(self, model: nn.Module, data: Examples, *, h: float = 0.01):
        self.seconds, self.epochs = 0.0, 0
        self._model, self._data, self._h = model, data, h
        self._sum = np.zeros(len(data.y))

    def __call__(self, epoch: int, loss: float) -> None:
        start = time.perf_counter()
        self._sum += loss_curvature(self._model, self._data.x, self._data.y, h=self._h)
        self.epochs += 1
        self.seconds += time.perf_counter() - start

    def scores(self) -> Float[np.ndarray, " examples"]:
        if not self.epochs:
            raise InputError("no epoch was recorded; pass the recorder as on_epoch")
        return self._sum / self.epochs
