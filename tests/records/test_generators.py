"""Invented people, their questions and choices, passages, the three-way split, and the text every Python carries."""

import numpy as np
import pytest

from rote.errors import InputError
from rote.records.generators import (
    PII_FIELDS,
    STRENGTHS,
    biographies,
    passages,
    pii_choices,
    unlearning_splits,
)
from rote.records.stdlib_text import docstrings, stdlib_documents


@pytest.fixture(scope="module")
def people():
    return biographies(60, seed=5)


def test_people_are_distinct_reproducible_and_named_nowhere_else(people):
    assert people == biographies(60, seed=5)
    assert people != biographies(60, seed=6)
    assert len({person.name for person in people}) == 60
    assert len({person.uuid for person in people}) == 60
    assert all(len(person.uuid) == 32 and int(person.uuid, 16) >= 0 for person in people)
    assert all(person.email.split("@")[1] in ("example.com", "example.net", "example.org") for person in people)


def test_the_template_has_the_seven_fields_in_order(people):
    person = people[0]
    first = person.name.split()[0]
    assert person.text == (
        f"{person.name} is from {person.nation}. {first} was born in {person.birthplace}. "
        f"{first} is an alumni of {person.university}. {first} was born on {person.birthdate}. "
        f"{first} receives email at {person.email}. {first} is {person.occupation}. "
        f"{first} has the unique identifier {person.uuid}."
    )
    assert person.row()["text"] == person.text


@pytest.mark.parametrize("field", PII_FIELDS)
def test_questions_are_cut_from_the_biography_itself(people, field):
    person = people[3]
    value = getattr(person, field)
    context, answer, after = person.question(field, "full")
    assert context + answer + after == person.text
    assert answer == " " + value
    before, _, nothing = person.question(field, "full_prefix")
    assert (before, nothing) == (context, "")
    for strength in ("intro_prefix", "name_only"):
        shorter, same, nothing = person.question(field, strength)
        assert (same, nothing) == (answer, "")
        assert shorter.startswith(person.name)
        assert value not in shorter
    assert len(person.question(field, "name_only")[0]) <= len(person.question(field, "intro_prefix")[0])
    # Another answer changes the answer and nothing before it.
    assert person.question(field, "full", value="Z")[0] == context


def test_the_order_of_strengths_is_the_order_of_knowledge(people):
    assert STRENGTHS == ("full", "full_prefix", "intro_prefix", "name_only")
    with pytest.raises(ValueError, match="unknown attack strength"):
        people[0].question("email", "psychic")


@pytest.mark.parametrize("field", PII_FIELDS)
def test_choices_hold_the_truth_first_and_no_answer_twice(people, field):
    options = pii_choices(people, field)
    assert options == pii_choices(people, field)
    for person, values in zip(people, options, strict=True):
        assert values[0] == getattr(person, field)
        assert len(set(values)) == len(values) == 10
    if field == "email":  # the name must not give the address away
        assert all(
            person.name.split()[-1].lower() in value
            for person, values in zip(people, options, strict=True)
            for value in values
        )


def test_passages_do_not_overlap_and_say_where_they_are_from():
    documents = [("a", " ".join(f"a{i}" for i in range(100))), ("b", " ".join(f"b{i}" for i in range(39)))]
    rows = passages(documents, n=5, words=20, seed=1)
    words = [word for row in rows for word in row["text"].split()]
    assert len(words) == len(set(words)) == 100
    for row in rows:
        name, start = row["source"].split(":")
        text = dict(documents)[name].split()
        assert row["text"].split() == text[int(start) : int(start) + 20]
    with pytest.raises(InputError, match="hold 6 passages"):
        passages(documents, n=7, words=20)


def test_forget_and_keep_halve_every_level_and_test_is_the_unseen():
    duplicates = np.array([0] * 10 + [1] * 5 + [64] * 7 + [256] * 4)
    splits = unlearning_splits(duplicates, levels=(64, 256), seed=0)
    assert not set(splits.forget) & set(splits.keep)
    assert sorted((*splits.forget, *splits.keep)) == np.flatnonzero(duplicates >= 64).tolist()
    assert [int((duplicates[list(part)] == 256).sum()) for part in (splits.forget, splits.keep)] == [2, 2]
    assert [int((duplicates[list(part)] == 64).sum()) for part in (splits.forget, splits.keep)] == [4, 3]
    assert list(splits.test) == list(range(10))
    assert splits == unlearning_splits(duplicates, levels=(64, 256), seed=0)
    assert splits != unlearning_splits(duplicates, levels=(64, 256), seed=1)


def test_docstrings_are_found_in_source_order_without_running_anything():
    source = b'''"""Module."""
raise SystemExit("never run")
class A:
    """Class."""
    def f(self):
        """Method."""
        if True:
            def inner():
                """Inner."""
try:
    async def g():
        """Async."""
except ImportError:
    def h():
        """Handler."""
def no(): "one quote counts too"
'''
    assert docstrings(source) == [
        "Module.",
        "Class.",
        "Method.",
        "Inner.",
        "Async.",
        "Handler.",
        "one quote counts too",
    ]


def test_this_python_carries_a_megabyte_of_english():
    documents = list(stdlib_documents())
    assert documents == list(stdlib_documents())
    assert sum(len(document.text) for document in documents) > 1_000_000
    assert len({document.text for document in documents}) == len(documents) > 3000
    assert not any("/test/" in document.id or "site-packages" in document.id for document in documents)
    assert all(len(document.text) >= 200 for document in stdlib_documents(min_chars=200))


def test_a_python_without_sources_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no standard-library sources"):
        list(stdlib_documents(include_topics=False, stdlib=tmp_path))


def test_tests_and_broken_files_are_left_out(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "x.py").write_text('"""hidden"""')
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "a.py").write_text('"""seen"""')
    assert [d.text for d in stdlib_documents(include_topics=False, stdlib=tmp_path)] == ["seen"]
