"""Records as training items: token ids with BOS, the place where the answer begins, and padded batches of them.

A record with its own prefix is a question and its answer: only the suffix has labels. Any other record is a passage:
all of it has labels. BOS and boundary come from `rote.scores.sequences`, so they are those of every measurement; the
boundary is counted behind the BOS token, and a token that straddles it belongs to the answer.

Knows nothing about: losses, optimisers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rote.controls.editing.unlearning.losses import IGNORED
from rote.errors import InputError
from rote.scores.sequences import Split, prepare

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable


@dataclass(frozen=True)
class Item:
    """`ids` with BOS; the answer is ids[answer:]."""

    ids: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class Batch:
    """Right-padded. labels[b, t] is what position t predicts (ids[t + 1]), -100 for prompt and padding; `is_answer`
    marks the input positions that hold answer tokens; `rows` are the items' numbers."""

    input_ids: Int[Tensor, "batch tokens"]
    labels: Int[Tensor, "batch tokens"]
    is_answer: Bool[Tensor, "batch tokens"]
    rows: Int[np.ndarray, " batch"]


def items_of(model: CausalLM, records: RecordTable, *, name: str, long: str = "error") -> list[Item]:
    """One item a record, in order. Errors: `InputError`, as `prepare` says, and for a record without a label."""
    if not len(records):
        raise InputError(f"the {name} set is empty: give at least one record")
    prepared = prepare(model, records, Split(long=long))
    if prepared.skipped:
        row, reason = next(iter(prepared.skipped.items()))
        raise InputError(
            f"{name} record {records.column('id')[row][:60]!r} has {reason}; remove it or lengthen it"
            + (f" ({len(prepared.skipped) - 1:,} more such records)" if len(prepared.skipped) > 1 else "")
        )
    chars, tokens = records.column("prefix_chars"), records.column("prefix_tokens")
    bos = [] if model.bos_id is None else [model.bos_id]
    found = []
    for sequence in prepared.sequences(np.arange(len(records))):
        row = sequence.index
        asked = chars[row] is not None or tokens[row] is not None
        first = sequence.prefix if asked else 0
        ids = (*bos, *sequence.ids)
        answer = max(1, len(bos) + first)  # the very first token, without BOS, is predicted by nothing
        if answer >= len(ids):
            raise InputError(f"{name} record {records.column('id')[row][:60]!r} leaves no answer token to train on")
        found.append(Item(ids, answer))
    return found


def with_answer(item: Item, answer: Sequence[int]) -> Item:
    """The same prompt with other answer tokens."""
    return Item((*item.ids[: item.answer], *answer), item.answer)


def collate(
    items: Sequence[Item], rows: Int[np.ndarray, " batch"], device: torch.device | str, *, pad: int = 0
) -> Batch:
    """The items numbered `rows` as one right-padded batch. A causal model needs no mask for padding on the right."""
    chosen = [items[row] for row in rows]
    width = max(len(item.ids) for item in chosen)
    ids = np.full((len(chosen), width), pad, np.int64)
    labels = np.full((len(chosen), width), IGNORED, np.int64)
    is_answer = np.zeros((len(chosen), width), bool)
    for row, item in enumerate(chosen):
        size = len(item.ids)
        ids[row, :size] = item.ids
        labels[row, item.answer - 1 : size - 1] = item.ids[item.answer :]
        is_answer[row, item.answer : size] = True
    tensors = [torch.from_numpy(matrix).to(device) for matrix in (ids, labels, is_answer)]
    return Batch(*tensors, rows=np.asarray(rows))
