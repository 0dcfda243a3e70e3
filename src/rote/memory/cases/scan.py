"""Events in a continuous recording: a window slides, every window is asked, hits that touch are merged.

    window = the model's crop;  hit: calibrated probability >= threshold;  hits closer than `refractory` are one event

An event's onset is the centre of its most probable window. The calibrated probability is that of segments like the
calibration set's, in which events are common. In a recording they are rare, and each minute asks hundreds of windows:
at probability one half, one quiet window in twenty that looks like an event makes some twenty false events a minute.
So take the threshold from recordings known to hold no event (`quiet_threshold`) before quoting a sensitivity.

Knows nothing about: files, figures.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.memory.cases.estimator import ProtoKNN
from rote.memory.cases.montage import Montage
from rote.memory.cases.preprocessing import check_segments

REGIONS = {
    "left frontal": ("Fp1", "F3"), "left temporal": ("F7", "T3", "T5"), "left parietal": ("C3", "P3"),
    "left occipital": ("O1",), "midline": ("Fz", "Cz", "Pz"), "right frontal": ("Fp2", "F4"),
    "right temporal": ("F8", "T4", "T6"), "right parietal": ("C4", "P4"), "right occipital": ("O2",),
}  # fmt: skip
BATCH = 256


@dataclass(frozen=True)
class Event:
    """onset (s) of the most probable window's centre, duration (s) of the hits, region by channel weight."""

    onset: float
    duration: float
    probability: float
    vote: float
    region: str
    neighbours: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """Events in order, and what every window said. times: window centres, s; seconds: length of the recording."""

    events: tuple[Event, ...]
    times: Float[np.ndarray, " windows"]
    probability: Float[np.ndarray, " windows"]
    seconds: float
    threshold: float
    refractory: float = 0.5

    @property
    def per_minute(self) -> float:
        return 60 * len(self.events) / self.seconds

    def runs(self, threshold: float) -> list[np.ndarray]:
        """Windows of each event at this threshold, the most probable ones of each (several where they are equal)."""
        merged = merge_hits(self.times, self.probability >= threshold, self.refractory)
        return [run[self.probability[run] == self.probability[run].max()] for run in merged]

    def save_tsv(self, path: str | Path) -> Path:
        """BIDS-style events: onset, duration, probability, vote, region, neighbours (ids, comma-separated)."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
        writer.writerow(("onset", "duration", "probability", "vote", "region", "neighbours"))
        for e in self.events:
            writer.writerow((f"{e.onset:.3f}", f"{e.duration:.3f}", f"{e.probability:.4f}", f"{e.vote:.4f}", e.region,
                             ",".join(e.neighbours)))  # fmt: skip
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, buffer.getvalue())

    def to_annotations(self):
        """MNE Annotations, one an event, described by region and probability."""
        try:
            import mne
        except ImportError:
            from rote.errors import MissingDependencyError

            raise MissingDependencyError("mne", "eeg") from None
        return mne.Annotations(
            [e.onset - e.duration / 2 for e in self.events], [e.duration for e in self.events],
            [f"IED? {e.region} p={e.probability:.2f}" for e in self.events],
        )  # fmt: skip


def scan_recording(
    estimator: ProtoKNN,
    data: Float[np.ndarray, "channels samples"],
    names: Sequence[str],
    sfreq: float,
    *,
    stride: float = 0.125,
    threshold: float = 0.5,
    refractory: float = 0.5,
    group: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Slide over a recording (uV). group: its patient, whose cases are then no neighbours.

    Raises InputError for another rate or montage, NaN samples, or a recording shorter than a window.
    """
    model = estimator.model_
    crop = model.signal.crop
    if stride <= 0 or not 0 < threshold < 1 or refractory < 0:
        raise InputError("stride must be above 0, threshold between 0 and 1, refractory at least 0")
    ordered = np.asarray(data, np.float32)[model.montage.order(names, where="the recording")]
    check_segments(ordered[None], model.montage, model.signal, sfreq=sfreq, where="the recording")
    step = max(1, round(stride * sfreq))
    starts = np.arange(0, ordered.shape[1] - crop + 1, step)
    windows = np.lib.stride_tricks.sliding_window_view(ordered, crop, axis=1)[:, starts].transpose(1, 0, 2)
    votes, weights, near = [], [], []
    for at in range(0, len(starts), BATCH):
        encoded = model.encode(np.ascontiguousarray(windows[at : at + BATCH]))
        names_of = None if group is None else np.full(len(encoded.signals), str(group))
        found = estimator._search(encoded, names_of)
        votes.append(estimator.cases_.fraction[found.index].mean(1))
        weights.append(encoded.weights.numpy())
        near.append(found.index)
        if progress:
            progress(min(at + BATCH, len(starts)), len(starts))
    vote, weight, index = np.concatenate(votes), np.concatenate(weights), np.concatenate(near)
    chance = estimator.calibrated(vote)
    times = (starts + crop / 2) / sfreq
    events = []
    for run in merge_hits(times, chance >= threshold, refractory):
        # The first of equally probable windows would sit at the edge of the run: take the middle one.
        best = run[chance[run] == chance[run].max()]
        peak = int(best[len(best) // 2])
        events.append(
            Event(
                float(times[peak]), float(times[run[-1]] - times[run[0]] + stride), float(chance[peak]),
                float(vote[peak]), region(model.montage, weight[peak]),
                tuple(map(str, estimator.cases_.ids[index[peak]])),
            )
        )  # fmt: skip
    return Scan(tuple(events), times, chance, ordered.shape[1] / sfreq, threshold, refractory)


def merge_hits(times: Float[np.ndarray, " n"], hit: np.ndarray, refractory: float) -> list[np.ndarray]:
    """Indices of the windows of each event: hits whose neighbours are at most `refractory` seconds away."""
    at = np.flatnonzero(hit)
    if not len(at):
        return []
    return np.split(at, np.flatnonzero(np.diff(times[at]) > refractory + 1e-9) + 1)


def quiet_threshold(scans: Sequence[Scan], *, per_minute: float = 1.0) -> float:
    """The least threshold from which on these scans, of recordings known to hold no event, have at most `per_minute`
    events a minute.

    Raises InputError without a scan, and where even windows of the highest probability are more than that: the cases
    then cannot tell quiet EEG of these recordings from events.
    """
    if not scans or per_minute < 0:
        raise InputError("give one scan or more of recordings without events, and a rate of at least 0 a minute")
    allowed = per_minute * sum(scan.seconds for scan in scans) / 60

    def false_events(threshold: float) -> int:
        return sum(len(scan.runs(threshold)) for scan in scans)

    found = None
    for level in np.unique(np.concatenate([scan.probability for scan in scans]))[::-1]:
        if false_events(level) > allowed:
            break
        found = float(level)
    if found is None:
        raise InputError(
            f"at most {per_minute:g} false events a minute cannot be had: {false_events(level)} windows or runs of them"
            f" reach the highest probability, {level:.3f}; fit with quiet segments of such recordings among the cases"
        )
    return found


def electrode_weights(montage: Montage, weights: Float[np.ndarray, " c"]) -> Float[np.ndarray, " electrodes"]:
    """A channel's weight goes to its electrode, a pair's half to each of its two; the sum stays."""
    out = np.zeros(len(montage.electrodes))
    averages = len(montage.electrodes) if montage.average else 0
    out[:averages] += weights[:averages]
    for row, (a, b) in enumerate(montage.pairs):
        for name in (a, b):
            out[montage.electrodes.index(name)] += weights[averages + row] / 2
    return out


def region(montage: Montage, weights: Float[np.ndarray, " c"]) -> str:
    """The region whose electrodes have the largest mean weight; for other montages the electrode itself."""
    own = dict(zip(montage.electrodes, electrode_weights(montage, weights), strict=True))
    known: Counter = Counter()
    for name, electrodes in REGIONS.items():
        if all(electrode in own for electrode in electrodes):
            known[name] = float(np.mean([own[electrode] for electrode in electrodes]))  # type: ignore[assignment]
    return known.most_common(1)[0][0] if known else max(own, key=lambda name: own[name])
