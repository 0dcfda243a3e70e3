"""The same activation functions by PyTorch's own fused kernel.

GPT-2, GPT-Neo and others name `gelu_new` or `gelu_fast`, which transformers composes of eight elementwise operations,
each a pass over memory. Both are

    gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))),

which `torch.nn.functional.gelu(x, approximate="tanh")` computes in one (Hendrycks and Gimpel 2016, arXiv 1606.08415,
section 2); the values differ by rounding only. Knows nothing about: which model it is in.
"""

from __future__ import annotations

from typing import Any


def fuse_activations(hf: Any) -> int:
    """Replace every composed tanh-GELU module inside `hf` by the fused one; returns how many were replaced.

    The configuration is left as it is, and such modules have no parameters: a checkpoint saved afterwards is the same.
    """
    import torch
    from transformers.activations import FastGELUActivation, NewGELUActivation

    replaced = 0
    for module in list(hf.modules()):
        for name, child in module.named_children():
            if type(child) in (NewGELUActivation, FastGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
                replaced += 1
    return replaced
