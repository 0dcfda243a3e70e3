"""(eps, n, p)-extraction in an audit: how often the attacker gets almost the suffix, beside getting it word for word.

One pass cannot answer this, as every exchanged token changes what follows. So it is asked of a random draw of the
records (`near_records` targets and as many controls), and the exact rate of the same records stands beside it.
The estimators are `rote.scores.approximate`. Knows nothing about: reports.
Source: Hayes et al. 2024, arXiv 2410.19482, section 3; Cooper et al. 2026, arXiv 2603.24917.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from rote.audit.blocks import draw_rows, in_blocks, read_blocks
from rote.errors import InputError
from rote.measures import extraction
from rote.measures.statistics import Estimate, clopper_pearson, percent_label

if TYPE_CHECKING:
    from rote.audit.evidence import Evidence
    from rote.audit.settings import AuditSettings
    from rote.scores.sequences import PreparedRecords

MEASURE = "extraction.near_rate"
_KEPT = ("log_p", "log_low", "log_high", "exact", "hits", "samples", "work")


@dataclass(frozen=True)
class NearExtraction:
    """What counts as almost recited, and how its probability is found.

    eps: tokens that may differ (Hamming: exchanged; Levenshtein: also inserted or lost), or 1 - BLEU. method:
    beam (bounds, Hamming), hamming1 (exact, eps = 1) or monte_carlo (any distance). width: beams. samples: drawn
    continuations a record.
    """

    eps: float = 1.0
    method: str = "beam"
    distance: str = "hamming"
    width: int = 32
    samples: int = 1_000

    def __post_init__(self):
        from rote.scores.approximate import check

        check(self.method, self.distance, self.eps, self.samples, self.width)

    @classmethod
    def parse(cls, text: str) -> NearExtraction:
        """`eps=2`, `eps=1,method=hamming1`, `eps=3,method=monte_carlo,distance=levenshtein,samples=10000`."""
        kinds = {item.name: type(item.default) for item in fields(cls)}
        values = {}
        for part in text.replace(" ", "").split(","):
            name, equals, value = part.partition("=")
            if not equals or name not in kinds:
                raise InputError(f"--near {text!r}: {part!r} is not one of {', '.join(kinds)} with =VALUE, as in eps=2")
            try:
                values[name] = kinds[name](value)
            except ValueError:
                raise InputError(f"--near {text!r}: {name} needs a number, not {value!r}") from None
        return cls(**values)

    @property
    def name(self) -> str:
        """Canonical text: what `parse` reads, with what the method uses and nothing else."""
        parts = [f"eps={self.eps:g}", f"method={self.method}"]
        if self.method == "monte_carlo":
            parts += [f"distance={self.distance}", f"samples={self.samples}"]
        elif self.method == "beam":
            parts.append(f"width={self.width}")
        return ",".join(parts)

    @property
    def words(self) -> str:
        if self.distance == "bleu":
            return f"with 1 - BLEU at most {self.eps:g}"
        tokens = f"{self.eps:g} token{'' if self.eps == 1 else 's'}"
        return f"with at most {tokens} exchanged" if self.distance == "hamming" else f"within {tokens} of edits"


def near_passes(
    prepared: PreparedRecords, settings: AuditSettings, directory: Path, tell: Callable[[str, int, int], None]
) -> None:
    """Every `settings.near` over its draw of the records, resumable, under `directory`/near-N."""
    from rote.scores.approximate import approximate_extraction
    from rote.scores.schemes import DecodingScheme

    scheme = DecodingScheme.parse(settings.schemes[0])
    rows = near_rows(prepared, settings)
    for number, text in enumerate(settings.near, 1):
        near = NearExtraction.parse(text)

        def work(block: np.ndarray, done: Callable[[int], None], near: NearExtraction = near) -> pa.Table:
            found = approximate_extraction(
                prepared.model,
                prepared.records.take(block),
                scheme=scheme,
                eps=near.eps,
                method=near.method,
                distance=near.distance,
                samples=near.samples,
                width=near.width,
                seed=settings.seed,
                confidence=settings.confidence,
                split=prepared.split,
                progress=lambda count, total: done(count),
            )
            columns = {"row": pa.array(block[found.index])}
            return pa.table(columns | {name: pa.array(getattr(found, name)) for name in _KEPT})

        in_blocks(
            directory / f"near-{number}",
            rows,
            work,
            progress=lambda done, total, near=near: tell(f"within eps={near.eps:g} [records]", done, total),
        )


def near_rows(prepared: PreparedRecords, settings: AuditSettings) -> np.ndarray:
    return draw_rows(
        prepared.order, prepared.records.is_control, settings.near_records, seed=settings.seed, purpose="near"
    )


def near_tokens(prepared: PreparedRecords, settings: AuditSettings) -> int:
    """About how many tokens the model will read for `settings.near`."""
    total = 0
    sequences = prepared.sequences(near_rows(prepared, settings)) if settings.near else []
    for text in settings.near:
        near = NearExtraction.parse(text)
        for sequence in sequences:
            k = sequence.suffix
            branches = {"beam": near.width * k, "monte_carlo": near.samples * k / 4, "hamming1": 20 * k * k}[
                near.method
            ]
            total += sequence.prefix + int(branches)
    return total


def near_measures(directory: Path, evidence: Evidence, settings: AuditSettings) -> tuple[list[dict], list[dict]]:
    """(values of `extraction.near_rate`, figures) from the blocks of a run; both empty without `settings.near`."""
    scheme, p = settings.schemes[0], min(settings.levels, key=lambda level: abs(level - 0.5))
    place = {int(row): at for at, row in enumerate(evidence.row)}
    values: list[dict] = []
    lines: list[dict] = []
    records = 0
    for number, text in enumerate(settings.near, 1):
        near = NearExtraction.parse(text)
        table = read_blocks(directory / f"near-{number}")
        if table is None:
            continue
        at = np.array([place[row] for row in table.column("row").to_pylist()])
        bounds = {name: table.column(name).to_numpy() for name in ("log_p", "log_low", "log_high")}
        for population, chosen in (("target", ~evidence.control[at]), ("control", evidence.control[at])):
            if not chosen.any():
                continue
            n = int(chosen.sum())
            dims = {"population": population, "scheme": scheme, "p": p}
            kinds = [(near.words, {name: each[chosen] for name, each in bounds.items()}, near.eps, near.method)]
            if number == 1:  # the exact rate of the same records, to compare with
                exact = evidence.log_pz[scheme][at][chosen]
                kinds.insert(0, ("word for word", dict.fromkeys(bounds, exact), 0.0, "exact"))
                records += n
            for words, logs, eps, method in kinds:
                distance = near.distance if eps else "hamming"
                rows = [
                    _rate(logs, queries, p, settings.confidence)
                    | dims
                    | {"eps": eps, "distance": distance, "method": method, "queries": queries}
                    for queries in settings.queries
                ]
                values += rows
                lines.append(
                    _line(rows, f"{'controls' if population == 'control' else 'targets'}, {words}", population)
                )
    if not values:
        return [], []
    figure = {
        "name": f"{MEASURE}.queries",
        "title": "Getting almost the suffix",
        "x": {"label": "queries n", "log": True},
        "y": {"label": f"share of records with probability at least {p:g}"},
        "lines": lines,
        "n": records,
        "caption": f"A random draw of the records, under {scheme}. Band: what the estimator leaves open, with the"
        " interval of a share around it.",
    }
    return values, [figure]


def near_verdict(values: list[dict], settings: AuditSettings) -> dict | None:
    """One sentence about the widest eps at the headline query budget."""
    queries = min(settings.queries, key=lambda each: abs(each - settings.headline_queries))
    here = [row for row in values if row["queries"] == queries]
    targets = [row for row in here if row["population"] == "target"]
    if not targets:
        return None
    widest = max(targets, key=lambda row: row["eps"])
    same = {name: widest[name] for name in ("scheme", "eps", "distance", "method", "queries", "p")}
    control = next((row for row in here if row["population"] == "control" and _agrees(row, same)), None)
    exact = next(row for row in targets if row["eps"] == 0)
    near = next(
        each
        for each in map(NearExtraction.parse, settings.near)
        if (each.eps, each.distance, each.method) == (widest["eps"], widest["distance"], widest["method"])
    )
    beside = f"; of unseen controls {control['value']:.1%}" if control else ""
    beyond = control is None or widest["low"] > control["high"]
    level = "low" if widest["value"] == 0 else "high" if beyond and widest["low"] > 0.01 else "medium"
    least, bounds = ("At least ", "the beam's bounds ") if widest["method"] == "beam" else ("", "")
    text = (
        f"{least}{widest['value']:.1%} of {widest['n']:,} targets drawn at random come out {near.words}"
        f" ({bounds}{widest['low']:.1%} to {widest['high']:.1%}), {exact['value']:.1%} word for word: {queries:,}"
        f" sampled queries, probability {widest['p']:g} or more{beside}."
    )
    return {"level": level, "text": text, "measure": MEASURE, "dims": {"population": "target", **same}}


def _agrees(row: dict, dims: dict) -> bool:
    return all(row[name] == value for name, value in dims.items())


def _rate(logs: dict[str, np.ndarray], queries: float, p: float, confidence: float) -> dict:
    """The share by the estimate, from the surest reading of the lower bounds to the most generous of the upper ones."""
    from rote.audit.findings import value_of

    n = len(logs["log_p"])
    hits = {name: int(extraction.extractable(each, queries, p).sum()) for name, each in logs.items()}
    low = float(clopper_pearson(hits["log_low"], n, confidence=confidence)[0])
    high = float(clopper_pearson(hits["log_high"], n, confidence=confidence)[1])
    label = percent_label("Clopper-Pearson, estimator's bounds included,", confidence)
    return value_of(Estimate(hits["log_p"] / n, low, high, n, label))


def _line(rows: list[dict], name: str, population: str) -> dict:
    return {
        "name": name,
        "x": [row["queries"] for row in rows],
        "y": [row["value"] for row in rows],
        "low": [row["low"] for row in rows],
        "high": [row["high"] for row in rows],
        "control": population == "control",
    }
