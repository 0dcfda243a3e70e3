"""Which of these records does the model recite? The greedy verdicts alone, to mine a whole corpus with.

    recited(x) = 1[argmax_v p(v | x_<t) = x_t for every suffix position t]

For a small part of the price of `rote audit lm`, which also says how likely, under which decoding, and how surely
memorized. Blocks of records are kept and resumed. Knows nothing about: the terminal.
Source: Carlini et al. 2023, arXiv 2202.07646, section 3 (discoverable memorization).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from rote.atomic import write_atomic
from rote.audit.blocks import in_blocks, read_blocks
from rote.audit.findings import in_order, levels_of, value_of
from rote.audit.guards import controls_guard
from rote.audit.lm import with_controls
from rote.audit.run_directory import RunDirectory
from rote.audit.verdicts import greedy_verdict
from rote.measures.statistics import proportion
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable
from rote.report import Findings, parse
from rote.runtime import versions
from rote.scores.greedy_screen import DRAFT_FROM, draft_of, greedy_screen
from rote.scores.sequences import Split, prepare

MEASURE = "extraction.greedy_rate"
BLOCK = 1024  # records between two writings


def audit_recited(
    model: CausalLM | str | Path,
    records: RecordTable,
    out: str | Path,
    *,
    control: RecordTable | None = None,
    prefix: int | None = None,
    suffix: int | None = None,
    long: str = "error",
    bos: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    confidence: float = 0.95,
    overwrite: bool = False,
    command: str = "",
    records_name: str = "records",
    progress: Callable[[str, int, int], None] | None = None,
) -> Findings:
    """Write under `out` who is recited (`recited-ids.txt`, `records.parquet`), findings, tables and report.

    control: unseen records of the same kind, which tell what the model would say about any such text. progress(stage,
    done, total) counts records. The same call continues an interrupted run and gives the same findings.
    Raises InputError for bad input (nothing is written then), RunMismatchError when `out` belongs to another run.
    """
    if not isinstance(model, CausalLM):
        model = CausalLM.load(model, device=device, dtype=dtype, bos=bos)
    tell = progress or (lambda stage, done, total: None)
    records = with_controls(records, control)
    prepared = prepare(model, records, Split(prefix, suffix, long))
    settings = {"prefix": prefix, "suffix": suffix, "long": long, "bos": bos, "dtype": dtype, "confidence": confidence}
    run = RunDirectory.claim(
        out,
        {
            "kind": "audit-recited",
            "command": command,
            "versions": versions(),
            "seed": 0,
            "model": model.describe(),
            "records_name": records_name,
            "identity": {"model": model.fingerprint, "records": records.fingerprint, "settings": settings},
        },
        overwrite=overwrite,
    )
    run.write_inputs(records)
    rows = prepared.order
    draft = draft_of(model) if len(rows) >= DRAFT_FROM else None

    def block(some: Int[np.ndarray, " block"], done: Callable[[int], None]) -> pa.Table:
        found = greedy_screen(
            prepared, some, draft=draft, batch_tokens=batch_tokens, progress=lambda read, _: done(read)
        )
        cuts = [(sequence.prefix, sequence.suffix) for sequence in prepared.sequences(some)]
        return pa.table({"row": some, "prefix": [a for a, _ in cuts], "suffix": [k for _, k in cuts], "recited": found})

    in_blocks(
        run.path / "blocks",
        rows,
        block,
        size=BLOCK,
        progress=lambda done, total: tell("reading [records]", done, total),
    )
    table = read_blocks(run.path / "blocks")
    assert table is not None  # `prepare` refuses a file without a record to score
    found = parse(_findings(run, records, table.sort_by("row"), prepared.skipped, confidence))
    run.publish(found)
    run.save(status="done")
    return found


def _findings(
    run: RunDirectory, records: RecordTable, table: pa.Table, skipped: dict[int, str], confidence: float
) -> dict[str, Any]:
    ids = records.column("id")
    rows, recited = table.column("row").to_numpy(), table.column("recited").to_numpy()
    unseen = records.is_control[rows]
    columns = {"id": pa.array([ids[row] for row in rows], pa.string()), "control": pa.array(unseen)}
    run.write_table("records.parquet", pa.table(columns | {n: table[n] for n in ("prefix", "suffix", "recited")}))
    hits = [ids[row] for row in rows[recited & ~unseen]]
    write_atomic(run.path / "recited-ids.txt", "".join(f"{name}\n" for name in hits))

    def share(chosen: Bool[np.ndarray, " rows"], **dims: Any) -> dict[str, Any]:
        return value_of(proportion(int(recited[chosen].sum()), int(chosen.sum()), confidence=confidence)) | dims

    sides = (("target", ~unseen), ("control", unseen))
    whole = {side: share(chosen, population=side) for side, chosen in sides if chosen.any()}
    copies = pc.cast(records.table.column("duplicates"), pa.float64()).to_numpy()[rows]  # unknown: NaN
    levels = levels_of(np.where(unseen, np.nan, copies))
    doses = [share(chosen, population="target", duplicates=level) for level, chosen in levels]
    drawn = doses + [value | {"duplicates": 0.0} for side, value in whole.items() if side == "control"]
    return {
        "schema_version": "1.0",
        "kind": "audit-recited",
        "title": f"What of {run.run['records_name']} the model recites",
        "rote_version": run.run["versions"]["rote"],
        "model": run.run["model"],
        "records": {
            "name": run.run["records_name"],
            "fingerprint": run.run["identity"]["records"],
            "n": len(records),
            "skipped": [{"id": ids[row], "reason": reason} for row, reason in sorted(skipped.items())],
        },
        "settings": run.run["identity"]["settings"],
        "verdicts": [greedy_verdict(whole["target"], whole.get("control"))] if "target" in whole else [],
        "guards": [controls_guard(int(unseen.sum()))],
        "measures": in_order({MEASURE: [*whole.values(), *doses]}),
        "series": {"dose": [_point(value) for value in drawn]} if len(doses) > 1 else {},
        "reproduce": run.run["command"],
    }


def _point(value: dict[str, Any]) -> dict[str, Any]:
    kept = ("duplicates", "value", "low", "high", "n", "population")
    return {"measure": MEASURE} | {name: value[name] for name in kept}
