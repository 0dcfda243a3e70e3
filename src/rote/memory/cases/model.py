"""The fixed half of a case-based model: what turns a segment into codes and channel weights. Its fingerprint says which
case bases it may read.

Knows nothing about: votes, patients, neighbours, files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rote.memory.cases.backbone import ChannelTrunk, SpikeNet, in_batches
from rote.memory.cases.channel_weights import channel_weights
from rote.memory.cases.montage import Montage
from rote.memory.cases.preprocessing import SignalSettings, centre_crop, prepare
from rote.memory.cases.prototypes import encode
from rote.memory.cases.similarity import Codes
from rote.memory.cases.statistics import Scaling

ENCODER_VERSION = 1  # raised whenever the same weights would give other codes


@dataclass(frozen=True)
class Encoded:
    """Segments as the model sees them. signals: cropped electrodes, uV; channels: after montage and artefact rule."""

    signals: Float[np.ndarray, "n electrodes crop"]
    channels: Float[Tensor, "n c crop"]
    codes: Codes
    weights: Float[Tensor, "n c"]

    def digests(self) -> list[str]:
        """sha256 of each cropped segment's samples: equal for identical recordings only."""
        return digests(self.signals)


@dataclass(frozen=True)
class CaseModel:
    """Detector (channel weights, black-box baseline), channel-wise trunk (shape codes), scaling and settings."""

    montage: Montage
    signal: SignalSettings
    scaling: Scaling
    detector: SpikeNet
    trunk: ChannelTrunk
    weights_mode: str

    def encode(self, data: Float[np.ndarray, "n electrodes samples"], *, weights_mode: str | None = None) -> Encoded:
        """Codes and channel weights of checked segments. Each row alone: batches and order do not matter."""
        channels = torch.from_numpy(np.ascontiguousarray(prepare(data, self.montage, self.signal)))
        return Encoded(
            np.ascontiguousarray(centre_crop(data, self.signal.crop)),
            channels,
            encode(self.trunk, channels, self.scaling),
            channel_weights(self.detector, channels, weights_mode or self.weights_mode),
        )

    def black_box(self, channels: Float[Tensor, "n c crop"]) -> Float[np.ndarray, " n"]:
        """The detector's own probability: SpikeNet without cases."""
        self.detector.eval()
        return torch.sigmoid(in_batches(self.detector, channels)).numpy()

    @property
    def fingerprint(self) -> str:
        """sha256 over weights, montage, signal settings, scaling, mode and encoder version."""
        head = {
            "version": ENCODER_VERSION, "montage": asdict(self.montage), "signal": self.signal.to_dict(),
            "scaling": self.scaling.to_dict(), "weights": self.weights_mode,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for net in (self.detector, self.trunk):
            for name, value in sorted(net.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()


def digests(signals: Float[np.ndarray, "n electrodes crop"]) -> list[str]:
    """sha256 of each segment's float32 samples."""
    return [hashlib.sha256(np.ascontiguousarray(row, np.float32).tobytes()).hexdigest() for row in signals]
