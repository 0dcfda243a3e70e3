"""Where a simulated current in the brain is seen on the scalp: a spherical head under the 10-20 electrodes.

    potential (19) = G (19 x dipoles) @ moments,    G from MNE's three-shell sphere

The topography of a focus is the mean over a patch of radial dipoles, scaled so that its largest entry is 1.

Knows nothing about: waveforms, patients, votes. MNE is loaded when first used (extra `eeg`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from rote.errors import InputError, MissingDependencyError

TEN_TWENTY_NAMES = (
    "Fp1", "F3", "C3", "P3", "F7", "T3", "T5", "O1", "Fz", "Cz", "Pz", "Fp2", "F4", "C4", "P4", "F8", "T4", "T6", "O2",
)  # fmt: skip
# Electrodes whose mean direction is the centre of each focus; a generalised discharge has several patches with weights.
FOCI: dict[str, tuple[tuple[tuple[str, ...], float], ...]] = {
    "left temporal": ((("T3", "F7", "T5"), 1.0),),
    "right temporal": ((("T4", "F8", "T6"), 1.0),),
    "left frontal": ((("F3", "Fp1"), 1.0),),
    "right frontal": ((("F4", "Fp2"), 1.0),),
    "left parietal": ((("P3", "C3"), 1.0),),
    "right parietal": ((("P4", "C4"), 1.0),),
    "left occipital": ((("O1",), 1.0),),
    "right occipital": ((("O2",), 1.0),),
    "generalised": ((("F3",), 1.0), (("F4",), 1.0), (("Fz",), 1.0), (("C3",), 0.6), (("C4",), 0.6)),
}
PATCH_RADIUS = 0.03  # metres
DEPTH = 0.65  # of the head radius: the patch then spreads over neighbouring electrodes, as discharges do


@dataclass(frozen=True)
class Head:
    """Dipole places (metres from the sphere's centre), scalp gains of radial dipoles and of dipoles of any direction,
    and unit vectors to the electrodes."""

    place: Float[np.ndarray, "dipoles 3"]
    radial: Float[np.ndarray, "19 dipoles"]
    any_way: Float[np.ndarray, "19 dipoles"]
    electrode: Float[np.ndarray, "19 3"]

    def topography(self, centre: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 19"]:
        """Field of a patch of outward dipoles around the direction `centre`, largest entry 1."""
        target = centre / np.linalg.norm(centre) * np.linalg.norm(self.place[0])
        near = np.linalg.norm(self.place - target, axis=1)
        inside = near < PATCH_RADIUS
        if not inside.any():
            inside = near == near.min()
        field = self.radial[:, inside].mean(1)
        return field / np.abs(field).max()

    def direction(self, electrodes: tuple[str, ...]) -> Float[np.ndarray, " 3"]:
        """Unit vector to the middle of these electrodes."""
        mean = self.electrode[[TEN_TWENTY_NAMES.index(name) for name in electrodes]].mean(0)
        return mean / np.linalg.norm(mean)

    def focus(self, name: str, *, jitter: Float[np.ndarray, " 3"] | None = None) -> Float[np.ndarray, " 19"]:
        """Scalp field of one of `FOCI`, largest entry 1; `jitter` (unit sphere) moves every patch a little."""
        if name not in FOCI:
            raise InputError(f"no focus {name!r}; there are: {', '.join(FOCI)}")
        move = np.zeros(3) if jitter is None else jitter
        field = sum(weight * self.topography(self.direction(near) + move) for near, weight in FOCI[name])
        return field / np.abs(field).max()


def load_mne():
    """The MNE library, or one line that says how to install it."""
    try:
        import mne
    except ImportError:
        raise MissingDependencyError("mne", "eeg") from None
    return mne


def electrode_places(names: tuple[str, ...]) -> dict[str, Float[np.ndarray, " 3"]]:
    """Positions (metres, head frame) of standard electrodes, by name."""
    mne = load_mne()
    known = mne.channels.get_builtin_montages()
    # The library renamed its template head in 1.13; both names hold the same positions.
    montage = mne.channels.make_standard_montage("colin27_1020" if "colin27_1020" in known else "standard_1020")
    info = mne.create_info(list(names), 128.0, "eeg")
    info.set_montage(montage)
    channels: list = info["chs"]  # type: ignore[assignment]
    return {name: channels[i]["loc"][:3].copy() for i, name in enumerate(names)}


@lru_cache(maxsize=4)
def spherical_head(dipoles: int = 600, seed: int = 20) -> Head:
    """Dipoles spread over the upper cortex (`DEPTH` of a sphere fitted to the electrodes) and their scalp gains.

    Deterministic for (dipoles, seed). Takes about a second the first time.
    """
    mne = load_mne()
    places = electrode_places(TEN_TWENTY_NAMES)
    montage = mne.channels.make_dig_montage(places, coord_frame="head")
    info = mne.create_info(list(TEN_TWENTY_NAMES), 128.0, "eeg")
    info.set_montage(montage)
    # The electrodes are the only points of the head there are, so the sphere is centred by them.
    centre = _sphere_centre(np.array([places[name] for name in TEN_TWENTY_NAMES]))
    radius = float(np.mean([np.linalg.norm(place - centre) for place in places.values()]))
    sphere = mne.make_sphere_model(centre, radius, info, verbose="error")
    rng = np.random.default_rng(seed)
    unit = rng.standard_normal((8 * dipoles, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit = unit[unit[:, 2] > -0.35][:dipoles]
    place = DEPTH * radius * unit
    tilt = unit + rng.normal(0, 0.6, unit.shape)
    tilt /= np.linalg.norm(tilt, axis=1, keepdims=True)
    gains = []
    for direction in (unit, tilt):
        dipole = mne.Dipole(
            np.arange(dipoles) / 1000, place + centre, np.full(dipoles, 1e-8), direction, np.full(dipoles, 100.0)
        )
        forward = mne.make_forward_dipole(dipole, sphere, info, verbose="error")[0]
        gains.append(np.asarray(forward["sol"]["data"], np.float64))  # type: ignore[index]
    electrode = np.array([places[name] - centre for name in TEN_TWENTY_NAMES])
    electrode /= np.linalg.norm(electrode, axis=1, keepdims=True)
    return Head(place, gains[0], gains[1], electrode)


def _sphere_centre(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " 3"]:
    """Least squares: |p|^2 = 2 p.c + (R^2 - |c|^2) is linear in the centre c."""
    system = np.hstack([2 * points, np.ones((len(points), 1))])
    return np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0][:3]
