"""`rote memory vista ...` end to end: train, summarise, recommend, audit, time, forget; bad input is one clear line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from rote.cli.memory_vista import vista_app
from rote.errors import InputError

pytest.importorskip("lmdb")


def run(*arguments, status=0):
    found = CliRunner().invoke(vista_app, list(map(str, arguments)))
    if isinstance(found.exception, InputError):
        raise found.exception
    assert found.exit_code == status, (found.output, found.exception)
    return found.stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A log in which everybody walks through the items in order, a trained model, and a store."""
    home = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    lines = ["user,item,timestamp"]
    for user in range(80):
        start = rng.integers(0, 30)
        lines += [f"u{user},item {(start + n) % 30},{1.6e9 + 60 * n + user}" for n in range(rng.integers(4, 12))]
    (home / "log.csv").write_text("\n".join(lines) + "\n")
    size = ("--dim", 16, "--heads", 2, "--seeds", 4, "--raw-events", 4)
    schedule = ("--steps", 120, "--batch-users", 64, "--negatives", 29, "--check-every", 60, "--learning-rate", "1e-2")
    out = run("train", home / "log.csv", "--out", home / "model", *size, *schedule,
              "--baseline", "sasrec", "--baseline", "target", "--json")  # fmt: skip
    run("summarize", home / "model", home / "log.csv", "--store", f"lmdb:{home / 'store'}", "-q")
    return home, json.loads(out)


def test_training_is_judged_and_drawn(desk):
    home, found = desk
    assert [one["model"] for one in found["models"]] == ["vista", "sasrec", "target"]
    assert set(found["vista NDCG@10 over"]) == {"sasrec", "target"}
    for one in found["vista NDCG@10 over"].values():
        assert one["low"] <= one["ratio"] <= one["high"]
    assert found["users judged"] == 80
    assert not list(home.glob(".*unfinished"))
    for one in found["models"]:
        assert one["test"]["users"] == 80
        assert [check["step"] for check in one["validation"]] == [60, 120]
        assert one["test"]["HR@10"] > 0.6  # chance is about a third
    assert json.loads((home / "model" / "training.json").read_text()) == found
    page = (home / "model" / "training.html").read_text()
    assert "validation NDCG@10" in page
    assert "<script src=" not in page
    assert json.loads((home / "model" / "config.json").read_text())["version"] == found["version"]


def test_recommending_reads_the_store_alone(desk):
    home, found = desk
    ask = ("recommend", home / "model", "--store", f"lmdb:{home / 'store'}", "--user", "u3", "-k", 5)
    got = json.loads(run(*ask, "--json"))
    assert got["version"] == found["version"]
    assert len(got["items"]) == 5
    assert got["summary"]["last_time"] > 1.6e9
    scores = [item["score"] for item in got["items"]]
    assert scores == sorted(scores, reverse=True)
    seen = json.loads(run(*ask, "--seen", home / "log.csv", "--json"))["items"]
    mine = {line.split(",")[1] for line in (home / "log.csv").read_text().splitlines() if line.startswith("u3,")}
    assert not mine & {item["item"] for item in seen}
    assert "item" in run(*ask)
    new = run(
        "recommend", home / "model", "--store", f"lmdb:{home / 'store'}", "--user", "new", "--new-users", "--json"
    )
    assert json.loads(new)["summary"] is None


def test_audit_tables_and_picture(desk, tmp_path):
    home, _ = desk
    found = json.loads(run("audit", home / "model", home / "log.csv", "--out", tmp_path, "--missing", "0,2", "--json"))
    assert [row["dtype"] for row in found["storage"]] == ["float32", "float16", "int8", "int4"]
    assert [row["vectors"] for row in found["tokens"]] == [1, 2, 4]
    sizes = [row["bytes a user"] for row in found["storage"]]
    assert sizes == sorted(sizes, reverse=True)
    assert found["storage"][0]["HR@10"] == found["tokens"][-1]["HR@10"]
    assert {"missing", "HR@10", "HR@10, with raw events"} <= set(found["staleness"][1])
    assert found["reconstruction"]["L_rec own"] > 0
    assert "summary alone" in (tmp_path / "audit.html").read_text()
    assert "staleness" in run("audit", home / "model", home / "log.csv", "-o", tmp_path, "--missing", "0")


def test_refreshing_updates_and_counts(desk, tmp_path):
    home, _ = desk
    store = ("--store", f"sqlite:{tmp_path / 's.db'}", "--json")
    first = json.loads(
        run("summarize", home / "model", home / "log.csv", "--until", "2020-09-13T12:30:00", "--keep-states", *store)
    )
    assert first["users"] == 80
    again = json.loads(run("summarize", home / "model", home / "log.csv", "--update", *store))
    assert again["users"] == 0
    assert again["updated"] + again["unchanged"] == 80
    assert again["updated"] > 0
    assert not again["exact updates"]  # order "recency": every new event moves all ranks
    assert again["events"] + first["events"] == len((home / "log.csv").read_text().splitlines()) - 1


def test_forgetting_is_for_good(desk, tmp_path):
    home, _ = desk
    store = f"lmdb:{tmp_path / 'store'}"
    run("summarize", home / "model", home / "log.csv", "--store", store, "-q")
    (tmp_path / "gone.txt").write_text("u5\nu6\n")
    found = json.loads(
        run(
            "forget", "--store", store, "--user", "u4", "--user", "zed", "--users-file", tmp_path / "gone.txt", "--json"
        )
    )
    assert found == {"deleted": 3, "users": 3, "not there": ["zed"]}
    with pytest.raises(InputError, match="no summary of user 'u5'"):
        run("recommend", home / "model", "--store", store, "--user", "u5")
    with pytest.raises(InputError, match="nobody to forget"):
        run("forget", "--store", store)
    with pytest.raises(InputError, match="no such store"):
        run("forget", "--store", tmp_path / "none", "--user", "u1")


def test_timing_writes_numbers_and_a_picture(desk, tmp_path):
    home, _ = desk
    fast = ("--history", "50,2e3", "--repeats", 5, "--candidates", 20, "--longest-full", 100)
    found = json.loads(run("serve-bench", "--model", home / "model", "--out", tmp_path, *fast, "--json"))
    assert [row["history"] for row in found["rows"]] == [50, 2000]
    assert all(row["cached p99 ms"] >= row["cached p50 ms"] > 0 for row in found["rows"])
    assert found["rows"][0]["full attention p50 ms"] > 0
    assert found["rows"][1]["full attention p50 ms"] is None
    assert json.loads((tmp_path / "latency.json").read_text()) == found
    assert "from the cache" in (tmp_path / "latency.html").read_text()
    assert "50" in run("serve-bench", "--dim", 16, "--seeds", 4, "--history", 50, "--repeats", 1, "-o", tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "LOG", "--out", "m", "--baseline", "gru"), "baseline 'gru'"),
        (("train", "LOG", "--out", "m", "--dim", "15"), "not a multiple"),
        (("train", "LOG", "--out", "m", "--column", "user"), "write it as NAME=COLUMN"),
        (("train", "LOG", "--out", "m", "--column", "user=who"), "no column 'who'"),
        (("train", "missing.csv", "--out", "m"), "no such file"),
        (("train", "LOG", "--out", "OTHER"), "exists and is no model directory"),
        (("summarize", "MODEL", "OTHER", "--store", "s"), "item 'boat' is not among the 30 the model knows"),
        (("summarize", "MODEL", "LOG", "--store", "s", "--dtype", "int3"), "dtype 'int3'"),
        (("summarize", "MODEL", "LOG", "--store", "s", "--until", "soon"), "--until"),
        (("recommend", "MODEL", "--store", "nowhere", "--user", "u1"), "no such store"),
        (("recommend", "LOG", "--store", "s", "--user", "u1"), "no such model directory"),
        (("serve-bench", "--history", "ten"), "numbers with commas"),
        (("serve-bench", "--history", "0"), "at least 1"),
    ],
)
def test_bad_input_is_one_line(desk, tmp_path, monkeypatch, arguments, message):
    home, _ = desk
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("user,item,timestamp\nu1,boat,5\n")
    places = {"LOG": home / "log.csv", "MODEL": home / "model", "OTHER": tmp_path / "other.csv"}
    with pytest.raises(InputError) as found:
        run(*(places.get(word, word) for word in arguments))
    assert message in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "m").exists()


def test_a_retrained_model_never_reads_the_old_summaries(desk, tmp_path):
    home, _ = desk
    schedule = ("--dim", 16, "--heads", 2, "--seeds", 4, "--steps", 2, "--seed", 1)
    run("train", home / "log.csv", "--out", tmp_path / "newer", *schedule, "-q")
    with pytest.raises(InputError, match="only, this model is"):
        run("recommend", tmp_path / "newer", "--store", f"lmdb:{home / 'store'}", "--user", "u3")
