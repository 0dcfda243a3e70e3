"""The data-free baseline: drop the bottom of a weight's own singular spectrum.

    W = P diag(s) Q^T,   W' = sum_{k <= r} s_k p_k q_k^T,   r = ceil(share * min(p, q))

Unlike the curvature edit it never looks at data, and W' has rank r. Knows nothing about: models, curvature.
Source: Merullo et al. 2025, arXiv 2510.24256 (their SVD baseline).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float

from rote.errors import InputError


def kept_ranks(shape: tuple[int, int], share: float) -> int:
    """r = ceil(share * min(p, q)), guarded against the last digit; share in (0, 1]. Errors: InputError."""
    if not 0.0 < share <= 1.0:
        raise InputError(f"the share of singular values to keep is {share}: it must lie in (0, 1]")
    return max(1, math.ceil(share * min(shape) - 1e-9))


def svd_truncated(W: Float[torch.Tensor, "out in"], share: float) -> Float[torch.Tensor, "out in"]:
    """W with only the largest `share` of its singular values, in float32; W itself (as float32) at share 1."""
    rank = kept_ranks((W.shape[0], W.shape[1]), share)
    if rank == min(W.shape):
        return W.float().clone()
    left, values, right = torch.linalg.svd(W.float(), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]
