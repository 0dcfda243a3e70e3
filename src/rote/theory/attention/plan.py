"""Capacity planning: how many heads and parameters N facts need in one attention layer, beside other people's bounds.

Knows the formulas of `rote.theory.attention.bounds` and puts them in one table. Deliberately builds and trains nothing.

Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from rote.errors import InputError
from rote.theory.attention import bounds
from rote.theory.attention.codes import circle_margin, circle_scale_for
from rote.theory.attention.ranks import RankLimit, rank_limit_at_best, rank_limit_of


@dataclass(frozen=True)
class AttentionPlan:
    """What one attention-only layer needs to store `n_facts` contexts of `context` tokens with one next token each.

    `heads_needed`: fewest whose features can have rank n_facts; `capacity`: the rank they can have. `heads_by_formula`:
    fewest with H d_h + d >= n_facts (Corollary 1), fewer only where `caveat` says why. `parameters` is
    d (S + 2N + 4 d_h H), `parameters_rank_one` with rank-1 W_QK, which the construction uses.
    `circle_margin`: 1 - cos(2 pi/N), the smallest logit margin at scale 1 on the circle code (d = 2 suffices);
    `circle_scale`: a scale at which the circle code's KL is at most 0.01 nats. `prior_bound_heads`: Mahdavi et al.,
    None where their S <= d fails. `distribution_dimension`: the d at which soft targets too are exact (N - 1).
    """

    n_facts: int
    vocab: int
    context: int
    d: int
    d_head: int
    heads_needed: int
    heads_by_formula: int
    capacity: int
    parameters: int
    parameters_rank_one: int
    possible_contexts: int
    circle_margin: float
    circle_scale: float
    distribution_dimension: int
    prior_bound_heads: int | None
    relu_mlp_neurons: int
    linear_memory_dimension: int
    caveat: str | None
    limit: RankLimit
    rates: tuple[bounds.Rate, ...]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self) | {"rates": [asdict(rate) for rate in self.rates]}


def attention_plan(
    *,
    n_facts: int,
    vocab: int,
    context: int,
    d: int,
    d_head: int,
    contexts: Int[np.ndarray, "contexts context"] | None = None,
) -> AttentionPlan:
    """Heads, parameters and margins for exact storage in one attention-only layer (Corollary 1 for any d).

    `contexts`: the contexts themselves, if at hand; how many last tokens they have can cost heads. Without them every
    token is taken to occur at every position.
    Errors: `InputError` for sizes below their least, d_head > d, more facts than the N^S contexts there are, a single
    token of context with more facts than d, and d = 1 with more than two tokens.
    """
    for name, value, least in (("n_facts", n_facts, 1), ("vocab", vocab, 2), ("context", context, 1)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, not {value}")
    formula = bounds.heads_for(n_facts, d=d, d_head=d_head)
    if n_facts > vocab**context:
        raise InputError(
            f"{n_facts:,} facts, but {vocab} tokens make only {vocab**context:,} contexts of {context}; count each"
            " context once"
        )
    if context == 1 and n_facts > d:
        raise InputError(
            f"with a single token of context, attention is the identity and heads add nothing: at most d = {d} facts,"
            f" not {n_facts}; use d >= {n_facts} or longer contexts"
        )
    if d == 1 and vocab > 2:
        raise InputError(f"d = 1 gives each of {vocab} tokens no direction of its own; use d >= 2")
    if contexts is None:
        limit = rank_limit_at_best(vocab=vocab, context=context, d=d, d_head=d_head)
    else:
        limit = rank_limit_of(contexts, d=d, d_head=d_head)
    heads = limit.heads_for(n_facts)
    if heads is None:
        raise InputError(
            f"contexts with {limit.last_tokens} last tokens hold no {n_facts} facts at any number of heads"
        )
    caveat = None
    if heads != formula:
        caveat = (
            f"H d_h + d >= {n_facts} would allow {formula} heads, but with {limit.last_tokens} different last tokens"
            f" and a span of {limit.span} the features' rank is at most {limit.skip} + H * {limit.per_head}"
            " (derived here, not in the paper)"
        )
    sizes: Any = {"vocab": vocab, "context": context, "d": d, "d_head": d_head, "heads": heads}
    return AttentionPlan(
        n_facts=n_facts,
        vocab=vocab,
        context=context,
        d=d,
        d_head=d_head,
        heads_needed=heads,
        heads_by_formula=formula,
        capacity=limit.with_heads(heads),
        parameters=bounds.parameter_count(**sizes),
        parameters_rank_one=bounds.parameter_count(**sizes, rank_one=True),
        possible_contexts=vocab**context,
        circle_margin=circle_margin(vocab),
        circle_scale=circle_scale_for(vocab, 0.01),
        distribution_dimension=bounds.zero_floor_dimension(vocab),
        prior_bound_heads=bounds.mahdavi_heads(n_facts, d_head=d_head, d=d, context=context),
        relu_mlp_neurons=bounds.relu_mlp_neurons(n_facts),
        linear_memory_dimension=n_facts,  # about d associations from d^2 weights, so d = n_facts
        caveat=caveat,
        limit=limit,
        rates=(
            bounds.kim_rate(associations=n_facts, vocab=vocab, context=context),
            bounds.attention_as_mlp_rate(associations=n_facts, vocab=vocab, context=context, d=d),
        ),
    )


def scaling_rows(plan: AttentionPlan, *, points: int = 40) -> list[dict]:
    """Heads against associations stored, this construction's, H d_h + d, Mahdavi et al.'s, and parameters."""
    last = max(4, 2 * plan.heads_needed)
    step = max(1, -(-last // points))
    rows = []
    for heads in sorted({*range(0, last + 1, step), plan.heads_needed}):
        sizes: Any = {"d": plan.d, "d_head": plan.d_head, "heads": heads, "context": plan.context}
        rows.append(
            {
                "heads": heads,
                "capacity": min(plan.possible_contexts, plan.limit.with_heads(heads)),
                "formula": bounds.capacity(**sizes),
                "mahdavi": bounds.mahdavi_capacity(**sizes) if heads else None,
                "parameters": bounds.parameter_count(vocab=plan.vocab, **sizes),
                "parameters_rank_one": bounds.parameter_count(vocab=plan.vocab, **sizes, rank_one=True),
            }
        )
    return rows
