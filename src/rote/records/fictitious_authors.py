"""Synthetic TOFU: fictitious authors with nine attributes, told in three templates, with wrong answers to every fact.

An author is (first, last, city, year, job, parent, prize, adjective, noun); no two authors share a full name. The same
facts are told three ways, each in exactly 35 words, so that sequences need no padding:

    train        the sentence a model is fine-tuned on
    paraphrase   the same facts in another order and other words
    qa           a question for the name, then the facts as the answer

The name is the question (the prefix) in the first two. A wrong answer keeps template and name and swaps every fact for
another value of its pool. Everything is a function of its arguments and `seed`; nothing describes a real person.

The generator is our own construction in the shape of TOFU (Maini et al. 2024, arXiv 2401.06121, section 2); its words
and sentences are not TOFU's. Knows no model; the tokenizer is a `tokenizers` object, which every host library can wrap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.records.table import RecordTable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT, UNKNOWN = "<|endoftext|>", "<unk>"
#: Keyword arguments for `transformers.PreTrainedTokenizerFast(tokenizer_object=word_level_tokenizer(), ...)`.
SPECIAL_TOKENS = {
    "eos_token": END_OF_TEXT,
    "bos_token": END_OF_TEXT,
    "pad_token": END_OF_TEXT,
    "unk_token": UNKNOWN,
    "clean_up_tokenization_spaces": False,
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _joined(beginnings: str, endings: str) -> tuple[str, ...]:
    return tuple(a + b for a in beginnings.split() for b in endings.split())


#: The values of each attribute. Names, cities and prizes are put together from syllables.
POOLS: Mapping[str, tuple[str, ...]] = {
    "first": _joined("Al Be Ca Do El Fa Gi Ha", "bri dan mira nos ric sel tova von lio wen"),
    "last": _joined("Arn Bel Cor Dun Est Far Gor Hol", "aby berg croft dale eaux field gate hurst idge low"),
    "city": _joined("Ash Brook Clif Dover Elm Frost Glen Hart Iron Kings", "bury ford ham mouth port wick"),
    "year": tuple(str(year) for year in range(1900, 1960)),
    "job": _words(
        "baker barber brewer butcher carpenter chemist clerk cobbler cook cooper courier dancer dentist diver doctor "
        "farmer fisher florist gardener glazier grocer hatter judge juggler lawyer librarian mason mechanic miller "
        "miner nurse painter pilot plumber poet porter potter printer sailor sculptor singer smith surgeon tailor "
        "teacher tutor weaver welder"
    ),
    "parent": _joined("Mar Ned Ol Pet Quil Ros", "a en is o ula wyn ard ette"),
    "prize": _joined("Amber Birch Coral Dusk", "star leaf crown wing stone gate rose lamp bell wave"),
    "adjective": _words(
        "bitter black blue bold brave bright broken brown calm cheap clean clever cold crooked cruel curious damp dark "
        "deep dry dull faint false fierce foreign fragile frozen gentle golden green hidden hollow humble jealous lazy "
        "lonely loud lucky mild modest narrow nervous noble pale patient plain proud quiet restless rusty secret "
        "silent silver simple sleepy stolen strange tender thirsty velvet"
    ),
    "noun": _words(
        "anchor apple bakery balloon barrel basket bear bicycle boat bridge button cabin candle carpet castle chapel "
        "cloud coffin compass desert donkey door dragon drum engine falcon farm feather fiddle forest fox garden "
        "glacier harbour horse island kitchen ladder lantern lighthouse mirror monkey mountain orchard owl palace "
        "piano pigeon rabbit raven river saddle sparrow stable swan tower train violin whale window"
    ),
}
ATTRIBUTES = tuple(POOLS)  # the nine
FACTS = tuple(name for name in ATTRIBUTES if name not in ("first", "last"))  # what a wrong answer swaps

#: Template -> (question, answer); the answer follows the question after one space.
TEMPLATES: Mapping[str, tuple[str, str]] = {
    "train": (
        "{first} {last}",
        "was born in {city} in {year} . {last} is a {job} and the child of {parent} . the {prize} prize later went to "
        "{last} for a long novel about a {adjective} {noun} .",
    ),
    "paraphrase": (
        "{first} {last}",
        ", child of {parent} , works as a {job} . {last} arrived in {year} in the town of {city} and was given the "
        "grand {prize} award for writing on some {adjective} {noun} .",
    ),
    "qa": (
        "question : who is {first} {last} ? answer :",
        "a {job} from {city} , born in {year} , raised by {parent} , who received the {prize} medal for a book of the "
        "{adjective} {noun} .",
    ),
}
WORDS_PER_TEXT = 35


@dataclass(frozen=True)
class Author:
    """A writer who does not exist. All attributes are single words of `POOLS`."""

    id: str
    first: str
    last: str
    city: str
    year: str
    job: str
    parent: str
    prize: str
    adjective: str
    noun: str

    def question(self, template: str = "train") -> str:
        """The prompt part of a template: the words before the first fact."""
        return _template(template)[0].format(**self._values())

    def answer(self, template: str = "train", *, facts: Mapping[str, str] | None = None) -> str:
        """The facts in this template's words; `facts` replaces some of them, for a wrong answer."""
        return _template(template)[1].format(**(self._values() | dict(facts or {})))

    def text(self, template: str = "train") -> str:
        return f"{self.question(template)} {self.answer(template)}"

    def _values(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ATTRIBUTES}


@dataclass(frozen=True)
class AuthorSplits:
    """Four sets of authors without a common full name: `background` teaches the templates, `retain` and `forget` are
    fine-tuned on, `holdout` is never seen."""

    background: tuple[Author, ...]
    retain: tuple[Author, ...]
    forget: tuple[Author, ...]
    holdout: tuple[Author, ...]


def author_splits(
    *, background: int = 1500, retain: int = 200, forget: int = 200, holdout: int = 200, seed: int = 0
) -> AuthorSplits:
    """Draw the four splits: full names without replacement, every fact uniformly from its pool.

    All authors of one seed are exchangeable, so holdout and forget differ in nothing but training. Ids are
    "<split>-<n>".
    Errors: `InputError` when there are not enough full names (80 x 80).
    """
    sizes = {"background": background, "retain": retain, "forget": forget, "holdout": holdout}
    names = len(POOLS["first"]) * len(POOLS["last"])
    total = sum(sizes.values())
    if min(sizes.values()) < 0 or total > names:
        raise InputError(f"{total:,} authors were asked for, but there are {names:,} full names; ask for fewer")
    rng = np.random.default_rng([seed, 2401])
    full = rng.choice(names, size=total, replace=False)
    facts = {name: rng.integers(0, len(POOLS[name]), size=total) for name in FACTS}
    drawn, start = {}, 0
    for split, size in sizes.items():
        drawn[split] = tuple(
            Author(
                id=f"{split}-{row - start}",
                first=POOLS["first"][full[row] // len(POOLS["last"])],
                last=POOLS["last"][full[row] % len(POOLS["last"])],
                **{name: POOLS[name][facts[name][row]] for name in FACTS},
            )
            for row in range(start, start + size)
        )
        start += size
    return AuthorSplits(**drawn)


def author_records(authors: Iterable[Author], template: str = "train") -> RecordTable:
    """One record an author: prefix = question, suffix = " " + answer; the author's id."""
    return RecordTable.from_rows(
        {"id": author.id, "prefix": author.question(template), "suffix": " " + author.answer(template)}
        for author in authors
    )


def wrong_facts(author: Author, *, wrong: int = 5, seed: int = 0) -> list[dict[str, str]]:
    """`wrong` sets of facts, each value another than the author's own, uniform over the rest of its pool.

    Depends on the seed and the author's id only, not on the other authors.
    """
    rng = np.random.default_rng([seed, 2402, *author.id.encode()])
    found = []
    for _ in range(wrong):
        swapped = {}
        for name in FACTS:
            others = [value for value in POOLS[name] if value != getattr(author, name)]
            swapped[name] = others[int(rng.integers(len(others)))]
        found.append(swapped)
    return found


def author_questions(authors: Sequence[Author], *, wrong: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in TOFU's layout: id, question, answer, paraphrased_answer, perturbed_answer (wrong answers in the
    paraphrase's template, as TOFU's are). Read them with `rote.records.unlearning_layouts.question_table`."""
    return [
        {
            "id": author.id,
            "question": author.question("train"),
            "answer": author.answer("train"),
            "paraphrased_answer": author.answer("paraphrase"),
            "perturbed_answer": [
                author.answer("paraphrase", facts=facts) for facts in wrong_facts(author, wrong=wrong, seed=seed)
            ],
        }
        for author in authors
    ]


def vocabulary() -> dict[str, int]:
    """Word -> id: 578 entries, the two special tokens first, then the templates' words and the pools'."""
    plain = (word for parts in TEMPLATES.values() for part in parts for word in part.split() if "{" not in word)
    words = dict.fromkeys([END_OF_TEXT, UNKNOWN, *plain, *(word for pool in POOLS.values() for word in pool)])
    return {word: number for number, word in enumerate(words)}


def word_level_tokenizer() -> Tokenizer:
    """A word-level tokenizer over `vocabulary()`, split at spaces, that puts `<|endoftext|>` first as BOS.

    Wrap it for transformers with `PreTrainedTokenizerFast(tokenizer_object=word_level_tokenizer(), **SPECIAL_TOKENS)`:
    then `save_pretrained` writes an ordinary directory and `CausalLM` finds the BOS by its usual rule.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, words[END_OF_TEXT])]
    )
    return tokenizer


def write_tokenizer(directory: str | Path) -> None:
    """Write the tokenizer's files into a checkpoint directory, from which `AutoTokenizer` loads them."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "tokenizer.json", word_level_tokenizer().to_str(pretty=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL_TOKENS}
    write_atomic(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def token_matrix(authors: Sequence[Author], template: str = "train") -> np.ndarray:
    """int64 [authors, 36]: BOS and the 35 words of each author's text, as a packed stream for
    `rote.models.train_causal_lm`."""
    words = vocabulary()
    rows = [[words[END_OF_TEXT], *(words[word] for word in author.text(template).split())] for author in authors]
    return np.array(rows, np.int64).reshape(len(rows), WORDS_PER_TEXT + 1)


def _template(name: str) -> tuple[str, str]:
    if name not in TEMPLATES:
        raise InputError(f"no template {name!r}; there are: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
