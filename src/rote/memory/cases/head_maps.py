"""Heads seen from above, nose up: channel weights on electrodes and links, and topographic maps of a potential.

Knows nothing about: cases, similarity, figures' layout. Draws on matplotlib axes it is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from rote.memory.cases.montage import Montage

OUTLINE = "#5b6b7f"


def normalised(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Min-max to [0, 1]; constant values become 0.5."""
    low, high = float(values.min()), float(values.max())
    return np.full(len(values), 0.5) if high - low < 1e-12 else (values - low) / (high - low)


def outline(axes: Any) -> None:
    """Head, nose and ears on unit axes."""
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=OUTLINE, linewidth=1.2)
    axes.plot([-0.12, 0, 0.12], [0.993, 1.13, 0.993], color=OUTLINE, linewidth=1.2)
    ear = 1 + 0.07 * np.sin(np.linspace(0, np.pi, 30))
    for side in (-1, 1):
        axes.plot(side * ear, np.linspace(-0.2, 0.2, 30), color=OUTLINE, linewidth=1.2)
    axes.set_aspect("equal")
    axes.set_xlim(-1.15, 1.15)
    axes.set_ylim(-1.1, 1.2)
    axes.axis("off")


def draw_head(figure: Any, axes: Any, montage: Montage, weights: Float[np.ndarray, " c"]) -> None:
    """Electrodes (average channels) as discs and pairs as links, light to dark blue by min-max-normalised weight."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shades = colormaps["Blues"]
    level = normalised(weights)
    where = dict(zip(montage.electrodes, montage.places, strict=True))
    averages = len(montage.electrodes) if montage.average else 0
    outline(axes)
    for at, (a, b) in enumerate(montage.pairs):
        (x0, y0), (x1, y1) = where[a], where[b]
        amount = level[averages + at]
        axes.plot([x0, x1], [y0, y1], color=shades(0.12 + 0.88 * amount), linewidth=2 + 4 * amount,
                  solid_capstyle="round", zorder=2)  # fmt: skip
    for at, name in enumerate(montage.electrodes):
        amount = level[at] if averages else 0.0
        axes.scatter(
            *where[name], s=165, color=shades(0.12 + 0.88 * amount), edgecolor=OUTLINE, linewidth=0.7, zorder=3
        )
        axes.text(*where[name], name, fontsize=5.8, ha="center", va="center", zorder=4,
                  color="white" if amount > 0.5 else "black")  # fmt: skip
    bar = figure.colorbar(
        ScalarMappable(Normalize(100 * weights.min(), 100 * weights.max()), shades), ax=axes, orientation="horizontal",
        fraction=0.045, pad=0.03, shrink=0.7, ticks=[100 * weights.min(), 100 * weights.max()],
    )  # fmt: skip
    bar.ax.set_xticklabels([f"{100 * weights.min():.1f} %", f"w = {100 * weights.max():.1f} %"], fontsize=7)


def reference_free(signal: Float[np.ndarray, "electrodes samples"]) -> tuple[Float[np.ndarray, " electrodes"], int]:
    """(potential against the mean of the electrodes, sample) at the largest deflection of any electrode, uV."""
    centred = signal - signal.mean(0)
    centred = centred - np.median(centred, axis=1, keepdims=True)
    at = int(np.abs(centred).max(0).argmax())
    return centred[:, at], at


def draw_topomap(axes: Any, values: Float[np.ndarray, " electrodes"], montage: Montage, *, limit: float) -> Any:
    """Thin-plate interpolation of a potential over the head; colours from -limit (blue) to limit (red)."""
    from scipy.interpolate import RBFInterpolator

    places = np.array(montage.places)
    line = np.linspace(-1, 1, 61)
    x, y = np.meshgrid(line, line)
    spread = RBFInterpolator(places, values, kernel="thin_plate_spline", smoothing=1e-3)
    surface = spread(np.stack([x.ravel(), y.ravel()], 1)).reshape(x.shape)
    surface = np.ma.masked_where(x**2 + y**2 > 1, np.clip(surface, -limit, limit))
    filled = axes.contourf(x, y, surface, levels=np.linspace(-limit, limit, 25), cmap="RdBu_r")
    axes.contour(x, y, surface, levels=np.linspace(-limit, limit, 9), colors="black", linewidths=0.3, alpha=0.5)
    axes.scatter(*places.T, s=3, color="black", zorder=3)
    outline(axes)
    return filled
