"""Replace weight matrices of a model in place, put them back, or commit the result to a checkpoint directory.

The originals are kept (on the CPU) until `restore`. A language model's fingerprint changes with its weights, so scores
of the edited model can never be taken for those of the original. A committed directory is an ordinary Hugging Face
checkpoint: `AutoModelForCausalLM.from_pretrained` loads it, and nothing of Rote is needed.

Knows nothing about: why a matrix is replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from rote.atomic import whole_directory
from rote.errors import InputError, RoteError
from rote.internals.curvature.layers import MatrixLayer
from rote.models.causal_lm import CausalLM

ABOUT = "rote_treatment.json"  # what was done, beside the weights; transformers ignores it


class MatrixEdit:
    """The edits made to one model, in order. As a context manager it restores at the end, unless `keep` was called."""

    def __init__(self, model: CausalLM | nn.Module):
        self.model = model
        self._originals: dict[str, tuple[MatrixLayer, torch.Tensor]] = {}
        self._fingerprint = model.fingerprint if isinstance(model, CausalLM) else None
        self._kept = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that were replaced and not restored."""
        return tuple(self._originals)

    def replace(self, layer: MatrixLayer, W: Float[torch.Tensor, "out in"]) -> None:
        """Write W (in y = W x + b's orientation, any float precision) into the layer, in the weight's own precision.

        Raises RoteError when W is not finite; everything replaced so far is then restored first.
        """
        if W.shape != layer.weight.shape:
            raise InputError(
                f"layer {layer.name}: the new matrix is {tuple(W.shape)}, the weight is {layer.shape} (out, in)"
            )
        if not bool(torch.isfinite(W).all()):
            self.restore()
            raise RoteError(f"layer {layer.name}: the edited weight is not finite; the model was put back as it was")
        if layer.name not in self._originals:
            self._originals[layer.name] = (layer, layer.stored.detach().to("cpu", copy=True))
        with torch.no_grad():
            layer.stored.copy_(W.T if layer.transposed else W)
        if isinstance(self.model, CausalLM):
            digest = hashlib.sha256(f"{self.model.fingerprint} {layer.name}".encode())
            digest.update(layer.stored.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            self.model.fingerprint = digest.hexdigest()

    def restore(self) -> None:
        """Put every weight back, bit for bit. Doing it again does nothing."""
        with torch.no_grad():
            for layer, original in self._originals.values():
                layer.stored.copy_(original)
        self._originals.clear()
        if isinstance(self.model, CausalLM) and self._fingerprint is not None:
            self.model.fingerprint = self._fingerprint

    def keep(self) -> None:
        """Leave the edited weights in place when the context ends; `restore` stays possible."""
        self._kept = True

    def __enter__(self) -> MatrixEdit:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._kept or exception[0] is not None:
            self.restore()

    def commit(self, directory: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Save the model as it now is: weights, configuration, tokenizer, and `about` as rote_treatment.json.

        The directory appears when it is complete. Raises InputError when it exists and is not empty, or when the model
        is no Hugging Face model.
        """
        target = Path(directory)
        hf = self.model.hf if isinstance(self.model, CausalLM) else self.model
        if not hasattr(hf, "save_pretrained"):
            raise InputError("only a Hugging Face model can be committed to a checkpoint directory")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target}: exists and is not empty; choose a new directory for the treated checkpoint")
        with whole_directory(target) as part:
            hf.save_pretrained(part)  # type: ignore[operator]
            if isinstance(self.model, CausalLM) and self.model.tokenizer is not None:
                self.model.tokenizer.save_pretrained(part)
            text = json.dumps({"layers": list(self.layers), **(about or {})}, indent=2, allow_nan=False)
            (part / ABOUT).write_text(text + "\n", encoding="utf-8")
        return target
