"""Trained networks as exact ones: `torch.nn.Sequential(Linear, ReLU, .., Linear)`, or its weights in safetensors.

Every float is a fraction, so the exact network is the function the weights define over the real numbers; rounding
inside a forward pass is not part of it.
Deliberately does not load anything but safetensors, and knows no other architecture.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rote.errors import InputError
from rote.theory.exact_network import ExactLayer, ExactNetwork, Number


def from_weights(
    pairs: list[tuple[Float[np.ndarray, "outputs inputs"], Float[np.ndarray, " outputs"]]],
) -> ExactNetwork:
    """The exact network of (weight, bias) pairs, ReLU between them."""
    layers = []
    for number, (weight, bias) in enumerate(pairs, 1):
        if weight.ndim != 2 or bias.shape != (weight.shape[0],):
            raise InputError(f"layer {number}: weight {weight.shape} and bias {bias.shape} do not belong together")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise InputError(f"layer {number} holds NaN or infinity; the training diverged")
        rows: tuple[dict[int, Number], ...] = tuple(
            {j: Fraction(float(w)) for j, w in enumerate(row) if w} for row in weight.astype(np.float64)
        )
        layers.append(ExactLayer(rows, tuple(Fraction(float(b)) for b in bias.astype(np.float64)), weight.shape[1]))
    return ExactNetwork(tuple(layers))


def from_torch(module: Any) -> ExactNetwork:
    """The exact network of a torch Sequential of Linear layers with ReLU between them (Flatten, Identity and Dropout
    are left out). Errors: InputError for any other module."""
    import torch

    pairs, activated = [], True
    for child in module if isinstance(module, torch.nn.Sequential) else [module]:
        if isinstance(child, torch.nn.Linear):
            if not activated:
                raise InputError("two Linear layers follow each other without a ReLU; merge them first")
            weight = child.weight.detach().double().cpu().numpy()
            bias = child.bias.detach().double().cpu().numpy() if child.bias is not None else np.zeros(len(weight))
            pairs.append((weight, bias))
            activated = False
        elif isinstance(child, torch.nn.ReLU) and not activated:
            activated = True
        elif not isinstance(child, (torch.nn.Flatten, torch.nn.Identity, torch.nn.Dropout)):
            raise InputError(f"{type(child).__name__} is not supported; certification takes Linear and ReLU only")
    if not pairs or activated:
        raise InputError("the network must end in a Linear layer (class scores or one output), not in a ReLU")
    return from_weights(pairs)


def load_sequential(path: str | Path) -> ExactNetwork:
    """The exact network of a state dict of such a Sequential, saved as safetensors: N.weight, N.bias in order of N."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give the .safetensors of a Sequential of Linear and ReLU")
    try:
        state = load_file(str(path))
    except SafetensorError:
        raise InputError(f"{path}: not a safetensors file") from None
    numbers: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(?:.*\.)?(\d+)\.(weight|bias)", name)
        if not found:
            raise InputError(f"{path}: tensor {name!r} is not N.weight or N.bias of a Sequential of Linear and ReLU")
        numbers.setdefault(int(found[1]), {})[found[2]] = tensor.double().numpy()
    pairs = []
    for number in sorted(numbers):
        weight = numbers[number].get("weight")
        if weight is None or weight.ndim != 2:
            raise InputError(f"{path}: layer {number} has no weight matrix")
        pairs.append((weight, numbers[number].get("bias", np.zeros(len(weight)))))
    return from_weights(pairs)
