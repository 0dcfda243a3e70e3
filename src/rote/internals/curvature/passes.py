"""One pass over data that shows, for chosen linear maps, every input a_t and every output gradient g_t, and keeps none.

No weight gradient is ever made: the weights are frozen, and the graph begins at the lowest chosen map, so the backward
pass goes no deeper than it must. Inputs are handed on while the forward pass runs, gradients while the backward pass
runs; nothing is stored here.

Knows nothing about: what is made of inputs and gradients.
Source: Merullo et al. 2025, arXiv 2510.24256 (their collection: hooks before and after, dropout off).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from rote.errors import InputError, RoteError
from rote.internals.curvature.labels import score_gradient
from rote.internals.curvature.layers import MatrixLayer
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

LABELS = ("sampled", "gold")
POSITIONS = ("all", "cls")
MOST_TOKENS = {"cpu": 4_096, "cuda": 16_384, "mps": 8_192}  # positions in one batch
LOGIT_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30, "mps": 512 << 20}  # float32 logits of one batch


@dataclass(frozen=True)
class Positions:
    """Which positions of a batch count. A layer's tensor is (batch, tokens, d), or (batch * tokens, d) in some
    architectures; what comes back is always (batch, positions, d), with zeros where `keep` is False."""

    batch: int
    tokens: int | None  # None: whatever the layer shows (one, for a plain classifier)
    part: slice
    keep: Bool[torch.Tensor, "batch tokens"] | None = None

    def of(self, tensor: torch.Tensor, layer: str) -> Float[torch.Tensor, "batch positions d"]:
        seen = tensor.numel() // tensor.shape[-1]
        tokens = seen // self.batch if self.tokens is None else self.tokens
        if seen != self.batch * tokens:
            raise InputError(
                f"layer {layer} sees {seen:,} rows, the batch has {self.batch * tokens:,} positions: it is not applied"
                " to every position (a mixture of experts?), so its factors cannot be told; choose other layers"
            )
        rows = tensor.reshape(self.batch, tokens, -1)[:, self.part]
        return rows if self.keep is None else rows * self.keep[:, self.part, None].to(rows)


class Watcher(Protocol):
    """What looks at a pass."""

    def begin(self, positions: Positions) -> None: ...
    def saw_input(self, layer: MatrixLayer, a: torch.Tensor) -> None: ...
    def saw_gradient(self, layer: MatrixLayer, g: torch.Tensor) -> None: ...


@contextmanager
def watching(layers: Sequence[MatrixLayer], watcher: Watcher, *, gradients: bool = True) -> Iterator[None]:
    """Hooks on the layers, removed at the end. With `gradients`, an output that needs none yet becomes a leaf of the
    graph (a copy of it goes on, so that a following in-place operation is allowed)."""
    calls: dict[str, int] = {}

    def before(layer: MatrixLayer):
        def hook(module: nn.Module, arguments: tuple) -> None:
            watcher.saw_input(layer, arguments[0].detach())

        return hook

    def after(layer: MatrixLayer):
        def hook(module: nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
            if not output.requires_grad:
                output = output.requires_grad_(True).clone()
            calls[layer.name] = 0

            def take(g: torch.Tensor) -> None:
                calls[layer.name] += 1
                if calls[layer.name] > 1:
                    raise InputError(f"layer {layer.name} is used more than once in a pass; its factors would be mixed")
                watcher.saw_gradient(layer, g.detach())

            output.register_hook(take)
            return output

        return hook

    handles = [layer.module.register_forward_pre_hook(before(layer)) for layer in layers]
    if gradients:
        handles += [layer.module.register_forward_hook(after(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter asks for a gradient; afterwards everything is as it was."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = model.training
    try:
        model.eval()
        for parameter in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
        model.train(training)


def causal_lm_pass(
    model: CausalLM,
    layers: Sequence[MatrixLayer],
    windows: Int[np.ndarray, "windows tokens"],
    watcher: Watcher,
    *,
    labels: str = "sampled",
    seed: int = 0,
    lengths: Int[np.ndarray, " windows"] | None = None,
    skip_first: bool = False,
    batch_tokens: int | None = None,
    gradients: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Show the watcher every position but the last of every window; returns the number of positions shown.

    The last token of a window is never fed: it would only predict what is not there, and a causal model's earlier
    positions do not see it. Labels are drawn with one uniform number per (window, position) from `seed`, so the batch
    size changes nothing. `lengths`: true lengths of right-padded windows; padding counts nowhere. `skip_first` leaves
    out position 0, whose activations (the attention sink) can own the top of A. `progress(done, total)` in windows.
    Raises InputError for other labels or wrong shapes; RoteError for logits that are not finite.
    """
    check_labels(labels)
    windows = np.asarray(windows)
    if windows.ndim != 2 or windows.shape[1] < 2 or not len(windows):
        raise InputError(f"windows must be a matrix (windows, tokens) with 2 tokens or more, got shape {windows.shape}")
    if lengths is not None and (np.shape(lengths) != (len(windows),) or np.min(lengths) < 2):
        raise InputError("lengths must give every window's own number of tokens, 2 or more each")
    tokens = windows.shape[1] - 1
    uniform = np.random.default_rng(derive_seed(seed, "labels")).random((len(windows), tokens), dtype=np.float32)
    step = max(1, (batch_tokens or _most_tokens(model)) // tokens)
    part = slice(1, None) if skip_first else slice(None)
    shown = 0
    with frozen(model.hf), watching(layers, watcher, gradients=gradients):
        for start in range(0, len(windows), step):
            ids = torch.from_numpy(windows[start : start + step].astype(np.int64)).to(model.device)
            keep = None
            if lengths is not None:
                true = torch.from_numpy(np.asarray(lengths[start : start + step])).to(ids.device)
                keep = torch.arange(tokens, device=ids.device)[None] < (true - 1)[:, None]
            watcher.begin(Positions(len(ids), tokens, part, keep))
            with torch.set_grad_enabled(gradients):
                logits = model.hf(input_ids=ids[:, :-1], use_cache=False).logits
            if gradients:
                flat = logits.detach().flatten(0, 1)
                if labels == "sampled":
                    gradient = score_gradient(
                        flat, uniform=torch.from_numpy(uniform[start : start + step]).flatten().to(flat.device)
                    )
                else:
                    gradient = score_gradient(flat, gold=ids[:, 1:].flatten().to(flat.device))
                gradient = gradient.view_as(logits)
                _backward(logits, gradient if keep is None else gradient * keep[..., None].to(gradient))
            shown += int(keep[:, part].sum()) if keep is not None else len(ids) * (tokens - skip_first)
            if progress:
                progress(min(start + step, len(windows)), len(windows))
    return shown


def classifier_pass(
    model: nn.Module,
    layers: Sequence[MatrixLayer],
    inputs: Float[torch.Tensor, "examples ..."],
    watcher: Watcher,
    *,
    labels: str = "sampled",
    gold: Int[torch.Tensor, " examples"] | None = None,
    seed: int = 0,
    passes: int = 1,
    positions: str = "all",
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """The same for a classifier: `model(inputs)` gives logits (examples, classes), or an object with `logits`.

    `positions`: "all" rows a layer sees, or "cls", only the first token of each example (a ViT's class token).
    `passes` repeats the data with fresh labels. Returns the number of examples shown.
    """
    check_labels(labels)
    if positions not in POSITIONS:
        raise InputError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
    if labels == "gold" and gold is None:
        raise InputError("labels='gold' needs the gold labels of the inputs")
    if not len(inputs) or passes < 1:
        raise InputError("curvature needs at least one example and one pass")
    part = slice(0, 1) if positions == "cls" else slice(None)
    total, done = len(inputs) * passes, 0
    with frozen(model), watching(layers, watcher):
        for number in range(passes):
            uniform = torch.from_numpy(
                np.random.default_rng(derive_seed(seed, "labels", number)).random(len(inputs), dtype=np.float32)
            )
            for start in range(0, len(inputs), batch_size):
                chosen = slice(start, start + batch_size)
                batch = inputs[chosen]
                watcher.begin(Positions(len(batch), None, part))
                with torch.enable_grad():
                    logits: Any = model(batch)
                logits = getattr(logits, "logits", logits)
                if logits.dim() != 2:
                    raise InputError(f"a classifier's logits are (examples, classes), got shape {tuple(logits.shape)}")
                if labels == "sampled":
                    gradient = score_gradient(logits, uniform=uniform[chosen].to(logits.device))
                else:
                    assert gold is not None
                    gradient = score_gradient(logits, gold=gold[chosen].to(logits.device))
                _backward(logits, gradient)
                done += len(batch)
                if progress:
                    progress(done, total)
    return done


def _backward(logits: torch.Tensor, gradient: torch.Tensor) -> None:
    if not logits.requires_grad:
        raise InputError("the chosen layers do not influence the output; choose other layers")
    if not bool(torch.isfinite(gradient).all()):
        raise RoteError("the model gave NaN or infinite logits; is the checkpoint damaged? try float32")
    logits.backward(gradient)


def check_labels(labels: str) -> None:
    """Refuse, with an InputError, another kind of labels."""
    if labels not in LABELS:
        raise InputError(f"labels must be one of {', '.join(LABELS)}, not {labels!r}")


def _most_tokens(model: CausalLM) -> int:
    kind = model.device.type
    return min(MOST_TOKENS.get(kind, 4_096), LOGIT_BYTES.get(kind, 256 << 20) // (4 * model.vocab_size))
