"""Real English text on every machine: the running Python's own documentation.

Two sources, found through the standard library: the language reference in `pydoc_data.topics`, and the docstrings of
all modules, classes and functions below `sysconfig.get_paths()["stdlib"]`. The files are parsed with `ast`, never
imported, so nothing runs. About 2 million characters on Python 3.11. Order and contents are deterministic for one
Python installation.

Knows nothing about tokenizers or models.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rote.errors import InputError

#: Folders that hold no prose of the library itself: its tests, and whatever was installed beside it.
SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Document:
    """One document of a corpus: `id` names where it came from, `text` is the whole of it."""

    id: str
    text: str


def docstrings(source: bytes) -> list[str]:
    """The docstrings of a module and of every class and function in it, in source order, cleaned as by
    `inspect.cleandoc`.

    Raises: SyntaxError or ValueError when `source` is not Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old docstrings are not our reader's problem
        tree = ast.parse(source)
    found: list[str] = []
    # Only statements can hold definitions; walking expressions too would take twice as long.
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                found.append(text)
        children = [
            child
            for name in ("body", "orelse", "handlers", "finalbody", "cases")
            for child in getattr(node, name, ())
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)
        ]
        stack.extend(reversed(children))
    return found


@lru_cache(maxsize=4)
def _collect(root: Path, include_topics: bool) -> tuple[Document, ...]:
    seen: set[str] = set()
    documents: list[Document] = []

    def add(identifier: str, text: str) -> None:
        text = text.strip()
        if text and text not in seen:  # inherited and copied docstrings would otherwise be accidental duplicates
            seen.add(text)
            documents.append(Document(identifier, text))

    if include_topics:
        from pydoc_data import topics

        for name in sorted(topics.topics):
            add(f"topics/{name}", topics.topics[name])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        try:
            found = docstrings(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue  # templates and files of other Python versions: no text of ours
        for number, text in enumerate(found):
            add(f"{relative.as_posix()}#{number}", text)
    return tuple(documents)


def stdlib_documents(
    *, min_chars: int = 1, include_topics: bool = True, stdlib: Path | None = None
) -> Iterator[Document]:
    """Every topic of the language reference, then every distinct docstring of the standard library, one document each.

    Args:
        min_chars: shorter documents are left out.
        include_topics: also the language reference (`pydoc_data.topics`).
        stdlib: folder to search; the running Python's own by default.
    Raises: InputError when this Python has no source files (a stripped installation).
    """
    root = Path(stdlib) if stdlib is not None else Path(sysconfig.get_paths()["stdlib"])
    documents = _collect(root, include_topics)
    if not documents:
        raise InputError("this Python has no standard-library sources to take text from: give a corpus folder instead")
    return (document for document in documents if len(document.text) >= min_chars)
