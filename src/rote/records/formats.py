"""Files to raw rows: jsonl, json, csv, tsv, parquet, Arrow (`Dataset.save_to_disk`) and text, plain or inside gzip or
zstd.

Knows compression (by the first bytes, not by the name), character encoding and the syntax of each format, and where a
row stands in its file. Deliberately does not know what a record is: `rote.records.validate` does, and a training corpus
is read from here too.

Every format streams; the exception is a `.json` list, whose text is held in memory (its rows are decoded one by one).
A row that cannot be parsed is yielded as a `Problem` so that the reader can report several at once. A file that cannot
be read any further raises `InputError`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa

from rote.errors import InputError

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt"]
TextUnit = Literal["paragraph", "file"]

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
}
COMPRESSED = (".gz", ".zst", ".zstd")
BINARY: frozenset[Format] = frozenset({"parquet", "arrow"})
ROWS_AT_ONCE = 4096
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# Metadata that `datasets` writes beside its arrow files; it is never data.
DATASET_METADATA = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})


class Problem(str):
    """What is wrong with one row, and what to do about it; the reader adds file and line."""


def stem(path: Path) -> str:
    """File name without the format and compression suffixes: `people.jsonl.gz` -> `people`."""
    name = path.name
    for suffixes in (COMPRESSED, tuple(SUFFIXES)):
        for suffix in suffixes:
            if name.lower().endswith(suffix) and len(name) > len(suffix):
                name = name[: -len(suffix)]
                break
    return name


def format_of(path: Path) -> Format | None:
    """Format by file name, or None when the name says nothing."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return SUFFIXES.get(Path(name).suffix)


def unit_of(format: Format) -> str:
    """What a position in such a file counts: text formats have lines, binary ones rows."""
    return "row" if format in BINARY else "line"


@contextmanager
def _read_errors(label: str, line: list[int]) -> Iterator[None]:
    """Turn every way a read can fail into one sentence. `line[0]` is the last line that was read whole."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowException, OSError) as error:
        place = f" after line {line[0]}" if line[0] else ""
        if isinstance(error, EOFError) or "runcated" in str(error):
            raise InputError(
                f"{label}: the compressed file is cut off{place}. "
                "It was probably copied or downloaded only in part; get it again."
            ) from error
        if isinstance(error, PermissionError):
            raise InputError(f"{label}: no permission to read it. Change its permissions (chmod u+r).") from error
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{label}: unreadable{place} ({reason}). Check that the file is whole.") from error


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed when it starts with the gzip or zstd mark."""
    with open(path, "rb") as handle:
        mark = handle.read(4)
    if mark[:2] == _GZIP:
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if mark == _ZSTD:
        stream = pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")
        return io.BufferedReader(stream, 1 << 20)  # type: ignore[arg-type]
    return open(path, "rb")


def _numbered_lines(path: Path, label: str) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, its bytes with the newline). Only b"\\n" ends a line: U+2028 and friends are content."""
    number = [0]
    with _read_errors(label, number), open_bytes(path) as stream:
        for raw in stream:
            number[0] += 1
            yield number[0], raw.removeprefix(b"\xef\xbb\xbf") if number[0] == 1 else raw


def _bad_utf8(error: UnicodeDecodeError) -> Problem:
    return Problem(f"not valid UTF-8 (byte {error.start + 1} of the line). Save the file as UTF-8.")


def _bad_json(error: Exception) -> Problem:
    if isinstance(error, json.JSONDecodeError):
        return Problem(f"not valid JSON ({error.msg} at column {error.colno}). Fix or remove the line.")
    reason = "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"
    return Problem(f"not valid JSON ({reason}). Fix or remove the line.")


def _row(value: Any) -> dict | Problem:
    if isinstance(value, dict):
        return value
    kind = {list: "a list", str: "a string", bool: "true/false", type(None): "null"}.get(type(value), "a number")
    return Problem(f'{kind}, not a JSON object. Write every row as an object such as {{"text": "..."}}.')


def jsonl_rows(path: Path, label: str) -> Iterator[tuple[int, dict | Problem]]:
    """One JSON object a line; empty lines are passed over."""
    for number, raw in _numbered_lines(path, label):
        if raw.isspace():
            continue
        try:
            yield number, _row(json.loads(raw.decode("utf-8").strip("\r\n")))
        except UnicodeDecodeError as error:
            yield number, _bad_utf8(error)
        except (ValueError, RecursionError) as error:
            yield number, _bad_json(error)


def json_rows(path: Path, label: str) -> Iterator[tuple[int, dict | Problem]]:
    """A list of objects; a `.json` file that holds one object a line is read as jsonl."""
    with _read_errors(label, [0]), open_bytes(path) as stream:
        raw = stream.read().removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{label} line {line}: not valid UTF-8. Save the file as UTF-8.") from error
    del raw
    start = len(text) - len(text.lstrip())
    if not text.startswith("[", start):
        yield from jsonl_rows(path, label)
        return
    decoder, position, line, counted = json.JSONDecoder(), start + 1, 1, 0

    def skip_space(i: int) -> int:
        while i < len(text) and text[i] in " \t\r\n":
            i += 1
        return i

    position = skip_space(position)
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield error.lineno, _bad_json(error)
            return
        except (ValueError, RecursionError) as error:
            yield line, _bad_json(error)
            return
        yield line, _row(value)
        position = skip_space(position)
        if text.startswith(",", position):
            position = skip_space(position + 1)
        elif not text.startswith("]", position):
            error = json.JSONDecodeError("Expecting ',' delimiter", text, position)
            yield error.lineno, _bad_json(error)
            return


def _decoded(lines: Iterator[tuple[int, bytes]], label: str) -> Iterator[str]:
    for number, raw in lines:
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{label} line {number}: {_bad_utf8(error)}") from error


def csv_header(path: Path, label: str, delimiter: str) -> list[str]:
    """The names in the first line of a csv file."""
    lines = _decoded(_numbered_lines(path, label), label)
    return [name.strip() for name in next(csv.reader(lines, delimiter=delimiter), [])]


def csv_rows(path: Path, label: str, delimiter: str) -> Iterator[tuple[int, dict | Problem]]:
    """Rows of a csv file with a header, by RFC 4180 quoting; a row's line is the one where it starts."""
    reader = csv.reader(_decoded(_numbered_lines(path, label), label), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        # A passage may be longer than Python's 128 KiB. The limit is global: lift it only while this reader works.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield start, Problem(f"not valid csv ({error}). Check the quotes.")
            return
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if not any(row):
            continue
        if header is None:
            header = [name.strip() for name in row]
        elif len(row) != len(header):
            yield (
                start,
                Problem(
                    f"{len(row)} values, but the header names {len(header)} columns. "
                    "Put quotes around values that contain commas or tabs."
                ),
            )
        else:
            yield start, dict(zip(header, row, strict=True))


def _arrow_source(path: Path) -> Any:
    with open(path, "rb") as handle:
        mark = handle.read(4)
    if mark[:2] != _GZIP and mark != _ZSTD:
        return str(path)
    with open_bytes(
        path
    ) as stream:  # both formats are read from their end, so a compressed one has to be unpacked first
        return pa.BufferReader(stream.read())


def binary_columns(path: Path, label: str, format: Format) -> list[str]:
    """Column names of a parquet or arrow file, without reading its rows."""
    with _read_errors(label, [0]):
        if format == "parquet":
            import pyarrow.parquet as pq

            return pq.ParquetFile(_arrow_source(path)).schema_arrow.names
        return _arrow_reader(_arrow_source(path)).schema.names


def _arrow_reader(source: Any) -> Any:
    """`datasets` writes the Arrow stream format; Feather v2 and others write the file format."""
    handle = pa.memory_map(source) if isinstance(source, str) else source
    try:
        return pa.ipc.open_stream(handle)
    except pa.ArrowInvalid:
        handle.seek(0)
        return pa.ipc.open_file(handle)


def binary_rows(path: Path, label: str, format: Format, wanted: set[str]) -> Iterator[tuple[int, dict | Problem]]:
    """Rows of a parquet or arrow file, only the `wanted` columns, a few thousand at a time. Lines are row numbers from
    1."""
    number = 0
    with _read_errors(label, [0]):
        if format == "parquet":
            import pyarrow.parquet as pq

            file = pq.ParquetFile(_arrow_source(path))
            columns = [name for name in file.schema_arrow.names if name in wanted]
            batches: Any = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns)
        else:
            reader = _arrow_reader(_arrow_source(path))
            columns = [name for name in reader.schema.names if name in wanted]
            count = getattr(reader, "num_record_batches", None)
            stream = reader if count is None else (reader.get_batch(i) for i in range(count))
            batches = (batch.select(columns) for batch in stream)
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                part = batch.slice(start, ROWS_AT_ONCE)
                for row in part.to_pylist() if columns else [{}] * part.num_rows:
                    number += 1
                    yield number, row


def txt_rows(path: Path, label: str, unit: TextUnit) -> Iterator[tuple[int, dict | Problem]]:
    """One passage a paragraph (paragraphs are parted by empty lines) or one a file. Content is kept as it is, but for
    the newlines that end a paragraph."""
    parts: list[str] = []
    start = 1
    for number, raw in _numbered_lines(path, label):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield number, _bad_utf8(error)
            continue
        if unit == "paragraph" and not line.strip():
            if parts:
                yield start, {"text": "".join(parts).rstrip("\r\n")}
            parts = []
            continue
        if not parts:
            start = number
        parts.append(line)
    if any(not part.isspace() for part in parts):
        yield start, {"text": "".join(parts) if unit == "file" else "".join(parts).rstrip("\r\n")}


def text_pieces(path: Path, label: str, characters: int = 1 << 22) -> Iterator[str]:
    """A text file in pieces of about `characters`, each cut between a line with content and a line that starts at the
    margin.

    Joined they are the file. Errors: `InputError` for a line that is not UTF-8.
    """
    parts: list[str] = []
    held = 0
    for line in _decoded(_numbered_lines(path, label), label):
        if held >= characters and not line[0].isspace() and not parts[-1].isspace():
            yield "".join(parts)
            parts, held = [], 0
        parts.append(line)
        held += len(line)
    if parts:
        yield "".join(parts)


def raw_rows(
    path: Path, label: str, format: Format, *, wanted: set[str], txt_unit: TextUnit = "paragraph"
) -> Iterator[tuple[int, dict | Problem]]:
    """(line or row number, row) of any file. `wanted` lets parquet and arrow read only those columns.

    Errors: `InputError` when the file is damaged or cannot be opened.
    """
    if format == "jsonl":
        return jsonl_rows(path, label)
    if format == "json":
        return json_rows(path, label)
    if format in ("csv", "tsv"):
        return csv_rows(path, label, "\t" if format == "tsv" else ",")
    if format == "txt":
        return txt_rows(path, label, txt_unit)
    return binary_rows(path, label, format, wanted)
