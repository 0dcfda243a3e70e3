"""Per-record gradient norms: how far one record would still move each parameter tensor.

One backward pass a record; each tensor's norm is taken the moment its gradient is complete and the gradient is freed at
once, so memory above the forward pass is one tensor's gradient. Weights tied between embedding and head are one tensor.

Knows nothing about: the score made of it (`rote.measures.membership.gradient_norm`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64, Int

from rote.errors import InputError, RoteError
from rote.scores.sequences import BLOCK, Split, prepare

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

ORDERS = (1.0, 2.0, math.inf)


@dataclass(frozen=True)
class GradientNorms:
    """norms[i, j] = ||d L(x_i) / d theta_j||_p for parameter tensor `names[j]`."""

    index: Int[np.ndarray, " records"]
    names: tuple[str, ...]
    norms: Float64[np.ndarray, "records tensors"]
    order: float

    @property
    def mean(self) -> Float64[np.ndarray, " records"]:
        """Mean over parameter tensors: small for records the model has fitted."""
        return self.norms.mean(axis=1)


def gradient_norms(
    model: CausalLM,
    records: RecordTable,
    *,
    order: float = 2.0,
    parameters: str | None = None,
    split: Split | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GradientNorms:
    """||grad_theta L(x)||_p per record and parameter tensor, L(x) = -(1/T) sum_t log p(x_t | x_<t), in evaluation mode.

    `order` p is 1, 2 or inf. `parameters` is a regular expression searched for in tensor names (None: all); a subset
    shortens the backward pass when it lies near the output. Weights, gradients and `requires_grad` of the model are
    left as found. Norms are taken in float32 whatever the model's precision.
    Raises InputError for another order or a pattern that names no tensor; RoteError for a non-finite gradient.
    Source: Wang et al. 2024, arXiv 2402.17012 (gradient norm attack); Duan et al. 2024, arXiv 2402.07841.
    """
    if order not in ORDERS:
        raise InputError(f"the order of a gradient norm is 1, 2 or inf, not {order}")
    prepared = prepare(model, records, split)
    rows = np.sort(prepared.order)
    chosen = _chosen(model, parameters)
    norms = np.zeros((len(rows), len(chosen)))
    done = 0
    with _collecting(model, chosen, order) as collected:
        for start in range(0, len(rows), BLOCK):
            for sequence in prepared.sequences(rows[start : start + BLOCK]):
                collected.clear()
                ids = sequence.ids if model.bos_id is None else [model.bos_id, *sequence.ids]
                _loss(model, torch.tensor([ids], device=model.device)).backward()
                # A tensor the loss does not depend on has gradient zero.
                norms[done] = [float(collected.get(name, 0.0)) for name in chosen]
                if not np.isfinite(norms[done]).all():
                    raise RoteError(
                        f"record row {sequence.index} gives a gradient that is not finite; try --dtype float32"
                    )
                done += 1
                if progress:
                    progress(done, len(rows))
    return GradientNorms(rows, tuple(chosen), norms, float(order))


def _loss(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        logits = model.hf(input_ids=ids, use_cache=False).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:])


def _chosen(model: CausalLM, pattern: str | None) -> dict[str, torch.nn.Parameter]:
    named = dict(model.hf.named_parameters())
    if pattern is None:
        return named
    try:
        found = {name: parameter for name, parameter in named.items() if re.search(pattern, name)}
    except re.error as error:
        raise InputError(f"parameters: {pattern!r} is not a regular expression ({error})") from None
    if not found:
        raise InputError(
            f"parameters: no tensor's name contains {pattern!r}; there is, for example, {next(iter(named))}"
        )
    return found


@contextmanager
def _collecting(model: CausalLM, chosen: dict[str, torch.nn.Parameter], order: float):
    """Hooks that turn each finished gradient into its norm; afterwards the model is as it was."""
    collected: dict[str, torch.Tensor] = {}
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.hf.parameters()}
    training = model.hf.training
    handles = []

    def hook(name: str):
        def take(parameter: torch.nn.Parameter) -> None:
            collected[name] = torch.linalg.vector_norm(parameter.grad, ord=order, dtype=torch.float32)
            parameter.grad = None

        return take

    try:
        model.hf.eval()
        for parameter in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for name, parameter in chosen.items():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(hook(name)))
        yield collected
    finally:
        for handle in handles:
            handle.remove()
        for parameter, (required, gradient) in before.items():
            parameter.requires_grad_(required)
            parameter.grad = gradient
        model.hf.train(training)
