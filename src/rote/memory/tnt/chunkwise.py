"""The chunkwise-parallel form: all gradients of a chunk at its frozen start weights, every token reads its own weights.

Per chunk, with G, beta, f of `coefficients` and rows (x_l, g_l) of `memory_functions`, layer by layer from z_0 = q:

    z_l = beta_t x_l W_l + f_t x_l S_l - [tril(x_l X_l^T) * G] g_l,   x_{l+1} = act(z_l)          (the dual form)
    W_l <- beta_C W_l + f_C S_l - (G[C,:] * X_l)^T g_l;   S_l <- (prod eta) S_l - (A_e[C,:] theta * X_l)^T g_l

No weight matrix of a single token is ever formed. A sequence may be fed in pieces of any length: the state carries the
frozen weights of the chunk that is open, the weights and momentum now, and the position in the chunk.

Reading. "token": y_t = M_t(q_t), its own write included. "chunk": y_t = M_{t'}(q_t), the weights frozen at the start of
the chunk. Both are causal; they are different functions.

Knows nothing about: projections, gates, shards, models.
Source: Behrouz et al. 2025, arXiv 2501.00663, sec. 3.2; Li et al. 2025, "TNT", arXiv 2511.07343, eqs. 3, 5, 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rote.errors import InputError
from rote.memory.tnt.coefficients import Coefficients
from rote.memory.tnt.memory_functions import MemoryFunction, Norm, surprise

READS = ("token", "chunk")
STACKED = 64  # chunks read together at least, counted over all memories: small products are slow one by one


@dataclass(frozen=True)
class FastWeights:
    """N memories somewhere in a chunk. `now` equals `frozen` at position 0; momentum is None where there is none yet.

    frozen, now, momentum: (N, d_l, d_{l+1}) per layer; position: tokens of the open chunk already written.
    """

    frozen: list[Tensor]
    now: list[Tensor]
    momentum: list[Tensor] | None = None
    position: int = 0


# What a piece of chunks writes: rates of shape (N, chunks, C) become coefficients. Arguments: the rates by name, the
# position in the chunk at which the piece begins, whether every token is read.
Rule = Callable[[dict[str, Tensor], int, bool], Coefficients]


def scan(
    function: MemoryFunction,
    state: FastWeights,
    q: Float[Tensor, "N T d"],
    k: Float[Tensor, "N T d"],
    v: Float[Tensor, "N T d"],
    rates: dict[str, Float[Tensor, "N T"]],
    rule: Rule,
    *,
    chunk: int,
    read: str = "token",
    norm: Norm = None,
    return_surprise: bool = False,
    step: Callable | None = None,
    checkpoint: bool = False,
) -> tuple[Float[Tensor, "N T d"], FastWeights, Float[Tensor, "N T"] | None]:
    """Read T tokens: (y, the state after them, ||u_t|| or None). T need not be a multiple of `chunk`.

    Args:
        rates: what `rule` turns into coefficients, one value a token (theta, alpha, eta).
        step: replaces `chunk_step` (its compiled form).
        checkpoint: keep no activations of the chunks; recompute them in the backward pass.
    Raises: InputError for a chunk size below 1 or an unknown kind of reading.
    """
    if chunk < 1:
        raise InputError(f"chunk is {chunk}: it must be 1 or more")
    if read not in READS:
        raise InputError(f"unknown read {read!r}; use one of {', '.join(READS)}")
    step = step or chunk_step
    total = q.shape[1]
    outputs: list[Tensor] = []
    surprises: list[Tensor] = []
    start = 0
    while start < total:
        room = chunk - state.position
        if state.position == 0 and total - start >= chunk:
            count, size = (total - start) // chunk, chunk
        else:
            count, size = 1, min(room, total - start)
        stop = start + count * size
        complete = state.position + size == chunk
        cut = lambda x, a=start, b=stop, n=count, c=size: x[:, a:b].reshape(len(x), n, c, *x.shape[2:])  # noqa: E731
        rows = {name: cut(value) for name, value in rates.items()}
        coefficients = replace(rule(rows, state.position, read == "token"), complete=complete)
        y, state, found = _chunks(
            function, state, cut(q), cut(k), cut(v), coefficients, norm, read, return_surprise, step, checkpoint
        )
        outputs.append(y)
        surprises += found
        state = replace(state, position=0 if complete else state.position + size)
        start = stop
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return y, state, torch.cat(surprises, 1) if return_surprise else None


def _chunks(
    function: MemoryFunction,
    state: FastWeights,
    q: Float[Tensor, "N n C d"],
    k: Float[Tensor, "N n C d"],
    v: Float[Tensor, "N n C d"],
    coefficients: Coefficients,
    norm: Norm,
    read: str,
    return_surprise: bool,
    step: Callable,
    checkpoint: bool,
) -> tuple[Tensor, FastWeights, list[Tensor]]:
    """n chunks of one size, one after the other; reads are done for a group of chunks at once."""
    memories, count = k.shape[:2]
    sets = coefficients.chunks()
    keys, values = k.unbind(1), v.unbind(1)
    group = min(count, max(1, STACKED // memories))
    outputs: list[Tensor] = []
    surprises: list[Tensor] = []

    def run(first: int, frozen: list[Tensor], now: list[Tensor], momentum: list[Tensor] | None):
        kept, found = [], []
        stop = min(first + group, count)
        for i in range(first, stop):
            inputs, rows, norms, after, momentum_after = step(
                function, frozen, now, momentum, keys[i], values[i], sets[i], norm, return_surprise
            )
            kept.append((frozen, now, momentum, inputs, rows))
            found.append(norms)
            now, momentum = after, momentum_after
            if sets[i].complete:
                frozen = now
        y = _read_group(function, kept, q[:, first:stop], coefficients, first, stop, norm, read)
        return y, frozen, now, momentum, found

    frozen, now, momentum = state.frozen, state.now, state.momentum
    for first in range(0, count, group):
        if checkpoint and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint as recompute

            y, frozen, now, momentum, found = recompute(run, first, frozen, now, momentum, use_reentrant=False)
        else:
            y, frozen, now, momentum, found = run(first, frozen, now, momentum)
        outputs.append(y)
        if return_surprise:
            surprises += found
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return y, FastWeights(frozen, now, momentum, state.position), surprises


def chunk_step(
    function: MemoryFunction,
    frozen: list[Tensor],
    now: list[Tensor],
    momentum: list[Tensor] | None,
    k: Float[Tensor, "N C d"],
    v: Float[Tensor, "N C d"],
    c: Coefficients,
    norm: Norm,
    return_surprise: bool = False,
):
    """One chunk's writes: (x_l, clipped g_l, ||u_t|| or None, weights after, momentum after).

    For plain descent the rows come back as theta g_l: the read needs them so.
    """
    inputs, rows = function.gradients(frozen, k, v, norm)
    norms = surprise(inputs, rows) if return_surprise else None
    rows = function.clipped(rows)
    if c.scaled:
        rows = [g * c.last[..., None] for g in rows]
        after = [torch.baddbmm(w, x.transpose(1, 2), g, alpha=-1) for x, g, w in zip(inputs, rows, now, strict=True)]
        return inputs, rows, norms, after, None
    keeps_momentum = c.momentum_write is not None
    after: list[Tensor] = []
    momentum_after: list[Tensor] = []
    for layer, (x, g, weight) in enumerate(zip(inputs, rows, now, strict=True)):
        if keeps_momentum:
            assert c.momentum_keep is not None
            assert c.momentum_write is not None
            left = x * c.momentum_write[..., None]
            if momentum is None:
                sum_now = -torch.bmm(left.transpose(1, 2), g)
            else:
                sum_now = torch.baddbmm(
                    momentum[layer] * c.momentum_keep[:, None, None], left.transpose(1, 2), g, alpha=-1
                )
            momentum_after.append(sum_now)
        if c.averaged and not c.complete:
            after.append(weight)
            continue
        base = weight if c.keep is None else weight * c.keep[:, -1, None, None]
        if c.carry is not None and momentum is not None:
            base = torch.addcmul(base, momentum[layer], c.carry[:, -1, None, None])
        # The step scales whichever factor is narrower.
        narrow = x.shape[-1] <= g.shape[-1]
        left, right = (x * c.last[..., None], g) if narrow else (x, g * c.last[..., None])
        after.append(torch.baddbmm(base, left.transpose(1, 2), right, alpha=-1))
    ended = c.averaged and c.complete  # the sum of an averaged step starts again with every mini-batch
    return inputs, rows, norms, after, momentum_after if keeps_momentum and not ended else None


def _read_group(
    function: MemoryFunction,
    kept: list[tuple],
    q: Float[Tensor, "N n C d"],
    coefficients: Coefficients,
    first: int,
    stop: int,
    norm: Norm,
    read: str,
) -> Float[Tensor, "N nC d"]:
    """Reads of all tokens of a group of chunks, each from its own weights, as one batch of N n memories."""
    memories, count, size, width = q.shape

    def together(parts: list[Tensor]) -> Tensor:
        return parts[0] if count == 1 else torch.stack(parts, 1).flatten(0, 1)

    def part(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[:, first:stop].flatten(0, 1)

    queries = q.flatten(0, 1)
    if norm is not None and count > 1:
        gamma, beta = norm
        norm = (gamma.repeat_interleave(count, 0), beta.repeat_interleave(count, 0))
    if read == "chunk":
        weights = [together([item[0][layer] for item in kept]) for layer in range(function.depth)]
        return function.forward(weights, queries, norm).view(memories, count * size, width)
    write, keep, carry = part(coefficients.write), part(coefficients.keep), part(coefficients.carry)
    assert write is not None or coefficients.scaled
    has_momentum = carry is not None and kept[-1][2] is not None
    z = queries
    for layer in range(function.depth):
        x = function.extend(z)
        inputs = together([item[3][layer] for item in kept])
        rows = together([item[4][layer] for item in kept])
        base = torch.bmm(x, together([item[1][layer] for item in kept]))
        if keep is not None:
            base = base * keep[..., None]
        if has_momentum:
            assert carry is not None
            carried = [torch.zeros_like(item[1][layer]) if item[2] is None else item[2][layer] for item in kept]
            base = torch.addcmul(base, torch.bmm(x, together(carried)), carry[..., None])
        scores = torch.bmm(x, inputs.transpose(1, 2))
        scores = scores.tril() if write is None else scores * write
        z = torch.baddbmm(base, scores, rows, alpha=-1)
        if layer < function.depth - 1:
            z = function.activate(z)
    return function.finish(queries, z, norm).view(memories, count * size, width)
