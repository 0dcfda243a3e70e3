"""Token sequences through a model in length-bucketed batches, with chosen activations of each batch in hand.

Nothing is kept: a batch's tensors live until the next one. Padding is on the right and needs no mask, because the
earlier positions of a causal model never see later ones, so results depend neither on the batch nor on the order.

Knows nothing about: labels, files, statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.internals.neurons.sites import Place, attach
from rote.scores.tokens import BATCH_TOKENS, batches

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

LOGIT_BYTES = 64 << 20  # next-token logits alive at a time


@dataclass(frozen=True)
class Batch:
    """Some sequences, run. rows: which ones. ids: input ids, BOS included, zero-padded. bos: 1 when a BOS stands in
    front, so that token t of a sequence is input t + bos and is predicted at input t - 1 + bos."""

    rows: Int[np.ndarray, " batch"]
    ids: Int[torch.Tensor, "batch length"]
    bos: int
    hidden: Float[torch.Tensor, "batch length width"]
    activations: dict[Place, Float[torch.Tensor, "batch length dim"]]


def run_batches(
    model: CausalLM,
    sequences: Sequence[Sequence[int] | Int[np.ndarray, " length"]],
    places: Sequence[Place] = (),
    *,
    batch_tokens: int | None = None,
) -> Iterator[Batch]:
    """Run every sequence once. Raises InputError for an empty sequence or one longer than the context window."""
    bos = 0 if model.bos_id is None else 1
    lengths = np.array([len(sequence) for sequence in sequences], np.int64) + bos
    if len(lengths) and int(lengths.min()) < 1:
        raise InputError(f"sequence {int(lengths.argmin())} has no tokens: leave it out")
    if model.context_length is not None and len(lengths) and int(lengths.max()) > model.context_length:
        raise InputError(
            f"sequence {int(lengths.argmax())} has {int(lengths.max()) - bos:,} tokens, but the model's context window"
            f" holds {model.context_length - bos:,}; cut it"
        )
    budget = batch_tokens or BATCH_TOKENS.get(model.device.type, 2_048)
    for rows in batches(lengths, budget):
        ids = np.zeros((len(rows), int(lengths[rows].max())), np.int64)
        for i, row in enumerate(rows):
            ids[i, bos : lengths[row]] = sequences[row]
        if model.bos_id is not None:
            ids[:, 0] = model.bos_id
        tensor = torch.from_numpy(ids).to(model.device)
        caught: dict[Place, torch.Tensor] = {}
        with ExitStack() as stack:
            for place in places:
                stack.callback(attach(model.hf, place, _keeper(caught, place, tensor.shape)).remove)
            hidden = model.hidden(tensor)
        if missed := [place for place in places if place not in caught]:
            raise InputError(
                f"{missed[0].site} of layer {missed[0].layer} was not reached by the forward pass of {model.name};"
                " choose another site"
            )
        yield Batch(rows, tensor, bos, hidden, caught)


def _keeper(caught: dict[Place, torch.Tensor], place: Place, shape: torch.Size):
    """A hook that keeps what passes, as [batch, length, dim] whatever shape the module works in."""

    def keep(activation: torch.Tensor) -> None:
        caught[place] = activation.detach().reshape(*shape, -1)

    return keep


def widths(model: CausalLM, places: Sequence[Place]) -> dict[Place, int]:
    """Number of coordinates at each place, learned from a forward pass over one token."""
    batch = next(run_batches(model, [[0]], places))
    return {place: int(activation.shape[-1]) for place, activation in batch.activations.items()}


def outputs_at(
    model: CausalLM, hidden: Float[torch.Tensor, "rows width"], targets: Int[torch.Tensor, " rows"]
) -> Float[np.ndarray, "rows features"]:
    """(log p(x_t), entropy, max log p) of the next-token distribution, natural logarithms, float32."""
    step = max(1, LOGIT_BYTES // (4 * model.vocab_size))
    parts = []
    for start in range(0, len(hidden), step):
        logp = model.logits(hidden[start : start + step]).log_softmax(-1)
        entropy = -(logp.exp() * logp.clamp_min(-1e9)).sum(-1)
        right = logp.gather(1, targets[start : start + step, None])[:, 0]
        parts.append(torch.stack([right, entropy, logp.amax(-1)], -1).float().cpu())
    return torch.cat(parts).numpy() if parts else np.zeros((0, 3), np.float32)


def next_tokens(
    model: CausalLM, hidden: Float[torch.Tensor, "rows width"], targets: Int[torch.Tensor, " rows"]
) -> tuple[Float[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """(log p(x_t), argmax) of the next-token distribution: `outputs_at` where only recitation counts."""
    step = max(1, LOGIT_BYTES // (4 * model.vocab_size))
    logp, best = [], []
    with torch.inference_mode():
        for start in range(0, len(hidden), step):
            logits = model.logits(hidden[start : start + step])
            right = logits.gather(1, targets[start : start + step, None])[:, 0]
            logp.append((right - logits.logsumexp(-1)).float().cpu())
            best.append(logits.argmax(-1).cpu())
    if not logp:
        return np.zeros(0, np.float32), np.zeros(0, np.int64)
    return torch.cat(logp).numpy(), torch.cat(best).numpy()
