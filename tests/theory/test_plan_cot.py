"""`rote plan cot` from the command line: what it prints, writes and refuses."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from rote.cli.plan_cot import cot
from rote.errors import InputError

app = typer.Typer()
app.command("cot")(cot)
app.command("other")(lambda: None)  # as in the program: a group of commands
SECRET = "xyzzy"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, rows=None, text=None):
        if rows is not None:
            text = "".join(json.dumps({"input": x, "answer": y}) + "\n" for x, y in rows)
        if text is not None:
            (tmp_path / "qa.jsonl").write_text(text, encoding="utf-8")
        done = CliRunner().invoke(app, ["cot", *map(str, arguments)])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


NEITHER = [("a", "a"), ("aa", "b"), ("ab", "a"), ("aba", "b"), ("abb", "b")]


def test_both_obstructions_with_their_lines(run):
    text = run("--data", "qa.jsonl", rows=NEITHER)
    assert "neither" in text
    assert "line 1 and line 2 repeat one symbol 1 and 2 times" in text
    assert "from line 3 every continuation lands on another answer (line 4, line 5)" in text
    assert "[Theorem 4.1]" in text
    assert "[derived]" in text


def test_json_is_one_document_and_masks_contents(run):
    found = json.loads(
        run("--data", "qa.jsonl", "--json", "--tokenizer", "word", rows=[(SECRET, "ok"), ("ok no", "no")])
    )
    assert found["verdict"] == "both"
    assert SECRET not in json.dumps(found)
    assert "derived" in found["cot"]["standing"]
    assert [item["record"]["line"] for item in found["cot"]["plan"]] == [1, 2]
    shown = json.loads(run("--data", "qa.jsonl", "--json", "--tokenizer", "word", "--reveal"))
    assert shown["cot"]["plan"][0]["record"]["symbols"] == [SECRET]
    assert shown["cot"]["plan"][0]["cot"][-1] == "ok"


@pytest.mark.parametrize("positions", ["bos", "absolute"])
def test_not_applicable_where_the_obstruction_vanishes(run, positions):
    text = run("--data", "qa.jsonl", "--positions", positions, rows=NEITHER)
    assert "not applicable" in text
    assert "no-CoT only" in text


def test_infeasible_within_a_limit_is_told_apart_from_infeasible(run):
    text = run("--data", "qa.jsonl", "--max-cot", 1, rows=[("a", "a"), ("aa", "b")])
    assert "memorizable with chains of up to 2 symbols" in text
    assert "infeasible within max_cot = 1" in text


def test_a_wider_alphabet_changes_the_verdict(run):
    assert "no-CoT only" in run("--data", "qa.jsonl", rows=[("ab", "a"), ("aba", "b"), ("abb", "b")])
    assert ": both" in run("--data", "qa.jsonl", "--alphabet", "abc")


def test_floor_and_census_need_no_data(run):
    text = run("--records", 1_000_000, "--labels", 50257, "--digits", 2, "--census", 3)
    assert "at least 1,093,035 parameters" in text
    assert "L = 3 (14 words): both 36, no-CoT only 988, CoT only 540, neither 14820" in text
    found = json.loads(run("--census", 8, "--json"))
    row = found["census"][-1]
    total = sum(int(row[name]) for name in ("both", "no_cot_only", "cot_only", "neither"))
    assert total == 2 ** row["words"]


def test_out_directory_has_the_json_and_an_offline_page_without_contents(run, tmp_path):
    rows = [(f"{SECRET} a", "a"), (f"{SECRET} a {SECRET}", "b"), (f"{SECRET} a a", "b"), (f"{SECRET} a b", "b")]
    run("--data", "qa.jsonl", "--tokenizer", "word", "-o", "out", "--census", 2, "-q", rows=rows)
    found = json.loads((tmp_path / "out" / "cot.json").read_text())
    page = (tmp_path / "out" / "cot.html").read_text()
    assert found["cot"]["memorizable"] is False
    assert SECRET not in page
    assert "Plotly.newPlot" in page
    assert "<script src" not in page
    run("--data", "qa.jsonl", "--tokenizer", "word", "-o", "out", "--reveal", "-q")
    assert SECRET in (tmp_path / "out" / "cot.html").read_text()


def test_hostile_contents_are_escaped_on_the_page(run, tmp_path):
    evil = "<script>alert(1)</script>"
    rows = [(f"{evil} a", "a"), (f"{evil} a {evil}", "b"), (f"{evil} a a", "b"), (f"{evil} a b", "b")]
    run("--data", "qa.jsonl", "--tokenizer", "word", "-o", "out", "--reveal", "-q", rows=rows)
    page = (tmp_path / "out" / "cot.html").read_text()
    assert evil not in page


def test_build_writes_verified_transformers(run, tmp_path):
    found = json.loads(
        run("--data", "qa.jsonl", "--build", "made", "--digits", 2, "--json", rows=[("ab", "a"), ("ba", "b")])
    )
    assert set(found["witnesses"]) == {"no-cot", "cot"}
    from rote.theory.cot import load_cot_witness

    for name, item in found["witnesses"].items():
        assert item["proved"]
        assert load_cot_witness(tmp_path / "made" / name)[1].holds


def test_build_of_many_records_is_the_transformer_of_linear_size(run):
    rows = [
        (f"{a}{b}{c}", "xyz"[(ord(a) * 7 + ord(b) * 3 + ord(c)) % 3]) for a in "abcdef" for b in "abcdef" for c in "xyz"
    ]
    found = json.loads(run("--data", "qa.jsonl", "--build", "made", "--json", rows=rows))
    assert found["witnesses"]["no-cot"]["words"] == len(rows) == 108
    assert all(item["proved"] and item["parameters"] < 100_000 for item in found["witnesses"].values())


def test_a_real_tokenizer_brings_its_vocabulary_and_must_be_told_the_positions(run, tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tok")
    with pytest.raises(InputError, match="say what the model adds"):
        run("--data", "qa.jsonl", "--tokenizer", "tok", rows=[("The quick fox", "a")])
    found = json.loads(run("--data", "qa.jsonl", "--tokenizer", "tok", "--positions", "absolute", "--json"))
    assert found["dataset"]["symbols"] == len(tokenizer) - 1  # the end of text is gamma_0
    assert found["verdict"] == "both"
    with pytest.raises(InputError, match=r"line 1: the answer has \d+ symbols"):
        run("--data", "qa.jsonl", "--tokenizer", "tok", "--positions", "none", rows=[("The fox", f"{SECRET} {SECRET}")])


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", [], "no record in it"),
        ("{]\n", [], "line 1: not valid JSON"),
        ("[1]\n", [], "line 1: not an object"),
        ('{"input": "a"}\n', [], "line 1: field answer is missing"),
        ('{"input": "a", "answer": 3}\n', [], "line 1: field answer is not text"),
        ('{"input": "a", "answer": "b"}\n\n{"input": "a", "answer": "a"}\n', [], "line 3: the same input as line 1"),
        ('{"input": "a", "answer": "bb"}\n', [], "line 1: the answer has 2 symbols"),
        ('{"input": "", "answer": "b"}\n', [], "line 1: the input is empty"),
        ('{"input": "a", "answer": "c"}\n', ["--alphabet", "ab"], "line 1: the answer is not in the alphabet"),
        ('{"input": "a", "answer": "b"}\n', ["--positions", "rope"], "--positions"),
        ('{"input": "a", "answer": "b"}\n', ["--max-cot", "0"], "max_cot is 0"),
        ('{"input": "a", "answer": "b"}\n', ["--tokenizer", "nowhere"], "tokenizer.json"),
        ('{"input": "a", "answer": "b"}\n', ["--build", "x", "--positions", "bos"], "without positions"),
    ],
)
def test_bad_input_is_one_line_with_file_and_place(run, text, arguments, message):
    with pytest.raises(InputError) as caught:
        run("--data", "qa.jsonl", *arguments, text=text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--records", "5"], "go together"),
        (["--build", "x", "--census", "2"], "--data"),
        (["--data", "missing.jsonl"], "cannot be read"),
        (["--census", "0"], "--census is 0"),
        (["--census", "30"], "10,000"),
    ],
)
def test_wrong_use(run, arguments, message):
    with pytest.raises(InputError, match=message):
        run(*arguments)


def test_a_damaged_tokenizer_and_errors_without_contents(run, tmp_path):
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a readable tokenizer"):
        run("--data", "qa.jsonl", "--tokenizer", "tok", "--positions", "none", rows=[("a", "b")])
    with pytest.raises(InputError) as caught:
        run("--data", "qa.jsonl", rows=[("a", SECRET)])
    assert SECRET not in str(caught.value)
