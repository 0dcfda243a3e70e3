"""How strongly a text's activations lie in each curvature band of a layer's input space.

    strength(B) = mean_t || V_B^T x_t ||,    V_B the eigenvectors of A whose place in A's order falls into band B

Memorized text is expected to be weaker than clean text in the top band and stronger at the bottom. The paper orders
A's eigenvectors by the products of all eigenvalue pairs without spelling out how pairs become an order over j; the
column mass sum_i lam_i mu_j is proportional to mu_j, so A's own order is taken [inferred].

Knows nothing about: which text is memorized, edits.
Source: Merullo et al. 2025, arXiv 2510.24256, their analysis of activation strength by curvature band.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.internals.curvature.eigenbasis import Eigenbasis
from rote.internals.curvature.layers import MatrixLayer, select_matrices
from rote.internals.curvature.passes import Positions, causal_lm_pass

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

BANDS = {"top 10%": (0.0, 0.1), "10-25%": (0.1, 0.25), "25-50%": (0.25, 0.5), "bottom 50%": (0.5, 1.0)}
ORDERS = ("curvature", "singular")


def band_masks(directions: int) -> dict[str, slice]:
    """Columns of the ordered basis that make up each of the four bands (edges rounded to whole directions)."""
    return {name: slice(round(low * directions), round(high * directions)) for name, (low, high) in BANDS.items()}


def band_strengths(
    model: CausalLM,
    bases: Mapping[str, Eigenbasis],
    texts: Mapping[str, Int[np.ndarray, "windows tokens"]],
    *,
    reference: str = "clean",
    positions: slice = slice(None),
    order: str = "curvature",
) -> list[dict[str, Any]]:
    """One row per layer, band and text: mean strength, and its ratio to the reference text's.

    Args:
        texts: named windows of token ids; `reference` names the one every ratio is taken against.
        positions: which input positions of a window count (the suffix, say); the last one is never an input.
        order: "curvature" (eigenvectors of A) or "singular" (right singular vectors of W: the comparison).
    Raises: InputError for a missing reference text, another order, or positions that leave nothing.
    """
    if reference not in texts:
        raise InputError(f"no text is named {reference!r}, the reference of the ratios; there are: {', '.join(texts)}")
    if order not in ORDERS:
        raise InputError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    layers = select_matrices(model.hf, list(bases))
    directions = {layer.name: _directions(layer, bases[layer.name], order) for layer in layers}
    strengths = {}
    for name, windows in texts.items():
        watcher = _Strengths(directions, positions)
        causal_lm_pass(model, layers, windows, watcher, gradients=False)
        strengths[name] = watcher.means()
    return [
        {
            "layer": layer.name,
            "band": band,
            "text": name,
            "strength": strengths[name][layer.name][number],
            "ratio": strengths[name][layer.name][number] / strengths[reference][layer.name][number],
        }
        for layer in layers
        for number, band in enumerate(BANDS)
        for name in texts
    ]


def rises_through_bands(ratios: Float[np.ndarray, " bands"]) -> bool:
    """Is each band's ratio above that of the band before, from the top band to the bottom one?"""
    return bool((np.diff(np.asarray(ratios, np.float64)) > 0).all())


def _directions(layer: MatrixLayer, basis: Eigenbasis, order: str) -> torch.Tensor:
    if order == "curvature":
        return basis.U_A.to(layer.stored.device)
    return torch.linalg.svd(layer.weight.float(), full_matrices=True).Vh.T


class _Strengths:
    """Sums of the bands' norms over positions."""

    def __init__(self, directions: Mapping[str, torch.Tensor], positions: slice):
        self.directions, self.part = directions, positions
        self.sums = {name: torch.zeros(len(BANDS), dtype=torch.float64) for name in directions}
        self.rows = dict.fromkeys(directions, 0)

    def begin(self, positions: Positions) -> None:
        self._positions = positions

    def saw_input(self, layer: MatrixLayer, a: torch.Tensor) -> None:
        x = self._positions.of(a, layer.name)[:, self.part].flatten(0, 1).float()
        if not len(x):
            raise InputError(f"positions {self.part} leave nothing of windows of {a.shape[1]} input tokens")
        squares = (x @ self.directions[layer.name]).square()
        norms = [squares[:, band].sum(1).sqrt().sum().cpu().double() for band in band_masks(squares.shape[1]).values()]
        self.sums[layer.name] += torch.stack(norms)
        self.rows[layer.name] += len(x)

    def saw_gradient(self, layer: MatrixLayer, g: torch.Tensor) -> None:
        raise AssertionError("strengths need no gradients")

    def means(self) -> dict[str, list[float]]:
        return {name: (total / self.rows[name]).tolist() for name, total in self.sums.items()}
