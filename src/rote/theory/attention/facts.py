"""Facts from a JSON-lines file: rows {"context": [...], "next": ...} become contexts, labels and a distribution.

Knows the file, its errors by line and field, and when a "fact" is really a distribution (one context, several next
tokens). Token contents never appear in messages. Deliberately knows nothing about models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError

Token = int | str


@dataclass(frozen=True)
class Facts:
    """Distinct contexts with how often each next token followed.

    `vocab`: N. `tokens`: the strings behind the ids, or None where the file holds ids. `conflicting`: contexts that
    have several next tokens; where there are any, the facts are a distribution (`pi`) and no association (Assumption
    1). `rows`: lines read.
    """

    contexts: Int[np.ndarray, "contexts context"]
    counts: Float[np.ndarray, "contexts vocab"]
    vocab: int
    tokens: tuple[str, ...] | None
    rows: int

    @property
    def is_distribution(self) -> bool:
        return self.conflicting > 0

    @property
    def conflicting(self) -> int:
        """Contexts with more than one next token."""
        return int(((self.counts > 0).sum(axis=1) > 1).sum())

    @property
    def repeated(self) -> int:
        """Rows beyond the first of their context."""
        return self.rows - len(self.contexts)

    @property
    def labels(self) -> Int[np.ndarray, " contexts"]:
        """The most frequent next token (the only one, for an association)."""
        return self.counts.argmax(axis=1)

    @property
    def prior(self) -> Float[np.ndarray, " contexts"]:
        """How often each context occurs, as a share of all rows."""
        return self.counts.sum(axis=1) / self.counts.sum()

    @property
    def pi(self) -> Float[np.ndarray, "contexts vocab"]:
        """The empirical conditional distribution of the next token."""
        return self.counts / self.counts.sum(axis=1, keepdims=True)


def read_facts(path: str | Path, *, vocab: int | None = None, context: int | None = None) -> Facts:
    """Read a JSON-lines file of facts. Tokens are strings, or ids in [0, vocab), one kind in the whole file.

    vocab: N; with ids it defaults to the largest + 1, with strings to the number of distinct ones, and may be larger.
    Errors: `InputError` with file and line: unreadable, not JSON, a missing field, contexts of different lengths, a
    token outside the vocabulary, ids and strings mixed, no facts at all.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}); give a .jsonl file of facts") from None
    except UnicodeDecodeError:
        raise InputError(f"{source}: is not UTF-8 text; give a .jsonl file of facts") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"{source} line {number}", json.loads(line)))
        except (ValueError, RecursionError):
            raise InputError(f'{source} line {number}: is not JSON; want {{"context": [...], "next": ...}}') from None
    return facts_from_rows(rows, source=str(source), vocab=vocab, context=context)


def facts_from_rows(
    rows: Iterable[tuple[str, Any]], *, source: str = "facts", vocab: int | None = None, context: int | None = None
) -> Facts:
    """The same from (place, row) pairs; `place` is what errors name."""
    parsed: list[tuple[tuple[Token, ...], Token]] = []
    length, kind = context, None
    for place, row in rows:
        if not isinstance(row, dict) or "context" not in row or "next" not in row:
            raise InputError(f'{place}: needs the fields "context" (a list of tokens) and "next" (one token)')
        if not isinstance(row["context"], list) or not row["context"]:
            raise InputError(f"{place} field context: must be a list of at least one token")
        sequence = (*row["context"], row["next"])
        for position, token in enumerate(sequence):
            field = "next" if position == len(sequence) - 1 else f"context, token {position + 1}"
            if isinstance(token, bool) or not isinstance(token, (int, str)):
                raise InputError(f"{place} field {field}: a token is a string or a whole number")
            kind = kind or type(token)
            if type(token) is not kind:
                raise InputError(f"{place} field {field}: strings and ids are mixed; use one kind in the whole file")
            if isinstance(token, int) and (token < 0 or (vocab is not None and token >= vocab)):
                size = f"of {vocab} (ids 0 to {vocab - 1})" if vocab is not None else "(an id is at least 0)"
                raise InputError(f"{place} field {field}: the token lies outside the vocabulary {size}")
        length = length or len(row["context"])
        if len(row["context"]) != length:
            wanted = f"{length} were asked for" if context else f"others have {length}"
            raise InputError(
                f"{place} field context: has {len(row['context'])} tokens, {wanted}; all contexts need one length"
            )
        parsed.append((sequence[:-1], sequence[-1]))
    if not parsed:
        raise InputError(f"{source}: holds no facts")
    return _table(parsed, source, vocab)


def facts_from_text(words: list[str], *, context: int) -> Facts:
    """Every run of `context` words with the word after it: a text as facts, strings as tokens."""
    windows = range(len(words) - context)
    rows = [(f"word {i + 1}", {"context": words[i : i + context], "next": words[i + context]}) for i in windows]
    return facts_from_rows(rows, source="the text")


def _table(parsed: list[tuple[tuple[Token, ...], Token]], source: str, vocab: int | None) -> Facts:
    if isinstance(parsed[0][1], str):
        tokens: tuple[str, ...] | None = tuple(sorted({str(t) for context, after in parsed for t in (*context, after)}))
        if vocab is not None and vocab < len(tokens):
            raise InputError(
                f"{source}: {len(tokens)} different tokens lie outside a vocabulary of {vocab}; give at least"
                f" {len(tokens)}"
            )
        ids: dict[Token, int] = {token: number for number, token in enumerate(tokens)}
        size = vocab or len(tokens)
    else:
        tokens = None
        largest = max(int(t) for context, after in parsed for t in (*context, after))
        if vocab is None and largest > 10_000_000:
            raise InputError(f"{source}: the largest token id is above ten million; number the tokens from 0")
        ids = {number: int(number) for sequence in parsed for number in (*sequence[0], sequence[1])}
        size = vocab or largest + 1
    if size < 2:
        raise InputError(f"{source}: a vocabulary of one token leaves nothing to memorize")
    places: dict[tuple[Token, ...], int] = {}
    for context, _ in parsed:
        places.setdefault(context, len(places))
    if len(places) * size > 1 << 28:
        raise InputError(
            f"{source}: {len(places):,} contexts by {size:,} tokens are too many for one layer; split them"
        )
    counts = np.zeros((len(places), size))
    for context, after in parsed:
        counts[places[context], ids[after]] += 1
    contexts = np.array([[ids[token] for token in context] for context in places], dtype=np.int64)
    return Facts(contexts=contexts, counts=counts, vocab=size, tokens=tokens, rows=len(parsed))
