"""Validity guards: what would make the numbers of an audit mean something else. They run by default.

Each is a findings guard: a status, the number it rests on, and the measures a failure spoils. Knows nothing about
models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from rote.audit.evidence import Evidence
from rote.audit.findings import MIN_CONTROLS, has_controls
from rote.audit.settings import AuditSettings
from rote.measures import blind
from rote.measures.roc import delong
from rote.measures.statistics import proportion
from rote.records.table import RecordTable

BLOCK = 1024  # records looked at at a time
MERGED_LIMIT = 0.05  # share of records whose prefix/suffix boundary falls inside a token
TOP_K_SHARE = 0.01  # top-k over this share of the vocabulary reaches unseen text by itself


def run_guards(
    evidence: Evidence,
    records: RecordTable,
    settings: AuditSettings,
    *,
    merged: np.ndarray,
    truncated: np.ndarray,
    vocab_size: int,
    references: Mapping[str, np.ndarray] | None = None,
) -> list[dict]:
    """All guards for these records. `references`: {name: score per evidence row} of models that never saw the texts."""
    found = [controls_guard(int(evidence.control.sum()))]
    if has_controls(evidence):
        groups = evidence.group.tolist() if any(group is not None for group in evidence.group) else None
        # A group that is all targets or all controls would be the label itself; then records are taken one by one.
        if groups is not None and not _mixed(evidence):
            groups = None
        common = {"groups": groups, "confidence": settings.confidence}
        # The bag of words looks at a sample of a large file anyway: only that sample's texts are fetched.
        sample = blind.subsample(evidence.target, settings.seed)
        found += [
            blind.bag_of_words(
                list(_documents(records, evidence.row[sample])),
                evidence.target[sample],
                seed=settings.seed,
                groups=None if groups is None else [groups[at] for at in sample],
                confidence=settings.confidence,
            ).as_dict(),
            blind.length_only(evidence.tokens.astype(float), evidence.target, **common).as_dict(),
        ]
        dates = records.table.column("date")
        if dates.null_count < len(dates):
            found.append(
                blind.date_only(records.take(evidence.row).column("date"), evidence.target, **common).as_dict()
            )
        found.append(
            blind.overlap(
                _documents(records, evidence.row[evidence.target]),
                _documents(records, evidence.row[evidence.control]),
                confidence=settings.confidence,
            ).as_dict()
        )
        found += [_reference(name, scores, evidence, settings) for name, scores in (references or {}).items()]
    found.append(_boundary(evidence, merged))
    if truncated.any():
        found.append(
            _guard(
                "truncated",
                "Records cut at the context window",
                "pass",
                float(truncated.mean()),
                message=f"{int(truncated.sum()):,} record{' was' if truncated.sum() == 1 else 's were'} longer than the"
                " context window; only the beginning was scored.",
            )
        )
    found += _top_k(settings, vocab_size)
    return found


def _documents(records: RecordTable, rows: np.ndarray) -> Iterator[str | list[int]]:
    """The texts (or token ids) of these rows, a block of rows at a time."""
    for start in range(0, len(rows), BLOCK):
        part = records.take(rows[start : start + BLOCK])
        for text, ids in zip(part.column("text"), part.column("token_ids"), strict=True):
            yield ids if text is None else text


def controls_guard(n: int) -> dict:
    """Do n unseen controls suffice to compare with?"""
    if n >= MIN_CONTROLS:
        return _guard(
            "controls",
            "Unseen controls",
            "pass",
            n,
            limit=MIN_CONTROLS,
            message=f"{n:,} unseen records of the same kind stand beside the targets.",
        )
    return _guard(
        "controls",
        "Unseen controls",
        "fail",
        n,
        limit=MIN_CONTROLS,
        spoils=["extraction", "exposure"],
        message=f"{n} unseen control record{'' if n == 1 else 's'}: templated or common text is extractable without"
        " having been seen, and nothing here tells the two apart. Add --control FILE with unseen text of the same"
        " kind.",
    )


def _boundary(evidence: Evidence, merged: np.ndarray) -> dict:
    share = proportion(int(merged[evidence.row].sum()), len(evidence))
    failed = share.value > MERGED_LIMIT
    return _guard(
        "token_boundary",
        "Prefix and suffix meet between tokens",
        "fail" if failed else "pass",
        share.value,
        share.low,
        share.high,
        MERGED_LIMIT,
        ["extraction"] if failed else [],
        f"In {share.value:.1%} of the records a token straddles the boundary between the given prefix and"
        f" suffix; such a token"
        " counts as the suffix's first." + (" Move the boundaries to where tokens begin." if failed else ""),
    )


def _reference(name: str, scores: np.ndarray, evidence: Evidence, settings: AuditSettings) -> dict:
    """The second control: a model that never saw the texts must not tell targets from controls either."""
    auroc = delong(scores[evidence.target], scores[evidence.control], confidence=settings.confidence)
    failed = auroc.low > 0.5 and auroc.value > 0.6
    return _guard(
        f"reference:{name}",
        f"The reference model {name} cannot tell targets from controls",
        "fail" if failed else "pass",
        auroc.value,
        auroc.low,
        auroc.high,
        0.6,
        ["membership.auroc", "membership.tpr"] if failed else [],
        f"LOSS under the reference model has AUROC {auroc.value:.2f} ({auroc.low:.2f} to {auroc.high:.2f})."
        + (" Either it saw the targets too, or targets are easier text than controls." if failed else ""),
    )


def _top_k(settings: AuditSettings, vocab_size: int) -> list[dict]:
    from rote.scores.schemes import DecodingScheme

    for text in settings.schemes:
        k = DecodingScheme.parse(text).top_k
        if k > 1 and k / vocab_size > TOP_K_SHARE:
            return [
                _guard(
                    "top_k_share",
                    "Top-k is small beside the vocabulary",
                    "fail",
                    k / vocab_size,
                    limit=TOP_K_SHARE,
                    spoils=["extraction.ceiling"],
                    message=f"top_k={k} keeps {k / vocab_size:.1%} of this model's {vocab_size:,} tokens, so"
                    f" even unseen"
                    " text stays inside the scheme's support: read the ceiling against the controls.",
                )
            ]
    return []


def _mixed(evidence: Evidence) -> bool:
    sides: dict = {}
    for group, target in zip(evidence.group, evidence.target, strict=True):
        sides.setdefault(group, set()).add(bool(target))
    return sum(len(side) == 2 for side in sides.values()) > len(sides) / 2


def _guard(
    name: str,
    title: str,
    status: str,
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
    limit: float | None = None,
    spoils: list[str] | None = None,
    message: str = "",
) -> dict:
    return {
        "name": name,
        "title": title,
        "status": status,
        "value": value,
        "low": low,
        "high": high,
        "limit": limit,
        "spoils": spoils or [],
        "message": message,
    }
