"""Alphabets, words and question-answer datasets, in the vocabulary of Yu, Gao and Zhang 2025 (arXiv 2511.01190).

Knows the definitions: symbols gamma_1..gamma_T, the stop symbol gamma_0, sentences, typ(x), a dataset with one answer
a sentence. Deliberately does not know: files, tokenizers, transformers, conditions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rote.errors import InputError

Word = tuple[int, ...]
STOP = -1  # gamma_0 in tables and plans; the read-out of a transformer gives it the last of its T + 1 rows


@dataclass(frozen=True)
class Alphabet:
    """Gamma = {gamma_1, .., gamma_T}: the symbols of inputs, of chains of thought and of answers; gamma_0 is extra.

    `symbols` are distinct strings; a symbol's index is its place. Raises InputError when empty or repeated.
    """

    symbols: tuple[str, ...]

    def __post_init__(self):
        if not self.symbols:
            raise InputError("the alphabet is empty; give at least one symbol")
        if len(set(self.symbols)) != len(self.symbols):
            raise InputError("the alphabet names a symbol twice; name each symbol once")

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def index(self) -> dict[str, int]:
        return {symbol: index for index, symbol in enumerate(self.symbols)}

    def text(self, word: Sequence[int]) -> str:
        """The symbols of a word, joined: without a space when every symbol is one character."""
        names = ["<stop>" if symbol == STOP else self.symbols[symbol] for symbol in word]
        return ("" if all(len(symbol) == 1 for symbol in self.symbols) else " ").join(names)


def typ(word: Word) -> frozenset[int]:
    """typ(x): the SET of symbols in x, so "aab" and "abb" have the same one (section 3 of the paper)."""
    return frozenset(word)


def single_symbol(word: Word) -> int | None:
    """k when x = gamma_k^m, else None."""
    return word[0] if word.count(word[0]) == len(word) else None


@dataclass(frozen=True)
class QADataset:
    """S: a finite set of pairs (x, y), x a nonempty word over Gamma, y one symbol of Gamma, one y for each x.

    answers: x -> y, in the order given. lines: x -> where it came from (file lines, from 1), when read from a file.
    repeats: rows that repeated an earlier pair and were counted once.
    Raises InputError: nothing in it, an empty input, a symbol or an answer outside the alphabet.
    """

    alphabet: Alphabet
    answers: Mapping[Word, int]
    lines: Mapping[Word, int] = field(default_factory=dict)
    repeats: int = 0

    def __post_init__(self):
        if not self.answers:
            raise InputError("the dataset is empty; give at least one record")
        symbols = range(len(self.alphabet))
        for number, (word, answer) in enumerate(self.answers.items(), 1):
            place = self.place(word, number)
            if not word:
                raise InputError(f"{place}: the input is empty; a sentence has at least one symbol")
            if any(symbol not in symbols for symbol in word):
                raise InputError(f"{place}: the input has a symbol outside the alphabet of {len(symbols)} symbols")
            if answer not in symbols:
                raise InputError(
                    f"{place}: the answer is not in the alphabet of {len(symbols)} symbols; "
                    "add it to the alphabet or drop the record (the stop symbol is no answer)"
                )

    def __len__(self) -> int:
        return len(self.answers)

    def place(self, word: Word, number: int | None = None) -> str:
        """Where a record stands, without its content."""
        if word in self.lines:
            return f"line {self.lines[word]}"
        return f"record {number if number is not None else list(self.answers).index(word) + 1}"

    @cached_property
    def longest(self) -> int:
        """L_max, the number of symbols of the longest input."""
        return max(map(len, self.answers))


Pair = tuple[Sequence[str], Sequence[str] | str]


def qa_dataset(
    records: Iterable[Pair] | Mapping[str, str],
    *,
    alphabet: Sequence[str] | str = "infer",
    lines: Sequence[int] | None = None,
) -> QADataset:
    """A dataset from (input, answer) pairs.

    records: pairs; an input is a string (a symbol a character) or a sequence of symbols, an answer one symbol, or a
      sequence of exactly one.
    alphabet: the symbols, or "infer": those that occur in inputs and answers, sorted. The chain-of-thought condition
      depends on it: one symbol that no input uses makes every dataset memorizable (`rote.theory.cot.decision`).
    lines: the file line of each pair, for messages and witnesses.

    Errors (InputError): an answer of more than one symbol, an answer or an input symbol outside a given alphabet, the
    same input with two answers, an empty input, no record at all. Messages name lines, never contents.
    """
    pairs: list[Any] = list(records.items() if isinstance(records, Mapping) else records)
    numbers = list(lines) if lines is not None else None
    if numbers is not None and len(numbers) != len(pairs):
        raise InputError(f"{len(numbers)} line numbers for {len(pairs)} records; give one for each")

    def place(row: int) -> str:
        return f"line {numbers[row]}" if numbers else f"record {row + 1}"

    cleaned: list[tuple[tuple[str, ...], str]] = []
    for row, (given, answer) in enumerate(pairs):
        # A string answer is a symbol by itself when inputs are sequences of symbols, else a run of characters.
        parts = [answer] if isinstance(answer, str) and not isinstance(given, str) else list(answer)
        if len(parts) != 1:
            raise InputError(
                f"{place(row)}: the answer has {len(parts)} symbols; the conditions are for answers of exactly one "
                "(answers of several tokens are out of scope)"
            )
        if not len(given):
            raise InputError(f"{place(row)}: the input is empty; a sentence has at least one symbol")
        symbols = tuple(str(symbol) for symbol in given)
        cleaned.append((symbols, str(parts[0])))
    if not cleaned:
        raise InputError("the dataset is empty; give at least one record")
    if alphabet == "infer":
        letters = Alphabet(tuple(sorted({symbol for word, answer in cleaned for symbol in (*word, answer)})))
    else:
        letters = Alphabet(tuple(alphabet))
    index = letters.index
    answers: dict[Word, int] = {}
    rows: dict[Word, int] = {}
    repeats = 0
    for row, (symbols, answer) in enumerate(cleaned):
        if any(symbol not in index for symbol in symbols):
            raise InputError(f"{place(row)}: the input has a symbol outside the alphabet of {len(letters)} symbols")
        if answer not in index:
            raise InputError(
                f"{place(row)}: the answer is not in the alphabet of {len(letters)} symbols; add it or drop the record"
            )
        word, y = tuple(index[symbol] for symbol in symbols), index[answer]
        if word in answers:
            if answers[word] != y:
                raise InputError(
                    f"{place(row)}: the same input as {place(rows[word])} with another answer; "
                    "a dataset has one answer for each input, keep one of them"
                )
            repeats += 1
            continue
        answers[word], rows[word] = y, row
    where = {word: numbers[row] for word, row in rows.items()} if numbers else {}
    return QADataset(letters, answers, where, repeats)
