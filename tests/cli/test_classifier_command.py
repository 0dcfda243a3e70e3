"""`rote classifier` as users meet it: train, score, unlearn, judge; and every kind of bad input in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rote.cli.main import main

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Three separable classes, some labels wrong; a trained classifier, its scores and two oracles."""
    folder = tmp_path_factory.mktemp("classifier")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    x = rng.normal(size=(150, 4)) + 2 * np.eye(3, 4)[y]
    y[:6] = (y[:6] + 1) % 3
    ids = np.array([f"e{row}" for row in range(60)])
    np.savez(folder / "train.npz", X=x[:60], y=np.array(CLASSES)[y[:60]], ids=ids)
    np.savez(folder / "held.npz", X=x[60:100], y=np.array(CLASSES)[y[60:100]])
    np.savez(folder / "test.npz", X=x[100:], y=np.array(CLASSES)[y[100:]])
    (folder / "ids.txt").write_text("\n".join(f"e{row}" for row in range(9)) + "\n")
    command = ["classifier", "train", folder / "train.npz", "--hidden", 8, "--epochs", 8, "--batch-size", 10]
    for out, more in (("m", []), ("o1", ["--without", folder / "ids.txt", "--seed", 1]),
                      ("o2", ["--without", folder / "ids.txt", "--seed", 2])):  # fmt: skip
        assert run(*command, *more, "-o", folder / out, "-q") == 0
    scored = ["classifier", "proxies", folder / "m", folder / "train.npz", "-o", folder / "p.parquet", "-q"]
    kinds = "confidence,negative_entropy,holdout_retraining,curvature,memorization"
    more = ["--holdout", folder / "held.npz", "--models", 24, "--subset", 0.5, "--picture", folder / "p.html"]
    assert run(*scored, "--kinds", kinds, *more) == 0
    return folder


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def rum_of(desk, out, *more):
    score = f"{desk / 'p.parquet'}:confidence"
    arguments = ("--forget", desk / "ids.txt", "--score", score, "-o", out, *more)
    return ("classifier", "rum", desk / "m", desk / "train.npz", *arguments)


def eval_of(desk, model, *more):
    arguments = ("--forget", desk / "ids.txt", "--test", desk / "test.npz", "--oracle", desk / "o1", *more)
    return ("classifier", "eval", model, desk / "train.npz", *arguments)


def fails(capsys, arguments, *words):
    assert run(*arguments) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert said.out == ""
    assert len(lines) == 1, said.err
    for word in words:
        assert word in lines[0], lines[0]


def test_the_whole_story(desk, tmp_path, capsys):
    scores = json.loads((desk / "p.json").read_text())
    assert {row["proxy"] for row in scores["agreement"]} == set(scores["scores"]) - {"memorization"}
    assert scores["scores"]["confidence"]["direction"].startswith("lower")
    assert "plotly" in (desk / "p.html").read_text()
    plan = ("--plan", "nothing,neggrad+,salun", "--set", "medium.alpha=0.95", "--set", "high.epochs=2")
    assert run(*rum_of(desk, tmp_path / "u", *plan, "--json")) == 0
    done = json.loads(capsys.readouterr().out)
    assert [(step["stratum"], step["forget"], step["retain"]) for step in done["steps"]] == [
        ("low", 3, 57), ("medium", 3, 54), ("high", 3, 51)
    ]  # fmt: skip
    assert done["steps"][1]["unlearner"]["alpha"] == 0.95
    assert done["steps"][2]["unlearner"]["recipe"]["epochs"] == 2
    assert sorted(name for part in done["strata"].values() for name in part) == sorted(f"e{row}" for row in range(9))
    more = ("--oracle", desk / "o2", "--original", desk / "m", "-o", tmp_path / "e.json")
    assert run(*eval_of(desk, tmp_path / "u", *more)) == 0
    assert "among" in capsys.readouterr().out
    found = json.loads((tmp_path / "e.json").read_text())
    assert 0 < found["models"]["unlearned"]["tow"]["value"] <= 1
    assert set(found["models"]) == {"unlearned", "original"}
    assert found["models"]["unlearned"]["ceiling"]["n"] == 1
    assert found["models"]["unlearned"]["lira_auroc"]["n"] == 9 + 50


def test_the_same_command_gives_the_same_weights_and_shuffling_others(desk, tmp_path):
    for name, more in (("a", ()), ("b", ()), ("c", ("--shuffle",))):
        assert run(*rum_of(desk, tmp_path / name, "--plan", "nothing,ft,neggrad+", *more, "-q")) == 0
    one, two, other = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert any(not np.array_equal(one[key], other[key]) for key in one)


def test_a_bare_safetensors_file_and_a_csv_are_read(desk, tmp_path, capsys):
    tensors = load_file(desk / "m" / "model.safetensors")
    save_file({key.replace("1.", "fc1.").replace("3.", "fc2."): value for key, value in tensors.items()},
              tmp_path / "net.safetensors")  # fmt: skip
    with np.load(desk / "train.npz") as file:
        rows = [",".join(["a", "b", "c", "d", "label"])]
        rows += [",".join([*map(str, x), str(CLASSES.index(y))]) for x, y in zip(file["X"], file["y"], strict=True)]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    arguments = ("classifier", "proxies", tmp_path / "net.safetensors", tmp_path / "train.csv")
    assert run(*arguments, "-o", tmp_path / "q.parquet", "--json") == 0
    bare = json.loads(capsys.readouterr().out)["scores"]
    assert list(bare) == ["curvature"]
    assert bare["curvature"]["mean"] == pytest.approx(
        json.loads((desk / "p.json").read_text())["scores"]["curvature"]["mean"], rel=1e-3
    )
    fails(capsys, [*arguments, "-o", tmp_path / "q.parquet", "--kinds", "confidence"], "recorded while training")
    fails(capsys, [*arguments, "-o", tmp_path / "q.parquet", "--kinds", "memorization"], "recipe")


def test_bad_input_is_one_line(desk, tmp_path, capsys):
    fails(capsys, rum_of(desk, tmp_path / "u", "--plan", "nothing,ft,salum"), "did you mean salun")
    fails(capsys, rum_of(desk, tmp_path / "u", "--set", "hihg.alpha=1"), "low, medium, high")
    fails(capsys, rum_of(desk, desk / "m"), "already holds a classifier")
    (tmp_path / "bad.txt").write_text("e1\ne99\n")
    wrong = [*rum_of(desk, tmp_path / "u"), "--forget", tmp_path / "bad.txt"]
    fails(capsys, wrong, "bad.txt line 2", "'e99'")
    (tmp_path / "twice.txt").write_text("e1\ne2\ne1\n")
    fails(capsys, [*rum_of(desk, tmp_path / "u"), "--forget", tmp_path / "twice.txt"], "'e1'", "twice")
    fails(
        capsys, [*rum_of(desk, tmp_path / "u"), "--score", f"{desk / 'p.parquet'}:curvatuer"], "did you mean curvature"
    )
    fails(capsys, [*rum_of(desk, tmp_path / "u"), "--score", f"{desk / 'p.parquet'}:binary_accuracy"], "has no score")
    fails(capsys, eval_of(desk, desk / "m", "--oracle", desk / "m"), "was trained with 9 of the examples to forget")
    fails(capsys, [*eval_of(desk, desk / "m"), "--test", desk / "train.npz"], "training data itself")
    assert not (tmp_path / "u").exists()


@pytest.mark.parametrize(("change", "words"), [
    ({"X": np.where(np.arange(12).reshape(3, 4) == 6, np.nan, 1.0)}, ["row 2", "nan", "place 3"]),
    ({"y": np.array(["cat", "dog"])}, ["one label each"]),
    ({"y": np.array(["cat", "dog", "emu"])}, ["example 2", "'emu'", "'cat', 'dog', 'owl'"]),
    ({"X": np.ones((3, 5))}, ["shape (5,)"]),
    ({"ids": np.array(["a", "a", "b"])}, ["one id of its own"]),
])  # fmt: skip
def test_bad_data_is_one_line(desk, tmp_path, capsys, change, words):
    arrays = {"X": np.ones((3, 4)), "y": np.array(["cat", "dog", "owl"]), **change}
    np.savez(tmp_path / "bad.npz", **arrays)
    arguments = ["classifier", "proxies", desk / "m", desk / "train.npz", "--holdout", tmp_path / "bad.npz"]
    fails(capsys, [*arguments, "-o", tmp_path / "p.parquet"], *words)
    assert not (tmp_path / "p.parquet").exists()


def test_scores_and_models_of_other_data_are_refused(desk, tmp_path, capsys):
    with np.load(desk / "train.npz") as file:
        arrays = {name: file[name].copy() for name in file.files}
    arrays["X"][0, 0] += 1
    np.savez(tmp_path / "train.npz", **arrays)
    shutil.copytree(desk / "m", tmp_path / "m")
    other = [tmp_path / "train.npz" if word == desk / "train.npz" else word for word in rum_of(desk, tmp_path / "u")]
    fails(capsys, other, "trained on other data")
    weights = tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: value + 1 for name, value in tensors.items()}, weights)
    fails(capsys, eval_of(desk, tmp_path / "m"), "sha256")
    (tmp_path / "m" / "classifier.json").unlink()
    fails(capsys, eval_of(desk, tmp_path / "m"), "no classifier there")


def test_a_forgotten_class_is_said(desk, tmp_path, capsys):
    with np.load(desk / "train.npz") as file:
        owls = file["ids"][file["y"] == "owl"].tolist()
    (tmp_path / "owls.txt").write_text("\n".join(owls))
    plan = ("--plan", "nothing,nothing,nothing", "--forget", tmp_path / "owls.txt")
    assert run(*rum_of(desk, tmp_path / "u", *plan)) == 0
    assert "no example of class" in capsys.readouterr().err
