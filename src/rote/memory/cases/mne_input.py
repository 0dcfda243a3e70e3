"""MNE objects at the door: Epochs become microvolts, channel names and a rate; arrays pass as they are.

Knows nothing about: montages, models. Does not import MNE: an object of it brings its own methods.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rote.errors import InputError


def to_microvolts(
    X, ch_names: Sequence[str] | None, sfreq: float | None
) -> tuple[np.ndarray, list[str] | None, float | None]:
    """(data, ch_names, sfreq) of MNE Epochs (whose unit is the volt, hence times 1e6), or of an array, unchanged.

    Raises InputError when names or a rate are given beside an MNE object that says otherwise.
    """
    if not (hasattr(X, "get_data") and hasattr(X, "info")):
        return X, None if ch_names is None else list(ch_names), sfreq
    names, rate = list(X.info["ch_names"]), float(X.info["sfreq"])
    if ch_names is not None and list(ch_names) != names:
        raise InputError("ch_names were given beside MNE Epochs that have other names; leave them out")
    if sfreq is not None and abs(sfreq - rate) > 1e-6:
        raise InputError(f"sfreq = {sfreq:g} was given beside MNE Epochs at {rate:g} Hz; leave it out")
    return np.asarray(X.get_data()) * 1e6, names, rate
