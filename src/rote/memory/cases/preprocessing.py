"""From electrode potentials to what the model compares: checks, centre crop, montage, artefact rule, augmentations.

    peak-to-peak of a channel < low or > high (20 and 2000 uV): the channel is set to 0

The released code used the artefact rule at evaluation only; here it applies everywhere, training cases and queries
alike, and the settings travel with the model (arXiv 2510.20846, code). Units are microvolts throughout: thresholds mean
nothing in volts, so data that look like volts or millivolts are refused.

Knows nothing about: files, models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from rote.errors import InputError
from rote.memory.cases.montage import Montage


@dataclass(frozen=True)
class SignalSettings:
    """What a segment is. sfreq in Hz, crop in samples (a multiple of 64), low and high in uV peak to peak."""

    sfreq: float = 128.0
    crop: int = 128
    low: float = 20.0
    high: float = 2000.0
    zero_artifacts: bool = True
    check_units: bool = True

    def __post_init__(self):
        if not self.sfreq > 0:
            raise InputError(f"sfreq is {self.sfreq}: it must be positive (Hz)")
        if self.crop < 64 or self.crop % 64:
            raise InputError(f"crop is {self.crop} samples: the network pools by 4 three times, give a multiple of 64")
        if not 0 <= self.low < self.high:
            raise InputError(f"artefact limits are {self.low} and {self.high} uV: give 0 <= low < high")

    def to_dict(self) -> dict:
        return asdict(self)


def check_segments(
    data, montage: Montage, settings: SignalSettings, *, sfreq: float | None = None, where: str = "segments"
) -> Float[np.ndarray, "n electrodes samples"]:
    """`data` as float32 microvolts (n, electrodes, samples), or one line that says what is wrong with them.

    Raises InputError: another number of axes or electrodes, another sampling rate, too few samples, NaN or infinite
    values (with the first channel), flat data, or amplitudes that are no microvolts.
    """
    array = np.asarray(data, dtype=np.float32)
    if array.ndim != 3:
        raise InputError(f"{where}: expected (segments, electrodes, samples), got shape {array.shape}")
    if array.shape[1] != len(montage.electrodes):
        raise InputError(
            f"{where}: montage {montage.name!r} has {len(montage.electrodes)} electrodes, the data have"
            f" {array.shape[1]}; give them in its order, or give ch_names so that they can be found"
        )
    if sfreq is not None and abs(sfreq - settings.sfreq) > 1e-6:
        raise InputError(
            f"{where}: sampled at {sfreq:g} Hz, the model works at {settings.sfreq:g} Hz; resample first (MNE:"
            f" .resample({settings.sfreq:g}))"
        )
    if len(array) == 0:
        raise InputError(f"{where}: there are none")
    if array.shape[2] < settings.crop:
        raise InputError(
            f"{where}: {array.shape[2]} samples, the model needs {settings.crop}"
            f" ({settings.crop / settings.sfreq:g} s at {settings.sfreq:g} Hz); cut longer segments"
        )
    broken = ~np.isfinite(array).all(2)
    if broken.any():
        segment, channel = np.argwhere(broken)[0]
        raise InputError(
            f"{where}: {int(broken.any(axis=-1).sum())} of {len(array)} segments hold NaN or infinite samples (first:"
            f" segment {segment}, {montage.electrodes[channel]}); interpolate that channel or leave the segment out"
        )
    if settings.check_units:
        check_microvolts(array, where=where)
    return array


def check_microvolts(data: Float[np.ndarray, "n electrodes samples"], *, where: str = "segments") -> None:
    """Refuse what cannot be EEG in microvolts: by the median peak-to-peak amplitude of a channel.

    Scalp EEG of a second has some 10 to 500 uV. In volts that is below 0.001, in millivolts below 1; in nanovolts
    above 5000.
    """
    typical = float(np.median(np.ptp(data, axis=2)))
    if typical == 0:
        raise InputError(f"{where}: most channels are constant; was the recording connected?")
    if typical < 1.0:
        unit, factor = ("volts", "1e6") if typical < 2e-3 else ("millivolts", "1e3")
        raise InputError(
            f"{where}: a channel's median peak-to-peak is {typical:.3g}; as microvolts that is no EEG, it looks like"
            f" {unit}. Multiply by {factor} (or give MNE objects, whose unit is known)"
        )
    if typical > 5000:
        raise InputError(
            f"{where}: a channel's median peak-to-peak is {typical:.3g}; as microvolts that is no EEG. Is the unit"
            " nanovolts, or the data unfiltered? Convert to microvolts and filter"
        )


def centre_crop(data: Float[np.ndarray, "n c samples"], crop: int, *, shift: int = 0) -> Float[np.ndarray, "n c crop"]:
    """The middle `crop` samples, moved by `shift` samples (clipped to what there is)."""
    spare = data.shape[-1] - crop
    start = int(np.clip(spare // 2 + shift, 0, spare))
    return data[..., start : start + crop]


def zero_artifacts(
    channels: Float[np.ndarray, "n c samples"], low: float, high: float
) -> Float[np.ndarray, "n c samples"]:
    """Channels whose peak-to-peak is below `low` or above `high` become 0: too flat or too wild to compare."""
    peak = np.ptp(channels, axis=-1)
    return np.where(((peak < low) | (peak > high))[..., None], np.zeros((), channels.dtype), channels)


def prepare(
    data: Float[np.ndarray, "n electrodes samples"], montage: Montage, settings: SignalSettings, *, shift: int = 0
) -> Float[np.ndarray, "n c crop"]:
    """Crop, montage, artefact rule: what the network and the statistics see, in uV."""
    channels = montage.apply(centre_crop(data, settings.crop, shift=shift))
    if not settings.zero_artifacts:
        return channels
    return zero_artifacts(channels, settings.low, settings.high)


@dataclass(frozen=True)
class Augmented:
    """Prepared variants and which of them were mirrored (their channel weights must be mirrored too)."""

    channels: Float[np.ndarray, "n c crop"]
    mirrored: np.ndarray


def augment(
    data: Float[np.ndarray, "n electrodes samples"],
    montage: Montage,
    settings: SignalSettings,
    rng: np.random.Generator,
) -> Augmented:
    """One of the 12 variants of each segment, drawn at random, prepared: shift {0, +2, -2 samples} x left-right mirror
    x amplitude jitter (every sample times 1 + 0.1 N(0, 1)).

    A montage without mirror partners is never mirrored.
    """
    shifts = rng.choice([0, 2, -2], len(data))
    mirrored = (rng.random(len(data)) < 0.5) & (montage.mirror_channels() is not None)
    jittered = rng.random(len(data)) < 0.5
    changed = data.copy()
    if mirrored.any():
        changed[mirrored] = changed[mirrored][:, montage.mirror()]
    changed[jittered] *= 1 + 0.1 * rng.standard_normal(changed[jittered].shape, np.float32)
    out = np.empty((len(data), len(montage.channels), settings.crop), np.float32)
    for shift in (0, 2, -2):
        rows = shifts == shift
        if rows.any():
            out[rows] = prepare(changed[rows], montage, settings, shift=shift)
    return Augmented(out, mirrored)
