"""A probe on disk: NAME.safetensors with its vectors, NAME.json with everything else.

The JSON holds site, layer, fingerprints of the model, the control and the labels, how labels were made, and the
held-out figures; and the sha256 of the tensors, so that the two files cannot be mixed up. Nothing here can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from rote.atomic import write_atomic
from rote.errors import InputError, RunMismatchError
from rote.internals.neurons.cross_validation import Judged, LinearProbe
from rote.internals.neurons.probes import Probe, ProbeReport
from rote.internals.neurons.sites import SITES, Place
from rote.measures.statistics import Estimate

FORMAT = "rote probe"
VERSION = 1
_VECTORS = ("w", "mean", "sd", "mean1", "mean0")


def save_probe(probe: Probe, path: str | Path, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Write `path` (.safetensors) and the JSON beside it; `extra` is kept in the JSON as it is."""
    from safetensors.numpy import save

    path = tensors_path(path)
    linear = probe.linear
    tensors = {
        "w": linear.w, "b": np.array([linear.b]), "mean": linear.mean, "sd": linear.sd,
        "mean1": probe.mean1, "mean0": probe.mean0,
    }  # fmt: skip
    content = save({name: np.ascontiguousarray(value, np.float64) for name, value in tensors.items()})
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "site": probe.site,
        "layer": probe.layer,
        "dimensions": len(linear.w),
        "model": probe.model,
        "control": probe.control,
        "labels": probe.labels,
        "rule": dict(probe.rule),
        "report": probe.report.as_dict(),
        "by_layer": list(probe.by_layer),
        "extra": dict(extra or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    write_atomic(path.with_suffix(".json"), json.dumps(_plain(meta), indent=1, allow_nan=False) + "\n")
    return path


def load_probe(path: str | Path) -> Probe:
    """Read a probe. Raises InputError for files that are not one, RunMismatchError when the two do not belong
    together."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = tensors_path(path)
    meta = read_meta(path)
    try:
        content = path.read_bytes()
        tensors = load(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except SafetensorError:
        raise InputError(f"{path}: is not a safetensors file") from None
    if hashlib.sha256(content).hexdigest() != meta["sha256"]:
        raise RunMismatchError(
            f"{path}: does not belong to the JSON beside it (its sha256 differs); fit the probe again"
        )
    size = meta["dimensions"]
    if any(name not in tensors or tensors[name].shape != (size,) for name in _VECTORS) or meta["site"] not in SITES:
        raise InputError(f"{path}: does not hold a probe of {size} coordinates; fit the probe again")
    linear = LinearProbe(tensors["w"], float(tensors["b"][0]), tensors["mean"], tensors["sd"])
    return Probe(
        Place(meta["site"], int(meta["layer"])), linear, tensors["mean1"], tensors["mean0"], _report(meta["report"]),
        tuple(meta["by_layer"]), meta["model"], meta["control"], meta["labels"], meta["rule"],
    )  # fmt: skip


def read_meta(path: str | Path) -> dict[str, Any]:
    """The JSON of a probe. Raises InputError when it is not one, or of another version."""
    file = tensors_path(path).with_suffix(".json")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: does not exist; a probe is a .safetensors file with its .json beside it") from None
    except (OSError, ValueError):
        raise InputError(f"{file}: cannot be read as JSON") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{file}: is not a probe's description; make one with `rote probe fit`")
    if meta.get("version") != VERSION:
        raise InputError(f"{file}: probe version {meta.get('version')}, this Rote reads {VERSION}; fit the probe again")
    return meta


def tensors_path(path: str | Path) -> Path:
    """The path with the suffix .safetensors: given without one it is added, another one is refused."""
    path = Path(path)
    if path.suffix == "":
        return path.with_suffix(".safetensors")
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a probe is a .safetensors file")
    return path


def _report(meta: Mapping[str, Any]) -> ProbeReport:
    parts = {name: _judged(meta[name]) for name in ("probe", "control", "outputs", "logp", "combined")}
    gap = None if meta["gap"] is None else _estimate(meta["gap"])
    return ProbeReport(
        **parts, gap=gap, against=tuple(meta["against"]), counts=dict(meta["counts"]), notes=tuple(meta["notes"])
    )


def _judged(meta: Mapping[str, Any] | None) -> Any:
    if meta is None:
        return None
    values: dict[str, Any] = {field.name: meta[field.name] for field in fields(Judged)}
    values["auroc"] = _estimate(meta["auroc"])
    return Judged(**values)


def _estimate(meta: Mapping[str, Any]) -> Estimate:
    number = {name: float("nan") if meta[name] is None else meta[name] for name in ("value", "low", "high")}
    return Estimate(**number, n=meta["n"], interval=meta["interval"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
