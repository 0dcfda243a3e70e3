"""How much two populations of records share: the guard that controls really are unseen text.

If a control is a copy, or nearly one, of a target, then a model that memorized the target also knows the control, and
every comparison between the two populations is too small. If they share no phrase at all although they should be text
of the same kind, the comparison may be between kinds. Knows records; knows no model and no measure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rote.errors import InputError
from rote.records.corpus_counts import word_ids
from rote.records.near_duplicates import NearPair, find_similar, shingles, symbols
from rote.records.ngram_counts import SEPARATOR, count_sequences
from rote.records.table import RecordTable


@dataclass(frozen=True)
class PopulationOverlap:
    """Plain numbers about controls against targets; shares are of the controls, in [0, 1] (0 when there are none).

    exact        controls whose words, case and spacing aside, are those of a target.
    near         controls with shingle Jaccard >= `threshold` to some target, exact ones included.
    ngram        controls that share at least one run of `n` words with a target (shorter controls: all their words in a
                 row).
    mean_ngrams  mean over the controls of the share of their n-grams that occur in a target.
    pairs        (target, control) near pairs, at most `most_pairs`, the most similar first.
    """

    n: int
    threshold: float
    targets: int
    controls: int
    exact: int
    near: int
    ngram: int
    mean_ngrams: float
    pairs: tuple[NearPair, ...]

    @property
    def exact_share(self) -> float:
        return self.exact / self.controls if self.controls else 0.0

    @property
    def near_share(self) -> float:
        return self.near / self.controls if self.controls else 0.0

    @property
    def ngram_share(self) -> float:
        return self.ngram / self.controls if self.controls else 0.0


def overlap(
    targets: RecordTable,
    controls: RecordTable,
    *,
    n: int = 13,
    threshold: float = 0.8,
    num_perm: int = 128,
    seed: int = 0,
    most_pairs: int = 20,
) -> PopulationOverlap:
    """Exact, near and n-gram overlap of the controls with the targets, in words (in token ids for records that have no
    text).

    n = 13 words is the window that GPT-3's contamination study used (Brown et al. 2020, arXiv 2005.14165, appendix C).
    Exact but for the search of near pairs, which misses a pair at the threshold with probability below 0.001.
    Errors: `InputError` for n < 1 or a threshold outside (0, 1].
    """
    if n < 1:
        raise InputError(f"the n-gram length must be 1 or more, not {n}.")
    target_words, control_words = symbols(targets), symbols(controls)
    ids, _ = word_ids([*target_words, *control_words])
    streamed = [piece for row in ids[: len(target_words)] for piece in (row, np.array([SEPARATOR], np.uint32))]
    counts = count_sequences(ids[len(target_words) :], lambda: iter(streamed), n=n, edge_tokens=0)
    left = [frozenset(shingles(s)) for s in target_words]
    right = [frozenset(shingles(s)) for s in control_words]
    found = sorted(
        find_similar(left, right, threshold=threshold, num_perm=num_perm, seed=seed), key=lambda f: (-f[2], f[0], f[1])
    )
    near_sets = {right[j] for _, j, _ in found}
    same = {tuple(s) for s in target_words if s}
    target_ids, control_ids = targets.column("id"), controls.column("id")
    return PopulationOverlap(
        n=n,
        threshold=threshold,
        targets=len(targets),
        controls=len(controls),
        exact=sum(tuple(s) in same for s in control_words),
        near=sum(items in near_sets for items in right),
        ngram=int((counts.seen_ngrams > 0).sum()),
        mean_ngrams=float(counts.seen_ngrams.mean()) if len(controls) else 0.0,
        pairs=tuple(NearPair(target_ids[i], control_ids[j], similarity) for i, j, similarity in found[:most_pairs]),
    )
