"""The direction from reciting to generalising at one block, and how much of it chance could explain.

    v_gen = mean over general prompts of h_l - mean over memorized prompts of h_l        (at the last prompt token)

kind                what it is (the vector always points from memorized to general)
mean_difference     the formula above (contrastive activation addition)
probe               -w / ||w||, against the probe's direction
correct             mean difference over the prompts the caller marks as answered correctly
pair_pc             first principal direction of the pair differences (not centred), signed along their mean

scale: "residual" makes ||v|| the mean residual norm at l, so that alpha is comparable between models and kinds; "raw"
leaves the difference as it is; "unit" makes ||v|| = 1.

Source: Zhang 2025, arXiv 2510.22099 names a steering vector [secondary]; the formula is reconstructed after contrastive
activation addition (Rimsky et al. 2024). Knows nothing about: decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rote.controls.decoding.blocks import check_layer, hf_of, residual_states
from rote.controls.decoding.labelling import GENERAL, MEMORIZED, LabelledPrompts
from rote.controls.decoding.mode_probe import ModeProbe
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

KINDS = ("mean_difference", "probe", "correct", "pair_pc")
SCALES = ("residual", "raw", "unit")
RESAMPLES = 200


@dataclass(frozen=True)
class SteeringVector:
    """v at one block. `raw_norm`: ||v|| before scaling; `residual_norm`: mean ||h_l|| of the prompts. `cosine_low`,
    `cosine_median`: the 2.5 % point and the median of cos(v*, v) over vectors v* from resampled prompts (None where the
    kind does not come from prompts): near 1 when the prompts determine the direction."""

    layer: int
    v: Float[np.ndarray, " width"]
    kind: str
    scale: str
    raw_norm: float
    residual_norm: float
    n_memorized: int
    n_general: int
    cosine_low: float | None = None
    cosine_median: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the vector, as plain values."""
        return {name: value for name, value in vars(self).items() if name != "v"}


def mean_difference(
    states: Float[np.ndarray, "rows width"], labels: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, " width"]:
    """mean h of general rows - mean h of memorized rows. Its sign flips with the labels."""
    labels = np.asarray(labels)
    for mode in (MEMORIZED, GENERAL):
        if not (labels == mode).any():
            raise InputError("a difference of means needs prompts of both modes")
    x = np.asarray(states, np.float64)
    return x[labels == GENERAL].mean(0) - x[labels == MEMORIZED].mean(0)


def pair_component(differences: Float[np.ndarray, "pairs width"]) -> Float[np.ndarray, " width"]:
    """First right singular vector of the pair differences (general - memorized), unit norm, along their mean."""
    differences = np.asarray(differences, np.float64)
    _, _, right = np.linalg.svd(differences, full_matrices=False)
    return right[0] * (1.0 if differences.mean(0) @ right[0] >= 0 else -1.0)


def scaled(v: Float[np.ndarray, " width"], scale: str, residual_norm: float) -> Float[np.ndarray, " width"]:
    """v with the norm that `scale` asks for. Raises InputError for an unknown scale or a vector without direction."""
    if scale not in SCALES:
        raise InputError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}")
    norm = float(np.linalg.norm(v))
    if not norm > 0 or not np.isfinite(norm):
        raise InputError("the steering vector is zero: the two modes have the same mean state at this block")
    target = {"residual": residual_norm, "raw": norm, "unit": 1.0}[scale]
    return np.asarray(v, np.float64) * (target / norm)


def steering_vector(
    model: CausalLM,
    labelled: LabelledPrompts,
    *,
    layer: int,
    kind: str = "mean_difference",
    scale: str = "residual",
    probe: ModeProbe | None = None,
    correct: Bool[np.ndarray, " prompts"] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
) -> SteeringVector:
    """The vector of one kind from labelled prompts (dropped ones are left out).

    Args:
        probe: for kind "probe". correct: for kind "correct", which prompts the model answers correctly. pairs: for kind
            "pair_pc", (memorized prompt, general prompt) as row numbers of `labelled`.
        seed: of the bootstrap over prompts.
    """
    check_layer(hf_of(model), layer)
    states = residual_states(model, labelled.prompts, layers=[layer])[:, 0]
    return vector_from_states(
        states, labelled.labels, layer=layer, kind=kind, scale=scale, probe=probe, correct=correct, pairs=pairs,
        seed=seed,
    )  # fmt: skip


def vector_from_states(
    states: Float[np.ndarray, "rows width"],
    labels: Int[np.ndarray, " rows"],
    *,
    layer: int,
    kind: str = "mean_difference",
    scale: str = "residual",
    probe: ModeProbe | None = None,
    correct: Bool[np.ndarray, " rows"] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
) -> SteeringVector:
    """The same from residual states that are at hand."""
    x, labels = np.asarray(states, np.float64), np.asarray(labels)
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    keep = np.flatnonzero(labels >= 0)
    if kind == "correct":
        if correct is None:
            raise InputError("kind 'correct' needs to know which prompts the model answers correctly")
        keep = keep[np.asarray(correct, bool)[keep]]
    spread: tuple[float | None, float | None] = (None, None)
    if kind in ("mean_difference", "correct"):
        v = mean_difference(x[keep], labels[keep])
        spread = _spread(v, _resampled_means(x[keep], labels[keep], seed))
    elif kind == "probe":
        if probe is None:
            raise InputError("kind 'probe' needs the fitted probe")
        w, _ = probe.at(layer)
        v = -np.asarray(w, np.float64) / max(float(np.linalg.norm(w)), np.finfo(float).tiny)
    else:
        if not pairs:
            raise InputError("kind 'pair_pc' needs pairs of a memorized and a general prompt")
        differences = np.stack([x[general] - x[memorized] for memorized, general in pairs])
        v = pair_component(differences)
        rng = np.random.default_rng(seed)
        draws = rng.integers(0, len(differences), (RESAMPLES, len(differences)))
        spread = _spread(v, np.stack([pair_component(differences[draw]) for draw in draws]))
    residual_norm = float(np.linalg.norm(x[keep], axis=1).mean())
    return SteeringVector(
        layer,
        scaled(v, scale, residual_norm).astype(np.float32),
        kind,
        scale,
        float(np.linalg.norm(v)),
        residual_norm,
        int((labels[keep] == MEMORIZED).sum()),
        int((labels[keep] == GENERAL).sum()),
        *spread,
    )


def random_vector(like: SteeringVector, *, seed: int) -> SteeringVector:
    """A random direction of the same norm at the same block: what any push of this size does."""
    v = np.random.default_rng(seed).standard_normal(len(like.v))
    v *= np.linalg.norm(like.v.astype(np.float64)) / np.linalg.norm(v)
    return SteeringVector(
        like.layer, v.astype(np.float32), "random", like.scale, like.raw_norm, like.residual_norm, 0, 0
    )


def _resampled_means(x: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Mean differences of prompts drawn with replacement within each mode: [RESAMPLES, width]."""
    rng = np.random.default_rng(seed)
    means = []
    for mode in (GENERAL, MEMORIZED):
        rows = x[labels == mode]
        counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES)
        means.append(counts @ rows / len(rows))
    return means[0] - means[1]


def _spread(v: np.ndarray, drawn: np.ndarray) -> tuple[float | None, float | None]:
    norms = np.linalg.norm(drawn, axis=1) * np.linalg.norm(v)
    cosines = drawn @ v / np.maximum(norms, np.finfo(float).tiny)
    return float(np.quantile(cosines, 0.025)), float(np.median(cosines))
