"""Switch recitation off at inference: change the activation at one site while the model runs, and nothing afterwards.

    set-to-mean   h[units] <- mu_0[units]                       the selected coordinates to their class-0 mean
    diff-means    h <- h - c (mu_1 - mu_0)                      difference of means, dose c
    projection    h <- h - (h . u - mu_0 . u) u,  u = w/|w|     the probe's direction to its class-0 mean
    weighted      h <- h - c s(h) (mu_1 - mu_0),  s = r . (h - mu_0)   difference of means, each token by its own score

`weighted` needs a reader r with r . (mu_1 - mu_0) = 1 (`discriminant`): s averages 1 over recited tokens, which lose
what diff-means takes from them, and 0 over the others, which lose nothing on average. At a large dose a random
direction with the same scores suppresses nearly as much, because what works then is which tokens are changed: choose
place and dose beside it (`specific`), and show that control with the result.

The change is made at every position of every forward pass inside the context manager (`positions="last"`: at the last
position only, which during generation is the newest token). A KV cache filled outside must not be used inside: keys and
values of the two differ.

Knows tensors and hooks. Knows nothing about: how the direction was found, whether the change helps (`dose_response`).
Source: Slonski 2024, arXiv 2412.01014, reports that intervening on activations suppresses recitation; the three forms
are inferred, the full text was not available.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from rote.atomic import write_atomic
from rote.errors import InputError, RunMismatchError
from rote.internals.neurons.sites import SITES, Place, attach, parse_places
from rote.runtime import derive_seed

MODES = ("diff-means", "projection", "set-to-mean", "weighted")
UNBOUNDED = ("diff-means", "weighted")  # modes whose dose may exceed 1
POSITIONS = ("all", "last")
FORMAT = "rote direction"
VERSION = 2
VECTORS = ("mean1", "mean0", "w", "reader")


@dataclass(frozen=True)
class Direction:
    """What is changed. mean1, mean0: class means of the raw activations at `place`. w: the probe's direction in the
    same coordinates. units: coordinates for set-to-mean. model: fingerprint of the model it belongs to. reader: r of
    weighted."""

    place: Place
    mean1: Float[np.ndarray, " dim"]
    mean0: Float[np.ndarray, " dim"]
    w: Float[np.ndarray, " dim"]
    units: tuple[int, ...] = ()
    model: str | None = None
    reader: Float[np.ndarray, " dim"] | None = None

    @property
    def delta(self) -> Float[np.ndarray, " dim"]:
        """mu_1 - mu_0."""
        return self.mean1 - self.mean0

    def with_units(self, units: Sequence[int] | Int[np.ndarray, " units"]) -> Direction:
        return replace(self, units=tuple(int(unit) for unit in units))


def set_to_mean(
    h: Float[torch.Tensor, "*positions dim"],
    units: Int[torch.Tensor, " units"],
    mean0: Float[torch.Tensor, " dim"],
    scale: float = 1.0,
) -> Float[torch.Tensor, "*positions dim"]:
    """h[units] + c (mu_0[units] - h[units]); c = 1 puts the mean there."""
    out = h.clone()
    mean = mean0[units]
    out[..., units] = mean if scale == 1 else h[..., units] + scale * (mean - h[..., units])
    return out


def subtract_difference(
    h: Float[torch.Tensor, "*positions dim"], delta: Float[torch.Tensor, " dim"], scale: float = 1.0
) -> Float[torch.Tensor, "*positions dim"]:
    """h - c (mu_1 - mu_0)."""
    return h - scale * delta


def project_to_mean(
    h: Float[torch.Tensor, "*positions dim"],
    w: Float[torch.Tensor, " dim"],
    mean0: Float[torch.Tensor, " dim"],
    scale: float = 1.0,
) -> Float[torch.Tensor, "*positions dim"]:
    """h - c ((h - mu_0) . u) u with u = w/|w|: idempotent at c = 1, and nothing changes across u."""
    u = w / w.norm()
    return h - scale * ((h - mean0) @ u)[..., None] * u


def subtract_weighted(
    h: Float[torch.Tensor, "*positions dim"],
    delta: Float[torch.Tensor, " dim"],
    reader: Float[torch.Tensor, " dim"],
    mean0: Float[torch.Tensor, " dim"],
    scale: float = 1.0,
) -> Float[torch.Tensor, "*positions dim"]:
    """h - c (r . (h - mu_0)) (mu_1 - mu_0)."""
    return h - scale * ((h - mean0) @ reader)[..., None] * delta


#: One change, or several made together, each at its own place.
Directions = Direction | Sequence[Direction]


def each(direction: Directions) -> list[Direction]:
    """The single changes."""
    return [direction] if isinstance(direction, Direction) else list(direction)


def named(direction: Directions) -> dict[str, Any]:
    """Where it is, for a table: {"site", "layer"}; several layers are one text, "0, 1, 2"."""
    places = [one.place for one in each(direction)]
    layers = [place.layer for place in places]
    return {
        "site": ", ".join(dict.fromkeys(place.site for place in places)),
        "layer": layers[0] if len(layers) == 1 else ", ".join(map(str, layers)),
    }


@contextmanager
def intervene(
    model: Any,
    direction: Directions,
    *,
    mode: str = "diff-means",
    scale: float = 1.0,
    positions: str = "all",
) -> Iterator[None]:
    """Run the body with the change in place; the hook is gone on leaving, whatever happens inside.

    model: a CausalLM or the transformers model itself (`generate` works inside). direction: one, or several at
    different places, all at the same dose; later ones meet what earlier ones have changed. scale: the dose c; above 1
    only for diff-means and weighted, because beyond the mean the other two would push to the other side.
    Raises InputError for an unknown mode, a dose out of range, no units, or a width that is not the model's.
    """
    hf = getattr(model, "hf", model)
    with ExitStack() as hooks:
        for one in each(direction):
            check_mode(one, mode=mode, scale=scale, positions=positions)
            (place,) = parse_places(hf, one.place.site, one.place.layer)
            hooks.callback(attach(hf, place, _Change(one, mode, scale, positions)).remove)
        yield


def check_mode(direction: Direction, *, mode: str, scale: float, positions: str = "all") -> None:
    """Raises InputError for settings that mean nothing."""
    if mode not in MODES:
        raise InputError(f"unknown intervention {mode!r}; use one of {', '.join(MODES)}")
    if positions not in POSITIONS:
        raise InputError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
    if not np.isfinite(scale) or scale < 0 or (mode not in UNBOUNDED and scale > 1):
        limit = "0 or more" if mode in UNBOUNDED else "between 0 and 1"
        raise InputError(f"the dose of {mode} must be {limit}, not {scale}")
    if mode == "set-to-mean" and not direction.units:
        raise InputError("set-to-mean needs units: select some with select_units, or use diff-means or projection")
    if mode == "projection" and not np.linalg.norm(direction.w) > 0:
        raise InputError("projection needs a probe direction that is not zero")
    if mode == "weighted" and direction.reader is None:
        raise InputError("weighted needs a reader: make the direction with class_direction(..., ordinary=...)")


class _Change:
    """The hook: keeps the vectors on the activation's device, computes in float32, answers in its dtype."""

    def __init__(self, direction: Direction, mode: str, scale: float, positions: str):
        self.mode, self.scale, self.last = mode, scale, positions == "last"
        self.width = len(direction.mean0)
        vectors = {"mean0": direction.mean0, "delta": direction.delta, "w": direction.w}
        if direction.reader is not None:
            vectors["reader"] = direction.reader
        self.vectors = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in vectors.items()}
        self.units = torch.tensor(direction.units, dtype=torch.int64)

    def __call__(self, activation: torch.Tensor) -> torch.Tensor:
        if activation.shape[-1] != self.width:
            raise InputError(
                f"the direction has {self.width} coordinates, the activation {activation.shape[-1]}: it belongs to"
                " another model or site"
            )
        if self.last and activation.dim() < 3:
            raise InputError("this architecture flattens positions here; use positions='all'")
        if self.vectors["mean0"].device != activation.device:
            self.vectors = {name: vector.to(activation.device) for name, vector in self.vectors.items()}
            self.units = self.units.to(activation.device)
        h = (activation[:, -1:] if self.last else activation).float()
        if self.mode == "set-to-mean":
            changed = set_to_mean(h, self.units, self.vectors["mean0"], self.scale)
        elif self.mode == "projection":
            changed = project_to_mean(h, self.vectors["w"], self.vectors["mean0"], self.scale)
        elif self.mode == "weighted":
            mine = self.vectors
            changed = subtract_weighted(h, mine["delta"], mine["reader"], mine["mean0"], self.scale)
        else:
            changed = subtract_difference(h, self.vectors["delta"], self.scale)
        changed = changed.to(activation.dtype)
        return torch.cat([activation[:, :-1], changed], 1) if self.last else changed


def random_direction(direction: Direction, *, seed: int = 0) -> Direction:
    """The control: a random difference of the same norm, a random probe direction of the same norm, and as many random
    units (none of the selected ones where there are enough others). The reader stays: every token loses as much as
    under the selected direction, in another direction."""
    rng = np.random.default_rng(derive_seed(seed, "random direction", direction.place.site, direction.place.layer))
    size = len(direction.mean0)
    delta, w = rng.standard_normal(size), rng.standard_normal(size)
    delta *= np.linalg.norm(direction.delta) / np.linalg.norm(delta)
    w *= np.linalg.norm(direction.w) / np.linalg.norm(w)
    others = np.setdiff1d(np.arange(size), direction.units)
    if len(others) < len(direction.units):
        others = np.arange(size)
    units = rng.permutation(others)[: len(direction.units)]
    return replace(direction, mean1=direction.mean0 + delta, w=w, units=tuple(int(unit) for unit in units))


def random_directions(direction: Directions, *, seed: int = 0) -> list[Direction]:
    """A random one (`random_direction`) for each of them."""
    return [random_direction(one, seed=seed) for one in each(direction)]


def save_direction(direction: Directions, folder: str | Path, settings: dict[str, Any]) -> None:
    """direction.safetensors and direction.json in `folder`: what is needed to intervene again with `settings`."""
    from safetensors.numpy import save

    folder = Path(folder)
    directions = each(direction)
    vectors = {
        f"{number}.{name}": np.ascontiguousarray(value, np.float64)
        for number, one in enumerate(directions)
        for name in VECTORS
        if (value := getattr(one, name)) is not None
    }
    content = save(vectors)
    meta = {
        "format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(content).hexdigest(),
        "places": [{"site": one.place.site, "layer": one.place.layer, "units": list(one.units)} for one in directions],
        "model": directions[0].model, "settings": settings,
    }  # fmt: skip
    write_atomic(folder / "direction.safetensors", content)
    write_atomic(folder / "direction.json", json.dumps(meta, indent=1, allow_nan=False) + "\n")


def load_direction(folder: str | Path) -> tuple[Directions, dict[str, Any]]:
    """(direction, or several made together; settings) as `save_direction` wrote them:
    `with intervene(model, direction, **settings): ...`.

    Raises InputError for files that are not a direction, RunMismatchError when the two do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    try:
        meta = json.loads((folder / "direction.json").read_text(encoding="utf-8"))
        content = (folder / "direction.safetensors").read_bytes()
        vectors = load(content)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder}: holds no direction that can be read ({type(error).__name__})") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise InputError(f"{folder / 'direction.json'}: is not a direction of version {VERSION}")
    if hashlib.sha256(content).hexdigest() != meta["sha256"] or any(row["site"] not in SITES for row in meta["places"]):
        raise RunMismatchError(f"{folder}: direction.safetensors does not belong to direction.json; treat again")
    directions = []
    for number, row in enumerate(meta["places"]):
        mine: dict[str, Any] = {name: vectors.get(f"{number}.{name}") for name in VECTORS}
        place, units = Place(row["site"], int(row["layer"])), tuple(int(unit) for unit in row["units"])
        directions.append(Direction(place, **mine, units=units, model=meta["model"]))
    return (directions[0] if len(directions) == 1 else directions), meta["settings"]
