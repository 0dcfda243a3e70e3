"""A VISTA model on disk: a directory with config.json, vocabulary.json and model.safetensors.

The directory is written beside its place and renamed, so it holds a whole model or none. config.json names the model's
version; a model whose weights or names do not give that version is refused.

Knows nothing about: training, stores.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rote.atomic import whole_directory
from rote.errors import InputError
from rote.memory.vista.config import VistaConfig
from rote.memory.vista.model import Vista
from rote.memory.vista.vocabulary import Vocabulary
from rote.runtime import pick_device

FORMAT = "rote-vista-2"


def check_place(path: str | Path) -> Path:
    """The path. Raises InputError where `save_model` would not write: best asked before a long training."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / "config.json").is_file())):
        raise InputError(f"{path}: exists and is no model directory; choose another place")
    return path


def save_model(model: Vista, path: str | Path, *, training: dict[str, Any] | None = None) -> Path:
    """Write the model; an existing model there is replaced, anything else there is left alone and refused."""
    from safetensors.torch import save_file

    path = check_place(path)
    with whole_directory(path) as beside:
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(tensors, beside / "model.safetensors")
        config = {"format": FORMAT, "version": model.version, "model": model.config.to_dict(), "training": training}
        (beside / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        if model.vocabulary is not None:
            content = json.dumps(model.vocabulary.to_dict(), ensure_ascii=False)
            (beside / "vocabulary.json").write_text(content + "\n", encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
    return path


def load_model(path: str | Path, *, device: str = "cpu") -> Vista:
    """Read a model back. Errors: InputError for a missing, damaged or other kind of directory."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such model directory; `rote memory vista train LOG --out {path}` makes one")
    config = _json(path / "config.json")
    if config.get("format") != FORMAT:
        found = config.get("format")
        raise InputError(f"{path}: not a VISTA model of this version of Rote (format {found!r}); train it again")
    names = path / "vocabulary.json"
    vocabulary = Vocabulary.from_dict(_json(names)) if names.is_file() else None
    settings = VistaConfig.from_dict(config["model"])
    if vocabulary is not None and len(vocabulary.items) != settings.items:
        raise InputError(f"{path}: {len(vocabulary.items)} names for {settings.items} items; save the model again")
    model = Vista(settings, vocabulary=vocabulary)
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: model.safetensors does not fit or is damaged ({reason}); save it again") from None
    if model.version != config.get("version"):
        raise InputError(f"{path}: config.json says version {config.get('version')}, the weights are {model.version}")
    return model.to(pick_device(device)).eval()


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())[:80]}); is the model whole?") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: is not a JSON object; is the model whole?")
    return content
