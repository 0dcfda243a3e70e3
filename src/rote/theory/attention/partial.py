"""When not every context fits: which ones are kept, and what Theorem 1 says about the rest (eps > 0).

Knows priors, limits and the bound. Deliberately does not know how the kept ones are solved.

Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, Theorem 1, appendix A.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from rote.errors import InputError
from rote.theory.attention import bounds
from rote.theory.attention.ranks import likeliest_within_limit, rank_limit_of

EXCESS = ("refuse", "least_squares", "most_likely")


@dataclass(frozen=True)
class Remainder:
    """What Theorem 1 says about the contexts that were not kept (eps > 0), beside what was measured. KL in nats.

    `bound` = encoder_kl + C eps |W E|_2, an upper bound on `kl`; `kl_rest` is the mean over the contexts left out.
    `bound` and `constant` are None where the skip had to be filled up (fewer last tokens than d), which the theorem's
    minimum-norm solution does not know.
    """

    eps: float
    left_out: int
    kl: float
    kl_rest: float
    encoder_kl: float
    constant: float | None
    logit_norm: float
    bound: float | None


def remainder_of(
    *, kept: np.ndarray, weight: np.ndarray, measured: np.ndarray, encoder_kl: float, features: np.ndarray,
    ideal: np.ndarray, filled: bool,
) -> Remainder:  # fmt: skip
    """Theorem 1 at eps > 0 for a built memory: its constant, its bound, and what the network really does."""
    rest = ~kept
    eps, norm = float(weight[rest].sum()), float(np.linalg.norm(ideal, 2))
    constant = None if filled else bounds.theorem1_constant(features, kept).published
    return Remainder(
        eps=eps,
        left_out=int(rest.sum()),
        kl=float(weight @ measured),
        kl_rest=float(weight[rest] @ measured[rest] / eps) if eps > 0 else float(measured[rest].mean()),
        encoder_kl=encoder_kl,
        constant=constant,
        logit_norm=norm,
        bound=None
        if constant is None
        else bounds.theorem1_bound(floor=encoder_kl, constant=constant, eps=eps, logit_norm=norm),
    )


def choose_kept(
    contexts: Int[np.ndarray, "contexts context"], weight: np.ndarray, excess: str, *, d: int, d_head: int, heads: int
) -> np.ndarray:
    """Mask of the contexts to solve exactly. Errors: `InputError` saying why not all fit, when told to refuse."""
    count, length = contexts.shape
    limit = rank_limit_of(contexts, d=d, d_head=d_head)
    if count <= limit.with_heads(heads) or excess == "least_squares":
        return np.ones(count, dtype=bool)
    if excess == "most_likely":
        return likeliest_within_limit(contexts, weight, d=d, d_head=d_head, heads=heads)
    if length == 1:
        raise InputError(
            f"{count} contexts of a single token: attention over one token is the identity, so heads add nothing and at"
            f" most d = {d} contexts can be stored; use d >= {count} or longer contexts"
        )
    formula = bounds.capacity(d=d, d_head=d_head, heads=heads, context=length)
    why = f"the {formula} that {heads} heads of dimension {d_head} and d = {d} store exactly"
    if count <= formula:
        why = (
            f"the rank {limit.with_heads(heads)} that contexts with {limit.last_tokens} different last tokens and a"
            f" span of {limit.span} can have at {heads} heads of dimension {d_head} and d = {d}"
        )
    raise InputError(f"{count} contexts exceed {why}; use {limit.heads_for(count)} heads, or excess='most_likely'")
