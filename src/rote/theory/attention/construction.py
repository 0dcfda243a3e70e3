"""Write associations into the weights of one attention layer: the exact solver behind Theorem 1 and Corollary 1.

Knows how to draw, solve, map back and certify on the real network; fails loudly, with rank and condition number, when
the numbers do not carry it. Deliberately knows nothing about training and nothing about soft targets.

Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, Theorem 1, appendix A). The paper proves existence; the
algorithm (exact change of basis, choice of well-conditioned heads) is reconstructed from the proof.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.theory.attention import bounds
from rote.theory.attention.change_of_basis import BasisError, solve_targets
from rote.theory.attention.checks import check_contexts, check_prior
from rote.theory.attention.codes import CODES, circle_code, code_margin, spread_code
from rote.theory.attention.features import SCALES, FeatureDraw, draw_features
from rote.theory.attention.linear import has_extended_precision
from rote.theory.attention.model import AttentionWeights, kl_by_context, logits, margins
from rote.theory.attention.partial import EXCESS, Remainder, choose_kept, remainder_of
from rote.theory.attention.ranks import rank_limit_of

if TYPE_CHECKING:
    from rote.theory.attention.torch_model import AttentionOnly, MultiheadStack

WORST_COND = 1e8  # above it another draw is tried (card value; a draw with a smaller number is kept)
LARGEST = 1 << 28  # numbers in the candidates' outputs: 2 GiB of float64
MOST_EXTENDED = 800  # contexts that the extended-precision solver takes in well under a minute


class NumericallyInfeasible(InputError):
    """No draw could be solved and certified. `rank`, `cond` and `min_margin` are those of the best draw."""

    def __init__(self, message: str, *, rank: int, cond: float, min_margin: float | None):
        super().__init__(message)
        self.rank, self.cond, self.min_margin = rank, cond, min_margin


@dataclass(frozen=True)
class AttentionMemory:
    """A built memory and its certificate, measured on the real network in `precision` (numpy type name).

    `rank`, `cond`: of the features Phi over the kept contexts. `min_margin`: smallest (right logit - best other) over
    the kept contexts; positive means every one is recalled. `ideal_margin`: what exact arithmetic would give.
    `logit_error`: largest distance of a kept logit from its target. `accuracy`: over all contexts.
    """

    weights: AttentionWeights
    contexts: Int[np.ndarray, "contexts context"]
    labels: Int[np.ndarray, " contexts"]
    kept: np.ndarray
    rank: int
    cond: float
    min_margin: float
    ideal_margin: float
    logit_error: float
    accuracy: float
    precision: str
    code: str
    scale: float
    seed: int
    draws: int
    remainder: Remainder | None = None

    def recall(self, contexts: Int[np.ndarray, "contexts context"]) -> Int[np.ndarray, " contexts"]:
        """The token with the largest logit after each context."""
        return logits(self.weights, contexts).argmax(axis=1)

    def rounded(self, dtype: str) -> AttentionMemory:
        """The same memory in another floating-point type, certified again there.

        Errors: `NumericallyInfeasible` when a kept context is no longer recalled in that type.
        """
        memory = certified(self, self.weights.cast(np.dtype(dtype)))
        if not memory.min_margin > 0:
            raise NumericallyInfeasible(
                f"rounded to {dtype} the memory forgets: smallest margin {memory.min_margin:.1e}"
                f" (cond {self.cond:.1e}); keep float64, or build with code='spread', a larger d or spare heads",
                rank=self.rank,
                cond=self.cond,
                min_margin=memory.min_margin,
            )
        return memory

    def to_torch(self) -> AttentionOnly:
        """The formal model as a float64 `torch.nn.Module`, run on every kept context before it is returned. Errors as
        `rounded` when the memory needs longdouble or the module forgets."""
        from rote.theory.attention.torch_model import AttentionOnly

        return self._recalls(AttentionOnly(self._float64()))

    def to_multihead_attention(self) -> MultiheadStack:
        """The same function built from `torch.nn.MultiheadAttention` layers, one a head; run and checked likewise."""
        from rote.theory.attention.torch_model import MultiheadStack

        return self._recalls(MultiheadStack(self._float64()))

    def save(self, directory: str | Path) -> Path:
        """Write memory.safetensors and memory.json; see `rote.theory.attention.storage`."""
        from rote.theory.attention.storage import save_memory

        return save_memory(self, directory)

    @classmethod
    def load(cls, directory: str | Path) -> AttentionMemory:
        """Read what `save` wrote and certify it again on what was read."""
        from rote.theory.attention.storage import load_memory

        return load_memory(directory)

    def _recalls(self, module: Any) -> Any:
        """The module, once it has recalled every context that the weights recall."""
        import torch

        contexts, labels = self.contexts[self.kept], self.labels[self.kept]
        with torch.inference_mode():
            found = module(torch.from_numpy(np.ascontiguousarray(contexts))).numpy()
        own = found[np.arange(len(found)), labels]
        found[np.arange(len(found)), labels] = -np.inf
        margin = float((own - found.max(axis=1)).min())
        if self.min_margin > 0 and not margin > 0:
            raise NumericallyInfeasible(
                f"the torch module forgets: smallest margin {margin:.1e} (cond {self.cond:.1e}); build with "
                "code='spread', a larger d or spare heads",
                rank=self.rank,
                cond=self.cond,
                min_margin=margin,
            )
        return module

    def _float64(self) -> AttentionWeights:
        return self.weights if self.precision != "longdouble" else self.rounded("float64").weights


def build_attention_memory(
    contexts: Int[np.ndarray, "contexts context"],
    labels: Int[np.ndarray, " contexts"],
    *,
    d: int,
    d_head: int,
    heads: int,
    seed: int,
    vocab: int | None = None,
    code: str = "circle",
    scale: float = 1.0,
    prior: Float[np.ndarray, " contexts"] | None = None,
    excess: str = "refuse",
    draws: int = 4,
    candidates: int = 4,
    scales: tuple[float, float] = SCALES,
    extended: bool | None = None,
) -> AttentionMemory:
    """One attention layer whose largest logit after every context t is labels[t]: exact for T_0 <= H d_h + d, S >= 2.

    1. draw e', pos' and heads (`candidates` per place); 2. Phi(t) = [x'(t,S); W_V'^h A'^h(t)], rank by SVD;
    3. targets E(t) = scale * W_{labels[t]} with the `code` W ("circle": Proposition 3; "spread": wider margins, up to d
    dimensions); 4. solve [M, W_O] Phi = E; 5. map back; 6. certify on the real network. Up to `draws` draws; the first
    with cond <= 1e8 whose margin is at least half the ideal one is kept.

    excess, for more contexts than H d_h + d (or than `ranks` allows, where that is less): "refuse"; "least_squares"
    (all of them approximately); "most_likely" (those with the largest `prior` that fit exactly, the rest reported in
    `remainder` beside Theorem 1's bound).
    extended: None retries in `longdouble` when float64 fails, and keeps float64 weights if they then pass; True starts
    there and keeps longdouble weights; False never does.
    Errors: `InputError` for contradictory or bad input, `NumericallyInfeasible` (rank, cond) when no draw succeeds.
    """
    vocab = int(np.max([np.max(contexts), np.max(labels)])) + 1 if vocab is None else vocab
    contexts = check_contexts(contexts, vocab=vocab)
    labels = _check_labels(contexts, labels, vocab)
    if code not in CODES:
        raise InputError(f"unknown code {code!r}; use one of {', '.join(CODES)}")
    if excess not in EXCESS:
        raise InputError(f"unknown excess {excess!r}; use one of {', '.join(EXCESS)}")
    if not scale > 0:
        raise InputError(f"the scale of the targets must be above 0, not {scale}")
    weight = check_prior(prior, len(contexts))
    length = contexts.shape[1]
    bounds.check_sizes(d=d, d_head=d_head, heads=heads, context=length)
    kept = choose_kept(contexts, weight, excess, d=d, d_head=d_head, heads=heads)
    # The circle needs two dimensions; two tokens can do with one, and d = 1 has no more.
    unembedding = _unembedding(code, vocab, d, seed)
    targets = scale * unembedding[labels]
    solvable = int(kept.sum()) <= rank_limit_of(contexts[kept], d=d, d_head=d_head).with_heads(heads)
    blank = AttentionMemory(
        weights=None,  # type: ignore[arg-type]  # set by certified
        contexts=contexts, labels=labels, kept=kept, rank=0, cond=float("inf"), min_margin=-np.inf,
        ideal_margin=scale * code_margin(unembedding), logit_error=np.inf, accuracy=0.0, precision="float64",
        code=code, scale=scale, seed=seed, draws=0,
    )  # fmt: skip

    def attempt(draw: FeatureDraw, number: int, *, wide: bool) -> AttentionMemory:
        solution = solve_targets(draw, contexts[kept], targets[kept], unembedding, extended=wide)
        found = replace(blank, rank=solution.spectrum.rank, cond=solution.spectrum.cond, draws=number)
        return certified(found, solution.weights)

    best: tuple[AttentionMemory, FeatureDraw] | None = None
    generator = np.random.default_rng(seed)
    for number in range(1, draws + 1):
        draw = draw_for(
            contexts[kept],
            generator,
            vocab=vocab,
            d=d,
            d_head=d_head,
            heads=heads,
            candidates=candidates,
            scales=scales,
        )
        try:
            memory = attempt(draw, number, wide=bool(extended))
        except BasisError:
            continue
        if best is None or _merit(memory) > _merit(best[0]):
            best = memory, draw
        if not solvable or (memory.cond <= WORST_COND and memory.min_margin >= memory.ideal_margin / 2):
            break
    if best is None:
        raise NumericallyInfeasible(
            f"{int(kept.sum())} contexts at d = {d}: the skip's matrix was singular in all {draws} draws;"
            " use a larger d",
            rank=0, cond=float("inf"), min_margin=None,
        )  # fmt: skip
    memory, draw = best
    good = memory.min_margin >= memory.ideal_margin / 2
    small = int(kept.sum()) <= MOST_EXTENDED and has_extended_precision()
    if solvable and not good and extended is None and small:
        memory = attempt(draw, memory.draws, wide=True)
        good = memory.min_margin >= memory.ideal_margin / 2
        short = certified(memory, memory.weights.cast(np.float64))
        if short.min_margin >= short.ideal_margin / 2:  # only the solving needed the digits
            memory, good = short, True
    if solvable and not good:
        raise NumericallyInfeasible(
            f"{int(kept.sum())} contexts with d = {d}, d_head = {d_head}, heads = {heads} cannot be solved numerically:"
            f" rank {memory.rank} of {int(kept.sum())}, condition number {memory.cond:.1e}, smallest margin"
            f" {memory.min_margin:.1e} of {memory.ideal_margin:.1e} in {memory.precision}; use a larger d,"
            " spare heads or fewer facts",
            rank=memory.rank,
            cond=memory.cond,
            min_margin=memory.min_margin,
        )
    if kept.all():
        return memory
    pi, ideal = np.eye(vocab)[labels], targets @ unembedding.T
    remainder = remainder_of(
        kept=kept,
        weight=weight,
        measured=kl_by_context(pi, logits(memory.weights, contexts).astype(np.float64)),
        encoder_kl=float(weight @ kl_by_context(pi, ideal)),
        features=draw.features(contexts),
        ideal=ideal,
        filled=rank_limit_of(contexts[kept], d=d, d_head=d_head).last_tokens < d,
    )
    return replace(memory, remainder=remainder)


def draw_for(
    contexts: np.ndarray, generator: np.random.Generator, *, vocab: int, d: int, d_head: int, heads: int,
    candidates: int, scales: tuple[float, float],
) -> FeatureDraw:  # fmt: skip
    """One draw, with as many candidates a head as memory allows. Errors: `InputError` when even one does not fit."""
    if candidates < 1 or not 0 < scales[0] <= scales[1]:
        raise InputError(f"candidates must be at least 1 and 0 < low <= high for scales, got {candidates} and {scales}")
    size = max(1, len(contexts) * heads * d_head)
    if size > LARGEST or len(contexts) ** 2 > LARGEST:
        raise InputError(
            f"{len(contexts):,} contexts with {heads} heads of {d_head} would need {8 * size / 2**30:.1f} GiB of"
            " features; split the facts over several layers or memories"
        )
    return draw_features(
        contexts, vocab=vocab, d=d, d_head=d_head, heads=heads, candidates=max(1, min(candidates, LARGEST // size)),
        scales=scales, rng=generator,
    )  # fmt: skip


def certified(memory: AttentionMemory, weights: AttentionWeights) -> AttentionMemory:
    """The certificate: the network's own logits, in its own type, on every context."""
    scores = logits(weights, memory.contexts)
    gaps = margins(scores, memory.labels)
    unembedding = _unembedding(memory.code, weights.vocab, weights.d, memory.seed)
    ideal = memory.scale * unembedding[memory.labels[memory.kept]] @ unembedding.T
    return replace(
        memory,
        weights=weights,
        min_margin=float(gaps[memory.kept].min()),
        logit_error=float(np.abs(scores[memory.kept] - ideal).max()),
        accuracy=float((gaps > 0).mean()),
        precision=str(weights.embedding.dtype) if weights.embedding.dtype != np.longdouble else "longdouble",
    )


def _unembedding(code: str, vocab: int, d: int, seed: int) -> np.ndarray:
    if d == 1 or vocab == 2 or code == "spread":
        return spread_code(vocab, min(d, vocab - 1), seed=seed)
    return circle_code(vocab)


def _check_labels(contexts: np.ndarray, labels, vocab: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (len(contexts),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels must be one whole-number token id for each of {len(contexts)} contexts")
    bad = np.flatnonzero((labels < 0) | (labels >= vocab))
    if bad.size:
        raise InputError(f"label {bad[0]} lies outside the vocabulary of {vocab} (ids 0 to {vocab - 1})")
    _, first, inverse_rows = np.unique(contexts, axis=0, return_index=True, return_inverse=True)
    if len(first) < len(contexts):
        original = first[inverse_rows.reshape(-1)]
        again = int(np.flatnonzero(original != np.arange(len(contexts)))[0])
        advice = (
            "the same label; give each context once"
            if labels[again] == labels[original[again]]
            else "another label: that is a distribution, not an association; use build_attention_distribution"
        )
        raise InputError(f"context {again} repeats context {original[again]} with {advice}")
    return labels.astype(np.int64)


def _merit(memory: AttentionMemory) -> tuple[float, float]:
    return memory.min_margin, -memory.cond
