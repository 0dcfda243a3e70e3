"""Exact counts of token sequences, and of all their n-grams, in a stream of documents of any size.

Knows arrays of token ids only: no files, no tokenizer, no records.

All queries are known before the corpus is read, so nothing has to be built over the corpus: one pass hashes every
window of the stream, looks the hash up among the queries' hashes, and compares the tokens of every hit. The hash of a
window x_i .. x_{i+L-1} is sum_j g(x_{i+j}) B^j mod 2^64 (Karp and Rabin 1987), with g a 64-bit mixer; with prefix sums
it costs one subtraction and one product for any L. Counts are exact because hits are compared token by token; the hash
only decides how often that happens. Memory is that of the queries, whatever the length of the stream.

Why not a suffix array. Measured on 1M tokens, one core of a 2-core machine:

| | tokengrams 0.3.3 (suffix array) | own suffix array (numpy, prefix doubling) | this pass |
|---|---|---|---|
| before the first count | 0.23 us a token | 1.2 us a token | nothing |
| the counts | 6.6 us a query | (not taken further) | 0.06 to 0.2 us a corpus token and 0.5 us a query, all together |
| disk beside the tokens | 8 bytes a token | 4 to 8 bytes a token | none |

So 10 million queries on 10M tokens would take about 70 s by suffix array and 15 s here, in five passes. Beyond speed,
tokengrams sorts suffixes by plain comparison, which is quadratic in repeated text: 200,000 equal tokens took 31 s (here
0.3 s), and a corpus that holds many copies of a record is just what is looked at. It also prints to standard output and
imports transformers and datasets (2.1 s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, UInt32
from numpy.lib.stride_tricks import sliding_window_view

SEPARATOR = np.uint32(2**32 - 1)
"""Stands between documents in a stream. No token has this id, so no window that matches a query crosses it."""

_B = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_B_INVERSE = pow(_B, -1, 1 << 64)
_LENGTH_SALT = np.uint64(0xD1B54A32D192ED03)
_COMPARED_AT_ONCE = 1 << 20  # tokens


def _mix(tokens: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: token id -> 64 well-spread bits."""
    z = tokens.astype(np.uint64) + np.uint64(_B)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _powers(base: int, n: int) -> np.ndarray:
    """base^0 .. base^(n-1) modulo 2^64, by doubling."""
    out = np.ones(max(n, 1), np.uint64)
    done = 1
    while done < n:
        step = min(done, n - done)
        out[done : done + step] = out[:step] * np.uint64(pow(base, done, 1 << 64))
        done += step
    return out


class _WindowHash:
    """Hashes of windows of one array: `hash(i, L)` in O(1) for arrays of starts and lengths."""

    def __init__(self, tokens: np.ndarray, powers: np.ndarray, inverse: np.ndarray):
        self.sums = np.zeros(len(tokens) + 1, np.uint64)
        np.cumsum(_mix(tokens) * powers[: len(tokens)], out=self.sums[1:])
        self.inverse = inverse

    def every(self, length: int, starts: int) -> np.ndarray:
        """Hashes of the windows that start at 0 .. starts-1."""
        return (self.sums[length : length + starts] - self.sums[:starts]) * self.inverse[:starts]

    def __call__(self, start: np.ndarray, length: np.ndarray | int) -> np.ndarray:
        return (self.sums[start + length] - self.sums[start]) * self.inverse[start]


def _equal_windows(
    a: np.ndarray, a_start: np.ndarray, b: np.ndarray, b_start: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """a[a_start : a_start+length] == b[b_start : b_start+length], one verdict a row."""
    same = np.zeros(len(length), bool)
    order = np.argsort(length, kind="stable")
    cuts = np.flatnonzero(np.diff(length[order])) + 1
    for rows in np.split(order, cuts) if len(order) else []:
        size = int(length[rows[0]])
        a_windows, b_windows = sliding_window_view(a, size), sliding_window_view(b, size)
        step = max(1, _COMPARED_AT_ONCE // size)
        for part in (rows[i : i + step] for i in range(0, len(rows), step)):
            same[part] = (a_windows[a_start[part]] == b_windows[b_start[part]]).all(axis=1)
    return same


@dataclass
class _Anchors:
    """Queries of one anchor length: every query is looked for by the hash of its first `length` tokens."""

    length: int
    hashes: np.ndarray  # sorted, unique
    first: np.ndarray  # hashes[i] begins queries of lengths[first[i] : first[i+1]]
    lengths: np.ndarray
    seen: np.ndarray  # bitmap over the top bits of a hash
    shift: np.uint64


class _Queries:
    """Distinct queries as (start, length) in `pool`, ordered by key, and `which`: query -> its distinct one."""

    def __init__(self, pool: np.ndarray, start: np.ndarray, length: np.ndarray, anchor: int):
        size = len(pool) + 1
        hashes = _WindowHash(pool, _powers(_B, size), _powers(_B_INVERSE, size))
        key = hashes(start, length) + length.astype(np.uint64) * _LENGTH_SALT
        order = np.argsort(key, kind="stable")
        new = np.ones(len(order), bool)
        new[1:] = key[order][1:] != key[order][:-1]
        group = np.cumsum(new) - 1
        chosen = order[new]
        which = np.empty(len(order), np.int64)
        which[order] = group
        # Equal keys are not yet equal queries. Those that differ from their group's first become queries of their own.
        other = np.flatnonzero(~_equal_or_shorter(pool, start, length, chosen[which]))
        names: dict[tuple[int, bytes], int] = {}
        added: list[int] = []
        for q in other.tolist():
            name = (int(which[q]), pool[start[q] : start[q] + length[q]].tobytes())
            if name not in names:
                names[name] = len(chosen) + len(added)
                added.append(q)
            which[q] = names[name]
        chosen = np.concatenate([chosen, np.array(added, np.int64)])
        by_key = np.argsort(key[chosen], kind="stable")
        place = np.empty(len(by_key), np.int64)
        place[by_key] = np.arange(len(by_key))
        self.pool, self.which = pool, place[which]
        chosen = chosen[by_key]
        self.key, self.start, self.length = key[chosen], start[chosen], length[chosen]
        runs = np.flatnonzero(np.diff(self.key, prepend=self.key[:1] - np.uint64(1)))
        self.longest_run = int(np.diff(np.append(runs, len(self.key))).max(initial=1))
        self.anchors = list(self._anchors(hashes, anchor))

    def _anchors(self, hashes: _WindowHash, anchor: int) -> Iterator[_Anchors]:
        exponent = np.frexp(self.length.astype(float))[1] - 1
        anchor_length = np.where(self.length >= anchor, anchor, 2 ** np.minimum(exponent, 62))
        for size in np.unique(anchor_length).tolist():
            rows = np.flatnonzero(anchor_length == size)
            found = hashes(self.start[rows], size)
            order = np.lexsort((self.length[rows], found))
            found, lengths = found[order], self.length[rows][order]
            keep = np.ones(len(found), bool)
            keep[1:] = (found[1:] != found[:-1]) | (lengths[1:] != lengths[:-1])
            found, lengths = found[keep], lengths[keep]
            unique, first = np.unique(found, return_index=True)
            bits = int(np.clip(np.ceil(np.log2(16 * len(unique))), 12, 26))
            shift = np.uint64(64 - bits)
            seen = np.zeros(1 << bits, bool)
            seen[unique >> shift] = True
            yield _Anchors(size, unique, np.append(first, len(found)), lengths, seen, shift)


def _equal_or_shorter(
    pool: np.ndarray, start: np.ndarray, length: np.ndarray, representative: np.ndarray
) -> np.ndarray:
    """Is every query equal to its representative? (Their lengths may differ when only their keys agree.)"""
    same = representative == np.arange(len(start))
    rest = np.flatnonzero(~same & (length == length[representative]))
    same[rest] = _equal_windows(pool, start[rest], pool, start[representative[rest]], length[rest])
    return same


def _blocks(stream: Iterable[np.ndarray], size: int, longest: int) -> Iterator[tuple[np.ndarray, int]]:
    """(tokens, number of window starts): blocks of `size` starts, each followed by the `longest` - 1 tokens that come
    next."""
    tail = np.full(longest, SEPARATOR, np.uint32)
    parts: list[np.ndarray] = []
    held = 0

    def ready(last: bool) -> Iterator[tuple[np.ndarray, int]]:
        nonlocal parts, held
        buffer = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
        start = 0
        while len(buffer) - start >= size + longest:
            yield buffer[start : start + size + longest], size
            start += size
        rest = buffer[start:]
        if last and len(rest):
            yield np.concatenate([rest, tail]), len(rest)
            rest = rest[:0]
        parts, held = [rest.copy()], len(rest)

    for piece in stream:
        parts.append(np.asarray(piece, np.uint32))
        held += len(piece)
        if held >= size + longest:
            yield from ready(last=False)
    for block, starts in ready(last=True):
        for at in range(0, starts, size):
            count = min(size, starts - at)
            yield block[at : at + count + longest], count


def _hits(
    queries: _Queries, block: np.ndarray, starts: int, hashes: _WindowHash
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(position in the block, distinct query) of every occurrence that starts in the block's first `starts`
    positions."""
    for anchors in queries.anchors:
        window = hashes.every(anchors.length, starts)
        position = np.flatnonzero(anchors.seen[window >> anchors.shift])
        window = window[position]
        place = np.minimum(np.searchsorted(anchors.hashes, window), len(anchors.hashes) - 1)
        real = anchors.hashes[place] == window
        position, place = position[real], place[real]
        # one row for every length that a query with this beginning has
        fan = anchors.first[place + 1] - anchors.first[place]
        position, place = np.repeat(position, fan), np.repeat(place, fan)
        nth = np.arange(len(position)) - np.repeat(np.cumsum(fan) - fan, fan)
        length = anchors.lengths[anchors.first[place] + nth]
        fits = position + length <= len(block)
        position, length = position[fits], length[fits]
        key = hashes(position, length) + length.astype(np.uint64) * _LENGTH_SALT
        query = np.searchsorted(queries.key, key)
        for _ in range(queries.longest_run):
            inside = np.minimum(query, len(queries.key) - 1)
            real = (query < len(queries.key)) & (queries.key[inside] == key) & (queries.length[inside] == length)
            rows = np.flatnonzero(real)
            rows = rows[_equal_windows(block, position[rows], queries.pool, queries.start[inside[rows]], length[rows])]
            yield position[rows], inside[rows]
            query = query + 1


@dataclass(frozen=True)
class SequenceCounts:
    """What one sequence's tokens, its inside, and its n-grams count in a stream (see `count_sequences`)."""

    tokens: Int64[np.ndarray, " sequences"]
    exact: Int64[np.ndarray, " sequences"]
    documents: Int64[np.ndarray, " sequences"]
    interior: Int64[np.ndarray, " sequences"]
    max_ngram: Int64[np.ndarray, " sequences"]
    mean_ngram: Float[np.ndarray, " sequences"]
    seen_ngrams: Float[np.ndarray, " sequences"]


def count_sequences(
    sequences: Sequence[UInt32[np.ndarray, " tokens"]],
    stream: Callable[[], Iterable[UInt32[np.ndarray, " tokens"]]],
    *,
    n: int,
    edge_tokens: int = 4,
    min_interior: int = 8,
    windows_per_pass: int = 1 << 21,
    block: int = 1 << 20,
    progress: Callable[[int, int], None] | None = None,
) -> SequenceCounts:
    """Counts of every sequence x = x_1 .. x_L in the documents of a stream; overlapping occurrences all count.

    exact        c(x): places where all of x occurs.
    documents    documents in which x occurs.
    interior     c(x_{1+e} .. x_{L-e}) with e = `edge_tokens`, or less so that `min_interior` tokens are left (0 in a
                 sequence that has no more): for tokenizers that split the ends of a passage differently inside a
                 document. >= exact.
    max_ngram    max_i c(x_i .. x_{i+n-1}), mean_ngram the mean over i, seen_ngrams the share with a count above 0, in
                 [0, 1]. A sequence shorter than n is its own only n-gram.
    An empty sequence counts 0 everywhere.

    stream(): pieces of any size, with `SEPARATOR` after every document; called once for each `windows_per_pass`
    n-grams, which bound the memory (about 150 bytes an n-gram). progress(tokens read so far, passes) is called
    after each block.
    """
    if n < 1 or edge_tokens < 0:
        raise ValueError(f"n must be 1 or more and edge_tokens 0 or more, not {n} and {edge_tokens}")
    size = np.array([len(s) for s in sequences], np.int64)
    n_windows = np.maximum(size - n + 1, (size > 0).astype(np.int64))
    exact, documents, interior, max_ngram = np.zeros((4, len(size)), np.int64)
    mean_ngram, seen_ngrams = np.zeros((2, len(size)))
    todo = np.flatnonzero(size)
    used = np.cumsum(n_windows[todo]) // windows_per_pass
    passes = np.split(todo, np.flatnonzero(np.diff(used)) + 1) if len(todo) else []
    read = 0

    def tell(starts: int) -> None:
        nonlocal read
        read += starts
        if progress is not None:
            progress(read, len(passes))

    for rows in passes:
        pool = np.concatenate([np.asarray(sequences[r], np.uint32) for r in rows])
        length, at = size[rows], np.cumsum(size[rows]) - size[rows]
        trim = np.clip((length - min_interior) // 2, 0, edge_tokens)
        windows = n_windows[rows]
        first = np.cumsum(windows) - windows
        window_start = np.repeat(at - first, windows) + np.arange(windows.sum())
        start = np.concatenate([at, at + trim, window_start])
        lengths = np.concatenate([length, length - 2 * trim, np.repeat(np.minimum(length, n), windows)])
        queries = _Queries(pool, start, lengths, anchor=n)
        found, in_documents = _one_pass(queries, stream(), len(rows), block, tell)
        exact[rows], interior[rows], grams = np.split(found[queries.which], [len(rows), 2 * len(rows)])
        documents[rows] = in_documents[queries.which[: len(rows)]]
        max_ngram[rows] = np.maximum.reduceat(grams, first)
        mean_ngram[rows] = np.add.reduceat(grams, first) / windows
        seen_ngrams[rows] = np.add.reduceat(grams > 0, first, dtype=np.int64) / windows
    return SequenceCounts(size, exact, documents, interior, max_ngram, mean_ngram, seen_ngrams)


def _one_pass(
    queries: _Queries, stream: Iterable[np.ndarray], wholes: int, block: int, tell: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """(occurrences, documents) of every distinct query; documents only of those among the first `wholes` queries."""
    whole = np.zeros(len(queries.key), bool)
    whole[queries.which[:wholes]] = True
    found, documents = np.zeros(len(whole), np.int64), np.zeros(len(whole), np.int64)
    last = np.full(len(whole), -1)
    longest = int(queries.length.max())
    size = max(block, 4 * longest)
    powers, inverse = _powers(_B, size + longest), _powers(_B_INVERSE, size + longest)
    document = 0
    for tokens, starts in _blocks(stream, size, longest):
        ends = np.flatnonzero(tokens[:starts] == SEPARATOR)
        for position, query in _hits(queries, tokens, starts, _WindowHash(tokens, powers, inverse)):
            np.add.at(found, query, 1)
            ranked = whole[query]
            _count_documents(documents, last, query[ranked], document + np.searchsorted(ends, position[ranked]))
        document += len(ends)
        tell(starts)
    return found, documents


def _count_documents(documents: np.ndarray, last: np.ndarray, query: np.ndarray, document: np.ndarray) -> None:
    """Add to `documents` the documents not yet counted; `last` is the last one counted for each query (the stream is in
    order)."""
    if not len(query):
        return
    order = np.lexsort((document, query))
    query, document = query[order], document[order]
    new = np.ones(len(query), bool)
    new[1:] = (query[1:] != query[:-1]) | (document[1:] != document[:-1])
    query, document = query[new], document[new]
    fresh = document != last[query]
    np.add.at(documents, query[fresh], 1)
    last[query] = document  # documents ascend within a query, so the last write stands
