"""SpikeNet, and the same trunk made channel-wise so that every channel has a shape code of its own.

    SpikeNet: conv 8x1, conv 8x1, pool 4 | conv 1xC (mixes channels) | conv 8x1 twice, pool 4 | twice, pool 4 | conv 8x1
              -> flatten -> one logit
    surgery:  the 1xC kernel becomes 1x1 (mean over its columns); the last kernel gets t - 1 more rows, the mean of its
              8, so that the t remaining time steps collapse to 1; every BatchNorm becomes a fresh LayerNorm over
              (filters, time, channels)

Pooling stands before the leaky rectifier, with which it commutes: a quarter
of the work. The last convolution has neither norm nor rectifier, so that codes may point anywhere. Signals enter as (B,
channels, samples), amplitudes in uV divided by `scale`. Filters are 32, 64, 96, 128 at width 1.
Sources: Jing et al. 2020 (SpikeNet); Tang et al. 2025, arXiv 2510.20846 (surgery, code).

Knows nothing about: votes, similarity, files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL = 8
POOLS = 3
SCALE = 50.0  # uV: brings EEG near unit variance, so that default initialisations work


def filters(width: float) -> tuple[int, int, int, int]:
    """Numbers of filters of the four stages at this width (1 is the paper's 32, 64, 96, 128)."""
    return tuple(max(4, round(width * n)) for n in (32, 64, 96, 128))  # type: ignore[return-value]


class TimeConv(nn.Conv2d):
    """A convolution over time only, output as long as the input (padding of an 8-row kernel: 3 before, 4 after)."""

    def __init__(self, into: int, out: int, rows: int = KERNEL):
        super().__init__(into, out, (rows, 1))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 0, (KERNEL - 1) // 2, KERNEL // 2)))


class TimeConvPair(nn.Module):
    """Two time convolutions in a row, computed as one of 15 rows: second(first(x)), nothing between them.

    The composed kernel is exact but for the ends, where `second` sees zeros beyond its input and not what `first` would
    have computed there; those 3 + 4 samples are corrected. Some ten times fewer products for one input plane.
    """

    def __init__(self, out: int):
        super().__init__()
        self.first, self.second = TimeConv(1, out), TimeConv(out, out)

    def forward(self, x: Float[Tensor, "b 1 samples c"]) -> Float[Tensor, "b out samples c"]:
        one, two = self.first, self.second
        before, after = (KERNEL - 1) // 2, KERNEL // 2
        # kernel[o, s] = sum over m and i + j = s of two[o, m, i] one[m, j]: a full convolution of the kernels
        kernel = F.conv1d(
            F.pad(one.weight[:, :, :, 0], (KERNEL - 1, KERNEL - 1)).transpose(0, 1), two.weight[..., 0].flip(2)
        ).transpose(0, 1)
        bias = two.bias + torch.einsum("omi,m->o", two.weight[..., 0], one.bias)  # type: ignore[operator]
        out = F.conv2d(F.pad(x, (0, 0, 2 * before, 2 * after)), kernel[..., None], bias)
        beyond = F.conv2d(F.pad(x[:, :, :after], (0, 0, 2 * before, 0)), one.weight, one.bias)
        out[:, :, :before] -= F.conv2d(F.pad(beyond, (0, 0, 0, KERNEL - 1)), two.weight)
        beyond = F.conv2d(F.pad(x[:, :, -before:], (0, 0, 0, 2 * after)), one.weight, one.bias)
        out[:, :, -after:] -= F.conv2d(F.pad(beyond, (0, 0, KERNEL - 1, 0)), two.weight)
        return out


class SpikeNet(nn.Module):
    """The black-box detector: (B, C, T) in uV to one logit. `head` is channel-wise, `tail` follows the mixing."""

    def __init__(self, channels: int = 37, samples: int = 128, *, width: float = 1.0, dropout: float = 0.5):
        super().__init__()
        a, b, c, d = filters(width)
        self.channels, self.samples, self.width = channels, samples, width
        self.head = nn.Sequential(
            TimeConvPair(a), nn.BatchNorm2d(a), nn.MaxPool2d((4, 1)), nn.LeakyReLU()
        )  # fmt: skip
        self.mix = nn.Conv2d(a, a, (1, channels))
        self.tail = nn.Sequential(
            TimeConv(a, b), nn.BatchNorm2d(b), nn.LeakyReLU(),
            TimeConv(b, b), nn.BatchNorm2d(b), nn.MaxPool2d((4, 1)), nn.LeakyReLU(),
            TimeConv(b, c), nn.BatchNorm2d(c), nn.LeakyReLU(),
            TimeConv(c, c), nn.BatchNorm2d(c), nn.MaxPool2d((4, 1)), nn.LeakyReLU(),
            TimeConv(c, d),
        )  # fmt: skip
        self.out = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(d * (samples // 4**POOLS), 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on CPUs

    def forward(self, channels: Float[Tensor, "b c samples"]) -> Float[Tensor, " b"]:
        return self.from_head(self.channel_head(channels))

    def channel_head(self, channels: Float[Tensor, "b c samples"]) -> Float[Tensor, "b filters time c"]:
        """The first stage, which no channel shares with another (in evaluation mode)."""
        return self.head(as_image(channels))

    def from_head(self, head: Float[Tensor, "b filters time c"]) -> Float[Tensor, " b"]:
        return self.after_mix(self.mix(head))

    def after_mix(self, mixed: Float[Tensor, "b filters time 1"]) -> Float[Tensor, " b"]:
        return self.out(self.tail(mixed))[:, 0]


class ChannelTrunk(nn.Module):
    """(B, C, T) in uV to a shape code of `dim` numbers a channel: (B, C, dim)."""

    def __init__(self, channels: int, samples: int, *, width: float = 1.0):
        super().__init__()
        a, b, c, d = filters(width)
        self.channels, self.samples, self.width, self.dim = channels, samples, width, d
        last = samples // 4**POOLS

        def norm(count: int, time: int) -> nn.Module:
            return nn.LayerNorm([count, time, channels])

        self.layers = nn.Sequential(
            TimeConvPair(a), norm(a, samples), nn.MaxPool2d((4, 1)), nn.LeakyReLU(),
            nn.Conv2d(a, a, 1),
            TimeConv(a, b), norm(b, samples // 4), nn.LeakyReLU(),
            TimeConv(b, b), norm(b, samples // 4), nn.MaxPool2d((4, 1)), nn.LeakyReLU(),
            TimeConv(b, c), norm(c, samples // 16), nn.LeakyReLU(),
            TimeConv(c, c), norm(c, samples // 16), nn.MaxPool2d((4, 1)), nn.LeakyReLU(),
            TimeConv(c, d, KERNEL + last - 1),
        )  # fmt: skip
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, channels: Float[Tensor, "b c samples"]) -> Float[Tensor, "b c dim"]:
        return self.layers(as_image(channels))[:, :, 0].transpose(1, 2)

    @classmethod
    def from_spikenet(cls, net: SpikeNet) -> ChannelTrunk:
        """The surgery: weights of a trained SpikeNet, made channel-wise."""
        trunk = cls(net.channels, net.samples, width=net.width)
        own = convolutions(trunk.layers)
        trained = [*convolutions(net.head), net.mix, *convolutions(net.tail)]
        with torch.no_grad():
            for new, old in zip(own, trained, strict=True):
                kernel = old.weight  # (out, in, rows, columns)
                if kernel.shape[-1] > 1:
                    kernel = kernel.mean(-1, keepdim=True)
                extra = new.weight.shape[2] - kernel.shape[2]
                if extra:
                    kernel = torch.cat([kernel, kernel.mean(2, keepdim=True).expand(-1, -1, extra, -1)], 2)
                new.weight.copy_(kernel)
                new.bias.copy_(old.bias)  # type: ignore[union-attr]
        return trunk


@torch.no_grad()
def centre_codes(trunk: ChannelTrunk, channels: Float[Tensor, "n c samples"], batch: int = 64) -> None:
    """Shift the last bias so that the mean code over these segments and all channels is 0, in place.

    After the surgery the old biases meet new norms, and the mean over columns has shrunk the signal beside them: every
    code would point the same way (cosines of .99), and the shape term could not tell cases apart. Rote's; the authors
    rely on the long joint training instead.
    """
    trunk.eval()
    convolutions(trunk)[-1].bias -= in_batches(trunk, channels, batch).mean((0, 1))  # type: ignore[operator]


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a module, in order."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def as_image(channels: Float[Tensor, "b c samples"]) -> Float[Tensor, "b 1 samples c"]:
    """uV over `SCALE`, one feature plane of time by channels."""
    return (channels / SCALE).transpose(1, 2)[:, None]


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], data: Tensor, batch: int = 64) -> Tensor:
    """Apply a function that treats rows alone to a long tensor, `batch` rows at a time."""
    return torch.cat([function(part) for part in data.split(batch)])
