"""Unlearning data on the local disk: TOFU's layout, MUSE's layout, and two plain files (forget, retain).

TOFU, a folder with one file (or saved data set) a subset; each row has question, answer and, in `*_perturbed`,
paraphrased_answer and perturbed_answer (a list of wrong ones):

    forget01 | forget05 | forget10     retain99 | retain95 | retain90     holdout01 | holdout05 | holdout10
    forgetNN_perturbed, retain_perturbed, real_authors_perturbed, world_facts_perturbed     (also real_authors, ...)

MUSE, a folder of folders:

    raw/{forget, retain1, retain2, holdout}   text       privleak/{forget, retain, holdout}   text, or a list of strings
    verbmem/forget                            prompt, gt knowmem/{forget_qa, retain_qa}[_icl] question, answer

A subset may be `.json` (a list, or one object a line), `.jsonl`, `.csv`, `.parquet` (also in `-00000-of-00002` parts,
as hubs store them), `.txt` (one passage), or a `save_to_disk` folder. What is optional and absent is None; what is
needed and absent is an error that names the file.
Knows no model. Source of the layouts: Maini et al. 2024, arXiv 2401.06121; Shi et al. 2024, arXiv 2407.06460.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rote.errors import InputError
from rote.records.files import find_files, missing
from rote.records.formats import Problem, open_bytes, raw_rows, unit_of
from rote.records.readers import read_records
from rote.records.table import RecordTable
from rote.records.validate import RowError, check_content, closest

FIELDS = ("id", "question", "answer", "paraphrased_answer", "perturbed_answer", "text", "prompt", "gt", "input")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
TOFU_FORGET = ("forget01", "forget05", "forget10")
MUSE_PARTS = ("raw", "privleak", "verbmem", "knowmem")


@dataclass(frozen=True)
class Question:
    """One question with its answer; `paraphrase` and `wrong` are for the truth ratio."""

    id: str
    question: str
    answer: str
    paraphrase: str | None = None
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionTable:
    """Questions in order. `template` is the prompt around a question ("{question}" inside); the answer follows it after
    `separator`. A chat model wants its own template: a wrong one makes a model look as if it had forgotten."""

    questions: tuple[Question, ...]
    template: str = "Question: {question}\nAnswer:"
    separator: str = " "

    def __post_init__(self):
        if self.template.count("{question}") != 1:
            raise InputError(f"the question template {self.template!r} must hold {{question}} exactly once")
        ids = [question.id for question in self.questions]
        if len(set(ids)) < len(ids):
            again = next(name for number, name in enumerate(ids) if name in ids[:number])
            raise InputError(f"question id {again[:60]!r} occurs twice; make ids unique")

    def __len__(self) -> int:
        return len(self.questions)

    def prompt(self, question: str) -> str:
        before, after = self.template.split("{question}")
        return before + question + after

    def records(self) -> RecordTable:
        """One record a question: prefix = prompt, suffix = separator + answer."""
        return self._table((item.id, item.question, item.answer) for item in self.questions)

    def paraphrases(self) -> RecordTable:
        """The paraphrased answers. Errors: `InputError` naming the first question without one."""
        for item in self.questions:
            if item.paraphrase is None:
                raise InputError(f"question {item.id[:60]!r} has no paraphrased_answer: the truth ratio needs one")
        return self._table((item.id, item.question, item.paraphrase or "") for item in self.questions)

    def wrong_answers(self) -> RecordTable:
        """Every wrong answer, ids "<question id>/<n>", group = the question's id. Errors: `InputError` naming the first
        question without one."""
        for item in self.questions:
            if not item.wrong:
                raise InputError(f"question {item.id[:60]!r} has no perturbed_answer: the truth ratio needs wrong ones")
        return self._table(
            (f"{item.id}/{number}", item.question, wrong, item.id)
            for item in self.questions
            for number, wrong in enumerate(item.wrong)
        )

    def _table(self, rows: Iterable[tuple[str, ...]]) -> RecordTable:
        return RecordTable.from_rows(
            {
                "id": row[0],
                "prefix": self.prompt(row[1]),
                "suffix": self.separator + row[2],
                **({"group": row[3]} if len(row) > 3 else {}),
            }
            for row in rows
        )


@dataclass(frozen=True)
class TofuData:
    """TOFU's subsets; `forget` and `retain` carry paraphrases and wrong answers where the folder has them."""

    forget: QuestionTable
    retain: QuestionTable
    holdout: QuestionTable | None = None
    real_authors: QuestionTable | None = None
    world_facts: QuestionTable | None = None


@dataclass(frozen=True)
class MuseData:
    """MUSE's subsets. `forget`, `retain`, `holdout`: passages for PrivLeak and for training; `verbatim`: prefix =
    prompt, suffix = true continuation; knowledge questions with the worked examples shown before them."""

    forget: RecordTable
    retain: RecordTable
    holdout: RecordTable
    verbatim: RecordTable | None = None
    forget_questions: QuestionTable | None = None
    retain_questions: QuestionTable | None = None
    train_forget: RecordTable | None = None
    train_retain: RecordTable | None = None


def question_table(
    rows: Iterable[Mapping[str, Any]],
    *,
    name: str = "questions",
    template: str = "Question: {question}\nAnswer:",
    separator: str = " ",
) -> QuestionTable:
    """Questions from mappings in TOFU's fields; ids default to "<name>:<row>" from 1.

    A perturbed_answer may be one string or a list. Errors: `InputError` naming row and field.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(_question(row, f"{name}:{number}"))
        except RowError as error:
            raise InputError(f"{name} row {number}: {error}") from None
    if not found:
        raise InputError(f"{name}: no question in it. Give at least one row with question and answer.")
    return QuestionTable(tuple(found), template, separator)


def read_questions(path: str | Path, **format: str) -> QuestionTable:
    """A file (or saved data set) of questions. `format`: template and separator of `QuestionTable`."""
    path = Path(path)
    return question_table((row for _, row in _rows(path)), name=_stem(path), **format)


def read_tofu(path: str | Path, *, forget: str | None = None, **format: str) -> TofuData:
    """TOFU's layout in a folder. `forget` names the forget subset (None: the only one there is).

    The rows of `<forget>_perturbed` and `retain_perturbed` take the place of the plain ones, because they hold the same
    questions with what the truth ratio needs; the plain retain file is read when there is no perturbed one.
    Errors: `InputError` for a missing subset, with what the folder has.
    """
    folder = _folder(path)
    there = [name for name in TOFU_FORGET if _find(folder, name) or _find(folder, f"{name}_perturbed")]
    if forget is None:
        if len(there) != 1:
            raise InputError(
                f"{folder}: {'several forget subsets' if there else 'no forget subset'} ({', '.join(there) or 'none'});"
                " name one, for example forget10"
            )
        forget = there[0]
    number = re.fullmatch(r"forget(\d\d)", forget)
    if not number:
        raise InputError(f"{forget!r} is no TOFU forget subset; use one of {', '.join(TOFU_FORGET)}")
    share = number.group(1)

    def subset(*names: str, needed: bool = False) -> QuestionTable | None:
        for name in names:
            if found := _find(folder, name):
                return question_table((row for _, row in _rows(found)), name=name, **format)
        if needed:
            raise _absent(folder, names)
        return None

    kept = f"retain{100 - int(share)}"
    forget_set = subset(f"{forget}_perturbed", forget, needed=True)
    retain_set = subset("retain_perturbed", kept, needed=True)
    assert forget_set is not None
    assert retain_set is not None
    return TofuData(
        forget_set,
        retain_set,
        holdout=subset(f"holdout{share}_perturbed", f"holdout{share}"),
        real_authors=subset("real_authors_perturbed", "real_authors"),
        world_facts=subset("world_facts_perturbed", "world_facts"),
    )


def read_tofu_training(path: str | Path, *, forget: str = "forget10", **format: str) -> tuple[RecordTable, RecordTable]:
    """(forget, retain) to train on: the whole plain subsets, as question-answer records."""
    folder = _folder(path)
    kept = f"retain{100 - int(forget[-2:])}" if forget in TOFU_FORGET else ""
    tables = []
    for name in (forget, kept):
        found = _find(folder, name) if name else None
        if found is None:
            raise _absent(folder, (name or forget,))
        tables.append(question_table((row for _, row in _rows(found)), name=name, **format).records())
    return tables[0], tables[1]


def read_muse(path: str | Path) -> MuseData:
    """MUSE's layout in a folder (of one corpus, news or books).

    KnowMem prompts are the worked examples of `<subset>_icl` as "Question: q\\nAnswer: a\\n\\n" each, then the question
    [the form as recalled, not re-read]. Errors: `InputError` for a missing subset, with what the folder has.
    """
    folder = _folder(path)
    if not any((folder / part).is_dir() for part in MUSE_PARTS):
        inside = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise InputError(
            f"{folder}: none of the folders {', '.join(MUSE_PARTS)} is in it "
            f"(it has {', '.join(inside[:8]) or 'none'}); give the folder of one corpus"
        )

    def passages(names: tuple[str, ...], needed: bool = False) -> RecordTable | None:
        for name in names:
            if found := _find(folder, name):
                rows = ({"id": f"{name}:{number}", "text": _passage(row, name)} for number, row in _rows(found))
                return RecordTable.from_rows(rows, source=name)
        if needed:
            raise _absent(folder, names)
        return None

    def questions(name: str) -> QuestionTable | None:
        if not (found := _find(folder, f"knowmem/{name}_qa")):
            return None
        shown = _find(folder, f"knowmem/{name}_qa_icl")
        examples = question_table((row for _, row in _rows(shown)), name=f"{name}_qa_icl").questions if shown else ()
        # Braces in an example are text, not a place for the question: the template is cut at {question}, never
        # formatted, so only that very word must not occur in it.
        before = "".join(f"Question: {item.question}\nAnswer: {item.answer}\n\n" for item in examples)
        before = before.replace("{question}", "{ question }")
        return question_table(
            (row for _, row in _rows(found)), name=f"{name}_qa", template=before + "Question: {question}\nAnswer:"
        )

    verbatim = None
    if found := _find(folder, "verbmem/forget"):
        rows = []
        for number, row in _rows(found):
            try:
                prompt, truth = check_content(row.get("prompt"), "prompt"), check_content(row.get("gt"), "gt")
            except RowError as error:
                raise InputError(f"verbmem/forget row {number}: {error}") from None
            rows.append({"id": f"verbmem:{number}", "prefix": prompt, "suffix": truth})
        verbatim = RecordTable.from_rows(rows, source="verbmem/forget")
    forget, retain, holdout = (
        passages((f"privleak/{name}", *(f"raw/{raw}" for raw in raws)), needed=True)
        for name, raws in (("forget", ("forget",)), ("retain", ("retain2", "retain")), ("holdout", ("holdout",)))
    )
    assert forget is not None
    assert retain is not None
    assert holdout is not None
    return MuseData(
        forget, retain, holdout, verbatim, questions("forget"), questions("retain"),
        passages(("raw/forget",)), passages(("raw/retain1", "raw/retain")),
    )  # fmt: skip


def read_forget_retain(
    forget: str | Path, retain: str | Path, holdout: str | Path | None = None, **format: str
) -> tuple[RecordTable, RecordTable, RecordTable | None]:
    """Two plain files (and a holdout): rows with `text`, with prefix and suffix, or with question and answer.

    Each file is read by what its first row has. `format`: template and separator for questions.
    """
    tables = [read_plain(path, **format) for path in (forget, retain)]
    return tables[0], tables[1], None if holdout is None else read_plain(holdout, **format)


def read_plain(path: str | Path, **format: str) -> RecordTable:
    """One plain file of records, or of questions when its first row has question and answer."""
    path = Path(path)
    if not path.exists():
        raise missing(path)
    first = next(_rows(path), (0, {}))[1]
    if "question" in first and "answer" in first and "text" not in first:
        return read_questions(path, **format).records()
    return read_records(path)


def _question(row: Mapping[str, Any], default: str) -> Question:
    wrong = row.get("perturbed_answer")
    paraphrase = row.get("paraphrased_answer")
    listed = [wrong] if isinstance(wrong, str) else list(wrong) if wrong is not None else []
    for field in ("question", "answer"):
        if row.get(field) is None:
            names = [str(name) for name in row if name not in FIELDS]
            raise RowError(f"it has no {field}.{closest(field, names)} Give every row question and answer.")
    return Question(
        id=str(row.get("id") if row.get("id") is not None else default),
        question=check_content(row["question"], "question"),
        answer=check_content(row["answer"], "answer"),
        paraphrase=None if paraphrase is None else check_content(paraphrase, "paraphrased_answer"),
        wrong=tuple(check_content(answer, "perturbed_answer") for answer in listed),
    )


def _passage(row: Mapping[str, Any], name: str) -> Any:
    text = row.get("text", row.get("input"))
    if text is None:
        raise InputError(f"{name}: a row has no text. Give every row a text, or a list of strings.")
    return text


def _rows(path: Path | list[Path]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number from 1, row) of one subset, whatever its format; a JSON list of strings gives rows with `text`."""
    number = 0
    for file in find_files(path):
        if file.format == "json" and (strings := _strings(file.path)) is not None:
            for text in strings:
                number += 1
                yield number, {"text": text}
            continue
        unit = "file" if file.format == "txt" else "paragraph"
        for line, row in raw_rows(file.path, file.label, file.format, wanted=set(FIELDS), txt_unit=unit):
            if isinstance(row, Problem):
                raise InputError(f"{file.label} {unit_of(file.format)} {line}: {row}")
            number += 1
            yield number, row


def _strings(path: Path) -> list[str] | None:
    """The file's strings when it is a JSON list of nothing else."""
    with open_bytes(path) as stream:
        try:
            value = json.loads(stream.read().decode("utf-8"))
        except (ValueError, RecursionError):
            return None  # the row reader says what is wrong, and where
    return value if isinstance(value, list) and value and all(isinstance(item, str) for item in value) else None


def _find(folder: Path, name: str) -> Path | list[Path] | None:
    """The file, parts or folder of a subset `name`, "raw/forget" say; None when there is none."""
    base = folder / name
    for suffix in SUFFIXES:
        if (file := base.with_name(base.name + suffix)).is_file():
            return file
    parts = sorted(base.parent.glob(f"{base.name}-[0-9]*-of-[0-9]*.parquet")) if base.parent.is_dir() else []
    if parts:
        return parts
    return base if base.is_dir() and any(base.iterdir()) else None


def _stem(path: Path) -> str:
    return re.sub(r"(-\d+-of-\d+)?(\.\w+)?$", "", path.name) or "questions"


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.exists():
        raise missing(folder)
    if not folder.is_dir():
        raise InputError(f"{folder.name} is a file; give the folder that holds the subsets")
    return folder


def _absent(folder: Path, names: tuple[str, ...]) -> InputError:
    have = sorted(
        {_stem(entry) for entry in folder.rglob("*") if entry.is_file() and entry.suffix in (*SUFFIXES, ".gz")}
    )
    return InputError(f"{folder}: no file {' or '.join(names)} in it; it has {', '.join(have[:12]) or 'no data files'}")
