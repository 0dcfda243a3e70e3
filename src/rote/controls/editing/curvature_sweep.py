"""The frontier of an edit: what is still recited against what else is lost, for the method and its controls.

Two methods are compared at the same loss of utility (perplexity), never at the same rho, share or mask ratio: those
numbers mean something else for each method. What is measured is the caller's business: any functions of the model.

Knows nothing about: recitation, perplexity, reports.
Source: Merullo et al. 2025, arXiv 2510.24256 (search over rho, SVD baseline); the random-pairs, lowest-mass and
noise controls are the card's section 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from rote.controls.editing.curvature import CurvatureReport, edit_by_curvature, edited_weight, identity
from rote.controls.editing.matrix_edit import MatrixEdit
from rote.controls.editing.selection import lightest_pairs, random_pairs
from rote.controls.editing.svd_truncation import svd_truncated
from rote.errors import InputError
from rote.internals.curvature.eigenbasis import Eigenbasis, decompose
from rote.internals.curvature.factors import FactorSet
from rote.internals.curvature.layers import MatrixLayer, select_matrices
from rote.models.causal_lm import CausalLM
from rote.runtime import derive_seed

# What `strength` means for each: share of curvature mass kept (twice), share of pairs kept (twice), share of singular
# values kept, relative Frobenius norm of Gaussian noise.
METHODS = ("curvature", "curvature-ekfac", "random-pairs", "lowest-mass-pairs", "svd", "noise")


def sweep(
    model: CausalLM | nn.Module,
    factors: FactorSet,
    *,
    strengths: Sequence[float],
    metrics: Mapping[str, Callable[[], float]],
    method: str = "curvature",
    bases: Mapping[str, Eigenbasis] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Edit at every strength, measure, restore: one row {method, strength, share, relative_change, **metrics} each.

    Args:
        metrics: named functions without arguments that measure the model as it is at that moment.
        method: one of METHODS; all act on the layers the factors were measured on.
        bases: the factors' eigenbases, so that several sweeps decompose once.
    `share` is the share of eigenpairs (or singular values) kept, averaged over layers. The model is left as found, also
    after an error. Raises InputError as the edits do.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")
    bases = decompose(factors) if bases is None else bases
    rows = []
    for number, strength in enumerate(strengths):
        with apply(model, factors, method=method, strength=strength, bases=bases, seed=seed) as (share, change):
            values = {name: float(measure()) for name, measure in metrics.items()}
        rows.append({"method": method, "strength": strength, "share": share, "relative_change": change, **values})
        if progress:
            progress(number + 1, len(strengths))
    return rows


class apply:
    """`with apply(model, factors, method=..., strength=...) as (share, change)`: one edit, undone at the end."""

    def __init__(
        self,
        model: CausalLM | nn.Module,
        factors: FactorSet,
        *,
        method: str,
        strength: float,
        bases: Mapping[str, Eigenbasis],
        seed: int = 0,
    ):
        self._edit: MatrixEdit | CurvatureReport
        if method.startswith("curvature"):
            masses = "ekfac" if method.endswith("ekfac") else "kfac"
            report = edit_by_curvature(model, factors, rho=strength, masses=masses, bases=bases)
            self._edit = report
            self.share = sum(layer.share for layer in report.layers) / len(report.layers)
            self.change = sum(layer.relative_change for layer in report.layers) / len(report.layers)
            return
        module, fingerprint = identity(model)
        factors.refuse_unless_of(fingerprint)
        layers = select_matrices(module, list(factors.layers))
        edit = self._edit = MatrixEdit(model)
        shares, changes = [], []
        try:
            for layer in layers:
                before = layer.weight.float().clone()
                after, share = _replacement(method, layer, before, bases[layer.name], strength, seed)
                edit.replace(layer, after)
                shares.append(share)
                changes.append(float((before - after).norm() / before.norm()))
        except BaseException:
            edit.restore()
            raise
        self.share, self.change = sum(shares) / len(shares), sum(changes) / len(changes)

    def __enter__(self) -> tuple[float, float]:
        return self.share, self.change

    def __exit__(self, *exception: object) -> None:
        self._edit.restore()


def at_matched(
    rows: Sequence[Mapping[str, Any]], *, value: float, metric: str, along: str = "perplexity"
) -> float | None:
    """The metric where the frontier reaches `along` = value: linear in log(along) between the two nearest points.

    Rows of one method, in any order, the unedited model among them as one end. None when `value` lies outside the
    points' range: a frontier is never extended. Values of `along` must be positive.
    """
    points = sorted((math.log(row[along]), float(row[metric])) for row in rows)
    wanted = math.log(value)
    for (x, y), (x_next, y_next) in pairwise(points):
        if x <= wanted <= x_next:
            return y if x_next == x else y + (y_next - y) * (wanted - x) / (x_next - x)
    return points[0][1] if points and points[0][0] == wanted else None


def _replacement(
    method: str,
    layer: MatrixLayer,
    W: Float[torch.Tensor, "out in"],
    basis: Eigenbasis,
    strength: float,
    seed: int,
) -> tuple[Float[torch.Tensor, "out in"], float]:
    """(W', share kept) of one control."""
    p, q = layer.shape
    generator = torch.Generator().manual_seed(derive_seed(seed, method, layer.name))
    if method == "svd":
        return svd_truncated(W, strength), strength
    if method == "noise":
        if strength < 0:
            raise InputError(f"the relative norm of noise is {strength}: it cannot be negative")
        noise = torch.randn(p, q, generator=generator).to(W)
        return W + noise * (strength * W.norm() / noise.norm()), 1.0
    if not 0.0 < strength <= 1.0:
        raise InputError(f"the share of pairs to keep is {strength}: it must lie in (0, 1]")
    count = max(1, round(strength * p * q))
    if method == "random-pairs":
        mask = random_pairs((p, q), count, generator)
    else:
        mask = lightest_pairs(basis.lam, basis.mu, count)
    return edited_weight(W, basis, mask), count / (p * q)
