"""The record table: what it accepts, what it says about what it refuses, and what its fingerprint depends on."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rote.errors import InputError
from rote.records import RecordTable, read_records
from rote.records.table import SCHEMA

texts = st.text(st.characters(codec="utf-8"), max_size=20).map(lambda t: t + "x")
optional = {
    "group": st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=4),
    "date": st.dates().map(str),
}
content = st.one_of(
    st.fixed_dictionaries({"text": texts}, optional=optional),
    st.fixed_dictionaries({"prefix": texts, "suffix": texts}, optional=optional),
    st.fixed_dictionaries(
        {"token_ids": st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9)}, optional=optional
    ),
    st.fixed_dictionaries({"text": texts, "duplicates": st.integers(0, 2**40)}, optional=optional),
    st.fixed_dictionaries({"text": texts, "member": st.booleans()}, optional=optional),
)


def test_columns_and_values():
    table = RecordTable.from_rows(
        [
            {"text": "abc", "duplicates": 4, "group": 7, "date": 1999, "mood": "x"},
            {"id": 12, "prefix": "ab", "suffix": "cd", "member": "false"},
            {"token_ids": np.array([1, 2, 3]), "prefix_tokens": 2},
            {"prefix_ids": [5], "suffix_ids": [6, 7], "member": 1},
            {"text": "xyz", "prefix_chars": 1},
        ]
    )
    assert table.table.schema == SCHEMA
    assert table.column("id") == ["memory:1", "12", "memory:3", "memory:4", "memory:5"]
    assert table.column("text") == ["abc", "abcd", None, None, "xyz"]
    assert table.column("token_ids") == [None, None, [1, 2, 3], [5, 6, 7], None]
    assert table.column("prefix_chars") == [None, 2, None, None, 1]
    assert table.column("prefix_tokens") == [None, None, 2, 1, None]
    assert table.column("duplicates") == [4, None, None, None, None]
    assert table.column("member") == [None, False, None, True, None]
    assert table.column("group")[0] == "7"
    assert table.column("date")[0] == "1999"
    assert table.extra_fields == ("mood",)
    assert table.is_control.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": 5}, "text is a number, not a string"),
        ({"text": ""}, "text is empty"),
        ({"text": " \n\t"}, "text is empty"),
        ({"text": "ok \ud800"}, "text has a lone surrogate (U+D800) at character 4"),
        ({"prefix": "a", "suffix": ""}, "suffix is empty"),
        ({"prefix": "a"}, "prefix without suffix"),
        ({"text": "a", "token_ids": [1]}, "given twice, as text and as token_ids"),
        ({"text": "a", "prefix": "a", "suffix": "b"}, "given twice, as text and as prefix+suffix"),
        ({"text": "abc", "prefix_chars": 3}, "prefix_chars is 3, but the record has 3 characters"),
        ({"token_ids": [1, 2], "prefix_tokens": 5}, "prefix_tokens is 5, but the record has 2 tokens"),
        ({"text": "abc", "prefix_tokens": 1}, "prefix_tokens goes with token_ids"),
        ({"token_ids": [1, -2]}, "token_ids has a negative token id at position 1"),
        ({"token_ids": [2**31]}, "token_ids has too large a token id at position 0"),
        ({"token_ids": [1, 2.5]}, "token_ids has a number at position 1"),
        ({"token_ids": [True]}, "token_ids has true/false at position 0"),
        ({"token_ids": []}, "token_ids is empty"),
        ({"token_ids": "1 2"}, "token_ids is a string that is not a JSON list"),
        ({"text": "a", "duplicates": -1}, "duplicates must be 0 or more"),
        ({"text": "a", "duplicates": 1.5}, "duplicates must be a whole number"),
        ({"text": "a", "duplicates": True}, "duplicates must be a whole number"),
        ({"text": "a", "duplicates": 2**63}, "duplicates must be at most"),
        ({"text": "a", "member": 2}, "member must be true, false, 1 or 0"),
        ({"text": "a", "member": "perhaps"}, "member must be true, false, 1 or 0"),
        ({"text": "a", "member": True, "duplicates": 0}, "member is true but duplicates is 0"),
        ({"text": "a", "group": ["x"]}, "group is a list"),
        (
            {"body": "a", "n": 1},
            "no field text (nor prefix and suffix, nor token_ids); it has body, n. Did you mean body?",
        ),
        ({"Text": "a", "other": "b"}, "Did you mean Text? Name the field with --text-column."),
        ({}, "it has no field"),
    ],
)
def test_a_bad_row_is_refused_with_its_place_and_field(row, said):
    with pytest.raises(InputError) as caught:
        RecordTable.from_rows([{"text": "fine"}, row], source="rows")
    message = str(caught.value)
    assert message.startswith("rows row 2: ")
    assert said in message
    assert "\n" not in message


def test_contents_never_reach_an_error():
    secret = "4111-1111"
    for row in (
        {"text": "a", "member": secret},
        {"text": "a", "duplicates": secret},
        {"text": [secret]},
        {"token_ids": secret},
    ):
        with pytest.raises(InputError) as caught:
            RecordTable.from_rows([row])
        assert secret not in str(caught.value)


def test_duplicate_ids_name_both_places():
    with pytest.raises(InputError, match=r'memory:3: id "a" was used before, at memory:1. Make ids unique. 1 more'):
        RecordTable.from_rows([{"id": i, "text": "x"} for i in ("a", "b", "a", "b")])
    one, two = (RecordTable.from_rows([{"id": "a", "text": "x"}], source=s) for s in ("one", "two"))
    with pytest.raises(InputError, match=r"two:1: id .* used before, at one:1"):
        RecordTable.concat([one, two])


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(content, min_size=1, max_size=6), data=st.data())
def test_fingerprint_ignores_chunks_and_survives_jsonl(rows, data, tmp_path_factory):
    table = RecordTable.from_rows(rows)
    cut = data.draw(st.integers(0, len(rows)))
    parts = [table.table.slice(0, cut), table.table.slice(cut)]
    assert RecordTable(pa.concat_tables(parts)).fingerprint == table.fingerprint
    assert RecordTable(table.table.combine_chunks()).fingerprint == table.fingerprint
    # dictionaries of rows in another key order, and a round trip through a file
    assert RecordTable.from_rows([dict(reversed(row.items())) for row in rows]).fingerprint == table.fingerprint
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    table.to_jsonl(path)
    again = read_records(path)
    assert again.fingerprint == table.fingerprint
    assert again.table.drop(["source"]).equals(table.table.drop(["source"]))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(content, min_size=2, max_size=5), data=st.data())
def test_fingerprint_tells_different_contents_apart(rows, data):
    table = RecordTable.from_rows([{**row, "id": str(i)} for i, row in enumerate(rows)])
    order = data.draw(st.permutations(range(len(rows))))
    assert (table.take(order).fingerprint == table.fingerprint) == (list(order) == list(range(len(rows))))
    changed = [{**row, "id": str(i)} for i, row in enumerate(rows)]
    changed[data.draw(st.integers(0, len(rows) - 1))]["group"] = "another group"
    assert RecordTable.from_rows(changed).fingerprint != table.fingerprint


def test_fingerprint_sees_where_a_string_ends_and_a_null_that_moves():
    def of(*texts):
        return RecordTable.from_rows([{"id": str(i), "text": t} for i, t in enumerate(texts)]).fingerprint

    assert of("ab", "c") != of("a", "bc")
    rows = [{"id": "0", "text": "a", "duplicates": 0}, {"id": "1", "text": "b"}]
    moved = [{"id": "0", "text": "a"}, {"id": "1", "text": "b", "duplicates": 0}]
    assert RecordTable.from_rows(rows).fingerprint != RecordTable.from_rows(moved).fingerprint


def test_take_keeps_order_and_repeats_nothing_unasked():
    table = RecordTable.from_rows([{"id": i, "text": f"t{i}"} for i in range(5)])
    assert table.take([3, 0]).column("text") == ["t3", "t0"]
    assert len(table.take(np.array([], int))) == 0
    assert table.take(np.array([True, False, False, False, True])).column("id") == ["0", "4"]
    assert RecordTable.concat([table.take([1]), table.take([0])]).column("id") == ["1", "0"]


def test_to_jsonl_is_all_or_nothing(tmp_path, monkeypatch):
    table = RecordTable.from_rows([{"text": "a\nb", "duplicates": 2}])
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    monkeypatch.setattr("rote.atomic.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError):
        table.to_jsonl(path)
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    assert path.read_text() == "old"
    monkeypatch.undo()
    table.to_jsonl(path)
    assert json.loads(path.read_text()) == {"id": "memory:1", "text": "a\nb", "duplicates": 2}


def test_every_public_name_is_what_it_says():
    """A module that had the name of a function in it would hide the function once imported."""
    import types

    import rote.records

    for name in rote.records.__all__:
        assert not isinstance(getattr(rote.records, name), types.ModuleType), name


def test_a_table_with_other_columns_is_refused():
    with pytest.raises(InputError, match="a record table has the columns"):
        RecordTable(pa.table({"id": ["a"]}))
