"""EEG files as arrays in microvolts: EDF, BDF, FIF, BrainVision and EEGLAB through MNE, segments from `.npz`.

MNE gives volts; they are multiplied by 1e6 here, once. Channels keep the file's names and order. A rate that is not the
one asked for is refused, or resampled on request.

Knows nothing about: montages, models, votes.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rote.errors import InputError
from rote.records.eeg_head import load_mne

SUFFIXES = (".edf", ".bdf", ".fif", ".vhdr", ".set")


@dataclass(frozen=True)
class Recording:
    """A continuous recording, uV. names: the file's channels, of any type."""

    data: Float[np.ndarray, "channels samples"]
    names: tuple[str, ...]
    sfreq: float
    path: Path

    @property
    def seconds(self) -> float:
        return self.data.shape[1] / self.sfreq

    def segment(self, centre: float, samples: int) -> Float[np.ndarray, "channels samples"]:
        """`samples` around the time `centre` (s). Raises InputError when the recording does not reach that far."""
        start = round(centre * self.sfreq) - samples // 2
        if start < 0 or start + samples > self.data.shape[1]:
            half = samples / self.sfreq / 2
            raise InputError(
                f"{self.path}: a segment of {samples / self.sfreq:g} s around {centre:g} s leaves the recording"
                f" ({self.seconds:.1f} s); give a time from {half:.2f} to {max(half, self.seconds - half):.2f} s"
            )
        return self.data[:, start : start + samples]


def read_recording(path: str | Path, *, sfreq: float | None = None, resample: bool = False) -> Recording:
    """Read a recording. sfreq: the rate that is needed; resample: change to it instead of refusing another one.

    Raises InputError for a missing or unreadable file, an unknown suffix, or another rate; MissingDependencyError
    without MNE.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: not a recording Rote reads ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    mne = load_mne()
    try:
        raw: Any = mne.io.read_raw(path, preload=True, verbose="error")
    except Exception as error:  # MNE raises many kinds for files that are not what their names say
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as {path.suffix.lower()} ({reason})") from None
    rate = float(raw.info["sfreq"])
    if sfreq is not None and abs(rate - sfreq) > 1e-6:
        if not resample:
            raise InputError(
                f"{path}: sampled at {rate:g} Hz, {sfreq:g} Hz are needed; add --resample (resample=True), or resample"
                " it yourself"
            )
        raw = raw.resample(sfreq, verbose="error")
        rate = sfreq
    return Recording(raw.get_data().astype(np.float32) * np.float32(1e6), tuple(raw.ch_names), rate, path)


def write_edf(
    path: str | Path, data: Float[np.ndarray, "channels samples"], names: Sequence[str], sfreq: float,
    *, events: Sequence[tuple[float, str]] = (),
) -> Path:  # fmt: skip
    """Write microvolts as EDF+ with annotations (onset in s, text), whole or not at all.

    Raises MissingDependencyError without edfio, InputError for a path that is no .edf.
    """
    import io

    from rote.atomic import write_atomic
    from rote.errors import MissingDependencyError

    path = Path(path)
    if path.suffix.lower() != ".edf":
        raise InputError(f"{path}: an EDF recording is a .edf file")
    try:
        import edfio
    except ImportError:
        raise MissingDependencyError("edfio", "eeg") from None
    whole = int(data.shape[1] // sfreq * sfreq)  # EDF holds whole seconds
    signals = [
        edfio.EdfSignal(np.asarray(row[:whole], np.float64), sfreq, label=name, physical_dimension="uV")
        for row, name in zip(data, names, strict=True)
    ]
    notes = [edfio.EdfAnnotation(onset, None, text) for onset, text in events]
    buffer = io.BytesIO()
    edfio.Edf(signals, annotations=notes).write(buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(path, buffer.getvalue())


@dataclass(frozen=True)
class Segments:
    """Labelled segments, uV, with their patients. names: electrodes in the order of the data."""

    data: Float[np.ndarray, "n electrodes samples"]
    votes: np.ndarray
    groups: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    sfreq: float
    raters: int


def read_segments(path: str | Path) -> Segments:
    """Segments of a `.npz` with data, votes, groups, names, sfreq and optionally ids and raters (8).

    Raises InputError for a file that is none, holds objects (pickles are refused), or lacks an array.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as .npz ({str(error).splitlines()[0]})") from None
    except Exception as error:  # zipfile's own errors
        raise InputError(f"{path}: cannot be read as .npz ({type(error).__name__})") from None
    missing = [name for name in ("data", "votes", "groups", "names", "sfreq") if name not in arrays]
    if missing:
        raise InputError(f"{path}: holds no {', '.join(missing)}; it has {', '.join(sorted(arrays))}")
    n = len(arrays["data"])
    ids = arrays.get("ids", np.array([f"{path.stem}-{row:05d}" for row in range(n)]))
    return Segments(
        arrays["data"], arrays["votes"], arrays["groups"], ids.astype(str), tuple(map(str, arrays["names"])),
        float(arrays["sfreq"]), int(arrays.get("raters", 8)),
    )  # fmt: skip


def segments_from_events(
    directory: str | Path, events: str | Path, *, samples: int, sfreq: float, group: str = "patient", raters: int = 8,
    resample: bool = False,
) -> Segments:  # fmt: skip
    """Cut segments around the events of a table (TSV or CSV): columns file, onset (s, the centre), votes and `group`.

    Raises InputError with the line for a missing column, file or value; channels must be the same in all files.
    """
    directory, events = Path(directory), Path(events)
    try:
        text = events.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{events}: cannot be read ({error.strerror})") from None
    rows = list(csv.DictReader(text.splitlines(), delimiter="," if events.suffix.lower() == ".csv" else "\t"))
    if not rows:
        raise InputError(f"{events}: holds no events")
    for column in ("file", "onset", "votes", group):
        if column not in rows[0]:
            hint = " (choose the column with --groups)" if column == group else ""
            raise InputError(f"{events}: has no column {column!r}{hint}; it has {', '.join(map(str, rows[0]))}")
    opened: dict[str, Recording] = {}
    data, votes = [], []
    for number, row in enumerate(rows, 2):
        name = row["file"] or ""
        if Path(name).name != name or not name:
            raise InputError(f"{events} line {number}: file {name!r} must be the name of a file in {directory}")
        try:
            onset, vote = float(row["onset"]), float(row["votes"])
        except (TypeError, ValueError):
            raise InputError(f"{events} line {number}: onset and votes must be numbers") from None
        if name not in opened:
            opened[name] = read_recording(directory / name, sfreq=sfreq, resample=resample)
            first = next(iter(opened.values()))
            if opened[name].names != first.names:
                raise InputError(f"{directory / name}: has other channels than {first.path.name}; make them equal")
        data.append(opened[name].segment(onset, samples))
        votes.append(vote)
    ids = [f"{Path(row['file']).stem}@{float(row['onset']):g}" for row in rows]
    groups = np.array([row[group] or "" for row in rows])
    return Segments(
        np.stack(data), np.array(votes), groups, np.array(ids), next(iter(opened.values())).names, sfreq, raters
    )
