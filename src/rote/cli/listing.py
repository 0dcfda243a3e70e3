"""What `rote ls` and `rote doctor` look up. Reads run.json files and the installation; changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rote.errors import InputError

SHOWN = ("extraction.rate", "extraction.greedy_rate", "extraction.strength", "membership.auroc", "utility.perplexity",
         "dose.loss")  # fmt: skip


def find_runs(directory: Path) -> list[dict]:
    """Every run below `directory`, by path."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder")
    rows = []
    for file in sorted(directory.rglob("run.json")):
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        rows.append(
            {
                "path": str(file.parent),
                "kind": run.get("kind", "?"),
                "model": run.get("model", {}).get("name", "?"),
                "records": run.get("records_name", "?"),
                "status": run.get("status", "unfinished"),
            }
        )
    return rows


def health() -> dict:
    """Versions, devices, optional libraries and memory of this installation."""
    import psutil

    from rote.runtime import versions

    found: dict = dict(versions())
    import torch

    found["devices"] = ", ".join(
        ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        + (["mps"] if torch.backends.mps.is_available() else [])
    )
    found["cpu threads"] = torch.get_num_threads()
    memory = psutil.virtual_memory()
    found["memory"] = f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"
    found["hub access"] = (
        "off (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") == "1" else "only when a hub name is given"
    )
    return found


def comparison_table(pair):
    """A rich table of one run against the baseline: the headline measures of the targets, before, after, difference."""
    from rich.table import Table

    from rote.report.text import interval, number, shown_plain

    table = Table(title=f"{shown_plain(pair.before)} -> {shown_plain(pair.after)}")
    for column in ("measure", "of", "before", "after", "difference", ""):
        table.add_column(column, overflow="fold")
    for change in pair.changes:
        dims = change.dims
        if change.measure not in SHOWN or dims.get("population") == "control":
            continue
        if change.measure == "extraction.rate" and (dims.get("p") != 0.5 or dims.get("queries") != 100):
            continue
        difference = change.difference
        table.add_row(
            change.title,
            ", ".join(f"{key} {shown_plain(value)}" for key, value in dims.items() if key != "population"),
            number(change.before.value, change.unit),
            number(change.after.value, change.unit),
            f"{number(difference.value, change.unit)} {interval(difference.low, difference.high, change.unit)}",
            change.judgement,
        )
    return table


def frontier_table(found):
    """A rich table of the frontier: one row a run, what it recites and what it is still good for."""
    from rich.table import Table

    from rote.report.frontier import frontier_rows
    from rote.report.text import shown_plain

    columns, rows = frontier_rows(found)
    table = Table(title="Recitation against utility")
    for column in columns:
        table.add_column(shown_plain(column), overflow="fold")
    for row in rows:
        table.add_row(*(shown_plain(cell) for cell in row))
    return table
