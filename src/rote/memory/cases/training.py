"""Settings of the two training phases, and the first phase: the detector.

Phase 1 trains SpikeNet on vote fractions, BCE(sigmoid(z), y / R), with the 12 augmentations of `preprocessing.augment`.
It must later judge single channels (see `channel_weights`), which a detector trained from scratch has never seen; so
some segments of a batch lose channels at random, and some keep one random channel only, moved to slot 0.

Phase 2 (prototypes) is in `prototypes.py`.

Knows nothing about: cases, similarity, files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from rote.errors import InputError, RoteError
from rote.memory.cases.backbone import SpikeNet
from rote.memory.cases.losses import LossWeights
from rote.memory.cases.montage import Montage
from rote.memory.cases.preprocessing import SignalSettings, augment

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainingSettings:
    """Recipe. Width 1 and the prototype phase's numbers are the released configuration's (arXiv 2510.20846, code); the
    detector's are Rote's, because the authors started from a trained SpikeNet.

    prototypes: per vote class. rounds x epochs of joint training, each round ended by a projection.
    `TrainingSettings.small()` is for a CPU and some thousand segments.
    """

    width: float = 1.0
    detector_epochs: int = 10
    detector_rate: float = 2e-3
    batch_size: int = 32
    dropout: float = 0.5
    channel_dropout: float = 0.3  # share of segments that lose channels
    single_channel: float = 0.25  # share that keeps one channel, in slot 0
    thin_from: float = 0.4  # share of the steps after which channels are taken away
    prototypes: int = 45
    warm_epochs: int = 20
    rounds: int = 5
    epochs: int = 18
    per_class: int = 10
    warm_rate: float = 0.003 * 1.92
    prototype_rate: float = 0.01 * 1.92
    backbone_rate: float = 1e-4 * 1.92
    backbone_decay: float = 1e-3
    bias_rate: float = 0.1
    bias_start: float = -1.0
    step: int = 9
    gamma: float = 0.9
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self):
        if not 0 < self.width <= 4:
            raise InputError(f"width is {self.width}: give a factor above 0 and at most 4")
        for name in ("detector_epochs", "batch_size", "prototypes", "per_class", "epochs", "step"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("warm_epochs", "rounds"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if not 0 <= self.thin_from <= 1:
            raise InputError(f"thin_from is {self.thin_from}: it is a share of the steps, 0 to 1")
        if min(self.channel_dropout, self.single_channel) < 0 or self.channel_dropout + self.single_channel > 1:
            raise InputError("channel_dropout and single_channel are shares of a batch: at least 0, together at most 1")

    @classmethod
    def small(cls, **changes) -> TrainingSettings:
        """Half the width, 5 + 2 + 2 epochs, 8 prototypes a class: minutes on a CPU for some thousand segments."""
        return cls(**{"width": 0.5, "detector_epochs": 5, "prototypes": 8, "warm_epochs": 2, "rounds": 1, "epochs": 2,
                      **changes})  # fmt: skip

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> TrainingSettings:
        return cls(**{**content, "loss": LossWeights(**content["loss"])})


def thin_channels(
    channels: Float[Tensor, "b c samples"], settings: TrainingSettings, rng: np.random.Generator
) -> Float[Tensor, "b c samples"]:
    """Random channels off in some segments; one random channel, moved to slot 0, in others."""
    b, c = channels.shape[:2]
    lot = rng.random(b)
    out = channels.clone()
    dropped = np.flatnonzero(lot < settings.channel_dropout)
    keep = rng.random((len(dropped), c)) < rng.uniform(0.2, 1.0, (len(dropped), 1))
    out[dropped] *= torch.from_numpy(keep[..., None].astype(np.float32))
    single = np.flatnonzero(
        (lot >= settings.channel_dropout) & (lot < settings.channel_dropout + settings.single_channel)
    )
    chosen = rng.integers(c, size=len(single))
    out[single] = 0
    out[single, 0] = channels[single, chosen]
    return out


def train_detector(
    data: Float[np.ndarray, "n electrodes samples"],
    votes: Int[np.ndarray, " n"],
    raters: int,
    montage: Montage,
    signal: SignalSettings,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> SpikeNet:
    """SpikeNet trained on vote fractions. Deterministic for a seed and a number of threads.

    Raises RoteError when the loss stops being finite.
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = SpikeNet(len(montage.channels), signal.crop, width=settings.width, dropout=settings.dropout).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=settings.detector_rate, weight_decay=1e-3)
        batches = max(1, len(data) // settings.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.detector_rate, total_steps=settings.detector_epochs * batches, pct_start=0.2
        )
        target = torch.from_numpy(votes / raters).float()
        net.train()
        for epoch in range(settings.detector_epochs):
            for number, rows in enumerate(np.array_split(rng.permutation(len(data)), batches)):
                channels = torch.from_numpy(augment(data[rows], montage, signal, rng).channels)
                if epoch * batches + number >= settings.thin_from * settings.detector_epochs * batches:
                    channels = thin_channels(channels, settings, rng)
                logit = net(channels.to(device))
                loss = F.binary_cross_entropy_with_logits(logit, target[rows].to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                if not torch.isfinite(loss):
                    raise RoteError(
                        f"detector diverged in epoch {epoch}; lower detector_rate ({settings.detector_rate})"
                    )
                if progress:
                    progress("detector", epoch * batches + number + 1, settings.detector_epochs * batches)
    return net.eval().cpu()
