"""The small network whose weights are the memory: its forward pass, and its gradient row by row.

For an MLP of depth L with weights W_1..W_L (X_1 = k, Z_l = X_l W_l, X_{l+1} = act(Z_l)) the gradient of the loss of one
token with respect to W_l is the outer product x_l^T g_l, so the pair (x_l, g_l) is all that is kept:

    plain head      f(k) = Z_L,            l = ||f(k) - v||^2,      g_L = 2 (Z_L - v)
    residual head   f(k) = k + LN(Z_L),    l = ||f(k) - v||^2 / 2,  g_L = (D h - sum h - n sum(h n)) / (D std),
                    n = (Z_L - mean) / std,  h = gamma * (LN(Z_L) - (v - k)),  D = width
    g_l = (g_{l+1} W_{l+1}^T) * act'(Z_l)

`clip` bounds the norm of every row g_l, of the true gradient: then a step cannot explode, and the closed form of a
chunk stays exact. A bias is one more input that is always 1.

Knows nothing about: sequences, chunks, decay.
Source: Behrouz et al. 2025, arXiv 2501.00663, sec. 3.1 (plain); Sun et al. 2024, arXiv 2407.04620, sec. 2.7 and its
public code (residual head, gradient through the layer norm).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rote.errors import InputError

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
HEADS = ("plain", "residual")
NORM_EPS = 1e-6  # of the layer norm inside f, as in the public code of TTT

Norm = tuple[Tensor, Tensor] | None  # gamma and beta of the residual head, (N, 1, width) each


@dataclass(frozen=True)
class MemoryFunction:
    """f: depth 1 is a linear memory, 2 the usual MLP, more is deeper. Hidden width = expansion * width."""

    depth: int = 2
    expansion: float = 2.0
    activation: str = "silu"
    head: str = "plain"
    bias: bool = False
    clip: float | None = None

    def __post_init__(self):
        if self.depth < 1:
            raise InputError(f"memory depth is {self.depth}: it must be 1 (linear) or more")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"unknown activation {self.activation!r}; use one of {', '.join(ACTIVATIONS)}")
        if self.head not in HEADS:
            raise InputError(f"unknown head {self.head!r}; use one of {', '.join(HEADS)}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip is {self.clip}: it must be positive, or none")

    def shapes(self, width: int) -> list[tuple[int, int]]:
        """Shapes of W_1..W_L for keys and values of this width; a bias is the last row of each."""
        hidden = max(1, round(width * self.expansion))
        sizes = [width, *[hidden] * (self.depth - 1), width]
        return [(first + self.bias, last) for first, last in pairwise(sizes)]

    def parameters(self, width: int) -> int:
        """Numbers in one memory of this width."""
        return sum(first * last for first, last in self.shapes(width))

    def extend(self, x: Float[Tensor, "N C d"]) -> Float[Tensor, "N C d+1"]:
        """x with the constant input of the bias, if there is one."""
        return F.pad(x, (0, 1), value=1.0) if self.bias else x

    def activate(self, z: Tensor) -> Tensor:
        if self.activation == "silu":
            return F.silu(z)
        return F.gelu(z, approximate="tanh" if self.activation == "gelu_tanh" else "none")

    def activate_with_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(act(z), act'(z)), both differentiable: the outer loss goes through the inner gradient."""
        if self.activation == "silu":
            sigmoid = z.sigmoid()
            value = z * sigmoid
            return value, torch.addcmul(sigmoid, value, 1 - sigmoid)
        if self.activation == "gelu":
            normal = 0.5 * (1 + torch.erf(z * 2**-0.5))
            return z * normal, normal + z * torch.exp(-0.5 * z * z) * (2 * torch.pi) ** -0.5
        scale = (2 / torch.pi) ** 0.5
        tanh = torch.tanh(scale * (z + 0.044715 * z**3))
        half = 0.5 * (1 + tanh)
        return z * half, half + 0.5 * z * (1 - tanh * tanh) * scale * (1 + 3 * 0.044715 * z * z)

    def finish(self, x: Float[Tensor, "N C d"], z: Float[Tensor, "N C d"], norm: Norm) -> Float[Tensor, "N C d"]:
        """f(x) from the last layer's Z_L."""
        if self.head == "plain":
            return z
        assert norm is not None
        gamma, beta = norm
        return x + F.layer_norm(z, z.shape[-1:], eps=NORM_EPS) * gamma + beta

    def forward(self, weights: list[Tensor], x: Float[Tensor, "N C d"], norm: Norm = None) -> Float[Tensor, "N C d"]:
        """f(x) for N memories at once; weights: (N, d_l, d_{l+1}) each."""
        z, last = x, len(weights) - 1
        for layer, weight in enumerate(weights):
            z = torch.bmm(self.extend(z), weight)
            if layer < last:
                z = self.activate(z)
        return self.finish(x, z, norm)

    def gradients(
        self, weights: list[Tensor], k: Float[Tensor, "N C d"], v: Float[Tensor, "N C d"], norm: Norm = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(inputs x_l, rows g_l) of every layer: `grad_{W_l}` of token c's loss is `inputs[l][c]^T rows[l][c]`.

        Rows are not clipped here: their norms are the surprise; see `clipped`.
        """
        inputs, slopes = [self.extend(k)], []
        z = torch.bmm(inputs[0], weights[0])
        for weight in weights[1:]:
            value, slope = self.activate_with_slope(z)
            slopes.append(slope)
            inputs.append(self.extend(value))
            z = torch.bmm(inputs[-1], weight)
        row = self._loss_gradient(z, k, v, norm)
        rows = [row]
        for weight, slope in zip(reversed(weights[1:]), reversed(slopes), strict=True):
            weight = weight[:, :-1] if self.bias else weight  # the constant input has no gradient below it
            row = torch.bmm(row, weight.transpose(1, 2)) * slope
            rows.append(row)
        return inputs, rows[::-1]

    def clipped(self, rows: list[Tensor]) -> list[Tensor]:
        """Rows with norm at most `clip`, each token and layer by itself: g min(1, clip / ||g||)."""
        if self.clip is None:
            return rows
        bound = self.clip
        return [row * (row.square().sum(-1, keepdim=True).clamp_min(bound * bound).rsqrt() * bound) for row in rows]

    def _loss_gradient(self, z: Tensor, k: Tensor, v: Tensor, norm: Norm) -> Tensor:
        if self.head == "plain":
            return 2 * (z - v)
        assert norm is not None
        gamma, beta = norm
        centred = z - z.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
        normal = centred / deviation
        h = (normal * gamma + beta - (v - k)) * gamma
        return (h - h.mean(-1, keepdim=True) - normal * (h * normal).mean(-1, keepdim=True)) / deviation


def surprise(inputs: list[Tensor], rows: list[Tensor]) -> Float[Tensor, "N C"]:
    """||u_t|| = sqrt(sum_l ||x_l||^2 ||g_l||^2), the Frobenius norm of one token's gradient over all layers."""
    pairs = zip(inputs, rows, strict=True)
    return torch.stack([x.detach().square().sum(-1) * g.detach().square().sum(-1) for x, g in pairs]).sum(0).sqrt()
