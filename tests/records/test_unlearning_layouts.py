"""Synthetic TOFU, and data in TOFU's, MUSE's and plain layouts, read from every format on disk."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rote.errors import InputError
from rote.records import fictitious_authors as authors
from rote.records.table import RecordTable
from rote.records.unlearning_layouts import (
    QuestionTable,
    question_table,
    read_forget_retain,
    read_muse,
    read_plain,
    read_questions,
    read_tofu,
    read_tofu_training,
)

# --- synthetic TOFU --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits():
    return authors.author_splits(background=300, retain=40, forget=40, holdout=40, seed=3)


def test_the_vocabulary_has_578_words_and_no_attribute_shares_one():
    words = authors.vocabulary()
    assert len(words) == 578
    assert sorted(words.values()) == list(range(578))
    values = [value for pool in authors.POOLS.values() for value in pool]
    assert len(values) == len(set(values)) == 536
    assert all(30 <= len(pool) <= 80 for pool in authors.POOLS.values())
    assert len(authors.ATTRIBUTES) == 9
    assert len(authors.FACTS) == 7


def test_splits_share_no_name_and_are_drawn_alike(splits):
    everyone = [*splits.background, *splits.retain, *splits.forget, *splits.holdout]
    assert len({(author.first, author.last) for author in everyone}) == 420
    assert len({author.id for author in everyone}) == 420
    again = authors.author_splits(background=300, retain=40, forget=40, holdout=40, seed=3)
    assert again == splits
    assert authors.author_splits(background=300, retain=40, forget=40, holdout=40, seed=4) != splits
    years = [int(author.year) for author in splits.background]
    assert 1925 < np.mean(years) < 1934  # uniform over 1900 .. 1959: mean 29.5, standard error 1
    with pytest.raises(InputError, match="6,400 full names"):
        authors.author_splits(background=7000)


@pytest.mark.parametrize("template", authors.TEMPLATES)
def test_every_text_has_35_words_and_every_fact(splits, template):
    tokenizer = authors.word_level_tokenizer()
    for author in splits.forget[:10]:
        words = author.text(template).split()
        assert len(words) == authors.WORDS_PER_TEXT
        for name in authors.ATTRIBUTES:
            assert getattr(author, name) in words
        ids = tokenizer.encode(author.text(template), add_special_tokens=False).ids
        assert authors.vocabulary()[authors.UNKNOWN] not in ids
        assert tokenizer.decode(ids) == author.text(template)
        row = authors.token_matrix([author], template)[0].tolist()
        assert row == tokenizer.encode(author.text(template)).ids == [0, *ids]


def test_wrong_facts_are_all_wrong_and_depend_on_the_author_alone(splits):
    for author in splits.forget[:10]:
        wrong = authors.wrong_facts(author, wrong=4, seed=1)
        assert wrong == authors.wrong_facts(author, wrong=4, seed=1) != authors.wrong_facts(author, wrong=4, seed=2)
        for facts in wrong:
            assert set(facts) == set(authors.FACTS)
            assert all(facts[name] != getattr(author, name) for name in facts)
            assert not set(facts.values()) & set(author.answer("paraphrase").split()) - {"a", "the"}
    rows = authors.author_questions(splits.forget[5:7], wrong=2)
    assert rows[0] == authors.author_questions([splits.forget[5]], wrong=2)[0]
    assert all(len(answer.split()) == 33 for answer in rows[0]["perturbed_answer"])


def test_records_and_questions_say_the_same(splits):
    table = authors.author_records(splits.forget, "train")
    assert table.column("text") == [author.text("train") for author in splits.forget]
    questions = question_table(authors.author_questions(splits.forget), template="{question}")
    assert questions.records().column("text") == table.column("text")
    assert questions.records().column("prefix_chars") == table.column("prefix_chars")
    assert questions.paraphrases().column("text") == [author.text("paraphrase") for author in splits.forget]
    wrong = questions.wrong_answers()
    assert len(wrong) == 5 * len(questions)
    assert wrong.column("group")[5] == questions.questions[1].id
    with pytest.raises(InputError, match="no template 'x'"):
        splits.forget[0].text("x")


def test_the_tokenizer_is_an_ordinary_directory(tmp_path, splits):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    authors.write_tokenizer(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=authors.word_level_tokenizer(), **authors.SPECIAL_TOKENS)
    text = splits.holdout[0].text("qa")
    assert (
        loaded(text)["input_ids"]
        == wrapped(text)["input_ids"]
        == authors.token_matrix(splits.holdout[:1], "qa")[0].tolist()
    )
    assert loaded.bos_token_id == loaded.eos_token_id == 0
    assert loaded.decode(loaded(text, add_special_tokens=False)["input_ids"]) == text


# --- files -----------------------------------------------------------------------------------------------------------

ROWS = [
    {"question": "Who?", "answer": "Ann.", "paraphrased_answer": "It was Ann.", "perturbed_answer": ["Bob.", "Cid."]},
    {"question": "Where {x}?", "answer": "In Ur.", "paraphrased_answer": "Ur.", "perturbed_answer": ["In Rome."]},
]


def store(path, rows, format):
    """One subset in one of the formats that hubs and scripts write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "jsonl":
        path.with_name(path.name + ".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif format == "json lines":  # TOFU's own files: one object a line, named .json
        path.with_name(path.name + ".json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif format == "json list":
        path.with_name(path.name + ".json").write_text(json.dumps(rows))
    elif format == "parquet parts":
        for part, piece in enumerate((rows[:1], rows[1:])):
            pq.write_table(pa.Table.from_pylist(piece), path.with_name(f"{path.name}-0000{part}-of-00002.parquet"))
    else:
        from datasets import Dataset

        Dataset.from_list(rows).save_to_disk(str(path))


FORMATS = ["jsonl", "json lines", "json list", "parquet parts", "saved"]


@pytest.mark.parametrize("format", FORMATS)
def test_tofu_from_every_format(tmp_path, format):
    plain = [{"question": row["question"], "answer": row["answer"]} for row in ROWS]
    for name, rows in {
        "forget05": plain, "forget05_perturbed": ROWS, "retain95": plain, "retain_perturbed": ROWS[::-1],
        "real_authors_perturbed": [{k: v for k, v in row.items() if k != "paraphrased_answer"} for row in ROWS],
    }.items():  # fmt: skip
        store(tmp_path / name, rows, format)
    data = read_tofu(tmp_path, template="Q: {question} A:")
    assert [item.wrong for item in data.forget.questions] == [("Bob.", "Cid."), ("In Rome.",)]
    assert data.forget.questions[0].paraphrase == "It was Ann."
    assert data.forget.records().column("text") == ["Q: Who? A: Ann.", "Q: Where {x}? A: In Ur."]
    assert data.forget.records().column("prefix_chars") == [10, 16]
    assert data.retain.questions[0].question == "Where {x}?"
    assert data.real_authors is not None
    assert data.real_authors.questions[0].paraphrase is None
    assert data.world_facts is None
    assert data.holdout is None
    with pytest.raises(InputError, match="no paraphrased_answer"):
        data.real_authors.paraphrases()
    forget, retain = read_tofu_training(tmp_path, forget="forget05")
    assert len(forget) == len(retain) == 2
    assert forget.column("text")[0] == "Question: Who?\nAnswer: Ann."


def test_tofu_errors_name_the_file(tmp_path):
    with pytest.raises(InputError, match="no forget subset"):
        read_tofu(tmp_path)
    store(tmp_path / "forget10", ROWS, "jsonl")
    with pytest.raises(InputError, match="no file retain_perturbed or retain90 in it; it has forget10"):
        read_tofu(tmp_path)
    store(tmp_path / "forget01", ROWS, "jsonl")
    with pytest.raises(InputError, match=r"several forget subsets \(forget01, forget10\)"):
        read_tofu(tmp_path)
    with pytest.raises(InputError, match="'forget_10' is no TOFU forget subset"):
        read_tofu(tmp_path, forget="forget_10")
    with pytest.raises(InputError, match="Did you mean"):
        read_tofu(tmp_path.parent / (tmp_path.name + "x"))
    store(tmp_path / "retain99", [{"question": "?", "anser": "x"}], "jsonl")
    with pytest.raises(InputError, match="retain99 row 1: it has no answer"):
        read_tofu(tmp_path, forget="forget01")
    (tmp_path / "retain99.jsonl").write_text('{"question": "a", "answer": "b"}\n{broken\n')
    with pytest.raises(InputError, match="line 2: not valid JSON"):
        read_tofu(tmp_path, forget="forget01")


@pytest.mark.parametrize("format", ["json list", "parquet parts", "saved"])
def test_muse(tmp_path, format):
    def passages(name, count=2):
        rows = [{"text": f"{name} passage {n}"} for n in range(count)]
        if format == "json list":
            rows = [row["text"] for row in rows]  # MUSE's privleak files are lists of strings
        store(tmp_path / "privleak" / name, rows, format)

    for name in ("forget", "retain", "holdout"):
        passages(name)
    store(tmp_path / "verbmem" / "forget", [{"prompt": "Once upon", "gt": " a time"}] * 2, format)
    questions = [{"question": "A {question}?", "answer": "B"}, {"question": "C?", "answer": "D"}]
    store(tmp_path / "knowmem" / "forget_qa", questions, format)
    store(tmp_path / "knowmem" / "forget_qa_icl", questions, format)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "forget.txt").write_text("One passage.\n\nStill the same one.\n")
    data = read_muse(tmp_path)
    assert data.forget.column("text") == ["forget passage 0", "forget passage 1"]
    assert data.verbatim is not None
    assert data.verbatim.column("text") == ["Once upon a time"] * 2
    assert data.verbatim.column("prefix_chars") == [9, 9]
    assert data.forget_questions is not None
    text = data.forget_questions.records().column("text")[1]
    assert text == ("Question: A { question }?\nAnswer: B\n\nQuestion: C?\nAnswer: D\n\nQuestion: C?\nAnswer: D")
    assert data.retain_questions is None
    assert data.train_forget is not None
    assert data.train_forget.column("text") == ["One passage.\n\nStill the same one.\n"]
    assert data.train_retain is None


def test_muse_errors(tmp_path):
    (tmp_path / "books").mkdir()
    with pytest.raises(InputError, match=r"none of the folders raw, .*\(it has books\)"):
        read_muse(tmp_path)
    (tmp_path / "books" / "privleak").mkdir()
    (tmp_path / "books" / "privleak" / "forget.json").write_text('["a b"]')
    with pytest.raises(InputError, match="no file privleak/retain or raw/retain2 or raw/retain in it; it has forget"):
        read_muse(tmp_path / "books")


def test_plain_files(tmp_path):
    (tmp_path / "f.jsonl").write_text(json.dumps({"id": "x", "question": "Who?", "answer": "Ann."}) + "\n")
    (tmp_path / "r.jsonl").write_text('{"text": "some passage"}\n{"text": "another"}\n')
    (tmp_path / "h.jsonl").write_text('{"prefix": "a b", "suffix": " c"}\n')
    forget, retain, holdout = read_forget_retain(tmp_path / "f.jsonl", tmp_path / "r.jsonl", tmp_path / "h.jsonl")
    assert forget.column("text") == ["Question: Who?\nAnswer: Ann."]
    assert forget.column("id") == ["x"]
    assert retain.column("text") == ["some passage", "another"]
    assert isinstance(holdout, RecordTable)
    assert holdout.column("prefix_chars") == [3]
    assert read_forget_retain(tmp_path / "f.jsonl", tmp_path / "r.jsonl")[2] is None
    with pytest.raises(InputError, match="no such file"):
        read_plain(tmp_path / "g.jsonl")


def test_question_tables_are_checked(tmp_path):
    with pytest.raises(InputError, match="exactly once"):
        QuestionTable((), template="no place")
    with pytest.raises(InputError, match="'a' occurs twice"):
        question_table([{"id": "a", "question": "x", "answer": "y"}] * 2)
    with pytest.raises(InputError, match="row 1: answer is empty"):
        question_table([{"question": "x", "answer": " "}])
    with pytest.raises(InputError, match="no question in it"):
        question_table([])
    (tmp_path / "q.csv").write_text("question,answer\nWho?,Ann.\n")
    assert read_questions(tmp_path / "q.csv").questions[0].id == "q:1"
    single = question_table([{"question": "x", "answer": "y", "perturbed_answer": "z"}])
    assert single.questions[0].wrong == ("z",)
