"""The explanation as a clinician reads it: where the model looked, the EEG in question, and the remembered EEGs it
looks like, side by side at one scale.

Left: head with electrodes (common-average channels) and bipolar links coloured by the channel weight w, min-max
normalised. Middle: the query's channels, a bar each for w. Right: the nearest cases; a bar each for what the channel
adds to the similarity. Channels that together carry half of the similarity of a case are drawn dark. Below: scalp
potential at each segment's largest deflection. Negative is up, as in clinical EEG.
Layout after Tang et al. 2025, arXiv 2510.20846, explanation figure; maps and scale bars are Rote's.

Knows nothing about: networks, similarity, recordings. matplotlib is loaded when used (extra `eeg`).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.atomic import write_atomic
from rote.errors import InputError, MissingDependencyError
from rote.memory.cases.explanation import Explanation
from rote.memory.cases.head_maps import draw_head, draw_topomap, reference_free
from rote.memory.cases.montage import Montage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DARK, MIDDLE, PALE, BAR = "#0b2545", "#5b6b7f", "#b4bdc9", "#1f6fb2"
SHOWN = 0.5  # share of a similarity whose channels are drawn dark


def channel_groups(montage: Montage) -> list[tuple[str, list[int]]]:
    """Channels in the order of a clinical page: (title, channel indices)."""
    names = montage.channels
    averages = len(montage.electrodes) if montage.average else 0
    sides: dict[str, list[int]] = {"left": [], "midline": [], "right": []}
    for at in range(averages):
        digits = "".join(c for c in montage.electrodes[at] if c.isdigit())
        sides["midline" if not digits else "left" if int(digits) % 2 else "right"].append(at)
    groups = [(f"average ref., {side}", rows) for side, rows in sides.items() if rows]
    chain: list[int] = []
    for at in range(averages, len(names)):
        if chain and montage.pairs[at - averages - 1][1] != montage.pairs[at - averages][0]:
            groups.append(("bipolar", chain))
            chain = []
        chain.append(at)
    return groups + ([("bipolar", chain)] if chain else [])


def row_positions(montage: Montage, gap: float = 0.8) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Vertical place of every channel (0 at the top, downwards negative) and (title, top, bottom) of the groups."""
    places, y, spans = np.zeros(len(montage.channels)), 0.0, []
    for title, rows in channel_groups(montage):
        top = y
        for at in rows:
            places[at] = -y
            y += 1
        spans.append((title, -top, -(y - 1)))
        y += gap
    return places, spans


def explain_figure(explanation: Explanation, *, cases: int = 4) -> Figure:
    """The figure. cases: how many neighbours are drawn. Raises MissingDependencyError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", "eeg") from None
    if cases < 1:
        raise InputError(f"cases is {cases}: draw at least one neighbour")
    e, montage = explanation, explanation.montage
    shown = e.neighbours[:cases]
    columns = 1 + len(shown)
    places, spans = row_positions(montage)
    height = max(7.0, 0.215 * (1 - places.min()) + 3.2)
    figure = Figure(figsize=(4.2 + 2.9 * columns, height), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 2 + columns, width_ratios=[1.15, 0.30, *[1.0] * columns],  # the second column is room for channel names
        height_ratios=[1, 0.2 if montage.places else 0.001],
        left=0.05, right=0.97, top=1 - 1.0 / height, bottom=1.0 / height, wspace=0.09, hspace=0.1,
    )  # fmt: skip
    signals = [e.signal, *(one.signal for one in shown)]
    traces = [montage.apply(signal[None])[0] for signal in signals]
    unit = scale(traces)
    seconds = np.arange(traces[0].shape[1]) / e.settings.sfreq
    shares = [e.channel_weights, *(one.per_channel for one in shown)]
    for column, (trace, share) in enumerate(zip(traces, shares, strict=True)):
        axes = figure.add_subplot(grid[0, 2 + column])
        _traces(axes, trace, share, places, seconds, unit)
        axes.set_title(_title(e, column), fontsize=9.5, loc="left", parse_math=False, color=DARK)
        if column == 0:
            axes.set_yticks(places, [name.replace("-avg", "") for name in montage.channels], fontsize=7)
            axes.tick_params(axis="y", length=0, pad=1)
            _group_titles(axes, spans)
            _scale_bar(axes, places, seconds, unit)
    _left_panel(figure, grid, e)
    if montage.places:
        maps = [reference_free(signal) for signal in signals]
        top = max(float(np.abs(values).max()) for values, _ in maps)
        for column, (values, at) in enumerate(maps):
            axes = figure.add_subplot(grid[1, 2 + column])
            filled = draw_topomap(axes, values, montage, limit=top)
            axes.set_title(f"{1000 * at / e.settings.sfreq:.0f} ms", fontsize=7.5, pad=2, color=MIDDLE)
            if column == columns - 1:
                bar = figure.colorbar(filled, ax=axes, fraction=0.05, pad=0.04, ticks=[-top, 0, top])
                bar.ax.set_yticklabels([f"{-top:.0f}", "0", f"{top:.0f} µV"], fontsize=7)
    _headings(figure, e, height)
    return figure


def scale(traces: list[np.ndarray]) -> float:
    """uV of one row: the step of the series 1, 2, 5 above the 98th percentile of all deflections.

    Spikes may cross rows, as on a clinical page.
    """
    typical = max(float(np.percentile(np.abs(np.concatenate([t.ravel() for t in traces])), 98)), 1e-6)
    steps = [m * 10.0**p for p in range(-6, 7) for m in (1, 2, 5)]
    return next(step for step in steps if step >= typical)


def carriers(share: np.ndarray, part: float = SHOWN) -> np.ndarray:
    """Mask of the fewest channels whose shares add up to `part` of the total."""
    order = np.argsort(-share, kind="stable")
    total = np.cumsum(share[order])
    mask = np.zeros(len(share), bool)
    mask[order[: int(np.searchsorted(total, part * total[-1])) + 1]] = True
    return mask


def _traces(axes: Any, trace: np.ndarray, share: np.ndarray, places: np.ndarray, seconds: np.ndarray, unit: float):
    dark = carriers(share)
    width = seconds[-1] - seconds[0]
    bars = np.clip(share, 0, None) / max(float(share.max()), 1e-12)
    for at in range(len(trace)):
        # Negative is up, so the potential is subtracted from its row.
        colour, width_of_line = (DARK, 0.9) if dark[at] else (PALE, 0.6)
        axes.plot(seconds, places[at] - trace[at] / unit, color=colour, linewidth=width_of_line, zorder=2 + dark[at])
    axes.barh(places, 0.12 * width * bars, left=-0.15 * width, height=0.62, color=BAR, linewidth=0, zorder=4)
    axes.axvline(-0.15 * width, color=PALE, linewidth=0.6)
    axes.set_xlim(-0.16 * width, width * 1.01)
    axes.set_ylim(places.min() - 1.6, 1.4)
    axes.set_yticks([])
    axes.set_xticks([0, width / 2, width], ["0", f"{width / 2:.2g}", f"{width:.2g}"])
    axes.tick_params(axis="x", labelsize=7, colors=MIDDLE, length=2)
    axes.set_xlabel("s", fontsize=7.5, color=MIDDLE, labelpad=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALE)


def _group_titles(axes: Any, spans: list[tuple[str, float, float]]) -> None:
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(axes.transAxes, axes.transData)
    for title, top, bottom in spans:
        axes.text(-0.34, (top + bottom) / 2, title, transform=place, rotation=90, fontsize=6.5, color=MIDDLE,
                  ha="center", va="center")  # fmt: skip
        axes.plot([-0.30, -0.30], [top + 0.4, bottom - 0.4], transform=place, color=PALE, linewidth=0.8, clip_on=False)


def _scale_bar(axes: Any, places: np.ndarray, seconds: np.ndarray, unit: float) -> None:
    x, y = seconds[-1] * 0.62, places.min() - 1.3
    axes.plot([x, x], [y, y + 1], color="black", linewidth=1.3, zorder=5)
    axes.text(
        x + 0.02 * seconds[-1],
        y + 0.35,
        f"{unit:g} µV, negative up",
        fontsize=6.5,
        zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )


def _title(e: Explanation, column: int) -> str:
    if column == 0:
        return f"{short(e.id)}\nthis EEG: {100 * e.vote:.0f} % of votes predicted"
    one = e.neighbours[column - 1]
    return f"{short(one.id)}\ncase {column}: {one.votes} of {one.raters} experts, S = {one.similarity:.2f}"


def short(name: str, most: int = 28) -> str:
    """A label that fits: its beginning and end."""
    return name if len(name) <= most else f"{name[: most - 9]}…{name[-8:]}"


def _left_panel(figure: Any, grid: Any, e: Explanation) -> None:
    inner = grid[:, 0].subgridspec(3, 1, height_ratios=[1.2, 0.85, 0.7], hspace=0.28)
    head, table, text = (figure.add_subplot(inner[row]) for row in range(3))
    if e.montage.places:
        draw_head(figure, head, e.montage, e.channel_weights)
        head.set_title("where the model looked", fontsize=9.5, color=DARK)
    else:
        head.axis("off")
    top = np.argsort(-e.channel_weights, kind="stable")[:8][::-1]
    table.barh(range(len(top)), 100 * e.channel_weights[top], color=BAR, height=0.65)
    table.set_yticks(range(len(top)), [e.montage.channels[at] for at in top], fontsize=7.5)
    table.set_xlabel("channel weight w, % (all channels: 100)", fontsize=7.5, color=MIDDLE)
    table.tick_params(axis="x", labelsize=7, colors=MIDDLE)
    for side in ("top", "right"):
        table.spines[side].set_visible(False)
    names = {"latent": "shape (latent)", "range": "range", "var": "variance", "fft": "spectrum"}
    rows = range(len(e.neighbours))
    left = np.zeros(len(e.neighbours))
    for (part, label), colour in zip(names.items(), ("#0b2545", "#1f6fb2", "#7fb2dd", "#c9dff1"), strict=True):
        values = np.array([one.per_statistic[part] for one in e.neighbours])
        text.barh(rows, values, left=left, color=colour, height=0.7, label=label)
        left = left + values
    text.set_yticks(
        rows, [f"{row + 1}: {one.votes}/{one.raters}" for row, one in enumerate(e.neighbours)], fontsize=6.5
    )
    text.invert_yaxis()
    text.set_xlim(0, 1)
    text.set_xlabel("similarity S (1 = identical)", fontsize=7.5, color=MIDDLE)
    text.set_title(f"votes of all {len(e.neighbours)} neighbours", fontsize=8.5, color=DARK)
    text.tick_params(axis="x", labelsize=7, colors=MIDDLE)
    text.legend(fontsize=6, ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.17), frameon=False, handlelength=1,
                columnspacing=0.8)  # fmt: skip
    for side in ("top", "right"):
        text.spines[side].set_visible(False)


def _headings(figure: Any, e: Explanation, height: float) -> None:
    figure.text(
        0.035, 1 - 0.30 / height,
        f"This EEG looks like these EEGs: probability {100 * e.probability:.0f} %, from the votes on"
        f" {len(e.neighbours)} remembered cases (mean {100 * e.vote:.0f} %); detector alone {100 * e.black_box:.0f} %",
        fontsize=12, weight="bold", color=DARK, va="center", parse_math=False,
    )  # fmt: skip
    figure.text(
        0.035, 0.24 / height,
        f"Blue bars: channel weight (this EEG), contribution to S (cases). Dark traces: fewest channels that carry"
        f" {100 * SHOWN:.0f} % of it. All traces and all maps have one scale (maps: potential against the mean of the"
        " electrodes, at the largest deflection).\nA neighbour that does not convince is a reason to doubt the"
        " prediction.",
        fontsize=8, color=MIDDLE, va="center",
    )  # fmt: skip


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG, whole or not at all. Raises InputError for another suffix."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: the explanation figure is a .png file")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(path, buffer.getvalue())
