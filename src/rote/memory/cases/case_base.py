"""The memory itself: every case's signal, codes, channel weights, votes, patient and id. Cases can be read, added and
taken out one by one; a prediction uses nothing else of the training set.

Knows nothing about: networks, calibration, files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rote.errors import InputError
from rote.memory.cases.model import Encoded, digests
from rote.memory.cases.similarity import Codes


@dataclass(frozen=True)
class CaseBase:
    """Cases in a fixed order. weights are those the case would have as a query (used by the audit and the figures)."""

    ids: np.ndarray
    groups: np.ndarray
    votes: Int[np.ndarray, " n"]
    raters: int
    signals: Float[np.ndarray, "n electrodes crop"]
    codes: Codes
    weights: Float[Tensor, "n c"]
    digests: tuple[str, ...]

    @classmethod
    def build(cls, encoded: Encoded, votes: np.ndarray, raters: int, groups: np.ndarray, ids: np.ndarray) -> CaseBase:
        """Raises InputError when an id is there twice."""
        base = cls(
            np.asarray(ids).astype(str), groups, votes, raters, encoded.signals, encoded.codes, encoded.weights,
            tuple(encoded.digests()),
        )  # fmt: skip
        return base._checked()

    def _checked(self) -> CaseBase:
        names, counts = np.unique(self.ids, return_counts=True)
        if (counts > 1).any():
            raise InputError(
                f"case id {str(names[counts > 1][0])!r} is there more than once; every case needs its own id"
            )
        return self

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fraction(self) -> Float[np.ndarray, " n"]:
        """votes / raters."""
        return self.votes / self.raters

    @property
    def positive(self) -> Bool[np.ndarray, " n"]:
        """At least half of the raters voted for it."""
        return 2 * self.votes >= self.raters

    def take(self, rows: np.ndarray) -> CaseBase:
        """The cases `rows` (indices or a mask), in that order."""
        index = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
        tensor = torch.from_numpy(index)
        return replace(
            self, ids=self.ids[index], groups=self.groups[index], votes=self.votes[index], signals=self.signals[index],
            codes=self.codes.take(tensor), weights=self.weights[tensor],
            digests=tuple(self.digests[at] for at in index),
        )  # fmt: skip

    def rows(self, *, ids: Iterable[str] = (), groups: Iterable[str] = ()) -> Bool[np.ndarray, " n"]:
        """Mask of cases with these ids or of these patients. Raises InputError for one that is not there."""
        ids, groups = [str(one) for one in ids], [str(one) for one in groups]
        for wanted, there, kind in ((ids, self.ids, "case"), (groups, self.groups, "patient")):
            missing = sorted(set(wanted) - set(there.tolist()))
            if missing:
                raise InputError(f"the case base has no {kind} {missing[0]!r} ({len(self)} cases)")
        return np.isin(self.ids, ids) | np.isin(self.groups, groups)

    def added(self, other: CaseBase) -> CaseBase:
        """Both, this one's cases first. Raises InputError for an id that both have, or another number of raters."""
        if other.raters != self.raters:
            raise InputError(f"cases of {other.raters} raters cannot join cases of {self.raters}: rescale the votes")
        joined = replace(
            self, ids=np.concatenate([self.ids, other.ids]), groups=np.concatenate([self.groups, other.groups]),
            votes=np.concatenate([self.votes, other.votes]), signals=np.concatenate([self.signals, other.signals]),
            codes=self.codes.cat(other.codes), weights=torch.cat([self.weights, other.weights]),
            digests=self.digests + other.digests,
        )  # fmt: skip
        return joined._checked()

    def excluded_for(
        self, signals: Float[np.ndarray, "q electrodes crop"], groups: np.ndarray | None
    ) -> Bool[np.ndarray, "q n"]:
        """Cases a query may not see: identical segments always, its own patient's where groups are given."""
        own = {}
        for at, digest in enumerate(self.digests):
            own.setdefault(digest, []).append(at)
        out = np.zeros((len(signals), len(self)), bool) if groups is None else groups[:, None] == self.groups[None]
        for row, digest in enumerate(digests(signals)):
            out[row, own.get(digest, [])] = True
        return out
