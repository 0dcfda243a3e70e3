"""A classifier on disk: a folder with model.safetensors and classifier.json (architecture, classes, how it was made).

A bare .safetensors file of linear layers is read too, as a ReLU network whose sizes are those of its weights.
Nothing here can run code. Knows nothing about: memorization, unlearning.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rote.atomic import write_atomic
from rote.errors import InputError, RunMismatchError
from rote.models.classifiers import ClassifierSpec

if TYPE_CHECKING:
    from torch import nn

FORMAT, VERSION = "rote classifier", 1
WEIGHTS, CARD = "model.safetensors", "classifier.json"


@dataclass(frozen=True)
class SavedClassifier:
    """A loaded classifier. `classes`: the labels by output; `made`: what its file says of its training or treatment."""

    model: nn.Module
    spec: ClassifierSpec
    classes: tuple
    path: Path
    fingerprint: str
    made: Mapping[str, Any] = field(default_factory=dict)


def save_classifier(
    folder: str | Path, model: nn.Module, spec: ClassifierSpec, classes: Sequence[Any], made: Mapping[str, Any]
) -> Path:
    """Write the folder: weights first, then the description with their sha256. Errors: `OSError` of the disk."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    card = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "architecture": spec.architecture,
        "input_shape": list(spec.input_shape),
        "hidden": list(spec.hidden),
        "classes": list(classes),
        "made": dict(made),
    }
    write_atomic(folder / WEIGHTS, content)
    write_atomic(folder / CARD, json.dumps(card, indent=1, allow_nan=False) + "\n")
    return folder


def load_classifier(path: str | Path, *, device: str = "cpu") -> SavedClassifier:
    """Load a folder that `save_classifier` wrote, or a bare .safetensors file of linear layers (classes 0, 1, ...).

    Errors: `InputError` for anything that is not one; `RunMismatchError` when weights and description differ.
    """
    path = Path(path)
    if path.is_file():
        return _bare(path, device)
    card = _card(path)
    try:
        content = (path / WEIGHTS).read_bytes()
    except OSError:
        raise InputError(f"{path / WEIGHTS}: cannot be read; is the folder complete?") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.get("sha256"):
        raise RunMismatchError(f"{path}: {WEIGHTS} does not belong to {CARD} (its sha256 differs)")
    try:
        spec = ClassifierSpec(
            card["architecture"], tuple(card["input_shape"]), len(card["classes"]), tuple(card["hidden"])
        )
    except (KeyError, TypeError):
        raise InputError(f"{path / CARD}: does not describe a classifier; train it again") from None
    model = _filled(spec, _tensors(content, path / WEIGHTS), path)
    return SavedClassifier(model.to(device), spec, tuple(card["classes"]), path, digest, card.get("made", {}))


def _card(folder: Path) -> dict:
    file = folder / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no classifier there; give a folder that `rote classifier train` wrote, or a .safetensors file"
        ) from None
    except (OSError, ValueError):
        raise InputError(f"{file}: cannot be read as JSON") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT or card.get("version") != VERSION:
        raise InputError(f"{file}: is not a classifier's description of version {VERSION}")
    return card


def _tensors(content: bytes, file: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError:
        raise InputError(f"{file}: is not a safetensors file") from None


def _filled(spec: ClassifierSpec, tensors: dict, where: Path) -> nn.Module:
    import torch

    model = spec.build(0)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != given:
        name = next(name for name in {**wanted, **given} if wanted.get(name) != given.get(name))
        raise InputError(f"{where}: weight {name} is {given.get(name)}, the architecture needs {wanted.get(name)}")
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise InputError(f"{where}: has weights that are not finite numbers")
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    return model.eval()


def _bare(path: Path, device: str) -> SavedClassifier:
    """Linear layers in natural order of their names, biases beside them, ReLU between."""
    content = path.read_bytes()
    tensors = _tensors(content, path)

    def natural(name: str) -> list:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    names = sorted((name for name in tensors if name.endswith("weight")), key=natural)
    biases = [f"{name.removesuffix('weight')}bias" for name in names]
    shapes = [tuple(tensors[name].shape) for name in names]
    chained = (
        len(names) >= 2
        and set(tensors) == {*names, *biases}
        and all(len(shape) == 2 for shape in shapes)
        and all(before[0] == after[1] for before, after in pairwise(shapes))
    )
    if not chained:
        raise InputError(
            f"{path}: a bare file must hold linear layers with biases only; for another network use"
            " rote.audit.classifier from Python, which takes any torch module"
        )
    spec = ClassifierSpec("mlp", (shapes[0][1],), shapes[-1][0], tuple(shape[0] for shape in shapes[:-1]))
    own = sorted((name for name in spec.build(0).state_dict() if name.endswith("weight")), key=natural)
    renamed = {}
    for ours, theirs, bias in zip(own, names, biases, strict=True):
        renamed[ours], renamed[f"{ours.removesuffix('weight')}bias"] = tensors[theirs], tensors[bias]
    model = _filled(spec, renamed, path).to(device)
    digest = hashlib.sha256(content).hexdigest()
    return SavedClassifier(model, spec, tuple(range(spec.classes)), path, digest)
