"""K-FAC factors as values: what was measured, on which weights, and their one file on disk.

The file is safetensors (never a pickle); its JSON header says which model's weights, labels and positions the factors
belong to. Factors of another checkpoint are refused where they are used.

Knows nothing about: how factors are collected, spectra, edits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import nn

from rote.errors import InputError

FORMAT = "rote curvature factors 1"
FILE = "factors.safetensors"
FEW_ROWS = 10  # fewer rows than this times the larger side: the spectrum's lower part is mostly chance


@dataclass(frozen=True)
class LayerFactors:
    """A = (1/N) sum a a^T over inputs and G = (1/N) sum g g^T over output gradients, N = `rows` positions, float32."""

    A: Float[torch.Tensor, "in in"]
    G: Float[torch.Tensor, "out out"]
    rows: int


@dataclass(frozen=True)
class FactorSet:
    """Factors of several layers of one model. `fingerprint` names the weights they were measured on."""

    layers: Mapping[str, LayerFactors]
    fingerprint: str
    labels: str
    seed: int
    positions: str

    def warnings(self) -> list[str]:
        """What a reader of the edit must know: layers measured on too few positions."""
        found = []
        for name, layer in self.layers.items():
            needed = FEW_ROWS * max(len(layer.A), len(layer.G))
            if layer.rows < needed:
                found.append(
                    f"{name}: factors from {layer.rows:,} positions, fewer than {needed:,} (10 times the larger side); "
                    "directions the text never used count as dispensable"
                )
        return found

    def save(self, path: str | Path) -> Path:
        """Write the factors to `path` (a directory, or a file named *.safetensors); whole or not at all."""
        from safetensors.torch import save_file

        file = _file(Path(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, torch.Tensor] = {}
        stored: dict[int, str] = {}  # maps that read the same input share one A, in memory and in the file
        about = {}
        for number, (name, layer) in enumerate(self.layers.items()):
            key = stored.setdefault(id(layer.A), f"A.{number}")
            tensors[key] = layer.A.detach().cpu().contiguous()
            tensors[f"G.{number}"] = layer.G.detach().cpu().contiguous()
            about[name] = {"A": key, "G": f"G.{number}", "rows": layer.rows}
        header = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "labels": self.labels,
            "seed": self.seed,
            "positions": self.positions,
            "layers": about,
        }
        part = file.with_name(f".{file.name}.part")
        try:
            save_file(tensors, part, metadata={"rote": json.dumps(header)})
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
        return file

    @classmethod
    def load(cls, path: str | Path) -> FactorSet:
        """Read what `save` wrote. Raises InputError for a missing, damaged or foreign file."""
        from safetensors import SafetensorError, safe_open

        file = _file(Path(path))
        if not file.is_file():
            raise InputError(f"{file}: no such file of curvature factors; collect them first")
        try:
            with safe_open(file, framework="pt") as content:
                header = json.loads((content.metadata() or {}).get("rote", "null"))
                if not isinstance(header, dict) or header.get("format") != FORMAT:
                    raise InputError(f"{file}: holds no curvature factors of this version; collect them again")
                keys = {entry[side] for entry in header["layers"].values() for side in ("A", "G")}
                tensors = {key: content.get_tensor(key) for key in keys}
                layers = {
                    name: LayerFactors(tensors[entry["A"]], tensors[entry["G"]], int(entry["rows"]))
                    for name, entry in header["layers"].items()
                }
                found = cls(
                    layers=layers,
                    fingerprint=str(header["fingerprint"]),
                    labels=str(header["labels"]),
                    seed=int(header["seed"]),
                    positions=str(header["positions"]),
                )
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{file}: damaged curvature factors ({type(error).__name__}); collect them again"
            ) from None
        for name, layer in layers.items():
            for side, matrix in (("A", layer.A), ("G", layer.G)):
                if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not bool(torch.isfinite(matrix).all()):
                    raise InputError(f"{file}: factor {side} of layer {name} is not a finite square matrix")
        return found

    def refuse_unless_of(self, fingerprint: str) -> None:
        """Raise InputError when these factors were measured on other weights."""
        if self.fingerprint != fingerprint:
            raise InputError(
                f"the curvature factors belong to another checkpoint (measured on {self.fingerprint[:12]}, this model"
                f" is {fingerprint[:12]}); collect factors on this model"
            )


def mixed(first: FactorSet, second: FactorSet, *, share: float) -> FactorSet:
    """Protect what `second` was measured on: (1 - s) A1 / tr A1 + s A2 / tr A2, rescaled to tr A1; G alike.

    A mixture of the factors, not of their Kronecker products; an option of the card's section 6 against the loss of a
    domain (arithmetic goes first). `share` s in [0, 1].
    Raises InputError for factors of different models or layers.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share is {share}: it must lie in [0, 1]")
    first.refuse_unless_of(second.fingerprint)
    if set(first.layers) != set(second.layers):
        raise InputError("the two sets of curvature factors name different layers; collect both with the same layers")

    def blend(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a * (1 - share) + b.to(a) * (share * a.trace() / b.trace().to(a))

    layers = {
        name: LayerFactors(
            blend(one.A, second.layers[name].A),
            blend(one.G, second.layers[name].G),
            one.rows + second.layers[name].rows,
        )
        for name, one in first.layers.items()
    }
    return replace(first, layers=layers)


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 over every tensor of a module: name, shape, precision and bytes, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _file(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path / FILE
