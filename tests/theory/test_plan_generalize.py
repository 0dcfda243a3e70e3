"""`rote plan generalize` on real files: what it says is what the library computes; bad input is one clear error."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rote.cli.plan_generalize import generalize
from rote.errors import InputError
from rote.theory.generalize import VoronoiMemorizer, compare_memorizers, pick_pair, stratified_split

app = typer.Typer()
app.command()(generalize)


def run(*arguments):
    """(what was printed, the error)"""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.output, result.exception


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from sklearn.datasets import load_digits

    points, target = load_digits(return_X_y=True)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, X=points / 16, y=target)
    return path


@pytest.fixture(scope="module")
def report(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan") / "out"
    text, error = run(
        "--data", digits, "--pair", 4, 9, "--compare", "voronoi,core,sqrt,1nn", "--width", 5, "--eps", 0.2, "-o", folder
    )
    assert error is None, error
    return text, json.loads((folder / "generalize.json").read_text()), folder


def test_memorizers_side_by_side(report):
    _, found, _ = report
    networks = {entry["name"]: entry for entry in found["networks"]}
    assert list(networks) == ["voronoi", "core", "sqrt", "1nn"]
    assert all(entry["train_accuracy"] == 1.0 for entry in networks.values())
    assert networks["voronoi"]["test_accuracy"] >= 0.97
    assert abs(networks["sqrt"]["test_accuracy"] - 0.5) <= 0.08
    assert networks["sqrt"]["width"] == 6
    assert networks["1nn"]["parameters"] is None
    for entry in networks.values():
        assert entry["test_low"] <= entry["test_accuracy"] <= entry["test_high"]
        assert entry["test_count"] == found["data"]["test"]
    assert networks["core"]["nonzero"] <= networks["voronoi"]["nonzero"]
    assert found["data"]["certified_radius"] == pytest.approx(0.49 * found["data"]["separation_c0"])
    assert found["data"]["classes"] == ["4", "9"]


def test_numbers_are_the_librarys(report, digits):
    _, found, _ = report
    with np.load(digits) as arrays:
        rows = np.flatnonzero(np.isin(arrays["y"], (4, 9)))
        X, y = arrays["X"][rows], arrays["y"][rows]
    train, test = stratified_split(y, test_share=0.5, seed=0)
    memorizer = VoronoiMemorizer(abstain_label=-1).fit(X[train], y[train])
    voronoi = found["networks"][0]
    assert voronoi["test_correct"] == int((memorizer.predict(X[test]) == y[test]).sum())
    assert voronoi["parameters"] == memorizer.dense_parameters_
    assert voronoi["nonzero"] == memorizer.sparse_parameters_
    assert found["data"]["separation_c0"] == memorizer.c0_
    assert found["width_bound"]["n"] == 64
    assert found["samples"]["S"] == found["cover"]["size"]


def test_page_is_offline_and_says_what_is_estimated(report):
    text, _, folder = report
    page = (folder / "generalize.html").read_text()
    assert page.count("Plotly.newPlot(") >= 2
    scripts = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"[^\"]+\"", page)
    assert scripts == []
    assert "estimate from a sample" in page
    assert "estimate from a sample" in text
    assert "written: " in text


def test_json_and_quiet(digits):
    text, error = run("--data", digits, "--pair", 1, 7, "--compare", "voronoi", "--json")
    assert error is None
    assert json.loads(text)["networks"][0]["name"] == "voronoi"
    text, error = run("--dim", 10, "--width", 5, "-q")
    assert (text, error) == ("", None)


def test_width_and_samples_without_data():
    text, error = run("--dim", 10, "--width", 5, "--cover", 20, "--eps", 0.2, "--delta", 0.1, "--json")
    assert error is None
    found = json.loads(text)
    assert round(found["width_bound"]["accuracy_at_most"], 4) == 0.6605
    assert found["samples"]["N"] == 530
    assert found["samples"]["kind"] == "S as given"
    assert "networks" not in found


def test_other_formats_and_scaling(tmp_path):
    rng = np.random.default_rng(0)
    X = np.vstack([rng.random((30, 2)), rng.random((30, 2)) + 3]) * 100
    lines = [f"{a},{b},{'<b>low</b>' if k < 30 else 'high'}" for k, (a, b) in enumerate(X)]
    path = tmp_path / "points.csv"
    path.write_text("\n".join(["a,b,y", *lines]))
    _, error = run("--data", path)
    assert isinstance(error, InputError)
    assert "outside [0, 1]" in str(error)
    text, error = run("--data", path, "--scale", "--json", "-o", tmp_path / "out")
    assert error is None
    found = json.loads(text)
    assert found["data"]["scaled_into_the_cube"] is True
    assert all(entry["train_accuracy"] == 1.0 for entry in found["networks"])
    assert "<b>low</b>" not in (tmp_path / "out" / "generalize.html").read_text()


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "nothing to plan"),
    (("--width", "5"), "--width needs --dim"),
    (("--dim", "10", "--width", "0"), "width must be a whole number"),
    (("--cover", "20", "--eps", "2"), "eps must be in"),
    (("--cover", "20", "--scale"), "need --data"),
    (("--data", "missing.npz"), "no such file"),
    (("--data", "DIGITS"), "10 classes .* pick two with --pair"),
    (("--data", "DIGITS", "--pair", "4", "x"), "no class 'x'"),
    (("--data", "DIGITS", "--pair", "4", "4"), "two different classes"),
    (("--data", "DIGITS", "--pair", "4", "9", "--compare", "voronoi,magic"), "no memorizer 'magic'"),
    (("--data", "DIGITS", "--pair", "4", "9", "--test-share", "1"), "test share must be in"),
])  # fmt: skip
def test_bad_input_is_one_clear_error(arguments, message, digits, tmp_path):
    arguments = [str(digits) if argument == "DIGITS" else argument for argument in arguments]
    _, error = run(*arguments, "-o", tmp_path / "out")
    assert isinstance(error, InputError)
    assert re.search(message, str(error))
    assert "\n" not in str(error)
    assert not (tmp_path / "out").exists()


def test_contradictions_in_a_file(tmp_path):
    path = tmp_path / "twice.npz"
    np.savez(path, X=np.array([[0.1], [0.1], [0.5], [0.9]]), y=[0, 1, 0, 1])
    _, error = run("--data", path)
    assert isinstance(error, InputError)
    assert "same point with different labels" in str(error)
    np.savez(path, X=np.array([[0.1], [0.5], [0.9]]), y=[0, 0, 0])
    assert "one label" in str(run("--data", path)[1])
    np.savez(path, X=np.array([[0.1], [0.5], [0.9]]), y=[0, 0, 1])
    assert "two or more of each" in str(run("--data", path)[1])


def test_split_and_pair():
    y = np.repeat([0, 1, 2], [10, 20, 2])
    rows, labels = pick_pair(y, ("a", "b", "c"), ("c", "a"))
    assert labels == ("c", "a")
    assert sorted(set(y[rows])) == [0, 2]
    train, test = stratified_split(y, test_share=0.5, seed=1)
    assert sorted([*train, *test]) == list(range(32))
    assert [int((y[test] == k).sum()) for k in range(3)] == [5, 10, 1]
    with pytest.raises(InputError, match="no memorizer"):
        compare_memorizers([[0.0], [1.0]], np.array([0, 1]), [[0.0]], np.array([0]), names=("x",))
