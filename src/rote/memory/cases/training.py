"""Settings of the two training phases, and the first phase: the detector.

Phase 1 trains SpikeNet on vote fractions, BCE(sigmoid(z), y / R), with the 12 augmentations of `preprocessing.augment`.
It must later judge single channels (see `channel_weights`), which a detector trained from scratch has never seen. So,
after a first share of the steps, some segments lose channels at random, and every segment is also shown as a few of its
channels alone, each in slot 0, with the segment's own vote:

    loss = BCE(z, y / R) + single_weight * mean over r random channels of BCE(z_r, y / R)

The first stage is shared between a segment and its channels, so this costs little.

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
from rote.memory.cases.channel_weights import in_slot_zero
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
    single_channels: int = 4  # channels of each segment that are shown alone, in slot 0
    single_weight: float = 0.5
    thin_from: float = 0.3  # share of the steps after which both begin
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
        if not 0 <= self.channel_dropout <= 1 or self.single_weight < 0 or self.single_channels < 0:
            raise InputError(
                "channel_dropout is a share of a batch, 0 to 1; single_channels and its weight are at least 0"
            )

    @classmethod
    def small(cls, **changes) -> TrainingSettings:
        """Half the width, 5 + 5 + 2 epochs, 20 prototypes a class: minutes on a CPU for some thousand segments.

        The trunk comes from a detector that was trained from scratch and moves in a few dozen steps, not in thousands:
        at the released rate it hardly would (new patients' R2 .61 against .70 at this one).
        """
        return cls(**{"width": 0.5, "detector_epochs": 5, "prototypes": 20, "warm_epochs": 5, "rounds": 1, "epochs": 2,
                      "backbone_rate": 1e-3, **changes})  # fmt: skip

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> TrainingSettings:
        return cls(**{**content, "loss": LossWeights(**content["loss"])})


def drop_channels(
    channels: Float[Tensor, "b c samples"], share: float, rng: np.random.Generator
) -> Float[Tensor, "b c samples"]:
    """Random channels off in about this share of the segments; between 20 % and all of them stay."""
    b, c = channels.shape[:2]
    some = np.flatnonzero(rng.random(b) < share)
    keep = rng.random((len(some), c)) < rng.uniform(0.2, 1.0, (len(some), 1))
    out = channels.clone()
    out[some] *= torch.from_numpy(keep[..., None].astype(np.float32))
    return out


def channels_alone(
    net: SpikeNet, head: Float[Tensor, "b filters time c"], count: int, rng: np.random.Generator
) -> Float[Tensor, "b*count filters time 1"]:
    """What the detector's second stage sees of `count` random channels of each segment, each alone in slot 0."""
    b, i, t, c = head.shape
    chosen = torch.from_numpy(rng.integers(c, size=(b, count))).to(head.device)
    net.head.eval()  # the statistics of a batch of zeros are no statistics
    silent = net.channel_head(head.new_zeros(1, c, net.samples))
    net.head.train()
    return in_slot_zero(net, head.gather(3, chosen[:, None, None].expand(-1, i, t, -1)), silent)


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
                step = epoch * batches + number
                channels = torch.from_numpy(augment(data[rows], montage, signal, rng).channels)
                y, count = target[rows].to(device), settings.single_channels
                if step < settings.thin_from * settings.detector_epochs * batches:
                    loss = F.binary_cross_entropy_with_logits(net(channels.to(device)), y)
                else:
                    channels = drop_channels(channels, settings.channel_dropout, rng)
                    head = net.channel_head(channels.to(device))
                    mixed = net.mix(head)
                    if count:
                        mixed = torch.cat([mixed, channels_alone(net, head, count, rng)])
                    logit = net.after_mix(mixed)
                    loss = F.binary_cross_entropy_with_logits(logit[: len(y)], y)
                    if count:
                        alone = F.binary_cross_entropy_with_logits(logit[len(y) :], y.repeat_interleave(count))
                        loss = loss + settings.single_weight * alone
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                if not torch.isfinite(loss):
                    raise RoteError(
                        f"detector diverged in epoch {epoch}; lower detector_rate ({settings.detector_rate})"
                    )
                if progress:
                    progress("detector", step + 1, settings.detector_epochs * batches)
    return net.eval().cpu()
