"""What a model says after a prefix: sampled continuations under a decoding scheme, and greedy ones.

The prefix is encoded once. Samples that agree so far share one row of computation, so the cost of R samples is that of
their distinct beginnings: on memorized text a few rows, not R. Each sample has its own uniform numbers, drawn from the
seed, so results depend neither on the batch nor on the order of records.

Knows nothing about: records' truth, distances, estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32

from rote.errors import InputError
from rote.scores.context_cache import ContextCache
from rote.scores.kernels import SPARE, penalised
from rote.scores.schemes import DecodingScheme

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

MOST_ROWS = 512  # distinct beginnings computed at a time
LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30, "mps": 256 << 20}  # next-token logits alive at a time


def next_logq(
    z: Float[torch.Tensor, "rows vocabulary"],
    scheme: DecodingScheme,
    history: Int[torch.Tensor, "rows tokens"] | None = None,
) -> Float[torch.Tensor, "rows vocabulary"]:
    """log q(. | context) under a scheme, from next-token logits, by transformers' own warpers in generate's order.

    -inf outside the scheme's support; rows sum to 1. `history` holds the context's ids (a repetition penalty needs it).
    Source: Hayes et al. 2024, arXiv 2410.19482, section 3 (g_phi).
    """
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper

    if scheme.repetition_penalty != 1:
        z = penalised(z, history, scheme.repetition_penalty, z.shape[1])
    chain: list[Any] = [TemperatureLogitsWarper(float(scheme.temperature))] if scheme.temperature != 1 else []
    if scheme.top_k:
        chain.append(TopKLogitsWarper(int(scheme.top_k)))
    for warper in chain + scheme.warpers_after_top_k(str(z.device)):
        z = warper(None, z)
    return z.log_softmax(-1)


def encode_prefix(model: CausalLM, prefix: Sequence[int]) -> ContextCache:
    """The cache of one prefix, with BOS by the model's rule. Raises InputError when there is nothing to encode."""
    ids = list(prefix) if model.bos_id is None else [model.bos_id, *prefix]
    return ContextCache.encode(model, torch.tensor([ids], dtype=torch.int64))


def sample_continuations(
    model: CausalLM,
    prefix: Sequence[int] | ContextCache,
    *,
    length: int,
    count: int,
    scheme: DecodingScheme | None = None,
    seed: int,
    rows: int | None = None,
    keep: Callable[[Int32[np.ndarray, "samples tokens"]], Bool[np.ndarray, " samples"]] | None = None,
) -> Int32[np.ndarray, "count length"]:
    """`count` independent continuations of `length` tokens each, drawn from q(. | prefix) token by token.

    Nothing ends a continuation early (an end-of-text token is a token like another), as the formula for p_z assumes.
    `keep(tokens so far)`, if given, says which samples are still of interest; the others stop and are filled with -1.
    `seed` fixes the result up to the rounding of logits (a sample changes when its uniform number falls within about
    1e-6 of a boundary). `rows` bounds the distinct beginnings computed at a time, and changes nothing else.
    """
    if length < 1 or count < 1:
        raise InputError(f"sampling needs at least 1 token and 1 sample, not {length} and {count}")
    scheme = scheme or DecodingScheme()
    root = prefix if isinstance(prefix, ContextCache) else encode_prefix(model, prefix)
    check_room(model, root.ids.shape[1] + length)
    uniform = np.random.default_rng(seed).random((count, length))
    rows = rows or rows_at_a_time(model, root, length)
    out = np.full((count, length), -1, np.int32)
    # Depth first: a group is extended when its turn comes, so few caches are alive however many samples there are.
    pending = [_Group(root, None, np.arange(count), np.zeros(count, np.int64), 0)]
    while pending:
        group = pending.pop()
        state, alive, row, t = group.grown(), group.samples, group.row, group.tokens
        logq = next_logq(state.logits(), scheme, state.ids)
        picked = draw(logq, torch.from_numpy(row), torch.from_numpy(uniform[alive, t])).numpy()
        out[alive, t] = picked
        if keep is not None:
            wanted = np.asarray(keep(out[alive, : t + 1]), bool)
            out[alive[~wanted]] = -1
            alive, row, picked = alive[wanted], row[wanted], picked[wanted]
        if t + 1 == length or not len(alive):
            continue
        distinct, row = np.unique(row * logq.shape[1] + picked, return_inverse=True)
        for start in range(0, len(distinct), rows):
            part = distinct[start : start + rows]
            here = (row >= start) & (row < start + rows)
            step = torch.from_numpy(part // logq.shape[1]), torch.from_numpy(part % logq.shape[1])
            pending.append(_Group(state, step, alive[here], row[here] - start, t + 1))
    return out


@dataclass
class _Group:
    """Samples that continue the rows of `state` extended by `step`; `row` is the extended row of each sample."""

    state: ContextCache
    step: tuple[torch.Tensor, torch.Tensor] | None
    samples: np.ndarray
    row: np.ndarray
    tokens: int

    def grown(self) -> ContextCache:
        return self.state if self.step is None else self.state.extend(*self.step)


def draw(
    logq: Float[torch.Tensor, "rows vocabulary"],
    row: Int[torch.Tensor, " samples"],
    uniform: Float[torch.Tensor, " samples"],
) -> Int[torch.Tensor, " samples"]:
    """Inverse-CDF samples: for sample i the first token v, in id order, with sum_{w <= v} q(w | row_i) > uniform_i."""
    logq, ids = _support(logq.cpu())
    cdf = logq.double().exp().cumsum(-1)
    cdf /= cdf[:, -1:].clone()
    width = cdf.shape[1]
    # One search for all rows: row r's distribution function is shifted to [r, r + 1].
    at = torch.searchsorted((cdf + torch.arange(len(cdf))[:, None]).flatten(), row + uniform, right=True) - row * width
    last = width - 1 - (logq > -torch.inf).flip(-1).int().argmax(-1)  # a uniform that rounds up to 1 stays inside
    at = torch.minimum(at, last[row])
    return at if ids is None else ids[row, at]


def _support(logq: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Drop the impossible tokens when all rows leave few: (log q, their ids in ascending order), or everything."""
    most = int((logq > -torch.inf).sum(-1).max())
    if most + SPARE >= logq.shape[1] // 2:
        return logq, None
    ids = logq.topk(most, dim=-1, sorted=False).indices.sort(-1).values
    return logq.gather(1, ids), ids


def greedy_continuations(
    model: CausalLM,
    prefixes: Sequence[Sequence[int]],
    lengths: int | Sequence[int],
    *,
    batch: int | None = None,
) -> Int32[np.ndarray, "records tokens"]:
    """Greedy decoding, argmax token by token: the generation that the one pass makes unnecessary.

    Row i continues `prefixes[i]` by `lengths[i]` tokens; -1 is padding. Prefixes of equal length share a batch, so
    nothing is padded; end-of-text does not stop a row.
    """
    wanted = np.broadcast_to(np.asarray(lengths, np.int64), (len(prefixes),))
    bos = [] if model.bos_id is None else [model.bos_id]
    contexts = [[*bos, *map(int, prefix)] for prefix in prefixes]
    size = np.array([len(context) for context in contexts], np.int64)
    out = np.full((len(prefixes), int(wanted.max(initial=0))), -1, np.int32)
    for tokens in np.unique(size):
        check_room(model, int(tokens + wanted[size == tokens].max()))
        rows = np.flatnonzero(size == tokens)
        rows = rows[np.argsort(-wanted[rows], kind="stable")]
        longest = int(wanted[rows[0]])
        step = batch or rows_at_a_time(model, encode_prefix(model, prefixes[rows[0]]), longest)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            state = ContextCache.encode(model, torch.tensor([contexts[row] for row in part], dtype=torch.int64))
            for t in range(int(wanted[part].max())):
                going = int((wanted[part] > t).sum())  # longest first: those that go on come first
                best = state.logits()[:going].argmax(-1)
                out[part[:going], t] = best.cpu().numpy()
                still = int((wanted[part] > t + 1).sum())
                if still:
                    state = state.extend(torch.arange(still), best[:still])
    return out


class NextLogQ:
    """tokens [beams, length] -> log q(. | prefix, tokens) [beams, vocabulary], reusing the cache of the previous call.

    Rows that extend a row of the previous call by one token cost one step each; anything else is read from the prefix.
    It is the callable that `rote.measures.approximate.constrained_beam` asks for.
    """

    def __init__(self, model: CausalLM, prefix: Sequence[int] | ContextCache, scheme: DecodingScheme):
        self.root = prefix if isinstance(prefix, ContextCache) else encode_prefix(model, prefix)
        self.scheme = scheme
        self._state = self.root
        self._rows = {b"": 0}

    def __call__(self, tokens: Int[np.ndarray, "beams length"]) -> Float[np.ndarray, "beams vocabulary"]:
        tokens = np.ascontiguousarray(tokens, np.int64)
        beginnings = [row[:-1].tobytes() for row in tokens]
        if tokens.shape[1] == 0:
            self._state = self.root
        elif all(beginning in self._rows for beginning in beginnings):
            parents = torch.tensor([self._rows[beginning] for beginning in beginnings])
            self._state = self._state.extend(parents, torch.from_numpy(tokens[:, -1]))
        else:
            state = self.root.extend(None, torch.from_numpy(tokens[:, 0]))
            for t in range(1, tokens.shape[1]):
                state = state.extend(torch.arange(len(tokens)), torch.from_numpy(tokens[:, t]))
            self._state = state
        self._rows = {b"": 0} if tokens.shape[1] == 0 else {row.tobytes(): number for number, row in enumerate(tokens)}
        logq = next_logq(self._state.logits(), self.scheme, self._state.ids).cpu().numpy()
        return np.repeat(logq, len(tokens), axis=0) if tokens.shape[1] == 0 and len(tokens) > 1 else logq


def rows_at_a_time(model: CausalLM, context: ContextCache, more_tokens: int) -> int:
    """How many rows to continue at once, so that neither their caches nor their logits outgrow memory."""
    logits = LOGIT_BYTES.get(model.device.type, 64 << 20) // (4 * model.vocab_size)
    return max(1, min(MOST_ROWS, context.rows_that_fit(more_tokens), logits))


def check_room(model: CausalLM, tokens: int) -> None:
    if model.context_length is not None and tokens > model.context_length:
        raise InputError(
            f"prefix and continuation have {tokens:,} tokens, but the model's context window holds"
            f" {model.context_length:,}; use a shorter suffix"
        )
