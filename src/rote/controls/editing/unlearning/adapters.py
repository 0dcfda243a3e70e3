"""LoRA through peft: put adapters into a model, switch them off for the reference, write them into the weights.

Knows nothing about: losses, records.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from rote.controls.editing.unlearning.objectives import decoder_layers
from rote.controls.editing.unlearning.settings import LoraSettings, TrainerSettings
from rote.errors import InputError, MissingDependencyError
from rote.runtime import derive_seed


def add_lora(hf: nn.Module, lora: LoraSettings, trainer: TrainerSettings, *, seed: int = 0) -> Any:
    """Put adapters into the linear layers of `hf`, in place; returns peft's model, whose `disable_adapter()` is the
    start model. A is drawn from `seed`; B is 0, so nothing changes before the first step.

    Errors: MissingDependencyError without peft; `InputError` for names that match no layer, or `parameters` (which name
    weights, not adapters).
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise MissingDependencyError("peft", "peft") from None
    if trainer.parameters is not None:
        raise InputError("LoRA trains adapters, not weights by name: use LoraSettings.target_modules or layers")
    layers = trainer.layers
    if layers is not None:
        depth = len(decoder_layers(hf))
        for layer in layers:
            if not 0 <= layer < depth:
                raise InputError(f"there is no decoder layer {layer}: the model has layers 0 .. {depth - 1}")
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=0.0,
        target_modules="all-linear" if lora.target_modules is None else list(lora.target_modules),
        layers_to_transform=None if layers is None else list(layers),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it for GPT-2's Conv1D, and says so
        torch.manual_seed(derive_seed(seed, "lora") % 2**63)
        try:
            return get_peft_model(hf, config)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            kinds = sorted({name.rpartition(".")[2] for name, m in hf.named_modules() if _is_linear(m)})
            raise InputError(
                f"LoRA cannot be put into this model ({str(error).splitlines()[0][:120]}); "
                f"its linear layers are: {', '.join(kinds)}"
            ) from error


def remove_lora(adapters: Any, *, merge: bool) -> nn.Module:
    """The plain model again: with the adapters written into its weights, or thrown away."""
    return adapters.merge_and_unload() if merge else adapters.unload()


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
