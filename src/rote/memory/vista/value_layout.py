"""A stored summary, byte for byte: a header that says what it is, the quantised vectors, and what goes with them.

    header | scales and rows | raw events (item, action, time) | layer states (float32) ; crc32 over all of it

The header holds the model's version, so a value can never be read as another model's; the number of events and the time
of the last one, so its age is known; and the moment it was written.

Knows nothing about: where values are kept, models.
"""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rote.errors import InputError
from rote.memory.vista.quantisation import DTYPES, dequantise, payload_size, quantise

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MAGIC = b"RVS1"
# magic, crc, dtype, layers, heads, -, K, d, raw events, head width, events, last event, written, version
HEADER = struct.Struct("<4sI4B4IQdd16s")
_RAW = np.dtype([("item", "<i4"), ("action", "<i4"), ("time", "<f8")])


class DamagedValueError(InputError):
    """A stored value that fails its checksum or its layout."""


def no_raw() -> np.ndarray:
    return np.empty(0, _RAW)


def raw_events(item: Int[np.ndarray, " r"], action: Int[np.ndarray, " r"], time: Float[np.ndarray, " r"]) -> np.ndarray:
    """The last raw events as one structured array, oldest first."""
    found = np.empty(len(item), _RAW)
    found["item"], found["action"], found["time"] = item, action, time
    return found


@dataclass(frozen=True)
class Summary:
    """What is kept of one user.

    vectors: z_1 .. z_K. version: the model's. events: M. last_time: of the last event, seconds since 1970 (nan when
    there is none). raw: the last R events. states: every layer's Z, for incremental updates. written: when.
    """

    vectors: Float[np.ndarray, "k d"]
    version: str
    events: int
    last_time: float
    raw: np.ndarray = field(default_factory=no_raw)
    states: Float[np.ndarray, "layers heads d d"] | None = None
    written: float = field(default_factory=time.time)


def encode(summary: Summary, dtype: str) -> bytes:
    """The value's bytes."""
    tokens, dim = summary.vectors.shape
    states = summary.states
    layers, heads, width = (0, 0, 0) if states is None else states.shape[:3]
    version = summary.version.encode("ascii")
    if len(version) != 16:
        raise InputError(f"a model's version has 16 characters, not {len(version)}")
    body = quantise(summary.vectors, dtype) + summary.raw.tobytes()
    if states is not None:
        body += np.ascontiguousarray(states, "<f4").tobytes()
    rest = HEADER.pack(MAGIC, 0, DTYPES.index(dtype), layers, heads, 0, tokens, dim, len(summary.raw), width,
                       summary.events, summary.last_time, summary.written, version)[8:]  # fmt: skip
    return MAGIC + struct.pack("<I", zlib.crc32(rest + body)) + rest + body


def decode(value: bytes | memoryview, *, version: str | None = None, place: str = "the store") -> Summary:
    """A value read back.

    Errors: DamagedValueError for bytes that are no summary or fail their checksum; InputError when `version` is given
    and the value was written by another model.
    """
    value = bytes(value)
    if len(value) < HEADER.size or value[:4] != MAGIC:
        raise DamagedValueError(
            f"{place}: a value of {len(value)} bytes is no VISTA summary; summarise this user again"
        )
    _, crc, kind, layers, heads, _, tokens, dim, raws, width, events, last, written, name = HEADER.unpack_from(value)
    if zlib.crc32(memoryview(value)[8:]) != crc:
        raise DamagedValueError(f"{place}: a summary is damaged (checksum); summarise this user again")
    found = name.decode("ascii")
    if version is not None and found != version:
        raise InputError(f"{place}: a summary of model version {found} cannot be read by {version}; summarise again")
    size = payload_size(tokens, dim, DTYPES[kind])
    cut, end = HEADER.size + size, HEADER.size + size + raws * _RAW.itemsize
    if len(value) != end + 4 * layers * heads * width * width:
        raise DamagedValueError(f"{place}: a summary has {len(value)} bytes, its header says otherwise")
    states = np.frombuffer(value[end:], "<f4").reshape(layers, heads, width, width) if layers else None
    return Summary(
        vectors=dequantise(value[HEADER.size : cut], tokens, dim, DTYPES[kind]), version=found, events=events,
        last_time=last, raw=np.frombuffer(value[cut:end], _RAW), states=states, written=written,
    )  # fmt: skip
