"""Validity guards: can members and non-members be told apart WITHOUT the model?

If a bag of words, the length or the date of a record separates the two groups, a membership AUROC measures the choice
of records, not memorization. Knows texts (or token ids), numbers and labels; knows nothing about any model. Each guard
returns a verdict with an interval; none of them repeats record contents.
Source of the idea: Das et al. 2024, arXiv 2406.16201 (blind baselines); Meeus et al. 2024, arXiv 2406.17975.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from rote.errors import InputError
from rote.measures.roc import AurocEstimate, delong, delong_stratified

_SPOILS = ("membership.auroc", "membership.tpr")
_LEAST = 10  # records per side under which a cross-validated AUROC says nothing
_MOST = 4000  # records per side used; beyond it the interval is narrower than any decision needs


@dataclass(frozen=True)
class Guard:
    """One validity check: `status` "pass", "fail" or "not_run", the number it rests on, and what a failure spoils."""

    name: str
    title: str
    status: str
    value: float | None
    low: float | None
    high: float | None
    limit: float
    spoils: tuple[str, ...]
    message: str

    def as_dict(self) -> dict:
        """The keys of a findings guard."""
        return asdict(self) | {"spoils": list(self.spoils)}


def _verdict(name: str, title: str, what: str, estimate: AurocEstimate | str, limit: float) -> Guard:
    """Fail when the blind AUROC is above the limit and its interval is above chance."""
    if isinstance(estimate, str):
        return Guard(name, title, "not_run", None, None, None, limit, _SPOILS, f"Not run: {estimate}.")
    figure = f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
    failed = estimate.value > limit and estimate.low > 0.5
    if failed:
        message = (
            f"{what} tells members from non-members without the model: AUROC {figure}, limit {limit:g}. "
            "Membership figures measure the choice of records; draw both groups at random from one pool."
        )
    elif estimate.high > limit:
        message = (
            f"{what} alone gives AUROC {figure}. No difference shown, but with {estimate.n} records one up to "
            f"{estimate.high:.2f} cannot be excluded."
        )
    else:
        message = f"{what} does not tell members from non-members: AUROC {figure}, limit {limit:g}."
    return Guard(
        name, title, "fail" if failed else "pass", estimate.value, estimate.low, estimate.high, limit, _SPOILS, message
    )  # fmt: skip


# --- cross-validation ------------------------------------------------------------------------------------------------


def _cross_validated(
    fit_and_score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    member: np.ndarray,
    groups: np.ndarray | None,
    folds: int,
    seed: int,
    confidence: float,
) -> AurocEstimate | str:
    """AUROC of held-out scores, compared inside folds only; or the reason why there is none.

    Records of one group stay in one fold: a near-duplicate in training would let any classifier look clever.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    sides = [int(member.sum()), int((~member).sum())]
    if min(sides) < _LEAST:
        return _too_few(sides)
    if groups is None:
        splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    else:
        distinct = min(len(np.unique(groups[member])), len(np.unique(groups[~member])))
        if distinct < 2:
            return "all records of one side belong to one group"
        splitter = StratifiedGroupKFold(n_splits=min(folds, distinct), shuffle=True, random_state=seed)
    pairs = []
    for train, test in splitter.split(np.zeros(len(member)), member, groups):
        if len(np.unique(member[train])) < 2:
            continue  # a group so large that nothing of its side is left to learn from
        scores = fit_and_score(train, test)
        pairs.append((scores[member[test]], scores[~member[test]]))
    if not any(len(a) and len(b) for a, b in pairs):
        return "no fold holds members and non-members"
    return delong_stratified(pairs, confidence=confidence)


def _inputs(n: int, member, groups) -> tuple[np.ndarray, np.ndarray | None]:
    labels = np.asarray(member)
    if labels.shape != (n,) or (labels.dtype != bool and not np.isin(labels, (0, 1)).all()):
        raise InputError(f"member must hold one true/false per record, shape ({n},), got {labels.shape}")
    if groups is None:
        return labels.astype(bool), None
    if len(groups) != n:
        raise InputError(f"groups must hold one entry per record ({n}), got {len(groups)}")
    # a record without a group is its own group
    names = [("group", g) if g is not None else ("record", i) for i, g in enumerate(groups)]
    codes: dict[Hashable, int] = {}
    return labels.astype(bool), np.array([codes.setdefault(name, len(codes)) for name in names])


def subsample(member: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    keep = [
        generator.choice(side, _MOST, replace=False) if len(side) > _MOST else side
        for side in (np.flatnonzero(member), np.flatnonzero(~member))
    ]
    return np.sort(np.concatenate(keep))


# --- the guards ------------------------------------------------------------------------------------------------------


def bag_of_words(
    documents: Sequence[str | Sequence[int]],
    member: Bool[np.ndarray, " records"],
    *,
    groups: Sequence[Hashable | None] | None = None,
    limit: float = 0.6,
    folds: int = 5,
    seed: int = 0,
    confidence: float = 0.95,
) -> Guard:
    """Held-out AUROC of a logistic regression on word (or token) presence, L2, C = 0.1; compared inside folds.

    Args: `documents` texts, or token-id sequences; `groups` keep related records in one fold. At most 4,000 records
    per side, drawn with `seed`. Fails above `limit` if the interval excludes 0.5.
    The interval is DeLong's for the held-out ranking; it leaves out the chance in what the classifiers learnt, which
    under no difference makes the AUROC scatter about 1.4 times as widely.
    """
    labels, codes = _inputs(len(documents), member, groups)
    rows = subsample(labels, seed)
    labels, codes = labels[rows], None if codes is None else codes[rows]
    chosen = [_words(documents[row]) for row in rows]
    if not any(chosen):
        estimate: AurocEstimate | str = "no record contains a word"
    else:
        features = _presence(chosen)

        def fit_and_score(train: np.ndarray, test: np.ndarray) -> np.ndarray:
            from sklearn.linear_model import LogisticRegression

            # Plain presence with a strong penalty: length-normalised weights drown a telling word among common ones.
            # The dual is several times faster with more words than records.
            model = LogisticRegression(
                C=0.1, solver="liblinear", dual=True, max_iter=1000, class_weight="balanced", random_state=seed
            )
            return model.fit(features[train], labels[train]).decision_function(features[test])

        estimate = _cross_validated(fit_and_score, labels, codes, folds, seed, confidence)
    return _verdict("blind_baseline", "Bag-of-words baseline", "The vocabulary", estimate, limit)


def length_only(
    lengths: Float[np.ndarray, " records"],
    member: Bool[np.ndarray, " records"],
    *,
    groups: Sequence[Hashable | None] | None = None,
    limit: float = 0.6,
    confidence: float = 0.95,
) -> Guard:
    """AUROC from the record's length alone (characters or tokens): longer, shorter, or in between; at least 0.5."""
    values = np.asarray(lengths, dtype=np.float64)
    labels, codes = _inputs(len(values), member, groups)
    if not np.isfinite(values).all():
        raise InputError(f"lengths[{int(np.argmax(~np.isfinite(values)))}] is not a number")
    estimate = _one_feature(values, labels, codes, confidence)
    return _verdict("length_only", "Length-only baseline", "The length", estimate, limit)


def date_only(
    dates: Sequence[str | None],
    member: Bool[np.ndarray, " records"],
    *,
    groups: Sequence[Hashable | None] | None = None,
    limit: float = 0.6,
    confidence: float = 0.95,
) -> Guard:
    """AUROC from the record's date alone (ISO 8601, year to day); undated records are left out and counted."""
    days = date_ordinals(dates)
    labels, codes = _inputs(len(days), member, groups)
    dated = ~np.isnan(days)
    title, what = "Date-only baseline", "The date"
    if dated.sum() == 0:
        return _verdict("date_only", title, what, "no record has a date", limit)
    kept = None if codes is None else codes[dated]
    estimate = _one_feature(days[dated], labels[dated], kept, confidence)
    if not dated.all():
        what = f"The date (of the {int(dated.sum())} of {len(days)} records that have one)"
    return _verdict("date_only", title, what, estimate, limit)


def overlap(
    targets: Iterable[str | Sequence[int]],
    controls: Iterable[str | Sequence[int]],
    *,
    n: int = 8,
    share: float = 0.5,
    limit: float = 0.05,
    confidence: float = 0.95,
) -> Guard:
    """Share of controls that repeat a target: at least `share` of the control's word (token) n-grams occur in the
    targets.

    A record of fewer than n words counts as one n-gram (so exact copies are found at any length). Fails when the lower
    Clopper-Pearson end of the share is above 0 and the share itself above `limit`: unseen text that was seen.
    n-grams are kept as 64-bit hashes (8 bytes each; a false match has probability below 1e-9 even among a billion).
    """
    from rote.measures.statistics import proportion

    title = "Targets repeated among the controls"
    seen = _unique([_gram_hashes(_words(document), n) for document in targets])
    repeated, count = 0, 0
    for document in controls:
        grams = _gram_hashes(_words(document), n)
        found = np.minimum(np.searchsorted(seen, grams), max(0, len(seen) - 1))
        repeated += len(seen) > 0 and int((seen[found] == grams).sum()) >= share * len(grams)
        count += 1
    if len(seen) == 0 or count == 0:
        return Guard(
            "control_overlap", title, "not_run", None, None, None, limit, ("membership.auroc", "extraction.rate"),
            "Not run: needs targets and controls.",
        )  # fmt: skip
    estimate = proportion(repeated, count, confidence=confidence)
    failed = estimate.value > limit and estimate.low > 0
    message = (
        f"{repeated} of {count} controls share at least {share:.0%} of their {n}-grams with the targets"
        f" ({100 * estimate.value:.1f}%, limit {100 * limit:g}%)."
        + (" They are not unseen; remove them." if failed else "")
    )
    return Guard(
        "control_overlap", title, "fail" if failed else "pass", estimate.value, estimate.low, estimate.high, limit,
        ("membership.auroc", "extraction.rate"), message,
    )  # fmt: skip


def date_ordinals(dates: Sequence[str | None]) -> Float[np.ndarray, " records"]:
    """Days since 1970 of ISO 8601 dates ("2021", "2021-03", "2021-03-04T..."); NaN for None and for anything else."""
    out = np.full(len(dates), math.nan)
    for i, date in enumerate(dates):
        found = _DATE.match(date.strip()) if date else None
        if found:
            try:
                out[i] = np.datetime64(found.group(1), "D").astype(np.int64)
            except ValueError:
                continue  # 2021-02-31
    return out


_DATE = re.compile(r"(\d{4}(?:-\d{2}(?:-\d{2})?)?)(?![\d-])")
_WORD = re.compile(r"\w+")


def _one_feature(
    values: np.ndarray, labels: np.ndarray, codes: np.ndarray | None, confidence: float
) -> AurocEstimate | str:
    """The more telling of two AUROCs: of the value (larger or smaller) and of its rank's distance from the middle.

    Folded to lie above one half; each interval at (1 + confidence)/2, because the larger of two was picked. Nothing is
    fitted, so nothing need be held out. Related records count once, with their mean.
    """
    if codes is not None:
        units, which = np.unique(2 * codes + labels, return_inverse=True)
        values = np.bincount(which, weights=values) / np.bincount(which)
        labels = units % 2 == 1
    sides = [int(labels.sum()), int((~labels).sum())]
    if min(sides) < _LEAST:
        return _too_few(sides)
    ranks = stats.rankdata(values)
    candidates = [
        delong(feature[labels], feature[~labels], confidence=(1.0 + confidence) / 2.0)
        for feature in (ranks, np.abs(ranks - (len(ranks) + 1) / 2.0))
    ]
    best = max(candidates, key=lambda estimate: abs(estimate.value - 0.5))
    if best.value < 0.5:
        best = replace(best, value=1.0 - best.value, low=1.0 - best.high, high=1.0 - best.low)
    return best


def _too_few(sides: list[int]) -> str:
    return f"needs at least {_LEAST} members and {_LEAST} non-members, got {sides[0]} and {sides[1]}"


def _presence(documents: list[list[str]]):
    """Sparse 0/1 [records, words] of the 20,000 most frequent words; labels play no part, so folds may share it."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(
        analyzer=_identity,  # pyright: ignore[reportArgumentType]
        binary=True,
        max_features=20_000,
    )
    return vectorizer.fit_transform(documents)


def _identity(words: list[str]) -> list[str]:
    return words


def _words(document: str | Sequence[int]) -> list[str]:
    """Lower-cased words of a text; the ids of a token-id sequence as they are, written out."""
    return _WORD.findall(document.lower()) if isinstance(document, str) else [str(token) for token in document]


def _gram_hashes(words: list[str], n: int) -> np.ndarray:
    """Distinct 64-bit hashes of the n-grams of `words`; fewer than n words are one gram. The same in every process."""
    codes = [zlib.crc32(word.encode("utf-8", "surrogatepass")) | len(word) << 32 for word in words]
    grams = (tuple(codes[i : i + n]) for i in range(max(1, len(codes) - n + 1)))
    return np.unique(np.fromiter((hash(gram) for gram in grams), np.int64))


def _unique(parts: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
