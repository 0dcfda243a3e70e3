"""The interpretable half of a channel's code: range, variance and spectrum, and how they are compared.

    range = max - min,   var = variance,   fft = |F(x)| of the samples (T bins, of which T/2 + 1 differ)
    s_range = clamp(1 - |mm(x) - mm(p)|, 0, 1),   mm = (v - lower) / (upper - lower)
    lower, upper: 3rd and 98th percentile of the training set's ranges, 3rd and 97th of its variances
    s_fft = min(1, 800 / (||F_x - F_p||_2 + 0.001))

Bins 1 .. T/2 - 1 stand for two mirrored ones: they are stored once, times sqrt 2, so that the norm is that of all T.
All amplitudes are in uV. Source: Tang et al. 2025, arXiv 2510.20846 (code).

Knows nothing about: networks, channel weights, files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FFT_SCALE = 800.0  # uV: spectra nearer than this are alike (code)
FFT_EPSILON = 0.001
PERCENTILES = {"range": (0.03, 0.98), "var": (0.03, 0.97)}


@dataclass(frozen=True)
class Scaling:
    """Bounds of the min-max scaling, from the training set, all channels pooled. uV for range, uV^2 for var."""

    range_lower: float
    range_upper: float
    var_lower: float
    var_upper: float

    @classmethod
    def fit(cls, ranges: Float[Tensor, "n c"], variances: Float[Tensor, "n c"]) -> Scaling:
        bounds = []
        for values, (low, high) in ((ranges, PERCENTILES["range"]), (variances, PERCENTILES["var"])):
            flat = values.flatten().double().sort().values
            for level in (low, high):  # linear interpolation; torch.quantile refuses more than 16 million numbers
                place = level * (len(flat) - 1)
                left = int(place)
                right = min(left + 1, len(flat) - 1)
                bounds.append(float(flat[left] + (place - left) * (flat[right] - flat[left])))
        return cls(*bounds)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def range(self, values: Tensor) -> Tensor:
        return (values - self.range_lower) / max(self.range_upper - self.range_lower, 1e-12)

    def var(self, values: Tensor) -> Tensor:
        return (values - self.var_lower) / max(self.var_upper - self.var_lower, 1e-12)


def channel_statistics(
    channels: Float[Tensor, "n c samples"],
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"], Float[Tensor, "n c bins"]]:
    """Range (uV), variance (uV^2, divisor T) and the folded amplitude spectrum (T/2 + 1 bins) of every channel."""
    samples = channels.shape[-1]
    spectrum = torch.fft.rfft(channels, dim=-1).abs()
    fold = torch.full((spectrum.shape[-1],), 2**0.5, dtype=spectrum.dtype, device=spectrum.device)
    fold[0] = 1.0
    if samples % 2 == 0:
        fold[-1] = 1.0
    return channels.amax(-1) - channels.amin(-1), channels.var(-1, unbiased=False), spectrum * fold


def scaled_similarity(query: Float[Tensor, "q c"], case: Float[Tensor, "p c"]) -> Float[Tensor, "q p c"]:
    """clamp(1 - |x - p|, 0, 1) of values that are scaled already."""
    return (1 - (query[:, None] - case[None]).abs()).clamp(0, 1)


def fft_similarity(distance: Tensor) -> Tensor:
    """min(1, 800 / (d + 0.001)) of a distance in uV."""
    return (FFT_SCALE / (distance + FFT_EPSILON)).clamp(max=1.0)
