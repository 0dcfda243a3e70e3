"""TokenScores: what one forward pass says about a block of records, as NaN-padded matrices, and as Arrow columns.

Position t of every matrix belongs to token t of the record. Knows nothing about: models, files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int, Int32

MATRICES = {
    "token_ids": np.int32,
    "ends": np.int32,
    "logp": np.float32,
    "rank": np.int32,
    "entropy": np.float32,
    "std": np.float32,
    "greedy": np.bool_,
}
FILL = {"token_ids": -1, "ends": -1, "logp": np.nan, "rank": 0, "entropy": np.nan, "std": np.nan, "greedy": False}
SCHEME_PREFIX = "logq:"


@dataclass(frozen=True)
class TokenScores:
    """Per-token scores of a block of records (natural logarithms throughout).

    index: row in the record table. length: tokens, BOS not counted. token_ids: -1 is padding. ends: the character of
    the
    record's text before which the token ends. logp: log p(x_t | x_<t), NaN where nothing is predicted. rank: 1 + number
    of vocabulary entries with a larger logit, 0 where undefined. entropy: H_t = -sum_v p_v log p_v. std: standard
    deviation of log p_v under p. greedy: is x_t the argmax. prefix, suffix: a and k. schemes: log q(x_t | x_<t) per
    decoding scheme, -inf where the scheme cannot produce the token.
    """

    index: Int[np.ndarray, " records"]
    length: Int[np.ndarray, " records"]
    prefix: Int[np.ndarray, " records"]
    suffix: Int[np.ndarray, " records"]
    token_ids: Int32[np.ndarray, "records tokens"]
    ends: Int32[np.ndarray, "records tokens"]
    logp: Float32[np.ndarray, "records tokens"]
    rank: Int32[np.ndarray, "records tokens"]
    entropy: Float32[np.ndarray, "records tokens"]
    std: Float32[np.ndarray, "records tokens"]
    greedy: Bool[np.ndarray, "records tokens"]
    schemes: dict[str, Float32[np.ndarray, "records tokens"]] = field(default_factory=dict)

    @property
    def mean(self) -> Float32[np.ndarray, "records tokens"]:
        """mu_t = sum_v p_v log p_v, the mean log-probability under p: minus the entropy."""
        return -self.entropy

    @property
    def in_suffix(self) -> Bool[np.ndarray, "records tokens"]:
        """True at the suffix positions a <= t < a + k."""
        t = np.arange(self.logp.shape[1])
        return (t >= self.prefix[:, None]) & (t < (self.prefix + self.suffix)[:, None])

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def empty(cls, index, length, prefix, suffix, schemes: list[str]) -> TokenScores:
        """A block to be filled in."""
        shape = (len(index), int(max(length, default=0)))
        matrices = {name: np.full(shape, FILL[name], kind) for name, kind in MATRICES.items()}
        return cls(
            np.asarray(index, np.int64),
            np.asarray(length, np.int64),
            np.asarray(prefix, np.int64),
            np.asarray(suffix, np.int64),
            **matrices,
            schemes={name: np.full(shape, np.nan, np.float32) for name in schemes},
        )

    def to_arrow(self) -> pa.Table:
        """One row a record; list columns hold exactly `length` entries."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.length)]), pa.int32())
        inside = np.arange(self.logp.shape[1]) < self.length[:, None]
        columns = {name: pa.array(getattr(self, name), pa.int64()) for name in ("index", "length", "prefix", "suffix")}
        for name, matrix in (
            {name: getattr(self, name) for name in MATRICES}
            | {SCHEME_PREFIX + name: matrix for name, matrix in self.schemes.items()}
        ).items():
            columns[name] = pa.ListArray.from_arrays(offsets, pa.array(matrix[inside]))
        return pa.table(columns)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> TokenScores:
        simple = {name: table.column(name).to_numpy() for name in ("index", "length", "prefix", "suffix")}
        schemes = [name.removeprefix(SCHEME_PREFIX) for name in table.column_names if name.startswith(SCHEME_PREFIX)]
        block = cls.empty(**simple, schemes=schemes)
        inside = np.arange(block.logp.shape[1]) < block.length[:, None]
        for name in MATRICES:
            getattr(block, name)[inside] = _flat(table, name)
        for name in schemes:
            block.schemes[name][inside] = _flat(table, SCHEME_PREFIX + name)
        return block


def _flat(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
