"""From records to token sequences: tokenise whole texts, then cut ids into prefix and suffix; never the other way
round.

Tokenising happens twice, in blocks: once for the lengths (so that every problem is reported before anything runs, and
work can be ordered), once when a block is scored. Nothing per token is kept in memory for the whole file.

Knows nothing about: the forward pass, schemes, files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

BLOCK = 1024  # records tokenised at a time
DEFAULT_PREFIX = DEFAULT_SUFFIX = 50  # Hayes et al. 2024, section 4: a = k = 50 tokens


@dataclass(frozen=True)
class Split:
    """Where a record is cut: `prefix` (a) tokens are given, the next `suffix` (k) tokens are what must be recited.

    None is automatic: a = min(50, half the record), k = min(50, the rest). A record that came as prefix and suffix
    keeps
    its own boundary. `long` says what to do with a record longer than the context window: "error" or "truncate".
    """

    prefix: int | None = None
    suffix: int | None = None
    long: str = "error"

    def __post_init__(self):
        for name, value in (("prefix", self.prefix), ("suffix", self.suffix)):
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1 token, not {value}")
        if self.long not in ("error", "truncate"):
            raise InputError(f"--long must be error or truncate, not {self.long!r}")

    def cut(self, tokens: int, boundary: int | None) -> tuple[int, int]:
        """(a, k) for a record of this many tokens; `boundary` is the token where its own suffix begins, if it has
        one."""
        if boundary is not None:
            a = boundary
        elif self.prefix is not None:
            a = self.prefix
        else:
            a = min(DEFAULT_PREFIX, tokens // 2)
        rest = tokens - a
        if boundary is not None and self.suffix is None:
            return a, rest
        return a, min(self.suffix or DEFAULT_SUFFIX, rest)


@dataclass(frozen=True)
class Sequence:
    """One record, ready to score: token ids (no BOS), where each token ends in the text, prefix and suffix lengths."""

    index: int
    ids: list[int]
    ends: list[int]
    prefix: int
    suffix: int


@dataclass(frozen=True)
class PreparedRecords:
    """Records with their token counts. `order` lists the rows that will be scored, longest first; `skipped` maps the
    others to the reason; `merged[r]` says that a token straddles record r's own prefix/suffix boundary (that token then
    belongs to the suffix); `truncated[r]` that the record was cut at the context window."""

    records: RecordTable
    model: CausalLM
    split: Split
    lengths: Int[np.ndarray, " records"]
    merged: Bool[np.ndarray, " records"]
    truncated: Bool[np.ndarray, " records"]
    skipped: dict[int, str]

    @property
    def order(self) -> Int[np.ndarray, " scored"]:
        rows = np.setdiff1d(np.arange(len(self.lengths)), np.fromiter(self.skipped, int, len(self.skipped)))
        return rows[np.lexsort((rows, -self.lengths[rows]))]

    @property
    def tokens(self) -> int:
        return int(self.lengths[self.order].sum())

    def sequences(self, rows: Int[np.ndarray, " rows"]) -> list[Sequence]:
        """The token sequences of these rows, in the given order."""
        limit = self._limit()
        found = []
        for row, ids, ends, boundary, _ in _tokenised(self.model, self.records, rows):
            ids, ends = ids[:limit], ends[:limit]
            prefix, suffix = self.split.cut(len(ids), boundary)
            found.append(Sequence(int(row), ids, ends, prefix, suffix))
        return found

    def _limit(self) -> int | None:
        return _room(self.model)


def prepare(model: CausalLM, records: RecordTable, split: Split | None = None) -> PreparedRecords:
    """Count every record's tokens and check that it can be cut and scored. Raises InputError, naming record and
    place."""
    split = split or Split()
    room = _room(model)
    lengths = np.zeros(len(records), np.int32)
    merged, truncated = np.zeros(len(records), bool), np.zeros(len(records), bool)
    skipped: dict[int, str] = {}
    problems: list[tuple[int, str]] = []
    for row, ids, _ends, boundary, straddles in _tokenised(model, records, np.arange(len(records))):
        tokens = len(ids)
        if ids and max(ids) >= model.vocab_size:
            problems.append(
                (
                    row,
                    f"has token id {max(ids)}, but the model's vocabulary has {model.vocab_size} entries;"
                    " are these ids from another tokenizer?",
                )
            )
            continue
        if room is not None and tokens > room:
            if split.long == "error":
                problems.append(
                    (
                        row,
                        f"has {tokens:,} tokens, but the model's context window holds {room:,};"
                        " split it, or use --long truncate",
                    )
                )
                continue
            truncated[row], tokens = True, room
        lengths[row], merged[row] = tokens, straddles
        if tokens + (model.bos_id is not None) < 2:
            skipped[int(row)] = f"{tokens} token(s): nothing is predicted"
            continue
        prefix, suffix = split.cut(tokens, boundary)
        if suffix < 1:
            problems.append(
                (
                    row,
                    f"has {tokens} tokens, so a prefix of {prefix} leaves no suffix;"
                    " use a shorter --prefix, or leave it out",
                )
            )
    if problems:
        ids, sources = records.table.column("id"), records.table.column("source")
        row, text = problems[0]
        place = sources[row].as_py()
        more = f" ({len(problems) - 1:,} more records have such a problem)" if len(problems) > 1 else ""
        raise InputError(f"{f'{place}: ' if place else ''}record {ids[row].as_py()[:60]!r} {text}{more}")
    if len(skipped) == len(records):
        raise InputError("no record has two tokens or more: there is nothing to score")
    return PreparedRecords(records, model, split, lengths, merged, truncated, skipped)


def _room(model: CausalLM) -> int | None:
    return None if model.context_length is None else model.context_length - (model.bos_id is not None)


def _tokenised(model: CausalLM, records: RecordTable, rows: Int[np.ndarray, " rows"]) -> Iterator[tuple]:
    """Yields (row, ids, ends, boundary, straddles) for each row, a block of rows at a time."""
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        part = records.take(block)
        texts, given = part.column("text"), part.column("token_ids")
        chars, prefix_tokens = part.column("prefix_chars"), part.column("prefix_tokens")
        have_text = [i for i, text in enumerate(texts) if text is not None]
        encoded = dict(zip(have_text, model.encode([texts[i] for i in have_text]), strict=True)) if have_text else {}
        for i, row in enumerate(block):
            if i not in encoded:
                ids = list(given[i])
                yield row, ids, model.pieces(ids).ends, prefix_tokens[i], False
            elif chars[i] is None:
                yield row, encoded[i].ids, encoded[i].ends, None, False
            else:
                ends = encoded[i].ends
                boundary = sum(end <= chars[i] for end in ends)
                yield (
                    row,
                    encoded[i].ids,
                    ends,
                    boundary,
                    not (chars[i] == 0 or chars[i] in ends[max(0, boundary - 1) : boundary]),
                )
