"""From evidence (one row a record) to findings: measures with intervals, plot series, the most exposed records.

Pure: the same evidence and settings always give the same findings. Knows nothing about models or files.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from rote.audit.evidence import Evidence
from rote.audit.settings import AuditSettings
from rote.measures import extraction
from rote.measures.catalog import MEASURES
from rote.measures.dp_audit import one_run_audit
from rote.measures.exposure import exposure_by_sampling
from rote.measures.roc import delong, roc_points, tpr_at_fpr
from rote.measures.statistics import Estimate, bootstrap, clopper_pearson, percent_label, proportion

TPR_CAPS = (0.001, 0.01, 0.1)
MIN_CONTROLS = 10  # fewer unseen records carry no comparison
MIN_LEVEL = 3  # records at a duplicate level before it gets a point of its own
MAX_LEVELS = 9  # more distinct counts than this are grouped by powers of two
HISTOGRAM_BINS = np.arange(-60, 1, 2.0)


def measures(evidence: Evidence, settings: AuditSettings) -> list[dict]:
    """Every measure the evidence allows, in the order of the catalogue, each with its values."""
    found: dict[str, list[dict]] = {}

    def add(name: str, estimate: Estimate | None, **dims: Any) -> None:
        if estimate is not None:
            found.setdefault(name, []).append(value_of(estimate) | dims)

    levels = duplicate_levels(evidence)
    for population, chosen in populations(evidence):
        for scheme, log_pz in evidence.log_pz.items():
            _extraction(add, log_pz[chosen], scheme, population, settings)
        add(
            "extraction.greedy_rate",
            proportion(int(evidence.greedy[chosen].sum()), int(chosen.sum()), confidence=settings.confidence),
            population=population,
        )
        for name, values in (
            ("extraction.strength", evidence.strength),
            ("extraction.longest_run", evidence.longest_run),
        ):
            add(name, _mean(values[chosen], settings), population=population)
    for level, chosen in levels:
        _dose(add, evidence, chosen, level, settings)
    if has_controls(evidence):
        _membership(add, evidence, levels, settings)
        _exposure(add, evidence, levels, settings)
        if settings.randomized:
            _privacy(add, evidence, settings)
    return in_order(found)


def in_order(found: dict[str, list[dict]]) -> list[dict]:
    """Measures with values, in the order of the catalogue and with its texts."""
    return [vars_of(MEASURES[name]) | {"values": found[name]} for name in MEASURES if found.get(name)]


def populations(evidence: Evidence) -> list[tuple[str, Bool[np.ndarray, " records"]]]:
    """("target", mask) and ("control", mask), without an empty one."""
    both = (("target", evidence.target), ("control", evidence.control))
    return [(name, mask) for name, mask in both if mask.any()]


def has_controls(evidence: Evidence) -> bool:
    return int(evidence.control.sum()) >= MIN_CONTROLS and bool(evidence.target.any())


def duplicate_levels(evidence: Evidence) -> list[tuple[float, Bool[np.ndarray, " records"]]]:
    """(copies, mask) per level of duplication among the targets; many distinct counts are grouped by powers of two.

    A level is named by its lowest count. Levels with fewer than MIN_LEVEL records are left out of the dose-response.
    """
    return levels_of(np.where(evidence.target, evidence.duplicates, np.nan))


def levels_of(copies: Float[np.ndarray, " records"]) -> list[tuple[float, Bool[np.ndarray, " records"]]]:
    """The same from counts, NaN where unknown or not to be counted."""
    known = copies[~np.isnan(copies)]
    if not len(known):
        return []
    if len(np.unique(known)) > MAX_LEVELS:
        copies = np.where(copies > 0, 2.0 ** np.floor(np.log2(np.maximum(copies, 1))), copies)
        known = copies[~np.isnan(copies)]
    levels = [(float(level), copies == level) for level in np.unique(known)]
    return [(level, mask) for level, mask in levels if mask.sum() >= MIN_LEVEL]


def _extraction(add, log_pz: np.ndarray, scheme: str, population: str, settings: AuditSettings) -> None:
    n = len(log_pz)
    surface = extraction.rate(log_pz, np.array(settings.queries), np.array(settings.levels))
    low, high = clopper_pearson(np.rint(surface * n), n, confidence=settings.confidence)
    label = percent_label("Clopper-Pearson", settings.confidence)
    for i, queries in enumerate(settings.queries):
        for j, p in enumerate(settings.levels):
            add(
                "extraction.rate",
                Estimate(surface[i, j], float(low[i, j]), float(high[i, j]), n, label),
                population=population,
                scheme=scheme,
                queries=queries,
                p=p,
            )
    reachable = int(np.sum(~np.isneginf(log_pz)))
    add(
        "extraction.ceiling",
        proportion(reachable, n, confidence=settings.confidence),
        population=population,
        scheme=scheme,
    )
    for p in settings.levels:
        needed = extraction.queries_needed(log_pz, p)
        value, low_, high_ = median_with_interval(needed, settings.confidence)
        add(
            "extraction.queries",
            Estimate(value, low_, high_, n, percent_label("order statistics", settings.confidence)),
            population=population,
            scheme=scheme,
            p=p,
        )


def _dose(add, evidence: Evidence, chosen: np.ndarray, level: float, settings: AuditSettings) -> None:
    add("dose.loss", _mean(evidence.loss[chosen], settings), duplicates=level)
    for scheme, log_pz in evidence.log_pz.items():
        value, low, high = median_with_interval(log_pz[chosen], settings.confidence)
        add(
            "dose.log_pz",
            Estimate(value, low, high, int(chosen.sum()), percent_label("order statistics", settings.confidence)),
            duplicates=level,
            scheme=scheme,
        )
        hits = int(extraction.extractable(log_pz[chosen], settings.headline_queries, 0.5).sum())
        add(
            "extraction.rate",
            proportion(hits, int(chosen.sum()), confidence=settings.confidence),
            population="target",
            scheme=scheme,
            queries=settings.headline_queries,
            p=0.5,
            duplicates=level,
        )


def _membership(add, evidence: Evidence, levels: list, settings: AuditSettings) -> None:
    groups = [(None, evidence.target), *levels]
    for attack, scores in evidence.attacks.items():
        judged = ~np.isnan(scores)
        unseen = scores[evidence.control & judged]
        for level, members in groups:
            dims = {"attack": attack} | ({} if level is None else {"duplicates": level})
            chosen = members & judged
            if chosen.sum() < MIN_LEVEL or not len(unseen):
                continue
            add("membership.auroc", delong(scores[chosen], unseen, confidence=settings.confidence), **dims)
            if level is not None:
                continue
            for cap in TPR_CAPS:
                found = tpr_at_fpr(scores[chosen], unseen, cap, confidence=settings.confidence)
                if found.resolved:
                    add("membership.tpr", found, **dims, fpr=cap)


def _exposure(add, evidence: Evidence, levels: list, settings: AuditSettings) -> None:
    """Mean exposure among the controls as the candidate space: at most log2(controls + 1) bits can be shown."""
    unseen = -evidence.loss[evidence.control]
    space = math.log2(len(unseen) + 1)
    for level, chosen in levels or [(None, evidence.target)]:
        bits = exposure_by_sampling(
            -evidence.loss[chosen], unseen, log2_space=space, confidence=settings.confidence
        ).bits
        add("exposure.bits", _mean(bits, settings), **({} if level is None else {"duplicates": level}))


def _privacy(add, evidence: Evidence, settings: AuditSettings) -> None:
    found = one_run_audit(evidence.attacks["loss"], evidence.target, delta=0.0, confidence=settings.confidence)
    add(
        "privacy.epsilon_lower",
        Estimate(found.epsilon, found.epsilon, math.nan, found.m, f"one-sided {settings.confidence:.0%}"),
        delta=0.0,
        guesses=found.guesses,
        correct=found.correct,
    )


def series(evidence: Evidence, settings: AuditSettings, values: list[dict]) -> dict:
    """Plot data, already aggregated: its size does not depend on the number of records."""
    by_name = {measure["name"]: measure["values"] for measure in values}
    survival = [
        _only(row, "population", "scheme", "queries", "p", "low", "high", "n") | {"rate": row["value"]}
        for row in by_name["extraction.rate"]
        if "duplicates" not in row
    ]
    histogram = []
    for population, chosen in populations(evidence):
        for scheme, log_pz in evidence.log_pz.items():
            powers = log_pz[chosen] / math.log(10)
            finite = powers[np.isfinite(powers)]
            counts, edges = np.histogram(np.clip(finite, HISTOGRAM_BINS[0], -1e-9), HISTOGRAM_BINS)
            rows: list[tuple[float | None, float | None, int]] = [
                (float(left), float(right), int(count))
                for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
                if count
            ]
            if len(finite) < len(powers):
                rows.append((None, None, int(len(powers) - len(finite))))
            histogram += [
                {"population": population, "scheme": scheme, "left": left, "right": right, "count": count}
                for left, right, count in rows
            ]
    dose = []
    for name in ("dose.loss", "dose.log_pz"):
        dose += [
            _only(row, "duplicates", "value", "low", "high", "n", "scheme") | {"measure": name, "population": "target"}
            for row in by_name.get(name, [])
        ]
    dose += [
        _only(row, "duplicates", "value", "low", "high", "n", "scheme")
        | {"measure": "extraction.rate", "population": "target"}
        for row in by_name["extraction.rate"]
        if "duplicates" in row
    ]
    if dose and has_controls(evidence):
        dose += _control_dose(evidence, settings)
    roc = []
    if has_controls(evidence):
        for attack, scores in evidence.attacks.items():
            judged = ~np.isnan(scores)
            curve = roc_points(scores[evidence.target & judged], scores[evidence.control & judged])
            roc += [
                {"attack": attack, "fpr": float(fpr), "tpr": float(tpr)}
                for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True)
            ]
    return {"survival": survival, "log_pz_histogram": histogram, "dose": dose, "roc": roc}


def _control_dose(evidence: Evidence, settings: AuditSettings) -> list[dict]:
    rows = []

    def add(name: str, estimate: Estimate | None, **dims: Any) -> None:
        if estimate is not None and name in ("dose.loss", "dose.log_pz", "extraction.rate"):
            rows.append(
                _only(value_of(estimate) | dims, "value", "low", "high", "n", "scheme", "duplicates")
                | {"measure": name, "population": "control"}
            )

    _dose(add, evidence, evidence.control, 0.0, settings)
    return rows


def exposed_rows(evidence: Evidence, settings: AuditSettings) -> list[int]:
    """Positions in `evidence` of the most exposed targets: highest p_z under the first scheme, then lowest loss."""
    log_pz = evidence.log_pz[settings.schemes[0]]
    order = np.lexsort((evidence.row, evidence.loss, -log_pz))
    return [int(at) for at in order if evidence.target[at]][: settings.exposed]


def value_of(estimate: Estimate) -> dict:
    return {name: _finite(getattr(estimate, name)) for name in ("value", "low", "high")} | {
        "n": int(estimate.n),
        "interval": estimate.interval,
    }


def vars_of(info) -> dict:
    return {
        name: getattr(info, name)
        for name in ("name", "title", "definition", "range", "direction", "unit", "source", "informs")
    }


def _mean(values: np.ndarray, settings: AuditSettings) -> Estimate | None:
    values = np.asarray(values, float)
    if not len(values):
        return None
    if len(values) < 2 or np.ptp(values) == 0:
        return Estimate(float(values.mean()), math.nan, math.nan, len(values), "none: no spread")
    return bootstrap(values, seed=settings.seed, confidence=settings.confidence)


def median_with_interval(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Median and the distribution-free interval between two order statistics (binomial); infinities are kept in
    order."""
    from scipy.stats import binom

    ordered = np.sort(values)
    n = len(ordered)
    middle = (
        ordered[(n - 1) // 2]
        if n % 2 or not np.isfinite(ordered[n // 2])
        else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    )
    lower = int(binom.ppf((1 - confidence) / 2, n, 0.5))
    return float(middle), float(ordered[max(0, lower - 1)]), float(ordered[min(n - 1, n - lower)])


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _only(row: dict, *names: str) -> dict:
    return {name: row[name] for name in names if name in row}
