"""The gradient of the cross-entropy with respect to the logits, under labels drawn from the model itself or given.

    d(-log p_y)/dz = p - e_y,    p = softmax(z),    y ~ p (the true Fisher) or y = the gold label (the empirical one)

Drawing y from p makes E[(p - e_y)(p - e_y)^T] = diag(p) - p p^T, the Fisher information of the logits. The loss is the
sum over rows, not the mean, so that batches of different sizes weigh every row alike.

Knows nothing about: models, layers, factors.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int

SLICE_BYTES = 4 << 20  # probabilities worked on at a time: about what a CPU's cache holds
_BELOW_ONE = 1 - 1e-6  # a uniform number that rounds up to 1 would fall beyond the last possible token


def draw_labels(
    probabilities: Float[torch.Tensor, "rows classes"], uniform: Float[torch.Tensor, " rows"]
) -> Int[torch.Tensor, " rows"]:
    """y_r = the first class with cumulated probability above u_r: one uniform number in [0, 1) a row."""
    cumulated = probabilities.cumsum(-1)
    sought = uniform.to(cumulated).clamp(max=_BELOW_ONE)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, sought, right=True)[:, 0].clamp(max=probabilities.shape[1] - 1)


def score_gradient(
    logits: Float[torch.Tensor, "rows classes"],
    *,
    uniform: Float[torch.Tensor, " rows"] | None = None,
    gold: Int[torch.Tensor, " rows"] | None = None,
) -> Float[torch.Tensor, "rows classes"]:
    """p - e_y in the logits' own precision (computed in float32), by slices of rows. Give `uniform` or `gold`."""
    assert (uniform is None) != (gold is None)
    logits = logits.detach()
    out = torch.empty_like(logits)
    step = max(1, SLICE_BYTES // (4 * logits.shape[1]))
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        p = torch.softmax(logits[part].float(), dim=-1)
        y = draw_labels(p, uniform[part]) if uniform is not None else gold[part]  # type: ignore[index]
        p.scatter_add_(1, y[:, None], p.new_full((len(p), 1), -1.0))
        out[part] = p
    return out
