"""Which weight matrices of a model are meant: patterns to modules, one orientation for all, and what must be refused.

A pattern is a module's full name with shell wildcards and braces: `model.layers.{23,24,25}.mlp.{gate,up}_proj`,
`transformer.h.{8..11}.mlp.c_fc`, `*.mlp.down_proj` (a star crosses dots). A pattern that matches no full name may match
from any dot on: `layers.2[345].mlp.*`. W is always W[out, in], as in y = W x + b; GPT-2's Conv1D stores the transpose
and is turned here, so that nobody else has to remember.

Knows nothing about: curvature, tokens, edits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from rote.errors import InputError

# Several matrices stacked into one by some architectures. Their shared factors would mix unrelated outputs.
FUSED = re.compile(r"qkv|kv_proj|kv_b_proj|c_attn|query_key_value|gate_up|up_gate|in_proj|w_pack", re.IGNORECASE)
_QUANTISED = re.compile(r"quant|[48]bit|gptq|awq|fp8|bitnet", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
DEEP = 12  # from this many blocks on, the paper's choice of layers applies; below, the card's pilot on 3 blocks


@dataclass(frozen=True)
class MatrixLayer:
    """One linear map of a model. `transposed`: the module stores W^T (Conv1D)."""

    name: str
    module: nn.Module
    transposed: bool

    @property
    def stored(self) -> nn.Parameter:
        """The module's own parameter, in its own orientation."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def weight(self) -> Float[torch.Tensor, "out in"]:
        """W as y = W x + b has it: a view of the module's own memory, detached."""
        return self.stored.detach().T if self.transposed else self.stored.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """(p, q) = (outputs, inputs)."""
        p, q = self.weight.shape
        return p, q


def expand_braces(pattern: str) -> list[str]:
    """`a.{1,3}.{x,y}` -> a.1.x, a.1.y, a.3.x, a.3.y; `{8..11}` counts. Braces do not nest. Errors: InputError."""
    found = _BRACES.search(pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise InputError(f"layer pattern {pattern!r}: a brace is not closed, or braces are nested")
        return [pattern]
    choices = []
    for part in found.group(1).split(","):
        counted = _RANGE.fullmatch(part.strip())
        choices += map(str, range(int(counted[1]), int(counted[2]) + 1)) if counted else [part.strip()]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [whole for choice in choices for whole in expand_braces(f"{before}{choice}{after}")]


def select_matrices(model: nn.Module, patterns: Sequence[str]) -> tuple[MatrixLayer, ...]:
    """The linear maps that match any of the patterns, in the model's own order.

    Args:
        model: any module; `nn.Linear` and transformers' `Conv1D` below it can be selected.
        patterns: see the head of this file. Each must match something.
    Raises: InputError for a pattern that matches nothing (it lists what there is), and for a match that cannot be
        treated as one matrix of its own: quantised, LoRA-wrapped, parametrised, tied to another module, fused from
        several matrices, or the output head.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    if not patterns:
        raise InputError(f"no layers were named; there are: {_listing(model)}")
    if getattr(model, "is_quantized", False) or getattr(getattr(model, "config", None), "quantization_config", None):
        raise InputError(
            "the model's weights are quantised: its matrices cannot be analysed or edited as they are; "
            "load the original checkpoint in float32 or bfloat16"
        )
    known = dict(_linear_maps(model))
    chosen: set[str] = set()
    for pattern in patterns:
        for single in expand_braces(pattern):
            hits = [name for name in known if fnmatchcase(name, single)]
            hits = hits or [name for name in known if any(fnmatchcase(end, single) for end in _ends(name))]
            if not hits:
                raise InputError(f"layer pattern {single!r} matches no linear map; there are: {_listing(model)}")
            chosen.update(hits)
    shared = _shared_parameters(model)
    output = getattr(model, "get_output_embeddings", None)
    head = output() if callable(output) else None
    return tuple(_checked(name, module, shared, head) for name, module in known.items() if name in chosen)


def default_layers(model: nn.Module) -> tuple[str, ...]:
    """MLP projections of the later part of the network: where recitation depends on the weights most.

    From 12 blocks on: three blocks from block round(0.72 n) of n (23, 24, 25 of 32), and of their MLP only the maps
    from the hidden size up (gate and up, or the first of two): the paper's own choice for OLMo-2 7B, at the same
    relative depth. Below 12 blocks: all MLP maps of the later half, as in the card's pilot on 3 blocks [inferred].
    Maps are recognised by shape (one side is the hidden size) and by not being attention's.

    Raises InputError when the model has no such maps; name the layers then.
    Source: Merullo et al. 2025, arXiv 2510.24256, their setting for OLMo-2 7B.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    width, blocks = getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None)
    found: dict[int, list[tuple[str, bool]]] = {}
    for name, module in _linear_maps(model):
        place = re.search(r"\.(\d+)\.", name)
        if place is None or "attn" in name or "attention" in name:
            continue
        p, q = _shape(module)
        if (q == width and p > q) or (p == width and q > p):
            found.setdefault(int(place[1]), []).append((name, p > q))
    if not blocks or not found:
        raise InputError(f"cannot tell which layers are the MLP's; name them. There are: {_listing(model)}")
    if blocks >= DEEP:
        first = min(round(0.72 * blocks), blocks - 3)
        later = [name for block in range(first, first + 3) for name, upwards in found.get(block, ()) if upwards]
    else:
        later = [name for block in range(blocks // 2, blocks) for name, _ in found.get(block, ())]
    if not later:
        raise InputError(f"the later blocks hold no MLP maps; name the layers. There are: {_listing(model)}")
    return tuple(later)


def _ends(name: str) -> list[str]:
    """a.b.c -> b.c, c."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]


def _linear_maps(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Everything that is a linear map by its nature, usable or not: what is not must be refused by name, not missed."""
    from transformers.pytorch_utils import Conv1D

    inside = ""
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        wraps = hasattr(module, "base_layer")  # peft's LoRA layers wrap the original
        kind = f"{type(module).__module__}.{type(module).__name__}"
        if isinstance(module, nn.Linear | Conv1D) or wraps or (_QUANTISED.search(kind) and "inear" in kind):
            if wraps:
                inside = f"{name}."
            yield name, module


def _checked(name: str, module: nn.Module, shared: dict[int, list[str]], head: object) -> MatrixLayer:
    def refuse(what: str) -> InputError:
        return InputError(f"layer {name}: {what}")

    if hasattr(module, "base_layer"):
        return_to = "merge it into the model first (peft: merge_and_unload) and treat the merged checkpoint"
        raise refuse(f"it is wrapped by an adapter (LoRA); {return_to}")
    weight = getattr(module, "weight", None)
    quantised = _QUANTISED.search(f"{type(module).__module__}.{type(module).__name__}")
    if quantised or not isinstance(weight, torch.Tensor) or weight.dtype.itemsize < 2 or not weight.is_floating_point():
        raise refuse("its weight is quantised; load the original checkpoint in float32 or bfloat16")
    if hasattr(module, "parametrizations") or not isinstance(weight, nn.Parameter):
        raise refuse("its weight is computed from other parameters (parametrised); remove the parametrisation first")
    if module is head:
        raise refuse("it is the output head; its factor would be vocabulary x vocabulary. Choose layers below it")
    others = [other for other in shared.get(id(weight), ()) if other != f"{name}.weight"]
    if others:
        raise refuse(f"its weight is tied to {others[0]}: an edit of one would silently edit the other")
    if FUSED.search(name.rpartition(".")[2]):
        raise refuse(
            "it is several matrices in one (fused q, k, v or gate and up), and one pair of factors would mix them; "
            "choose layers that are matrices of their own, such as the MLP's down projection"
        )
    return MatrixLayer(name, module, transposed=not isinstance(module, nn.Linear))


def _shape(module: nn.Module) -> tuple[int, int]:
    """(outputs, inputs), also of layers that cannot be used; (0, 0) where there is no plain weight to tell."""
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return 0, 0
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, nn.Linear) or hasattr(module, "base_layer") else (columns, rows)


def _shared_parameters(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _listing(model: nn.Module) -> str:
    """The linear maps' names with block numbers folded: model.layers.{0..31}.mlp.up_proj, ..."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for name, _ in _linear_maps(model):
        before, number, after = re.fullmatch(r"(.*?)(?:\b(\d+)\b(.*))?", name).groups()  # type: ignore[union-attr]
        numbers.setdefault((before, after if number else ""), []).extend([int(number)] if number else [])
    folded = [
        f"{before}{{{min(found)}..{max(found)}}}{after or ''}"
        if len(found) > 1
        else f"{before}{found[0]}{after or ''}"
        if found
        else before
        for (before, after), found in numbers.items()
    ]
    return ", ".join(folded) if folded else "none (the model has no linear maps)"
