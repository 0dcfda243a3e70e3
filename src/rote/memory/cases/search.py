"""Finding the k most similar cases: exactly in blocks, or a faiss shortlist that is ranked again exactly.

Only the latent term factorises: sum_c w_c(x) cos_c(x, p) = < concat_c(w_c x_c), concat_c(p_c) > with unit codes. The
other terms depend on absolute differences and clipping, so an inner-product index can only propose candidates. Since
they add at most a1 + a2 + a3, a case that was not proposed has S <= a0 L + a1 + a2 + a3 with L the smallest proposed
latent term: where the k-th found S reaches that bound, the result is certified to be the exact one.

Cases of the query's own patient, and cases that are the query itself, are excluded before ranking.

Knows nothing about: votes, networks, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rote.errors import InputError, MissingDependencyError
from rote.memory.cases.similarity import Codes, similarity
from rote.memory.cases.statistics import FFT_EPSILON, FFT_SCALE

BLOCK = 1 << 19  # numbers of one (queries, cases) block: 2 MB a tensor, so that a channel's terms stay in the cache


@dataclass(frozen=True)
class Found:
    """The k nearest cases of every query, most similar first; certified: surely the exact ones."""

    index: Int[np.ndarray, "q k"]
    similarity: Float[np.ndarray, "q k"]
    certified: Bool[np.ndarray, " q"]


@torch.no_grad()
def similarity_matrix(
    query: Codes, weights: Float[Tensor, "q c"], cases: Codes, importance: Sequence[float], *, block: int = BLOCK
) -> Float[Tensor, "q p"]:
    """All S(x, p). `similarity` without gradients, one channel after the other: no (q, p, c) tensor is made."""
    step = max(1, block // max(1, len(cases)))
    memory = _by_channel(cases)
    parts = [
        _block(query.take(slice(at, at + step)), weights[at : at + step], memory, importance)
        for at in range(0, len(query), step)
    ]
    return torch.cat(parts) if parts else weights.new_zeros(0, len(cases))


def search_exact(
    query: Codes,
    weights: Float[Tensor, "q c"],
    cases: Codes,
    importance: Sequence[float],
    k: int,
    *,
    excluded: Bool[np.ndarray, "q p"] | None = None,
    block: int = BLOCK,
) -> Found:
    """The k largest S of every query among the cases that are not excluded; ties go to the earlier case.

    Memory: a few tensors of `block` numbers, whatever the number of queries.
    """
    step = max(1, block // max(1, len(cases)))
    memory, found = _by_channel(cases), []
    for at in range(0, max(1, len(query)), step):
        rows = slice(at, at + step)
        with torch.no_grad():
            scores = _block(query.take(rows), weights[rows], memory, importance).double().numpy()
        found.append(_top(scores, k, None if excluded is None else excluded[rows]))
    return Found(*(np.concatenate(column) for column in zip(*(vars(one).values() for one in found), strict=True)))


@dataclass(frozen=True)
class _Memory:
    """Codes of the cases, channel first; spectra around their mean `centre` (see `similarity.fft_distance`)."""

    latent: Float[Tensor, "c p dim"]
    range: Float[Tensor, "c p"]
    var: Float[Tensor, "c p"]
    fft: Float[Tensor, "c p bins"]
    squared: Float[Tensor, "c p"]
    centre: Float[Tensor, "c bins"]


def _by_channel(cases: Codes) -> _Memory:
    centre = cases.fft.mean(0)
    fft = (cases.fft - centre).transpose(0, 1).contiguous()
    return _Memory(
        cases.latent.transpose(0, 1).contiguous(), cases.range.T.contiguous(), cases.var.T.contiguous(), fft,
        (fft * fft).sum(-1), centre,
    )  # fmt: skip


def _block(query: Codes, weights: Float[Tensor, "q c"], memory: _Memory, importance: Sequence[float]) -> Tensor:
    """sum_c w_c sum_i a_i s_i of one block of queries, (q, p)."""
    a = [float(share) for share in importance]
    total = weights.new_zeros(len(query), memory.range.shape[1])
    for c in range(weights.shape[1]):
        s = torch.zeros_like(total)
        if a[0]:
            s.addmm_(query.latent[:, c], memory.latent[c].T, alpha=a[0])
        for share, own, theirs in ((a[1], query.range, memory.range), (a[2], query.var, memory.var)):
            if share:
                s.add_((own[:, c, None] - theirs[c]).abs_().neg_().add_(1).clamp_(0, 1), alpha=share)
        if a[3]:
            x = query.fft[:, c] - memory.centre[c]
            far = torch.addmm((x * x).sum(-1)[:, None] + memory.squared[c], x, memory.fft[c].T, alpha=-2)
            near = far.clamp_min_(1e-8).sqrt_().add_(FFT_EPSILON).reciprocal_().mul_(FFT_SCALE).clamp_(max=1)
            s.add_(near, alpha=a[3])
        total.addcmul_(s, weights[:, c, None])
    return total


def _top(scores: np.ndarray, k: int, excluded: np.ndarray | None) -> Found:
    if excluded is not None:
        scores = np.where(excluded, -np.inf, scores)
    left = np.isfinite(scores).sum(1)
    if k < 1 or (left < k).any():
        raise _too_few(k, int(left.min()) if len(left) else 0)
    order = _largest(scores, k)
    return Found(order, np.take_along_axis(scores, order, 1), np.ones(len(scores), bool))


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest of every row, largest first, ties by column."""
    if 8 * k >= scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    least = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k, None]
    order = np.empty((len(scores), k), np.int64)
    for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
        able = np.flatnonzero(values >= bound)
        order[row] = able[np.argsort(-values[able], kind="stable")[:k]]
    return order


def _too_few(k: int, left: int) -> InputError:
    return InputError(
        f"k = {k}, but a query has {left} cases to choose from (its own patient's are excluded); use a smaller k or"
        " more cases"
    )


class Shortlist:
    """An inner-product index over the cases' concatenated unit codes (c x dim numbers a case)."""

    def __init__(self, cases: Codes):
        try:
            import faiss
        except ImportError:
            raise MissingDependencyError("faiss-cpu", "eeg") from None
        self._faiss = faiss
        self.cases = cases
        flat = np.ascontiguousarray(cases.latent.float().flatten(1).numpy())
        self.index = faiss.IndexFlatIP(flat.shape[1])
        self.index.add(flat)  # type: ignore[call-arg]

    def search(
        self,
        query: Codes,
        weights: Float[Tensor, "q c"],
        importance: Sequence[float],
        k: int,
        *,
        candidates: int = 200,
        excluded: Bool[np.ndarray, "q p"] | None = None,
    ) -> Found:
        """Top `candidates` by the latent term, ranked again by S. Raises InputError as `search_exact` does."""
        vectors = (weights[..., None] * query.latent).flatten(1).numpy()
        index, score, sure = [], [], []
        rest = 1 - importance[0]
        for row in range(len(query)):
            barred = None if excluded is None else np.flatnonzero(excluded[row])
            allowed = len(self.cases) - (0 if barred is None else len(barred))
            if k < 1 or allowed < k:
                raise _too_few(k, allowed)
            options = {}
            if barred is not None and len(barred):
                batch = self._faiss.IDSelectorBatch(barred.astype(np.int64))  # kept alive while it is used
                options["params"] = self._faiss.SearchParameters(sel=self._faiss.IDSelectorNot(batch))  # type: ignore[call-arg]
            count = min(max(candidates, k), allowed)
            proposed, ids = self.index.search(np.ascontiguousarray(vectors[row : row + 1]), count, **options)
            ids = np.sort(ids[0])  # ties are then broken as by the exact search
            one = slice(row, row + 1)
            exact = similarity(query.take(one), weights[one], self.cases.take(torch.from_numpy(ids)), importance)
            best = _top(exact.double().numpy(), k, None)
            index.append(ids[best.index[0]])
            score.append(best.similarity[0])
            bound = importance[0] * float(proposed[0].min()) + rest
            sure.append(count == allowed or best.similarity[0, -1] > bound + 1e-6)  # a margin for rounding
        return Found(np.array(index).reshape(-1, k), np.array(score).reshape(-1, k), np.array(sure, bool))
