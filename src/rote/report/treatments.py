"""Treatments among runs: a treatment's directory stands for its two audits.

    T/before  the model as it was: once, as "untreated", however many treatments share it
    T/after   the treated model, by the name of T's directory

Knows where `rote treat` puts its audits. Knows nothing about findings, methods or models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rote.errors import InputError

UNTREATED = "untreated"


@dataclass(frozen=True)
class Subject:
    """A run directory under the name it is shown by. `start`: for a treatment, the audit of the model it started
    from."""

    name: str
    run: Path
    start: Path | None = None


def is_treatment(directory: str | Path) -> bool:
    """Whether `rote treat` wrote this directory."""
    try:
        run = json.loads((Path(directory) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(run, dict) and run.get("kind") == "treatment"


def subjects(directories: Sequence[str | Path]) -> list[Subject]:
    """What to compare, the baseline first: a run as it is, a treatment as its second audit. When the first directory is
    a treatment, its first audit is the baseline. Raises InputError for a treatment that is not finished."""
    found: list[Subject] = []
    for directory in map(Path, directories):
        if not is_treatment(directory):
            found.append(
                Subject(directory.resolve().name if directory.is_dir() else directory.resolve().parent.name, directory)
            )
            continue
        before, after = directory / "before", directory / "after"
        if not (directory / "treatment.json").is_file():
            raise InputError(f"{directory}: this treatment is not finished; the command that began it continues it")
        if not found:
            found.append(Subject(UNTREATED, before))
        found.append(Subject(directory.resolve().name, after, before))
    return found
