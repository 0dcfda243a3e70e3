"""Near duplicates: pairs of records, and records inside corpus documents, that share most of their word 5-grams.

    J(A, B) = |S(A) n S(B)| / |S(A) u S(B)|,   S(A) = the set of k-word shingles of A (k = 5), in [0, 1]

Knows texts and token ids as sequences of symbols (words of `rote.records.words`; token ids stand for themselves).
Deliberately does not know what the answer is for: the member/control guard is `rote.records.population_overlap`.

Every J that is reported is exact. Pairs are *found* by MinHash with locality-sensitive hashing (Broder 1997; Indyk and
Motwani 1998), through datasketch: a pair with J at the threshold is missed with probability below 0.001. A record
*inside* a longer document has a small J with the whole document, so that search uses an inverted list of the records'
rarest shingles and misses nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal
from zlib import crc32

import numpy as np
from jaxtyping import Float, Int64

from rote.errors import InputError
from rote.records.corpus import CorpusPath, iter_documents
from rote.records.table import RecordTable
from rote.records.words import words

SHINGLE = (
    5  # words, as in Lee et al. 2022, "Deduplicating training data makes language models better", arXiv 2107.06499
)
MISS = 0.001
_ESTIMATE_SLACK = 0.25  # of J: more than five standard deviations of a 128-permutation estimate


def symbols(records: RecordTable) -> list[list[Any]]:
    """What is compared: the words of a text, or the token ids of a record that has no text."""
    rows = zip(records.column("text"), records.column("token_ids"), strict=True)
    return [list(words(text)) if text is not None else ids for text, ids in rows]


def shingles(sequence: Sequence[Hashable], *, k: int = SHINGLE) -> list[tuple]:
    """The k-grams in order; a shorter sequence is its own only shingle, an empty one has none."""
    if not sequence:
        return []
    return [tuple(sequence[i : i + k]) for i in range(max(1, len(sequence) - k + 1))]


def jaccard(a: Iterable[Hashable], b: Iterable[Hashable]) -> float:
    """|A n B| / |A u B| in [0, 1]; 0 when both are empty."""
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a or b else 0.0


@dataclass(frozen=True)
class NearPair:
    """Two records, by id, and the exact Jaccard similarity of their shingles."""

    left: str
    right: str
    jaccard: float


def check_threshold(threshold: float) -> None:
    """Errors: `InputError` outside (0, 1]."""
    if not 0 < threshold <= 1:
        raise InputError(f"the near-duplicate threshold must be above 0 and at most 1, not {threshold}.")


def bands_and_rows(threshold: float, num_perm: int) -> tuple[int, int]:
    """(b, r): the longest bands, b = num_perm // r, for which a pair with J = threshold meets in one with probability
    1 - (1 - J^r)^b >= 1 - `MISS`. Errors: `InputError` when `num_perm` is too small for the threshold."""
    for rows in range(num_perm, 0, -1):
        bands = num_perm // rows
        if (1 - threshold**rows) ** bands <= MISS:
            return bands, rows
    raise InputError(
        f"num_perm = {num_perm} is too small to find pairs with similarity {threshold}. Raise one of them."
    )


def find_similar(
    left: Sequence[frozenset],
    right: Sequence[frozenset] | None,
    *,
    threshold: float,
    num_perm: int = 128,
    seed: int = 0,
) -> Iterator[tuple[int, int, float]]:
    """(i, j, J) for sets left[i], right[j] with J >= threshold; with right = None, pairs i < j within `left`.

    Equal sets within `left` (and within `right`) are searched for once: of n equal ones only the first is paired with
    others, and the others with the first, so the answer stays linear in n. Empty sets are similar to nothing.
    Errors: `InputError` for a threshold outside (0, 1].
    """
    check_threshold(threshold)
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(num_perm=num_perm, params=bands_and_rows(threshold, num_perm))
    first_left, first_right = _firsts(left), _firsts(right or [])
    if right is None:
        for i, items in enumerate(left):
            if items and first_left[items] != i:
                yield first_left[items], i, 1.0

    def signatures(firsts: dict[frozenset, int]) -> Iterator[tuple[frozenset, int, MinHash]]:
        values = ([_hash32(item) for item in items] for items in firsts)
        made = MinHash.generator(values, num_perm=num_perm, seed=seed + 1, hashfunc=int)
        for (items, row), signature in zip(firsts.items(), made, strict=True):
            yield items, row, signature

    table = np.zeros((len(first_left), num_perm), np.uint64)
    kept: list[tuple[frozenset, int]] = []

    def matches(items: frozenset, signature: MinHash) -> Iterator[tuple[int, float]]:
        near = np.sort(np.array(lsh.query(signature), np.int64))
        if len(near):
            estimate = (table[near] == signature.hashvalues).mean(axis=1)
            for place in near[estimate >= threshold - _ESTIMATE_SLACK].tolist():
                similarity = jaccard(kept[place][0], items)
                if similarity >= threshold:
                    yield kept[place][1], similarity

    for items, row, signature in signatures(first_left):
        if right is None:
            yield from ((i, row, similarity) for i, similarity in matches(items, signature))
        table[len(kept)] = signature.hashvalues
        lsh.insert(len(kept), signature)
        kept.append((items, row))
    if right is not None:
        for items, row, signature in signatures(first_right):
            yield from ((i, row, similarity) for i, similarity in matches(items, signature))


def _firsts(sets: Sequence[frozenset]) -> dict[frozenset, int]:
    """Every distinct set that is not empty, with the row where it stands first."""
    firsts: dict[frozenset, int] = {}
    for row, items in enumerate(sets):
        if items:
            firsts.setdefault(items, row)
    return firsts


def _hash32(shingle: tuple) -> int:
    """The same on every machine and in every run, unlike `hash`."""
    return crc32("\n".join(map(str, shingle)).encode())


def near_duplicate_pairs(
    records: RecordTable,
    other: RecordTable | None = None,
    *,
    threshold: float = 0.8,
    num_perm: int = 128,
    seed: int = 0,
    shingle_words: int = SHINGLE,
) -> list[NearPair]:
    """Pairs with J >= threshold: between `records` and `other`, or within `records` when `other` is None (left before
    right).

    Order: by left row, then right row. Of several records with equal shingles only the first is paired with others (see
    `find_similar`). Deterministic for a seed. Errors: `InputError` for a threshold outside (0, 1].
    """
    left = [frozenset(shingles(s, k=shingle_words)) for s in symbols(records)]
    right = None if other is None else [frozenset(shingles(s, k=shingle_words)) for s in symbols(other)]
    found = sorted(find_similar(left, right, threshold=threshold, num_perm=num_perm, seed=seed))
    left_ids = records.column("id")
    right_ids = left_ids if other is None else other.column("id")
    return [NearPair(left_ids[i], right_ids[j], similarity) for i, j, similarity in found]


@dataclass(frozen=True)
class NearCounts:
    """Near copies of each record in a corpus, in the order of the records.

    documents  number of documents that hold a passage with J >= threshold, exact copies included.
    best       the highest such J, in [threshold, 1]; 0 where there is none.
    """

    ids: tuple[str, ...]
    threshold: float
    documents: Int64[np.ndarray, " records"]
    best: Float[np.ndarray, " records"]


def near_duplicates_in_corpus(
    records: RecordTable,
    corpus: CorpusPath,
    *,
    threshold: float = 0.8,
    shingle_words: int = SHINGLE,
    text_column: str = "text",
    txt_unit: Literal["file", "paragraph"] = "file",
    progress: Callable[[int], None] | None = None,
) -> NearCounts:
    """Documents of a streamed corpus with a near copy of each record in them: exact, and independent of the document's
    length.

    A document holds a near copy of a record with m shingles when some m shingles in a row of it (all of them, if it has
    fewer) have J >= threshold with the record's. Such a window shares at least t = ceil(threshold |S|) of the record's
    |S| shingles, so it holds one of any |S| - t + 1 of them: only the rarest ones are looked for (the prefix filter of
    Chaudhuri et al. 2006). A text file above four million characters is searched piece by piece.
    progress(documents so far). Errors: `InputError`.
    """
    check_threshold(threshold)
    sequences = [shingles(s, k=shingle_words) for s in symbols(records)]
    sets = [frozenset(s) for s in sequences]
    frequency = Counter(shingle for items in sets for shingle in items)
    holders: dict[tuple, list[int]] = defaultdict(list)
    for row, items in enumerate(sets):
        if items:
            rarest = sorted(items, key=lambda shingle: (frequency[shingle], repr(shingle)))
            for shingle in rarest[: len(items) - _needed(items, threshold) + 1]:
                holders[shingle].append(row)
    documents, best = np.zeros(len(sets), np.int64), np.zeros(len(sets))
    seen_in_document: set[int] = set()
    for count, document in enumerate(iter_documents(corpus, text_column=text_column, txt_unit=txt_unit), start=1):
        if not document.continues:
            seen_in_document = set()
        content = words(document.text) if document.text is not None else document.token_ids or []
        grams = shingles(content, k=shingle_words)
        places: dict[int, list[int]] = defaultdict(list)
        for position, gram in enumerate(grams):
            for row in holders.get(gram, ()):
                places[row].append(position)
        for row, positions in places.items():
            similarity = _best_window(grams, positions, sets[row], len(sequences[row]), threshold)
            if similarity >= threshold:
                best[row] = max(best[row], similarity)
                documents[row] += row not in seen_in_document
                seen_in_document.add(row)
        if progress is not None:
            progress(count)
    return NearCounts(tuple(records.column("id")), threshold, documents, best)


def _needed(items: frozenset, threshold: float) -> int:
    return max(1, ceil(threshold * len(items) - 1e-9))


def _best_window(grams: list[tuple], positions: list[int], items: frozenset, size: int, threshold: float) -> float:
    """max J(items, window) over the windows of `size` shingles that contain one of `positions` (ascending); 0 where
    none can reach it."""
    best, needed = 0.0, _needed(items, threshold)
    start = 0
    while start < len(positions):
        stop = start + 1
        while stop < len(positions) and positions[stop] - positions[stop - 1] < size:
            stop += 1
        region = grams[max(0, positions[start] - size + 1) : positions[stop - 1] + size]
        if len(items.intersection(region)) >= needed:
            best = max(best, _slide(region, items, size))
        start = stop
    return best


def _slide(region: list[tuple], items: frozenset, size: int) -> float:
    """max J(items, set of `size` shingles in a row), by one pass that keeps the window's counts."""
    window = Counter(region[:size])
    shared = sum(shingle in items for shingle in window)
    best = shared / (len(items) + len(window) - shared)
    for i in range(size, len(region)):
        new, old = region[i], region[i - size]
        shared += window[new] == 0 and new in items
        window[new] += 1
        window[old] -= 1
        if window[old] == 0:
            del window[old]
            shared -= old in items
        best = max(best, shared / (len(items) + len(window) - shared))
    return best
