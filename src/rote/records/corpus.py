"""A training corpus, document by document: a file or folder of text, jsonl, json, csv, parquet, arrow (.gz, .zst).

Knows how documents lie in files and what identifies a corpus. Deliberately does not know records, tokenizers or
counting.

A document is a row's text (or its token ids, for a corpus stored as tokens), or a whole text file. Nothing but the
document at hand is in memory; a text file longer than a few million characters comes in several pieces of the same
document, cut between a line with content and a line that starts at the margin, where tokenizers cut too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rote.errors import InputError
from rote.records.files import SourceFile, find_files
from rote.records.formats import Problem, binary_columns, raw_rows, text_pieces, unit_of
from rote.records.validate import RowError, check_string, check_tokens, closest, show_name

CorpusPath = str | Path | Sequence[str | Path]
TOKEN_FIELDS = ("token_ids", "input_ids")


@dataclass(frozen=True, slots=True)
class Document:
    """`text`, or `token_ids` when the corpus is stored as tokens; the other is None.

    `continues`: not a new document, but the next piece of the one before.
    """

    text: str | None
    token_ids: list[int] | None
    source: str
    continues: bool = False


def iter_documents(
    path: CorpusPath, *, text_column: str = "text", txt_unit: Literal["file", "paragraph"] = "file"
) -> Iterator[Document]:
    """Documents in file order. A row without `text_column` may have `token_ids` or `input_ids`; empty texts are
    documents too.

    Errors: `InputError` with file and line for a row that has neither, or whose text is not a string, and for damaged
    files.
    """
    for file in find_files(path):
        if file.format == "txt" and txt_unit == "file":
            for number, piece in enumerate(text_pieces(file.path, file.label)):
                yield Document(piece, None, file.label, number > 0)
            continue
        wanted = {text_column, *TOKEN_FIELDS}
        if file.format in ("parquet", "arrow") and text_column in (
            names := binary_columns(file.path, file.label, file.format)
        ):
            wanted = {text_column} & set(names)  # do not decode token columns that will not be used
        for number, row in raw_rows(file.path, file.label, file.format, wanted=wanted, txt_unit="paragraph"):
            where = f"{file.label} {unit_of(file.format)} {number}"
            if isinstance(row, Problem):
                raise InputError(f"{where}: {row}")
            try:
                yield _document(row, "text" if file.format == "txt" else text_column, f"{file.label}:{number}")
            except RowError as error:
                raise InputError(f"{where}: {error}") from None


def _document(row: dict[str, Any], text_column: str, source: str) -> Document:
    text = row.get(text_column)
    if text is not None:
        return Document(check_string(text, show_name(text_column)), None, source)
    for name in TOKEN_FIELDS:
        if row.get(name) is not None:
            return Document(None, check_tokens(row[name], name), source)
    raise RowError(
        f"the document has no field {show_name(text_column)} (nor token_ids).{closest(text_column, row)} "
        "Name the field with --corpus-column."
    )


def corpus_fingerprint(path: CorpusPath) -> str:
    """sha256 (64 hex digits) over the names and bytes of the corpus files; reads them all once. Errors:
    `InputError`."""
    whole = hashlib.sha256(b"rote corpus 1")
    for file in find_files(path):
        whole.update(f"{file.label}\0{file.format}\0".encode() + _digest(file))
    return whole.hexdigest()


def _digest(file: SourceFile) -> bytes:
    try:
        with open(file.path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").digest()
    except OSError as error:
        raise InputError(f"{file.label}: cannot be read ({error.strerror}). Check its permissions.") from error
