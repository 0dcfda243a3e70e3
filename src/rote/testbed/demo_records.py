"""The record files of `rote demo`, as a user would have written them: what is planted, what is not, what must stay.

    probes.jsonl    invented people's contact lines and passages of documentation, half of them planted
    targets.jsonl   those planted at least once          controls.jsonl   those planted never, by lot
    retain.jsonl    what unlearning may train on: documentation the model saw, other people's contact lines
    unseen.jsonl    documentation it never saw: its perplexity says what a treatment cost

Knows beds and generators. Knows nothing about models, audits or treatments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from rote.runtime import derive_seed
from rote.testbed.bed import Bed

PEOPLE = PASSAGES = 150
OTHER_PEOPLE, RETAINED, UNSEEN = 100, 400, 200
LEAST_CHARS, MOST_CHARS = 60, 100


def write_probes(file: Path, seed: int) -> Path:
    """People's contact lines, and passages of this Python's documentation (which is then kept out of the corpus)."""
    from rote.records import passages, stdlib_documents

    documents = ((document.id, document.text) for document in stdlib_documents(min_chars=400))
    cut = [row for row in passages(documents, n=4 * PASSAGES, words=14, seed=seed) if len(row["text"]) <= MOST_CHARS]
    rows = [{"id": row["id"], "group": row["group"], "text": row["text"]} for row in cut[:PASSAGES]]
    return _write(file, [*_contact_lines(seed)[:PEOPLE], *rows])


def write_targets_and_controls(bed: Bed, folder: Path) -> tuple[Path, Path]:
    """The probes, parted by whether they were planted."""
    rows = [
        {"id": row["id"], "text": row["text"], "group": row["group"], "duplicates": int(copies)}
        for row, copies in zip(bed.probes, bed.duplicates, strict=True)
    ]
    return (
        _write(folder / "targets.jsonl", (row for row in rows if row["duplicates"] > 0)),
        _write(folder / "controls.jsonl", (row for row in rows if row["duplicates"] == 0)),
    )


def write_retain_and_unseen(bed: Bed, folder: Path) -> tuple[Path, Path]:
    """Text that must stay; other people's contact lines are among it: a person is to be forgotten, not the form."""
    rng = np.random.default_rng(derive_seed(bed.settings.seed, "retain"))
    stream = bed.clean_stream()
    retain = _texts(bed, stream[rng.permutation(len(stream))[: 2 * RETAINED]], "seen")[:RETAINED]
    return (
        _write(folder / "retain.jsonl", [*_contact_lines(bed.settings.seed)[PEOPLE:], *retain]),
        _write(folder / "unseen.jsonl", _texts(bed, bed.unseen, "unseen")[:UNSEEN]),
    )


def _contact_lines(seed: int) -> list[dict[str, str]]:
    """The probes' people first, then others."""
    from rote.records import biographies

    return [
        {
            "id": person.id,
            "group": "person",
            "text": f"{person.name} was born on {person.birthdate} and receives email at {person.email}.",
        }
        for person in biographies(PEOPLE + OTHER_PEOPLE, seed=seed)
    ]


def _texts(bed: Bed, sequences: np.ndarray, name: str) -> list[dict[str, str]]:
    """Of each packed sequence the longest piece of one document, as text."""
    pieces = (max(np.split(row, np.flatnonzero(row == bed.eos_id)), key=len) for row in sequences)
    texts = (str(bed.tokenizer.decode(piece[piece != bed.eos_id])).strip() for piece in pieces)
    return [{"id": f"{name}-{i}", "text": text} for i, text in enumerate(texts) if len(text) >= LEAST_CHARS]


def _write(file: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
