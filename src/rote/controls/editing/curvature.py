"""Take recitation out of a model with one weight edit: keep the high-curvature part of chosen matrices, drop the rest.

    C = U_G^T W U_A,   S = the heaviest pairs of Pi_ij = lam_i mu_j that hold rho of the mass
    W' = U_G (C * 1_S) U_A^T

Averaged over ordinary text, high-curvature directions are the shared, general ones; low-curvature directions carry what
is idiosyncratic, recitation among it. No gradient step, no list of what to forget. W' keeps (nearly) full rank. Rare
facts and arithmetic break first, memories may come back by fine-tuning, and rho means nothing across models: compare
methods at matched perplexity (`rote.controls.editing.curvature_sweep`), never at matched rho.

Source: Merullo et al. 2025, arXiv 2510.24256. Knows nothing about: records to forget, measures, reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import nn

from rote.controls.editing.matrix_edit import MatrixEdit
from rote.controls.editing.selection import check_rho, select_by_mass, select_pairs
from rote.errors import InputError
from rote.internals.curvature.collect import collect_causal_lm
from rote.internals.curvature.eigenbasis import Eigenbasis, decompose, effective_rank
from rote.internals.curvature.factors import FactorSet, weights_fingerprint
from rote.internals.curvature.layers import MatrixLayer, default_layers, select_matrices
from rote.internals.curvature.passes import check_labels
from rote.internals.curvature.windows import check_window, packed_windows
from rote.models.causal_lm import CausalLM

if TYPE_CHECKING:
    from rote.records.table import RecordTable

NO_OP = 0.9999  # from this rho on a layer is left exactly as it is (Merullo et al. 2025, their code)
MASSES = ("kfac", "ekfac")


@dataclass(frozen=True)
class LayerFigures:
    """What the edit did to one matrix of p outputs and q inputs.

    pairs: eigenpairs kept of p q; share: pairs / (p q). mass: share of the curvature mass they hold (>= rho).
    rows_used, columns_used: distinct i and j among them. rank_95_G, rank_95_A: leading eigenvalues that hold 95 % of
    each spectrum. positions: rows the factors were measured on. relative_change: ||W - W'||_F / ||W||_F. unchanged: the
    layer was skipped (rho >= 0.9999).
    """

    layer: str
    outputs: int
    inputs: int
    positions: int
    pairs: int
    share: float
    mass: float
    rows_used: int
    columns_used: int
    rank_95_G: int
    rank_95_A: int
    relative_change: float
    unchanged: bool


@dataclass(frozen=True)
class CurvatureReport:
    """An edit that has been made, in figures, with the way back. As a context manager it restores at the end, unless
    `keep` or `commit` was called."""

    rho: float
    masses: str
    labels: str
    positions: str
    layers: tuple[LayerFigures, ...]
    warnings: tuple[str, ...]
    edit: MatrixEdit = field(repr=False, compare=False)

    def restore(self) -> None:
        """Put the model back as it was, bit for bit."""
        self.edit.restore()

    def keep(self) -> None:
        """Leave the edit in place when the context ends."""
        self.edit.keep()

    def commit(self, directory: str | Path) -> Path:
        """Save the edited model as a plain Hugging Face checkpoint, and keep the edit. See `MatrixEdit.commit`."""
        path = self.edit.commit(directory, {"method": "curvature", **self.as_dict()})
        self.keep()
        return path

    def as_dict(self) -> dict[str, Any]:
        """Everything but the way back, as plain values."""
        return {
            "rho": self.rho,
            "masses": self.masses,
            "labels": self.labels,
            "positions": self.positions,
            "layers": [asdict(layer) for layer in self.layers],
            "warnings": list(self.warnings),
        }

    def __enter__(self) -> CurvatureReport:
        return self

    def __exit__(self, *exception: object) -> None:
        self.edit.__exit__(*exception)


def edited_weight(
    W: Float[torch.Tensor, "out in"], basis: Eigenbasis, mask: Bool[torch.Tensor, "out in"]
) -> Float[torch.Tensor, "out in"]:
    """W' = U_G (C * mask) U_A^T in float32: the orthogonal projection of W onto the kept pairs."""
    return basis.weight(basis.coefficients(W) * mask.to(W.device))


def edit_by_curvature(
    model: CausalLM | nn.Module,
    factors: FactorSet,
    *,
    rho: float,
    masses: str = "kfac",
    bases: Mapping[str, Eigenbasis] | None = None,
) -> CurvatureReport:
    """Edit, in place, every layer the factors were measured on.

    Args:
        model: a language model's adapter, or any module (a classifier).
        rho: share of the curvature mass to keep, in (0, 1]; at 0.9999 and above the layer is left exactly as it is.
        masses: "kfac" (Pi_ij = lam_i mu_j) or "ekfac" (measured masses; `bases` must then carry them).
        bases: the factors' eigenbases, when they have been computed already.
    Raises: InputError for factors of another checkpoint, rho outside (0, 1], unusable layers or missing EK-FAC masses;
        RoteError when an edited weight is not finite (the model is then as before).
    """
    check_rho(rho)
    if masses not in MASSES:
        raise InputError(f"masses must be one of {', '.join(MASSES)}, not {masses!r}")
    module, fingerprint = identity(model)
    factors.refuse_unless_of(fingerprint)
    layers = select_matrices(module, list(factors.layers))
    _check_shapes(layers, factors)
    if bases is None:
        bases = decompose(factors, device=layers[0].stored.device)
    if masses == "ekfac" and any(bases[layer.name].masses is None for layer in layers):
        raise InputError("masses='ekfac' needs bases with measured masses (rote.internals.curvature.ekfac_masses_*)")
    edit = MatrixEdit(model)
    try:
        figures = tuple(
            _edit_layer(edit, layer, bases[layer.name], rho, masses, factors.layers[layer.name].rows)
            for layer in layers
        )
    except BaseException:
        edit.restore()
        raise
    return CurvatureReport(
        rho=rho,
        masses=masses,
        labels=factors.labels,
        positions=factors.positions,
        layers=figures,
        warnings=(*factors.warnings(), *_precision_warnings(layers)),
        edit=edit,
    )


def check_curvature(
    model: CausalLM, *, layers: Sequence[str], rho: float, labels: str = "sampled", sequence_tokens: int
) -> tuple[str, ...]:
    """Raise the InputError that `treat_by_curvature` would raise for these settings, before any text is read; returns
    the patterns it would use."""
    check_rho(rho)
    check_labels(labels)
    check_window(model, sequence_tokens)
    chosen = tuple(layers) or default_layers(model.hf)
    select_matrices(model.hf, chosen)
    return chosen


def treat_by_curvature(
    model: CausalLM,
    clean: RecordTable,
    *,
    layers: Sequence[str],
    rho: float,
    labels: str = "sampled",
    seed: int,
    sequence_tokens: int,
    progress: Callable[[str, int, int], None],
) -> CurvatureReport:
    """Collect factors on clean text and edit the adapter's model in place: the whole method in one call.

    Args:
        clean: ordinary text like what the model should stay good at; packed into windows of `sequence_tokens`
            (the paper: 512 tokens, about 20 million in all).
        layers: patterns (`rote.internals.curvature.layers`); empty: `default_layers`, the MLP's later projections.
        rho: share of the curvature mass to keep, in (0, 1]. Sweep it: no value is right for two models.
        labels: "sampled" from the model (the true Fisher), or "gold".
        progress: called as progress(stage, done, total); stages "curvature factors" and "editing".
    Returns the report, whose `restore()` undoes the edit and `commit(directory)` saves it.
    Raises InputError for unusable layers, windows or settings, before anything is changed.
    """
    chosen = check_curvature(model, layers=layers, rho=rho, labels=labels, sequence_tokens=sequence_tokens)
    windows = packed_windows(model, clean, sequence_tokens)
    factors = collect_causal_lm(
        model,
        windows,
        layers=chosen,
        labels=labels,
        seed=seed,
        progress=lambda done, total: progress("curvature factors", done, total),
    )
    progress("editing", 0, len(factors.layers))
    report = edit_by_curvature(model, factors, rho=rho)
    progress("editing", len(factors.layers), len(factors.layers))
    return report


def identity(model: CausalLM | nn.Module) -> tuple[nn.Module, str]:
    """(the module whose layers are named, the fingerprint of its weights)."""
    if isinstance(model, CausalLM):
        return model.hf, model.fingerprint
    return model, weights_fingerprint(model)


def _edit_layer(
    edit: MatrixEdit, layer: MatrixLayer, basis: Eigenbasis, rho: float, masses: str, positions: int
) -> LayerFigures:
    p, q = layer.shape
    change, unchanged = 0.0, rho >= NO_OP
    if unchanged:
        pairs, mass, rows, columns = p * q, 1.0, p, q
    else:
        if masses == "ekfac":
            assert basis.masses is not None
            mask, mass = select_by_mass(basis.masses, rho)
            pairs, rows, columns = int(mask.sum()), int(mask.any(1).sum()), int(mask.any(0).sum())
        else:
            chosen = select_pairs(basis.lam, basis.mu, rho)
            pairs, mass, rows, columns = chosen.pairs, chosen.mass, chosen.rows_used, chosen.columns_used
            mask = chosen.mask(layer.stored.device)
        before = layer.weight.float().clone()
        after = edited_weight(before, basis, mask)
        edit.replace(layer, after)
        change = float((before - after).norm() / before.norm().clamp(min=torch.finfo(torch.float32).tiny))
    return LayerFigures(
        layer=layer.name,
        outputs=p,
        inputs=q,
        positions=positions,
        pairs=pairs,
        share=pairs / (p * q),
        mass=mass,
        rows_used=rows,
        columns_used=columns,
        rank_95_G=effective_rank(basis.lam),
        rank_95_A=effective_rank(basis.mu),
        relative_change=change,
        unchanged=unchanged,
    )


def _check_shapes(layers: Sequence[MatrixLayer], factors: FactorSet) -> None:
    for layer in layers:
        found = factors.layers[layer.name]
        if (len(found.G), len(found.A)) != layer.shape:
            raise InputError(
                f"layer {layer.name}: its factors are for {len(found.G)} outputs and {len(found.A)} inputs, the weight"
                f" has {layer.shape[0]} and {layer.shape[1]}; collect factors on this model"
            )


def _precision_warnings(layers: Sequence[MatrixLayer]) -> list[str]:
    coarse = [layer.name for layer in layers if layer.stored.dtype.itemsize < 4]
    if not coarse:
        return []
    kind = str(layers[0].stored.dtype).removeprefix("torch.")
    return [
        f"{len(coarse)} layers are stored in {kind}: rounding W' is a larger change than its smallest coefficients; "
        "load in float32 to avoid it"
    ]
