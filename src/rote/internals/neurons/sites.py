"""Where activations live in a causal language model, and how to read or change them there.

    resid_post   residual stream after block l                  [S, d]
    mlp_hidden   MLP after its nonlinearity: a_l, the input of the down projection (Llama: act(gate) * up)   [S, d_ff]
    mlp_out      output of the MLP, before any norm that follows it                     [S, d]
    attn_out     output of the attention module, after its output matrix                [S, d]
    attn_heads   what the heads hand to the output matrix, concatenated                 [S, heads * d_head]

Modules are found by the names the families of transformers use (GPT-2, GPT-NeoX, GPT-J, Llama and its likes, OPT,
OLMo 2, Gemma 2, Falcon, Phi, Bloom, ...), and the place is refused with what there is when they are not.

Knows nothing about: labels, probes, texts. Source of the inventory: DeepPeek's hooks (Slonski 2024, arXiv 2412.01014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import nn

from rote.errors import InputError

SITES = ("resid_post", "mlp_hidden", "mlp_out", "attn_out", "attn_heads")
_DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "output_linear")
_HEADS_OUT = ("o_proj", "c_proj", "out_proj", "dense", "wo")
#: Reads an activation; returning a tensor puts that in its place.
Touch = Callable[[Float[torch.Tensor, "batch length width"]], Any]


class Place(NamedTuple):
    """One site of one layer (counted from 0)."""

    site: str
    layer: int


@dataclass(frozen=True)
class _Anchor:
    module: nn.Module
    before: bool  # the activation is the module's input


def blocks(hf: nn.Module) -> nn.ModuleList:
    """The transformer blocks, in order. Raises InputError when the model does not keep them in one list."""
    config: Any = getattr(hf, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = getattr(config, "num_hidden_layers", None)
    for _, module in hf.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and len(module) > 0:
            return module
    raise InputError(f"{type(hf).__name__}: no list of {count} transformer blocks found; activations cannot be hooked")


def parse_places(hf: nn.Module, sites: Sequence[str] | str, layers: Sequence[int] | int | str) -> list[Place]:
    """Every (site, layer) asked for; `layers="all"` is every block, negative numbers count from the end.

    Raises InputError for a site or layer that does not exist (it lists what there is).
    """
    sites = [sites] if isinstance(sites, str) else list(sites)
    for site in sites:
        if site not in SITES:
            raise InputError(f"unknown site {site!r}; there are: {', '.join(SITES)}")
    count = len(blocks(hf))
    if isinstance(layers, str):
        if layers != "all":
            raise InputError(f"layers must be 'all' or numbers from 0 to {count - 1}, not {layers!r}")
        chosen = list(range(count))
    else:
        chosen = [layers] if isinstance(layers, int) else [int(layer) for layer in layers]
    wrong = [layer for layer in chosen if not -count <= layer < count]
    if wrong or not chosen or not sites:
        named = f"no layer {wrong[0]}" if wrong else "no site or layer was named"
        raise InputError(f"{named}; the model has layers 0 to {count - 1} and the sites {', '.join(SITES)}")
    return [Place(site, layer % count) for site in sites for layer in chosen]


def attach(hf: nn.Module, place: Place, touch: Touch) -> torch.utils.hooks.RemovableHandle:
    """Call `touch(activation)` at every forward pass; the caller removes the handle.

    The activation is handed over as the module has it; OPT flattens (batch, length) before its MLP.
    """
    anchor = _locate(hf, place)
    if anchor.before:

        def before(module, arguments):
            changed = touch(arguments[0])
            return None if changed is None else (changed, *arguments[1:])

        return anchor.module.register_forward_pre_hook(before)

    def after(module, arguments, output):
        inside = isinstance(output, tuple)
        changed = touch(output[0] if inside else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if inside else changed

    return anchor.module.register_forward_hook(after)


def output_matrix(
    hf: nn.Module, layer: int
) -> tuple[Float[torch.Tensor, "d_ff width"], Float[torch.Tensor, " width"] | None]:
    """(W_out, b) of a block's MLP, oriented so that mlp_out = a W_out + b, whatever way the module stores it."""
    from transformers.pytorch_utils import Conv1D

    down: Any = _locate(hf, Place("mlp_hidden", layer)).module
    weight = down.weight.detach()
    bias = getattr(down, "bias", None)
    return (weight if isinstance(down, Conv1D) else weight.T), (None if bias is None else bias.detach())


def _locate(hf: nn.Module, place: Place) -> _Anchor:
    block = blocks(hf)[place.layer]
    if place.site == "resid_post":
        return _Anchor(block, before=False)
    if place.site in ("attn_out", "attn_heads"):
        attention = _child(block, ("attn", "attention"))
        if attention is None:
            raise _no(place, block, "attention module")
        if place.site == "attn_out":
            return _Anchor(attention, before=False)
        return _Anchor(_only(attention, _HEADS_OUT, place), before=True)
    mlp = _child(block, ("mlp", "feed_forward", "ffn"))
    if mlp is None and hasattr(block, "fc2"):  # OPT keeps fc1 and fc2 in the block itself
        return _Anchor(block.fc2, before=place.site == "mlp_hidden")  # pyright: ignore[reportArgumentType]
    if mlp is None:
        raise _no(place, block, "MLP")
    return _Anchor(mlp, before=False) if place.site == "mlp_out" else _Anchor(_only(mlp, _DOWN, place), before=True)


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The block's own part with such a name that holds weight matrices (a norm has vectors only)."""
    for name, child in block.named_children():
        wanted = any(part in name.lower() for part in names) and "cross" not in name.lower()
        if wanted and any(parameter.dim() >= 2 for parameter in child.parameters()):
            return child
    return None


def _only(parent: nn.Module, names: tuple[str, ...], place: Place) -> nn.Module:
    found = [module for name, module in parent.named_modules() if name.rpartition(".")[2] in names]
    if len(found) > 1:
        raise InputError(
            f"{place.site} of layer {place.layer}: {type(parent).__name__} has {len(found)} output matrices (a mixture"
            " of experts?), so a token has no single vector there; use resid_post, mlp_out or attn_out"
        )
    if not found:
        raise _no(place, parent, f"output matrix (one of {', '.join(names)})")
    return found[0]


def _no(place: Place, parent: nn.Module, what: str) -> InputError:
    there = ", ".join(name for name, _ in parent.named_children()) or "nothing"
    return InputError(
        f"{place.site} of layer {place.layer}: {type(parent).__name__} has no {what} known here (it has: {there});"
        " use resid_post"
    )
