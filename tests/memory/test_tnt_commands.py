"""`rote memory tnt ...` end to end: two stages, eval, sweep, surprise; one clear line for bad input."""

from __future__ import annotations

import json

import pytest

from rote.cli.main import main

SMALL = ("--width", "16", "--layers", "1", "--context", "48", "--batch-size", "4", "--epochs", "0.5")
TNT = ("--global-chunk", "16", "--local-chunks", "4,8", "--shard", "16")


@pytest.fixture(scope="module")
def desk(tmp_path_factory, texts):
    """Texts, and the checkpoints of both stages."""
    root = tmp_path_factory.mktemp("tnt")
    (root / "text.txt").write_text("\n\n".join(texts[:8]))
    base = ["memory", "tnt", "train", "--text", str(root / "text.txt"), *SMALL, "-q"]
    assert main([*base, *TNT, "--out", str(root / "one")]) == 0
    assert main([*base, "--stage", "2", "--from", str(root / "one"), "--local-chunks", "1,2", "--trainable", "local",
                 "--out", str(root / "two")]) == 0  # fmt: skip
    return root


def run(capsys, *words):
    status = main(["memory", "tnt", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_stages_and_what_they_say(desk, capsys):
    one, two = (json.loads((desk / name / "config.json").read_text()) for name in ("one", "two"))
    assert one["trained_chunks"] == {"global_chunk": 16, "local_chunks": [4, 8], "shard": 16}
    assert two["trained_chunks"]["local_chunks"] == [1, 2]
    assert two["local_rates"] == one["local_rates"]
    assert not list(desk.glob(".*unfinished*"))
    status, out, _ = run(capsys, "eval", "--model", desk / "two", "--text", desk / "text.txt", "--contexts", "32,256",
                         "--json")  # fmt: skip
    assert status == 0
    assert [row["context"] for row in json.loads(out)["rows"]] == [32, 256]
    assert run(capsys, "eval", "--model", desk / "two", "--text", desk / "text.txt", "--contexts", "32")[0] == 0


def test_sweep_writes_a_table_and_a_picture(desk, capsys, tmp_path):
    words = ("sweep", "--model", desk / "one", "--text", desk / "text.txt", "--chunks", "1,4", "--context", "48",
             "--rows", "2", "--out", tmp_path / "sweep")  # fmt: skip
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "perplexity" in out
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"]
    assert [row["chunk"] for row in rows] == [1, 4]
    assert "plotly" in (tmp_path / "sweep" / "sweep.html").read_text().lower()


def test_surprise_masks_the_text(desk, capsys):
    words = ("surprise", "--model", desk / "one", "--text", desk / "text.txt", "--top", "3", "--json")
    status, out, _ = run(capsys, *words)
    found = json.loads(out)
    assert status == 0
    assert found["memories"] == ["global", "local0-4", "local1-8"]
    assert [row["surprise"] for row in found["rows"]] == sorted((r["surprise"] for r in found["rows"]), reverse=True)
    assert all("token" not in row for row in found["rows"])
    assert all("token" in row for row in json.loads(run(capsys, *words, "--reveal")[1])["rows"])
    assert run(capsys, *words[:-1])[0] == 0


def test_a_configuration_file_has_the_flags_names(desk, capsys, tmp_path):
    settings = {"architecture": "titans", "chunk": 4, "width": 16, "layers": 1, "context": 48, "batch-size": 4}
    (tmp_path / "tnt.yaml").write_text("\n".join(f"{key}: {value}" for key, value in settings.items()))
    words = ("train", "--config", tmp_path / "tnt.yaml", "--text", desk / "text.txt", "--epochs", "0.2", "--json")
    status, out, _ = run(capsys, *words, "--out", tmp_path / "model")
    assert status == 0
    assert json.loads(out)["chunks"] == {"chunk": 4}


def test_bad_input_is_one_line(desk, capsys, tmp_path, checkpoints):
    text = ("--text", desk / "text.txt")
    cases = [
        (("train", "--out", desk / "one", *text), "there already"),
        (("train", "--stage", "2", "--out", tmp_path / "x", *text), "--from"),
        (("train", "--stage", "3", "--out", tmp_path / "x", *text), "must be 1 or 2"),
        (("train", "--architecture", "rnn", "--out", tmp_path / "x", *text), "architecture"),
        (("train", "--local-chunks", "a", "--out", tmp_path / "x", *text), "whole numbers"),
        (("train", "--local-chunks", "64", "--shard", "16", "--out", tmp_path / "x", *text), "shorter than the chunk"),
        (("train", "--stage", "2", "--from", desk / "one", "--local-chunks", "1", "--context", "48", "--out",
          tmp_path / "x", *text), "2 local memories"),
        (("sweep", "--model", desk / "one", "--chunks", "99", "--context", "48", *text), "not possible"),
        (("eval", "--model", checkpoints("gpt2"), *text), "not a test-time memory"),
        (("eval", "--model", tmp_path / "nothing", *text), "no such model"),
        (("surprise", "--model", desk / "one", "--text", tmp_path / "absent.txt"), "absent"),
        (("surprise", "--model", desk / "one", "--memory", "7", *text), "no memory 7"),
    ]  # fmt: skip
    for words, told in cases:
        status, _, err = run(capsys, *words)
        assert status == 2, words
        assert told in err, (words, err)
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in (desk / "one").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    config = json.loads((damaged / "config.json").read_text()) | {"local_chunks": [1, 1]}
    (damaged / "config.json").write_text(json.dumps(config))
    status, _, err = run(capsys, "eval", "--model", damaged, *text)
    assert status == 2
    assert "do not match the checkpoint" in err
