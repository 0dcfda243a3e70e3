"""Which tokens are recited: token labels from two kinds of samples, or causally from a model that never saw the texts.

    from_samples    1: p(x_t) >= p_hi in a run of at least `min_run` tokens of a memorized sample; 0: other samples
    from_contrast   1 (memorized): p_target >= p_hi and p_control < p_lo      certain: p_hi in both
                    0 (uncertain): p_target < p_uncertain in a text that was never inserted

The label of token t belongs to position t - 1, whose activations predict it. The first input position is never a
predictor: activations there are outliers in most models. The 2nd, 3rd, ... piece of a split word is predictable from
the first in any text, and is left out unless asked for. At most `cap` tokens of one sample.

Knows probabilities of tokens. Knows nothing about: activations, probes.
Source: Slonski 2024, arXiv 2412.01014, for the rules (partial memorization, word pieces, 100 tokens a sample,
balance); the full text could not be read, so every threshold and the contrast rule are inferred, and are options.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int8

from rote.errors import InputError
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable
    from rote.scores.table import TokenScores

CONTINUATIONS = ("exclude", "keep")
INFERRED = "thresholds and rule inferred: the paper's full text was not available"


@dataclass(frozen=True)
class TokenLabels:
    """Labelled tokens of some sequences.

    sequences: token ids of every sample, BOS not among them. ids, groups: name of each sample, and of what it must
    never be split from (its passage or document). sample, token: labelled token i is token `token[i]` of sequence
    `sample[i]`. kind: index into `kinds`; kind 1 is the positive one. continuation: is it a later piece of a word.
    logp: log p(x_t) under the labelled model, NaN where labels came without one. rule: how they were made.
    """

    sequences: tuple[Int[np.ndarray, " length"], ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    sample: Int[np.ndarray, " tokens"]
    token: Int[np.ndarray, " tokens"]
    kind: Int8[np.ndarray, " tokens"]
    kinds: tuple[str, ...]
    continuation: Bool[np.ndarray, " tokens"]
    logp: Float32[np.ndarray, " tokens"]
    rule: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token)

    @property
    def label(self) -> Bool[np.ndarray, " tokens"]:
        """True at the positive kind."""
        return self.kind == 1

    @property
    def counts(self) -> dict[str, int]:
        return {name: int((self.kind == number).sum()) for number, name in enumerate(self.kinds)}

    @property
    def fingerprint(self) -> str:
        """sha256 over sequences, labelled tokens, kinds and rule."""
        digest = hashlib.sha256(json.dumps([self.ids, self.groups, self.kinds, dict(self.rule)]).encode())
        for array in (*self.sequences, self.sample, self.token, self.kind):
            digest.update(len(array).to_bytes(8, "little") + np.ascontiguousarray(array, "<i8").tobytes())
        return digest.hexdigest()

    def take(self, which: Int[np.ndarray, " chosen"] | Bool[np.ndarray, " tokens"]) -> TokenLabels:
        """Some of the labelled tokens; the sequences stay as they are."""
        which = np.flatnonzero(which) if np.asarray(which).dtype == bool else np.asarray(which, np.int64)
        chosen = {name: getattr(self, name)[which] for name in ("sample", "token", "kind", "continuation", "logp")}
        return replace(self, **chosen)

    def versus(self, *names: str) -> Bool[np.ndarray, " tokens"]:
        """True at the positive kind and at the kinds named: what a comparison uses."""
        unknown = [name for name in names if name not in self.kinds]
        if unknown or not names:
            raise InputError(f"no kind {unknown[0] if unknown else ''!r} among these labels; there are: {self.kinds}")
        return np.isin(self.kind, [1, *(self.kinds.index(name) for name in names)])

    def units_of_split(self, groups: str = "passage") -> Int[np.ndarray, " tokens"]:
        """For every labelled token, the number of the thing it must not be split from: its "passage" (the sample, or
        the group of samples that labels were made with) or its "sample"."""
        if groups not in ("passage", "sample"):
            raise InputError(f"tokens are split by 'passage' or 'sample', not {groups!r}")
        names = self.groups if groups == "passage" else self.ids
        return np.unique(np.asarray(names, object).astype(str), return_inverse=True)[1][self.sample]

    def balanced(self, *, seed: int = 0) -> TokenLabels:
        """The same number of tokens on both sides: a random part of the larger one."""
        sides = [np.flatnonzero(self.label), np.flatnonzero(~self.label)]
        size = min(len(side) for side in sides)
        rng = np.random.default_rng(derive_seed(seed, "balance"))
        return self.take(np.sort(np.concatenate([rng.permutation(side)[:size] for side in sides])))

    @classmethod
    def from_samples(
        cls,
        model: CausalLM,
        *,
        memorized: RecordTable | Sequence[str],
        other: RecordTable | Sequence[str],
        p_hi: float = 0.5,
        min_run: int = 4,
        cap: int | None = 100,
        continuations: str = "exclude",
        balance: bool = True,
        by_group: bool = False,
        long: str = "error",
        seed: int = 0,
    ) -> TokenLabels:
        """Labels from samples: `memorized` texts the model recites in part, `other` ones of the same kind it never saw.

        p_hi: a token counts as recited from this probability on (inferred; .9 is the stricter choice). min_run: length
        of the shortest recited run, word pieces counted. balance: as many tokens of both kinds. by_group: records that
        share a `group` are one passage, never split between training and test. long: "error" or "truncate", for samples
        beyond the context window.
        Raises InputError when no token is recited: then there is nothing to find.
        """
        _check(p_hi=p_hi, continuations=continuations, cap=cap)
        if min_run < 1:
            raise InputError(f"min_run must be 1 or more, not {min_run}")
        sides = [
            scored_samples(model, table, name, by_group, long)
            for table, name in ((memorized, "memorized"), (other, "other"))
        ]
        made = _Collector(("other", "memorized"), cap=cap, continuations=continuations, seed=seed)
        silent = 0
        for side, kind in zip(sides, (1, 0), strict=True):
            for sample in side:
                wanted = sample.usable
                if kind == 1:
                    recited = sample.usable & in_long_run(sample.logp >= np.log(p_hi), min_run)
                    silent += not recited.any()
                    wanted = recited
                made.add(sample, np.where(wanted, kind, -1))
        rule = {"from": "samples", "p_hi": p_hi, "min_run": min_run, "samples_not_recited": silent, "note": INFERRED}
        labels = made.finish(rule | {"balance": balance})
        if not labels.label.any():
            raise InputError(
                f"no token of the {len(sides[0])} memorized samples is recited (p >= {p_hi:g} for {min_run} tokens in a"
                " row): the model does not know them; give others, or lower p_hi"
            )
        return labels.balanced(seed=seed) if balance else labels

    @classmethod
    def from_contrast(
        cls,
        model: CausalLM,
        control: CausalLM,
        texts: RecordTable | Sequence[str],
        *,
        other: RecordTable | Sequence[str] | None = None,
        p_hi: float = 0.5,
        p_lo: float = 0.1,
        p_uncertain: float = 0.3,
        cap: int | None = 100,
        continuations: str = "exclude",
        by_group: bool = False,
        long: str = "error",
        seed: int = 0,
    ) -> TokenLabels:
        """Causal labels: what `model` knows and `control`, which never saw `texts`, does not.

        other: texts of the same kind that were inserted into neither; their tokens with p_target < p_uncertain are the
        negatives of equal difficulty. Without them, records of `texts` that are known to be unseen (`member` false or
        `duplicates` 0) serve; without those, the uncertain tokens of the texts themselves (rule["uncertain_from"] says
        which). by_group, long: as in `from_samples`. Kinds: uncertain, memorized, certain.
        Raises InputError when the two models read the texts as different tokens, or nothing is memorized.
        """
        _check(p_hi=p_hi, p_lo=p_lo, p_uncertain=p_uncertain, continuations=continuations, cap=cap)
        inserted, outside, source = _split_by_insertion(texts, other)
        mine = scored_samples(model, inserted, "texts", by_group, long)
        theirs = scored_samples(control, inserted, "texts", by_group, long)
        if [sample.ids.tolist() for sample in mine] != [sample.ids.tolist() for sample in theirs]:
            raise InputError(
                f"{model.name} and {control.name} read the texts as different tokens: the control must have the same"
                " tokenizer, or labels of one token cannot be compared"
            )
        made = _Collector(("uncertain", "memorized", "certain"), cap=cap, continuations=continuations, seed=seed)
        for sample, twin in zip(mine, theirs, strict=True):
            known, known_there = sample.logp >= np.log(p_hi), twin.logp >= np.log(p_hi)
            kind = np.where(known & (twin.logp < np.log(p_lo)), 1, np.where(known & known_there, 2, -1))
            if source == "the texts themselves":
                kind = np.where(sample.logp < np.log(p_uncertain), 0, kind)
            made.add(sample, np.where(sample.usable & twin.usable, kind, -1))
        if outside is not None:
            for sample in scored_samples(model, outside, "other", by_group, long):
                made.add(sample, np.where(sample.usable & (sample.logp < np.log(p_uncertain)), 0, -1))
        labels = made.finish(
            {
                "from": "contrast", "p_hi": p_hi, "p_lo": p_lo, "p_uncertain": p_uncertain, "uncertain_from": source,
                "control": control.fingerprint, "note": INFERRED,
            }
        )  # fmt: skip
        if not labels.label.any():
            raise InputError(
                f"no token is memorized: {model.name} gives none of them p >= {p_hi:g} where {control.name} gives"
                f" p < {p_lo:g}; are the texts in its training data, and is the control the model that never saw them?"
            )
        return labels


def in_long_run(known: Bool[np.ndarray, " tokens"], least: int) -> Bool[np.ndarray, " tokens"]:
    """True inside runs of at least `least` True values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    inside = np.zeros(len(known), bool)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        inside[start:end] = end - start >= least
    return inside


def continuation_pieces(text: str, ends: Sequence[int] | Int[np.ndarray, " tokens"]) -> Bool[np.ndarray, " tokens"]:
    """True where token t carries on a word that an earlier token began: its first character and the one before it are
    both letters or digits (or it has no character of its own, as bytes of one character do)."""
    starts = [0, *(int(end) for end in ends[:-1])]
    return np.array(
        [
            start > 0 and (end <= start or (text[start].isalnum() and text[start - 1].isalnum()))
            for start, end in zip(starts, ends, strict=True)
        ],
        bool,
    )


@dataclass(frozen=True)
class ScoredSample:
    """One sample, scored once. usable: the token is predicted, and not from the first input position."""

    name: str
    group: str
    ids: Int[np.ndarray, " tokens"]
    logp: Float[np.ndarray, " tokens"]
    continuation: Bool[np.ndarray, " tokens"]
    usable: Bool[np.ndarray, " tokens"]


class _Collector:
    """Gathers labelled tokens sample by sample: drops word pieces, applies the cap."""

    def __init__(self, kinds: tuple[str, ...], *, cap: int | None, continuations: str, seed: int):
        self.kinds, self.cap, self.keep, self.seed = kinds, cap, continuations == "keep", seed
        self.samples: list[ScoredSample] = []
        self.parts: list[tuple[np.ndarray, ...]] = []

    def add(self, sample: ScoredSample, kind: Int[np.ndarray, " tokens"]) -> None:
        """`kind` -1: not labelled."""
        wanted = (kind >= 0) & (self.keep | ~sample.continuation)
        token = np.flatnonzero(wanted)
        if self.cap is not None and len(token) > self.cap:
            rng = np.random.default_rng(derive_seed(self.seed, "cap", sample.name))
            token = np.sort(rng.permutation(token)[: self.cap])
        number = np.full(len(token), len(self.samples), np.int64)
        self.samples.append(sample)
        self.parts.append((number, token, kind[token].astype(np.int8), sample.continuation[token], sample.logp[token]))

    def finish(self, rule: Mapping[str, Any]) -> TokenLabels:
        sample, token, kind, continuation, logp = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        return TokenLabels(
            tuple(sample_.ids for sample_ in self.samples),
            tuple(sample_.name for sample_ in self.samples),
            tuple(sample_.group for sample_ in self.samples),
            sample, token, kind, self.kinds, continuation, logp.astype(np.float32),
            {**rule, "cap": self.cap, "continuations": "keep" if self.keep else "exclude", "seed": self.seed},
        )  # fmt: skip


def as_table(texts: RecordTable | Sequence[str], name: str) -> RecordTable:
    """Texts as a record table whose ids are `name:1`, `name:2`, ...; a table stays as it is."""
    from rote.records.table import RecordTable

    if isinstance(texts, RecordTable):
        return texts
    return RecordTable.from_rows(({"text": text} for text in texts), source=name)


def scored_samples(
    model: CausalLM, texts: RecordTable | Sequence[str], name: str, by_group: bool = False, long: str = "error"
) -> list[ScoredSample]:
    """Every record scored once; records of a single token are left out, as nothing in them is predicted."""
    from rote.scores.sequences import Split
    from rote.scores.tokens import score_in_memory

    table = as_table(texts, name)
    if not len(table):
        raise InputError(f"{name}: no texts were given")
    scores: TokenScores = score_in_memory(model, table, split=Split(long=long))
    names, groups, contents = (table.column(column) for column in ("id", "group", "text"))
    first = 1 if model.bos_id is not None else 2  # token t is predicted at input t - 1 (+ 1 with BOS), never input 0
    found = []
    for row, (number, length) in enumerate(zip(scores.index.tolist(), scores.length.tolist(), strict=True)):
        ids = scores.token_ids[row, :length].astype(np.int64)
        text = contents[number]
        if text is None and model.tokenizer is not None:
            text = model.decode(ids.tolist())
        ends = scores.ends[row, :length]
        pieces = continuation_pieces(text, ends) if text is not None else np.zeros(length, bool)
        logp = scores.logp[row, :length].astype(np.float64)
        usable = np.isfinite(logp) & (np.arange(length) >= first)
        sample = f"{name}/{names[number]}"
        group = f"{name}/{groups[number]}" if by_group and groups[number] else sample
        found.append(ScoredSample(sample, group, ids, logp, pieces, usable))
    return found


def _split_by_insertion(texts, other) -> tuple[RecordTable, RecordTable | None, str]:
    table = as_table(texts, "texts")
    if other is not None:
        return table, as_table(other, "other"), "other"
    unseen = table.is_control
    if unseen.any():
        return table.take(~unseen), table.take(unseen), "records known to be unseen"
    return table, None, "the texts themselves"


def _check(*, continuations: str, cap: int | None, **probabilities: float) -> None:
    for name, value in probabilities.items():
        if not 0 < value < 1:
            raise InputError(f"{name} is a probability strictly between 0 and 1, not {value}")
    if continuations not in CONTINUATIONS:
        raise InputError(f"continuations must be one of {', '.join(CONTINUATIONS)}, not {continuations!r}")
    if cap is not None and cap < 1:
        raise InputError(f"cap must be 1 token or more, or None, not {cap}")
