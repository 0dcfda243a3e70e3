"""Which channels a case is compared in: electrodes in, common average and bipolar differences out.

    rows 1 .. E        x_e - mean_e x      (common average)
    the rest           x_a - x_b           (longitudinal bipolar)

Both are linear, so a montage is one matrix (channels x electrodes) whose rows sum to 0: a shift common to all
electrodes changes nothing. For the 10-20 system there are 19 + 18 = 37 channels (Tang et al. 2025, arXiv 2510.20846,
data section). Any other set of electrodes works too: name them, and the pairs to difference.

Knows nothing about: models, units, sampling rates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from rote.errors import InputError

TEN_TWENTY_NAMES = (
    "Fp1", "F3", "C3", "P3", "F7", "T3", "T5", "O1", "Fz", "Cz", "Pz", "Fp2", "F4", "C4", "P4", "F8", "T4", "T6", "O2",
)  # fmt: skip
TEN_TWENTY_CHAINS = (
    ("Fp1", "F7", "T3", "T5", "O1"),
    ("Fp2", "F8", "T4", "T6", "O2"),
    ("Fp1", "F3", "C3", "P3", "O1"),
    ("Fp2", "F4", "C4", "P4", "O2"),
    ("Fz", "Cz", "Pz"),
)
# Names that mean the same place: the older 10-20 names are used here, most files now have the newer ones.
SYNONYMS = {"t7": "t3", "t8": "t4", "p7": "t5", "p8": "t6"}
# Seen from above, nose up, head of radius 1: for drawing only.
TEN_TWENTY_PLACES = {
    "Fp1": (-0.29, 0.85), "Fp2": (0.29, 0.85), "F7": (-0.73, 0.53), "F3": (-0.37, 0.45), "Fz": (0.0, 0.42),
    "F4": (0.37, 0.45), "F8": (0.73, 0.53), "T3": (-0.90, 0.0), "C3": (-0.45, 0.0), "Cz": (0.0, 0.0),
    "C4": (0.45, 0.0), "T4": (0.90, 0.0), "T5": (-0.73, -0.53), "P3": (-0.37, -0.45), "Pz": (0.0, -0.42),
    "P4": (0.37, -0.45), "T6": (0.73, -0.53), "O1": (-0.29, -0.85), "O2": (0.29, -0.85),
}  # fmt: skip


@dataclass(frozen=True)
class Montage:
    """Electrodes, whether each gets a common-average channel, and the bipolar pairs.

    places: (x, y) of each electrode for drawings, head of radius 1; empty where unknown.
    """

    name: str
    electrodes: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    average: bool = True
    places: tuple[tuple[float, float], ...] = ()

    def __post_init__(self):
        if len(set(self.electrodes)) != len(self.electrodes) or not self.electrodes:
            raise InputError(f"montage {self.name!r}: electrodes must be distinct and at least one")
        unknown = {name for pair in self.pairs for name in pair} - set(self.electrodes)
        if unknown:
            raise InputError(f"montage {self.name!r}: pairs name electrodes it does not have: {', '.join(unknown)}")
        if self.places and len(self.places) != len(self.electrodes):
            raise InputError(
                f"montage {self.name!r}: {len(self.places)} places for {len(self.electrodes)} electrodes; give one each"
            )
        if not self.channels:
            raise InputError(f"montage {self.name!r} has no channels: use average=True or give pairs")

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels: `F3-avg` first, then `Fp1-F7`."""
        averages = tuple(f"{name}-avg" for name in self.electrodes) if self.average else ()
        return averages + tuple(f"{a}-{b}" for a, b in self.pairs)

    @property
    def matrix(self) -> Float[np.ndarray, "channels electrodes"]:
        """The linear map from electrodes to channels; every row sums to 0."""
        count = len(self.electrodes)
        rows = [np.eye(count) - 1 / count] if self.average else []
        difference = np.zeros((len(self.pairs), count))
        for row, (a, b) in enumerate(self.pairs):
            difference[row, self.electrodes.index(a)] += 1
            difference[row, self.electrodes.index(b)] -= 1
        return np.concatenate([*rows, difference])

    def apply(self, electrodes: Float[np.ndarray, "n electrodes samples"]) -> Float[np.ndarray, "n channels samples"]:
        """Electrode potentials to channels. Raises InputError for another number of electrodes."""
        if electrodes.ndim != 3 or electrodes.shape[1] != len(self.electrodes):
            raise InputError(
                f"montage {self.name!r} takes (segments, {len(self.electrodes)} electrodes, samples), got shape"
                f" {tuple(electrodes.shape)}"
            )
        return np.einsum("ce,net->nct", self.matrix.astype(electrodes.dtype), electrodes, optimize=True)

    def mirror(self) -> np.ndarray | None:
        """Order of electrodes after exchanging left and right (odd and even numbers); None where a partner is missing.

        Names without a number lie on the midline and stay.
        """
        swapped = []
        for name in self.electrodes:
            match = re.fullmatch(r"(.*?)(\d+)", name)
            partner = name if match is None else f"{match[1]}{int(match[2]) + (1 if int(match[2]) % 2 else -1)}"
            if partner not in self.electrodes:
                return None
            swapped.append(self.electrodes.index(partner))
        return np.array(swapped)

    def mirror_channels(self) -> np.ndarray | None:
        """The order of channels that goes with `mirror`; None where there is none (a bipolar pair without partner)."""
        order = self.mirror()
        if order is None:
            return None
        swap = {name: self.electrodes[at] for name, at in zip(self.electrodes, order, strict=True)}
        averages = len(self.electrodes) if self.average else 0
        mirrored = [(swap[a], swap[b]) for a, b in self.pairs]
        if any(pair not in self.pairs for pair in mirrored):
            return None
        return np.array([*order[:averages], *(averages + self.pairs.index(pair) for pair in mirrored)], dtype=np.int64)

    def order(self, names: Sequence[str], *, where: str = "the data") -> np.ndarray:
        """Index of each electrode in `names` (any order, case, `EEG ...-REF` dressing, T7 for T3; others are ignored).

        Raises InputError when one is missing or there twice.
        """
        found: dict[str, list[int]] = {}
        for at, name in enumerate(names):
            found.setdefault(canonical(name), []).append(at)
        missing = [name for name in self.electrodes if canonical(name) not in found]
        if missing:
            raise InputError(
                f"{where}: montage {self.name!r} needs {len(self.electrodes)} electrodes, missing: {', '.join(missing)}"
                f"; there are: {', '.join(list(names)[:30])}. Rename channels, or choose another montage"
            )
        twice = [name for name in self.electrodes if len(found[canonical(name)]) > 1]
        if twice:
            raise InputError(f"{where}: more than one channel is called {twice[0]}; keep one of them")
        return np.array([found[canonical(name)][0] for name in self.electrodes])


def canonical(name: str) -> str:
    """`EEG FP1-REF`, `Fp1.`, `fp1-LE` -> `fp1`; T7, T8, P7, P8 -> t3, t4, t5, t6."""
    bare = re.sub(r"^eeg[\s_]+", "", name.strip().lower())
    bare = re.sub(r"[-_\s](ref|le|re|ar|avg|a1|a2|m1|m2|linked|ar1|ar2)\d*$", "", bare).strip(" .")
    return SYNONYMS.get(bare, bare)


def ten_twenty() -> Montage:
    """19 common-average and 18 longitudinal bipolar channels, in the paper's order."""
    pairs = tuple(pair for chain in TEN_TWENTY_CHAINS for pair in pairwise(chain))
    places = tuple(TEN_TWENTY_PLACES[name] for name in TEN_TWENTY_NAMES)
    return Montage("10-20", TEN_TWENTY_NAMES, pairs, True, places)


def make_montage(montage: str | Montage, electrodes: Iterable[str] = ()) -> Montage:
    """`"10-20"`, `"average"` (common average of `electrodes`, for any multichannel signal), or a Montage as it is."""
    if isinstance(montage, Montage):
        return montage
    if montage == "10-20":
        return ten_twenty()
    if montage == "average":
        names = tuple(electrodes)
        if not names:
            raise InputError("montage 'average' needs the electrodes' names: give ch_names with the data")
        return Montage("average", names)
    raise InputError(f"no montage {montage!r}; use '10-20', 'average' or a Montage")
