"""A fitted steering as files: `steering.safetensors` (probe and vector) and `steering.json` (everything else).

    steering.safetensors    probe.w [layers, d], probe.b [layers], vector [d], float32
    steering.json           format, the model's fingerprints, block, settings, held-out figures

Steering is fitted to one model's residual stream and means nothing in another: a folder remembers the fingerprint of
the model it was fitted on, and is refused for any other. Precision does not matter: the weights are compared as
bfloat16 numbers, so that what was fitted in float32 on a CPU steers the same checkpoint in bfloat16 on an accelerator.
Nothing is ever unpickled. Knows nothing about: fitting.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.atomic import write_atomic
from rote.controls.decoding.blocks import hf_of
from rote.controls.decoding.mode_probe import ModeProbe, ProbeFigures
from rote.controls.decoding.steering import ModeSteering, Starts, SteeringSettings, mode_steering
from rote.controls.decoding.steering_vector import SteeringVector
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

FORMAT = "rote mode steering 2"  # 1 told models apart by precision, too
USE = (
    "the weights are as they were: load the model itself, then `with load_steering(FOLDER, model).on(model):"
    " model.generate(...)`, with load_steering from rote.controls.decoding"
)
TENSORS, ABOUT = "steering.safetensors", "steering.json"


@dataclass(frozen=True)
class SavedSteering:
    """What a folder holds: the probe, the vector, and the settings to steer with."""

    probe: ModeProbe
    vector: SteeringVector
    settings: SteeringSettings
    details: dict[str, Any]

    def on(self, model: CausalLM | Any, *, starts: Starts | None = None, **changes: Any) -> ModeSteering:
        """The context manager for a model, with the saved settings (`changes` win)."""
        return mode_steering(model, self.probe, self.vector, starts=starts, **{**self.settings.as_dict(), **changes})


def save_steering(
    folder: str | Path,
    model: CausalLM | Any,
    probe: ModeProbe,
    vector: SteeringVector,
    settings: SteeringSettings | None = None,
    *,
    details: dict[str, Any] | None = None,
) -> Path:
    """Write probe, vector and settings for `model` into `folder`; each file is there whole or not at all."""
    from safetensors.numpy import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "format": FORMAT,
        "use": USE,
        "model": _fingerprints(model),
        "vector": vector.as_dict(),
        "settings": (settings or SteeringSettings()).as_dict(),
        "probe": {
            "layers": list(probe.layers),
            "figures": [asdict(figure) for figure in probe.figures],
            "baselines": {name: asdict(figure) for name, figure in (probe.baselines or {}).items()},
            "n_memorized": probe.n_memorized,
            "n_general": probe.n_general,
            "prior": probe.prior,
        },
        "details": details or {},
    }
    tensors = {"probe.w": probe.w, "probe.b": probe.b, "vector": vector.v}
    tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    text = json.dumps(about, indent=1, sort_keys=True, allow_nan=False, default=str) + "\n"
    write_atomic(folder / TENSORS, save(tensors))
    write_atomic(folder / ABOUT, text)
    return folder


def load_steering(folder: str | Path, model: CausalLM | Any) -> SavedSteering:
    """Read a folder that `save_steering` wrote, for the model it was fitted on.

    Raises: InputError for a folder that is not one, damaged files, or another model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    if not (folder / ABOUT).is_file() or not (folder / TENSORS).is_file():
        raise InputError(f"{folder}: holds no steering ({ABOUT} and {TENSORS}); `rote treat steer` writes one")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        tensors = load((folder / TENSORS).read_bytes())
        if about["format"] != FORMAT:
            raise InputError(f"{folder / ABOUT}: format {about['format']!r} is unknown; this version reads {FORMAT!r}")
        kept = about["probe"]
        probe = ModeProbe(
            tuple(int(layer) for layer in kept["layers"]),
            tensors["probe.w"],
            tensors["probe.b"],
            tuple(ProbeFigures(**figure) for figure in kept["figures"]),
            {name: ProbeFigures(**figure) for name, figure in kept["baselines"].items()},
            kept["n_memorized"],
            kept["n_general"],
            kept["prior"],
        )
        vector = SteeringVector(v=tensors["vector"], **about["vector"])
        settings = SteeringSettings(**about["settings"])
        saved = about["model"]
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise InputError(f"{folder}: its steering files are damaged ({type(error).__name__}); fit it again") from None
    if not (np.isfinite(vector.v).all() and np.isfinite(probe.w).all() and np.isfinite(probe.b).all()):
        raise InputError(f"{folder}: its steering files hold numbers that are not finite; fit it again")
    _refuse_another_model(folder, saved, model)
    return SavedSteering(probe, vector, settings, dict(about.get("details") or {}))


def _fingerprints(model: CausalLM | Any) -> dict[str, str | None]:
    """The adapter's fingerprint (files and tokenizer) where there is one, and that of the weights in memory."""
    return {"fingerprint": getattr(model, "fingerprint", None), "weights": rounded_weights_fingerprint(hf_of(model))}


def rounded_weights_fingerprint(hf: Any) -> str:
    """sha256 over every tensor of a model, rounded to bfloat16: name, shape and bytes, in name order. A checkpoint has
    the same one whether it is loaded in bfloat16 or float32."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(hf.state_dict().items()):
        rounded = tensor.detach().to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(rounded.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _refuse_another_model(folder: Path, saved: dict[str, str | None], model: CausalLM | Any) -> None:
    name = getattr(model, "fingerprint", None)
    if name is not None and name == saved.get("fingerprint"):
        return  # the same files, in whatever precision they were loaded
    if rounded_weights_fingerprint(hf_of(model)) != saved.get("weights"):
        raise InputError(
            f"{folder}: was fitted on another model (its weights differ); a direction of one model means nothing in"
            " another, fit the steering again on this one"
        )
