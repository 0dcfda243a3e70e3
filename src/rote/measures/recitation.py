"""Recitation by greedy decoding: exact and near-exact suffixes, how the output distribution drifted, prompts that move.

    d = token-level Levenshtein distance of the generated and the true suffix, L = length of the true suffix
    strict = mean 1[d = 0]     loose = mean 1[1 - d/L >= 0.75]     levenshtein = mean d/L (higher = less recited)

Pure functions of token ids. Whether greedy decoding emits a suffix is known from one teacher-forced pass already
(`rote.measures.extraction.greedy_extractable`); d needs the generated ids (`rote.scores.continuations`).
Knows nothing about: models, tokenizers, how anything was generated.
Source: Merullo et al. 2025, arXiv 2510.24256 (metrics); the stated choices are the card's reading of their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from rote.errors import InputError
from rote.measures.statistics import Estimate, bootstrap, proportion
from rote.measures.strings import edit_distance, longest_run

LOOSE = 0.75  # least similarity 1 - d/L of a loose hit (Merullo et al. 2025)
STRESS_TOKENS = 20  # t of the position stress test (Merullo et al. 2025)


@dataclass(frozen=True)
class Recitation:
    """strict and loose rates (Clopper-Pearson 95 %), mean normalised distance (bootstrap 95 %), and d of every item."""

    strict: Estimate
    loose: Estimate
    levenshtein: Estimate
    distances: Int[np.ndarray, " items"]
    lengths: Int[np.ndarray, " items"]


def token_distances(
    generated: Sequence[Sequence[int]] | Int[np.ndarray, "items tokens"],
    target: Sequence[Sequence[int]] | Int[np.ndarray, "items tokens"],
) -> tuple[Int[np.ndarray, " items"], Int[np.ndarray, " items"]]:
    """(d, L) per item. Rows of a matrix may be padded with -1. Errors: InputError for unequal numbers of items, or an
    empty target."""
    made, wanted = [_row(row) for row in generated], [_row(row) for row in target]
    if len(made) != len(wanted) or not wanted:
        raise InputError(
            f"recitation compares as many suffixes as targets, 1 or more; got {len(made)} and {len(wanted)}"
        )
    empty = [number for number, row in enumerate(wanted) if not len(row)]
    if empty:
        raise InputError(f"item {empty[0]}: its true suffix is empty")
    d = np.array([edit_distance(a, b) for a, b in zip(made, wanted, strict=True)], np.int64)
    return d, np.array([len(row) for row in wanted], np.int64)


def recitation(
    generated: Sequence[Sequence[int]] | Int[np.ndarray, "items tokens"],
    target: Sequence[Sequence[int]] | Int[np.ndarray, "items tokens"],
    *,
    loose: float = LOOSE,
    seed: int = 0,
) -> Recitation:
    """strict, loose and mean d/L of generated against true suffixes; all in [0, 1] (d/L may pass 1 for long outputs).

    `loose` is the least similarity that counts; the boundary itself counts. Errors: `token_distances`'.
    """
    d, lengths = token_distances(generated, target)
    near = lengths - d >= loose * lengths - 1e-9
    share = d / lengths
    return Recitation(
        strict=proportion(int((d == 0).sum()), len(d)),
        loose=proportion(int(near.sum()), len(d)),
        levenshtein=bootstrap(share, seed=seed),
        distances=d,
        lengths=lengths,
    )


def ndcg_graded(
    original: Int[np.ndarray, "positions k"], edited: Int[np.ndarray, "positions k"]
) -> Float[np.ndarray, " positions"]:
    """nDCG@K of the edited model's top-K tokens against the original's, graded: the variant of the paper's CODE.

        DCG = sum_{r=1}^{K} gain(e_r) / log2(r + 1),   gain(v) = K - rank0(v) in the original's list (0 if not in it)

    divided by the DCG of the original's own order. Rows are distinct token ids, best first. Range [0, 1]; 1 exactly
    when both lists agree in order. Higher = less drift.
    """
    gains, discount = _gains(original, edited), _discount(original)
    k = discount.size
    return (gains * discount).sum(1) / float(((k - np.arange(k)) * discount).sum())


def ndcg_membership(
    original: Int[np.ndarray, "positions k"], edited: Int[np.ndarray, "positions k"]
) -> Float[np.ndarray, " positions"]:
    """nDCG@K by the paper's FORMULA: rel(r) = K - r + 1 when the edited model's r-th token is anywhere in the
    original's top K, else 0. A permutation inside the top K scores 1. Range [0, 1]."""
    discount = _discount(original)
    k = discount.size
    weights = (k - np.arange(k)) * discount
    return ((_gains(original, edited) > 0) * weights).sum(1) / float(weights.sum())


def stress_windows(prefix: int, suffix: int, *, t: int = STRESS_TOKENS) -> list[tuple[int, int]]:
    """Prompts of the position stress test for an item of `prefix` n and `suffix` k tokens, as [start, stop) slices.

    The item's beginning with i = 0 .. min(t, k) more tokens, and the last t + 1 .. n tokens of the prefix; the original
    prompt [0, n), which is in both lists, is left out of both: min(t, k) + 1 + (n - t) - 2 prompts (63 for n = 64,
    k = 48, t = 20). What follows a prompt is its gold text. Errors: InputError unless 0 <= t < n.
    """
    if not 0 <= t < prefix or suffix < 1:
        raise InputError(
            f"the stress test needs 0 <= t < prefix and a suffix; got t {t}, prefix {prefix}, suffix {suffix}"
        )
    longer = [(0, prefix + more) for more in range(min(t, suffix) + 1)]
    shorter = [(prefix - kept, prefix) for kept in range(t + 1, prefix + 1)]
    return [window for window in longer + shorter if window != (0, prefix)]


def longest_exact_match(
    generated: Int[np.ndarray, "prompts tokens"], gold: Int[np.ndarray, "prompts tokens"]
) -> Int[np.ndarray, " prompts"]:
    """Longest run of positions at which generated and gold ids agree, aligned; -1 pads gold and never matches.

    The paper's score of a stress prompt; an item's score is the largest over its prompts.
    """
    generated, gold = np.asarray(generated), np.asarray(gold)
    if generated.shape != gold.shape:
        raise InputError(f"generated {generated.shape} and gold {gold.shape} must be of one shape")
    return longest_run((generated == gold) & (gold >= 0))


@dataclass(frozen=True)
class Perplexity:
    """`pooled` = exp(mean loss over all tokens); `mean_of_blocks` = mean over blocks of exp(block's mean loss): what
    the paper's code reports, and never the smaller one for blocks of equal length."""

    pooled: float
    mean_of_blocks: float
    tokens: int


def perplexity(logp: Float[np.ndarray, "blocks tokens"]) -> Perplexity:
    """Both perplexities from log p of every token (nats); NaN marks tokens that nothing predicts or padding.

    Errors: InputError when no token is predicted.
    """
    losses = -np.asarray(logp, np.float64)
    counted = ~np.isnan(losses)
    if not counted.any():
        raise InputError("perplexity needs at least one predicted token")
    rows = counted.any(1)
    per_block = np.where(counted, losses, 0.0).sum(1)[rows] / counted.sum(1)[rows]
    return Perplexity(
        pooled=float(np.exp(losses[counted].mean())),
        mean_of_blocks=float(np.exp(per_block).mean()),
        tokens=int(counted.sum()),
    )


def _row(row: ArrayLike) -> list[int]:
    ids = np.asarray(row, np.int64)
    return ids[ids >= 0].tolist()


def _gains(original: np.ndarray, edited: np.ndarray) -> Float[np.ndarray, "positions k"]:
    original, edited = np.asarray(original), np.asarray(edited)
    if original.shape != edited.shape or original.ndim != 2 or not original.size:
        raise InputError(
            f"the two top-K lists must be matrices (positions, K) of one shape, got {original.shape} and {edited.shape}"
        )
    if (np.diff(np.sort(original, axis=1), axis=1) == 0).any() or (np.diff(np.sort(edited, axis=1), axis=1) == 0).any():
        raise InputError("a top-K list names a token twice")
    same = edited[:, :, None] == original[:, None, :]
    k = original.shape[1]
    return (same * (k - np.arange(k))).sum(2).astype(np.float64)


def _discount(original: np.ndarray) -> Float[np.ndarray, " k"]:
    return 1.0 / np.log2(np.arange(np.asarray(original).shape[1]) + 2.0)
