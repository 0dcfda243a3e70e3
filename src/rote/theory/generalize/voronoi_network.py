"""Theorem 7.3's network written out as a torch module, for record sets small enough to hold its N x 2 N+ N- layer.

Layer 1, unit (i, j) for every ordered opposite pair: relu(-S_ij(x)). Layer 2, unit i: relu(r - sum_j unit (i, j)).
Output: sum_i y_i unit i. Knows nothing about: how the memorizer evaluates the same function in blocks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import skip_init

from rote.theory.generalize.voronoi_forward import VoronoiParts


def explicit_network(parts: VoronoiParts, *, split: float, dtype: torch.dtype | None = None) -> nn.Sequential:
    """Linear(n, 2 N+ N-), ReLU, Linear(2 N+ N-, N), ReLU, Linear(N, 1) with theorem 7.3's weights; S_ij(x) has the
    normal x_i - x_j and passes through (1-t) x_i + t x_j. Maps (queries, n) to (queries, 1)."""
    dtype = dtype or torch.float64
    points = torch.from_numpy(parts.points + parts.center)
    total, negatives = len(points), parts.negatives
    one, other = torch.cartesian_prod(torch.arange(negatives), torch.arange(negatives, total)).T
    i, j = torch.cat([one, other]), torch.cat([other, one])
    normal = points[i] - points[j]
    through = (1 - split) * points[i] + split * points[j]
    sizes = ((points.shape[1], len(i)), (len(i), total), (total, 1))
    # skip_init: every entry is set below, and a constructor must not move torch's global generator.
    layers = [_linear(before, after, dtype) for before, after in sizes]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    with torch.no_grad():
        layers[0].weight.copy_(-normal)
        layers[0].bias.copy_((normal * through).sum(dim=1))
        layers[1].weight.zero_()
        layers[1].weight[i, torch.arange(len(i))] = -1.0
        layers[1].bias.fill_(parts.r)
        layers[2].weight.fill_(1.0)
        layers[2].weight[0, :negatives] = -1.0
        layers[2].bias.zero_()
    return network.requires_grad_(False)


def wrong_records(network: nn.Sequential, parts: VoronoiParts) -> int:
    """How many records do not get their sign from the module itself, in its own arithmetic."""
    dtype = network[0].weight.dtype
    assert isinstance(dtype, torch.dtype)
    wrong, step = 0, 256
    with torch.inference_mode():
        for start in range(0, len(parts.points), step):
            points = parts.points[start : start + step] + parts.center
            positive = torch.arange(start, start + len(points)) >= parts.negatives
            found = network(torch.from_numpy(points).to(dtype))[:, 0]
            wrong += int((torch.where(positive, found, -found) <= 0).sum())
    return wrong


def _linear(before: int, after: int, dtype: torch.dtype) -> nn.Linear:
    layer = skip_init(nn.Linear, before, after, dtype=dtype)
    assert isinstance(layer, nn.Linear)
    return layer
