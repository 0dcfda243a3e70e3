"""Duplicate counts: how often the training corpus holds each audited record, exactly and nearly.

Kept in the run directory as `corpus.parquet`; fills in missing duplicate counts and checks that controls are unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rote.audit.run_directory import RunDirectory
from rote.audit.settings import AuditSettings
from rote.measures.statistics import proportion
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable

Progress = Callable[[str, int, int], None]


def with_counts(records: RecordTable, corpus: pa.Table) -> RecordTable:
    """Fill in missing duplicate counts of the targets from exact counts in the training corpus."""
    given = records.column("duplicates")
    counted = corpus.column("copies").to_pylist()
    control = records.is_control
    filled = [
        count if value is None and not unseen else value
        for value, count, unseen in zip(given, counted, control, strict=True)
    ]
    # A count of zero does not make a target a control: near copies and other corpora may have held it.
    index = records.table.schema.get_field_index("duplicates")
    member = [
        False if unseen else True if value is None else value
        for value, unseen in zip(records.column("member"), control, strict=True)
    ]
    table = records.table.set_column(
        index,
        "duplicates",
        pa.array(
            [None if value == 0 and not unseen else value for value, unseen in zip(filled, control, strict=True)],
            pa.int64(),
        ),
    )
    return RecordTable(table.set_column(table.schema.get_field_index("member"), "member", pa.array(member, pa.bool_())))


def count_corpus(
    run: RunDirectory,
    records: RecordTable,
    corpus: str | Path,
    model: CausalLM,
    settings: AuditSettings,
    tell: Progress,
) -> None:
    """Exact and near copies of every record in the training corpus, kept in the run directory."""
    from rote.records import count_in_corpus, near_duplicates_in_corpus

    counts = count_in_corpus(
        records,
        corpus,
        tokenize=lambda texts: [encoding.ids for encoding in model.encode(texts)],
        tokenizer_id=model.fingerprint,
        index_dir=run.path / "corpus",
        text_column=settings.corpus_column,
        progress=lambda name, done, total: tell(f"corpus: {name}", done, total or 0),
    )
    near = near_duplicates_in_corpus(records, corpus, text_column=settings.corpus_column)
    run.write_table(
        "corpus.parquet",
        pa.table(
            {
                "id": pa.array(list(counts.ids)),
                "copies": pa.array(counts.interior),
                "documents": pa.array(counts.documents),
                "seen_ngrams": pa.array(counts.seen_ngrams),
                "near_documents": pa.array(near.documents),
                "best_near": pa.array(near.best),
            }
        ),
    )


def corpus_counts(run: RunDirectory) -> pa.Table | None:
    file = run.path / "corpus.parquet"
    return pq.read_table(file) if file.exists() else None


def corpus_guard(records: RecordTable, corpus: pa.Table) -> dict:
    """Controls that the training corpus holds are not controls."""
    control = records.is_control
    found = corpus.column("copies").to_numpy() + corpus.column("near_documents").to_numpy() > 0
    seen = int((found & control).sum())
    share = proportion(seen, max(1, int(control.sum())))
    failed = seen > 0
    return {
        "name": "controls_in_corpus",
        "title": "Controls are absent from the training corpus",
        "status": "not_run" if not control.any() else "fail" if failed else "pass",
        "value": share.value,
        "low": share.low,
        "high": share.high,
        "limit": 0.0,
        "spoils": ["membership", "extraction.rate"] if failed else [],
        "message": f"{seen:,} of {int(control.sum()):,} controls occur in the training corpus, exactly or nearly."
        + (" They were seen: remove them." if failed else ""),
    }
