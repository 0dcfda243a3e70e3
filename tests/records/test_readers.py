"""Readers: every format gives the same table, and every bad file one line that says where and what to do."""

from __future__ import annotations

import csv
import gzip
import json
import time
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rote.errors import InputError
from rote.records import read_records

ROWS = [
    {
        "id": "p1",
        "text": "Ada lives in Paris.",
        "duplicates": 4,
        "member": True,
        "group": "people",
        "date": "2024-01-02",
    },
    {"id": "p2", "text": 'quotes " and, commas\nand a second line', "duplicates": 0, "member": False},
    {"id": "p3", "text": "\u05d0\u200f right to left, NUL \0 and \u2028 inside", "duplicates": 1},
]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path, rows=ROWS, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["id", "text", "duplicates", "member", "group", "date"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows=ROWS):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def write_arrow(path, rows=ROWS, stream=True):
    table = pa.Table.from_pylist(rows)
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def save_to_disk(folder, parts):
    """The layout that `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, rows in zip(names, parts, strict=True):
        write_arrow(folder / name, rows)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": n} for n in names], "_fingerprint": "x"})
    )
    (folder / "dataset_info.json").write_text("{}")
    return folder


def compress_zstd(path, target):
    with pa.CompressedOutputStream(pa.OSFile(str(target), "wb"), "zstd") as out:
        out.write(path.read_bytes())
    return target


def error_of(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        read_records(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_all_formats_give_the_same_table(tmp_path):
    expected = read_records(write_jsonl(tmp_path / "a.jsonl"))
    assert [r for r in expected.column("text")] == [r["text"] for r in ROWS]
    assert expected.column("member") == [True, False, None]
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "lines.json").write_text((tmp_path / "a.jsonl").read_text())
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    files = [
        tmp_path / "list.json",
        tmp_path / "lines.json",
        tmp_path / "a.jsonl.gz",
        tmp_path / "bom.jsonl",
        compress_zstd(tmp_path / "a.jsonl", tmp_path / "a.jsonl.zst"),
        write_csv(tmp_path / "a.csv"),
        write_csv(tmp_path / "a.tsv", delimiter="\t"),
        write_parquet(tmp_path / "a.parquet"),
        compress_zstd(tmp_path / "a.parquet", tmp_path / "b.parquet.zst"),
        write_arrow(tmp_path / "a.arrow"),
        write_arrow(tmp_path / "b.arrow", stream=False),
        save_to_disk(tmp_path / "saved", [ROWS[:1], ROWS[1:]]),
    ]
    for file in files:
        assert read_records(file).fingerprint == expected.fingerprint, file.name


def test_ids_are_stem_and_line(tmp_path):
    path = tmp_path / "people.v1.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n\n{"text": "b", "source": "x", "mood": 1}\n'))
    table = read_records(path)
    assert table.column("id") == ["people.v1:1", "people.v1:3"]
    assert table.column("source") == ["people.v1.jsonl.gz:1", "people.v1.jsonl.gz:3"]
    assert table.extra_fields == ("mood",)
    no_ids = [{"text": "a"}, {"text": "b"}]
    one = read_records(write_jsonl(tmp_path / "same.jsonl", no_ids))
    assert read_records(write_parquet(tmp_path / "same.parquet", no_ids)).fingerprint == one.fingerprint


def test_a_folder_is_read_in_order_of_names_and_ids_stay_apart(tmp_path):
    for name in ("b/x.jsonl", "a/x.jsonl", "a/.hidden/y.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / name, [{"text": name}])
    write_csv(tmp_path / "a" / "x.csv", [{"text": "from csv"}])
    (tmp_path / "a" / "notes.docx").write_bytes(b"PK")
    table = read_records(tmp_path)
    assert table.column("id") == ["a/x.csv:2", "a/x.jsonl:1", "b/x.jsonl:1"]
    assert table.column("text") == ["from csv", "a/x.jsonl", "b/x.jsonl"]
    assert read_records([tmp_path / "b", tmp_path / "a" / "x.csv"]).column("text") == ["b/x.jsonl", "from csv"]
    assert len(read_records(tmp_path, limit=2)) == 2


def test_dataset_dict_saved_on_disk(tmp_path):
    save_to_disk(tmp_path / "d" / "train", [[{"text": "a"}, {"text": "b"}]])
    save_to_disk(tmp_path / "d" / "test", [[{"text": "c"}]])
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    table = read_records(tmp_path / "d")
    assert table.column("text") == ["a", "b", "c"]
    assert table.column("id")[2] == "test/data-00000-of-00001:1"
    (tmp_path / "d" / "test" / "data-00000-of-00001.arrow").unlink()
    assert "lacks data-00000-of-00001.arrow" in error_of(tmp_path / "d")


def test_text_files_by_paragraph_and_whole(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes("One line,\r\nsame passage.\n\n \n  indented \u2028 stays\n\nlast".encode())
    table = read_records(path)
    assert table.column("text") == ["One line,\r\nsame passage.", "  indented \u2028 stays", "last"]
    assert table.column("id") == ["book:1", "book:5", "book:7"]
    whole = read_records(path, txt_unit="file")
    assert whole.column("text") == [path.read_bytes().decode()]


def test_column_mapping_and_aliases(tmp_path):
    rows = [{"body": "a b", "uid": 7, "seen": 1}]
    path = write_jsonl(tmp_path / "m.jsonl", rows)
    table = read_records(path, columns={"text": "body", "id": "uid", "member": "seen"})
    assert (table.column("id"), table.column("text"), table.column("member")) == (["7"], ["a b"], [True])
    aliases = [
        {"prompt": "ab", "target": "cd", "label": 0},
        {"input_ids": [3, 4]},
        {"text": "t", "input_ids": [1]},
        {"text": "t", "prompt": "alone is no record"},
    ]
    table = read_records(write_jsonl(tmp_path / "alias.jsonl", aliases))
    assert table.column("text") == ["abcd", None, "t", "t"]
    assert table.column("prefix_chars") == [2, None, None, None]
    assert table.column("token_ids") == [None, [3, 4], None, None]
    assert table.column("member") == [False, None, None, None]
    assert "txet is not a field of a record. Did you mean text?" in error_of(path, columns={"txet": "body"})
    assert "m.jsonl line 1: no field Body; it has body, uid, seen. Did you mean body?" in error_of(
        path, columns={"text": "Body"}
    )


def test_missing_and_empty_files(tmp_path):
    write_jsonl(tmp_path / "people.jsonl")
    assert "poeple.jsonl: no such file or folder. Did you mean people.jsonl?" in error_of(tmp_path / "poeple.jsonl")
    for name in ("empty.jsonl", "empty.json", "empty.csv", "empty.txt"):
        (tmp_path / name).touch()
        assert error_of(tmp_path / name) == f"{name}: no record in it. Give a file with at least one row."
    (tmp_path / "header.csv").write_text("id,text\n")
    assert "header.csv: no record in it" in error_of(tmp_path / "header.csv")
    (tmp_path / "list.json").write_text(" [ ] ")
    assert "list.json: no record in it" in error_of(tmp_path / "list.json")
    (tmp_path / "folder").mkdir()
    assert "no file in this folder that can be read" in error_of(tmp_path / "folder")
    (tmp_path / "odd.xyz").write_text("x")
    assert "odd.xyz: cannot tell the format from the name" in error_of(tmp_path / "odd.xyz")
    assert read_records(tmp_path / "odd.xyz", format="txt").column("text") == ["x"]
    assert "format 'jsonlines' is not known; did you mean jsonl?" in error_of(tmp_path / "odd.xyz", format="jsonlines")


def test_bad_json_names_line_column_and_the_other_lines(tmp_path):
    path = tmp_path / "people.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b" "id": 1}\n[1]\n{"text": "c"}\n"str"\n')
    message = error_of(path)
    assert message == (
        "people.jsonl line 2: not valid JSON (Expecting ',' delimiter at column 14). Fix or remove the line."
        " And 2 more bad lines (3, 5)."
    )
    path.write_text("[1]\n")
    assert "people.jsonl line 1: a list, not a JSON object" in error_of(path)
    path.write_text("nope\n" * 50)
    assert "And 4 more bad lines (2, 3, 4, 5). Reading stopped there." in error_of(path)
    path.write_text("[" * 100_000 + "\n")
    assert "people.jsonl line 1: not valid JSON" in error_of(path)
    path.write_text('{"text": "a", "n": ' + "9" * 5000 + "}\n")
    assert "people.jsonl line 1: not valid JSON (a number with too many digits)" in error_of(path)


def test_a_bad_json_list_names_the_line(tmp_path):
    path = tmp_path / "people.json"
    path.write_text('[\n {"text": "a"},\n {"text": 5},\n {"text": "c"\n]')
    message = error_of(path)
    assert message.startswith("people.json line 3: text is a number")
    assert "And 1 more bad line (5)." in message
    path.write_text('[{"text": "a"}\n{"text": "b"}]')
    assert "people.json line 2: not valid JSON (Expecting ',' delimiter at column 1)" in error_of(path)
    path.write_bytes(b'[{"text":\n"\xff"}]')
    assert "people.json line 2: not valid UTF-8" in error_of(path)


def test_bad_encoding_names_the_line(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    assert "latin.jsonl line 2: not valid UTF-8 (byte 14 of the line). Save the file as UTF-8." in error_of(path)
    for name, body in (("latin.csv", b"text\nok\ncaf\xe9\n"), ("latin.txt", b"ok\n\ncaf\xe9\n")):
        (tmp_path / name).write_bytes(body)
        assert f"{name} line 3: not valid UTF-8" in error_of(tmp_path / name)
    path.write_text('{"text": "a \\ud800 b"}\n')
    assert "latin.jsonl line 1: text has a lone surrogate (U+D800) at character 3" in error_of(path)


def test_truncated_and_damaged_files(tmp_path):
    body = "".join(json.dumps({"text": f"row {i} {hash(str(i))}"}) + "\n" for i in range(5000)).encode()
    whole = gzip.compress(body)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    message = error_of(tmp_path / "cut.jsonl.gz")
    assert message.startswith("cut.jsonl.gz: the compressed file is cut off after line ")
    assert "get it again" in message
    (tmp_path / "a.jsonl").write_bytes(body)
    zst = compress_zstd(tmp_path / "a.jsonl", tmp_path / "cut.jsonl.zst")
    zst.write_bytes(zst.read_bytes()[:-20])
    assert "cut.jsonl.zst: the compressed file is cut off" in error_of(zst)
    (tmp_path / "bad.jsonl.gz").write_bytes(whole[:100] + bytes(50) + whole[150:])
    assert "bad.jsonl.gz: " in error_of(tmp_path / "bad.jsonl.gz")
    (tmp_path / "not.parquet").write_bytes(b"PAR1 but not really")
    assert "not.parquet: unreadable (" in error_of(tmp_path / "not.parquet")
    (tmp_path / "not.arrow").write_bytes(b"no arrow here")
    assert "not.arrow: unreadable (" in error_of(tmp_path / "not.arrow")


def test_csv_traps(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("name,body\nAda,x\n")
    message = error_of(path)
    assert message.startswith("people.csv line 1: no column text (nor prefix and suffix, nor token_ids).")
    assert (
        "Columns: name, body. If the file has no header line, add one. Name the column with --text-column." in message
    )
    path.write_text(
        "Ada Smith,ada@x.org\nBob Ray,bob@x.org\n"
    )  # no header: its cells are contents, and stay out of the error
    message = error_of(path)
    assert "It has 2 columns. If the file has no header line, add one." in message
    assert "Ada" not in message
    path.write_text('id,text\n1,a\n2,"b\nc"\n3,d,e\n')
    assert "people.csv line 5: 3 values, but the header names 2 columns" in error_of(path)
    path.write_text('id,text\n1,"a\n')
    assert "people.csv line 2: not valid csv" in error_of(path)
    path.write_text("id,text,duplicates\n1,a,\n2,b,3\n3,,1\n")
    assert "people.csv line 4: text is empty" in error_of(path)
    path.write_text('id,token_ids\n1,"[4, 5]"\n')
    assert read_records(path).column("token_ids") == [[4, 5]]
    path.write_text("text,body\na,b\n")
    assert "people.csv line 1: no column Body (asked for as text). Did you mean body?" in error_of(
        path, columns={"text": "Body"}
    )


def test_parquet_without_a_text_column_and_with_other_types(tmp_path):
    assert "a.parquet: no column text" in error_of(write_parquet(tmp_path / "a.parquet", [{"body": "x"}]))
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": [b"bytes"], "extra": [1]}), path)
    assert "b.parquet row 1: text is bytes, not a string" in error_of(path)
    when = pa.array([1_700_000_000], pa.timestamp("s"))
    pq.write_table(pa.table({"text": ["a"], "date": when, "duplicates": [4.0], "extra": [1]}), path)
    table = read_records(path)
    assert (table.column("date"), table.column("duplicates")) == (["2023-11-14T22:13:20"], [4])
    assert table.extra_fields == ("extra",)


def test_duplicate_ids_name_both_lines(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"id": "x", "text": "a"}, {"text": "b"}, {"id": "x", "text": "c"}])
    assert 'd.jsonl:3: id "x" was used before, at d.jsonl:1' in error_of(path)


def test_a_megabyte_on_one_line_is_read_in_linear_time(tmp_path):
    def seconds(characters: int, suffix: str) -> float:
        text = "one line \u00e9 " * (characters // 11)
        path = tmp_path / f"long{suffix}"
        if suffix == ".jsonl":
            write_jsonl(path, [{"text": text}])
        elif suffix == ".csv":
            write_csv(path, [{"text": text}])
        else:
            path.write_text(text, encoding="utf-8")
        start = time.perf_counter()
        table = read_records(path)
        assert table.column("text") == [text]
        return time.perf_counter() - start

    for suffix in (".jsonl", ".csv", ".txt"):
        seconds(1 << 16, suffix)
        assert seconds(1 << 20, suffix) < 1.0
        assert csv.field_size_limit() == 131_072  # the process-wide limit is as it was


def test_reading_costs_little_beyond_the_arrow_buffers(tmp_path):
    path = tmp_path / "many.jsonl"
    with open(path, "w") as out:
        for i in range(40_000):
            out.write(f'{{"text": "record number {i} {"x" * 80}", "duplicates": {i % 5}}}\n')
    tracemalloc.start()
    table = read_records(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 40_000
    assert table.table.nbytes > 4e6
    assert peak < 8e6  # Python's own objects: one chunk of rows, not 40,000 dictionaries (20 MB)
    assert table.column("duplicates")[7] == 2


def test_a_text_file_has_no_fields_to_be_named(tmp_path):
    (tmp_path / "a.txt").write_text("One passage.\n\nAnother passage.\n")
    (tmp_path / "b.csv").write_text("body\nA third passage.\n")
    table = read_records([tmp_path / "a.txt", tmp_path / "b.csv"], columns={"text": "body"})
    assert table.column("text") == ["One passage.", "Another passage.", "A third passage."]
