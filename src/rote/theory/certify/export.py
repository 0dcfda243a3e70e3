"""Networks and questions for other verifiers: ONNX graphs, VNN-LIB properties, and exact JSON.

ONNX holds floating-point weights, so only networks whose weights are exactly such numbers are written, and the file is
run again and compared with the exact network. Exact JSON holds everything (hexadecimal integers and fractions).
VNN-LIB knows boxes only: the box written for a 2-norm ball contains the ball, so "unsat" proves the ball and a
counterexample in the box may lie outside of it.
Deliberately does not verify: alpha-beta-CROWN, Marabou and others read these files.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rote.atomic import write_atomic
from rote.errors import InputError, MissingDependencyError
from rote.theory.exact_network import ExactLayer, ExactNetwork, Number
from rote.theory.robust.norms import Radius

SCHEMA = "rote-exact-network/1"
OPSET = 14  # the first with Relu for every float type


def save_exact(network: ExactNetwork, path: str | Path, **more: Any) -> Path:
    """Write the network as exact JSON; `more` (plain values) stands beside it under "about"."""
    layers = [
        {
            "inputs": layer.inputs,
            "rows": [[[j, _text(w)] for j, w in row.items()] for row in layer.rows],
            "bias": [_text(value) for value in layer.bias],
        }
        for layer in network.layers
    ]
    content = {"schema": SCHEMA, "activation": "relu after every layer but the last", "about": more, "layers": layers}
    return write_atomic(path, json.dumps(content, allow_nan=False) + "\n")


def load_exact(path: str | Path) -> ExactNetwork:
    """Read what `save_exact` wrote. Errors: InputError for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError
        layers = tuple(
            ExactLayer(
                tuple({int(j): _number(w) for j, w in row} for row in layer["rows"]),
                tuple(_number(value) for value in layer["bias"]),
                int(layer["inputs"]),
            )
            for layer in content["layers"]
        )
        return ExactNetwork(layers)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise InputError(f"{path}: not an exact network ({SCHEMA} expected)") from None


def save_onnx(
    network: ExactNetwork, path: str | Path, *, dtype: str = "float64", check: Any = None, tolerance: float = 1e-6
) -> Path:
    """Write the network as an ONNX graph of Gemm and Relu, run it again and compare.

    dtype: float64 or float32. check: points compared with the exact network after reading the file back (default: the
    origin, unit vectors and integer points). Input "x" and output "y" have shape (batch, d).

    Errors: InputError when a weight is not exactly a number of that type or the file's answers differ;
    MissingDependencyError without `onnx` and `onnxruntime`. Nothing is left behind after an error.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise MissingDependencyError("onnx", "verify") from None
    import torch

    if dtype not in ("float64", "float32"):
        raise InputError(f"unknown dtype {dtype!r}; use float64 or float32")
    network.to_torch(
        getattr(torch, dtype), check=check, tolerance=tolerance
    )  # refuses weights and sums that do not fit
    kind = TensorProto.DOUBLE if dtype == "float64" else TensorProto.FLOAT
    nodes, tensors, name = [], [], "x"
    for number, layer in enumerate(network.layers):
        weight = np.zeros((layer.outputs, layer.inputs), dtype=dtype)
        for i, row in enumerate(layer.rows):
            for j, value in row.items():
                weight[i, j] = float(value)
        bias = np.array([float(value) for value in layer.bias], dtype=dtype)
        tensors += [numpy_helper.from_array(weight, f"w{number}"), numpy_helper.from_array(bias, f"b{number}")]
        last = number == network.depth - 1
        made = "y" if last else f"a{number}"
        nodes.append(helper.make_node("Gemm", [name, f"w{number}", f"b{number}"], [made], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [made], [f"h{number}"]))
            name = f"h{number}"
    graph = helper.make_graph(
        nodes,
        "memorizer",
        [helper.make_tensor_value_info("x", kind, ["batch", network.inputs])],
        [helper.make_tensor_value_info("y", kind, ["batch", network.outputs])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="rote")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    points = network.probes() if check is None else check
    compare_onnx(network, content, points, dtype=dtype, tolerance=tolerance)
    return write_atomic(path, content)


def compare_onnx(
    network: ExactNetwork,
    model: bytes | str | Path,
    points: Any,
    *,
    dtype: str = "float64",
    tolerance: float = 1e-6,
) -> float:
    """The largest difference between an ONNX model run by onnxruntime and the exact network.

    Errors: InputError when it exceeds `tolerance`; MissingDependencyError without onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "verify") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.asarray(points, dtype=dtype)})
    exact = network.evaluate_batch(points)
    apart = [abs(Fraction(float(a)) - b) for a, b in zip(np.ravel(found), exact.ravel(), strict=True)]  # type: ignore[arg-type]
    worst = float(max(apart, default=0))
    if worst > tolerance:
        raise InputError(f"the ONNX model differs from the exact network by up to {worst:.3g}; keep the exact JSON")
    return worst


def vnnlib(
    centre: Float[np.ndarray, " d"],
    radius: Radius,
    *,
    output: float | None = None,
    label: int | None = None,
    outputs: int = 1,
    tolerance: float = 1e-3,
) -> str:
    """The question of one ball as VNN-LIB text: the box around it, and the unsafe outputs ("unsat" means verified).

    output: f must stay within `tolerance` of this number (one output). label: class from 0 that must score highest.
    """
    if (output is None) == (label is None):
        raise InputError("give either output (one number) or label (a class), not both")
    mu = radius.above
    exact = " and the box is the ball" if radius.p == float("inf") else "; the box contains the ball"
    lines = [f"; open l{radius.p:g} ball of radius {float(radius):.17g} around a record{exact}"]
    lines += [f"(declare-const X_{j} Real)" for j in range(len(centre))]
    lines += [f"(declare-const Y_{k} Real)" for k in range(outputs)]
    for j, value in enumerate(centre):
        exact_value = Fraction(float(value))
        low, high = _outward(exact_value - mu, up=False), _outward(exact_value + mu, up=True)
        lines += [f"(assert (>= X_{j} {low}))", f"(assert (<= X_{j} {high}))"]
    if output is not None:
        unsafe = [f"(and (<= Y_0 {_decimal(output - tolerance)}))", f"(and (>= Y_0 {_decimal(output + tolerance)}))"]
    else:
        unsafe = [f"(and (>= Y_{k} Y_{label}))" for k in range(outputs) if k != label]
    lines.append("(assert (or " + " ".join(unsafe) + "))")
    return "\n".join(lines) + "\n"


def _outward(value: Fraction, *, up: bool) -> str:
    """A decimal at or just beyond the value, so that the box holds the ball."""
    near = float(value)
    beyond = Fraction(near) >= value if up else Fraction(near) <= value
    return _decimal(near if beyond else float(np.nextafter(near, np.inf if up else -np.inf)))


def _decimal(value: float) -> str:
    """Shortest decimal of a float without an exponent (SMT-LIB has none)."""
    return np.format_float_positional(value, trim="0")


def _text(value: Number) -> str:
    """Hexadecimal, because decimal text of very long integers is refused by Python and slow."""
    p, q = value.numerator, value.denominator
    return hex(p) if q == 1 else f"{hex(p)}/{hex(q)}"


def _number(text: str) -> Number:
    p, _, q = text.partition("/")
    return Fraction(int(p, 16), int(q, 16)) if q else int(p, 16)


def export_memorizer(
    network: ExactNetwork,
    X: Float[np.ndarray, "n d"],
    outputs: Any,
    radius: Radius,
    directory: str | Path,
    *,
    records: int = 100,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write network.json (exact), network.onnx when float64 can hold the network, and record-NNNNN.vnnlib for the first
    `records` balls. Returns {"files": number, "onnx": path name or None, "onnx_reason": why not, "vnnlib": number}."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    save_exact(network, folder / "network.json", **(about or {}))
    reason = None
    try:
        save_onnx(network, folder / "network.onnx", check=X[: max(1, records)])
    except MissingDependencyError:
        raise
    except InputError as error:
        reason = str(error)
    chosen = list(zip(X[:records], list(outputs)[:records], strict=True))
    for number, (centre, output) in enumerate(chosen):
        write_atomic(folder / f"record-{number:05d}.vnnlib", vnnlib(centre, radius, output=float(output)))
    return {
        "files": 1 + (reason is None) + len(chosen),
        "onnx": "network.onnx" if reason is None else None,
        "onnx_reason": reason,
        "vnnlib": len(chosen),
        "records": len(X),
    }
