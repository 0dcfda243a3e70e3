"""Which prompts make a model recite, and which make it generalise: labels by diversity of samples and by exact match.

    diversity = 1 - mean over pairs of samples of their token overlap
    memorized (1): diversity <= its lower quantile, and, where the training text is known, greedy exact match >= 0.9
    general (0):   diversity >= its upper quantile (and exact match below 0.9);   the middle is dropped (-1)

Low diversity is not memorization: facts and arithmetic have one right answer as well. Where the training text is known,
`rule="exact_match"` labels by it alone, which is the better ground; without it a note says what is missing. Classes
that differ in length or entropy let a probe read those instead of the mode; the notes say that too.

Source: Zhang 2025, arXiv 2510.22099: two prompt classes labelled by output diversity [secondary]. The definitions of
diversity, the quantiles and the guards are reconstructed. Knows nothing about: activations, probes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from rote.controls.decoding.blocks import prompt_ids
from rote.errors import InputError
from rote.records.table import RecordTable
from rote.runtime import derive_seed
from rote.scores.continuations import greedy_continuations, sample_continuations
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import Split
from rote.scores.tokens import score_in_memory

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

MEMORIZED, GENERAL, DROPPED = 1, 0, -1
DIVERSITIES = ("overlap", "distinct", "entropy")
RULES = ("diversity", "exact_match")
EXACT = 0.9  # share of tokens a greedy continuation must have right (reconstructed: the card's definition)
UNMATCHED = 0.5  # classes whose means differ by more than this many pooled standard deviations are not matched


@dataclass(frozen=True)
class LabelledPrompts:
    """Prompts with their mode. `prompts`: token ids without BOS; `labels`: 1 memorized, 0 general, -1 dropped;
    `groups`: the document each prompt came from (a split never divides one). `diversity` in [0, 1], `exact_match` in
    [0, 1] and `entropy` in nats per token are NaN where unknown. `notes`: sentences for people."""

    prompts: tuple[tuple[int, ...], ...]
    labels: Int[np.ndarray, " prompts"]
    groups: tuple[str, ...]
    diversity: Float[np.ndarray, " prompts"]
    exact_match: Float[np.ndarray, " prompts"]
    entropy: Float[np.ndarray, " prompts"]
    continuations: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def used(self) -> LabelledPrompts:
        """Without the dropped ones. Raises InputError when a class is empty."""
        keep = np.flatnonzero(self.labels != DROPPED)
        for label, name in ((MEMORIZED, "memorized"), (GENERAL, "general")):
            if not (self.labels == label).any():
                raise InputError(
                    f"no prompt is labelled {name}, so there are no two modes to tell apart; give prompts of both kinds"
                )
        return self.take(keep)

    def take(self, rows: Sequence[int] | Int[np.ndarray, " rows"]) -> LabelledPrompts:
        """The prompts at `rows`, in that order."""
        rows = np.asarray(rows, np.int64)
        return replace(
            self,
            prompts=tuple(self.prompts[row] for row in rows),
            labels=self.labels[rows],
            groups=tuple(self.groups[row] for row in rows),
            diversity=self.diversity[rows],
            exact_match=self.exact_match[rows],
            entropy=self.entropy[rows],
            continuations=tuple(self.continuations[row] for row in rows) if self.continuations else (),
        )

    @classmethod
    def known(
        cls,
        prompts: Sequence[Sequence[int]],
        labels: Sequence[int] | Int[np.ndarray, " prompts"],
        *,
        groups: Sequence[str] | None = None,
        continuations: Sequence[Sequence[int]] = (),
        notes: Sequence[str] = (),
    ) -> LabelledPrompts:
        """Prompts whose mode is known beforehand (planted texts, a forget and a retain set)."""
        count = len(prompts)
        labels = np.asarray(labels, np.int64)
        groups = tuple(map(str, range(count))) if groups is None else tuple(map(str, groups))
        if len(labels) != count or len(groups) != count or (continuations and len(continuations) != count):
            raise InputError(f"{count} prompts need as many labels, groups and continuations")
        if not np.isin(labels, (MEMORIZED, GENERAL, DROPPED)).all():
            raise InputError("labels are 1 (memorized), 0 (general) or -1 (left out)")
        unknown = np.full(count, np.nan)
        ids = tuple(tuple(map(int, prompt)) for prompt in prompts)
        tails = tuple(tuple(map(int, tail)) for tail in continuations)
        return cls(ids, labels, groups, unknown, unknown, unknown, tails, tuple(notes))


def pairwise_diversity(samples: Int[np.ndarray, "samples tokens"]) -> float:
    """1 - mean over pairs of |multiset intersection| / L, in [0, 1]: 0 when all samples hold the same tokens."""
    _several(samples)
    counts = [Counter(row.tolist()) for row in np.asarray(samples)]
    shared = [(a & b).total() / samples.shape[1] for a, b in combinations(counts, 2)]
    return float(1 - np.mean(shared))


def distinct_diversity(samples: Int[np.ndarray, "samples tokens"]) -> float:
    """(distinct continuations - 1) / (samples - 1), in [0, 1]."""
    _several(samples)
    return (len({row.tobytes() for row in np.ascontiguousarray(samples)}) - 1) / (len(samples) - 1)


def exact_match(
    made: Int[np.ndarray, " tokens"] | Sequence[int], reference: Int[np.ndarray, " tokens"] | Sequence[int]
) -> float:
    """Share of the reference's tokens that the continuation has at the same place; in [0, 1]."""
    want, have = np.asarray(reference), np.asarray(made)[: len(reference)]
    if not len(want):
        raise InputError("an empty reference cannot be matched")
    return float((have == want[: len(have)]).sum() / len(want))


def labels_by_rule(
    diversity: Float[np.ndarray, " prompts"],
    match: Float[np.ndarray, " prompts"],
    *,
    rule: str = "diversity",
    quantiles: tuple[float, float] = (0.3, 0.7),
    exact: float = EXACT,
) -> Int[np.ndarray, " prompts"]:
    """1, 0 or -1 for each prompt; see the head of this file. `match` is NaN where the training text is unknown.

    A prompt at both quantiles (no spread) counts as memorized: identical samples are what reciting looks like.
    Raises: InputError for an unknown rule, quantiles out of order, or exact matching without any reference.
    """
    low, high = quantiles
    if rule not in RULES or not 0 <= low < high <= 1:
        raise InputError(f"labels: rule is one of {', '.join(RULES)}, quantiles lie in [0, 1] in order")
    known = ~np.isnan(match)
    if rule == "exact_match":
        if not known.any():
            raise InputError("labels by exact match need the training text of the prompts (references)")
        found = np.full(len(match), DROPPED, np.int64)
        found[known & (match >= exact)] = MEMORIZED
        found[known & (match < exact)] = GENERAL
        return found
    lower, upper = np.quantile(diversity, quantiles)
    recites = (diversity <= lower) & ~(known & (match < exact))
    varies = (diversity >= upper) & (diversity > lower) & ~(known & (match >= exact))
    return np.where(recites, MEMORIZED, np.where(varies, GENERAL, DROPPED)).astype(np.int64)


def label_prompts(
    model: CausalLM,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    samples: int = 10,
    max_new_tokens: int = 32,
    temperature: float = 0.8,
    references: Sequence[Sequence[int] | None] | None = None,
    groups: Sequence[str] | None = None,
    measure: str = "overlap",
    rule: str = "diversity",
    quantiles: tuple[float, float] = (0.3, 0.7),
    exact: float = EXACT,
    seed: int = 0,
) -> LabelledPrompts:
    """Sample from every prompt, decode greedily, and label by what came out.

    Args:
        prompts: texts, or token ids without BOS.
        samples, temperature, max_new_tokens: m, T and L of the card's section 3.2 (its values are examples).
        references: the training text's continuation of each prompt as token ids, None where it is not known.
        groups: the document of each prompt; each its own by default.
        measure: "overlap", "distinct", or "entropy" (mean predictive entropy along the greedy path / log V).
        rule, quantiles, exact: see `labels_by_rule`.
    """
    if measure not in DIVERSITIES:
        raise InputError(f"diversity is measured by one of {', '.join(DIVERSITIES)}, not {measure!r}")
    if samples < 2:
        raise InputError("diversity needs at least 2 samples of a prompt")
    ids = prompt_ids(model, prompts)
    known = list(references) if references is not None else [None] * len(ids)
    greedy = greedy_continuations(model, ids, max_new_tokens)
    entropy = _path_entropy(model, ids, greedy)
    if measure == "entropy":
        diversity = entropy / np.log(model.vocab_size)
    else:
        of = pairwise_diversity if measure == "overlap" else distinct_diversity
        scheme = DecodingScheme(temperature=temperature)
        drawn = [
            sample_continuations(
                model, prompt, length=max_new_tokens, count=samples, scheme=scheme,
                seed=derive_seed(seed, "diversity", number),
            )
            for number, prompt in enumerate(ids)
        ]  # fmt: skip
        diversity = np.array([of(each) for each in drawn])
    match = np.array(
        [
            np.nan if reference is None else exact_match(made, list(reference)[:max_new_tokens])
            for made, reference in zip(greedy, known, strict=True)
        ]
    )
    labels = labels_by_rule(diversity, match, rule=rule, quantiles=quantiles, exact=exact)
    plain = LabelledPrompts.known(
        ids,
        labels,
        groups=groups,
        continuations=[tuple(row) for row in greedy.tolist()],
        notes=label_notes(ids, labels, entropy, references_known=bool((~np.isnan(match)).any())),
    )
    return replace(plain, diversity=diversity, exact_match=match, entropy=entropy)


def label_notes(
    prompts: Sequence[Sequence[int]],
    labels: Int[np.ndarray, " prompts"],
    entropy: Float[np.ndarray, " prompts"],
    *,
    references_known: bool,
) -> list[str]:
    """What a reader of these labels must know (reconstructed guards)."""
    notes = []
    if not references_known:
        notes.append(
            "labels come from diversity alone: a prompt with one right answer (a fact, a sum) looks memorized too;"
            " give the training text to label by exact match"
        )
    a, b = labels == MEMORIZED, labels == GENERAL
    if a.sum() < 2 or b.sum() < 2:
        return notes
    for name, values in (("length", np.array([len(p) for p in prompts], float)), ("entropy", np.asarray(entropy))):
        gap = standardised_difference(values[a], values[b])
        if abs(gap) > UNMATCHED:
            notes.append(
                f"memorized and general prompts differ in {name} by {abs(gap):.2g} standard deviations:"
                f" a probe may read {name} instead of the mode; match the classes where possible"
            )
    return notes


def standardised_difference(x: Float[np.ndarray, " m"], y: Float[np.ndarray, " n"]) -> float:
    """(mean x - mean y) / sqrt((var x + var y) / 2); 0 when neither varies and the means agree."""
    gap = float(np.mean(x) - np.mean(y))
    spread = float(np.sqrt((np.var(x) + np.var(y)) / 2))
    if spread > 0:
        return gap / spread
    return 0.0 if gap == 0 else float(np.sign(gap) * np.finfo(float).max)


def _path_entropy(model: CausalLM, prompts: Sequence[Sequence[int]], greedy: np.ndarray) -> np.ndarray:
    """Mean entropy (nats) of the next-token distributions along each greedy continuation."""
    rows = [
        {"token_ids": [*prompt, *made.tolist()], "prefix_tokens": len(prompt)}
        for prompt, made in zip(prompts, greedy, strict=True)
    ]
    scores = score_in_memory(model, RecordTable.from_rows(rows), split=Split())
    return np.array([scores.entropy[i, len(p) : len(p) + greedy.shape[1]].mean() for i, p in enumerate(prompts)], float)


def _several(samples: np.ndarray) -> None:
    if np.asarray(samples).ndim != 2 or len(samples) < 2 or samples.shape[1] < 1:
        raise InputError("diversity needs at least 2 samples of at least 1 token")
