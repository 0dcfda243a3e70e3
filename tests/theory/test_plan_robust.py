"""`rote plan robust`: planning, building, certifying, exporting, and one clear line for bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rote.cli.plan_robust import robust
from rote.errors import InputError


@pytest.fixture
def run():
    app = typer.Typer()
    app.command("robust")(robust)
    app.command("other")(lambda: None)

    def call(*arguments, status=0):
        found = CliRunner().invoke(app, ["robust", *map(str, arguments)])
        if isinstance(found.exception, InputError):
            raise found.exception
        assert found.exit_code == status, found.output
        return found.stdout

    return call


@pytest.fixture
def xor(tmp_path):
    path = tmp_path / "xor.csv"
    path.write_text("a,b,y\n0,0,same\n1,1,same\n1,0,other\n0,1,other\n")
    return path


def test_planning_without_data(run):
    found = json.loads(run("--records", 60_000, "--dim", 784, "--rho", "0.1", "--json"))["plan"]
    assert found["min_first_layer_width"] == 8
    assert found["min_first_layer_parameters"] == 6280
    assert found["regime"] == "large"
    kinds = {bound["kind"] for bound in found["bounds"]}
    assert kinds == {"exact", "rate, constant 1"}
    text = run("--records", 60_000, "--dim", 784, "--rho", "0.1")
    assert "6,280" in text
    assert "rate, constant 1" in text


def test_build_certify_export(run, xor, tmp_path):
    pytest.importorskip("onnxruntime")
    out, files = tmp_path / "out", tmp_path / "files"
    found = json.loads(run("--data", xor, "--certify", "--export", files, "-o", out, "--json"))
    assert found["certificate"]["verified"] == found["certificate"]["records"] == 4
    assert found["network"]["regime"] == "small"
    assert found["network"]["rho"] > 0.9
    assert found["export"]["vnnlib"] == 4
    assert json.loads((out / "robust.json").read_text()) == found
    page = (out / "bounds.html").read_text()
    assert "rate, constant 1" in page
    assert "<script src=" not in page  # the page works offline
    names = {"network.json", "network.onnx", *(f"record-0000{k}.vnnlib" for k in range(4))}
    assert {path.name for path in files.iterdir()} == names
    text = run("--data", xor, "--build", "--rho", "0.9", "--regime", "large", "--certify")
    assert "4 of 4 balls verified" in text
    assert "[inferred]" in text


def test_unproved_balls_are_a_failure(run, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "points.npz"
    np.savez(path, X=rng.random((24, 2)), y=np.arange(24) % 2)
    found = json.loads(
        run("--data", path, "--rho", "0.03", "--regime", "moderate", "--certify", "--json", status=1)
    )  # fmt: skip
    certificate = found["certificate"]
    assert certificate["unknown"] > 0
    assert certificate["verified"] + certificate["unknown"] + certificate["falsified"] == 24
    assert found["network"]["error"] == 0.01


def test_trained_network(run, xor, tmp_path):
    import torch
    from safetensors.torch import save_file

    # f = relu(x1 - x2) + relu(x2 - x1) - 1/2 is above 0 exactly on the points labelled 1 (same < other is class 1)
    state = {
        "0.weight": torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), "0.bias": torch.zeros(2),
        "2.weight": torch.tensor([[-1.0, -1.0]]), "2.bias": torch.tensor([0.5]),
    }  # fmt: skip
    save_file(state, tmp_path / "net.safetensors")
    network = tmp_path / "net.safetensors"
    found = json.loads(run("--data", xor, "--network", network, "--rho", "0.7", "--certify", "--json"))
    assert found["certificate"]["verified"] == 4
    assert found["trained"]["collision"]["rho_upper"] == pytest.approx(1 / 2**0.5)
    found = json.loads(run("--data", xor, "--network", network, "--rho", "0.8", "--certify", "--json", status=1))
    assert found["certificate"]["falsified"] == 4
    assert all("witness" not in row for row in found["certificate"]["not_verified"])
    options = ["--data", xor, "--network", network, "--rho", "0.8", "--certify", "--reveal"]
    shown = json.loads(run(*options, "--json", status=1))["certificate"]["not_verified"]
    for row in shown:  # a point of the open ball that the network puts in the other class, or on its boundary
        point, centre = np.array(row["witness"]), np.array([[0, 0], [1, 1], [1, 0], [0, 1]])[row["record"]]
        assert np.linalg.norm(point - centre) < 0.4
        other = 0.5 - abs(point[0] - point[1])
        assert other <= 0 if row["record"] < 2 else other >= 0
    assert "record 0 (from 0): falsified" in run(*options, status=1)


@pytest.mark.parametrize(("rows", "options", "message"), [
    ("0,1\n1,2\n", ["--rho", "1"], "must be below 1"),
    ("0,1\n1,2\n", ["--rho", "1.5", "--build"], "must be below 1"),
    ("0,1\n1,2\n", ["--rho", "0", "--build"], "must be above 0"),
    ("0,1\n1,2\n", ["--rho", "much", "--build"], "must be a number"),
    ("0,1\n1,2\n0,2\n", [], "rows 1 and 3 are the same point with different labels"),
    ("0,1\n1,1\n", [], "two classes"),
    ("nan,1\n1,1\n", [], "NaN"),
    ("0,1\n1,2\n", ["--norm", "l0"], "unknown norm"),
    ("0,1\n1,2\n", ["--build", "--regime", "huge"], "unknown regime"),
    ("0,1\n1,2\n", ["--records", "3"], "either --data"),
    ("0,1\n1,2\n", ["--network", "net.safetensors"], "needs --rho"),
])  # fmt: skip
def test_bad_input(run, tmp_path, rows, options, message):
    path = tmp_path / "points.csv"
    path.write_text("x,y\n" + rows)
    with pytest.raises(InputError, match=message):
        run("--data", path, *options)


@pytest.mark.parametrize(("options", "message"), [
    ([], "either --data"),
    (["--records", 3], "both --records"),
    (["--records", 3, "--dim", 2], "needs --rho"),
    (["--records", 1, "--dim", 2, "--rho", "0.1"], "at least 2 points"),
    (["--records", 3, "--dim", 2, "--rho", "0.1", "--build"], "need --data"),
])  # fmt: skip
def test_planning_needs_its_numbers(run, options, message):
    with pytest.raises(InputError, match=message):
        run(*options)
