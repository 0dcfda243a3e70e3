"""Which files a path stands for: a file, a folder of files, or a data set saved by `datasets`.

Knows names and formats; reads nothing but the small metadata files of `datasets`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rote.errors import InputError
from rote.records.formats import COMPRESSED, DATASET_METADATA, SUFFIXES, Format, format_of, stem


@dataclass(frozen=True)
class SourceFile:
    """A file to read: `label` names it in errors, `stem` begins the ids of rows that have none."""

    path: Path
    label: str
    stem: str
    format: Format


def _dataset_files(folder: Path) -> list[Path] | None:
    """Arrow files of a `Dataset.save_to_disk` or `DatasetDict.save_to_disk` folder, in the order of its rows; None if
    it is not one."""
    splits, state = folder / "dataset_dict.json", folder / "state.json"
    try:
        if splits.is_file():
            names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
            return [file for name in names for file in _dataset_files(folder / str(name)) or []]
        if state.is_file() and (folder / "dataset_info.json").is_file():
            parts = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
            # Only the last part of the name: metadata must not lead out of its folder.
            files = [folder / Path(part["filename"]).name for part in parts]
            for file in files:
                if not file.is_file():
                    raise InputError(
                        f"{folder.name}: the saved data set lacks {file.name}. Copy the whole folder again."
                    )
            return files
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder.name}: damaged `datasets` metadata. Save the data set again with save_to_disk."
        ) from error
    return None


def _known() -> str:
    return ", ".join(sorted(SUFFIXES)) + f" (also with {', '.join(COMPRESSED[:2])})"


def missing(path: Path) -> InputError:
    """The error for a path that does not exist, with the nearest name beside it."""
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return InputError(f"{path}: no such file or folder, nor does {path.parent} exist. Check the path.")
    near = difflib.get_close_matches(path.name, beside, n=1)
    hint = f" Did you mean {near[0]}?" if near else " Check the path."
    return InputError(f"{path}: no such file or folder.{hint}")


def find_files(paths: str | Path | Sequence[str | Path], *, format: str | None = None) -> list[SourceFile]:
    """Files behind one path or several, in a fixed order: as given, a folder's own by name.

    A folder is searched with its sub-folders for names that end in a known suffix; hidden files are left out.

    Errors: `InputError` for a missing path, an unknown suffix, an unknown `format`, a folder with nothing to read.
    """
    formats = sorted(set(SUFFIXES.values()))
    if format is not None and format not in formats:
        near = difflib.get_close_matches(format, formats, n=1)
        raise InputError(
            f"format {format!r} is not known{f'; did you mean {near[0]}?' if near else '.'} "
            f"Known: {', '.join(formats)}."
        )
    found: list[tuple[Path, str]] = []
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    for path in map(Path, given):
        if not path.exists():
            raise missing(path)
        if path.is_file():
            found.append((path, path.name))
            continue
        inside = _dataset_files(path)
        if inside is None:
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.is_file()
                and format_of(file)
                and file.name not in DATASET_METADATA
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        if not inside:
            raise InputError(f"{path}: no file in this folder that can be read. Known: {_known()}.")
        found += [(file, file.relative_to(path).as_posix()) for file in inside]
    stems = [str(Path(label).with_name(stem(file))) for file, label in found]
    if len(set(stems)) < len(stems):  # a.jsonl beside a.csv: the whole name keeps generated ids apart
        stems = [label for _, label in found]
    if len(set(stems)) < len(stems):
        stems = [str(file) for file, _ in found]
    files = []
    for (file, label), name in zip(found, stems, strict=True):
        kind = format or format_of(file)
        if kind is None:
            raise InputError(
                f"{label}: cannot tell the format from the name. Name it with --format, or rename it: {_known()}."
            )
        files.append(SourceFile(file, label, name, kind))  # type: ignore[arg-type]
    return files
