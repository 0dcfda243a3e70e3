"""`rote plan attention`: facts files, planning, building and reading back, and every way to be told no."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rote.cli.plan_attention import attention
from rote.errors import InputError
from rote.theory.attention import AttentionMemory, DistributionMemory, facts_from_rows, facts_from_text, read_facts

SIZES = ["--facts", "210", "--vocab", "50", "--context", "2", "--d", "10", "--d-head", "10"]


def run(*arguments) -> str:
    """The command as the owner of `rote plan` mounts it; errors are raised."""
    app = typer.Typer()
    app.command()(attention)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def write_facts(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def words(tmp_path):
    """30 facts over words: two words and the one that follows."""
    rng = np.random.default_rng(0)
    names = ["ash", "birch", "cedar", "elm", "fir", "oak"]
    pairs = list(product(names, repeat=2))[:30]
    rows = [{"context": list(pair), "next": names[rng.integers(6)]} for pair in pairs]
    return write_facts(tmp_path / "facts.jsonl", rows)


# --- planning --------------------------------------------------------------------------------------------------------


def test_plan_from_numbers_alone():
    found = json.loads(run(*SIZES, "--json"))
    assert found["plan"]["heads_needed"] == 20
    assert found["plan"]["prior_bound_heads"] == 24
    assert found["plan"]["parameters"] == 9020
    assert "rate only" in found["plan"]["rates"][0]["label"]
    text = run(*SIZES)
    assert "20 heads (they hold 210)" in text
    assert "Mahdavi et al. 2024: 24 heads" in text
    assert run(*SIZES, "-q") == ""


def test_page_and_json_are_written_and_offline(tmp_path):
    run(*SIZES, "-o", tmp_path / "out", "-q")
    document = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert next(row for row in document["scaling"] if row["heads"] == 20)["capacity"] == 210
    page = (tmp_path / "out" / "attention.html").read_text()
    assert "Plotly.newPlot" in page
    assert 'src="http' not in page


def test_plan_where_the_earlier_bound_does_not_apply():
    assert "does not apply" in run("--facts", 32, "--vocab", 10, "--context", 8, "--d", 2)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--facts", "10"], "--vocab, --context missing"),
    ([], "--facts, --vocab, --context missing"),
    ([*SIZES, "--build", "x"], "--build needs --data"),
    ([*SIZES, "--heads", "3"], "--heads is for --build"),
    ([*SIZES, "--data", "x.jsonl", "--build", "y"], "not both"),
    (["--data", "no.jsonl", "--build", "y"], "no.jsonl: cannot be read"),
    (["--facts", "9", "--vocab", "10", "--context", "1", "--d", "4"], "heads add nothing: at most d = 4 facts, not 9"),
    (["--facts", "9", "--vocab", "10", "--context", "2", "--d", "4", "--d-head", "5"], "cannot exceed d = 4"),
    (["--facts", "101", "--vocab", "10", "--context", "2"], "make only 100 contexts"),
])  # fmt: skip
def test_wrong_use_is_one_clear_error(arguments, message):
    with pytest.raises(InputError, match=message):
        run(*arguments)


def test_importing_the_command_loads_nothing_heavy():
    program = (
        "import sys, rote.cli.plan_attention; print([m for m in ('torch', 'numpy', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


# --- building --------------------------------------------------------------------------------------------------------


def test_facts_become_weights_that_recall_them(words, tmp_path):
    found = json.loads(run("--data", words, "--d", 4, "--d-head", 2, "--build", tmp_path / "built", "--json"))
    assert found["data"] == {
        "rows": 30, "contexts": 30, "repeated_rows": 0, "conflicting_contexts": 0, "kind": "association",
    }  # fmt: skip
    assert found["plan"]["heads_needed"] == 13
    assert found["build"]["recalled"] == 1.0
    assert found["build"]["rank"] == 30
    assert found["build"]["min_margin"] == pytest.approx(found["build"]["ideal_margin"], abs=1e-6)
    names = json.loads((tmp_path / "built" / "vocabulary.json").read_text())
    memory = AttentionMemory.load(tmp_path / "built")
    for line in words.read_text().splitlines():
        row = json.loads(line)
        assert names[memory.recall(np.array([[names.index(word) for word in row["context"]]]))[0]] == row["next"]


def test_the_same_seed_builds_the_same_bytes(words, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        run("--data", words, "--d", 4, "--build", tmp_path / name, "--seed", seed, "-q")
    a, b, c = ((tmp_path / name / "memory.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_too_few_heads_keep_the_likeliest_and_say_so(words, tmp_path):
    text = run("--data", words, "--d", 4, "--d-head", 4, "--heads", 3, "--build", tmp_path / "built")
    assert "built: 16 of 30 contexts exactly" in text
    assert "14 contexts left out" in text
    assert "Theorem 1 bounds it by" in text


def test_conflicting_facts_are_a_distribution(tmp_path):
    rows = [{"context": [0, 1], "next": 2}, {"context": [0, 1], "next": 3}, {"context": [1, 0], "next": 1}]
    rows += [{"context": [2, 3], "next": 0}, {"context": [2, 3], "next": 0}, {"context": [3, 3], "next": 2}]
    path = write_facts(tmp_path / "facts.jsonl", rows)
    text = run("--data", path, "--d", 2, "--d-head", 2, "--build", tmp_path / "built")
    assert "1 of them have several next tokens: this is a distribution" in text
    assert "exact storage needs d >= 3" in text
    assert "best sequence encoder found" in text
    memory = DistributionMemory.load(tmp_path / "built")
    assert memory.kl == pytest.approx(memory.floor, abs=1e-6)
    assert set(memory.distribution(np.array([[0, 1]]))[0].argsort()[-2:]) == {2, 3}


def test_spread_code_widens_the_margin(words, tmp_path):
    wide = json.loads(run("--data", words, "--d", 5, "--code", "spread", "--build", tmp_path / "built", "--json"))
    assert wide["build"]["min_margin"] == pytest.approx(1.2)  # the simplex of six tokens
    assert wide["build"]["float32_min_margin"] == pytest.approx(1.2, abs=1e-3)


def test_infeasible_sizes_leave_nothing_behind(tmp_path):
    rows = [
        {"context": [(n >> k) & 1 for k in range(8)], "next": int(x)}
        for n, x in enumerate(np.random.default_rng(0).integers(0, 2, 120))
    ]
    path = write_facts(tmp_path / "facts.jsonl", rows)
    with pytest.raises(InputError, match=r"cannot be solved numerically: rank .* condition number"):
        run("--data", path, "--d", 1, "--build", tmp_path / "built", "-q")
    assert not (tmp_path / "built").exists()


# --- facts files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "message"), [
    ("{", "line 2: is not JSON"),
    ("[1]", 'line 2: needs the fields "context"'),
    ('{"context": [0, 1]}', 'line 2: needs the fields "context"'),
    ('{"context": 3, "next": 1}', "line 2 field context: must be a list"),
    ('{"context": [], "next": 1}', "line 2 field context: must be a list"),
    ('{"context": [0], "next": 1}', "line 2 field context: has 1 tokens, others have 2"),
    ('{"context": [0, 1], "next": 9}', "line 2 field next: the token lies outside the vocabulary of 9"),
    ('{"context": [0, -1], "next": 1}', "line 2 field context, token 2: the token lies outside"),
    ('{"context": [0, "a"], "next": 1}', "line 2 field context, token 2: strings and ids are mixed"),
    ('{"context": [0, true], "next": 1}', "line 2 field context, token 2: a token is a string or a whole number"),
    ('{"context": [0, 1.5], "next": 1}', "a token is a string or a whole number"),
])  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"context": [0, 1], "next": 2}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_facts(path, vocab=9)


def test_errors_do_not_show_tokens(tmp_path):
    path = write_facts(
        tmp_path / "facts.jsonl", [{"context": ["secret"], "next": "word"}, {"context": [], "next": "x"}]
    )
    with pytest.raises(InputError) as failure:
        read_facts(path)
    assert "secret" not in str(failure.value)


def test_empty_missing_and_undecodable_files(tmp_path):
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n\n")
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="holds no facts"):
        read_facts(empty)
    with pytest.raises(InputError, match="is not UTF-8"):
        read_facts(binary)
    with pytest.raises(InputError, match="cannot be read"):
        read_facts(tmp_path / "none.jsonl")


def test_counts_prior_and_conditional_distribution():
    rows = [([0, 1], 2), ([0, 1], 2), ([0, 1], 0), ([1, 1], 1)]
    facts = facts_from_rows([(f"row {i}", {"context": c, "next": n}) for i, (c, n) in enumerate(rows)], vocab=4)
    assert facts.contexts.tolist() == [[0, 1], [1, 1]]
    assert facts.vocab == 4
    assert facts.conflicting == 1
    assert facts.is_distribution
    assert facts.repeated == 2
    assert facts.labels.tolist() == [2, 1]
    np.testing.assert_allclose(facts.prior, [0.75, 0.25])
    np.testing.assert_allclose(facts.pi, [[1 / 3, 0, 2 / 3, 0], [0, 1, 0, 0]])


def test_strings_are_numbered_and_the_vocabulary_may_be_larger():
    facts = facts_from_text(["the", "cat", "sat", "on", "the", "cat"], context=2)
    assert facts.tokens == ("cat", "on", "sat", "the")
    assert [facts.tokens[i] for i in facts.labels] == ["sat", "on", "the", "cat"]
    rows = [("row", {"context": ["a"], "next": "b"})]
    assert facts_from_rows(rows, vocab=9).vocab == 9
    with pytest.raises(InputError, match="2 different tokens lie outside a vocabulary of 1"):
        facts_from_rows(rows, vocab=1)
    with pytest.raises(InputError, match="2 were asked for"):
        facts_from_rows(rows, context=2)
    with pytest.raises(InputError, match="one token leaves nothing"):
        facts_from_rows([("row", {"context": ["a"], "next": "a"})])
