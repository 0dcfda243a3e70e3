"""A case-based model on disk: a directory of safetensors with one JSON that says what belongs together.

    model.safetensors    detector, trunk, prototypes
    cases.safetensors    signals, codes, channel weights, votes of every case
    case_base.json       settings, ids, patients, calibration; sha256 of both files; fingerprint of the model

The JSON is written last and names both files' sha256, so files of two models can never be taken for one. Nothing here
can run code. The signals and patient names of the training set are in these files: keep them as you keep the EEGs.

Knows nothing about: training, search.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rote.atomic import write_atomic
from rote.errors import InputError, RunMismatchError
from rote.memory.cases.backbone import ChannelTrunk, SpikeNet
from rote.memory.cases.case_base import CaseBase
from rote.memory.cases.estimator import ProtoKNN
from rote.memory.cases.model import ENCODER_VERSION, CaseModel, digests
from rote.memory.cases.montage import Montage
from rote.memory.cases.preprocessing import SignalSettings
from rote.memory.cases.prototypes import Prototypes
from rote.memory.cases.similarity import Codes
from rote.memory.cases.statistics import Scaling
from rote.memory.cases.training import TrainingSettings

FORMAT, VERSION = "rote case base", 1
MODEL, CASES, META = "model.safetensors", "cases.safetensors", "case_base.json"
_CODES = ("latent", "range", "var", "fft")


def check_directory(directory: str | Path) -> Path:
    """The directory. Raises InputError where `save_case_base` would not write: best asked before a long fit."""
    directory = Path(directory)
    if directory.exists() and not (directory / META).exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory}: exists and is no case base; choose another directory")
    return directory


def save_case_base(estimator: ProtoKNN, directory: str | Path) -> Path:
    """Write a fitted estimator. An existing case base there is replaced; another kind of directory is refused."""
    from safetensors.torch import save
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(estimator, "cases_")
    directory = check_directory(directory)
    model, base, prototypes = estimator.model_, estimator.cases_, estimator.prototypes_
    nets = {"detector": model.detector, "trunk": model.trunk} | ({"prototypes": prototypes} if prototypes else {})
    weights = save({
        f"{part}.{name}": value.contiguous() for part, net in nets.items() for name, value in net.state_dict().items()
    })  # fmt: skip
    tensors = {name: getattr(base.codes, name).contiguous() for name in _CODES}
    tensors |= {
        "signals": torch.from_numpy(np.ascontiguousarray(base.signals)), "weights": base.weights.contiguous(),
        "votes": torch.from_numpy(base.votes),
    }  # fmt: skip
    cases = save(tensors)
    calibration = estimator.calibration_
    meta: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "encoder_version": ENCODER_VERSION,
        "fingerprint": model.fingerprint,
        "sha256": {MODEL: hashlib.sha256(weights).hexdigest(), CASES: hashlib.sha256(cases).hexdigest()},
        "montage": asdict(model.montage),
        "signal": model.signal.to_dict(),
        "scaling": model.scaling.to_dict(),
        "network": {"channels": model.detector.channels, "samples": model.detector.samples,
                    "width": model.detector.width},
        "training": (estimator.training or TrainingSettings.small()).to_dict(),
        "k": estimator.k,
        "weights": model.weights_mode,
        "importance": [float(a) for a in estimator.importance_],
        "search": estimator.search,
        "candidates": estimator.candidates,
        "random_state": estimator.random_state,
        "raters": base.raters,
        "ids": base.ids.tolist(),
        "groups": base.groups.tolist(),
        "validation_groups": estimator.validation_groups_.tolist(),
        "calibration": None if calibration is None else [axis.tolist() for axis in calibration],
        "prototype_classes": prototypes.classes.tolist() if prototypes else None,
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / META).unlink(missing_ok=True)  # a crash below leaves no case base rather than a mixed one
    write_atomic(directory / MODEL, weights)
    write_atomic(directory / CASES, cases)
    write_atomic(directory / META, json.dumps(meta, indent=1, allow_nan=False) + "\n")
    return directory


def load_case_base(directory: str | Path) -> ProtoKNN:
    """A fitted estimator from disk.

    Raises InputError for a directory that is no case base or of another format version, RunMismatchError when its files
    do not belong together or its codes were made by another model or encoder version.
    """
    from safetensors.torch import load

    directory = Path(directory)
    meta = _read_meta(directory)
    contents = {}
    for name in (MODEL, CASES):
        try:
            content = (directory / name).read_bytes()
        except OSError as error:
            raise InputError(f"{directory / name}: cannot be read ({error.strerror}); fit again") from None
        if hashlib.sha256(content).hexdigest() != meta["sha256"].get(name):
            raise RunMismatchError(
                f"{directory / name}: does not belong to {META} beside it (sha256 differs: another model version, or a"
                " damaged file); fit again, nothing was mixed"
            )
        contents[name] = load(content)
    try:
        estimator = _rebuild(meta, contents[MODEL], contents[CASES])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{directory / META}: is damaged ({type(error).__name__}); fit again") from None
    if estimator.model_.fingerprint != meta["fingerprint"]:
        raise RunMismatchError(
            f"{directory}: its codes were made by another model (fingerprint {str(meta['fingerprint'])[:12]}, these"
            f" weights and settings have {estimator.model_.fingerprint[:12]}); fit again, nothing was mixed"
        )
    return estimator


def _read_meta(directory: Path) -> dict[str, Any]:
    file = directory / META
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{directory}: holds no {META}; make a case base with `rote memory cases fit`") from None
    except (OSError, ValueError):
        raise InputError(f"{file}: cannot be read as JSON") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{file}: does not describe a case base; make one with `rote memory cases fit`")
    if meta.get("version") != VERSION:
        raise InputError(f"{file}: format version {meta.get('version')}, this Rote reads {VERSION}; fit again")
    if meta.get("encoder_version") != ENCODER_VERSION:
        raise RunMismatchError(
            f"{file}: its codes were written by encoder version {meta.get('encoder_version')}, this Rote computes"
            f" version {ENCODER_VERSION}: they cannot be compared; fit again"
        )
    return meta


def _rebuild(meta: dict[str, Any], weights: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> ProtoKNN:
    shape = meta["montage"]
    montage = Montage(
        shape["name"], tuple(shape["electrodes"]), tuple(tuple(pair) for pair in shape["pairs"]), shape["average"],
        tuple(tuple(place) for place in shape["places"]),
    )  # fmt: skip
    signal, training = SignalSettings(**meta["signal"]), TrainingSettings.from_dict(meta["training"])
    network, importance = meta["network"], tuple(meta["importance"])
    detector = SpikeNet(network["channels"], network["samples"], width=network["width"], dropout=training.dropout)
    trunk = ChannelTrunk(network["channels"], network["samples"], width=network["width"])
    part = lambda name: {k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{name}.")}  # noqa: E731
    detector.load_state_dict(part("detector"))
    trunk.load_state_dict(part("trunk"))
    estimator = ProtoKNN(
        montage=montage, k=meta["k"], weights=meta["weights"], importance=importance, signal=signal, training=training,
        prototype_phase=meta["prototype_classes"] is not None, search=meta["search"], candidates=meta["candidates"],
        calibrate=meta["calibration"] is not None, random_state=meta["random_state"],
    )  # fmt: skip
    estimator.model_ = CaseModel(
        montage, signal, Scaling(**meta["scaling"]), detector.eval(), trunk.eval(), meta["weights"]
    )
    estimator.importance_ = importance
    estimator.prototypes_ = None
    if meta["prototype_classes"] is not None:
        saved = part("prototypes")
        start = Codes(*(saved[name] for name in _CODES))
        estimator.prototypes_ = Prototypes(start, saved["classes"], meta["raters"], importance, 0.0)
        estimator.prototypes_.load_state_dict(saved)
        estimator.prototypes_.eval()
    signals = tensors["signals"].numpy()
    base = CaseBase(
        np.array(meta["ids"]), np.array(meta["groups"]), tensors["votes"].numpy(), meta["raters"], signals,
        Codes(*(tensors[name] for name in _CODES)), tensors["weights"], tuple(digests(signals)),
    )  # fmt: skip
    if not len(base.ids) == len(base.groups) == len(base.votes) == len(signals):
        raise ValueError("lengths differ")
    estimator.cases_ = base
    estimator.validation_groups_ = np.array(meta["validation_groups"], dtype=str)
    estimator.classes_ = np.array([0, 1])
    calibration = meta["calibration"]
    estimator.calibration_ = None if calibration is None else (np.array(calibration[0]), np.array(calibration[1]))
    return estimator
