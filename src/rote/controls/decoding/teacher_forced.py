"""Where generation would begin in a whole text: so that scoring steers what generating would have steered.

A pass over a known text holds every position at once. To give the suffix the probability it has when the prefix is the
prompt, steering must begin at the prefix's last token: earlier positions are prompt. Records are found again in a batch
by their ids: by prefix and suffix together, else by the suffix at its place (the same suffix asked with another
prefix). A text that is no such record begins at its first position: all its tokens are judged as if generated, which
is the harshest reading for ordinary text.

Knows nothing about: steering, measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int

from rote.scores.sequences import Split, prepare

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable


def starts_from_records(
    model: CausalLM, tables: Iterable[RecordTable], split: Split | None = None
) -> Callable[[Int[torch.Tensor, "batch length"]], Int[torch.Tensor, " batch"]]:
    """`starts(ids)` for `mode_steering`: the position of the prefix's last token in each row, 0 for unknown texts.

    tables: records that are asked by prefix. split: how the audit cuts them.
    """
    cuts = []
    for table in tables:
        prepared = prepare(model, table, split)
        for sequence in prepared.sequences(prepared.order):
            cuts.append((sequence.ids, sequence.prefix, sequence.suffix))
    return RecordStarts(cuts, bos=0 if model.bos_id is None else 1)


class RecordStarts:
    """The look-up of `starts_from_records`, from (ids without BOS, prefix length a, suffix length k)."""

    def __init__(self, cuts: Sequence[tuple[Sequence[int], int, int]], *, bos: int):
        self.bos = bos
        self._whole: dict[tuple[int, int], set[bytes]] = {}
        self._suffix: dict[tuple[int, int], set[bytes]] = {}
        for ids, a, k in cuts:
            row = np.asarray(ids, np.int64)
            self._whole.setdefault((a, k), set()).add(row[: a + k].tobytes())
            self._suffix.setdefault((a, k), set()).add(row[a : a + k].tobytes())

    def __call__(self, ids: Int[torch.Tensor, "batch length"]) -> Int[torch.Tensor, " batch"]:
        rows = np.ascontiguousarray(ids.detach().cpu().numpy().astype(np.int64)[:, self.bos :])
        return torch.tensor([self._start(row) for row in rows], dtype=torch.int64)

    def _start(self, row: np.ndarray) -> int:
        for (a, k), known in self._whole.items():
            if row[: a + k].tobytes() in known:
                return max(0, a - 1 + self.bos)
        for (a, k), known in self._suffix.items():
            if row[a : a + k].tobytes() in known:
                return max(0, a - 1 + self.bos)
        return 0
