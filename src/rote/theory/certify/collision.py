"""A necessary test on any network's first layer: two points of two balls that it cannot tell apart.

    rho_ub = min over pairs with different labels of ||P (x_i - x_j)||_2 / (2 eps_D),  P = projection onto W1's rows.

Prop. 3.2 of Kim, Moon, Yun 2025 (arXiv 2510.24643) made instance-wise [inferred]: with v = P(x_i - x_j) the points
x_i - v/2 and x_j + v/2 have the same W1 x, and lie in the balls as soon as mu > ||v||/2. So no network with this first
layer, whatever follows, is rho-robust for rho > rho_ub.
Deliberately knows nothing about the other layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist

from rote.errors import InputError
from rote.theory.exact_network import ExactNetwork
from rote.theory.robust.definitions import separation

BLOCK = 1024


@dataclass(frozen=True)
class CollisionBound:
    """rho_ub, the pair (i, j) that gives it, the two colliding points, their distance from x_i and x_j, and max
    |W1 x' - W1 x''| as computed (rounding only)."""

    rho_upper: float
    pair: tuple[int, int]
    points: tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]
    distance: float
    residual: float


def collision_bound(
    network: Any, X: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], *, rank_tolerance: float = 1e-10
) -> CollisionBound:
    """rho_ub of a network: a torch module (its first Linear), an ExactNetwork, a memorizer, or the matrix W1 itself.

    rank_tolerance: singular values below this share of the largest count as zero; W1 is then treated as if they were.
    Errors: InputError when W1 does not take d inputs, or all labels are equal.
    """
    W = first_layer(network)
    X, y = np.asarray(X, dtype=np.float64), np.asarray(y)
    if W.ndim != 2 or X.ndim != 2 or W.shape[1] != X.shape[1]:
        raise InputError(f"the first layer has shape {W.shape}, the points {X.shape}; their last axes must agree")
    eps = float(separation(X, y))
    _, values, rows = np.linalg.svd(W, full_matrices=False)
    rows = rows[values > rank_tolerance * max(values[0], 1e-300)] if values[0] else rows[:0]
    Z = X @ rows.T
    best, pair = np.inf, (0, 0)
    for start in range(0, len(X), BLOCK):
        here = slice(start, start + BLOCK)
        block = cdist(Z[here], Z) if len(rows) else np.zeros((len(Z[here]), len(Z)))
        block[y[here, None] == y[None, :]] = np.inf
        if block.min() < best:
            best = float(block.min())
            i, j = np.unravel_index(int(block.argmin()), block.shape)
            pair = (start + int(i), int(j))
    i, j = pair
    half = rows.T @ (rows @ (X[j] - X[i])) / 2
    near_i, near_j = X[i] + half, X[j] - half
    residual = float(np.abs(W @ (near_i - near_j)).max(initial=0.0))
    return CollisionBound(best / (2 * eps), pair, (near_i, near_j), float(np.linalg.norm(half)), residual)


def first_layer(network: Any) -> Float[np.ndarray, "m d"]:
    """W1 as float64."""
    if isinstance(network, np.ndarray):
        return network.astype(np.float64)
    network = getattr(network, "network", network)
    if isinstance(network, ExactNetwork):
        layer = network.layers[0]
        W = np.zeros((layer.outputs, layer.inputs))
        for i, row in enumerate(layer.rows):
            for j, value in row.items():
                W[i, j] = float(value)
        return W
    import torch

    for module in network.modules() if isinstance(network, torch.nn.Module) else []:
        if isinstance(module, torch.nn.Linear):
            return module.weight.detach().double().cpu().numpy()
    raise InputError("no first Linear layer found; give a torch module, an ExactNetwork or a matrix")
