"""The query-key projection: a query is replaced by what the keys written so far span.

    Pi_t = sum_{tau<=t} k_tau k_tau^T / ||k_tau||^2,   Pi_t q_t for a whole stretch = tril(Q K^T) K  (unit keys)

the sum running over the tokens of the shard so far, carried across chunks. Pi is not idempotent: a key seen twice
counts twice. Three scales are offered: "none" as printed, "l2" (Pi q to unit length), "count" (Pi / number of keys).

Knows nothing about: weights, values, resets.
Source: Li et al. 2025, "TNT", arXiv 2511.07343, eq. 7 and app. C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SCALES = ("none", "l2", "count")
BLOCK = 64  # tokens whose score matrix is formed at once


def project_queries(
    q: Float[Tensor, "N T d"],
    k: Float[Tensor, "N T d"],
    pi: Float[Tensor, "N d d"] | None = None,
    seen: Float[Tensor, " N"] | None = None,
    *,
    scale: str = "none",
    live: Float[Tensor, "N T"] | None = None,
) -> tuple[Float[Tensor, "N T d"], Float[Tensor, "N d d"], Float[Tensor, " N"]]:
    """(Pi_t q_t for every t, Pi after the last token, keys counted). Padding (live 0) adds nothing to Pi."""
    k = F.normalize(k, dim=-1)
    if live is not None:
        k = k * live[..., None]
    parts = []
    for start in range(0, q.shape[1], BLOCK):
        queries, keys = q[:, start : start + BLOCK], k[:, start : start + BLOCK]
        out = torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).tril(), keys)
        parts.append(out if pi is None else torch.baddbmm(out, queries, pi))
        squares = torch.bmm(keys.transpose(1, 2), keys)
        pi = squares if pi is None else pi + squares
    projected = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    assert pi is not None
    written = torch.ones_like(q[..., 0]) if live is None else live
    counts = written.cumsum(1) if seen is None else seen[:, None] + written.cumsum(1)
    if scale == "l2":
        projected = F.normalize(projected, dim=-1)
    elif scale == "count":
        projected = projected / counts.clamp_min(1)[..., None]
    return projected, pi, counts[:, -1]
