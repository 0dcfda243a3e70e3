"""Killed or interrupted at any moment, the same command continues and finds the same, byte for byte."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rote.cli.main import main

RECORDS = 1500  # of about 40 tokens each: several shards
# The command, resting after every shard: it can be stopped before the last one however busy the machine is.
UNHURRIED = """
import sys, time
from rote.cli.main import main
from rote.scores.store import ScoreStore
write = ScoreStore.write
ScoreStore.write = lambda *given: (write(*given), time.sleep(2))
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def command(memorizer, tmp_path_factory):
    model, targets, _ = memorizer
    texts = [json.loads(line)["text"] for line in targets.read_text().splitlines()]
    file = tmp_path_factory.mktemp("many") / "many.jsonl"
    file.write_text(
        "".join(
            json.dumps({"id": str(number), "text": texts[number % len(texts)], "member": number % 3 > 0}) + "\n"
            for number in range(RECORDS)
        )
    )
    return ["audit", "lm", str(model), str(file), "--scheme", "top_k=4", "--batch-tokens", "512", "-q"]


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with contextlib.chdir(folder):  # the same relative -o everywhere, as the command is part of the findings
        assert main([*command, "-o", "run"]) == 0
    return folder / "run"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_run_again(command, undisturbed, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    worker = subprocess.Popen(
        [sys.executable, "-c", UNHURRIED, *command, "-o", "run"],
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(run.glob("scores/part-*.parquet")) and time.monotonic() < deadline and worker.poll() is None:
        time.sleep(0.005)
    worker.send_signal(how)
    said = worker.communicate()[1]
    finished = len(list(run.glob("scores/part-*.parquet")))
    shards = json.loads((run / "scores" / "key.json").read_text())["shards"]
    assert 1 <= finished < shards, "the run ended before it could be stopped"
    assert not (run / "findings.json").exists()
    if how == signal.SIGINT:
        assert worker.returncode == 130
        assert said.strip() == "rote: interrupted; the same command continues where this one stopped"
    first = {file.name: file.stat().st_mtime_ns for file in run.glob("scores/part-*.parquet")}
    assert main([*command, "-o", "run"]) == 0
    assert {name: (run / "scores" / name).stat().st_mtime_ns for name in first} == first  # finished shards are kept
    for name in ("findings.json", "records.parquet", "report.html"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_damaged_shard_is_made_again(command, undisturbed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shard = run / "scores" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    (run / "scores" / "part-00001.parquet").unlink()
    assert main(["report", str(run), "-q"]) == 2
    assert main([*command, "-o", "run"]) == 0
    assert (run / "findings.json").read_bytes() == (undisturbed / "findings.json").read_bytes()
