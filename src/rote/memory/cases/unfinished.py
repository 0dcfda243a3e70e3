"""What an interrupted fit leaves for the next: the trained detector, half of the work.

The file is named by what the detector was trained on (segments, votes, montage, settings, seed), so a fit of anything
else never finds it. A fit that was interrupted and started again ends like an uninterrupted one.

Knows nothing about: prototypes, cases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.memory.cases.backbone import SpikeNet


def kept_detector(
    folder: str | Path | None,
    arrays: tuple[np.ndarray, ...],
    settings: dict[str, Any],
    empty: Callable[[], SpikeNet],
    train: Callable[[], SpikeNet],
) -> SpikeNet:
    """The detector kept in `folder` for these arrays and settings, put into `empty()`; else `train()`, kept there.

    Without a folder it is trained and nothing is written. Raises InputError for a damaged file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    if folder is None:
        return train()
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for array in arrays:
        digest.update(str((array.dtype, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    file = Path(folder) / f"detector-{digest.hexdigest()[:32]}.safetensors"
    if file.exists():
        net = empty()
        try:
            net.load_state_dict(load(file.read_bytes()))
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:80]
            raise InputError(f"{file}: cannot be read ({reason}); remove it to train anew") from None
        return net.eval()
    net = train()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, save({name: value.contiguous() for name, value in net.state_dict().items()}))
    return net
