"""Round-to-nearest quantisation of weights, simulated in floating point: does unlearning survive 8 or 4 bits?

For a matrix W with one row an output channel, cut into groups of `group_size` inputs (None: the whole row):

    s = max |w| / (2^(bits-1) - 1) over the group      q = round(w / s) in [-(2^(bits-1) - 1), 2^(bits-1) - 1]
    W' = s q                                            |W' - W| <= s / 2

Gentle unlearning moves weights by less than half a step s, so rounding maps the unlearned and the original weight to
the same value (Zhang et al. 2024, arXiv 2410.16454). Symmetric, no calibration data, no packed storage: it answers what
a user's quantised copy would say, not how fast it is.
Knows nothing about: records, measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rote.controls.editing.unlearning.methods import weights_changed
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM


def fake_quantise(
    weight: Float[Tensor, "outputs inputs"], *, bits: int = 4, group_size: int | None = None
) -> Float[Tensor, "outputs inputs"]:
    """W' = s round(W / s), per output channel or per group of `group_size` inputs (the last group may be shorter).

    Rounds half to even. Computed in float32, returned in the weight's type. All-zero groups stay zero.
    Errors: `InputError` for bits outside 2 .. 8 or a group size below 1.
    """
    if not 2 <= bits <= 8:
        raise InputError(f"quantisation to {bits} bits is not offered; use 2 to 8")
    if group_size is not None and group_size < 1:
        raise InputError(f"a quantisation group needs at least 1 weight, not {group_size}")
    levels = 2 ** (bits - 1) - 1
    rows, columns = weight.shape
    size = columns if group_size is None else min(group_size, columns)
    padding = -columns % size
    # Zeros at the end do not change a group's largest absolute value.
    groups = nn.functional.pad(weight.float(), (0, padding)).view(rows, -1, size)
    scale = groups.abs().amax(-1, keepdim=True) / levels
    rounded = torch.where(scale > 0, (groups / scale).round().clamp(-levels, levels) * scale, 0.0)
    return rounded.view(rows, -1)[:, :columns].to(weight.dtype)


@contextmanager
def quantised(model: CausalLM, *, bits: int = 4, group_size: int | None = None) -> Iterator[CausalLM]:
    """The model with every linear layer of its body fake-quantised; its own weights return at the end of the block.

    Embeddings, norms, biases and the output head stay as they are, as the common 4-bit loaders leave them.
    """
    kept: list[tuple[nn.Parameter, Tensor]] = []
    fingerprint = model.fingerprint
    try:
        with torch.no_grad():
            for weight, inputs_first in linear_weights(model.hf):
                kept.append((weight, weight.detach().clone()))
                matrix = weight.T if inputs_first else weight
                matrix.copy_(fake_quantise(matrix, bits=bits, group_size=group_size))
        weights_changed(model)
        yield model
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
        weights_changed(model)
        model.fingerprint = fingerprint  # a checkpoint's own, where it came from files


def linear_weights(hf: nn.Module) -> list[tuple[nn.Parameter, bool]]:
    """(weight, is it stored inputs x outputs) of every linear layer but the head: `nn.Linear`, and GPT-2's Conv1D."""
    head = hf.get_output_embeddings()  # pyright: ignore
    tied = {id(module.weight) for module in (head, hf.get_input_embeddings()) if module is not None}  # pyright: ignore
    modules = [module for module in hf.modules() if isinstance(module, nn.Linear) or _is_conv1d(module)]
    found = [(module.get_parameter("weight"), _is_conv1d(module)) for module in modules]
    return [(weight, transposed) for weight, transposed in found if id(weight) not in tied]


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
