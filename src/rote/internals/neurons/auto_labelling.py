"""Labelling a large stream of text token by token, by the best coordinate with two thresholds or by a probe.

    best coordinate:  1 above the 95th percentile of class 0, 0 below the 5th percentile of class 1, dropped between
    probe:            1 at probability >= upper, 0 at <= lower, dropped between

Where the classes hardly overlap the two percentiles cross; the zone between them is dropped then too. The result is
Parquet shards, complete or absent: the same call goes on where an interrupted one stopped, and refuses another model,
rule or stream of documents. Labels read back from there can train a probe on far more text than was labelled by hand.

Knows shards. Knows nothing about: what is done with the labels.
Source: Slonski 2024, arXiv 2412.01014 (a review says it supports large-scale labelling); the thresholds are inferred.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int8

from rote.atomic import leftovers, write_atomic
from rote.errors import InputError, RunMismatchError
from rote.internals.neurons.scoring import probability, score_sequences
from rote.internals.neurons.sites import Place
from rote.internals.neurons.token_labels import TokenLabels
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.internals.neurons.activations import ActivationStore
    from rote.internals.neurons.probes import Probe
    from rote.internals.neurons.selection import Unit
    from rote.models.causal_lm import CausalLM

VERSION = 1
SHARD_DOCUMENTS = 256
KEY_FILE, DONE_FILE = "key.json", "labels.json"
UNLABELLED = -1
SCHEMA = pa.schema(
    [
        pa.field("document", pa.string()),
        pa.field("token", pa.int32()),
        pa.field("token_id", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("label", pa.int8()),
    ]
)


class Labeller(Protocol):
    """Something that scores activations at one place and calls them 1, 0 or -1 (dropped)."""

    @property
    def place(self) -> Place: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def score(self, values: Float[np.ndarray, "tokens dim"]) -> Float[np.ndarray, " tokens"]: ...

    def call(self, scores: Float[np.ndarray, " tokens"]) -> Int8[np.ndarray, " tokens"]: ...


@dataclass(frozen=True)
class TwoThresholds:
    """One coordinate: sign * value >= upper is 1, <= lower is 0, between is dropped."""

    place: Place
    dimension: int
    sign: int
    lower: float
    upper: float

    @property
    def identity(self) -> dict[str, Any]:
        return {"rule": "two thresholds", **vars(self), "place": list(self.place)}

    def score(self, values: Float[np.ndarray, "tokens dim"]) -> Float[np.ndarray, " tokens"]:
        return self.sign * np.asarray(values[:, self.dimension], np.float64)

    def call(self, scores: Float[np.ndarray, " tokens"]) -> Int8[np.ndarray, " tokens"]:
        return _called(scores, self.lower, self.upper)


@dataclass(frozen=True)
class ProbeLabeller:
    """A probe: probability >= upper is 1, <= lower is 0."""

    probe: Probe
    lower: float = 0.5
    upper: float = 0.5

    def __post_init__(self):
        if not 0 <= self.lower <= self.upper <= 1:
            raise InputError(f"thresholds must be 0 <= lower <= upper <= 1, not {self.lower} and {self.upper}")

    @property
    def place(self) -> Place:
        return self.probe.place

    @property
    def identity(self) -> dict[str, Any]:
        linear = self.probe.linear
        content = b"".join(np.ascontiguousarray(v, "<f8").tobytes() for v in (linear.w, linear.mean, linear.sd))
        digest = hashlib.sha256(content + np.float64(linear.b).tobytes()).hexdigest()
        return {"rule": "probe", "probe": digest, "place": list(self.place), "lower": self.lower, "upper": self.upper}

    def score(self, values: Float[np.ndarray, "tokens dim"]) -> Float[np.ndarray, " tokens"]:
        return probability(self.probe)(values)

    def call(self, scores: Float[np.ndarray, " tokens"]) -> Int8[np.ndarray, " tokens"]:
        return _called(scores, self.lower, self.upper)


def two_thresholds(
    values: Float[np.ndarray, " tokens"],
    label: Bool[np.ndarray, " tokens"],
    *,
    high: float = 95.0,
    low: float = 5.0,
) -> tuple[float, float]:
    """(lower, upper) for values that are larger for label 1: upper is the `high` percentile of class 0, lower the `low`
    percentile of class 1, exchanged where they cross (then both classes are clear outside them)."""
    if label.all() or not label.any():
        raise InputError("two thresholds need tokens of both kinds")
    upper, lower = float(np.percentile(values[~label], high)), float(np.percentile(values[label], low))
    return min(lower, upper), max(lower, upper)


def threshold_labeller(acts: ActivationStore, labels: TokenLabels, unit: Unit) -> TwoThresholds:
    """The two-threshold rule of one selected unit, from the labelled tokens."""
    acts.check(labels)
    values = unit.sign * np.asarray(acts[unit.site, unit.layer][:, unit.dimension], np.float64)
    lower, upper = two_thresholds(values, labels.label)
    return TwoThresholds(Place(unit.site, unit.layer), unit.dimension, unit.sign, lower, upper)


def label_stream(
    model: CausalLM,
    labeller: Labeller,
    documents: Iterable[tuple[str, str]],
    directory: str | Path,
    *,
    shard_documents: int = SHARD_DOCUMENTS,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Label every token of every (id, text) and keep the result under `directory`; returns the summary in labels.json.

    part-NNNNN.parquet: document, token, token_id, end (character), score (null where there is none), label (1, 0, -1).
    Documents are read once, a shard at a time; a document with nothing to predict is counted and listed.
    progress(documents done, tokens done).
    Raises RunMismatchError when the directory holds another run, or the documents of a finished shard changed.
    """
    directory = Path(directory)
    key = {
        "version": VERSION,
        "model": model.fingerprint,
        "labeller": labeller.identity,
        "shard_documents": shard_documents,
    }
    key = json.loads(json.dumps(key))
    _claim(directory, key)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    iterator, shard = iter(documents), 0
    totals = {"documents": 0, "tokens": 0, "memorized": 0, "other": 0, "dropped": 0, "unscored": 0}
    skipped: list[str] = []
    while part := list(islice(iterator, shard_documents)):
        content = hashlib.sha256(json.dumps(part).encode("utf-8", "surrogatepass")).hexdigest()
        file = directory / f"part-{shard:05d}.parquet"
        found = _finished(file, digest)
        if found is None:
            table, empty = _shard(model, labeller, part, batch_tokens)
            meta = {"key": digest, "documents": content, "skipped": empty, "count": len(part)}
            sink = pa.BufferOutputStream()
            pq.write_table(table.replace_schema_metadata({"rote": json.dumps(meta)}), sink, compression="zstd")
            write_atomic(file, sink.getvalue().to_pybytes())
        elif found["documents"] != content:
            raise RunMismatchError(f"{file}: was made from other documents; choose another directory")
        else:
            table, empty = pq.read_table(file), found["skipped"]
        skipped += empty
        _count(totals, table, len(part))
        shard += 1
        if progress:
            progress(totals["documents"], totals["tokens"])
    if not shard:
        raise InputError("there are no documents to label")
    if (directory / f"part-{shard:05d}.parquet").exists():
        raise RunMismatchError(f"{directory}: holds labels of more documents than were given; choose another directory")
    summary = {**key, "shards": shard, **totals, "skipped": skipped}
    write_atomic(directory / DONE_FILE, json.dumps(summary, indent=1) + "\n")
    return summary


def read_stream(directory: str | Path) -> Iterator[pa.Table]:
    """The shards of a finished labelling, in order. Raises InputError when it is not finished."""
    directory = Path(directory)
    if not (directory / DONE_FILE).exists():
        raise InputError(f"{directory}: holds no finished labelling; run it again to finish it")
    summary = json.loads((directory / DONE_FILE).read_text(encoding="utf-8"))
    for shard in range(summary["shards"]):
        yield pq.read_table(directory / f"part-{shard:05d}.parquet")


def labels_of_stream(directory: str | Path, *, cap: int | None = 100, seed: int = 0) -> TokenLabels:
    """Labels 1 and 0 of a finished labelling as `TokenLabels` (kinds other, memorized), at most `cap` tokens a
    document: what a probe is trained on. Only documents that fit the context as a whole can be captured afterwards."""
    sequences, ids, sample, token, kind = [], [], [], [], []
    for table in read_stream(directory):
        names = np.asarray(table.column("document").to_pylist(), object)
        numbers = {name: table.column(name).to_numpy() for name in ("token_id", "label")}
        starts = np.flatnonzero(table.column("token").to_numpy() == 0)
        for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
            label = numbers["label"][start:stop]
            wanted = np.flatnonzero(label != UNLABELLED)
            if cap is not None and len(wanted) > cap:
                rng = np.random.default_rng(derive_seed(seed, "cap", names[start]))
                wanted = np.sort(rng.permutation(wanted)[:cap])
            sample.append(np.full(len(wanted), len(sequences)))
            token.append(wanted)
            kind.append(label[wanted].astype(np.int8))
            sequences.append(numbers["token_id"][start:stop].astype(np.int64))
            ids.append(str(names[start]))
    tokens = np.concatenate(token) if token else np.zeros(0, np.int64)
    return TokenLabels(
        tuple(sequences), tuple(ids), tuple(ids), np.concatenate(sample) if sample else tokens, tokens,
        np.concatenate(kind) if kind else tokens.astype(np.int8), ("other", "memorized"), np.zeros(len(tokens), bool),
        np.full(len(tokens), np.nan, np.float32), {"from": "labelled stream", "cap": cap, "seed": seed},
    )  # fmt: skip


def _called(scores: np.ndarray, lower: float, upper: float) -> np.ndarray:
    out = np.full(len(scores), UNLABELLED, np.int8)
    out[scores <= lower] = 0
    out[scores >= upper] = 1
    return out


def _claim(directory: Path, key: dict[str, Any]) -> None:
    if (directory / KEY_FILE).exists():
        try:
            found = json.loads((directory / KEY_FILE).read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{directory / KEY_FILE}: cannot be read; choose another directory") from None
        if differs := sorted(name for name in {*found, *key} if found.get(name) != key.get(name)):
            raise RunMismatchError(
                f"{directory}: holds labels of another run ({', '.join(differs)} changed); choose another directory"
            )
        return
    unfinished = leftovers(directory / KEY_FILE)  # of a run that was killed while it began
    if directory.exists() and (not directory.is_dir() or set(directory.iterdir()) > set(unfinished)):
        raise InputError(f"{directory}: is not empty and holds no labelling; choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / KEY_FILE, json.dumps(key, indent=1))


def _finished(file: Path, digest: str) -> dict[str, Any] | None:
    try:
        meta = json.loads((pq.read_schema(file).metadata or {})[b"rote"])
    except (OSError, KeyError, ValueError):  # pyarrow's ArrowInvalid is a ValueError
        return None
    return meta if meta.get("key") == digest else None


def _shard(model, labeller: Labeller, part: list[tuple[str, str]], batch_tokens) -> tuple[pa.Table, list[str]]:
    encoded = model.encode([text for _, text in part])
    scores = score_sequences(model, labeller.place, labeller.score, [e.ids for e in encoded], batch_tokens=batch_tokens)
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    skipped = []
    for (name, _), encoding, score in zip(part, encoded, scores, strict=True):
        there = np.isfinite(score)
        if not there.any():
            skipped.append(name)
        label = np.where(there, labeller.call(np.nan_to_num(score)), UNLABELLED).astype(np.int8)
        columns["document"] += [name] * len(score)
        columns["token"] += range(len(score))
        columns["token_id"] += encoding.ids
        columns["end"] += encoding.ends
        columns["score"] += [float(value) if known else None for value, known in zip(score, there, strict=True)]
        columns["label"] += label.tolist()
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}), skipped


def _count(totals: dict[str, int], table: pa.Table, documents: int) -> None:
    label, unscored = table.column("label").to_numpy(), table.column("score").null_count
    totals["documents"] += documents
    totals["tokens"] += table.num_rows
    totals["memorized"] += int((label == 1).sum())
    totals["other"] += int((label == 0).sum())
    totals["unscored"] += unscored
    totals["dropped"] += int((label == UNLABELLED).sum()) - unscored
