"""Why this prediction: the nearest cases, channel by channel and term by term.

    S(x, p) = sum_c per_channel_c = sum_i per_statistic_i,   per_channel_c = w_c(x) s_c(x, p)
    per_statistic_i = a_i sum_c w_c(x) s_{i,c}(x, p)

so both breakdowns of a neighbour add up to its similarity.

Knows nothing about: networks, files, drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rote.memory.cases.case_base import CaseBase
from rote.memory.cases.montage import Montage
from rote.memory.cases.preprocessing import SignalSettings
from rote.memory.cases.similarity import PARTS, Codes, part_similarities


@dataclass(frozen=True)
class Neighbour:
    """One remembered case. per_channel and per_statistic both sum to `similarity`; signal: cropped electrodes, uV."""

    id: str
    group: str
    votes: int
    raters: int
    similarity: float
    per_channel: Float[np.ndarray, " c"]
    per_statistic: dict[str, float]
    signal: Float[np.ndarray, "electrodes crop"]


@dataclass(frozen=True)
class Explanation:
    """A prediction and its reasons. vote: mean vote fraction of the neighbours; probability: calibrated;
    channel_weights: w (sum 1), in the order of `montage.channels`."""

    id: str
    vote: float
    probability: float
    black_box: float
    neighbours: tuple[Neighbour, ...]
    channel_weights: Float[np.ndarray, " c"]
    signal: Float[np.ndarray, "electrodes crop"]
    montage: Montage
    settings: SignalSettings

    def top_channels(self, count: int = 3) -> list[str]:
        """Names of the channels with most weight."""
        return [self.montage.channels[at] for at in np.argsort(-self.channel_weights, kind="stable")[:count]]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the signals, as plain values."""
        channels = self.montage.channels
        return {
            "id": self.id,
            "vote": self.vote,
            "probability": self.probability,
            "black_box": self.black_box,
            "channel_weights": dict(zip(channels, map(float, self.channel_weights), strict=True)),
            "neighbours": [
                {
                    "id": one.id,
                    "group": one.group,
                    "votes": one.votes,
                    "raters": one.raters,
                    "similarity": one.similarity,
                    "per_channel": dict(zip(channels, map(float, one.per_channel), strict=True)),
                    "per_statistic": one.per_statistic,
                }
                for one in self.neighbours
            ],
        }

    def plot(self, path: str | Path | None = None, *, cases: int = 4):
        """The explanation figure (matplotlib); written as PNG when a path is given. See `explain_figure`."""
        from rote.memory.cases.explain_figure import explain_figure, save_figure

        figure = explain_figure(self, cases=cases)
        return figure if path is None else save_figure(figure, path)


def neighbours_of(
    query: Codes, weights: Float[Tensor, "1 c"], base: CaseBase, index: np.ndarray, importance: Sequence[float]
) -> tuple[Neighbour, ...]:
    """The cases `index` as neighbours of one query, with both breakdowns of their similarity."""
    parts = torch.stack(part_similarities(query, base.codes.take(torch.from_numpy(index))))[:, 0]  # (4, k, c)
    shares = parts * weights[0] * torch.tensor(list(importance))[:, None, None]
    by_channel, by_part = shares.sum(0).double().numpy(), shares.sum(2).double().numpy()
    return tuple(
        Neighbour(
            str(base.ids[at]), str(base.groups[at]), int(base.votes[at]), base.raters, float(by_channel[row].sum()),
            by_channel[row], dict(zip(PARTS, map(float, by_part[:, row]), strict=True)), base.signals[at],
        )
        for row, at in enumerate(index)
    )  # fmt: skip
