"""Before against after: what changed between runs on the same records, by how much, and how sure that is.

Knows the findings format and, where a run has it, `records.parquet` (one row a record: id, population, duplicates,
greedy,
`log_pz:<scheme>`, `score:<attack>`), which lets differences be paired. Knows nothing about models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rote.errors import InputError
from rote.report import paired
from rote.report.findings import Findings, Measure, MeasureValue, dims_key, load, rounded
from rote.report.joined import Joined, JoinedCompanions, join, join_companions
from rote.report.paired import Difference
from rote.report.text import shown_plain
from rote.report.treatments import subjects

if TYPE_CHECKING:
    import pyarrow as pa

BESIDE = ("utility.", "variants.")  # measured on companions of the records
MUST_AGREE = ("prefix", "suffix", "schemes", "bos")


@dataclass(frozen=True)
class Run:
    """A run directory's findings, and its per-record table where there is one."""

    name: str
    findings: Findings
    records: pa.Table | None = None
    companions: pa.Table | None = None


@dataclass(frozen=True)
class Change:
    """One number, before and after. `judgement`, by its direction: "better", "worse", "same" (no clear change)."""

    measure: str
    title: str
    unit: str
    dims: dict[str, Any]
    before: MeasureValue
    after: MeasureValue
    difference: Difference
    judgement: str
    note: str = ""


@dataclass(frozen=True)
class Pair:
    """Everything that can be compared between the baseline and one other run."""

    before: str
    after: str
    changes: list[Change]
    only_before: list[str] = field(default_factory=list)
    only_after: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """The baseline against each other run. `warnings` say what was overridden by force."""

    runs: list[Run]
    pairs: list[Pair]
    warnings: list[str]
    settings: list[tuple[str, list[Any]]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, floats rounded as in findings.json."""
        pairs = []
        for pair in self.pairs:
            changes = [
                {
                    "measure": c.measure,
                    "dims": c.dims,
                    "before": c.before.model_dump(),
                    "after": c.after.model_dump(),
                    "difference": dataclasses.asdict(c.difference),
                    "judgement": c.judgement,
                    "note": c.note,
                }
                for c in pair.changes
            ]
            pairs.append(
                {
                    "before": pair.before,
                    "after": pair.after,
                    "changes": changes,
                    "only_before": pair.only_before,
                    "only_after": pair.only_after,
                }
            )
        runs = [
            {
                "name": r.name,
                "title": r.findings.title,
                "model": r.findings.model.name,
                "fingerprint": r.findings.model.fingerprint,
            }
            for r in self.runs
        ]
        return rounded({"runs": runs, "pairs": pairs, "warnings": self.warnings, "settings": dict(self.settings)})


def load_run(directory: str | Path) -> Run:
    """Read a run directory (or a findings.json). records.parquet may be missing; an unreadable one is an InputError."""
    place = Path(directory)
    findings = load(place)
    folder = place if place.is_dir() else place.parent
    return Run(folder.resolve().name, findings, *(_table(folder, name) for name in ("records", "companions")))


def _table(folder: Path, name: str) -> pa.Table | None:
    file = folder / f"{name}.parquet"
    if not file.exists():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file)
    except (pa.ArrowInvalid, OSError):
        raise InputError(f"{file}: not a readable parquet file; re-make it with: rote report {folder}") from None


def compare_runs(directories: Sequence[str | Path], *, force: bool = False, confidence: float = 0.95) -> Comparison:
    """`compare` on run directories and treatments; the first is the baseline (of a treatment: its untreated model).

    Raises InputError also for treatments of another model than the baseline's, unless `force`.
    """
    chosen = subjects(directories)
    runs = [load_run(subject.run) for subject in chosen]
    model = runs[0].findings.model.fingerprint if runs else ""
    strangers = [
        f"{shown_plain(subject.name, 60)} treats another model than {shown_plain(chosen[0].name, 60)}"
        for subject in chosen
        if subject.start is not None and load(subject.start).model.fingerprint != model
    ]
    if strangers and not force:
        raise InputError("; ".join(strangers) + ". Compare treatments of one model, or pass --force")
    found = compare(
        [r.findings for r in runs],
        names=[subject.name for subject in chosen],
        records=[r.records for r in runs],
        companions=[r.companions for r in runs],
        force=force,
        confidence=confidence,
    )
    return dataclasses.replace(found, warnings=[*strangers, *found.warnings])


def compare(
    findings: Sequence[Findings],
    *,
    names: Sequence[str] | None = None,
    records: Sequence[pa.Table | None] | None = None,
    companions: Sequence[pa.Table | None] | None = None,
    force: bool = False,
    confidence: float = 0.95,
) -> Comparison:
    """Differences with intervals of every number the runs share; the first findings are the baseline.

    Paired over records where both runs have them and they reproduce the findings' own numbers; from the two intervals
    otherwise. Errors: InputError for fewer than two runs, or for runs of different kinds, records, prefix/suffix,
    schemes or BOS rule, unless `force` (then the differences are listed as warnings and nothing is paired over
    different records).
    """
    if len(findings) < 2:
        raise InputError(f"comparing needs at least two runs, got {len(findings)}")
    none = [None] * len(findings)
    labels = _distinct(names or [f.model.name for f in findings])
    runs = [Run(*parts) for parts in zip(labels, findings, records or none, companions or none, strict=True)]
    clashes = [clash for run in runs[1:] for clash in _clashes(runs[0], run)]
    if clashes and not force:
        raise InputError("these runs cannot be compared: " + "; ".join(clashes) + ". Audit both alike, or pass --force")
    pairs = [_pair(runs[0], run, confidence) for run in runs[1:]]
    keys = sorted({key for r in runs for key in r.findings.settings})
    settings = [(key, [r.findings.settings.get(key) for r in runs]) for key in keys]
    return Comparison(
        runs, pairs, clashes, [(key, values) for key, values in settings if any(v != values[0] for v in values)]
    )


def _distinct(names: Sequence[str]) -> list[str]:
    out: list[str] = []
    for name in names:
        fresh, i = name, 2
        while fresh in out:
            fresh, i = f"{name} ({i})", i + 1
        out.append(fresh)
    return out


def _clashes(a: Run, b: Run) -> list[str]:
    out = []
    who = f"{shown_plain(a.name, 60)} and {shown_plain(b.name, 60)}"
    if a.findings.kind != b.findings.kind:
        out.append(f"{who} are different kinds of audit ({a.findings.kind}, {b.findings.kind})")
    if a.findings.records.fingerprint != b.findings.records.fingerprint:
        out.append(f"{who} used different records (their fingerprints differ)")
    for key in MUST_AGREE:
        x, y = a.findings.settings.get(key), b.findings.settings.get(key)
        if x != y:
            out.append(f"{who} differ in {key} ({shown_plain(x, 80)} and {shown_plain(y, 80)})")
    return out


def _pair(before: Run, after: Run, confidence: float) -> Pair:
    joined = None
    if before.findings.records.fingerprint == after.findings.records.fingerprint:
        joined = join(before.records, after.records)
    beside = join_companions(before.companions, after.companions)
    changes, only_before, only_after = [], [], []
    later = {m.name: m for m in after.findings.measures}
    for measure in before.findings.measures:
        other = later.pop(measure.name, None)
        if other is None:
            only_before.append(measure.name)
            continue
        twins = {dims_key(v.dims): v for v in other.values}
        for value in measure.values:
            twin = twins.get(dims_key(value.dims))
            if twin is not None and value.value is not None and twin.value is not None:
                pairing = beside if measure.name.startswith(BESIDE) else joined
                changes.append(_change(measure, value, twin, pairing, confidence))
    only_after = sorted(later)
    return Pair(before.name, after.name, changes, sorted(only_before), only_after)


def _change(
    measure: Measure,
    before: MeasureValue,
    after: MeasureValue,
    joined: Joined | JoinedCompanions | None,
    confidence: float,
) -> Change:
    was, now = before.value or 0.0, after.value or 0.0  # the caller left out values that are null
    difference = joined.difference(measure.name, before, after, confidence) if joined else None
    if difference is None:
        difference = paired.from_intervals(
            (now, after.low, after.high), (was, before.low, before.high), confidence=confidence
        )
    judgement, note = judge(measure, was, after, difference)
    return Change(measure.name, measure.title, measure.unit, before.dims, before, after, difference, judgement, note)


def judge(measure: Measure, before: float, after: MeasureValue, difference: Difference) -> tuple[str, str]:
    """("better" | "worse" | "same", note) from the measure's direction; "same" unless the interval leaves out 0.

    AUROC is read two-sided: what counts is the distance from 0.5, and far below 0.5 is leakage too.
    """
    note = ""
    d, low, high = difference.value, difference.low, difference.high
    clear = low is not None and high is not None and (low > 0 or high < 0)
    two_sided = measure.name.endswith("auroc")
    if two_sided and after.high is not None and after.high < 0.5:
        note = "Below 0.5 after the change: the records are now recognisable by being over-forgotten."
    if not clear or after.value is None:
        return "same", note
    if two_sided:
        closer = abs(after.value - 0.5) < abs(before - 0.5)
        return ("better" if closer else "worse"), note
    sign = good_sign(measure)
    return ("same" if sign == 0 else "better" if d * sign > 0 else "worse"), note


def good_sign(measure: Measure) -> int:
    """+1 when a rise is good news, -1 when a fall is, 0 when the direction does not say."""
    words = measure.direction.lower().replace(" ", "")
    if measure.name.startswith("utility."):
        return -1 if words.startswith("lower=better") else 1
    rise = 1 if words.startswith("higher=") else -1 if words.startswith("lower=") else 0
    return -rise if "memorized" in words else rise if "better" in words else 0
