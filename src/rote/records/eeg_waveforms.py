"""Waveforms of simulated EEG, one amplitude each: epileptiform discharges, their benign look-alikes, 1/f activity.

    spike 20-70 ms, sharp wave 70-200 ms, either alone, before a slow wave, or as several spikes before one

A discharge is negative at the scalp and asymmetric (it rises faster than it falls). All are centred at time 0 and have
a largest absolute value of 1. The duration ranges are those of clinical practice (Tang et al. 2025, arXiv 2510.20846,
label tables; Kane et al. 2017, glossary of EEG terms).

Knows nothing about: heads, electrodes, patients, votes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

MORPHOLOGIES = ("spike", "sharp", "spike-wave", "polyspike-wave")
DURATION = {"spike": (0.020, 0.070), "sharp": (0.070, 0.200)}  # seconds, base to base


def transient(
    t: Float[np.ndarray, " samples"], duration: float, *, asymmetry: float = 0.4
) -> Float[np.ndarray, " samples"]:
    """A negative sharp transient and its small positive after-swing, both cubed half-sines; t in seconds.

    asymmetry: share of `duration` before the peak (below 0.5: it rises faster than it falls).
    """
    rise, fall = duration * asymmetry, duration * (1 - asymmetry)
    phase = np.where(t < 0, np.clip(1 + t / rise, 0, 1), np.clip(1 - t / fall, 0, 1))
    swing = np.clip((t - fall) / duration, 0, 1)
    return -(np.sin(np.pi / 2 * phase) ** 3) + 0.25 * np.sin(np.pi * swing) ** 2


def slow_wave(t: Float[np.ndarray, " samples"], start: float, duration: float) -> Float[np.ndarray, " samples"]:
    """The negative wave that follows a spike: one smooth lobe from `start` on."""
    return -(np.sin(np.pi * np.clip((t - start) / duration, 0, 1)) ** 2)


def discharge(
    t: Float[np.ndarray, " samples"], morphology: str, rng: np.random.Generator
) -> Float[np.ndarray, " samples"]:
    """One interictal epileptiform discharge of this morphology, its main peak near t = 0, peak 1, negative."""
    asymmetry = rng.uniform(0.3, 0.45)
    if morphology in DURATION:
        wave = transient(t, rng.uniform(*DURATION[morphology]), asymmetry=asymmetry)
    else:
        width = rng.uniform(*DURATION["spike"])
        spikes = 1 if morphology == "spike-wave" else int(rng.integers(2, 5))
        gap = rng.uniform(0.06, 0.09)
        times = -gap * np.arange(spikes)[::-1]
        wave = sum(transient(t - at, width, asymmetry=asymmetry) * rng.uniform(0.8, 1) for at in times)
        wave = wave + rng.uniform(0.5, 0.9) * slow_wave(t, width * 0.6, rng.uniform(0.20, 0.35))
    return wave / np.abs(wave).max()


def vertex_wave(t: Float[np.ndarray, " samples"], rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """Sleep's sharp negative wave at the vertex: broader than a spike, nearly symmetric, 150 to 260 ms."""
    wave = transient(t, rng.uniform(0.15, 0.26), asymmetry=rng.uniform(0.45, 0.55))
    return wave / np.abs(wave).max()


def wicket(t: Float[np.ndarray, " samples"], rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """A run of arch-shaped waves of 6 to 11 Hz that waxes and wanes: harmless, and read as spikes too often."""
    rate, width = rng.uniform(6, 11), rng.uniform(0.2, 0.4)
    arches = np.abs(np.sin(np.pi * rate * t + rng.uniform(0, np.pi)))
    wave = -(arches - 2 / np.pi) * np.exp(-0.5 * ((t - rng.uniform(-0.1, 0.1)) / width) ** 2)
    return wave / np.abs(wave).max()


def electrode_pop(t: Float[np.ndarray, " samples"], rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """A contact that gives way: a step at t = 0 that decays, either sign; it has no field, one electrode only."""
    wave = np.where(t >= 0, np.exp(-np.maximum(t, 0) / rng.uniform(0.03, 0.3)), 0.0)
    return wave * rng.choice([-1.0, 1.0]) / max(np.abs(wave).max(), 1e-12)


def blink(t: Float[np.ndarray, " samples"], rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """An eye blink: a positive frontal lobe of 200 to 400 ms."""
    width = rng.uniform(0.2, 0.4)
    return np.sin(np.pi * np.clip(t / width + 0.5, 0, 1)) ** 2


def power_law_noise(
    shape: tuple[int, ...], exponent: Float[np.ndarray, " ..."], sfreq: float, rng: np.random.Generator
) -> Float[np.ndarray, " ... samples"]:
    """Gaussian noise with power 1 / f^exponent from 0.5 Hz on and none below; samples last, standard deviation 1.

    exponent: broadcast against the leading axes of `shape`.
    """
    samples = shape[-1]
    frequency = np.fft.rfftfreq(samples, 1 / sfreq)
    keep = frequency >= 0.5
    gain = np.zeros((*np.shape(exponent), len(frequency)), np.float32)
    gain[..., keep] = frequency[keep] ** (-np.asarray(exponent)[..., None] / 2)
    spectrum = rng.standard_normal((*shape[:-1], len(frequency), 2), np.float32).view(np.complex64)[..., 0]
    noise = np.fft.irfft(spectrum * gain, samples, axis=-1).astype(np.float32)
    return noise / np.maximum(noise.std(-1, keepdims=True), 1e-12)
