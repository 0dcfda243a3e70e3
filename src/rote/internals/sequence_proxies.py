"""The two memorization proxies that carry over to causal language models: learning events of sequences, and holdout
retraining.

    with sequence_events(model) as events:      # any loop: transformers.Trainer, Accelerate, rote.models.training
        trainer.train()
    events.scores(sequences)["confidence"]

A forward hook reads the train-mode logits of the very step, before its update; a sequence is known by its tokens, so
no id has to travel through the loop. Scores that need subset trainings do not carry over at this scale, and the
rank correlations the paper reports are of classifiers: treat these as rankings to be checked against planted records.
Knows nothing about: records, strata, unlearning.
Source: Zhao & Triantafillou 2024, arXiv 2410.16516, transferred by averaging over a sequence's target tokens.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.measures.proxies import CLAMP, LEARNING_EVENTS

if TYPE_CHECKING:
    import torch

    from rote.models.training import TrainingConfig


class SequenceEvents:
    """Sums of the four learning-event proxies per sequence, each a mean over its target tokens 2 .. L."""

    def __init__(self):
        self._sums: dict[bytes, np.ndarray] = {}
        self._counts: dict[bytes, int] = {}

    def record(
        self,
        tokens: Int[torch.Tensor, "batch tokens"],
        logits: Float[torch.Tensor, "batch tokens vocabulary"],
        real: Int[torch.Tensor, "batch tokens"] | None = None,
    ) -> None:
        """One step: logits[:, t] predict tokens[:, t + 1]. `real` is 0 on padding, which is neither scored nor part of
        what a sequence is known by."""
        import torch

        mask = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.bool()
        target, scored = tokens[:, 1:], mask[:, 1:] & mask[:, :-1]
        rows = []
        with torch.no_grad():
            for row in range(len(tokens)):  # one sequence's (tokens, vocabulary) at a time, no second copy of the batch
                logp = logits[row, :-1].detach().float().log_softmax(-1)
                p = logp.exp()
                events = torch.stack([
                    p.gather(1, target[row][:, None])[:, 0],
                    p.amax(1),
                    (p * p.clamp_min(CLAMP).log()).sum(1),
                    (p.argmax(1) == target[row]).float(),
                ])  # fmt: skip
                rows.append((events * scored[row]).sum(1) / scored[row].sum().clamp_min(1))
            found = torch.stack(rows).double().cpu().numpy()
        ids, kept = tokens.cpu().numpy(), mask.cpu().numpy()
        for row, values in enumerate(found):
            name = _name(ids[row][kept[row]])
            self._sums[name] = self._sums.get(name, 0.0) + values
            self._counts[name] = self._counts.get(name, 0) + 1

    def scores(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> dict[str, Float[np.ndarray, " sequences"]]:
        """The proxies of these token sequences, exactly as they were fed; means over the times each was shown.

        Errors: `InputError` naming a sequence that no step showed.
        """
        names = [_name(np.asarray(sequence)) for sequence in sequences]
        for number, name in enumerate(names):
            if name not in self._sums:
                raise InputError(
                    f"sequence {number} was in no recorded step ({len(self._sums)} sequences were); give the token ids"
                    " exactly as the model was fed them"
                )
        means = np.array([self._sums[name] / self._counts[name] for name in names]).reshape(len(names), -1)
        found: dict[str, np.ndarray] = dict(zip(LEARNING_EVENTS, means.T, strict=True))
        return found

    def shown(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> Int[np.ndarray, " sequences"]:
        """How often each sequence was shown."""
        return np.array([self._counts.get(_name(np.asarray(sequence)), 0) for sequence in sequences])


@contextmanager
def sequence_events(model: Any) -> Iterator[SequenceEvents]:
    """Record every training-mode forward pass of a Hugging Face causal LM inside the block."""
    events = SequenceEvents()

    def hook(module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if module.training and tokens is not None and getattr(output, "logits", None) is not None:
            events.record(tokens, output.logits, kwargs.get("attention_mask"))

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield events
    finally:
        handle.remove()


def holdout_retraining_lm(
    model: Any,
    sequences: Int[np.ndarray, "sequences tokens"],
    holdout: Int[np.ndarray, "windows tokens"],
    config: TrainingConfig,
    *,
    epochs: int = 3,
    seed: int = 0,
    batch_size: int = 8,
) -> Float[np.ndarray, " sequences"]:
    """Mean over target tokens of 1/2 [KL(p_o || p_h) + KL(p_h || p_o)], p_h of a copy trained on unseen windows.

    Higher = more memorized. `model` (a Hugging Face causal LM) is left as it is; the copy is thrown away.
    Errors: `InputError` when most held-out windows are among the sequences; those of `train_causal_lm`.
    """
    import torch

    from rote.models.training import train_causal_lm

    known = {_name(row) for row in np.asarray(sequences)}
    shared = sum(_name(row) in known for row in np.asarray(holdout))
    if 2 * shared > len(holdout):
        raise InputError(f"{shared} of {len(holdout)} held-out windows are among the sequences; use unseen text")
    rng = np.random.default_rng(seed)
    tuned = copy.deepcopy(model).requires_grad_(True)
    train_causal_lm(tuned, np.concatenate([rng.permutation(holdout) for _ in range(epochs)]), config)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    found = []
    with torch.no_grad():
        for start in range(0, len(sequences), batch_size):
            ids = torch.from_numpy(np.asarray(sequences[start : start + batch_size], dtype=np.int64)).to(device)
            p, q = (
                side(input_ids=ids, use_cache=False).logits[:, :-1].float().softmax(-1).clamp_min(CLAMP)
                for side in (model, tuned)
            )
            found.append((0.5 * ((p - q) * (p.log() - q.log())).sum(-1)).mean(1).double().cpu().numpy())
    model.train(was_training)
    return np.concatenate(found)


def _name(tokens: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype=np.int64).tobytes()).digest()
