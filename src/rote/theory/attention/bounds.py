"""Capacity statements as calculators: every constant the theorems give, and an honest label where there is only a rate.

Knows formulas. Deliberately knows no network and no data: a bound computed here says what exists, not what training
finds.

Source, unless a function names another: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, sections 3 to 6, appendix A).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from rote.errors import InputError


@dataclass(frozen=True)
class Rate:
    """A growth rate whose constant is not published: `value` is the expression without it, never a count."""

    expression: str
    value: float
    source: str
    label: str = "rate only: the constant is not given, so this is no number of parameters"


def capacity(*, d: int, d_head: int, heads: int, context: int) -> int:
    """T_0 = H d_h + d associations stored exactly (Theorem 1 with eps = 0, Corollary 1), for any S >= 2.

    For S = 1 attention over one token is the identity, every head repeats the skip, and the rank is d (derived; not
    discussed in the paper). The formula takes for granted a vocabulary larger than d and at least d different last
    tokens: `rote.theory.attention.ranks` has the limit without that.
    """
    check_sizes(d=d, d_head=d_head, heads=heads, context=context)
    return d if context == 1 else heads * d_head + d


def heads_for(associations: int, *, d: int, d_head: int) -> int:
    """Fewest heads with H d_h + d >= T_0."""
    check_sizes(d=d, d_head=d_head, heads=0, context=2)
    return max(0, -(-(associations - d) // d_head))


def parameter_count(*, vocab: int, context: int, d: int, d_head: int, heads: int, rank_one: bool = False) -> int:
    """d (S + 2N + 4 d_h H), or d (S + 2N + 2 (d_h + 1) H) with rank-1 W_QK (Theorem 1). Corollary 1 is d = 2."""
    check_sizes(d=d, d_head=d_head, heads=heads, context=context)
    per_head = 2 * (d_head + 1) if rank_one else 4 * d_head
    return d * (context + 2 * vocab + per_head * heads)


def zero_floor_dimension(vocab: int) -> int:
    """N - 1: at this d every full-support pi is reached exactly; below it some pi is not (Proposition 2).

    One less than N, because softmax ignores a shift of all logits.
    """
    return vocab - 1


def t_epsilon(prior: Sequence[float] | Float[np.ndarray, " contexts"], eps: float) -> int:
    """T_eps: fewest contexts whose total prior exceeds 1 - eps; for eps = 0 the number of contexts with prior > 0.

    `prior` may be probabilities or counts; the sum is exact (rational) arithmetic on the numbers given, and `eps` is
    read as the decimal that is written. Errors: `InputError` for a negative or infinite weight, or eps outside [0, 1).
    """
    weights = [float(weight) for weight in prior]
    if not weights or not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
        raise InputError("the prior over contexts needs finite weights of at least 0, not all 0")
    if not 0 <= eps < 1:
        raise InputError(f"eps must be in [0, 1), not {eps}")
    exact = sorted((Fraction(weight) for weight in weights if weight > 0), reverse=True)
    if eps == 0:
        return len(exact)
    wanted = (1 - Fraction(str(float(eps)))) * sum(exact)
    total = Fraction(0)
    for count, weight in enumerate(exact, start=1):
        total += weight
        if total > wanted:
            return count
    return len(exact)


@dataclass(frozen=True)
class Theorem1Constant:
    """C of Theorem 1 for given features. `published` is the proceedings' constant, `preprint` the one in the preprint's
    main text (None where its inverse is not square)."""

    published: float
    preprint: float | None


def theorem1_constant(features: Float[np.ndarray, "contexts columns"], kept: np.ndarray) -> Theorem1Constant:
    """C = 2 sqrt(1 + |(P_1 V P_1^T)^-1 P_1 V P_2^T|^2), spectral norm, from W_V A' = U I_Sigma P_1 V.

    In terms of Phi's columns over kept (1) and remaining (2) contexts the matrix is Phi_1^+ Phi_2, which is how it is
    computed; this also covers spare columns. KL changes by at most twice the largest logit change, hence the 2.
    preprint: sqrt(1 + |(P_1 V P_1^T)^-1|^2) = sqrt(2 + |Phi_1^+ Phi_2|^2): without that 2, so not proved as a bound.
    """
    kept = np.asarray(kept, dtype=bool)
    first, second = features[kept], features[~kept]
    if np.linalg.matrix_rank(first) < len(first):
        raise InputError("Theorem 1's constant needs linearly independent features over the kept contexts")
    spill = np.linalg.lstsq(first.T, second.T, rcond=None)[0] if len(second) else np.zeros((len(first), 0))
    norm = float(np.linalg.norm(spill, 2)) if spill.size else 0.0
    square = len(first) == features.shape[1]
    return Theorem1Constant(2 * math.sqrt(1 + norm**2), math.sqrt(2 + norm**2) if square and len(second) else None)


def theorem1_bound(*, floor: float, constant: float, eps: float, logit_norm: float) -> float:
    """d_KL(pi, T) <= d_KL(pi, L) + C eps |W E|_2 (+ gamma, which the exact construction does not need), in nats."""
    return floor + constant * eps * logit_norm


def accuracy_from_associations(associations: float, *, vocab: int, contexts: int) -> float:
    """phi(X) = 1/N + (1 - 1/N) X / T_0, clipped at 1: accuracy when X of T_0 equally likely contexts are stored."""
    return min(1.0, 1 / vocab + (1 - 1 / vocab) * associations / contexts)


def associations_from_accuracy(accuracy: float, *, vocab: int, contexts: int) -> float:
    """The inverse of phi: T_0 (acc - 1/N) / (1 - 1/N). Negative below chance."""
    return contexts * (accuracy - 1 / vocab) / (1 - 1 / vocab)


def corollary2_accuracy(*, vocab: int, contexts: int, d: int, d_head: int, heads: int, context: int = 2) -> float:
    """Corollary 2 (uniform prior): an attention-only Transformer with accuracy >= 1/N + (1 - 1/N)(H d_h + d)/T_0
    exists.

    A statement of existence: a trained model may fall below it.
    """
    stored = capacity(d=d, d_head=d_head, heads=heads, context=context)
    return accuracy_from_associations(stored, vocab=vocab, contexts=contexts)


# --- work by others, for comparison ----------------------------------------------------------------------------------


def mahdavi_capacity(*, heads: int, d_head: int, d: int, context: int, query_rank: int | None = None) -> int | None:
    """H (min(Q, d_h) - 1) + 1 examples (Mahdavi et al. 2024, arXiv 2306.02010, Theorem 1); None where S > d.

    Q is the rank of the queries, d_h by default. Their model has no skip connection and reads vectors, not tokens.
    """
    if context > d:
        return None
    return heads * (min(d_head, query_rank if query_rank is not None else d_head) - 1) + 1


def mahdavi_heads(associations: int, *, d_head: int, d: int, context: int) -> int | None:
    """Fewest heads with H (d_h - 1) + 1 >= T_0; None where S > d or d_h = 1, where the bound stores one example."""
    if context > d or (d_head == 1 and associations > 1):
        return None
    return max(1, -(-(associations - 1) // max(1, d_head - 1)))


def kim_rate(*, associations: int, vocab: int, context: int) -> Rate:
    """O(S + N + sqrt(T_0 log T_0)) parameters with deep, width-16 MLPs (Kim et al. 2023, as in section 6)."""
    root = math.sqrt(associations * math.log(associations)) if associations > 1 else 0.0
    return Rate(
        "S + N + sqrt(T0 log T0)", context + vocab + root, "Kim et al. 2023 (ICLR), adapted by Dana et al., section 6"
    )


def attention_as_mlp_rate(*, associations: int, vocab: int, context: int, d: int) -> Rate:
    """O((d + S)(S + N + T_0)) parameters when heads imitate MLP neurons (Huben & Morris, as counted in section 6)."""
    value = float((d + context) * (context + vocab + associations))
    return Rate("(d + S)(S + N + T0)", value, "Huben & Morris, as counted by Dana et al. 2024, section 6")


def relu_mlp_neurons(associations: int) -> int:
    """n ReLU neurons store n real-valued labels (Bubeck et al. 2020, as quoted in section 1)."""
    return associations


def linear_memory_capacity(d: int) -> int:
    """About d associations from the d^2 weights of a linear memory (Bietti, Cabannes et al., quoted in section 6)."""
    return d


def check_sizes(*, d: int, d_head: int, heads: int, context: int) -> None:
    """Sizes of a layer: d, d_h, S >= 1, H >= 0, d_h <= d. Errors: `InputError` otherwise."""
    for name, value, least in (("d", d, 1), ("d_head", d_head, 1), ("heads", heads, 0), ("context", context, 1)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, not {value}")
    if d_head > d:
        raise InputError(f"d_head is {d_head}, but a head's dimension cannot exceed d = {d}; lower d_head or raise d")
