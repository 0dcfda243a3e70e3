"""What a study is, how it is found, run and written down.

A study states its claims and their thresholds before anything is measured; running it decides each claim by what was
measured in that run. A claim that fails stays in the table as failed; a claim that was never decided is an error.

Knows nothing about: any particular study, models, measures.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from rote.atomic import write_atomic
from rote.errors import InputError, RoteError
from rote.runtime import peak_rss_mb, versions

STUDY_SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class Claim:
    """One checkable sentence. `paper` is what the paper reports, `threshold` what this run must show, fixed
    beforehand."""

    id: str
    statement: str
    paper: str
    threshold: str


@dataclass(frozen=True)
class Study:
    """A study: its claims and the function that measures them. `slug` is the system's name everywhere."""

    slug: str
    title: str
    arxiv: str
    claims: tuple[Claim, ...]
    run: Callable[[StudyContext], None]


@dataclass
class StudyContext:
    """What a running study gets: its seed, its output directory, and the ways to say what it found."""

    study: Study
    seed: int
    out: Path
    progress: Callable[[str], None] = lambda text: None
    decided: dict[str, dict] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)

    def claim(self, claim_id: str, *, observed: Any, holds: bool) -> None:
        """Decide one of the study's claims. Deciding a claim twice, or one the study never made, is an error."""
        known = {claim.id for claim in self.study.claims}
        if claim_id not in known:
            raise RoteError(
                f"study {self.study.slug} decided {claim_id!r}, which is not among its claims {sorted(known)}"
            )
        if claim_id in self.decided:
            raise RoteError(f"study {self.study.slug} decided claim {claim_id!r} twice")
        self.decided[claim_id] = {"observed": plain(observed), "holds": bool(holds)}

    def figure(self, name: str, figure: Any) -> None:
        """Keep a figure: Plotly as one offline HTML file, matplotlib as PNG."""
        if hasattr(figure, "write_html"):
            path = self.out / f"{name}.html"
            figure.write_html(path, include_plotlyjs=True, full_html=True)
        else:
            path = self.out / f"{name}.png"
            figure.savefig(path, dpi=150, bbox_inches="tight")
        self.artifacts.append(path.name)

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep a table of plain rows as CSV."""
        import csv

        rows = [plain(dict(row)) for row in rows]
        path = self.out / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            if rows:
                columns = list(dict.fromkeys(key for row in rows for key in row))
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
        self.artifacts.append(path.name)


def study_slugs() -> list[str]:
    """Every study there is, by slug: one module each in this package."""
    here = Path(__file__).parent
    files = (file.stem for file in here.glob("*.py") if not file.stem.startswith("_") and file.stem != "protocol")
    return sorted(stem.replace("_", "-") for stem in files)


def load_study(slug: str) -> Study:
    """The study with this slug. Raises InputError with the nearest name when there is none."""
    if slug not in study_slugs():
        from difflib import get_close_matches

        near = get_close_matches(slug, study_slugs(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(study_slugs())}"
        raise InputError(f"no study {slug!r}; {hint}")
    return import_module(f"rote.studies.{slug.replace('-', '_')}").STUDY


def run_study(
    slug: str, *, seed: int = 0, out: str | Path | None = None, progress: Callable[[str], None] | None = None
) -> dict:
    """Run one study and write `study.json` (and its figures and tables) under `out`.

    Returns the content of study.json: slug, title, arxiv, seed, seconds, peak_rss_mb, versions, claims, artifacts,
    holds (True when every claim does). Deterministic for a seed, but for the seconds and the memory.
    """
    study = load_study(slug)
    directory = Path(out) if out is not None else Path("runs") / "studies" / f"{slug}-{seed}"
    directory.mkdir(parents=True, exist_ok=True)
    context = StudyContext(study, seed, directory, progress or (lambda text: None))
    start = time.perf_counter()
    study.run(context)
    undecided = [claim.id for claim in study.claims if claim.id not in context.decided]
    if undecided:
        raise RoteError(f"study {slug} left claims undecided: {', '.join(undecided)}")
    result = {
        "schema_version": STUDY_SCHEMA_VERSION,
        "slug": study.slug,
        "title": study.title,
        "arxiv": study.arxiv,
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_rss_mb": round(peak_rss_mb()),
        "versions": versions(),
        "claims": [asdict(claim) | context.decided[claim.id] for claim in study.claims],
        "holds": all(decision["holds"] for decision in context.decided.values()),
        "artifacts": context.artifacts,
    }
    write_atomic(directory / "study.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def plain(value: Any) -> Any:
    """Numpy scalars and arrays, tuples and paths as plain JSON values; NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return str(value)
