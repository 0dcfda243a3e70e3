"""Files to a `RecordTable`: every row checked, every error one line with file, line, field and what to do.

Knows how problems are gathered and said; the formats are in `rote.records.formats`, the row checks in
`rote.records.validate`. Deliberately does not know models or tokenizers: whether a record fits a context window is
decided where it is scored.

Rows stream in chunks, so the cost of reading is the Arrow buffers. Which field names are recognised is the table at the
top of `rote.records.validate`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rote.errors import InputError
from rote.records.files import SourceFile, find_files
from rote.records.formats import Problem, binary_columns, csv_header, raw_rows, unit_of
from rote.records.table import RecordTable, TableBuilder
from rote.records.validate import PROVENANCE, RowCheck, RowError, closest, show_name

MOST_PROBLEMS = 5  # rows told of in one message; reading stops there


def read_records(
    path: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    txt_unit: Literal["paragraph", "file"] = "paragraph",
    limit: int | None = None,
) -> RecordTable:
    """Records of a file, a folder, a data set saved by `datasets`, or several of these, in order.

    Formats by name (`.jsonl .ndjson .json .csv .tsv .parquet .arrow .txt .text .md`, each also inside gzip or zstd), or
    by `format` for all. A folder is read with its sub-folders, files by name; files with other endings in it are not
    read.
    columns: {field of a record: field in the file}, for example {"text": "body", "id": "uid"}; text files have no
    fields and are read without it.
    txt_unit: what a record is in a text file, a paragraph (parted by empty lines) or the whole file.
    limit: stop after so many records.
    Rows without id are named "<file stem>:<line>" (binary formats: row, from 1).

    Errors: `InputError`, one line: a missing or damaged file, nothing to read, the first of up to five bad rows of a
    file with the lines of the others, or an id used twice with both places.
    """
    if txt_unit not in ("paragraph", "file"):
        raise InputError(f"txt_unit must be paragraph or file, not {txt_unit!r}.")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be 1 or more, not {limit}.")
    check = RowCheck(columns)
    builder, extra = TableBuilder(), {}
    files = find_files(path, format=format)
    for file in files:
        before = builder.rows
        _read_file(file, RowCheck() if file.format == "txt" else check, builder, extra, txt_unit, limit)
        if builder.rows == before and len(files) == 1:
            raise InputError(f"{file.label}: no record in it. Give a file with at least one row.")
        if limit is not None and builder.rows >= limit:
            break
    if not builder.rows:
        raise InputError(f"{path}: no record in {len(files)} files. Give files with at least one row.")
    return RecordTable.checked(builder.finish(), extra)


def _read_file(
    file: SourceFile,
    check: RowCheck,
    builder: TableBuilder,
    extra: dict[str, None],
    txt_unit: Literal["paragraph", "file"],
    limit: int | None,
) -> None:
    unit = unit_of(file.format)
    _check_header(file, check, extra)
    problems: list[tuple[int, str]] = []
    ignored = check.known | PROVENANCE
    for number, row in raw_rows(file.path, file.label, file.format, wanted=check.known, txt_unit=txt_unit):
        if isinstance(row, Problem):
            problems.append((number, row))
        else:
            try:
                builder.add(check(row, f"{file.stem}:{number}"), f"{file.label}:{number}")
            except RowError as error:
                problems.append((number, str(error)))
            if not row.keys() <= ignored:
                extra.update(dict.fromkeys(name for name in row if name not in ignored))
        if len(problems) == MOST_PROBLEMS or (limit is not None and builder.rows >= limit):
            break
    if problems:
        (number, text), others = problems[0], [str(line) for line, _ in problems[1:]]
        more = (
            f" And {len(others)} more bad {unit}{'s' if len(others) > 1 else ''} ({', '.join(others)})."
            if others
            else ""
        )
        stopped = " Reading stopped there." if len(problems) == MOST_PROBLEMS else ""
        raise InputError(f"{file.label} {unit} {number}: {text}{more}{stopped}")


def _check_header(file: SourceFile, check: RowCheck, extra: dict[str, None]) -> None:
    """Formats with one header for all rows are judged by it before any row is read."""
    if file.format in ("csv", "tsv"):
        names = csv_header(file.path, file.label, "\t" if file.format == "tsv" else ",")
    elif file.format in ("parquet", "arrow"):
        names = binary_columns(file.path, file.label, file.format)
        extra.update(dict.fromkeys(name for name in names if name not in check.known | PROVENANCE))
    else:
        return
    here, place = set(names), f"{file.label} line 1" if file.format in ("csv", "tsv") else file.label
    if not names:
        return  # an empty file: said later
    for field, name in check.columns.items():
        if name not in here:
            raise InputError(
                f"{place}: no column {show_name(name)} (asked for as {field}).{closest(name, names)}{_columns(names)}"
            )
    found = {field for field, name in check.names.items() if name in here} | {
        f for f, alias in check.aliases.items() if alias in here
    }
    if not ({"text", "token_ids"} & found or {"prefix", "suffix"} <= found or {"prefix_ids", "suffix_ids"} <= found):
        header = " If the file has no header line, add one." if file.format in ("csv", "tsv") else ""
        raise InputError(
            f"{place}: no column text (nor prefix and suffix, nor token_ids).{closest('text', names)}{_columns(names)}"
            f"{header} Name the column with --text-column."
        )


def _columns(names: list[str]) -> str:
    """The column names, unless they look like a row of data: contents do not belong in an error."""
    if not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.\-]{0,31}", name) for name in names):
        return f" It has {len(names)} column{'s' if len(names) > 1 else ''}."
    return f" Columns: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}."
