"""From a slice of logits to every per-token figure at once, without sorting the vocabulary.

One slice is [rows, vocabulary] float32, small enough for the cache. About six elementwise passes over it give the
log-probability, rank, entropy and standard deviation; top-k comes from group maxima, a nucleus from a threshold search.
All schemes share these passes. Rows with ties at a cut are handed to transformers' own warpers (exact, slow, rare).

Knows nothing about: models, records, batching. The brute-force twin of everything here is in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from rote.scores.schemes import DecodingScheme

GROUP = 64  # vocabulary entries per group: group maxima locate the k largest entries without a sort
SPARE = 8  # candidates fetched beyond k, so that ties at the k-th value are seen
NUCLEUS_GUESS = 64  # a peaked row's nucleus is within its 64 largest entries; only flat rows need the search
BINS = 16384  # value bins of the nucleus search
BRACKET = 256  # entries looked at one by one next to the crossing bin's edge
FAR_BELOW = -1e30  # the padding's d: exp gives 0 and 0 * d stays 0, which -inf would not
SMALL_VOCABULARY = 4096  # below this a plain topk is faster than the detour over groups


@dataclass(frozen=True)
class SliceScores:
    """Per row of a slice: log p(s), rank, entropy (nats), standard deviation of log p under p, greedy verdict, log
    q."""

    logp: Float[torch.Tensor, " rows"]
    rank: Int[torch.Tensor, " rows"]
    entropy: Float[torch.Tensor, " rows"]
    std: Float[torch.Tensor, " rows"]
    greedy: Bool[torch.Tensor, " rows"]
    schemes: Float[torch.Tensor, "schemes rows"]


def padded_width(vocab_size: int) -> int:
    """Columns of a logits buffer: the vocabulary rounded up to whole groups; the extra columns must hold -inf."""
    return -(-vocab_size // GROUP) * GROUP


class TokenKernel:
    """Computes SliceScores for slices of logits, reusing its work buffers from slice to slice.

    With z the logits, m = max z, d = z - m, e = exp d and S0 = sum e:
        log p(s) = d_s - log S0
        H        = log S0 - (sum e d) / S0                      (entropy; mu = sum p log p = -H)
        sigma^2  = (sum e d^2) / S0 - ((sum e d) / S0)^2          (variance of log p under p; Min-K%++)
        rank(s)  = 1 + #{v : z_v > z_s}
    """

    def __init__(self, vocab_size: int, schemes: Sequence[DecodingScheme] = ()):
        self.vocab_size = vocab_size
        self.schemes = tuple(schemes)
        wanted = [scheme.top_k for scheme in schemes if scheme.top_k and scheme.repetition_penalty == 1]
        if any(_is_nucleus(scheme) for scheme in schemes):
            wanted.append(NUCLEUS_GUESS)
        self.candidates = min(vocab_size, max(wanted, default=1) + SPARE)
        self._buffers: list[torch.Tensor] = []

    def __call__(
        self,
        z: Float[torch.Tensor, "rows padded"],
        target: Int[torch.Tensor, " rows"],
        history: Int[torch.Tensor, "rows history"] | None = None,
    ) -> SliceScores:
        """`z` has `padded_width(vocab_size)` columns, -inf beyond the vocabulary. `history[r]` are the token ids before
        the target (short rows repeat one of their own ids); needed by repetition penalties only. `z` is left
        unchanged."""
        top = largest(z, self.candidates, self.vocab_size)
        m = top[:, :1]
        d, e, work = self._work(z)
        torch.sub(z, m, out=d)
        d[:, self.vocab_size :] = FAR_BELOW
        torch.exp(d, out=e)
        d_target = d.gather(1, target[:, None])
        s0 = e.sum(-1)
        log_s0 = s0.log()
        torch.mul(e, d, out=work)
        s1 = work.sum(-1) / s0
        s2 = torch.linalg.vecdot(work, d) / s0
        torch.gt(z, z.gather(1, target[:, None]), out=work)
        rank = work.sum(-1).long() + 1
        greedy = rank == 1
        tied = greedy & (top[:, 1] == top[:, 0]) if top.shape[1] > 1 else torch.zeros_like(greedy)
        if tied.any():  # argmax takes the lowest id among equals
            greedy[tied] = z[tied].argmax(-1) == target[tied]
        d_target = d_target[:, 0]
        shared = _Shared(z, d, e, work, s0, top - m, d_target, rank, target, history, self.vocab_size)
        logq = [self._scheme(scheme, shared) for scheme in self.schemes]
        return SliceScores(
            logp=d_target - log_s0,
            rank=rank,
            entropy=(log_s0 - s1).clamp_min(0.0),
            std=(s2 - s1 * s1).clamp_min(0.0).sqrt(),
            greedy=greedy,
            schemes=torch.stack(logq) if logq else d_target.new_empty((0, len(d_target))),
        )

    def _work(self, z: torch.Tensor) -> list[torch.Tensor]:
        if not self._buffers or self._buffers[0].shape[0] < z.shape[0] or self._buffers[0].device != z.device:
            self._buffers = [torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(3)]
        return [buffer[: z.shape[0]] for buffer in self._buffers]

    def _scheme(self, scheme: DecodingScheme, s: _Shared) -> Float[torch.Tensor, " rows"]:
        if scheme.repetition_penalty != 1:
            return scheme_logprob(penalised(s.z, s.history, scheme.repetition_penalty, s.vocab_size), s.target, scheme)
        if scheme.top_k:
            return self._top_k(scheme, s)
        if not scheme.cuts:
            scaled = torch.exp(torch.div(s.d, scheme.temperature, out=s.work), out=s.work)
            return s.d_target / scheme.temperature - scaled.sum(-1).log()
        if _is_nucleus(scheme):
            return self._nucleus(scheme, s)
        return scheme_logprob(s.z[:, : s.vocab_size], s.target, scheme)

    def _top_k(self, scheme: DecodingScheme, s: _Shared) -> Float[torch.Tensor, " rows"]:
        k = min(scheme.top_k, s.vocab_size)
        cut = s.top[:, k - 1 : k]
        kept = (s.top >= cut) / 1.0
        values = torch.where(kept > 0, s.top / scheme.temperature, -torch.inf)
        scaled_target = s.d_target / scheme.temperature
        for warper in scheme.warpers_after_top_k(values.device):
            values = warper(None, values)
        # After further cuts the target is kept when its value still is; equal values are cut or kept by sort order.
        inside = (s.d_target >= cut[:, 0]) & (values == scaled_target[:, None]).any(-1)
        logq = torch.where(inside, scaled_target - values.logsumexp(-1), -torch.inf)
        # transformers keeps every entry equal to the k-th value. Where such ties may reach past the candidates, or a
        # later cut could fall between equals, the row is recomputed by its own warpers.
        unsure = (s.top[:, -1] == cut[:, 0]) & (s.top.shape[1] < s.vocab_size)
        if scheme.warpers_after_top_k():
            unsure |= (s.top[:, 1:] == s.top[:, :-1]).masked_fill(s.top[:, 1:] < cut, False).any(-1)
        return _settle(logq, unsure, s, scheme)

    def _nucleus(self, scheme: DecodingScheme, s: _Shared) -> Float[torch.Tensor, " rows"]:
        """Keep the smallest prefix of the descending order whose mass reaches top_p (the crossing token is kept)."""
        if scheme.temperature == 1:
            mass, total = s.e, s.s0
        else:
            mass = torch.exp(s.d / scheme.temperature)
            total = mass.sum(-1)
        goal = total * scheme.top_p
        cumulative = torch.exp(s.top / scheme.temperature).cumsum(-1)
        last = (cumulative < goal[:, None]).sum(-1)  # index of the crossing entry, if it is among the candidates
        peaked = last < s.top.shape[1] - 1
        at = last.clamp_max(s.top.shape[1] - 2)[:, None]
        cut = s.top.gather(1, at)[:, 0]
        kept = cumulative.gather(1, at)[:, 0]
        unsure = peaked & (s.top.gather(1, at + 1)[:, 0] == cut)
        unsure |= peaked & (at[:, 0] > 0) & (s.top.gather(1, (at - 1).clamp_min(0))[:, 0] == cut)
        if not peaked.all():
            flat = slice(None) if not peaked.any() else ~peaked
            cut[flat], kept[flat], found = threshold_search(
                s.d[flat], mass[flat], goal[flat], vocab_size=s.vocab_size, temperature=scheme.temperature
            )
            unsure[flat] = ~found
        logq = torch.where(s.d_target >= cut, s.d_target / scheme.temperature - kept.log(), -torch.inf)
        return _settle(logq, unsure, s, scheme)


@dataclass(frozen=True)
class _Shared:
    """What the schemes share of one slice (`top` and `d_target` are relative to the row's maximum)."""

    z: torch.Tensor
    d: torch.Tensor
    e: torch.Tensor
    work: torch.Tensor
    s0: torch.Tensor
    top: torch.Tensor
    d_target: torch.Tensor
    rank: torch.Tensor
    target: torch.Tensor
    history: torch.Tensor | None
    vocab_size: int


def largest(z: Float[torch.Tensor, "rows padded"], k: int, vocab_size: int) -> Float[torch.Tensor, "rows k"]:
    """The k largest values of each row, descending, by group maxima.

    The k-th largest of the group maxima is a lower bound of the k-th largest entry, so the k largest entries lie in the
    k groups of largest maximum: only k * GROUP entries are looked at one by one.
    """
    groups = z.shape[1] // GROUP
    if vocab_size <= SMALL_VOCABULARY or z.shape[1] % GROUP or k >= groups:
        return z.topk(k, dim=-1).values
    grouped = z.view(z.shape[0], groups, GROUP) if z.is_contiguous() else z.reshape(z.shape[0], groups, GROUP)
    chosen = grouped.amax(-1).topk(k, dim=-1, sorted=False).indices
    inside = grouped.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    return inside.topk(k, dim=-1).values


def threshold_search(
    d: Float[torch.Tensor, "rows padded"],
    mass: Float[torch.Tensor, "rows padded"],
    goal: Float[torch.Tensor, " rows"],
    *,
    vocab_size: int,
    temperature: float = 1.0,
) -> tuple[Float[torch.Tensor, " rows"], Float[torch.Tensor, " rows"], Bool[torch.Tensor, " rows"]]:
    """The smallest set {d >= cut} whose mass reaches `goal`, for mass = exp(d / temperature), without a full sort.

    The mass is added up in bins of the value; the bin where the sum crosses the goal gives an edge E just above the
    cut. The mass at or above E is then summed exactly, and only the entries next below E are sorted. Returns (cut, mass
    kept, found); found is False where equal values share the cut (their order is the sampler's business) or where the
    crossing lies beyond the entries looked at.
    """
    low, high = d[:, :vocab_size].amin(-1, keepdim=True), d.amax(-1, keepdim=True)
    scale = BINS / (high - low).clamp_min(1e-30)
    work, bins = torch.empty_like(d), torch.empty(d.shape, dtype=torch.int64, device=d.device)
    bins.copy_(torch.mul(d, -scale, out=work).add_(high * scale).clamp_(0.0, BINS))
    reached = torch.zeros(d.shape[0], BINS + 1, device=d.device).scatter_add_(1, bins, mass).cumsum_(-1)
    goal = torch.minimum(goal[:, None], reached[:, -1:])
    crossing = (reached < goal).sum(-1, keepdim=True)
    edge = high - (crossing - 1) / scale  # one bin higher than the crossing one, against rounding at its own edge
    above = torch.linalg.vecdot(torch.ge(d, edge, out=work), mass)[:, None]
    # Below the edge, edge - d is positive and smallest for the largest d; `threshold` moves all else out of the way.
    below = torch.threshold_(torch.sub(edge, d, out=work), 0.0, -FAR_BELOW)
    room = min(BRACKET, vocab_size)
    values = edge + largest(below.neg_(), room, vocab_size)
    cumulative = above + torch.exp(values / temperature).cumsum(-1)
    at = (cumulative < goal).sum(-1, keepdim=True)
    found = (above < goal) & (at < room - 1)
    at = at.clamp_max(room - 1)
    cut = values.gather(1, at)
    found &= (values == cut).sum(-1, keepdim=True) == 1
    return cut[:, 0], cumulative.gather(1, at)[:, 0], found[:, 0]


def penalised(
    z: Float[torch.Tensor, "rows padded"],
    history: Int[torch.Tensor, "rows history"] | None,
    penalty: float,
    vocab_size: int,
) -> Float[torch.Tensor, "rows vocabulary"]:
    """Repetition penalty (Keskar et al. 2019, arXiv 1909.05858): z/penalty if z > 0 else z*penalty, for ids seen
    before."""
    if history is None:
        raise ValueError("a repetition penalty needs the token ids before each target")
    z = z[:, :vocab_size].clone()
    seen = z.gather(1, history)
    return z.scatter_(1, history, torch.where(seen < 0, seen * penalty, seen / penalty))


def scheme_logprob(
    z: Float[torch.Tensor, "rows vocabulary"], target: Int[torch.Tensor, " rows"], scheme: DecodingScheme
) -> Float[torch.Tensor, " rows"]:
    """log q(target) by applying transformers' own warpers to whole rows: exact for every scheme, and slow (it
    sorts)."""
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper

    ids: Any = None  # none of these warpers looks at the history
    z = TemperatureLogitsWarper(float(scheme.temperature))(ids, z)
    if scheme.top_k:
        z = TopKLogitsWarper(int(scheme.top_k))(ids, z)
    for warper in scheme.warpers_after_top_k(z.device):
        z = warper(None, z)
    return z.log_softmax(-1).gather(1, target[:, None])[:, 0]


def _is_nucleus(scheme: DecodingScheme) -> bool:
    """Temperature and top_p alone: the case worth a search of its own."""
    return scheme.top_p < 1 and not (
        scheme.top_k
        or scheme.min_p
        or scheme.typical_p < 1
        or scheme.epsilon_cutoff
        or scheme.eta_cutoff
        or scheme.repetition_penalty != 1
    )


def _settle(logq: torch.Tensor, unsure: torch.Tensor, s: _Shared, scheme: DecodingScheme) -> torch.Tensor:
    if unsure.any():
        logq[unsure] = scheme_logprob(s.z[unsure, : s.vocab_size], s.target[unsure], scheme)
    return logq
