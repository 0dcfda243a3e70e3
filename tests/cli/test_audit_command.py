"""`rote audit lm` as users meet it: options, configuration, and every kind of bad input in one line, exit status 2."""

import csv
import json
import shutil

import pytest

from rote.cli.main import main


@pytest.fixture(scope="module")
def command(memorizer):
    model, targets, controls = memorizer
    return [
        "audit",
        "lm",
        str(model),
        str(targets),
        "--control",
        str(controls),
        "--scheme",
        "top_k=4",
        "--prefix",
        "16",
    ]


def fails(capsys, arguments, *words, status=2):
    """The command fails with this status and one line on stderr that holds these words; nothing on stdout."""
    assert main([str(argument) for argument in arguments]) == status
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert len(lines) == 1, said.err
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in said.err


def test_json_is_the_findings_and_nothing_else(command, tmp_path, capsys):
    assert main([*command, "-o", str(tmp_path / "run"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads((tmp_path / "run" / "findings.json").read_text())
    assert said.err == ""


def test_summary_gates_and_remaking_without_the_model(command, memorizer, tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        main([*command, "-o", str(run), "--fail-if", "extraction.rate{queries=100,p=0.5,duplicates=40}.low>0.01"]) == 1
    )
    said = capsys.readouterr()
    assert "gate failed" in said.err
    assert str(run / "report.html") in said.out.replace("\n", "")
    before = (run / "findings.json").read_bytes()
    assert main(["report", str(run), "-q", "--fail-if", "membership.auroc{attack=loss}.value>1"]) == 0
    assert (run / "findings.json").read_bytes() == before
    assert main(["compare", str(run), str(run)]) == 0
    assert main(["ls", str(tmp_path)]) == 0
    assert "audit-lm" in capsys.readouterr().out
    fails(capsys, ["report", run, "--fail-if", "extraction.rat>0"], "extraction.rat")


def test_configuration_file_flags_win_and_unknown_keys_are_refused(command, tmp_path, capsys):
    config = tmp_path / "audit.yaml"
    config.write_text("scheme: [top_k=7]\nseed: 5\nprefix: 9\n")
    assert main([*command[:6], "--config", str(config), "--seed", "6", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert "top_k=7" in shown
    assert "seed: 6" in shown
    assert "prefix: 9" in shown
    config.write_text("shceme: [top_k=7]\n")
    fails(capsys, [*command, "--config", config], "shceme", "did you mean scheme")


def copied(model, tmp_path):
    target = tmp_path / "broken"
    shutil.copytree(model, target)
    return target


def test_checkpoints_that_cannot_be_used(command, memorizer, tmp_path, capsys):
    _, targets, _ = memorizer

    def audit(path, *words):
        fails(capsys, ["audit", "lm", path, targets, "-o", tmp_path / "run"], *words)
        assert not (tmp_path / "run").exists()

    audit(tmp_path / "nowhere", "no such")
    half = copied(memorizer[0], tmp_path)
    weights = half / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    audit(half, "half-downloaded")
    (half / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    audit(half, "half-downloaded", "model-00001-of-00002")
    (half / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../evil.safetensors"}}))
    audit(half, "outside")
    (half / "model.safetensors.index.json").unlink()
    weights.rename(half / "pytorch_model.bin")
    audit(half, "pickle", "safetensors")
    (half / "config.json").write_text("{")
    audit(half, "config.json")
    (half / "config.json").unlink()
    audit(half, "config.json")


def test_a_tokenizer_of_another_model(memorizer, tmp_path, texts, capsys):
    from rote.models import train_bpe

    wrong = copied(memorizer[0], tmp_path)
    from rote.records import stdlib_documents

    train_bpe([document.text for document in list(stdlib_documents())[:80]], vocab_size=2000).save_pretrained(wrong)
    fails(capsys, ["audit", "lm", wrong, memorizer[1], "-o", tmp_path / "run"], "tokenizer does not belong")


LONG = " ".join(["word"] * 400)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("", (), ("no record",)),
        ('{"text": "fine text here"}\nnot json\n', (), ("line 2", "not valid JSON")),
        ('{"body": "fine text here"}\n', (), ("line 1", "text", "body")),
        ('{"id": "a", "text": "fine text here"}\n{"id": "a", "text": "other text here"}\n', (), ("used before",)),
        ('{"text": "\\ud800 lone surrogate"}\n', (), ("line 1", "surrogate")),
        (json.dumps({"text": LONG}), (), ("context window", "--long truncate")),
        (json.dumps({"text": "x" * 1_000_000}), (), ("context window",)),
        ('{"id": "short", "text": "Return the sum."}\n', ("--prefix", "50"), ("short", "prefix of 50")),
        ('{"text": "fine text here"}\n', ("--scheme", "topk=4"), ("did you mean top_k",)),
        ('{"text": "fine text here"}\n', ("--attack", "recal"), ("did you mean recall",)),
        ('{"text": "fine text here"}\n', ("--device", "cuda:9"), ("cuda",)),
        ('{"text": "fine text here"}\n', ("--dtype", "float8"), ("float8",)),
        ('{"token_ids": [1, 2, 99999]}\n', (), ("99999", "another tokenizer")),
    ],
)
def test_bad_records_and_settings(memorizer, tmp_path, capsys, content, options, words):
    file = tmp_path / "records.jsonl"
    file.write_text(content)
    fails(capsys, ["audit", "lm", memorizer[0], file, "-o", tmp_path / "run", *options], *words)
    assert not (tmp_path / "run").exists()


def test_strange_but_legal_text_is_scored_and_escaped(memorizer, tmp_path, capsys):
    rows = [
        {
            "id": "<script>alert(1)</script>",
            "text": "a NUL \x00 inside, a \u202eright-to-left\u202c mark, <b>tags</b> and 日本語.",
        },
        {"id": "one", "text": "x"},
        {"id": "plain", "text": "Return the sum of a list of numbers."},
    ]
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["audit", "lm", str(memorizer[0]), str(file), "-o", str(tmp_path / "run"), "--reveal", "-q"]) == 0
    found = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert found["records"]["skipped"] == [{"id": "one", "reason": "1 token(s): nothing is predicted"}]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script>alert(1)</script>" not in page
    assert "\u202e" not in page


def test_truncation_when_asked_for_is_counted(memorizer, tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps({"text": LONG}))
    assert (
        main(["audit", "lm", str(memorizer[0]), str(file), "-o", str(tmp_path / "run"), "--long", "truncate", "-q"])
        == 0
    )
    guards = json.loads((tmp_path / "run" / "findings.json").read_text())["guards"]
    assert "1 record was longer" in next(guard for guard in guards if guard["name"] == "truncated")["message"]


def test_the_directory_of_something_else_is_left_alone(command, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    fails(capsys, [*command, "-o", tmp_path], "not empty")
    fails(capsys, [*command, "-o", tmp_path / "thesis.txt"], "is a file")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_another_run_is_refused_unless_overwritten(command, tmp_path, capsys):
    run = ["-o", str(tmp_path / "run"), "-q"]
    assert main([*command, *run]) == 0
    fails(capsys, [*command, *run, "--suffix", "3"], "another run", "settings")
    assert main([*command, *run, "--suffix", "3", "--overwrite"]) == 0


def test_a_full_disk_says_so_and_loses_nothing(command, tmp_path, monkeypatch, capsys):
    import errno

    import pyarrow.parquet as pq

    real = pq.write_table

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    assert main([*command, "-o", str(tmp_path / "run"), "-q"]) == 2
    assert "disk is full" in capsys.readouterr().err
    monkeypatch.setattr(pq, "write_table", real)
    assert not list(tmp_path.rglob("*.tmp"))
    assert main([*command, "-o", str(tmp_path / "run"), "-q"]) == 0


def test_progress_names_what_a_stage_counts(monkeypatch):
    import io
    import time

    from rich.console import Console

    from rote.cli import console

    shown = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=shown, force_terminal=True, width=120))
    with console.progress_bars(quiet=False) as progress:
        for done in range(4):
            progress("scoring", 25 * done, 100)
            progress("shortest prompts [records]", done, 4)
            time.sleep(0.02)
    assert "records/s" in shown.getvalue()
    assert "tokens/s" in shown.getvalue()
    assert "[records]" not in shown.getvalue()


def test_named_columns_of_targets_and_controls_without_them(memorizer, tmp_path):
    texts = [json.loads(line)["text"] for line in memorizer[1].read_text().splitlines()][:3]
    with (tmp_path / "targets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("passage", "copies"), *((text, 8) for text in texts)])
    (tmp_path / "plain.txt").write_text("Return the sum of a list of numbers.\n\nThe start value of an empty list.\n")
    (tmp_path / "table.csv").write_text("passage\nOne more passage that nobody was trained on.\n")
    names = ["--text-column", "passage", "--column", "duplicates=copies"]
    unseen = ["--control", str(tmp_path / "plain.txt"), "--control", str(tmp_path / "table.csv")]
    command = ["audit", "lm", str(memorizer[0]), str(tmp_path / "targets.csv"), *names, *unseen]
    assert main([*command, "-o", str(tmp_path / "run"), "-q"]) == 0
    found = json.loads((tmp_path / "run" / "findings.json").read_text())["records"]
    assert (found["targets"], found["controls"]) == (3, 3)
