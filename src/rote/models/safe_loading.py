"""Look at a checkpoint directory before anything is loaded from it: is it complete, is it safe, which one is it?

Only safetensors are ever loaded and remote code never runs. A half-downloaded shard, a pickle-only checkpoint and a
tokenizer without a model are told apart here, each with one line that says what to do.

Knows nothing about: PyTorch, transformers, records. Of Rote's own architectures it knows the names only.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rote.errors import InputError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Model types that Rote brings itself: where they live. Importing that module makes them known to the Auto classes.
OWN_MODELS = {"rote_tnt": "rote.memory.tnt.modeling"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Checkpoint:
    """A local checkpoint that passed the checks. `weights` are its safetensors shards, in name order."""

    path: Path
    config: dict
    weights: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        return (self.config.get("architectures") or [self.config.get("model_type", "unknown")])[0]

    @property
    def fingerprint(self) -> str:
        """sha256 over the weights' bytes and the configuration: another model can never be taken for this one."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for shard in self.weights:
            with shard.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()


def inspect_checkpoint(path: str | Path) -> Checkpoint:
    """Check a Hugging Face checkpoint directory without loading it.

    Raises InputError: no such directory; no or broken config.json; weights missing, incomplete (a shard that the index
    names is absent, or a file is shorter than its own header says) or stored as pickles only.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such model directory; give a directory that save_pretrained wrote")
    if not path.is_dir():
        raise InputError(
            f"{path}: a model is a directory (config.json, *.safetensors, tokenizer files), this is a file"
        )
    config = _read_json(path / "config.json", what="config.json")
    index_file = path / "model.safetensors.index.json"
    if index_file.exists():
        weight_map = _read_json(index_file, what="the weight index").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index_file}: has no 'weight_map'; download or save the checkpoint again")
        # The names come from a file nobody vouches for: a shard must lie in the checkpoint's own directory.
        names = sorted(set(map(str, weight_map.values())))
        if any(Path(name).name != name for name in names):
            raise InputError(f"{index_file}: names a shard outside the checkpoint's directory; refused")
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise InputError(
                f"{path}: half-downloaded checkpoint, {len(missing)} of {len(names)} shards are missing"
                f" (first: {missing[0]}); download it again"
            )
        weights = tuple(path / name for name in names)
    else:
        weights = tuple(sorted(path.glob("*.safetensors")))
        if not weights:
            pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
            if pickles:
                raise InputError(
                    f"{path}: only pickled weights ({pickles[0]}); a pickle can run code, so Rote loads"
                    f" safetensors only."
                    " Convert on a machine you trust: load it there and save_pretrained(...)"
                )
            raise InputError(f"{path}: no *.safetensors weights; is the download complete?")
    for shard in weights:
        _check_safetensors(shard)
    if home := OWN_MODELS.get(str(config.get("model_type"))):
        import_module(home)
    return Checkpoint(path=path, config=config, weights=weights)


def has_tokenizer(path: Path) -> bool:
    return any((path / name).is_file() for name in TOKENIZER_FILES)


def _read_json(file: Path, *, what: str) -> dict:
    if not file.is_file():
        raise InputError(f"{file.parent}: {what} is missing; this is not a complete checkpoint")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: {what} cannot be read ({error}); download or save the checkpoint again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: {what} is not a JSON object; download or save the checkpoint again")
    return content


def _check_safetensors(file: Path) -> None:
    """A safetensors file is 8 bytes of header length, the JSON header, then exactly the bytes the header promises."""
    size = file.stat().st_size
    damaged = InputError(f"{file}: damaged or half-downloaded weights ({size:,} bytes); download it again")
    with file.open("rb") as stream:
        first = stream.read(8)
        if len(first) < 8:
            raise damaged
        (header_length,) = struct.unpack("<Q", first)
        if header_length > min(size, 1 << 28):
            raise damaged
        try:
            header = json.loads(stream.read(header_length))
            promised = max(
                (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise damaged from None
    if 8 + header_length + promised > size:
        raise damaged
