"""`ied-sim`: EEG segments with and without epileptiform discharges, eight simulated raters, patients as groups.

    segment = background (80 dipoles, 1/f^b, + alpha) + transient (field x waveform x amplitude) + noise
    vote_r ~ Bernoulli(logistic(SLOPE log(SNR / SNR0) + morphology + ambiguity + bias_r)), SNR = peak / background RMS

A patient has one focus, one morphology, one background. Negatives include vertex waves, wicket rhythm, electrode pops
and blinks. The votes come out U-shaped (many 0, many 7 and 8), as in real tables of eight experts.

Data are microvolts. Simulated: directions, never clinical figures. After Tang et al. 2025, arXiv 2510.20846 (the task);
the generator itself is Rote's.

Knows nothing about: models, similarity.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.records import eeg_waveforms as shapes
from rote.records.eeg_head import FOCI, TEN_TWENTY_NAMES, Head, spherical_head
from rote.runtime import derive_seed

SFREQ = 128.0
SAMPLES = 192  # 1.5 s
RATERS = 8
SOURCES = 80
SENSOR_NOISE = 1.5  # uV
SLOPE, SNR0 = 3.0, 2.4
EASE = {"spike": 0.3, "sharp": -0.3, "spike-wave": 0.8, "polyspike-wave": 0.8}
BENIGN = {"background": -6.0, "vertex wave": -3.2, "wicket": -3.0, "electrode pop": -4.5, "blink": -5.5}
BENIGN_SHARE = {"background": 0.4, "vertex wave": 0.2, "wicket": 0.15, "electrode pop": 0.1, "blink": 0.15}
_BLINK_FIELD = {"Fp1": 1.0, "Fp2": 1.0, "F7": 0.35, "F8": 0.35, "F3": 0.3, "F4": 0.3, "Fz": 0.3}


@dataclass(frozen=True)
class SimulatedEEG:
    """Segments in microvolts, votes 0 .. 8, the patient of each, and what was really put in.

    kind: "ied" or one of `BENIGN`; focus, morphology: of the discharge, "" where there is none; snr: NaN there.
    """

    data: Float[np.ndarray, "n 19 192"]
    votes: Int[np.ndarray, " n"]
    groups: np.ndarray
    ids: np.ndarray
    kind: np.ndarray
    focus: np.ndarray
    morphology: np.ndarray
    snr: Float[np.ndarray, " n"]
    names: tuple[str, ...] = TEN_TWENTY_NAMES
    sfreq: float = SFREQ
    raters: int = RATERS

    def __len__(self) -> int:
        return len(self.data)

    def take(self, rows: np.ndarray) -> SimulatedEEG:
        """The segments `rows` (indices or a mask)."""
        per_row: dict[str, Any] = {field.name: getattr(self, field.name)[rows] for field in fields(self)[:8]}
        return replace(self, **per_row)

    def save(self, path: str | Path) -> Path:
        """Write a `.npz` without pickles: data, votes, groups, ids, kind, focus, morphology, snr, names, sfreq."""
        path = Path(path)
        if path.suffix != ".npz":
            raise InputError(f"{path}: simulated segments are a .npz file")
        buffer = io.BytesIO()
        arrays = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        np.savez(buffer, allow_pickle=False, **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, buffer.getvalue())


@dataclass(frozen=True)
class Patient:
    """What all segments of one patient share. `sources`: columns of the head's lead field."""

    name: str
    focus: str
    field: Float[np.ndarray, " 19"]
    morphology: str
    amplitude: float
    epileptic: bool
    sources: Int[np.ndarray, " 80"]
    exponent: Float[np.ndarray, " 80"]
    alpha: float
    alpha_rate: float
    rms: float


def draw_patient(head: Head, name: str, rng: np.random.Generator, *, healthy_share: float = 0.25) -> Patient:
    """One patient: focus and morphology uniform, background 8-20 uV RMS, median discharge 70 uV."""
    focus = str(rng.choice(list(FOCI)))
    base = rng.uniform(0.8, 2.0)
    return Patient(
        name=name,
        focus=focus,
        field=head.focus(focus, jitter=rng.normal(0, 0.12, 3)),
        morphology=str(rng.choice(shapes.MORPHOLOGIES)),
        amplitude=float(70 * np.exp(rng.normal(0, 0.35))),
        epileptic=bool(rng.random() >= healthy_share),
        sources=rng.choice(head.place.shape[0], SOURCES, replace=False),
        exponent=np.clip(base + rng.normal(0, 0.2, SOURCES), 0.8, 2.0),
        alpha=float(rng.uniform(0, 1.2)),
        alpha_rate=float(rng.uniform(8, 12)),
        rms=float(rng.uniform(8, 20)),
    )


def background(
    patient: Patient, head: Head, n: int, samples: int, rng: np.random.Generator
) -> Float[np.ndarray, "n 19 samples"]:
    """Ongoing activity of a patient, mean over channels and time of its square = patient.rms^2, in uV."""
    span = max(2 * samples, int(4 * SFREQ))  # longer than the segment: slow waves then cross its ends
    noise = shapes.power_law_noise((n, SOURCES, span), patient.exponent, SFREQ, rng)[..., :samples]
    scalp = np.einsum("cs,nst->nct", head.any_way[:, patient.sources].astype(np.float32), noise, optimize=True)
    scalp /= np.sqrt((scalp**2).mean())
    time = np.arange(samples) / SFREQ
    waxing = 0.5 + 0.5 * np.abs(np.sin(2 * np.pi * 0.3 * time + rng.uniform(0, 2 * np.pi, (n, 1))))
    rhythm = waxing * np.sin(2 * np.pi * patient.alpha_rate * time + rng.uniform(0, 2 * np.pi, (n, 1)))
    occipital = np.maximum(head.focus("left occipital"), 0) + np.maximum(head.focus("right occipital"), 0)
    scalp = scalp + patient.alpha * occipital[None, :, None] * rhythm[:, None]
    return (patient.rms * scalp / np.sqrt((scalp**2).mean())).astype(np.float32)


def rater_votes(
    logit: Float[np.ndarray, " n"], rng: np.random.Generator, *, raters: int = RATERS
) -> Int[np.ndarray, " n"]:
    """How many of the raters mark each segment: shared ambiguity N(0, .7), own strictness N(0, .5) a rater."""
    strictness = rng.normal(0, 0.5, raters)
    shared = logit + rng.normal(0, 0.7, len(logit))
    chance = 1 / (1 + np.exp(-(shared[:, None] + strictness)))
    return (rng.random(chance.shape) < chance).sum(1).astype(np.int64)


def simulate_eeg(
    n: int = 1000, *, patients: int | None = None, seed: int = 0, ied_share: float = 2 / 3, healthy_share: float = 0.25
) -> SimulatedEEG:
    """`n` segments of `patients` patients (default: one for every ten segments).

    ied_share: of the segments of a patient with epilepsy, how many hold a discharge. Deterministic for a seed; the
    segments of a patient do not depend on how many other patients there are.
    Raises InputError for sizes that make no data set, MissingDependencyError without MNE.
    """
    patients = max(2, n // 10) if patients is None else patients
    if n < 2 or not 2 <= patients <= n:
        raise InputError(f"{n} segments of {patients} patients: give at least 2 patients and a segment for each")
    head = spherical_head()
    sizes = np.diff(np.linspace(0, n, patients + 1).round().astype(int))
    width = len(str(patients - 1))
    parts = [
        _segments(head, f"P{number:0{width}d}", int(size), derive_seed(seed, "patient", number), ied_share,
                  healthy_share)
        for number, size in enumerate(sizes)
    ]  # fmt: skip
    columns: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    votes = rater_votes(columns.pop("logit"), np.random.default_rng(derive_seed(seed, "raters")))
    return SimulatedEEG(votes=votes, **columns)


def _segments(head: Head, name: str, n: int, seed: int, ied_share: float, healthy_share: float) -> dict:
    rng = np.random.default_rng(seed)
    patient = draw_patient(head, name, rng, healthy_share=healthy_share)
    data = background(patient, head, n, SAMPLES, rng) * np.exp(rng.normal(0, 0.1, (n, 1, 1))).astype(np.float32)
    ied = (rng.random(n) < ied_share) & patient.epileptic
    kind = np.where(ied, "ied", rng.choice(list(BENIGN), n, p=list(BENIGN_SHARE.values()))).astype("U13")
    time = (np.arange(SAMPLES) - SAMPLES / 2) / SFREQ
    snr, logit = np.full(n, np.nan), np.empty(n)
    for row in range(n):
        at = time - rng.normal(0, 0.04)
        if ied[row]:
            added, peak = _discharge(patient, at, rng)
            snr[row] = peak / patient.rms
            logit[row] = SLOPE * np.log(snr[row] / SNR0) + EASE[patient.morphology]
        else:
            added = _benign(head, str(kind[row]), at, rng)
            logit[row] = BENIGN[str(kind[row])]
        data[row] += added
    data += rng.normal(0, SENSOR_NOISE, data.shape).astype(np.float32)
    return {
        "data": data,
        "groups": np.full(n, name),
        "ids": np.array([f"{name}-{row:03d}" for row in range(n)]),
        "kind": kind,
        "focus": np.where(ied, patient.focus, "").astype("U16"),
        "morphology": np.where(ied, patient.morphology, "").astype("U16"),
        "snr": snr,
        "logit": logit,
    }


def _discharge(patient: Patient, t: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """The field of the patient's focus times a discharge, negative at its maximum; and its peak in uV."""
    peak = float(patient.amplitude * np.exp(rng.normal(0, 0.3)))
    return peak * patient.field[:, None] * shapes.discharge(t, patient.morphology, rng), peak


def _benign(head: Head, kind: str, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if kind == "background":
        return np.zeros((len(TEN_TWENTY_NAMES), len(t)))
    if kind == "vertex wave":
        field = head.topography(head.direction(("Cz",)) + rng.normal(0, 0.05, 3))
        return rng.uniform(50, 120) * field[:, None] * shapes.vertex_wave(t, rng)
    if kind == "wicket":
        field = head.topography(head.direction((str(rng.choice(["T3", "T4"])),)) + rng.normal(0, 0.08, 3))
        return rng.uniform(40, 80) * field[:, None] * shapes.wicket(t, rng)
    if kind == "electrode pop":
        field = (np.arange(len(TEN_TWENTY_NAMES)) == rng.integers(len(TEN_TWENTY_NAMES))).astype(float)
        return rng.uniform(60, 300) * field[:, None] * shapes.electrode_pop(t, rng)
    field = np.array([_BLINK_FIELD.get(name, 0.05) for name in TEN_TWENTY_NAMES])
    return rng.uniform(80, 200) * field[:, None] * shapes.blink(t, rng)


@dataclass(frozen=True)
class SimulatedRecording:
    """A continuous recording in microvolts and the times (s) of the discharges put into it."""

    data: Float[np.ndarray, "19 samples"]
    onsets: Float[np.ndarray, " discharges"]
    patient: Patient
    names: tuple[str, ...] = TEN_TWENTY_NAMES
    sfreq: float = SFREQ


def simulate_recording(seconds: float = 60.0, *, per_minute: float = 10.0, seed: int = 0) -> SimulatedRecording:
    """One patient with epilepsy: ongoing activity, discharges at random times at least 1.5 s apart, blinks between.

    Raises InputError when so many discharges do not fit.
    """
    count = round(seconds * per_minute / 60)
    slots = int(seconds // 1.5) - 2
    if seconds < 6 or count > slots:
        raise InputError(f"{count} discharges do not fit into {seconds:g} s at 1.5 s apart: at most {max(slots, 0)}")
    rng = np.random.default_rng(derive_seed(seed, "recording"))
    head, samples = spherical_head(), round(seconds * SFREQ)
    patient = draw_patient(head, "P", rng, healthy_share=0.0)
    data = background(patient, head, 1, samples, rng)[0]
    chosen = rng.permutation(slots)
    time = np.arange(samples) / SFREQ
    onsets = np.sort(1.5 * (1 + chosen[:count]) + rng.uniform(0, 0.4, count) + 0.5)
    for onset in onsets:
        data += _discharge(patient, time - onset, rng)[0].astype(np.float32)
    for slot in chosen[count : count + (slots - count) // 10]:
        data += _benign(head, "blink", time - 1.5 * (1 + slot) - 0.7, rng).astype(np.float32)
    data += rng.normal(0, SENSOR_NOISE, data.shape).astype(np.float32)
    return SimulatedRecording(data, onsets, patient)
