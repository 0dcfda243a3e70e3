"""Certificates: exact analysis against a naive twin, falsified verdicts with real witnesses, collisions, exports."""

from __future__ import annotations

import json
import math
import random
import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from rote.errors import InputError
from rote.theory.certify import (
    certify_balls,
    collision_bound,
    compare_onnx,
    from_torch,
    largest_certified,
    load_exact,
    load_sequential,
    save_exact,
    save_onnx,
    stable_affine,
    vnnlib,
)
from rote.theory.certify.export import export_memorizer
from rote.theory.certify.milp import Program, dense_weights, minimise_on_ball
from rote.theory.certify.sequential import from_weights
from rote.theory.exact_network import ExactLayer, ExactNetwork
from rote.theory.robust import Radius, build_robust_memorizer, sample_ball, width_dataset
from rote.theory.robust.norms import dual, norm_squared, parse_norm

XOR = np.array([[0, 0], [1, 1], [1, 0], [0, 1.0]])
XOR_LABELS = np.array([1, 1, 2, 2])


def random_network(widths, seed):
    rng = random.Random(seed)
    draw = lambda: rng.choice([0, 1, -1, 2, Fraction(rng.randint(-9, 9), 4)])  # noqa: E731
    return ExactNetwork(
        tuple(
            ExactLayer(tuple({j: draw() for j in range(a)} for _ in range(b)), tuple(draw() for _ in range(b)), a)
            for a, b in pairwise(widths)
        )
    )


def naive_stable(network, x, radius):
    """One ball, dense Fraction matrices, no sharing: (stable, value, gradient)."""
    q = dual(radius.p)
    h = [Fraction(float(v)) for v in x]
    G = [[Fraction(int(i == j)) for j in range(len(x))] for i in range(len(x))]
    for number, layer in enumerate(network.layers):
        pairs = zip(layer.rows, layer.bias, strict=True)
        new_h = [b + sum((w * h[j] for j, w in row.items()), Fraction(0)) for row, b in pairs]
        new_G = [[sum((w * G[j][k] for j, w in row.items()), Fraction(0)) for k in range(len(x))] for row in layer.rows]
        if number == network.depth - 1:
            return True, new_h, new_G
        for i, value in enumerate(new_h):
            if any(new_G[i]) and value * value < radius.square * norm_squared(new_G[i], q):
                return False, None, None
            if value <= 0:
                new_h[i], new_G[i] = Fraction(0), [Fraction(0)] * len(x)
        h, G = new_h, new_G
    raise AssertionError


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "l3"])
@pytest.mark.parametrize("widths", [[2, 3, 4, 1], [3, 2, 3, 2], [2, 5, 5, 5, 2]])
def test_stable_affine_is_the_naive_analysis(norm, widths):
    rng = np.random.default_rng(0)
    seen = set()
    for seed in range(12):
        network = random_network(widths, seed)
        X = rng.integers(-20, 20, (10, widths[0])) / 4
        radius = Radius.of(Fraction(1, 3), norm)
        found = stable_affine(network, X, radius)
        for i, x in enumerate(X):
            stable, value, gradient = naive_stable(network, x, radius)
            seen.add(stable)
            assert found.stable[i] == stable
            assert list(found.values[i]) == list(network.evaluate(x))
            if stable:
                assert list(found.values[i]) == value
                assert gradient is not None
                for output in range(widths[-1]):
                    dense = [found.gradient(i, output).get(k, 0) for k in range(widths[0])]
                    assert dense == gradient[output]
                assert found.radius[i] >= 1 / 3 * (1 - 2e-9)
    assert seen == {True, False}


def test_stable_radius_is_the_largest():
    network = random_network([2, 4, 4, 1], 3)
    X = np.random.default_rng(1).integers(-20, 20, (20, 2)) / 4
    found = stable_affine(network, X, Radius.of(0))
    for i, largest in enumerate(found.radius):
        if 0 < largest < math.inf:
            below, above = (stable_affine(network, X[i : i + 1], Radius.of(largest * f)) for f in (1, 1 + 1e-6))
            assert below.stable[0]
            assert not above.stable[0]


def test_stable_balls_really_are_affine():
    network = random_network([3, 6, 6, 2], 5)
    rng = np.random.default_rng(2)
    X = rng.integers(-30, 30, (30, 3)) / 4
    found = stable_affine(network, X, Radius.of(0.2))
    assert found.stable.any()
    for i in np.flatnonzero(found.stable):
        for point in sample_ball(X[i], 0.2, 5, rng):
            away = [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(point, X[i], strict=True)]
            for output, value in enumerate(network.evaluate(point)):
                slope = found.gradient(int(i), output)
                moved = sum((slope.get(j, 0) * a for j, a in enumerate(away)), Fraction(0))
                assert value == found.values[i][output] + moved


def check_witness(network, X, y, cert, radius, *, wrong):
    for record in cert.records:
        if record.verdict == "falsified":
            away = [Fraction(a) - Fraction(float(b)) for a, b in zip(record.witness, X[record.record], strict=True)]
            assert norm_squared(away, parse_norm(cert.norm)) < Fraction(radius) ** 2
            assert wrong(network.evaluate(record.witness), y[record.record])


def test_memorizer_within_and_beyond_its_radius():
    made = build_robust_memorizer(XOR, XOR_LABELS)
    assert certify_balls(made, XOR, XOR_LABELS, radius=made.radius).complete
    assert certify_balls(made.network, XOR, XOR_LABELS, radius=made.mu).complete  # the bare network, the same verdict
    beyond = certify_balls(made, XOR, XOR_LABELS, radius=0.51)
    assert beyond.count("falsified") == 4
    check_witness(made.network, XOR, XOR_LABELS, beyond, 0.51, wrong=lambda out, y: out[0] != y)
    swapped = certify_balls(made, XOR, XOR_LABELS[::-1], radius=made.radius)
    assert swapped.count("falsified") == 4
    assert {record.method for record in swapped.records} == {"value at the record"}
    with pytest.raises(InputError, match="must not be negative"):
        certify_balls(made, XOR, XOR_LABELS, radius=-1)
    with pytest.raises(InputError, match="must be"):
        certify_balls(made, XOR, XOR_LABELS[:2], radius=0.1)


def test_equality_is_more_than_interpolation():
    """f = x1 equals the label at the record but not on the ball: falsified by its gradient, with a point."""
    line = ExactNetwork((ExactLayer(({0: 1},), (0,), 2),))
    for norm in ("l1", "l2", "linf", "l3"):
        found = certify_balls(line, np.array([[1.0, 5.0]]), [1], radius=0.25, norm=norm)
        assert found.records[0].verdict == "falsified"
        check_witness(line, np.array([[1.0, 5.0]]), [1], found, 0.25, wrong=lambda out, y: out[0] != y)


@pytest.fixture(scope="module")
def trained():
    """A small trained classifier of three blobs."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(c, 0.4, (10, 2)) for c in ((0, 0), (2, 0), (0, 2))]).astype(np.float32)
    y = np.repeat([0, 1, 2], 10)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.tensor(X)), torch.tensor(y)).backward()
        optimizer.step()
    return net, X.astype(float), y


@pytest.mark.parametrize(("norm", "radius"), [("l2", 0.1), ("l2", 0.9), ("linf", 0.25), ("l1", 1.2)])
def test_trained_network_verdicts_agree_with_a_dense_search(trained, norm, radius):
    net, X, y = trained
    exact = from_torch(net)
    found = certify_balls(net, X, y, radius=radius, norm=norm, samples=4)
    assert found.kind == "argmax"
    assert found.count("unknown") == 0
    margin = lambda out, label: out[label] - max(v for k, v in enumerate(out) if k != label)  # noqa: E731
    check_witness(exact, X, y, found, radius, wrong=lambda out, label: margin(out, label) <= 0)
    rng = np.random.default_rng(1)
    double = net.double()
    for record in found.records:
        points = sample_ball(X[record.record], radius, 3000, rng, p=parse_norm(norm))
        with torch.inference_mode():
            out = double(torch.tensor(points)).numpy()
        label = y[record.record]
        worst = (out[:, label] - np.delete(out, label, axis=1).max(axis=1)).min()
        assert worst > 0 or record.verdict == "falsified"
    if radius > 0.5:
        assert found.count("falsified") > 0
    net.float()


def test_milp_minimum_is_the_true_one(trained):
    net, X, _ = trained
    exact = from_torch(net)
    weights = dense_weights(exact)
    c, mu = np.array([1.0, -1.0, 0.0]), 0.5
    rng = np.random.default_rng(0)
    net.double()
    for p in (1.0, 2.0, math.inf):
        for x in X[::7]:
            found = minimise_on_ball(Program(weights, x, mu, p), c, floor=math.inf, seconds=20)
            points = sample_ball(x, mu, 20_000, rng, p=p)
            with torch.inference_mode():
                sampled = (net(torch.tensor(points)).numpy() @ c).min()
            assert found.reason == ""
            assert found.lower <= sampled + 1e-6
            assert sampled - found.lower < 0.1 * (1 + abs(sampled))
    net.float()


def test_time_limit_and_steep_networks_are_unknown():
    torch.manual_seed(0)
    sizes = (12, 60, 60)
    hidden = [m for a, b in pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    last = torch.nn.Linear(60, 1)
    wide = torch.nn.Sequential(*hidden, last)
    X = np.zeros((1, 12))
    with torch.inference_mode():
        y = [int(wide(torch.zeros(12)).item() > 0)]
        last.bias.add_(0.3 if y[0] else -0.3)
    found = certify_balls(wide, X, y, radius=0.9, norm="l2", time_limit=0.2, samples=0)
    assert found.records[0].verdict == "unknown"
    off = certify_balls(wide, X, y, radius=0.9, milp=False, samples=0)
    assert (off.records[0].verdict, off.records[0].reason) == ("unknown", "a unit changes sign; no MILP was asked for")
    steep = ExactNetwork((ExactLayer(({0: 10**9}, {0: 10**9}), (0, -1), 1), ExactLayer(({0: 1, 1: -1},), (0,), 2)))
    refused = certify_balls(steep, np.array([[0.0]]), [0], radius=1, samples=0)
    assert refused.records[0].verdict == "unknown"
    assert "too large for float64" in refused.records[0].reason


def test_milp_does_not_write_to_standard_output(trained, capfd):
    net, X, y = trained
    certify_balls(net, X[:3], y[:3], radius=0.4, samples=0)
    assert capfd.readouterr().out == ""


def test_sign_property(trained):
    first, last = torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)
    net = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        first.bias.zero_()
        last.weight.fill_(1.0)
        last.bias.fill_(-1.0)  # f = |x| - 1
    X, y = np.array([[0.0], [3.0]]), np.array([0, 1])
    assert certify_balls(net, X, y, radius=0.99).verified == 2
    assert [r.verdict for r in certify_balls(net, X, y, radius=1.5).records] == ["falsified", "verified"]
    with pytest.raises(InputError, match="0 and 1"):
        certify_balls(net, X, [0, 2], radius=0.1)
    with pytest.raises(InputError, match="outputs"):
        certify_balls(trained[0], trained[1], trained[2] + 1, radius=0.1)
    with pytest.raises(InputError, match="does not fit"):
        certify_balls(net, X, y, radius=0.1, property="argmax")
    low, high = largest_certified(lambda r: certify_balls(net, X, y, radius=r).complete, 0.0, 2.0, steps=12)
    assert low <= 1 <= high
    assert high - low < 1e-3


def test_collision_bound_on_unit_vectors():
    """{e_j} and 0: at most sqrt(m/d) for every W, and 1/2 for 4 rows of the 16 x 16 Hadamard matrix."""
    data = width_dataset(17, 16)
    rng = np.random.default_rng(0)
    for m in (1, 2, 4, 8, 15):
        for _ in range(10):
            assert collision_bound(rng.standard_normal((m, 16)), data.X, data.y).rho_upper <= math.sqrt(m / 16) + 1e-12
    found = collision_bound(hadamard(16)[:4].astype(float), data.X, data.y)
    assert found.rho_upper == pytest.approx(0.5, abs=1e-12)
    assert collision_bound(np.eye(16), data.X, data.y).rho_upper == pytest.approx(1)
    assert collision_bound(np.zeros((3, 16)), data.X, data.y).rho_upper == 0


def test_collision_is_a_real_one():
    rng = np.random.default_rng(3)
    X, y, W = rng.standard_normal((20, 6)), np.arange(20) % 2, rng.standard_normal((3, 6))
    found = collision_bound(W, X, y)
    (i, j), (a, b) = found.pair, found.points
    assert y[i] != y[j]
    assert np.allclose(W @ a, W @ b)
    assert np.linalg.norm(a - X[i]) == pytest.approx(found.distance)
    assert np.linalg.norm(b - X[j]) == pytest.approx(found.distance)
    eps = min(np.linalg.norm(X[s] - X[t]) for s in range(20) for t in range(20) if y[s] != y[t]) / 2
    assert found.distance == pytest.approx(found.rho_upper * eps)
    projector = np.linalg.pinv(W) @ W
    brute = min(np.linalg.norm(projector @ (X[s] - X[t])) for s in range(20) for t in range(20) if y[s] != y[t])
    assert found.rho_upper == pytest.approx(brute / 2 / eps)
    first = torch.nn.Linear(6, 3).double()
    net = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(3, 1).double())
    with torch.no_grad():
        first.weight.copy_(torch.tensor(W))
    assert collision_bound(net, X, y).rho_upper == pytest.approx(found.rho_upper)
    values = net(torch.tensor(np.stack([a, b])))
    assert values[0].item() == pytest.approx(values[1].item())
    with pytest.raises(InputError, match="last axes"):
        collision_bound(np.eye(4), X, y)


def test_built_memorizers_respect_the_collision_bound():
    made = build_robust_memorizer(XOR, XOR_LABELS)
    assert float(made.rho) <= collision_bound(made, XOR, XOR_LABELS).rho_upper


def test_exact_json(tmp_path):
    for network in (random_network([3, 4, 2], 1), build_robust_memorizer(XOR, XOR_LABELS).network):
        path = save_exact(network, tmp_path / "net.json", note="x")
        assert load_exact(path) == network
        assert json.loads(path.read_text())["about"] == {"note": "x"}
    long = ExactNetwork((ExactLayer(({0: 7**20_000},), (Fraction(-1, 3**9000),), 1),))  # far beyond decimal text
    assert load_exact(save_exact(long, tmp_path / "long.json")) == long
    (tmp_path / "bad.json").write_text('{"schema": "other"}')
    with pytest.raises(InputError, match="not an exact network"):
        load_exact(tmp_path / "bad.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_exact(tmp_path / "missing.json")


def test_onnx_is_run_again_and_compared(tmp_path, trained):
    onnxruntime = pytest.importorskip("onnxruntime")
    made = build_robust_memorizer(XOR, XOR_LABELS)
    path = save_onnx(made.network, tmp_path / "net.onnx", check=XOR)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": XOR})
    assert np.array_equal(found[:, 0], XOR_LABELS)
    assert compare_onnx(made.network, path, XOR + 0.1) == 0
    exact = from_torch(trained[0])
    single = save_onnx(exact, tmp_path / "single.onnx", dtype="float32", check=trained[1], tolerance=1e-4)
    assert single.is_file()
    other = random_network([2, 5, 1], 9)
    with pytest.raises(InputError, match="differs"):
        compare_onnx(other, path, XOR + 3)
    rng = np.random.default_rng(0)
    big = build_robust_memorizer(rng.random((800, 2)), rng.integers(0, 2, 800))
    with pytest.raises(InputError, match=r"cannot hold|need more bits"):
        save_onnx(big.network, tmp_path / "big.onnx")
    assert not (tmp_path / "big.onnx").exists()


def test_exported_files_alone_verify_again(tmp_path):
    """Another reader's way: weights from the ONNX file, boxes and outputs from the VNN-LIB files, nothing else."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made = build_robust_memorizer(XOR, XOR_LABELS, rho="0.6")
    told = export_memorizer(made.network, XOR, made.outputs_for(XOR_LABELS).tolist(), made.radius, tmp_path)
    assert (told["onnx"], told["vnnlib"]) == ("network.onnx", 4)
    graph = onnx.load(tmp_path / "network.onnx").graph
    assert [node.op_type for node in graph.node] == ["Gemm", "Relu"] * (made.depth - 1) + ["Gemm"]
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    again = from_weights([(arrays[f"w{k}"], arrays[f"b{k}"]) for k in range(made.depth)])
    assert again == made.network == load_exact(tmp_path / "network.json")  # float64 lost nothing
    for path, centre, wanted in zip(sorted(tmp_path.glob("*.vnnlib")), XOR, XOR_LABELS, strict=True):
        text = path.read_text()
        low, high = (np.array([float(x) for x in re.findall(rf"{sign} X_\d+ (\S+?)\)", text)]) for sign in (">=", "<="))
        assert (low + high) / 2 == pytest.approx(centre)
        assert (high - low).min() >= 2 * made.mu
        box = Radius.of(Fraction(float((high - low).max())) / 2, "linf")
        assert certify_balls(again, [(low + high) / 2], [wanted], radius=box, norm="linf").complete
        below, above = (float(re.findall(rf"{sign} Y_0 (\S+?)\)", text)[0]) for sign in ("<=", ">="))
        assert below < wanted < above


def test_missing_onnx_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime is not installed; run: pip install 'rote\[verify\]'"):
        compare_onnx(random_network([2, 1], 0), b"", [[0, 0]])


def test_vnnlib_boxes_hold_the_ball():
    centre, radius = np.array([0.1, -3.0]), Radius.of(Fraction(1, 3))
    text = vnnlib(centre, radius, output=2)
    bounds = {}
    for line in text.splitlines():
        if line.startswith("(assert (>= X_") or line.startswith("(assert (<= X_"):
            sign, name, value = line.removeprefix("(assert (").rstrip(")").split()
            bounds[name, sign] = Fraction(value)
    for j, value in enumerate(centre):
        exact = Fraction(float(value))
        low, high = bounds[f"X_{j}", ">="], bounds[f"X_{j}", "<="]
        assert low <= exact - Fraction(1, 3) < exact + Fraction(1, 3) <= high
        assert high - low < Fraction(2, 3) + Fraction(1, 10**12)
    assert "(assert (or (and (<= Y_0 1.999)) (and (>= Y_0 2.001))))" in text
    scores = vnnlib(centre, radius, label=1, outputs=3)
    assert "(assert (or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1))))" in scores
    assert "e-" not in text.split("record")[1].replace("declare", "")
    with pytest.raises(InputError, match="either output"):
        vnnlib(centre, radius)


def test_weights_from_safetensors(tmp_path, trained):
    from safetensors.torch import save_file

    net = trained[0]
    save_file({f"model.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "net.safetensors")
    assert load_sequential(tmp_path / "net.safetensors") == from_torch(net)
    save_file({"attention.q": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    (tmp_path / "not.safetensors").write_text("x")
    for name, message in (("other", "not N.weight"), ("not", "not a safetensors"), ("missing", "no such file")):
        with pytest.raises(InputError, match=message):
            load_sequential(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(("module", "message"), [
    (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU(), torch.nn.Linear(2, 1)), "GELU is not supported"),
    (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)), "without a ReLU"),
    (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), "end in a Linear"),
])  # fmt: skip
def test_other_modules_are_refused(module, message):
    with pytest.raises(InputError, match=message):
        from_torch(module)


def test_diverged_weights_are_refused():
    only = torch.nn.Linear(1, 1)
    net = torch.nn.Sequential(only)
    with torch.no_grad():
        only.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="diverged"):
        from_torch(net)


def test_a_thousand_balls_share_their_work():
    """1,000 balls through a network of hundreds of layers: seconds, because gradients vanish after the floors."""
    rng = np.random.default_rng(0)
    X, y = rng.random((1024, 2)), rng.integers(0, 3, 1024)
    made = build_robust_memorizer(X, y)
    found = stable_affine(made.network, X, made.radius)
    assert found.stable.all()
    assert len(found.table.gradients) < 200
    assert certify_balls(made, X[:1000], y[:1000], radius=made.radius).complete


def test_voronoi_network_is_robust_in_sign():
    """The depth-3 network of the other paper (planes at 0.49) on XOR: the stable radius is 0.49 = 0.98 eps exactly, and
    a solver proves more; no network can pass 0.5."""
    from rote.theory.generalize import VoronoiMemorizer

    network = VoronoiMemorizer(split=0.49).fit(XOR, XOR_LABELS).to_torch()
    found = certify_balls(network, XOR, XOR_LABELS - 1, radius=0.489)
    assert set(found.to_dict()["methods"]) == {"stable-affine (exact)"}
    assert found.complete
    assert found.to_dict()["smallest_stable_radius"] == pytest.approx(0.49, abs=1e-6)
    assert certify_balls(network, XOR, XOR_LABELS - 1, radius=0.495).complete
    assert not certify_balls(network, XOR, XOR_LABELS - 1, radius=0.505).complete
