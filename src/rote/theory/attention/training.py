"""Train the formal attention-only model, and an MLP of equal size, on look-up tasks, many runs in one batch.

Knows full-batch Adam on E_t KL(pi(.|t) || softmax T(t)) over every context at once; runs with different seeds and head
counts share one set of tensors, missing heads are masked. Deliberately knows no bounds and draws no conclusion: see
`rote.theory.attention.measurement`.

This is the formal model of section 3 and not the authors' experimental one, which shares one d -> d_h compression among
all heads. Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, sections 3 and 4.2, appendix B).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from rote.errors import InputError
from rote.runtime import derive_seed, threads

FIRST_RATE, LAST_RATE = 0.05, 0.005  # Adam's learning rate falls linearly between them (card 5, not the paper's 0.1)


@dataclass(frozen=True)
class Run:
    """One model to train: its heads, the width of its GELU MLP (0: none) and the seed of its initial weights."""

    heads: int
    width: int
    seed: int


@dataclass(frozen=True)
class TrainedRuns:
    """Results per run: accuracy over all contexts (argmax), KL in nats, and the numbers each model stores."""

    accuracy: Float[np.ndarray, " runs"]
    kl: Float[np.ndarray, " runs"]
    parameters: Int[np.ndarray, " runs"]


def train_runs(
    contexts: Int[np.ndarray, "contexts context"],
    targets: Float[np.ndarray, "runs contexts vocab"],
    runs: Sequence[Run],
    *,
    d: int,
    d_head: int,
    steps: int,
    first_rate: float = FIRST_RATE,
    last_rate: float = LAST_RATE,
) -> TrainedRuns:
    """Train every run on its own pi for `steps` full-batch steps; all contexts equally likely.

    T(t) = W_U (h + W_2 gelu(W_1 h)) with h = x(t,S) + W_O W_V A(t); without an MLP the formal model. float32, CPU, one
    thread: deterministic for the seeds. Accuracy counts the contexts whose most likely token under pi is the argmax.
    """
    if len(targets) != len(runs) or targets.shape[1] != len(contexts):
        raise InputError(f"targets of shape {targets.shape} do not fit {len(runs)} runs and {len(contexts)} contexts")
    if d_head > d:
        raise InputError(f"d_head is {d_head}, but a head's dimension cannot exceed d = {d}")
    with threads(1):
        return _train(contexts, targets, runs, d, d_head, steps, first_rate, last_rate)


def _train(contexts, targets, runs, d, d_head, steps, first_rate, last_rate) -> TrainedRuns:
    vocab, length = targets.shape[2], contexts.shape[1]
    heads, width = max(run.heads for run in runs), max(run.width for run in runs)
    weights = _initial(runs, vocab=vocab, length=length, d=d, d_head=d_head, heads=heads, width=width)
    head_mask = torch.tensor([[float(head < run.heads) for head in range(heads)] for run in runs])
    unit_mask = torch.tensor([[float(unit < run.width) for unit in range(width)] for run in runs])
    tokens = torch.from_numpy(np.ascontiguousarray(contexts))
    exact = torch.from_numpy(np.ascontiguousarray(np.asarray(targets, dtype=np.float64).transpose(0, 2, 1)))
    pi = exact.float()
    # Adam's state is per number and the losses are added, so runs in one batch do not touch each other.
    optimiser = torch.optim.Adam(list(weights.values()), lr=first_rate)
    for step in range(steps):
        share = step / max(1, steps - 1)
        optimiser.param_groups[0]["lr"] = first_rate + share * (last_rate - first_rate)
        optimiser.zero_grad()
        scores = _forward(weights, tokens, head_mask, unit_mask)
        loss = -(pi * functional.log_softmax(scores, dim=1)).sum(dim=1).mean(dim=-1)
        loss.sum().backward()
        optimiser.step()
    with torch.no_grad():
        scores = _forward(weights, tokens, head_mask, unit_mask).double()
        kl = (torch.xlogy(exact, exact) - exact * functional.log_softmax(scores, dim=1)).sum(dim=1).mean(dim=-1)
        accuracy = (scores.argmax(dim=1) == exact.argmax(dim=1)).double().mean(dim=-1)
    counts = np.array([d * (length + 2 * vocab + 4 * d_head * run.heads + 2 * run.width) for run in runs])
    return TrainedRuns(accuracy.numpy(), kl.numpy(), counts)


def _initial(runs, *, vocab, length, d, d_head, heads, width) -> dict[str, Tensor]:
    """Each run's weights come from its own seed and sizes, so a run is the same alone and in any batch.

    Queries and keys start at a quarter of the usual size: the definition has no 1/sqrt(d_h), and patterns that start
    nearly uniform train to fewer dead heads (tried: 1, 1/2, 1/4, 1/10; a quarter was best).
    """
    spread = {
        "embedding": ((vocab, d), 1.0),
        "positions": ((length, d), 1.0),
        "unembedding": ((vocab, d), 1.0),
    }
    per_head = {"query": (d_head, d), "key": (d_head, d), "value": (d_head, d), "output": (d, d_head)}
    stacked: dict[str, list[Tensor]] = {}
    for run in runs:
        own = {}
        for name, (shape, scale) in spread.items():
            own[name] = scale * _normal(run.seed, name, shape)
        for name, shape in per_head.items():
            fan_in = {"output": run.heads * d_head, "query": 16 * d, "key": 16 * d}.get(name, d)
            drawn = [_normal(run.seed, f"{name} {head}", shape) for head in range(run.heads)]
            drawn += [torch.zeros(shape)] * (heads - run.heads)
            own[name] = torch.stack(drawn) / math.sqrt(max(1, fan_in)) if heads else torch.zeros(0, *shape)
        enter, leave = torch.zeros(width, d), torch.zeros(width, d)
        if run.width:
            enter[: run.width] = _normal(run.seed, "enter", (run.width, d)) / math.sqrt(d)
            leave[: run.width] = _normal(run.seed, "leave", (run.width, d)) / math.sqrt(run.width)
        own["enter"], own["leave"] = enter, leave
        for name, tensor in own.items():
            stacked.setdefault(name, []).append(tensor)
    return {name: torch.stack(tensors).requires_grad_() for name, tensors in stacked.items()}


def _normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, name))
    return torch.randn(shape, generator=generator)


def _forward(weights: dict[str, Tensor], tokens: Tensor, head_mask: Tensor, unit_mask: Tensor) -> Tensor:
    """Logits (runs, vocab, contexts). Contexts stand last throughout: with d and S this small, products over long rows
    are twice as fast as many tiny matrices."""
    runs, _, d = weights["embedding"].shape
    contexts, length = tokens.shape
    gathered = weights["embedding"].transpose(1, 2).index_select(2, tokens.T.flatten())
    x = gathered.view(runs, d, length, contexts).transpose(1, 2) + weights["positions"][..., None]
    hidden = last = x[:, -1]  # (runs, d, contexts)
    heads = head_mask.shape[1]
    if heads:
        pattern_maps = weights["query"].transpose(2, 3) @ weights["key"]  # W_QK^h, (runs, heads, d, d)
        mapped = pattern_maps.transpose(2, 3).reshape(runs, heads * d, d) @ last
        scores = (mapped.view(runs, heads, 1, d, contexts) * x[:, None]).sum(dim=3)
        reads = (scores.softmax(dim=2)[:, :, :, None] * x[:, None]).sum(dim=2)  # A^h(t), (runs, heads, d, contexts)
        outputs = (weights["output"] @ weights["value"]) * head_mask[:, :, None, None]  # W_O^h W_V^h
        hidden = last + outputs.transpose(1, 2).reshape(runs, d, heads * d) @ reads.reshape(runs, heads * d, contexts)
    if unit_mask.shape[1]:
        hidden = hidden + weights["leave"].transpose(1, 2) @ (
            functional.gelu(weights["enter"] @ hidden) * unit_mask[..., None]
        )
    return weights["unembedding"] @ hidden
