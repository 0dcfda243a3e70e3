"""The one small training loop: packed windows in the given order, one pass, AdamW with warm-up, cosine and clipping.

    batch b = rows b * bs .. (b + 1) * bs of the stream; loss = mean cross-entropy of tokens 2 .. L + 1 of each row

The order is the caller's and is never shuffled: two runs over streams that differ in a few rows see the same batches
otherwise. Deterministic for given weights and stream at a fixed number of threads (another number may round
differently). For large models use `transformers.Trainer`; this loop is for models that train in minutes on a CPU.

Knows nothing about text, probes or measures.
Source of the recipe: Wei et al. 2025, "Hubble", arXiv 2510.19811 (AdamW (.9, .95), cosine to 10 %, 5 % warm-up, decay
.1, clip 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from rote.errors import InputError, RoteError
from rote.models.unfinished import Unfinished, identity_of, put_back, training_tensors
from rote.runtime import threads, threads_for_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingConfig:
    """Recipe of one run. `threads` None: what `runtime.threads_for_width` measured to be fastest."""

    batch_size: int = 16
    learning_rate: float = 3e-3
    final_share: float = 0.1  # last learning rate / peak
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    threads: int | None = None

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: it must be 1 or more")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}: it must be positive")
        for name in ("final_share", "warmup_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} is {getattr(self, name)}: it must lie in [0, 1]")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Linear warm-up to the peak, then eta (f + (1 - f) (1 + cos(pi t)) / 2) with t in [0, 1], f =
        `final_share`."""
        warmup = max(1, round(self.warmup_share * steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return self.learning_rate * (
            self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
        )


def train_causal_lm(
    model: PreTrainedModel,
    stream: Int[np.ndarray, "sequences tokens"],
    config: TrainingConfig | None = None,
    *,
    progress: Callable[[int, int, float], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
) -> np.ndarray:
    """Train `model` in place over the stream, once, and return the training loss of every step (nats per token).

    Args:
        model: any Hugging Face causal LM; trained on the device it is on.
        stream: packed token ids, L + 1 per row, in training order; an incomplete last batch is left out.
        progress: called as progress(step, steps, loss) after every step.
        checkpoint: directory for resuming; written atomically every `checkpoint_every` steps (weights, AdamW moments,
            losses as safetensors), continued from when it belongs to this stream, recipe, model and library versions.
            The result is the same, bit for bit.
    Raises: InputError for token ids outside the vocabulary, rows longer than the context, a stream shorter than one
        batch, a checkpoint that is damaged or of another run; RoteError when the loss or the gradient stops being
        finite (nothing is written then).
    """
    import torch
    import torch.nn.functional as F

    config = config or TrainingConfig()
    _check_stream(model, stream, config)
    steps = len(stream) // config.batch_size
    device = next(model.parameters()).device
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]  # norms and biases are not decayed
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )
    losses = np.full(steps, np.nan, dtype=np.float32)
    kept, first = Unfinished(), 0
    if checkpoint:  # its identity holds no weights: it is taken before the first step
        identity = identity_of(asdict(config), model.config.to_json_string(), stream)
        kept = Unfinished(Path(checkpoint) / "state.safetensors", identity)
    if found := kept.read():
        put_back(found[0], model, optimizer)
        losses[:], first = found[0]["losses"].numpy(), found[1]["step"]
    width = int(getattr(model.config.get_text_config(), "hidden_size", 0) or 0)
    model.train()
    with threads(config.threads or threads_for_width(width)):
        for step in range(first, steps):
            rows = stream[step * config.batch_size : (step + 1) * config.batch_size]
            batch = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)).to(device)
            rate = config.learning_rate_at(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            losses[step] = value = loss.item()
            if not (math.isfinite(value) and math.isfinite(norm.item())):
                raise RoteError(
                    f"training diverged at step {step} of {steps}: loss {value}, gradient norm {norm.item()}, "
                    f"learning rate {rate:.3g}; lower the peak rate ({config.learning_rate:.3g}) or the clipping norm"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if progress:
                progress(step + 1, steps, value)
            if kept.file and checkpoint_every and (step + 1) % checkpoint_every == 0 and step + 1 < steps:
                kept.write(
                    training_tensors(model, optimizer) | {"losses": torch.from_numpy(losses)}, {"step": step + 1}
                )
    model.eval()
    return losses


def _check_stream(model: PreTrainedModel, stream: np.ndarray, config: TrainingConfig) -> None:
    if stream.ndim != 2 or stream.shape[1] < 2:
        raise InputError(
            f"a packed stream is a matrix (sequences, tokens) with 2 tokens or more, got shape {stream.shape}"
        )
    if len(stream) < config.batch_size:
        raise InputError(f"the stream has {len(stream)} sequences, fewer than one batch of {config.batch_size}")
    text = model.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    if context and stream.shape[1] - 1 > context:
        raise InputError(f"rows feed {stream.shape[1] - 1} tokens, the model's context is {context}: use shorter rows")
    low, high = int(stream.min()), int(stream.max())
    if low < 0 or high >= text.vocab_size:
        raise InputError(
            f"the stream has token ids {low} .. {high}, the model knows 0 .. {text.vocab_size - 1}: wrong tokenizer?"
        )
