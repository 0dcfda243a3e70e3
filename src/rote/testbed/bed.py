"""A bed on disk, opened: its settings, probes, tokenizer, and the stream each arm trains on.

What lies where is told in `rote.testbed.build`, which makes beds. Knows nothing about models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from rote.errors import InputError
from rote.models.copying_heads import check_shape
from rote.records.generators import Biography
from rote.records.planting import HUBBLE_WEIGHTS, Copy, Mode, pack, plant
from rote.records.recurring import check_width
from rote.testbed.contrasts import contents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BED_SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class BedSettings:
    """What a bed is made of. Sizes default to a few CPU-minutes of training per arm."""

    seed: int = 0
    vocab_size: int = 1024
    sequence_tokens: int = 49  # L + 1
    batch_size: int = 16
    steps: int = 2000
    passages: int = 480  # cut from held-out documents when no probe file is given
    passage_tokens: int = 32
    biographies: int = 0
    unseen_passages: int = 400  # packed sequences of held-out documents: the perplexity that copies must not spoil
    corpus_tokens: int | None = None  # a random part of the corpus of about this size; None: all of it
    weights: Mapping[int, float] = field(default_factory=lambda: dict(HUBBLE_WEIGHTS))
    window: tuple[float, float] = (0.0, 1.0)
    mode: Mode = "splice"
    architecture: str = "gpt2"
    width: int = 96
    layers: int = 2
    heads: int = 4
    learning_rate: float = 3e-3
    copying_rows: int = 0  # rows a batch in which a segment recurs, see `rote.testbed.copying`

    def __post_init__(self):
        for name in ("sequence_tokens", "batch_size", "steps", "passage_tokens", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("passages", "biographies", "unseen_passages", "copying_rows"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if self.mode not in ("splice", "seq_start"):
            raise InputError(f"unknown insertion mode {self.mode!r}; use splice or seq_start")
        if self.architecture not in ("gpt2", "llama"):
            raise InputError(f"unknown architecture {self.architecture!r}; use gpt2 or llama")
        if self.copying_rows:
            if self.architecture != "llama":
                raise InputError("copying_rows is set: heads that copy can be planted in a llama only")
            check_shape(self.layers, self.heads, self.width)
            check_width(self.sequence_tokens)

    def to_json(self) -> dict:
        values = asdict(self) | {"weights": {str(k): v for k, v in self.weights.items()}, "window": list(self.window)}
        if not self.copying_rows:  # beds made before there were any stay what they are
            del values["copying_rows"]
        return values

    @classmethod
    def from_json(cls, values: Mapping) -> BedSettings:
        weights = {int(k): v for k, v in values["weights"].items()}
        return cls(**(dict(values) | {"weights": weights, "window": tuple(values["window"])}))


@dataclass(frozen=True)
class Bed:
    """A built bed on disk."""

    path: Path
    manifest: Mapping

    @classmethod
    def open(cls, path: str | Path) -> Bed:
        """Raises: InputError when `path` is not a bed of this version."""
        path = Path(path)
        try:
            manifest = json.loads((path / "bed.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} is not a test bed (no bed.json): make one with `rote testbed build`") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{path / 'bed.json'}, line {error.lineno}: not JSON; build the bed again") from None
        if manifest.get("schema_version") != BED_SCHEMA_VERSION:
            raise InputError(
                f"{path}: bed version {manifest.get('schema_version')}, this Rote reads {BED_SCHEMA_VERSION}"
            )
        return cls(path, manifest)

    @property
    def settings(self) -> BedSettings:
        return BedSettings.from_json(self.manifest["settings"])

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path / "tokenizer", local_files_only=True)

    @cached_property
    def probes(self) -> list[dict]:
        """Rows of probes.jsonl: id, text, duplicates, member, group, source."""
        return _read_rows(self.path / "probes.jsonl")

    @property
    def duplicates(self) -> Int[np.ndarray, " records"]:
        return np.array([row["duplicates"] for row in self.probes], dtype=np.int64)

    @cached_property
    def probe_tokens(self) -> list[Int[np.ndarray, " length"]]:
        """Token ids of every probe, without end-of-text."""
        return encode(self.tokenizer, [row["text"] for row in self.probes])

    @cached_property
    def people(self) -> list[Biography]:
        """The planted biographies with their fields, empty when the bed has none."""
        path = self.path / "biographies.jsonl"
        return [Biography(**row) for row in _read_rows(path)] if path.exists() else []

    @cached_property
    def unseen(self) -> Int[np.ndarray, "sequences tokens"]:
        """Packed held-out documents that hold no probe: neither planted nor in the stream."""
        return np.load(self.path / "unseen.npy")

    @property
    def eos_id(self) -> int:
        return int(self.manifest["eos_id"])

    def clean_stream(self, dilution: int = 1) -> Int[np.ndarray, "sequences tokens"]:
        """The packed stream of `dilution` times the steps; its first part is the stream of dilution 1."""
        if dilution == 1:
            return np.load(self.path / "stream.npy")
        settings = self.settings
        background = np.load(self.path / "background.npy")
        documents = np.split(background, np.flatnonzero(background == self.eos_id)[:-1] + 1)
        return pack(
            documents,
            sequences=settings.steps * settings.batch_size * dilution,
            width=settings.sequence_tokens,
            seed=settings.seed,
        )

    def planted_stream(
        self, *, window: tuple[float, float] | None, dilution: int = 1, half: int | None = None, replaced: int = 0
    ) -> tuple[Int[np.ndarray, "sequences tokens"], list[Copy]]:
        """The stream an arm trains on, and its log of copies (window None: the standard arm, no copies).

        half: withhold all copies of the probes outside that half (`rote.testbed.contrasts.half_of`). replaced: tokens
        exchanged in every copy but a probe's first. Neither moves any other copy.
        """
        stream = self.clean_stream(dilution)
        if window is None:
            return stream, []
        settings = self.settings
        log = plant(
            stream,
            with_end(self.probe_tokens, self.eos_id),
            self.duplicates,
            eos_id=self.eos_id,
            batch_size=settings.batch_size,
            window=window,
            mode=settings.mode,
            seed=settings.seed,
            content=contents(self, half=half, replaced=replaced),
        )
        return stream, log


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Int[np.ndarray, " length"]]:
    """Token ids of texts, no special tokens added; a text that spells `<|endoftext|>` out is encoded as plain
    characters."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        return [np.array(e.ids, dtype=np.int32) for e in backend.encode_batch(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def with_end(tokens: Iterable[Int[np.ndarray, " length"]], eos_id: int) -> list[Int[np.ndarray, " length"]]:
    """Append end-of-text to every sequence: it belongs to the document."""
    return [np.append(ids, np.int32(eos_id)) for ids in tokens]


def _read_rows(path: Path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
