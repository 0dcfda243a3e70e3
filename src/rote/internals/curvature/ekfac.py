"""Eigenvalue-corrected masses (EK-FAC): in K-FAC's own eigenbasis, the curvature that was really there.

    M_ij = E_x[ (u_i^T grad_W L(x) v_j)^2 ],    grad_W L(x) = sum_t g_t a_t^T over the positions of one example x

K-FAC's lam_i mu_j assumes that inputs and gradients are independent; M_ij does not. An example is one window of a
language model (its positions' gradients add up before they are squared) or one input of a classifier. A second pass
over the data is needed, because the basis comes from the first. Of the edit's two mass rules this is the option, not
the paper's own; an outside replication found it to keep arithmetic better at equal forgetting [secondary].

Knows nothing about: selection, edits.
Source: George et al. 2018, arXiv 1806.03884, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from rote.internals.curvature.eigenbasis import Eigenbasis
from rote.internals.curvature.layers import MatrixLayer, select_matrices
from rote.internals.curvature.passes import Positions, causal_lm_pass, classifier_pass

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM


def ekfac_masses_causal_lm(
    model: CausalLM, windows: Int[np.ndarray, "windows tokens"], bases: Mapping[str, Eigenbasis], **options: Any
) -> dict[str, Eigenbasis]:
    """The same eigenbases with `masses` measured; `options` are `causal_lm_pass`'s (labels, seed, lengths, ...)."""
    layers = select_matrices(model.hf, list(bases))
    masses = _Masses(layers, bases)
    causal_lm_pass(model, layers, windows, masses, **options)
    return masses.finished()


def ekfac_masses_classifier(
    model: nn.Module, inputs: Float[torch.Tensor, "examples ..."], bases: Mapping[str, Eigenbasis], **options: Any
) -> dict[str, Eigenbasis]:
    """The same for a classifier; `options` are `classifier_pass`'s (labels, gold, seed, passes, positions, ...)."""
    layers = select_matrices(model, list(bases))
    masses = _Masses(layers, bases)
    classifier_pass(model, layers, inputs, masses, **options)
    return masses.finished()


class _Masses:
    """Rotated inputs wait for their gradients, layer by layer, and are dropped when these have come."""

    def __init__(self, layers: Sequence[MatrixLayer], bases: Mapping[str, Eigenbasis]):
        self.bases = bases
        self.examples = dict.fromkeys(bases, 0)
        self.sums = {layer.name: torch.zeros(layer.shape, device=layer.stored.device) for layer in layers}
        self._waiting: dict[str, torch.Tensor] = {}

    def begin(self, positions: Positions) -> None:
        self._positions = positions
        self._waiting.clear()

    def saw_input(self, layer: MatrixLayer, a: torch.Tensor) -> None:
        rows = self._positions.of(a, layer.name).float()
        self._waiting[layer.name] = rows @ self.bases[layer.name].U_A.to(rows.device)

    def saw_gradient(self, layer: MatrixLayer, g: torch.Tensor) -> None:
        rows = self._positions.of(g, layer.name).float()
        left, right = rows @ self.bases[layer.name].U_G.to(rows.device), self._waiting.pop(layer.name)
        total = self.sums[layer.name]
        if left.shape[1] == 1:  # one position an example: (u^T g)^2 (v^T a)^2, one product for the whole batch
            total.addmm_(left[:, 0].square().T, right[:, 0].square())
        else:
            for one, other in zip(left, right, strict=True):
                gradient = one.T @ other
                total.addcmul_(gradient, gradient)
        self.examples[layer.name] += len(left)

    def finished(self) -> dict[str, Eigenbasis]:
        return {
            name: replace(basis, masses=self.sums[name] / self.examples[name]) for name, basis in self.bases.items()
        }
