"""Costly passes in blocks of a few records: each block is a file of the run directory, complete or absent.

What is interrupted loses the block in flight; the same run goes on behind it. The run directory itself guards identity
(model, records, settings), so a block that is there belongs to it. Knows nothing about: models, what a pass computes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from rote.atomic import write_atomic
from rote.runtime import derive_seed


def in_blocks(
    directory: Path,
    rows: Int[np.ndarray, " rows"],
    work: Callable[[Int[np.ndarray, " block"], Callable[[int], None]], pa.Table],
    *,
    size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """`work(block of rows, done)` for every block that is not there yet; its table becomes `part-00000.parquet`, ...

    `done(count)` may be called with the records of the block finished so far. progress(records done, records in all).
    """
    directory.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(rows), size)):
        file = directory / f"part-{number:05d}.parquet"
        block = rows[start : start + size]
        if not _holds(file, block):
            table = work(block, lambda count, start=start: progress(start + count, len(rows)) if progress else None)
            sink = pa.BufferOutputStream()
            pq.write_table(
                table.replace_schema_metadata({"rows": ",".join(map(str, block.tolist()))}), sink, compression="zstd"
            )
            write_atomic(file, sink.getvalue().to_pybytes())
        if progress:
            progress(start + len(block), len(rows))


def read_blocks(directory: Path) -> pa.Table | None:
    """All blocks as one table, in order; None when the pass was not asked for."""
    files = sorted(directory.glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]) if files else None


def draw_rows(
    rows: Int[np.ndarray, " scored"], control: Bool[np.ndarray, " records"], most: int, *, seed: int, purpose: str
) -> Int[np.ndarray, " chosen"]:
    """At most `most` targets and at most `most` controls of the scored `rows`, drawn at random, in ascending order."""
    rows = np.sort(rows)
    chosen = []
    for name, side in (("target", rows[~control[rows]]), ("control", rows[control[rows]])):
        order = np.random.default_rng(derive_seed(seed, purpose, name)).permutation(len(side))
        chosen.append(side[order[:most]])
    return np.sort(np.concatenate(chosen))


def _holds(file: Path, block: Int[np.ndarray, " block"]) -> bool:
    try:
        return (pq.read_schema(file).metadata or {})[b"rows"].decode() == ",".join(map(str, block.tolist()))
    except (OSError, KeyError, ValueError):  # absent, cut off, or not one of ours
        return False
