"""The Voronoi memorizer's forward pass, exactly, without its N+ N- hidden units.

The network (theorem 7.3) is F(x) = sum_i y_i relu(r - G_i(x)), G_i(x) = sum_{j: y_j != y_i} relu(-S_ij(x)), with

    S_ij(x) = <x_i - x_j, x - ((1-t) x_i + t x_j)> = (|x - x_j|^2 - |x - x_i|^2) / 2 - m |x_i - x_j|^2,   m = 1/2 - t.

The second form is the first one, rearranged. With M_i(x) = <x, x_i> - |x_i|^2 / 2 it reads M_i - M_j - m |x_i - x_j|^2,
so one matrix product X_test X_train^T holds everything a query needs but the fixed numbers |x_i - x_j|^2. Three facts,
derived here (the paper does not need them), say when these do not matter either. Let j* be the nearest record of the
other class and D_i the largest distance from x_i to that class; r <= m |x_i - x_j|^2 for every opposite pair.

1. M_i <= M_j* + m d_i^2 - r, d_i the distance from x_i to the other class  =>  G_i >= -S_ij* >= r: record i adds
   nothing. As m d_i^2 >= r, only records nearer to x than the whole other class add anything: F(x) is 0 or has the sign
   of x's nearest neighbour.
2. M_i - M_j* >= m D_i^2  =>  every S_ij(x) >= 0: record i adds exactly y_i r.
3. Otherwise only the j with M_j > M_i - m D_i^2 can have S_ij(x) < 0.

So the N+ x N- table of a query shrinks to the few records between (1) and (2) against the few of (3). Thresholds are
widened by a bound on the product's rounding error; where that bound is not small against r, the remaining S_ij are
taken from the differences of the points, not from the product. Sorting the M_j and prefix sums would not do, because
|x_i - x_j|^2 couples i and j; it would also cost a sort of N numbers a query, where this costs a few comparisons.
In the worst case (all records nearly equally far from x) a query costs N+ N- additions, in blocks of fixed size.

Knows nothing about: labels as users write them, scikit-learn, torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rote.theory.generalize.labelled import BLOCK_NUMBERS, rounding_slack

RUN = 256  # columns of the product whose largest number is kept
ROUNDED = 1e-6  # share of r below which F may be taken for 0, where the product's rounding is not smaller still
PAIR_NUMBERS = 1 << 16  # numbers of one side of a block of pairs
MANY_PAIRS = 1024  # open units times rivals of a query, above which the query is summed by itself, with a product


@dataclass(frozen=True)
class VoronoiParts:
    """What a fitted memorizer is made of. Records of label -1 come first, then those of +1 (`negatives` splits them);
    `points` are shifted by `center` (S_ij does not change, rounding errors shrink)."""

    points: Float[np.ndarray, "records features"]
    center: Float[np.ndarray, " features"]
    negatives: int
    margin: float  # m = 1/2 - t
    r: float
    reach: Float[np.ndarray, " records"]  # m D_i^2
    grasp: Float[np.ndarray, " records"]  # m d_i^2 - r, d_i the distance to the other class
    table: Float[np.ndarray, "features+1 records"]  # [x_i, -|x_i|^2 / 2] as columns
    largest_square: float

    @classmethod
    def build(
        cls,
        X: Float[np.ndarray, "records features"],
        signs: Int[np.ndarray, " records"],
        *,
        margin: float,
        nearest: Float[np.ndarray, " records"],
        farthest: Float[np.ndarray, " records"],
    ) -> VoronoiParts:
        """Order the records by label and lay out the matrix of the product. `nearest` and `farthest`:
        distances to the other class; the smallest, c0, gives r = m c0^2."""
        order = np.argsort(signs, kind="stable")
        r = margin * float(nearest.min()) ** 2
        center = X.mean(axis=0)
        points = X[order] - center
        squares = np.einsum("ij,ij->i", points, points)
        return cls(
            points=points,
            center=center,
            negatives=int((signs < 0).sum()),
            margin=margin,
            r=r,
            reach=margin * np.square(farthest[order]),
            grasp=margin * np.square(nearest[order]) - r,
            table=np.ascontiguousarray(np.vstack([points.T, -0.5 * squares])),
            largest_square=float(squares.max()),
        )

    @property
    def sides(self) -> tuple[slice, slice]:
        """The columns of label -1 and of label +1."""
        return slice(0, self.negatives), slice(self.negatives, len(self.points))


@dataclass(frozen=True)
class _Block:
    """The product for some queries: M_i(x), the largest M of every run of columns, and by how much two M may be wrong
    together. Most questions are about the largest few M, so most runs are never read again."""

    rows: slice
    queries: Float[np.ndarray, "queries features"]
    M: Float[np.ndarray, "queries records"]
    slack: Float[np.ndarray, " queries"]
    runs: tuple[Float[np.ndarray, "queries runs"], Float[np.ndarray, "queries runs"]]  # of label -1, of label +1
    tops: tuple[Float[np.ndarray, " queries"], Float[np.ndarray, " queries"]]  # the largest M of either label


def _blocks(parts: VoronoiParts, X: Float[np.ndarray, "queries features"]) -> Iterator[_Block]:
    """One matrix product a block of queries, into the same memory every time."""
    step = max(1, min(len(X), BLOCK_NUMBERS // len(parts.points)))
    features = parts.points.shape[1]
    room = np.empty((step, len(parts.points)))
    queries = np.ones((step, features + 1))
    starts = [np.arange(side.start, side.stop, RUN) for side in parts.sides]
    half = len(starts[0])
    starts = np.concatenate(starts)
    for start in range(0, len(X), step):
        rows = slice(start, min(start + step, len(X)))
        count = rows.stop - start
        np.subtract(X[rows], parts.center, out=queries[:count, :features])
        M = np.matmul(queries[:count], parts.table, out=room[:count])
        part = queries[:count, :features]
        squares = np.einsum("ij,ij->i", part, part)
        slack = rounding_slack(1.0, features) * np.maximum(squares, parts.largest_square)
        runs = np.maximum.reduceat(M, starts, axis=1)
        sides = runs[:, :half], runs[:, half:]
        yield _Block(rows, part, M, slack, sides, (sides[0].max(axis=1), sides[1].max(axis=1)))


def signs(parts: VoronoiParts, X: Float[np.ndarray, "queries features"]) -> Int[np.ndarray, " queries"]:
    """The sign of F(x): -1, 0 or 1, one per query. Facts 1 and 2 decide most queries from two maxima."""
    found = np.zeros(len(X), dtype=np.int64)
    widest = float(parts.reach.max())
    for block in _blocks(parts, X):
        lead = block.tops[1] - block.tops[0]
        result = np.sign(lead).astype(np.int64)
        close = np.flatnonzero(np.abs(lead) <= widest + 2 * block.slack)
        if len(close):
            result[close] = np.sign(_values(parts, block, close))
        found[block.rows] = result
    return found


def values(parts: VoronoiParts, X: Float[np.ndarray, "queries features"]) -> Float[np.ndarray, " queries"]:
    """F(x), one per query, in multiples and fractions of r."""
    found = np.zeros(len(X))
    for block in _blocks(parts, X):
        found[block.rows] = _values(parts, block, np.arange(len(block.M)))
    return found


def _values(parts: VoronoiParts, block: _Block, chosen: Int[np.ndarray, " chosen"]) -> Float[np.ndarray, " chosen"]:
    """F at some queries of a block: for either label, where one of its records can be inside by fact 1."""
    total = np.zeros(len(chosen))
    for side, sign in ((0, -1.0), (1, 1.0)):
        possible = (block.tops[side] > block.tops[1 - side] - 2 * block.slack)[chosen]
        if possible.any():
            total[possible] += sign * _side(parts, block, side, chosen[possible])
    # Half way between a closest opposite pair F is exactly 0, and nothing but rounding would decide its sign.
    total[np.abs(total) <= np.minimum(2 * block.slack[chosen], ROUNDED * parts.r)] = 0.0
    return total


def _side(
    parts: VoronoiParts, block: _Block, side: int, queries: Int[np.ndarray, " chosen"]
) -> Float[np.ndarray, " chosen"]:
    """sum of relu(r - G_i) over the records i of one label, at some queries of a block."""
    count = len(queries)
    slack, rival = 2 * block.slack[queries], block.tops[1 - side][queries]
    row, record, inside = _between(parts, block, side, queries, rival - slack)
    # between facts 1 and 2: few, so each is looked at with its own distances to the other class
    here = block.M[queries[row], record]
    lead = here - rival[row]
    clear = lead > parts.reach[record] + slack[row]
    total = parts.r * (inside + np.bincount(row[clear], minlength=count))
    kept = ~clear & (lead > parts.grasp[record] - slack[row])
    row, record, here = row[kept], record[kept], here[kept]
    if not len(row):
        return total
    open_, first, records = np.unique(row, return_index=True, return_counts=True)
    floor = np.minimum.reduceat(here - parts.reach[record] - slack[row], first)
    against, rivals = _above(parts, block, 1 - side, queries[open_], floor)
    starts = np.searchsorted(against, np.arange(len(open_) + 1))
    amount = np.diff(starts)
    many = records * amount > MANY_PAIRS
    for k in np.flatnonzero(many):
        query = block.queries[queries[open_[k]]]
        mine = parts.points[record[first[k] : first[k] + records[k]]]
        theirs = parts.points[rivals[starts[k] : starts[k + 1]]]
        total[open_[k]] += _many_units(parts, mine - query, theirs - query)
    place = np.repeat(np.arange(len(open_)), records)  # of every open unit: its query among the open ones
    few = ~many[place]
    place, record = place[few], record[few]
    unit = np.repeat(np.arange(len(place)), amount[place])
    # the rivals of every unit's query, one after another
    offset = np.arange(len(unit)) - np.repeat(np.cumsum(amount[place]) - amount[place], amount[place])
    S = _planes(parts, block, queries[open_[place]][unit], record[unit], rivals[starts[place][unit] + offset])
    G = np.bincount(unit, np.maximum(-S, 0.0), minlength=len(place))
    return total + np.bincount(open_[place], np.maximum(parts.r - G, 0.0), minlength=count)


def _between(
    parts: VoronoiParts,
    block: _Block,
    side: int,
    queries: Int[np.ndarray, " chosen"],
    low: Float[np.ndarray, " chosen"],
) -> tuple[Int[np.ndarray, " records"], Int[np.ndarray, " records"], Int[np.ndarray, " chosen"]]:
    """(place, record) of all M_i > `low` that fact 2 does not settle for all records of the label at once, and how many
    it does settle. Sorted by place, which counts the queries."""
    own = parts.sides[side]
    inside = np.zeros(len(queries), dtype=np.int64)
    sure = low + float(parts.reach[own].max()) + 4 * block.slack[queries]
    crowded = np.flatnonzero(block.tops[side][queries] > sure)
    if not len(crowded):
        return *_above(parts, block, side, queries, low), inside
    M = block.M[queries[crowded], own]
    far = sure[crowded][:, None] < M
    inside[crowded] = [np.count_nonzero(line) for line in far]  # a sum of booleans over an axis is slower
    place, record = np.divmod(np.flatnonzero((low[crowded][:, None] < M) & ~far), M.shape[1])
    rest = np.setdiff1d(np.arange(len(queries)), crowded)
    more, others = _above(parts, block, side, queries[rest], low[rest])
    place, record = np.append(crowded[place], rest[more]), np.append(record + own.start, others)
    order = np.argsort(place, kind="stable")
    return place[order], record[order], inside


def _above(
    parts: VoronoiParts,
    block: _Block,
    side: int,
    queries: Int[np.ndarray, " chosen"],
    threshold: Float[np.ndarray, " chosen"],
) -> tuple[Int[np.ndarray, " records"], Int[np.ndarray, " records"]]:
    """(place, record) of all M_i above a query's threshold, for the records of one label, sorted by place."""
    columns = parts.sides[side]
    width = columns.stop - columns.start
    at, run = np.nonzero(block.runs[side][queries] > threshold[:, None])
    if 2 * len(at) * RUN > len(queries) * width:  # not few: read every column
        place, record = np.divmod(np.flatnonzero(block.M[queries, columns] > threshold[:, None]), width)
        return place, record + columns.start
    record = columns.start + RUN * run[:, None] + np.arange(RUN)
    M = block.M[queries[at][:, None], np.minimum(record, columns.stop - 1)]
    which, offset = np.nonzero((threshold[at][:, None] < M) & (record < columns.stop))
    return at[which], record[which, offset]


def _planes(
    parts: VoronoiParts,
    block: _Block,
    query: Int[np.ndarray, " planes"],
    i: Int[np.ndarray, " planes"],
    j: Int[np.ndarray, " planes"],
) -> Float[np.ndarray, " planes"]:
    """S_ij(x) for triples (x, i, j): from the product, or, where its rounding error is not small against r, from the
    differences of the points as in the theorem."""
    if float(block.slack.max()) < 1e-6 * parts.r:
        squares = -2.0 * parts.table[-1]
        squared = squares[i] + squares[j] - 2.0 * _products(parts.points, i, j)
        return block.M[query, i] - block.M[query, j] - parts.margin * squared
    S = np.empty(len(i))
    step = max(1, BLOCK_NUMBERS // (4 * parts.points.shape[1]))
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        one, two = parts.points[i[part]], parts.points[j[part]]
        through = (0.5 + parts.margin) * one + (0.5 - parts.margin) * two
        S[part] = np.einsum("ij,ij->i", one - two, block.queries[query[part]] - through)
    return S


def _products(
    points: Float[np.ndarray, "records features"], i: Int[np.ndarray, " pairs"], j: Int[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """<x_i, x_j> of pairs, in blocks small enough for the processor's second cache: four times as fast."""
    found = np.empty(len(i))
    step = max(256, PAIR_NUMBERS // points.shape[1])
    one, two = np.empty((2, min(step, len(i)), points.shape[1]))
    for start in range(0, len(i), step):
        count = min(step, len(i) - start)
        part = slice(start, start + count)
        np.take(points, i[part], axis=0, out=one[:count], mode="clip")
        np.take(points, j[part], axis=0, out=two[:count], mode="clip")
        found[part] = np.einsum("ij,ij->i", one[:count], two[:count])
    return found


def _many_units(
    parts: VoronoiParts, own: Float[np.ndarray, "open features"], other: Float[np.ndarray, "rivals features"]
) -> float:
    """sum_i relu(r - sum_j relu(-S_ij)) from a_i = x_i - x and b_j = x_j - x: S_ij = (|b|^2-|a|^2)/2 - m |a-b|^2."""
    squares = np.einsum("ij,ij->i", other, other)
    step = max(1, BLOCK_NUMBERS // max(1, len(other)))
    total = 0.0
    for start in range(0, len(own), step):
        a = own[start : start + step]
        own_squares = np.einsum("ij,ij->i", a, a)[:, None]
        S = 0.5 * (squares - own_squares) - parts.margin * (own_squares + squares - 2.0 * (a @ other.T))
        total += float(np.maximum(parts.r - np.maximum(-S, 0.0).sum(axis=1), 0.0).sum())
    return total


def radii(parts: VoronoiParts, X: Float[np.ndarray, "queries features"]) -> Float[np.ndarray, " queries"]:
    """How far a query may move (l2) while the sign of F provably stays: max(0, min_j S_ij(x) / |x_i - x_j|), i = the
    nearest record.

    The ball lies inside the polytope C_i, where F has the sign y_i. 0 means: no certificate, not: no robustness.
    """
    found = np.zeros(len(X))
    squares = -2.0 * parts.table[-1]
    for block in _blocks(parts, X):
        nearest = block.M.argmax(axis=1)
        for side, against in (parts.sides, parts.sides[::-1]):
            inside = np.flatnonzero((nearest >= side.start) & (nearest < side.stop))
            if not len(inside):
                continue
            i = nearest[inside]
            squared = squares[i, None] + squares[against] - 2.0 * (parts.points[i] @ parts.points[against].T)
            np.maximum(squared, np.finfo(float).tiny, out=squared)
            S = block.M[inside, i][:, None] - block.M[inside, against] - parts.margin * squared
            distance = (S - 2 * block.slack[inside, None]) / np.sqrt(squared)
            found[block.rows.start + inside] = np.maximum(distance.min(axis=1), 0.0)
    return found
