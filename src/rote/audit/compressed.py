"""Adversarial compression in an audit: can a prompt shorter than the record make the model recite it?

Asked of a random draw of the records (`compress` targets and as many controls), because a search costs hundreds of
passes a record. Prompts as long as the text or longer are not tried: they cannot give a ratio above 1. The search is
`rote.scores.prompt_search`. Knows nothing about: reports.
Source: Schwarzschild et al. 2024, arXiv 2404.15146, section 3 and alg. 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from rote.audit.blocks import draw_rows, in_blocks, read_blocks
from rote.measures.compression import MiniPrompt, portion_memorized
from rote.measures.statistics import Estimate, percent_label

if TYPE_CHECKING:
    from rote.audit.evidence import Evidence
    from rote.audit.settings import AuditSettings
    from rote.scores.sequences import PreparedRecords

FOLDER = "compression"
CANDIDATES = 100  # prompts tried a step, as in the paper


def compression_pass(
    prepared: PreparedRecords, settings: AuditSettings, directory: Path, tell: Callable[[str, int, int], None]
) -> None:
    """Search the shortest reciting prompt of every drawn record, resumable, under `directory`/compression.

    The blocks hold the prompts found, as token ids: they are contents, like inputs.parquet."""
    from rote.scores.prompt_search import compress_records

    def work(block: np.ndarray, done: Callable[[int], None]) -> pa.Table:
        found = compress_records(
            prepared.model,
            prepared.records.take(block),
            seed=settings.seed,
            split=prepared.split,
            tokens=settings.compress_tokens,
            steps=settings.compress_steps,
            batch=CANDIDATES,
            cap=1,
            progress=lambda count, total: done(count),
        )
        return pa.table(
            {
                "row": pa.array(block[found.index]),
                "target_tokens": pa.array(found.target_tokens),
                "ratio": pa.array(found.ratio),
                "prompt": pa.array(found.prompts, pa.list_(pa.int32())),
            }
        )

    in_blocks(
        directory / FOLDER,
        compressed_rows(prepared, settings),
        work,
        size=4,
        progress=lambda done, total: tell("shortest prompts [records]", done, total),
    )


def compressed_rows(prepared: PreparedRecords, settings: AuditSettings) -> np.ndarray:
    return draw_rows(
        prepared.order, prepared.records.is_control, settings.compress, seed=settings.seed, purpose="compress"
    )


def compression_tokens(prepared: PreparedRecords, settings: AuditSettings) -> int:
    """At most so many tokens will the model read: every length missed, every step used."""
    total = 0
    for row in compressed_rows(prepared, settings) if settings.compress else ():
        target = min(settings.compress_tokens, int(prepared.lengths[row]))
        state = MiniPrompt.start(target, steps=settings.compress_steps, cap=1)
        while not state.done:
            total += state.steps * CANDIDATES * (state.length + target)
            state = state.advance(False)
    return total


def compression_measures(directory: Path, evidence: Evidence, settings: AuditSettings) -> dict[str, list[dict]]:
    """{"compression.acr": values, "compression.share": values} from the blocks of a run; empty without them."""
    from rote.audit.findings import median_with_interval, value_of

    table = read_blocks(directory / FOLDER)
    if table is None:
        return {}
    place = {int(row): at for at, row in enumerate(evidence.row)}
    control = evidence.control[[place[row] for row in table.column("row").to_pylist()]]
    ratio, tokens = table.column("ratio").to_numpy(), table.column("target_tokens").to_numpy()
    found: dict[str, list[dict]] = {"compression.acr": [], "compression.share": []}
    for population, chosen in (("target", ~control), ("control", control)):
        if not chosen.any():
            continue
        dims = {"population": population, "target_tokens": int(tokens[chosen].max())}
        value, low, high = median_with_interval(ratio[chosen], settings.confidence)
        label = percent_label("order statistics", settings.confidence)
        middle = Estimate(value, low, high, int(chosen.sum()), label)
        found["compression.acr"].append(value_of(middle) | dims)
        share = portion_memorized(ratio[chosen], confidence=settings.confidence)
        found["compression.share"].append(value_of(share) | dims)
    return found


def compression_verdict(found: dict[str, list[dict]]) -> dict | None:
    """One sentence about the targets beside the controls."""
    rows = {row["population"]: row for row in found.get("compression.share", [])}
    target, control = rows.get("target"), rows.get("control")
    if target is None:
        return None
    beyond = control is None or target["low"] > control["high"]
    level = "low" if target["value"] == 0 else "high" if beyond and target["low"] > 0.01 else "medium"
    beside = f"; of {control['n']:,} unseen controls {control['value']:.1%}" if control else ""
    text = (
        f"A prompt shorter than the text makes the model recite {target['value']:.1%} of {target['n']:,} targets drawn"
        f" at random ({target['low']:.1%} to {target['high']:.1%}; their first {target['target_tokens']} tokens)"
        f"{beside}."
    )
    return {"level": level, "text": text, "measure": "compression.share", "dims": {"population": "target"}}
