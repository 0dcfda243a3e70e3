"""Task vectors: unlearning as arithmetic on weights, and the same idea on logits.

    v = theta_ft - theta       theta_ft over-fits the forget set, from theta
    theta' = theta - a v       a = 0 changes nothing; adding a v back restores theta

Source: Ilharco et al. 2022, arXiv 2212.04089; as an unlearning baseline: Shi et al. 2024 (MUSE), arXiv 2407.06460.
Knows nothing about: how theta_ft was trained, records.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rote.errors import InputError

TaskVector = dict[str, Tensor]


def weights_of(hf: nn.Module) -> TaskVector:
    """A copy of every parameter by name (tied ones once)."""
    return {name: parameter.detach().clone() for name, parameter in hf.named_parameters()}


def task_vector(tuned: nn.Module, start: Mapping[str, Tensor]) -> TaskVector:
    """v = theta_ft - theta, in float32, by parameter name. Errors: `InputError` when the two have other parameters."""
    found = {name: parameter.detach() for name, parameter in tuned.named_parameters()}
    if found.keys() != start.keys() or any(found[name].shape != start[name].shape for name in found):
        raise InputError("a task vector needs two checkpoints of one architecture: their parameters differ")
    return {name: found[name].float() - start[name].float() for name in found}


def add_task_vector(hf: nn.Module, vector: Mapping[str, Tensor], scale: float) -> None:
    """theta <- theta + scale v, in place; scale = -a unlearns. Sums are made in float32 whatever the weights' type."""
    parameters = dict(hf.named_parameters())
    unknown = [name for name in vector if name not in parameters]
    if unknown:
        raise InputError(f"the task vector has a parameter {unknown[0]} that the model lacks")
    with torch.no_grad():
        for name, difference in vector.items():
            parameter = parameters[name]
            parameter.copy_(parameter.float() + scale * difference.to(parameter.device))


def reinforced_logits(
    logits: Float[Tensor, "... vocabulary"], reinforced: Float[Tensor, "... vocabulary"], *, strength: float = 1.0
) -> Float[Tensor, "... vocabulary"]:
    """WHP: z - c relu(z_reinforced - z), z_reinforced from the model over-fitted on the forget set.

    Decode-time: what the over-fitted model likes more is pushed down, everything else stays.
    Source: Eldan & Russinovich 2023, arXiv 2310.02238 [formula as recalled, not re-read].
    """
    return logits - strength * torch.relu(reinforced - logits)
