"""Counts in a corpus equal those of a naive counter, whatever the cut into files, pieces, blocks and passes."""

from __future__ import annotations

import gzip
import json
import os
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.records import (
    RecordTable,
    corpus_fingerprint,
    count_in_corpus,
    count_sequences,
    count_words_in_corpus,
    iter_documents,
    ngram_counts,
    open_token_store,
)
from rote.records.ngram_counts import SEPARATOR
from rote.records.words import words

FIGURES = ("tokens", "exact", "documents", "interior", "max_ngram", "mean_ngram", "seen_ngrams")


def occurrences(query, documents):
    return (
        sum(d[i : i + len(query)] == query for d in documents for i in range(len(d) - len(query) + 1)) if query else 0
    )


def naive_counts(sequences, documents, *, n, edge, min_interior):
    """The definitions, letter by letter."""
    rows = []
    for x in sequences:
        grams = [x[i : i + n] for i in range(max(1, len(x) - n + 1))] if x else []
        counts = [occurrences(g, documents) for g in grams] or [0]
        trim = min(edge, max(0, (len(x) - min_interior) // 2))
        inner = x[trim : len(x) - trim]
        holding = sum(occurrences(x, [d]) > 0 for d in documents)
        seen = sum(c > 0 for c in counts) / len(counts)
        rows.append(
            (
                len(x),
                occurrences(x, documents),
                holding,
                occurrences(inner, documents),
                max(counts),
                np.mean(counts),
                seen,
            )
        )
    return rows


def stream_of(documents, piece):
    flat = np.array([t for d in documents for t in [*d, SEPARATOR]], np.uint32)
    return lambda: (flat[i : i + piece] for i in range(0, len(flat), piece))


def as_arrays(sequences):
    return [np.array(s, np.uint32) for s in sequences]


@st.composite
def corpora(draw):
    """Documents over a small alphabet, and sequences of which half are cut out of them."""
    alphabet = draw(st.sampled_from([1, 2, 3, 50]))
    token = st.integers(0, alphabet - 1)
    documents = draw(st.lists(st.lists(token, max_size=25), max_size=6))
    sequences = draw(st.lists(st.lists(token, max_size=14), min_size=1, max_size=5))
    for document in documents[:4]:
        start = draw(st.integers(0, len(document)))
        sequences.append(document[start : start + draw(st.integers(0, 14))])
    return documents, sequences


@settings(max_examples=150, deadline=None)
@given(
    corpus=corpora(),
    n=st.integers(1, 9),
    edge=st.integers(0, 2),
    piece=st.integers(1, 40),
    block=st.sampled_from([1, 7, 1000]),
    windows=st.sampled_from([1, 6, 1000]),
)
def test_counts_equal_the_naive_counter(corpus, n, edge, piece, block, windows):
    documents, sequences = corpus
    counts = count_sequences(
        as_arrays(sequences),
        stream_of(documents, piece),
        n=n,
        edge_tokens=edge,
        min_interior=3,
        block=block,
        windows_per_pass=windows,
    )
    expected = naive_counts(sequences, documents, n=n, edge=edge, min_interior=3)
    for name, column in zip(FIGURES, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(getattr(counts, name), column, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(corpus=corpora(), n=st.integers(1, 5))
def test_counts_stay_exact_when_hashes_collide(corpus, n):
    """With a mixer that knows only four values, most hashes of different windows are equal: the comparison decides."""
    documents, sequences = corpus
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_counts, "_mix", lambda tokens: np.minimum(tokens, 3).astype(np.uint64) % np.uint64(2))
        counts = count_sequences(as_arrays(sequences), stream_of(documents, 11), n=n, min_interior=3)
    expected = naive_counts(sequences, documents, n=n, edge=4, min_interior=3)
    for name, column in zip(FIGURES, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(getattr(counts, name), column, err_msg=name)


def test_thue_morse_sequences_are_told_apart():
    """The classic attack on polynomial hashes modulo 2^64: these two strings collide under every base."""
    bits = np.array([bin(i).count("1") & 1 for i in range(4096)], np.uint32)
    one, other = bits[:2048], bits[2048:]
    counts = count_sequences([one, other], stream_of([one.tolist()] * 3 + [other.tolist()], 1000), n=50, edge_tokens=0)
    assert counts.exact.tolist() == [3, 1]
    assert counts.documents.tolist() == [3, 1]


def test_nothing_matches_across_a_document_boundary_and_long_records_across_blocks_do():
    documents = [[1, 2], [3, 4]]
    assert count_sequences(as_arrays([[2, 3]]), stream_of(documents, 3), n=2).max_ngram.tolist() == [0]
    long = list(np.random.default_rng(0).integers(0, 9, 700))
    counts = count_sequences(as_arrays([long]), stream_of([[7, *long, 7], long], 64), n=50, block=16)
    assert counts.exact.tolist() == [2]
    assert counts.interior.tolist() == [2]
    assert counts.seen_ngrams.tolist() == [1.0]


def test_repeated_text_costs_no_more_than_other_text():
    """Suffix sorting by comparison needs half a minute for a fifth of this."""
    same = np.zeros(1_000_000, np.uint32)
    start = time.perf_counter()
    counts = count_sequences([same[:60]], lambda: iter([same]), n=50)
    assert time.perf_counter() - start < 20
    assert counts.exact.tolist() == [1_000_000 - 59]


def test_a_count_costs_far_less_than_100_microseconds():
    rng = np.random.default_rng(0)
    corpus = rng.integers(0, 50_000, 500_000).astype(np.uint32)
    sequences = [corpus[i : i + 100] for i in rng.integers(0, 499_900, 1000)]
    start = time.perf_counter()
    counts = count_sequences(sequences, lambda: iter([corpus]), n=50)
    seconds = time.perf_counter() - start
    assert counts.exact.min() >= 1
    assert seconds / (1000 * 51) < 100e-6


def test_memory_is_that_of_the_queries_not_of_the_corpus():
    """A generated stream of 20M tokens (80 MB) that is never held."""
    import tracemalloc

    piece = np.arange(1 << 18, dtype=np.uint32)
    tracemalloc.start()
    counts = count_sequences([piece[5:105]], lambda: (piece for _ in range(76)), n=50, block=1 << 18)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts.exact.tolist() == [76]
    assert peak < 60e6


# ---- corpora in files

SPELLED: dict[str, int] = {}


def tokenize(texts):
    """A word-and-space tokenizer; the first token of a text is another one ("Ada", " Ada"), as with real tokenizers."""
    out = []
    for text in texts:
        parts = [f" {w}" if i else w for i, w in enumerate(text.split(" "))]
        out.append([SPELLED.setdefault(p, len(SPELLED)) for p in parts])
    return out


DOCUMENTS = [
    "start of a page . Ada was born in a small town by the sea . end",
    "Ada was born in a small town by the sea .",
    "nothing of interest here",
    "Ada was born in a small town by the lake . and again Ada was born in a small town by the sea .",
]
RECORD = "Ada was born in a small town by the sea ."


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text(DOCUMENTS[0])
    (folder / "b.jsonl").write_text(
        json.dumps({"text": DOCUMENTS[1], "x": 1}) + "\n\n" + json.dumps({"text": DOCUMENTS[2]}) + "\n"
    )
    (folder / "sub" / "c.jsonl.gz").write_bytes(gzip.compress((json.dumps({"text": DOCUMENTS[3]}) + "\n").encode()))
    return folder


def test_counts_of_records_in_a_folder(corpus):
    records = RecordTable.from_rows(
        [
            {"id": "ada", "text": RECORD},
            {"id": "none", "text": "who is she really"},
            {"token_ids": tokenize(["of interest"])[0]},
        ]
    )
    counts = count_in_corpus(records, corpus, tokenize=tokenize, n=5)
    documents = tokenize(DOCUMENTS)
    mine = [*tokenize([RECORD, "who is she really"]), tokenize(["of interest"])[0]]
    expected = naive_counts(mine, documents, n=5, edge=4, min_interior=8)
    for name, column in zip(FIGURES, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(getattr(counts, name), column, err_msg=name)
    # the first token is another one inside a document: only the interior count sees all three copies
    assert (counts.exact[0], counts.interior[0], counts.documents[0]) == (1, 3, 1)
    assert counts.ids == ("ada", "none", "memory:3")
    assert counts.corpus_documents == 4
    assert counts.corpus_tokens == sum(map(len, documents))
    assert count_words_in_corpus(records, corpus).tolist() == [3, 0, 0]


def test_words_ignore_case_space_and_punctuation(corpus):
    shouted = RecordTable.from_rows(
        [{"text": "ADA was--born  in a small\ntown, by the sea!"}, {"text": "!!!"}, {"text": "\u6771\u4eac"}]
    )
    (corpus / "d.txt").write_text("\u79c1\u306f\u6771\u4eac\u306b\u884c\u304f")
    assert count_words_in_corpus(shouted, corpus).tolist() == [3, 0, 1]
    assert words("The cat's \u6771\u4eac HAT_2") == ["the", "cat", "s", "\u6771", "\u4eac", "hat", "2"]


def test_a_corpus_stored_as_tokens(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"input_ids": [[1, 2, 3, 1, 2], [2, 3]], "mask": [[1], [1]]}), tmp_path / "tokens.parquet")
    records = RecordTable.from_rows([{"token_ids": [1, 2]}, {"token_ids": [2, 3]}])
    counts = count_in_corpus(records, tmp_path / "tokens.parquet", tokenize=tokenize, n=2)
    assert counts.exact.tolist() == [2, 2]
    assert counts.documents.tolist() == [1, 2]


def test_the_store_is_built_once_and_again_when_anything_changes(corpus, tmp_path):
    calls = []

    def counting(texts):
        calls.append(len(texts))
        return tokenize(texts)

    index = tmp_path / "index"
    first = open_token_store(corpus, index, tokenize=counting, tokenizer_id="t1")
    assert sum(calls) == 4
    assert np.concatenate(list(first.stream(piece=7))).tolist() == [
        t for d in tokenize(DOCUMENTS) for t in [*d, SEPARATOR]
    ]
    assert open_token_store(corpus, index, tokenize=counting, tokenizer_id="t1") == first
    assert sum(calls) == 4  # found
    assert open_token_store(corpus, index, tokenize=counting, tokenizer_id="t2").folder != first.folder
    assert sum(calls) == 8
    os.truncate(first.folder / "tokens.u32", 12)  # damaged: built again in its place
    assert open_token_store(corpus, index, tokenize=counting, tokenizer_id="t1") == first
    assert sum(calls) == 12
    before = corpus_fingerprint(corpus)
    (corpus / "a.txt").write_text(DOCUMENTS[0] + "!")
    assert corpus_fingerprint(corpus) != before
    assert open_token_store(corpus, index, tokenize=counting, tokenizer_id="t1").tokens >= first.tokens
    assert sum(calls) == 16


def test_a_killed_or_failed_build_leaves_no_store(corpus, tmp_path):
    def failing(texts):
        raise KeyboardInterrupt

    index = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        open_token_store(corpus, index, tokenize=failing, tokenizer_id="t")
    assert list(index.iterdir()) == []
    leftover = index / ".building-dead"
    leftover.mkdir()
    os.utime(leftover, (0, 0))
    fresh = index / ".building-other"
    fresh.mkdir()
    open_token_store(corpus, index, tokenize=tokenize, tokenizer_id="t")
    assert not leftover.exists()
    assert fresh.exists()  # may belong to a process that is still at work


def test_a_full_disk_is_said_in_one_line(corpus, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rote.records.token_store.os.fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        open_token_store(corpus, tmp_path / "index", tokenize=tokenize, tokenizer_id="t")
    assert list((tmp_path / "index").iterdir()) == []


def test_long_text_files_come_in_pieces_of_one_document(tmp_path):
    from rote.records.formats import text_pieces

    path = tmp_path / "long.txt"
    body = "".join(f"line {i} of a long text\n" + ("\n  indented\n" if i % 7 == 0 else "") for i in range(400))
    path.write_text(body)
    pieces = list(text_pieces(path, "long.txt", characters=200))
    assert "".join(pieces) == body
    assert len(pieces) > 20
    for before, after in pairwise(pieces):
        assert before.endswith("text\n") or before.endswith("indented\n")
        assert after.startswith("line")


def test_pieces_of_a_document_are_counted_as_one(tmp_path, monkeypatch):
    from rote.records import corpus as corpus_module
    from rote.records.formats import text_pieces

    monkeypatch.setattr(corpus_module, "text_pieces", lambda path, label: text_pieces(path, label, characters=8))
    (tmp_path / "a.txt").write_text("one two\nthree four\nfive six\n")
    (tmp_path / "b.txt").write_text("six one\n")
    assert [d.continues for d in iter_documents(tmp_path)] == [False, True, True, False]
    letters = lambda texts: [[ord(c) for c in t] for t in texts]  # noqa: E731
    records = RecordTable.from_rows([{"text": "two\nthree"}, {"text": "six\nsix"}, {"text": "six"}])
    counts = count_in_corpus(records, tmp_path, tokenize=letters, n=3, edge_tokens=0)
    assert counts.exact.tolist() == [1, 0, 2]
    assert counts.documents.tolist() == [1, 0, 2]
    assert count_words_in_corpus(records, tmp_path).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        (
            "x.jsonl",
            b'{"text": "a"}\n{"txt": "b"}\n',
            "x.jsonl line 2: the document has no field text (nor token_ids). Did you mean",
        ),
        ("x.jsonl", b'{"text": 5}\n', "x.jsonl line 1: text is a number, not a string"),
        ("x.jsonl", b"{nope\n", "x.jsonl line 1: not valid JSON"),
        ("x.txt", b"ok\ncaf\xe9\n", "x.txt line 2: not valid UTF-8"),
        ("x.jsonl", b"", "no document in the corpus"),
        ("x.pdf", b"%PDF", "no file in this folder that can be read"),
    ],
)
def test_a_bad_corpus_is_refused(tmp_path, name, body, said):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / name).write_bytes(body)
    with pytest.raises(InputError) as caught:
        count_in_corpus(RecordTable.from_rows([{"text": "a"}]), folder, tokenize=tokenize, n=2)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_use(corpus, tmp_path):
    records = RecordTable.from_rows([{"text": "a"}])
    with pytest.raises(InputError, match="index_dir needs tokenizer_id"):
        count_in_corpus(records, corpus, tokenize=tokenize, index_dir=tmp_path)
    with pytest.raises(InputError, match="must be 1 or more"):
        count_in_corpus(records, corpus, tokenize=tokenize, n=0)
    with pytest.raises(InputError, match="returned 0 lists for 1 texts"):
        count_in_corpus(records, corpus, tokenize=lambda t: tokenize(t) if len(t) > 1 else [], n=2)
    with pytest.raises(InputError, match="no such file or folder"):
        count_in_corpus(records, corpus / "nowhere", tokenize=tokenize, n=2)
