"""Write soft targets into one attention layer: the built Transformer whose KL equals the best sequence encoder's.

Knows Theorem 1 at eps = 0 (every context) and at eps > 0 (the most likely ones). Deliberately knows nothing about
training. The floor itself comes from `rote.theory.attention.encoder`.

Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, Theorem 1, appendix A.2); exact change of basis: ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.theory.attention import bounds
from rote.theory.attention.change_of_basis import BasisError, Solution, solve_targets
from rote.theory.attention.checks import check_contexts, check_distribution, check_prior
from rote.theory.attention.construction import WORST_COND, NumericallyInfeasible, draw_for
from rote.theory.attention.encoder import EncoderFloor, sequence_encoder_floor
from rote.theory.attention.features import SCALES, FeatureDraw
from rote.theory.attention.model import AttentionWeights, kl_by_context, log_softmax, logits
from rote.theory.attention.partial import EXCESS, Remainder, choose_kept, remainder_of
from rote.theory.attention.ranks import rank_limit_of

if TYPE_CHECKING:
    from rote.theory.attention.torch_model import AttentionOnly

TOLERANCE = 1e-6  # how far in nats the built KL may lie from the encoder's (card value)


@dataclass(frozen=True)
class DistributionMemory:
    """A built memory of distributions. `kl`: E_t KL(pi || softmax T), measured on the real float64 network, in nats;
    `floor`: the best sequence encoder's, which it copies. `rank`, `cond`: of the features over the kept contexts."""

    weights: AttentionWeights
    contexts: Int[np.ndarray, "contexts context"]
    pi: Float[np.ndarray, "contexts vocab"]
    prior: Float[np.ndarray, " contexts"]
    kept: np.ndarray
    rank: int
    cond: float
    kl: float
    floor: float
    seed: int
    draws: int
    remainder: Remainder | None = None

    def distribution(self, contexts: Int[np.ndarray, "contexts context"]) -> Float[np.ndarray, "contexts vocab"]:
        """softmax T(t)."""
        return np.exp(log_softmax(logits(self.weights, contexts)))

    def to_torch(self) -> AttentionOnly:
        """The formal model as a float64 `torch.nn.Module`."""
        from rote.theory.attention.torch_model import AttentionOnly

        return AttentionOnly(self.weights)

    def save(self, directory: str | Path) -> Path:
        """Write memory.safetensors and memory.json; see `rote.theory.attention.storage`."""
        from rote.theory.attention.storage import save_distribution_memory

        return save_distribution_memory(self, directory)

    @classmethod
    def load(cls, directory: str | Path) -> DistributionMemory:
        """Read what `save` wrote and measure its KL again on what was read."""
        from rote.theory.attention.storage import load_distribution_memory

        return load_distribution_memory(directory)


def build_attention_distribution(
    contexts: Int[np.ndarray, "contexts context"],
    pi: Float[np.ndarray, "contexts vocab"],
    *,
    d: int,
    d_head: int,
    heads: int,
    seed: int,
    prior: Float[np.ndarray, " contexts"] | None = None,
    excess: str = "refuse",
    floor: EncoderFloor | None = None,
    draws: int = 8,
    candidates: int = 4,
    scales: tuple[float, float] = SCALES,
) -> DistributionMemory:
    """W_U = W and [M, W_O] Phi = E for the best sequence encoder (W, E) of rank d: d_KL(pi, T) = d_KL(pi, L).

    Needs contexts <= H d_h + d and S >= 2 (or what `ranks` allows, where that is less), or excess =
    "most_likely" (Theorem 1 at eps > 0, see `Remainder`).
    `floor`: an encoder already computed for this pi, d and prior. The draw with the KL closest to the encoder's wins.
    Errors: `InputError` for bad input, `NumericallyInfeasible` when no draw comes within 1e-6 nats of the encoder.
    """
    pi = check_distribution(pi)
    contexts = check_contexts(contexts, vocab=pi.shape[1])
    if len(contexts) != len(pi):
        raise InputError(f"pi has {len(pi)} rows for {len(contexts)} contexts")
    if len(np.unique(contexts, axis=0)) < len(contexts):
        raise InputError("a context is given twice: merge its rows of pi, weighted by how often each occurs")
    if excess not in EXCESS or excess == "least_squares":
        raise InputError(f"excess {excess!r}: distributions take refuse or most_likely")
    weight = check_prior(prior, len(pi))
    bounds.check_sizes(d=d, d_head=d_head, heads=heads, context=contexts.shape[1])
    kept = choose_kept(contexts, weight, excess, d=d, d_head=d_head, heads=heads)
    if floor is not None and (floor.d != d or len(floor.encoding) != len(pi)):
        raise InputError(f"the floor given is for d = {floor.d} and {len(floor.encoding)} contexts")
    floor = sequence_encoder_floor(pi, d=d, prior=weight, seed=seed) if floor is None else floor
    code, encoding = _balanced(floor)
    wanted = kl_by_context(pi, encoding @ code.T)
    best: tuple[float, np.ndarray, FeatureDraw, Solution, int] | None = None
    generator = np.random.default_rng(seed)
    for number in range(1, draws + 1):
        draw = draw_for(
            contexts[kept], generator, vocab=pi.shape[1], d=d, d_head=d_head, heads=heads, candidates=candidates,
            scales=scales,
        )  # fmt: skip
        try:
            solution = solve_targets(draw, contexts[kept], encoding[kept], code, free_gauge=True)
        except BasisError:
            continue
        measured = kl_by_context(pi, logits(solution.weights, contexts))
        error = float(weight[kept] @ np.abs(measured - wanted)[kept])
        if best is None or error < best[0]:
            best = error, measured, draw, solution, number
        if error <= TOLERANCE / 100 and solution.spectrum.cond <= WORST_COND:
            break
    if best is None or not best[0] <= TOLERANCE:
        rank = 0 if best is None else best[3].spectrum.rank
        cond = float("inf") if best is None else best[3].spectrum.cond
        raise NumericallyInfeasible(
            f"{int(kept.sum())} contexts with d = {d}, d_head = {d_head}, heads = {heads}: no draw comes within"
            f" {TOLERANCE:g} nats of the encoder (rank {rank} of {int(kept.sum())}, condition number {cond:.1e}); use a"
            " larger d or spare heads",
            rank=rank, cond=cond, min_margin=None,
        )  # fmt: skip
    _, measured, draw, solution, number = best
    remainder = None
    if not kept.all():
        remainder = remainder_of(
            kept=kept,
            weight=weight,
            measured=measured,
            encoder_kl=floor.kl,
            features=draw.features(contexts),
            ideal=encoding @ code.T,
            filled=rank_limit_of(contexts[kept], d=d, d_head=d_head).last_tokens < d,
        )
    return DistributionMemory(
        weights=solution.weights, contexts=contexts, pi=pi, prior=weight, kept=kept, rank=solution.spectrum.rank,
        cond=solution.spectrum.cond, kl=max(0.0, float(weight @ measured)), floor=floor.kl, seed=seed, draws=number,
        remainder=remainder,
    )  # fmt: skip


def _balanced(floor: EncoderFloor) -> tuple[np.ndarray, np.ndarray]:
    """The same logits up to a shift per context, from singular vectors: unused coordinates are dropped, the rest share
    the scale. Centring W over the vocabulary shifts all logits of a context alike."""
    centred = floor.unembedding - floor.unembedding.mean(axis=0)
    left, triangle = np.linalg.qr(centred)
    inner, singular, right = np.linalg.svd(triangle @ floor.encoding.T, full_matrices=False)
    kept = singular > singular[0] * 1e-12 if singular[0] > 0 else np.arange(len(singular)) < 1
    root = np.sqrt(singular[kept])
    return left @ inner[:, kept] * root, (right[kept].T * root)
