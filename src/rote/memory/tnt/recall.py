"""Multi-query associative recall (MQAR): how much a memory stores, as an exact task.

A sequence is P pairs "key value", then keys asked for in random order among filler tokens; the target behind a key is
its value, which is never shown again. Keys, values and fillers are disjoint sets of tokens, drawn anew for every
sequence, so nothing can be learned by heart: accuracy is what the memory of this very sequence holds. On request the
first keys are told again with new values before anything is asked: the last value told is the right one, so that a
memory must replace, and not only add.

    chance = 1 / number of values

Knows nothing about: models but for the loop that trains one on it.
Source: Arora et al. 2023, "Zoology", arXiv 2312.04927, sec. 3 (the task).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rote.errors import InputError, RoteError

IGNORED = -100


@dataclass(frozen=True)
class RecallTask:
    """P pairs in the first 2 P tokens, the keys of the first `retold` told again with values drawn anew, then `queries`
    keys spread over the rest of `length` tokens.

    Token ids: 0 .. fillers - 1 fillers, then keys, then values.
    """

    pairs: int = 8
    length: int = 64
    queries: int = 8
    keys: int = 60
    values: int = 60
    fillers: int = 8
    retold: int = 0

    def __post_init__(self):
        if self.pairs < 1 or self.pairs > self.keys:
            raise InputError(f"{self.pairs} pairs need as many different keys; there are {self.keys}")
        if not 0 <= self.retold <= self.pairs:
            raise InputError(f"{self.retold} pairs cannot be told again: there are {self.pairs}")
        if not 1 <= self.queries <= self.length - self.told:
            raise InputError(
                f"{self.pairs} pairs, {self.retold} of them told again, and {self.queries} queries do not fit in"
                f" {self.length} tokens: make it longer"
            )

    @property
    def told(self) -> int:
        """Tokens of all pairs, before the first query may come."""
        return 2 * (self.pairs + self.retold)

    @property
    def vocab_size(self) -> int:
        return self.fillers + self.keys + self.values

    @property
    def chance(self) -> float:
        return 1 / self.values

    def batch(self, count: int, rng: np.random.Generator) -> tuple[Int[Tensor, "n length"], Int[Tensor, "n length"]]:
        """(input ids, targets): targets[t] is what follows t, the value of the key asked for at t, else -100."""
        ids = rng.integers(0, self.fillers, (count, self.length))
        targets = np.full((count, self.length), IGNORED)
        for row in range(count):
            keys = self.fillers + rng.permutation(self.keys)[: self.pairs]
            values = self.fillers + self.keys + rng.integers(0, self.values, self.pairs)
            ids[row, 0 : 2 * self.pairs : 2], ids[row, 1 : 2 * self.pairs : 2] = keys, values
            if self.retold:
                values[: self.retold] = self.fillers + self.keys + rng.integers(0, self.values, self.retold)
                ids[row, 2 * self.pairs : self.told : 2] = keys[: self.retold]
                ids[row, 2 * self.pairs + 1 : self.told : 2] = values[: self.retold]
            places = self.told + rng.permutation(self.length - self.told)[: self.queries]
            asked = np.concatenate(
                [rng.permutation(self.pairs) for _ in range(math.ceil(self.queries / self.pairs))]
            )[: self.queries]  # fmt: skip
            ids[row, places], targets[row, places] = keys[asked], values[asked]
        return torch.from_numpy(ids), torch.from_numpy(targets)


def recall_loss(model: nn.Module, ids: Tensor, targets: Tensor) -> Float[Tensor, ""]:
    """Mean cross-entropy at the queries. Only their hidden states go through the head."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # pyright: ignore
    asked = targets != IGNORED
    return F.cross_entropy(model.lm_head(hidden[asked]), targets[asked])  # pyright: ignore


def train_recall(
    model: nn.Module,
    task: RecallTask,
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    warmup: int = 20,
    decay: bool = True,
    seed: int = 0,
) -> list[float]:
    """Train in place on fresh sequences: AdamW, linear warm-up, cosine to zero (`decay`), gradients clipped to norm 1.

    Raises RoteError when the loss stops being finite.
    """
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        share = 0.5 * (1 + math.cos(math.pi * step / steps)) if decay else 1.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / max(1, warmup)) * share
        loss = recall_loss(model, *task.batch(batch_size, rng))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        losses.append(loss.item())
        if not (math.isfinite(losses[-1]) and math.isfinite(norm.item())):
            raise RoteError(
                f"training diverged at step {step} of {steps}: loss {losses[-1]}, gradient norm {norm.item()}; lower"
                " the learning rate, the inner rate or the clipping of the inner gradient"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return losses


def recall_accuracy(model: nn.Module, task: RecallTask, *, sequences: int = 256, seed: int = 1) -> float:
    """Share of queries whose most probable next token is the value."""
    rng, right, asked = np.random.default_rng(seed), 0, 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, sequences, 64):
            ids, targets = task.batch(min(64, sequences - start), rng)
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # pyright: ignore
            where = targets != IGNORED
            right += int((model.lm_head(hidden[where]).argmax(-1) == targets[where]).sum())  # pyright: ignore
            asked += int(where.sum())
    return right / asked
