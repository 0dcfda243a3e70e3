"""Activations of the positions that predict labelled tokens, kept as one matrix per site and layer, on disk if large.

    row i of acts[site, layer] = activation at input position (token_i - 1, + 1 with a BOS) of sequence sample_i

10^5 coordinates of 10^5 tokens are 40 GB: matrices go to memory-mapped float16 or float32 files, written batch by
batch, and everything that reads them goes by blocks of columns. A store on disk is complete or absent, and knows the
model and the labels it was made from.

Knows nothing about: what the labels mean, statistics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from rote.atomic import whole_directory
from rote.errors import InputError, RunMismatchError
from rote.internals.neurons.sites import Place, parse_places
from rote.internals.neurons.stream import outputs_at, run_batches, widths

if TYPE_CHECKING:
    from rote.internals.neurons.token_labels import TokenLabels
    from rote.models.causal_lm import CausalLM

VERSION = 1
MEMORY_BYTES = 2 << 30  # more than this needs a directory
BLOCK_BYTES = 64 << 20  # float64 copy of the columns read at a time
KEY_FILE = "activations.json"
OUTPUTS = ("logp", "entropy", "max_logp")


@dataclass(frozen=True)
class ActivationStore:
    """Captured activations. outputs: (log p of the token, entropy, max log p) of the same positions, float32."""

    arrays: Mapping[Place, Float[np.ndarray, "tokens dim"]]
    outputs: Float[np.ndarray, "tokens 3"]
    model: str  # fingerprint
    labels: str  # fingerprint
    tokens: int

    def __getitem__(self, place: tuple[str, int]) -> Float[np.ndarray, "tokens dim"]:
        """One matrix. Raises InputError with what there is."""
        found = self.arrays.get(Place(*place))
        if found is None:
            there = ", ".join(f"{site} {layer}" for site, layer in self.arrays)
            raise InputError(f"no activations of {place[0]} layer {place[1]} in this store; it has: {there}")
        return found

    @property
    def coordinates(self) -> int:
        return sum(array.shape[1] for array in self.arrays.values())

    def layers(self, site: str) -> list[int]:
        """Captured layers of a site, ascending. Raises InputError when there are none."""
        found = sorted(place.layer for place in self.arrays if place.site == site)
        if not found:
            raise InputError(
                f"no activations of {site!r} in this store; it has: {', '.join(sorted({p.site for p in self.arrays}))}"
            )
        return found

    def blocks(
        self, place: Place, rows: np.ndarray | slice = slice(None)
    ) -> Iterator[tuple[slice, Float[np.ndarray, "tokens columns"]]]:
        """(columns, values as float32) of one matrix, a bounded number of columns at a time."""
        array = self[place]
        size = max(1, BLOCK_BYTES // (8 * max(1, len(array))))
        for start in range(0, array.shape[1], size):
            columns = slice(start, min(start + size, array.shape[1]))
            yield columns, np.asarray(array[:, columns][rows], np.float32)

    def check(self, labels: TokenLabels) -> None:
        """Raises RunMismatchError when these activations do not belong to these labels."""
        if len(labels) != self.tokens or labels.fingerprint != self.labels:
            raise RunMismatchError("the activations were captured for other labels: capture them again")

    def take(self, which: np.ndarray, labels: TokenLabels) -> ActivationStore:
        """The rows `which` (numbers or mask), read into memory; `labels` are the labels of those rows."""
        arrays = {place: np.asarray(array)[which] for place, array in self.arrays.items()}
        return ActivationStore(arrays, self.outputs[which], self.model, labels.fingerprint, len(labels))

    @classmethod
    def capture(
        cls,
        model: CausalLM,
        labels: TokenLabels,
        *,
        sites: Sequence[str] | str = ("resid_post", "mlp_hidden", "attn_out"),
        layers: Sequence[int] | int | str = "all",
        dtype: str = "float32",
        directory: str | Path | None = None,
        batch_tokens: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ActivationStore:
        """One forward pass over the labelled sequences.

        dtype: float32 or float16 (half the room; a value beyond its range is refused, never saturated). directory: keep
        the matrices there, and use those that are there already when they belong to this model and these labels.
        progress(sequences done, in all).
        Raises InputError for a place that does not exist or too much for memory, RunMismatchError for a directory of
        something else.
        """
        if dtype not in ("float32", "float16"):
            raise InputError(f"activations are kept as float32 or float16, not {dtype!r}")
        places = parse_places(model.hf, sites, layers)
        key = {
            "version": VERSION, "model": model.fingerprint, "labels": labels.fingerprint, "dtype": dtype,
            "tokens": len(labels), "places": [list(place) for place in places],
        }  # fmt: skip
        if directory is not None and (Path(directory) / KEY_FILE).exists():
            return cls._open(Path(directory), key)
        sizes = widths(model, places)
        total = len(labels) * sum(sizes.values()) * np.dtype(dtype).itemsize
        if directory is None and total > MEMORY_BYTES:
            raise InputError(
                f"{len(labels):,} tokens x {sum(sizes.values()):,} coordinates take {total / 2**30:.1f} GiB: give a"
                " directory for them, or fewer sites and layers"
            )
        if directory is None:
            arrays = {place: _allocate(None, place, (len(labels), size), dtype) for place, size in sizes.items()}
            outputs = _fill(model, labels, arrays, batch_tokens, progress)
            return cls(arrays, outputs, model.fingerprint, labels.fingerprint, len(labels))
        directory = Path(directory)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InputError(f"{directory}: is not empty and holds no activations; choose another directory")
        with whole_directory(directory) as part:
            arrays = {place: _allocate(part, place, (len(labels), size), dtype) for place, size in sizes.items()}
            np.save(part / "outputs.npy", _fill(model, labels, arrays, batch_tokens, progress))
            for array in arrays.values():
                array.flush()  # pyright: ignore[reportAttributeAccessIssue]
            del arrays
            (part / KEY_FILE).write_text(json.dumps(key, indent=1), encoding="utf-8")
        return cls._open(directory, key)

    @classmethod
    def _open(cls, directory: Path, key: dict) -> ActivationStore:
        try:
            found = json.loads((directory / KEY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{directory / KEY_FILE}: cannot be read; remove the directory and capture again"
            ) from None
        if differs := sorted(name for name in {*found, *key} if found.get(name) != key.get(name)):
            raise RunMismatchError(
                f"{directory}: holds other activations ({', '.join(differs)} changed); choose another directory"
            )
        places = [Place(*place) for place in key["places"]]
        arrays = {place: np.load(directory / _file(place), mmap_mode="r") for place in places}
        return cls(arrays, np.load(directory / "outputs.npy"), key["model"], key["labels"], key["tokens"])


def _file(place: Place) -> str:
    return f"{place.site}-{place.layer}.npy"


def _allocate(folder: Path | None, place: Place, shape: tuple[int, int], dtype: str) -> np.ndarray:
    if folder is None:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(folder / _file(place), mode="w+", dtype=np.dtype(dtype), shape=shape)


def _fill(model: CausalLM, labels: TokenLabels, arrays, batch_tokens, progress) -> Float[np.ndarray, "tokens 3"]:
    """Write every labelled token's row of every matrix; returns the outputs."""
    used, sequence = np.unique(labels.sample, return_inverse=True)
    by_sequence = np.argsort(sequence, kind="stable")
    starts = np.searchsorted(sequence[by_sequence], np.arange(len(used) + 1))
    bos = 0 if model.bos_id is None else 1
    if len(labels) and int(labels.token.min()) + bos < 1:
        raise InputError("token 0 of a sequence is predicted by nothing in a model without BOS: leave it unlabelled")
    outputs = np.empty((len(labels), len(OUTPUTS)), np.float32)
    done = 0
    sequences = [labels.sequences[number] for number in used]
    for batch in run_batches(model, sequences, list(arrays), batch_tokens=batch_tokens):
        mine = [by_sequence[starts[row] : starts[row + 1]] for row in batch.rows]
        rows = np.concatenate(mine)
        where = torch.from_numpy(np.repeat(np.arange(len(mine)), [len(part) for part in mine])).to(batch.ids.device)
        predictor = torch.from_numpy(labels.token[rows] - 1 + batch.bos).to(batch.ids.device)
        for place, array in arrays.items():
            values = batch.activations[place][where, predictor].float().cpu().numpy()
            if not np.isfinite(values).all():
                raise InputError(f"{place.site} of layer {place.layer} holds NaN or infinite values; try dtype float32")
            if array.dtype == np.float16 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
                raise InputError(
                    f"{place.site} of layer {place.layer} reaches {np.abs(values).max():.0f}, beyond float16: capture"
                    " as float32"
                )
            array[rows] = values
        outputs[rows] = outputs_at(model, batch.hidden[where, predictor], batch.ids[where, predictor + 1])
        done += len(batch.rows)
        if progress:
            progress(done, len(sequences))
    return outputs
