"""What random layers can tell apart: rank and distances of last-position features of all short words. [derived]

Theorem 4.1 seen in numbers: words of one symbol coincide, whatever the depth; all others are independent with two or
three layers; one layer sees the last symbol and the frequencies only.
Knows nothing about: answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rote.theory.cot.fixed_precision import FixedPrecisionTransformer, Shape, features_of, random_integers
from rote.theory.cot.labelings import all_words
from rote.theory.cot.words import single_symbol

DIGITS = 4


@dataclass(frozen=True)
class FeatureRank:
    """words: all words up to the length; mixed: those of two types or more; rank of their feature matrix.

    nearest: least distance of two features, one word standing for all gamma_k^m; single_spread: largest distance of the
    features of gamma_k and gamma_k^m (rounding alone), single_norm: the least length of a gamma_k's feature; gap: ratio
    of the least kept to the largest dropped singular value (infinite when none is dropped), how clear the rank is.
    """

    length: int
    layers: int
    words: int
    mixed: int
    rank: int
    nearest: float
    single_spread: float
    single_norm: float
    gap: float


def feature_rank(*, length: int, layers: int, width: int = 96, symbols: int = 2, seed: int = 0) -> FeatureRank:
    """Rank over all words of length <= `length` of random features without positions; singular values below 10^-9
    of the largest are rounding."""
    shape = Shape(symbols, width, layers, 2, 4 * width)
    model = FixedPrecisionTransformer(shape, random_integers(shape, digits=DIGITS, seed=seed), digits=DIGITS)
    words = all_words(length=length, symbols=symbols)
    phi = features_of(model, words)
    values = np.linalg.svd(phi, compute_uv=False)
    kept = values > 1e-9 * values[0]
    rank = int(kept.sum())
    single = [single_symbol(word) for word in words]
    first = [row for row, (word, k) in enumerate(zip(words, single, strict=True)) if k is None or len(word) == 1]
    distances = np.linalg.norm(phi[first, None] - phi[None, first], axis=-1)
    nearest = distances[np.triu_indices(len(first), 1)].min() if len(first) > 1 else np.inf
    spread = max(
        (float(np.linalg.norm(phi[row] - phi[k])) for row, k in enumerate(single) if k is not None), default=0.0
    )  # all_words begins with the words of one symbol, so phi[k] is the feature of gamma_k
    norm = float(np.linalg.norm(phi[:symbols], axis=1).min())
    gap = float(values[rank - 1] / values[rank]) if rank < len(values) and values[rank] > 0 else np.inf
    return FeatureRank(
        length, layers, len(words), sum(k is None for k in single), rank, float(nearest), spread, norm, gap
    )
