"""A training corpus as token ids on disk, made once for a corpus and a tokenizer and memory-mapped ever after.

Knows documents (`rote.records.corpus`) and a function that tokenizes; deliberately does not know which tokenizer it is,
nor what the tokens are used for.

Layout of <folder>/<key>/: `tokens.u32`, little-endian, `SEPARATOR` after every document, and `store.json`. The key is a
hash of the corpus' bytes, the tokenizer's id and the reading options, so a store that does not fit is never found, and
a changed corpus is tokenized again. A store appears by one rename when it is complete; a killed build leaves only a
hidden folder, which the next build removes once it is a day old.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt32

from rote.errors import InputError
from rote.records.corpus import CorpusPath, Document, corpus_fingerprint, iter_documents
from rote.records.ngram_counts import SEPARATOR
from rote.records.validate import MAX_TOKEN_ID

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts to token ids, one list a text, *without* special tokens (no BOS, no EOS)."""

VERSION = 1
_TEXTS, _CHARS = 1024, 1 << 20  # tokenized at once
_STALE_SECONDS = 86_400
_TELL_EVERY = 1 << 17  # tokens between two calls of progress


@dataclass(frozen=True)
class TokenStore:
    """`tokens` token ids of `documents` documents in `folder`; separators are not counted."""

    folder: Path
    corpus_fingerprint: str
    tokenizer_id: str
    tokens: int
    documents: int

    def stream(self, piece: int = 1 << 20) -> Iterator[UInt32[np.ndarray, " tokens"]]:
        """All tokens in order, `SEPARATOR` after every document, in pieces that are read from disk when they come."""
        length = self.tokens + self.documents
        if length:
            mapped = np.memmap(self.folder / "tokens.u32", dtype="<u4", mode="r", shape=(length,))
            for start in range(0, length, piece):
                yield np.array(mapped[start : start + piece])


def token_arrays(documents: Iterable[Document], tokenize: Tokenize) -> Iterator[UInt32[np.ndarray, " tokens"]]:
    """Token ids of documents with a `SEPARATOR` after each; pieces of one document are joined. Texts are tokenized in
    batches.

    Errors: `InputError` when `tokenize` returns another number of lists than it was given texts, or an id outside [0,
    2^31).
    """
    batch: list[Document] = []
    chars, anything = 0, False

    def flush() -> Iterator[np.ndarray]:
        nonlocal batch, chars, anything
        texts = [d.text for d in batch if d.text is not None]
        ids = iter(tokenize(texts) if texts else ())
        for document in batch:
            if anything and not document.continues:
                yield np.array([SEPARATOR], np.uint32)
            anything = True
            row = document.token_ids if document.text is None else next(ids, None)
            if row is None:
                raise InputError(
                    f"{document.source}: the tokenizer returned fewer lists than it was given texts. "
                    "Return one list a text."
                )
            found = np.asarray(row, np.int64)
            if len(found) and not 0 <= found.min() <= found.max() <= MAX_TOKEN_ID:
                raise InputError(
                    f"{document.source}: the tokenizer gave an id outside 0 .. {MAX_TOKEN_ID}. Check the tokenizer."
                )
            yield found.astype(np.uint32)
        batch, chars = [], 0

    for document in documents:
        batch.append(document)
        chars += len(document.text or "")
        if len(batch) >= _TEXTS or chars >= _CHARS:
            yield from flush()
    yield from flush()
    if anything:
        yield np.array([SEPARATOR], np.uint32)


def open_token_store(
    corpus: CorpusPath,
    folder: str | Path,
    *,
    tokenize: Tokenize,
    tokenizer_id: str,
    text_column: str = "text",
    txt_unit: Literal["file", "paragraph"] = "file",
    progress: Callable[[int], None] | None = None,
) -> TokenStore:
    """The store of `corpus` under `folder`, built when it is not there. progress(tokens so far) is called while
    building.

    tokenizer_id: anything that changes when the tokenizer does, for example a hash of tokenizer.json.
    Errors: `InputError` for a bad corpus, and for a folder that cannot be written or is full.
    """
    options = {"version": VERSION, "text_column": text_column, "txt_unit": txt_unit, "tokenizer_id": tokenizer_id}
    fingerprint = corpus_fingerprint(corpus)
    key = hashlib.sha256(json.dumps([fingerprint, options], sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(folder)
    home = folder / key
    store = _load(home)
    if store is not None:
        return store
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        building = Path(tempfile.mkdtemp(dir=folder, prefix=".building-"))
        try:
            tokens = documents = told = 0
            with open(building / "tokens.u32", "wb") as out:
                pieces = token_arrays(iter_documents(corpus, text_column=text_column, txt_unit=txt_unit), tokenize)
                for piece in pieces:
                    out.write(piece.astype("<u4").tobytes())
                    ends = int(len(piece) == 1 and piece[0] == SEPARATOR)
                    documents, tokens = documents + ends, tokens + len(piece) - ends
                    if progress is not None and tokens - told >= _TELL_EVERY:
                        progress(tokens)
                        told = tokens
                out.flush()
                os.fsync(out.fileno())
            if not documents:
                raise InputError(f"{corpus}: no document in the corpus. Give files with at least one document.")
            store = TokenStore(home, fingerprint, tokenizer_id, tokens, documents)
            facts = {**asdict(store), **options}
            del facts["folder"]
            (building / "store.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            if home.exists():  # unreadable, or made by another process meanwhile
                shutil.rmtree(home, ignore_errors=True)
            os.replace(building, home)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(
                f"{folder}: the disk is full (4 bytes a corpus token are needed). Free space or choose another folder."
            ) from error
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}). Choose another folder for the corpus index."
        ) from error
    return store


def _load(home: Path) -> TokenStore | None:
    """The store in `home` if it is whole, else None."""
    try:
        facts = json.loads((home / "store.json").read_text(encoding="utf-8"))
        store = TokenStore(home, *(facts[k] for k in ("corpus_fingerprint", "tokenizer_id", "tokens", "documents")))
        whole = (home / "tokens.u32").stat().st_size == 4 * (store.tokens + store.documents)
        return store if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sweep(folder: Path) -> None:
    """Remove what builds that were killed left behind."""
    for leftover in folder.glob(".building-*"):
        if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
