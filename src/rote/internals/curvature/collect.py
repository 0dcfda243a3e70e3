"""K-FAC factors of linear maps: A from their inputs, G from the gradients at their outputs, one matrix product each.

    A = (1/N) sum_t a_t a_t^T  [q, q]        G = (1/N) sum_t g_t g_t^T  [p, p]        uncentred, undamped, float32

g_t is the gradient of the *summed* cross-entropy, so G lacks the factor 1/(tokens per batch)^2 that a mean loss puts
in; within one layer a factor changes nothing, and batches of different sizes now weigh every position alike.

Only the lower triangle of a large factor is computed. Maps that read the very same tensor (a gate and an up
projection) share one A. Knows nothing about: spectra, edits.
Source: Merullo et al. 2025, arXiv 2510.24256; Martens and Grosse 2015, arXiv 1503.05671.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from rote.errors import RoteError
from rote.internals.curvature.factors import FactorSet, LayerFactors, weights_fingerprint
from rote.internals.curvature.layers import MatrixLayer, select_matrices
from rote.internals.curvature.passes import LABELS, Positions, causal_lm_pass, classifier_pass

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

__all__ = ["LABELS", "collect_causal_lm", "collect_classifier"]
BLOCKS, WIDE = 4, 1024  # the lower triangle as 4 block rows: 62.5 % of a full product's work, worth it from this width


def collect_causal_lm(
    model: CausalLM,
    windows: Int[np.ndarray, "windows tokens"],
    *,
    layers: Sequence[str],
    labels: str = "sampled",
    seed: int = 0,
    lengths: Int[np.ndarray, " windows"] | None = None,
    skip_first: bool = False,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FactorSet:
    """Factors of every matching layer of a causal language model, in one pass over packed windows of ordinary text.

    Args:
        windows: token ids; all positions but each window's last count. `lengths` for right-padded windows.
        layers: patterns, see `rote.internals.curvature.layers`.
        labels: "sampled" draws y from the model (the true Fisher; the paper insists on it), "gold" takes the text.
        skip_first: leave out position 0, whose activations can own the top of A.
    Raises: InputError for patterns, windows or layers that cannot be used; RoteError for logits that are not finite.
    """
    chosen = select_matrices(model.hf, layers)
    grams = _Grams(chosen)
    rows = causal_lm_pass(
        model,
        chosen,
        windows,
        grams,
        labels=labels,
        seed=seed,
        lengths=lengths,
        skip_first=skip_first,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    return FactorSet(
        layers={layer.name: grams.factors(layer, rows) for layer in chosen},
        fingerprint=model.fingerprint,
        labels=labels,
        seed=seed,
        positions="all but the first and last" if skip_first else "all but the last",
    )


def collect_classifier(
    model: nn.Module,
    inputs: Float[torch.Tensor, "examples ..."],
    *,
    layers: Sequence[str],
    labels: str = "sampled",
    gold: Int[torch.Tensor, " examples"] | None = None,
    seed: int = 0,
    passes: int = 1,
    positions: str = "all",
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> FactorSet:
    """Factors of a classifier's layers. `positions="cls"` takes only a ViT's class token (token 0), as the paper does.

    `model(inputs)` must give logits, or an object with `logits`. The other arguments and errors are
    `collect_causal_lm`'s; `passes` repeats the inputs with freshly drawn labels.
    """
    chosen = select_matrices(model, layers)
    grams = _Grams(chosen)
    classifier_pass(
        model,
        chosen,
        inputs,
        grams,
        labels=labels,
        gold=gold,
        seed=seed,
        passes=passes,
        positions=positions,
        batch_size=batch_size,
        progress=progress,
    )
    return FactorSet(
        layers={layer.name: grams.factors(layer, grams.rows[layer.name]) for layer in chosen},
        fingerprint=weights_fingerprint(model),
        labels=labels,
        seed=seed,
        positions="class token" if positions == "cls" else "all",
    )


def add_gram(total: Float[torch.Tensor, "d d"], rows: Float[torch.Tensor, "n d"]) -> None:
    """total += rows^T rows in float32, in place; of a wide matrix only the block rows up to the diagonal."""
    rows = rows.float()
    if total.shape[0] < WIDE:
        total.addmm_(rows.T, rows)
        return
    for start, stop in _block_rows(total.shape[0]):
        total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])


def mirror(total: Float[torch.Tensor, "d d"]) -> Float[torch.Tensor, "d d"]:
    """Fill in, in place, what `add_gram` left out of a symmetric matrix; returns it."""
    if total.shape[0] >= WIDE:
        for start, stop in _block_rows(total.shape[0]):
            total[:start, start:stop] = total[start:stop, :start].T
    return total


def _block_rows(d: int) -> Iterator[tuple[int, int]]:
    return pairwise(round(d * number / BLOCKS) for number in range(BLOCKS + 1))


def _same_memory(a: torch.Tensor, b: torch.Tensor, version: int) -> bool:
    """Is `a` the memory `b`, unchanged since it had this version?"""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a._version == version


class _Grams:
    """Accumulates A while the forward pass runs and G while the backward pass runs."""

    def __init__(self, layers: Sequence[MatrixLayer]):
        self.rows = dict.fromkeys((layer.name for layer in layers), 0)
        self._g = {
            layer.name: torch.zeros(layer.shape[0], layer.shape[0], device=layer.stored.device) for layer in layers
        }
        self._a: dict[str, torch.Tensor] = {}
        self._source: dict[str, str] = {}  # the layer whose A this layer's input went into
        self._last: tuple[str, torch.Tensor, int] | None = None
        self._finished: dict[str, torch.Tensor] = {}

    def begin(self, positions: Positions) -> None:
        self._positions, self._last = positions, None

    def saw_input(self, layer: MatrixLayer, a: torch.Tensor) -> None:
        # Neighbouring maps that were handed the same memory: the same input. The tensor is held until another comes,
        # so its memory cannot have been given to a different one in between.
        source = self._last[0] if self._last is not None and _same_memory(a, *self._last[1:]) else layer.name
        if self._source.setdefault(layer.name, source) != source:
            raise RoteError(f"layer {layer.name} does not read the same input in every pass; choose other layers")
        rows = self._positions.of(a, layer.name)
        self.rows[layer.name] += rows.shape[0] * rows.shape[1]
        if source != layer.name:
            return
        self._last = (layer.name, a, a._version)
        if layer.name not in self._a:
            self._a[layer.name] = torch.zeros(a.shape[-1], a.shape[-1], device=a.device)
        add_gram(self._a[layer.name], rows.flatten(0, 1))

    def saw_gradient(self, layer: MatrixLayer, g: torch.Tensor) -> None:
        add_gram(self._g[layer.name], self._positions.of(g, layer.name).flatten(0, 1))

    def factors(self, layer: MatrixLayer, rows: int) -> LayerFactors:
        source = self._source[layer.name]
        if source not in self._finished:
            self._finished[source] = mirror(self._a.pop(source)).div_(rows)
        return LayerFactors(A=self._finished[source], G=mirror(self._g.pop(layer.name)).div_(rows), rows=rows)
