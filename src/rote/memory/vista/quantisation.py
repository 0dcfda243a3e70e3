"""Summaries in fewer bytes: float32, float16, int8 with one scale a token, int4 with one scale per 32 numbers.

    q = round(x / s),   s = the float16 at or above max|x| / 127 (int8) or / 7 (int4);      |x - s q| <= s / 2

The scale is rounded up, so nothing is clipped and the bound holds for the scale as stored. The paper quantises at
export and dequantises at read (arXiv 2510.22049, section 3); the bit width is not stated there.

Knows nothing about: stores, headers, models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rote.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

DTYPES = ("float32", "float16", "int8", "int4")
GROUP = 32  # numbers that share an int4 scale
_LEVELS = {"int8": 127, "int4": 7}


def payload_size(tokens: int, dim: int, dtype: str) -> int:
    """Bytes of a quantised summary, scales included, header not."""
    if dtype in ("float32", "float16"):
        return tokens * dim * (4 if dtype == "float32" else 2)
    if dtype == "int8":
        return tokens * dim + 2 * tokens
    groups = -(-dim // GROUP)
    return tokens * groups * (GROUP // 2 + 2)


def quantise(x: Float[np.ndarray, "k d"], dtype: str) -> bytes:
    """The payload: scales first, then rows. Errors: InputError for an unknown dtype, or numbers too large or not
    finite."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
    x = np.ascontiguousarray(x, dtype=np.float32)
    largest = float(np.abs(x).max(initial=0))
    if not np.isfinite(largest) or (dtype != "float32" and largest > 6e4):
        raise InputError(f"a summary holds {largest}, which {dtype} cannot store; is the model trained?")
    if dtype in ("float32", "float16"):
        return x.astype("<f4" if dtype == "float32" else "<f2").tobytes()
    scales = scales_of(x, dtype)
    if dtype == "int8":
        return scales.tobytes() + _divide(x, scales[:, None]).tobytes()
    grouped = _grouped(x)
    codes = (_divide(grouped, scales[..., None]) + 8).astype(np.uint8)
    return scales.tobytes() + (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8).tobytes()


def dequantise(payload: bytes | memoryview, tokens: int, dim: int, dtype: str) -> Float[np.ndarray, "k d"]:
    """float32 rows of a payload. Errors: InputError for a payload of the wrong size."""
    if dtype not in DTYPES or len(payload) != payload_size(tokens, dim, dtype):
        raise InputError(f"a summary of {tokens} x {dim} {dtype} cannot have {len(payload)} bytes")
    if dtype in ("float32", "float16"):
        return np.frombuffer(payload, "<f4" if dtype == "float32" else "<f2").reshape(tokens, dim).astype(np.float32)
    groups = 1 if dtype == "int8" else -(-dim // GROUP)
    cut = 2 * tokens * groups
    scales = np.frombuffer(payload[:cut], "<f2").astype(np.float32).reshape(tokens, groups, 1)
    if dtype == "int8":
        return np.frombuffer(payload[cut:], np.int8).reshape(tokens, dim) * scales[:, 0]
    packed = np.frombuffer(payload[cut:], np.uint8).reshape(tokens, groups, GROUP // 2)
    codes = np.empty((tokens, groups, GROUP), np.float32)
    codes[..., ::2], codes[..., 1::2] = packed & 15, packed >> 4
    return ((codes - 8) * scales).reshape(tokens, -1)[:, :dim]


def scales_of(x: Float[np.ndarray, "k d"], dtype: str) -> np.ndarray:
    """float16 scales: (k,) for int8, (k, groups) for int4; the error of an entry is at most half of its scale."""
    wanted = np.abs(x if dtype == "int8" else _grouped(x)).max(axis=-1, initial=0) / np.float32(_LEVELS[dtype])
    scales = wanted.astype(np.float16)
    low = scales.astype(np.float32) < wanted
    return np.where(low, np.nextafter(scales, np.float16(np.inf)), scales).astype("<f2")


def _divide(x: np.ndarray, scales: np.ndarray) -> np.ndarray:
    scales = scales.astype(np.float32)
    return np.rint(np.divide(x, scales, out=np.zeros_like(x), where=scales > 0)).astype(np.int8)


def _grouped(x: np.ndarray) -> np.ndarray:
    tokens, dim = x.shape
    return np.pad(x, ((0, 0), (0, -dim % GROUP))).reshape(tokens, -1, GROUP)
