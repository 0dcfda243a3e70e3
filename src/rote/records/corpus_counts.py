"""How often each record occurs in a training corpus, exactly: as tokens, by its n-grams, and as words.

Knows records and corpora; the counting itself is in `rote.records.ngram_counts`, the reading in `rote.records.corpus`.

A tokenizer may split the ends of a passage otherwise inside a document ("Hello" at a document's start, " Hello" after
a space), so the exact token count misses copies: of 200 passages cut out of documents at word boundaries, tokenized by
a byte-level BPE of 2000 entries trained on them, it found 2 %. `CorpusCounts.interior` leaves tokens at both ends out
(one at each end: 77 % found, two: 96 %, three, and the default of four: 100 %), and `count_words_in_corpus` compares
case-folded words instead of tokens (100 %).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64, UInt32

from rote.errors import InputError
from rote.records.corpus import CorpusPath, iter_documents
from rote.records.ngram_counts import SEPARATOR, count_sequences
from rote.records.table import RecordTable
from rote.records.token_store import Tokenize, open_token_store
from rote.records.words import words

_OTHER_WORD = 2**32 - 2  # every corpus word that no record holds; no record holds this one


@dataclass(frozen=True)
class CorpusCounts:
    """Occurrences of each record in a corpus, in the order of the records.

    The figures are those of `rote.records.ngram_counts.count_sequences`.

    Overlapping occurrences count; none crosses a document boundary. `interior` is the figure to use as number of
    copies: it is never below `exact`, and it stands end words that are tokenized otherwise inside a document.
    """

    ids: tuple[str, ...]
    n: int
    tokens: Int64[np.ndarray, " records"]
    exact: Int64[np.ndarray, " records"]
    interior: Int64[np.ndarray, " records"]
    documents: Int64[np.ndarray, " records"]
    max_ngram: Int64[np.ndarray, " records"]
    mean_ngram: Float[np.ndarray, " records"]
    seen_ngrams: Float[np.ndarray, " records"]
    corpus_tokens: int
    corpus_documents: int
    corpus_fingerprint: str


def record_tokens(records: RecordTable, tokenize: Tokenize) -> list[UInt32[np.ndarray, " tokens"]]:
    """Token ids of every record: its own, or its text's. Errors: `InputError` when `tokenize` returns too few or too
    many lists."""
    out: list[np.ndarray] = []
    for batch in records.table.select(["text", "token_ids"]).to_batches(max_chunksize=1024):
        texts = [text for text in batch.column("text").to_pylist() if text is not None]
        ids = list(tokenize(texts)) if texts else []
        if len(ids) != len(texts):
            raise InputError(f"the tokenizer returned {len(ids)} lists for {len(texts)} texts. Return one list a text.")
        own = iter(ids)
        out += [
            np.asarray(next(own) if row is None else row, np.uint32) for row in batch.column("token_ids").to_pylist()
        ]
    return out


def count_in_corpus(
    records: RecordTable,
    corpus: CorpusPath,
    *,
    tokenize: Tokenize,
    tokenizer_id: str | None = None,
    n: int = 50,
    index_dir: str | Path | None = None,
    text_column: str = "text",
    txt_unit: Literal["file", "paragraph"] = "file",
    edge_tokens: int = 4,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> CorpusCounts:
    """Exact counts of every record in the corpus, which may be larger than memory.

    tokenize: texts to lists of token ids, without special tokens.
    index_dir: where the tokenized corpus is kept (4 bytes a token) and found again; needs `tokenizer_id`. None: a
    temporary folder.
    n: window of the n-gram figures. progress(stage, done, total or None): stages "tokenize" and "count", in tokens.

    Errors: `InputError` for a bad corpus, a folder that cannot be written, a `tokenizer_id` missing beside `index_dir`,
    n < 1.
    """
    if n < 1:
        raise InputError(f"the n-gram length must be 1 or more, not {n}.")
    if index_dir is not None and not tokenizer_id:
        raise InputError(
            "index_dir needs tokenizer_id, or a later run could reuse tokens of another tokenizer. Give both."
        )
    with tempfile.TemporaryDirectory(prefix="rote-corpus-") as scratch:
        store = open_token_store(
            corpus,
            index_dir or scratch,
            tokenize=tokenize,
            tokenizer_id=tokenizer_id or "",
            text_column=text_column,
            txt_unit=txt_unit,
            progress=None if progress is None else lambda done: progress("tokenize", done, None),
        )

        def count_progress(done: int, passes: int) -> None:
            if progress is not None:
                progress("count", done, passes * (store.tokens + store.documents))

        counts = count_sequences(
            record_tokens(records, tokenize),
            store.stream,
            n=n,
            edge_tokens=edge_tokens,
            progress=count_progress,
        )
    return CorpusCounts(
        ids=tuple(records.column("id")),
        n=n,
        **vars(counts),
        corpus_tokens=store.tokens,
        corpus_documents=store.documents,
        corpus_fingerprint=store.corpus_fingerprint,
    )


def word_ids(sequences: Sequence[Sequence[object]]) -> tuple[list[UInt32[np.ndarray, " words"]], dict[object, int]]:
    """Sequences of words (or of any hashable symbols) as ids, numbered as they come, and the numbering."""
    vocabulary: dict[object, int] = {}
    rows = [np.array([vocabulary.setdefault(w, len(vocabulary)) for w in row], np.uint32) for row in sequences]
    return rows, vocabulary


def count_words_in_corpus(
    records: RecordTable,
    corpus: CorpusPath,
    *,
    text_column: str = "text",
    txt_unit: Literal["file", "paragraph"] = "file",
) -> Int64[np.ndarray, " records"]:
    """Places in the corpus where the record's words stand in a row, whatever their case, spacing and punctuation.

    Needs no tokenizer. Records and documents that are token ids, and texts without a word, count 0. Errors:
    `InputError`.
    """
    sequences, vocabulary = word_ids([words(text) if text is not None else [] for text in records.column("text")])

    def stream() -> Iterator[np.ndarray]:
        started = False
        for document in iter_documents(corpus, text_column=text_column, txt_unit=txt_unit):
            if started and not document.continues:
                yield np.array([SEPARATOR], np.uint32)
            started = True
            found = words(document.text) if document.text is not None else []
            yield np.fromiter((vocabulary.get(w, _OTHER_WORD) for w in found), np.uint32, len(found))

    longest = max((len(row) for row in sequences), default=1)
    # n as long as the longest record: every record is then its own only n-gram
    return count_sequences(sequences, stream, n=max(longest, 1), edge_tokens=0).exact
