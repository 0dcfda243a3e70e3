"""The certainty coordinate: which activation tracks how sure the model is, and what a memorization coordinate says
once that is taken out.

    r_j = Pearson correlation of coordinate j with max p (and with the entropy) over ordinary text
    partial AUROC_j = AUROC of the residual of coordinate j after least squares on [1, certainty covariates]

A coordinate that only says "I am sure" separates recited tokens from uncertain ones; after the regression it does not.

Knows the store and its outputs. Knows nothing about: models, how labels were made.
Source: Slonski 2024, arXiv 2412.01014, reports one such activation; how it was found is inferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rote.errors import InputError
from rote.internals.neurons.coordinates import rank_auroc
from rote.internals.neurons.token_labels import TokenLabels, as_table, scored_samples

if TYPE_CHECKING:
    from rote.internals.neurons.activations import ActivationStore
    from rote.internals.neurons.selection import UnitSelection
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable


@dataclass(frozen=True)
class CertaintyUnit:
    """One coordinate and its correlations, each in [-1, 1], over `tokens` ordinary tokens."""

    site: str
    layer: int
    dimension: int
    r_max_probability: float
    r_entropy: float
    tokens: int


def ordinary_tokens(model: CausalLM, texts: RecordTable | Sequence[str]) -> TokenLabels:
    """Every token of ordinary text that is predicted, all of kind "ordinary": something to capture activations of."""
    samples = scored_samples(model, as_table(texts, "ordinary"), "ordinary")
    token = [np.flatnonzero(sample.usable) for sample in samples]
    flat = np.concatenate(token)
    return TokenLabels(
        tuple(sample.ids for sample in samples),
        tuple(sample.name for sample in samples),
        tuple(sample.group for sample in samples),
        np.repeat(np.arange(len(samples)), [len(part) for part in token]), flat, np.zeros(len(flat), np.int8),
        ("ordinary", "none"),
        np.concatenate([sample.continuation[part] for sample, part in zip(samples, token, strict=True)]),
        np.concatenate([sample.logp[part] for sample, part in zip(samples, token, strict=True)]).astype(np.float32),
        {"from": "ordinary text"},
    )  # fmt: skip


def ordinary_activations(
    model: CausalLM,
    sequences: Sequence[Int[np.ndarray, " length"]],
    *,
    sites: Sequence[str] | str,
    layers: Sequence[int] | int | str = "all",
) -> ActivationStore:
    """Activations of every predicted token of ordinary text, given as token ids (`ordinary_tokens`)."""
    from rote.internals.neurons.activations import ActivationStore
    from rote.records.table import RecordTable

    table = RecordTable.from_rows({"token_ids": row.tolist()} for row in sequences)
    return ActivationStore.capture(model, ordinary_tokens(model, table), sites=sites, layers=layers)


def correlations(
    values: Float[np.ndarray, "tokens coordinates"], target: Float[np.ndarray, " tokens"]
) -> Float[np.ndarray, " coordinates"]:
    """Pearson's r of every column with `target`, in float64; 0 where either is constant."""
    values, target = np.asarray(values, np.float64), np.asarray(target, np.float64)
    values, target = values - values.mean(0), target - target.mean()
    scale = np.sqrt((values**2).sum(0) * (target**2).sum())
    product = target @ values
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)


def certainty_units(acts: ActivationStore, *, top: int = 20) -> list[CertaintyUnit]:
    """The `top` coordinates of all captured places by |r| with max p; the first is the certainty unit."""
    if acts.tokens < 3:
        raise InputError(f"correlations over {acts.tokens} tokens mean nothing: capture more ordinary text")
    sure, entropy = np.exp(acts.outputs[:, 2].astype(np.float64)), acts.outputs[:, 1]
    found: list[CertaintyUnit] = []
    for place in acts.arrays:
        for columns, values in acts.blocks(place):
            with_sure, with_entropy = correlations(values, sure), correlations(values, entropy)
            for i in np.argsort(-np.abs(with_sure), kind="stable")[:top]:
                r, other = float(with_sure[i]), float(with_entropy[i])
                found.append(CertaintyUnit(place.site, place.layer, columns.start + int(i), r, other, acts.tokens))
    return sorted(found, key=lambda unit: -abs(unit.r_max_probability))[:top]


def partial_auroc(
    values: Float[np.ndarray, "tokens coordinates"],
    label: Bool[np.ndarray, " tokens"],
    covariates: Float[np.ndarray, "tokens covariates"],
) -> Float[np.ndarray, " coordinates"]:
    """AUROC of each column after least squares on [1, covariates] over all tokens. Range [0, 1]."""
    values = np.asarray(values, np.float64)
    design = np.column_stack([np.ones(len(values)), np.asarray(covariates, np.float64)])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return rank_auroc(values - fitted, label)


def without_certainty(
    acts: ActivationStore,
    labels: TokenLabels,
    selection: UnitSelection,
    *,
    certainty: CertaintyUnit | None = None,
) -> list[dict[str, Any]]:
    """Each selected unit with its AUROC on the held-out passages before and after regressing out certainty.

    Certainty is the value of the certainty unit where one is given (it must have been captured), max p and entropy
    otherwise. AUROCs are signed as the unit was on its training passages.
    """
    acts.check(labels)
    rows = np.flatnonzero(selection.held_out)
    if certainty is None:
        covariates = np.column_stack([np.exp(acts.outputs[rows, 2].astype(np.float64)), acts.outputs[rows, 1]])
    else:
        covariates = np.asarray(acts[certainty.site, certainty.layer][:, certainty.dimension][rows])[:, None]
    table = []
    for unit, row in zip(selection.units, selection.rows(), strict=True):
        values = unit.sign * np.asarray(acts[unit.site, unit.layer][:, unit.dimension][rows], np.float64)[:, None]
        after = float(partial_auroc(values, labels.label[rows], covariates)[0])
        table.append({**row, "partial_auroc_held_out": after})
    return table
