"""Learning events: what the one training run already says of each example, recorded in any PyTorch loop.

    recorder = LearningEvents()
    for ids, x, y in loader:
        logits = model(x)
        recorder(ids, logits, y)        # the train-mode logits of this very step, before the update
        ...
    recorder.scores()["confidence"]

Logits are kept as they come and reduced in blocks, so a step costs one small copy. Scores are means over events, that
is over epochs when every epoch shows each example once.
Knows nothing about: the loop, the model. Augmentation changes p: record it on what the model was shown, and say so.
Source: Zhao & Triantafillou 2024, arXiv 2410.16516 (learning-event proxies, as their code computes them).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.measures.proxies import CLAMP, LEARNING_EVENTS

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 18  # logits that wait before they are reduced


class LearningEvents:
    """Sums of confidence, max confidence, negative entropy and binary accuracy per example id.

    `examples`: how many there are, to hear of those never shown; None: the largest id seen decides. `seconds` is the
    wall-clock this recorder took.
    """

    def __init__(self, examples: int | None = None):
        self.seconds = 0.0
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._size = 0
        self._expected = examples
        self._counts = np.zeros(examples or 0)
        self._sums = np.zeros((len(LEARNING_EVENTS), examples or 0))

    def __call__(
        self,
        ids: Int[torch.Tensor, " batch"],
        logits: Float[torch.Tensor, "batch classes"],
        labels: Int[torch.Tensor, " batch"],
    ) -> None:
        """Record one step. Errors: `InputError` for shapes that do not belong together."""
        start = time.perf_counter()
        if logits.ndim != 2 or len(ids) != len(logits) or len(labels) != len(logits):
            raise InputError(
                f"a step needs ids and labels [batch] with logits [batch, classes], got {tuple(ids.shape)},"
                f" {tuple(labels.shape)}, {tuple(logits.shape)}"
            )
        self._waiting.append((ids, logits.detach().clone(), labels))
        self._size += logits.numel()
        if self._size >= _BLOCK:
            self._reduce()
        self.seconds += time.perf_counter() - start

    @property
    def counts(self) -> Int[np.ndarray, " examples"]:
        """How often each example was shown."""
        self._reduce()
        return self._counts.astype(np.int64)

    def scores(self) -> dict[str, Float[np.ndarray, " examples"]]:
        """The four proxies per example id. Errors: `InputError` naming an example that no step showed."""
        start = time.perf_counter()
        self._reduce()
        if not len(self._counts) or (self._counts == 0).any():
            missing = int(np.argmax(self._counts == 0)) if len(self._counts) else 0
            raise InputError(
                f"example {missing} was in no recorded step ({int((self._counts == 0).sum())} were not); record every"
                " step of the training"
            )
        found: dict[str, np.ndarray] = dict(zip(LEARNING_EVENTS, self._sums / self._counts, strict=True))
        self.seconds += time.perf_counter() - start
        return found

    def _reduce(self) -> None:
        import torch

        if not self._waiting:
            return
        ids, logits, labels = (torch.cat([part.cpu() for part in parts]) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._size = [], 0
        rows = ids.numpy()
        self._grow(rows)
        logp = logits.float().log_softmax(-1)
        p = logp.exp()
        true = p.gather(1, labels[:, None])[:, 0]
        entropy = (p * logp.clamp_min(math.log(CLAMP))).sum(1)
        events = (true, p.amax(1), entropy, (p.argmax(1) == labels).float())
        count = len(self._counts)
        self._counts += np.bincount(rows, minlength=count)
        for total, event in zip(self._sums, events, strict=True):
            total += np.bincount(rows, weights=event.double().numpy(), minlength=count)

    def _grow(self, rows: np.ndarray) -> None:
        last = int(rows.max())
        if int(rows.min()) < 0 or (self._expected is not None and last >= self._expected):
            raise InputError(f"example id {last if last else rows.min()} is outside 0..{(self._expected or 0) - 1}")
        more = last + 1 - len(self._counts)
        if more > 0:
            self._counts = np.pad(self._counts, (0, more))
            self._sums = np.pad(self._sums, ((0, 0), (0, more)))
