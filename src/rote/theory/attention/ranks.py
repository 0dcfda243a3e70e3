"""How many contexts can be told apart linearly: the structural limit on the rank of one attention layer's features.

Derived here, not in the paper. Corollary 1's H d_h + d counts columns; the features cannot always fill them:

* the skip x(t,S) depends on the last token alone, so it gives at most min(d, L) with L different last tokens;
* every A^h(t) is an average of vectors x(n,s), so together with the constant a head gives at most as many functions as
  those vectors have affine dimensions. With g = (tokens used + S - connected parts of the graph token-position) that is
  g - 1, and where d >= g the constant is already a function of the last token.

So rank <= min(contexts, min(d, L) + H d_h) for d < g, and min(contexts, L + H min(d_h, g - 1)) for d >= g, whatever the
weights; for S = 1 it is min(d, L). Example against Theorem 1 as printed: H = 0, d = 2, two contexts with one last token
and different labels. For vocabularies larger than d, and contexts with at least d different last tokens, the limit is
H d_h + d. Knows nothing about weights; that the limit is reached is measured for every draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from rote.theory.attention.bounds import capacity, check_sizes


@dataclass(frozen=True)
class RankLimit:
    """rank <= skip + heads * per_head. `last_tokens` = L, `span` = g of the contexts meant."""

    skip: int
    per_head: int
    last_tokens: int
    span: int

    def with_heads(self, heads: int) -> int:
        """Contexts that can be linearly independent with this many heads."""
        return self.skip + heads * self.per_head

    def heads_for(self, contexts: int) -> int | None:
        """Fewest heads with room for this many contexts; None where heads add nothing (S = 1)."""
        if contexts <= self.skip:
            return 0
        return -(-(contexts - self.skip) // self.per_head) if self.per_head else None


def rank_limit(*, d: int, d_head: int, context: int, last_tokens: int, span: int) -> RankLimit:
    """The limit from L = `last_tokens` and g = `span`."""
    check_sizes(d=d, d_head=d_head, heads=0, context=context)
    per_head = 0 if context == 1 else min(d_head, span - 1) if d >= span else d_head
    return RankLimit(min(d, last_tokens), per_head, last_tokens, span)


def rank_limit_at_best(*, vocab: int, context: int, d: int, d_head: int) -> RankLimit:
    """The limit when contexts use every token at every position: L = N, g = N + S - 1."""
    return rank_limit(d=d, d_head=d_head, context=context, last_tokens=vocab, span=vocab + context - 1)


def rank_limit_of(contexts: Int[np.ndarray, "contexts context"], *, d: int, d_head: int) -> RankLimit:
    """The limit for these contexts."""
    graph = _TokenPositions()
    for row in np.asarray(contexts).tolist():
        graph.add(row)
    return graph.limit(d=d, d_head=d_head, context=contexts.shape[1])


def likeliest_within_limit(
    contexts: Int[np.ndarray, "contexts context"], weight: np.ndarray, *, d: int, d_head: int, heads: int
) -> np.ndarray:
    """Mask of contexts taken greedily, most likely first, as long as the limit has room for all that were taken.

    A context is passed over when, with those before it, it would exceed the limit; later ones may still fit. Where
    the limit is H d_h + d throughout these are the H d_h + d most likely contexts of Theorem 1.
    """
    graph, taken = _TokenPositions(), np.zeros(len(contexts), dtype=bool)
    most = capacity(d=d, d_head=d_head, heads=heads, context=contexts.shape[1])
    rows = np.asarray(contexts).tolist()
    for index in np.argsort(-weight, kind="stable"):
        if taken.sum() == most:
            break
        trial = graph.copy()
        trial.add(rows[index])
        if taken.sum() + 1 <= trial.limit(d=d, d_head=d_head, context=contexts.shape[1]).with_heads(heads):
            graph, taken[index] = trial, True
    return taken


class _TokenPositions:
    """Which tokens stand at which positions, and which last: a union-find over tokens and positions."""

    def __init__(self):
        self.parent: dict[tuple[str, int], tuple[str, int]] = {}
        self.last: set[int] = set()

    def copy(self) -> _TokenPositions:
        other = _TokenPositions()
        other.parent, other.last = dict(self.parent), set(self.last)
        return other

    def add(self, tokens: list[int]) -> None:
        for position, token in enumerate(tokens):
            left, right = self._root(("token", token)), self._root(("position", position))
            self.parent[left] = right
        self.last.add(tokens[-1])

    def limit(self, *, d: int, d_head: int, context: int) -> RankLimit:
        roots = sum(node == parent for node, parent in self.parent.items())
        span = len(self.parent) - roots
        return rank_limit(d=d, d_head=d_head, context=context, last_tokens=len(self.last), span=span)

    def _root(self, node: tuple[str, int]) -> tuple[str, int]:
        while self.parent.setdefault(node, node) != node:
            self.parent[node] = node = self.parent[self.parent[node]]
        return node
