"""A causal transformer without positions whose weights are q-digit decimals: the object of the conditions, in PyTorch.

    z_i = E[x_i];  per layer  z += W_O concat_h sum_{j<=i} softmax_j(q_i . k_j / sqrt(d_h)) v_j,
                              z += W_2 ReLU(W_1 z + b);
    logits = W_U z_n, or W_U z_n + V ReLU(U z_n + c) with a read-out layer  (T + 1 rows, the last is gamma_0)

Every weight is k * 10^-q with |weight| <= 10^q and is kept as the integer k, so what is saved is exact. Parameters:
layers (4 d^2 + 2 d m + m) + T d + d (T + 1), and r (d + T + 2) for a read-out layer of r units; d = 96, m = 4 d, 2
layers, T = 2 give 222,432.
Source: the model of Yu, Gao and Zhang 2025 (arXiv 2511.01190, section 3) [read]; shape and initial scale [derived].

Knows nothing about: datasets, conditions, training.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from rote.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Scales of the random body. Almost uniform attention with large values tells short words apart best: with all scales 1
# the nearest two words of up to 5 letters are 0.3 to 0.7 apart, and the bound on the evaluation error is 100 times
# larger.
SCALES = {
    "embed": 0.3, "query": 0.3, "key": 0.3, "value": 4.0, "out": 1.0, "up": 1.0, "bias": 1.0, "down": 0.5, "unembed": 0,
}  # fmt: skip
MOST_DIGITS = 7  # k up to 10^14: a float64 holds k exactly, and k / 10^q is then the nearest double


@dataclass(frozen=True)
class Shape:
    """Size of the transformer. width must be a multiple of heads; mlp is the number of hidden ReLU units of a layer,
    readout that of the read-out layer (0: none)."""

    symbols: int
    width: int = 96
    layers: int = 2
    heads: int = 2
    mlp: int = 384
    readout: int = 0

    def __post_init__(self):
        sizes = (self.symbols, self.width, self.layers, self.heads, self.mlp, self.readout + 1)
        if min(sizes) < 1 or self.width % self.heads:
            raise InputError(f"transformer shape {asdict(self)}: sizes must be positive and heads divide the width")

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight array, in a fixed order."""
        d, m = self.width, self.mlp
        found: dict[str, tuple[int, ...]] = {"embed": (self.symbols, d)}
        for layer in range(self.layers):
            found |= {f"{layer}.{name}": (d, d) for name in ("query", "key", "value", "out")}
            found |= {f"{layer}.up": (m, d), f"{layer}.bias": (m,), f"{layer}.down": (d, m)}
        if self.readout:
            r = self.readout
            found |= {"readout.up": (r, d), "readout.bias": (r,), "readout.down": (self.symbols + 1, r)}
        return found | {"unembed": (self.symbols + 1, d)}

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.weights().values())


def random_integers(shape: Shape, *, digits: int, seed: int) -> dict[str, np.ndarray]:
    """Body weights drawn N(0, s^2 / fan_in) with the scales s below, rounded to q decimals, as integers k; the read-out
    is zero."""
    rng = np.random.default_rng(seed)
    limit = 10 ** (2 * digits)
    found = {}
    for name, size in shape.weights().items():
        drawn = rng.standard_normal(size) * SCALES[name.rpartition(".")[2]]
        if len(size) == 2 and name != "embed":
            drawn *= size[1] ** -0.5
        integers = np.rint(drawn * 10**digits).astype(np.int64)
        found[name] = np.clip(integers, -limit, limit) if name != "unembed" else np.zeros_like(integers)
    return found


class FixedPrecisionTransformer(nn.Module):
    """The transformer in float64 from integer weights. `forward` gives the logits at the last position.

    Errors: InputError when a weight is missing, has another shape, or exceeds 10^q in absolute value, or q > 7.
    """

    def __init__(self, shape: Shape, integers: dict[str, np.ndarray], *, digits: int):
        super().__init__()
        if not 1 <= digits <= MOST_DIGITS:
            raise InputError(f"digits is {digits}; weights of 1 to {MOST_DIGITS} digits can be evaluated")
        self.shape, self.digits, self.integers = shape, digits, dict(integers)
        for name, size in shape.weights().items():
            array = integers.get(name)
            if array is None or array.shape != size or array.dtype != np.int64:
                raise InputError(f"transformer weights: {name} must be integers (int64) of shape {size}")
            if np.abs(array).max(initial=0) > 10 ** (2 * digits):
                raise InputError(f"transformer weights: {name} has a weight above 10^{digits} in absolute value")
            weight = torch.from_numpy(array.astype(np.float64) / 10.0**digits)
            self.register_buffer(name.replace(".", "_"), weight)

    def weight(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "_"))

    def features(self, words: Int[torch.Tensor, "batch length"]) -> Float[torch.Tensor, "batch width"]:
        """z_n, the residual stream at the last position, of words of one length."""
        shape = self.shape
        z = self.weight("embed")[words]
        batch, length, width = z.shape
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for layer in range(shape.layers):
            query, key, value = (
                (z @ self.weight(f"{layer}.{name}").T).view(batch, length, shape.heads, -1).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            scores = query @ key.transpose(-1, -2) / math.sqrt(width // shape.heads)
            mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
            z = z + mixed.transpose(1, 2).reshape(batch, length, width) @ self.weight(f"{layer}.out").T
            hidden = (z @ self.weight(f"{layer}.up").T + self.weight(f"{layer}.bias")).relu()
            z = z + hidden @ self.weight(f"{layer}.down").T
        return z[:, -1]

    def forward(self, words: Int[torch.Tensor, "batch length"]) -> Float[torch.Tensor, "batch outputs"]:
        return self.read(self.features(words))

    def read(self, z: Float[torch.Tensor, "batch width"]) -> Float[torch.Tensor, "batch outputs"]:
        """Logits from last-position features."""
        logits = z @ self.weight("unembed").T
        if self.shape.readout:
            hidden = (z @ self.weight("readout.up").T + self.weight("readout.bias")).relu()
            logits = logits + hidden @ self.weight("readout.down").T
        return logits


def features_of(model: FixedPrecisionTransformer, words: list[tuple[int, ...]]) -> Float[np.ndarray, "words width"]:
    """Last-position features of words of any lengths, in their order; one batch for each length."""
    found = np.empty((len(words), model.shape.width))
    for length in sorted(set(map(len, words))):
        rows = [row for row, word in enumerate(words) if len(word) == length]
        with torch.no_grad():
            found[rows] = model.features(torch.tensor([words[row] for row in rows])).numpy()
    return found
