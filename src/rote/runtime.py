"""Where threads, seeds, devices and memory are decided: in one place, by measurement.

Knows nothing about: records, measures. Imports torch only inside functions.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rote.errors import InputError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA when there is one, then Apple's MPS, else the CPU; anything else is checked before use."""
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:0 or mps") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} was asked for, but this machine has no CUDA device; use --device cpu")
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """`auto` keeps the checkpoint's own precision on an accelerator and float32 on a CPU (where bfloat16 is slower)."""
    import torch

    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, dtype)


@contextmanager
def threads(count: int):
    """Run a block with `count` PyTorch CPU threads.

    Small matrices (width up to about 256) are up to 20 times faster on one thread: the threads' hand-over costs more
    than the product. The training loop and the small studies use this; scoring of large models does not.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for_width(width: int) -> int:
    """How many CPU threads a model of this hidden width is fastest with (measured: 1 up to 256, all above)."""
    return 1 if width <= 256 else (os.cpu_count() or 1)


def speedup_of(dtype: torch.dtype, device: torch.device, width: int = 1024, rows: int = 256) -> float:
    """How many times faster this machine multiplies matrices in `dtype` than in float32: measured, in about 50 ms."""
    import time

    import torch

    def seconds(kind: torch.dtype) -> float:
        left, right = (torch.ones(n, width, dtype=kind, device=device) for n in (rows, width))
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            (left @ right.T).sum().item()  # .item() waits for the device
            times.append(time.perf_counter() - begin)
        return min(times)

    with torch.inference_mode():
        return seconds(torch.float32) / seconds(dtype)


def derive_seed(seed: int, *parts: object) -> int:
    """A seed for one part of a run, from the run's seed and the part's name: independent of order and batch size."""
    digest = hashlib.sha256("/".join([str(seed), *map(str, parts)]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def peak_rss_mb() -> float:
    """Peak resident memory of this process and its finished children, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, children) * unit / 2**20


def versions() -> dict[str, str]:
    """Versions that can change a number: recorded in every run."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("rote", "torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
