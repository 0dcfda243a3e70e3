"""How alike are two segments: shape in each channel, weighted by where the query's discharge is.

    s_c(x, p) = a0 cos(x_lat, p_lat) + a1 s_range + a2 s_var + a3 s_fft          (channel c)
    S(x, p)   = sum_c w_c(x) s_c(x, p)                                         the query's weights only

a is a point of the simplex, a = softmax(logits), initially (.5, .125, .0625, .3125). The released training leaves the
logits out of every optimiser, so a stays as it is; here it may be learned on request. S(x, x) = 1 where every channel
with weight has a non-zero latent code. S is no metric and not symmetric.
Source: Tang et al. 2025, arXiv 2510.20846 (code).

Knows nothing about: votes, groups, networks, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rote.errors import InputError
from rote.memory.cases.statistics import Scaling, fft_similarity, scaled_similarity

IMPORTANCE = (0.5, 0.125, 0.0625, 0.3125)
PARTS = ("latent", "range", "var", "fft")


@dataclass(frozen=True)
class Codes:
    """What is compared: unit latents, scaled range and var, folded spectra (uV). One row a segment."""

    latent: Float[Tensor, "n c dim"]
    range: Float[Tensor, "n c"]
    var: Float[Tensor, "n c"]
    fft: Float[Tensor, "n c bins"]

    def __len__(self) -> int:
        return len(self.latent)

    def take(self, rows) -> Codes:
        return Codes(*(getattr(self, field.name)[rows] for field in fields(self)))

    def cat(self, other: Codes) -> Codes:
        return Codes(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def float(self) -> Codes:
        return Codes(*(getattr(self, field.name).float() for field in fields(self)))


def make_codes(
    latent: Float[Tensor, "n c dim"],
    ranges: Float[Tensor, "n c"],
    variances: Float[Tensor, "n c"],
    fft: Float[Tensor, "n c bins"],
    scaling: Scaling,
) -> Codes:
    """Normalise what does not depend on the other side. A latent code of 0 stays 0: its cosine is 0."""
    return Codes(F.normalize(latent, dim=-1, eps=1e-12), scaling.range(ranges), scaling.var(variances), fft)


def check_importance(importance: Sequence[float]) -> tuple[float, float, float, float]:
    """a as four numbers. Raises InputError unless they are at least 0 and sum to 1."""
    values = tuple(float(value) for value in importance)
    if len(values) != 4 or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise InputError(
            f"importance is {tuple(importance)}: give four shares (latent, range, var, fft), at least 0, summing to 1"
        )
    return values  # type: ignore[return-value]


def part_similarities(query: Codes, cases: Codes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(s_lat, s_range, s_var, s_fft), each (q, p, c): s_lat in [-1, 1], the others in [0, 1].

    Memory: four tensors of q x p x c numbers; `search.py` calls it in blocks.
    """
    latent = torch.matmul(query.latent.transpose(0, 1), cases.latent.transpose(0, 1).transpose(1, 2))
    distance = fft_distance(query.fft, cases.fft)
    return (
        latent.permute(1, 2, 0),
        scaled_similarity(query.range, cases.range),
        scaled_similarity(query.var, cases.var),
        fft_similarity(distance),
    )


def fft_distance(query: Float[Tensor, "q c bins"], cases: Float[Tensor, "p c bins"]) -> Float[Tensor, "q p c"]:
    """||F_x - F_p||_2 in every channel.

    By |x|^2 + |p|^2 - 2 x.p around the cases' mean: the subtraction loses about 1e-7 of the squared norms, which at
    distances that count (800 uV and more; below, s_fft is 1) is less than 1e-3 of s_fft even for the wildest channels.
    """
    centre = cases.mean(0)
    x, p = (query - centre).transpose(0, 1), (cases - centre).transpose(0, 1)  # (c, n, bins)
    squared = (x * x).sum(-1)[:, :, None] + (p * p).sum(-1)[:, None] - 2 * torch.matmul(x, p.transpose(1, 2))
    return squared.clamp_min(1e-8).sqrt().permute(1, 2, 0)  # the root of 0 has no gradient; 1e-4 uV is none


def channel_similarity(query: Codes, cases: Codes, importance: Sequence[float] | Tensor) -> Float[Tensor, "q p c"]:
    """s_c = sum_i a_i s_i of every channel. Parts of importance 0 are not computed."""
    total = None
    pieces = {
        0: lambda: torch.matmul(
            query.latent.transpose(0, 1), cases.latent.transpose(0, 1).transpose(1, 2)
        ).permute(1, 2, 0),
        1: lambda: scaled_similarity(query.range, cases.range),
        2: lambda: scaled_similarity(query.var, cases.var),
        3: lambda: fft_similarity(fft_distance(query.fft, cases.fft)),
    }  # fmt: skip
    for number, part in pieces.items():
        share = importance[number]
        if isinstance(share, float) and share == 0:
            continue
        total = share * part() if total is None else total + share * part()
    if total is None:
        raise InputError("importance is 0 everywhere: nothing to compare by")
    return total


def similarity(
    query: Codes, weights: Float[Tensor, "q c"], cases: Codes, importance: Sequence[float] | Tensor = IMPORTANCE
) -> Float[Tensor, "q p"]:
    """S(x, p) = sum_c w_c(x) s_c(x, p). At most a0 + a1 + a2 + a3 = 1."""
    return torch.einsum("qc,qpc->qp", weights, channel_similarity(query, cases, importance))
