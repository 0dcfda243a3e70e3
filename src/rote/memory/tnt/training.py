"""Stage 1 and stage 2: train at large chunks, then briefly at small ones; perplexity; a model at other chunk sizes.

The training loop is `rote.models.train_causal_lm` (packed windows, AdamW, cosine, resume, divergence guard); a
`transformers.Trainer` does as well, for the model is an ordinary `PreTrainedModel`. After training, the checkpoint's
configuration says which chunk sizes its weights belong to.

Knows nothing about: the closed form, tokenizers.
Source: Li et al. 2025, "TNT", arXiv 2511.07343, secs. 4.1 and 4.2 (stage 2: smaller local chunks, global chunk kept,
about 5 % of the compute of stage 1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int

from rote.errors import InputError, RoteError
from rote.memory.tnt.configuration import TNTConfig
from rote.memory.tnt.modeling import TNTForCausalLM
from rote.models import TrainingConfig, train_causal_lm
from rote.runtime import threads, threads_for_width

TRAINABLE = ("all", "local")
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per predicted token, exp of it, tokens predicted, and tokens read per second."""

    loss: float
    perplexity: float
    tokens: int
    tokens_per_second: float


def train(
    model: TNTForCausalLM,
    stream: Int[np.ndarray, "sequences tokens"],
    config: TrainingConfig | None = None,
    *,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
) -> np.ndarray:
    """Train in place over the stream, once; the losses of all steps. The configuration then names the chunk sizes."""
    losses = train_causal_lm(
        model, stream, config, progress=progress, checkpoint=checkpoint, checkpoint_every=checkpoint_every
    )  # fmt: skip
    model.config.trained_chunks, model.config.chunk_mismatch = model.config.chunks, "refuse"
    return losses


def finetune(
    model: TNTForCausalLM,
    stream: Int[np.ndarray, "sequences tokens"],
    *,
    local_chunks: list[int] | None = None,
    chunk: int | None = None,
    trainable: str = "all",
    config: TrainingConfig | None = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
) -> TNTForCausalLM:
    """Stage 2: a copy of the model with smaller local chunks (or `chunk`, for Titans), trained further on the stream.

    trainable "local" moves the parameters of the local memories only; "all" is ordinary continued training. The length
    of stage 2 is the length of the stream. Raises InputError as `with_chunks` does, and for an unknown `trainable`.
    """
    if trainable not in TRAINABLE:
        raise InputError(f"unknown trainable {trainable!r}; use one of {', '.join(TRAINABLE)}")
    tuned = rechunked(model, local_chunks=local_chunks, chunk=chunk)
    if trainable == "local":
        for name, parameter in tuned.named_parameters():
            parameter.requires_grad_(_is_local(tuned.config, name))
        if not any(parameter.requires_grad for parameter in tuned.parameters()):
            raise InputError("trainable='local' needs a TNT model with local memories: use trainable='all'")
    train(
        tuned, stream, config, progress=progress, checkpoint=checkpoint, checkpoint_every=checkpoint_every
    )  # fmt: skip
    return tuned.requires_grad_(True)


def rechunked(
    model: TNTForCausalLM, *, local_chunks: list[int] | None = None, chunk: int | None = None
) -> TNTForCausalLM:
    """A copy of the model that computes with other chunk sizes: another function of the same weights."""
    config = model.config.with_chunks(local_chunks=local_chunks, chunk=chunk)
    other = TNTForCausalLM(config)
    other = other.to(device=model.device, dtype=model.dtype)  # pyright: ignore[reportCallIssue]
    other.load_state_dict(model.state_dict())
    return other.train(model.training)


def repeated(
    rows: Int[np.ndarray, "sequences tokens"], epochs: float, batch_size: int
) -> Int[np.ndarray, "steps tokens"]:
    """The rows `epochs` times over, in order; one batch at least."""
    return np.resize(rows, (max(batch_size, round(epochs * len(rows))), rows.shape[1]))


def evaluate(model: TNTForCausalLM, stream: Int[np.ndarray, "sequences tokens"], *, batch_size: int = 8) -> Evaluation:
    """Perplexity of tokens 2 .. L + 1 of every row. Raises InputError for an empty stream or foreign token ids,
    RoteError where the memory diverges (a loss that is not finite)."""
    if stream.ndim != 2 or stream.shape[1] < 2 or not len(stream):
        raise InputError(f"a packed stream is a matrix (sequences, tokens) with 2 tokens or more, got {stream.shape}")
    if stream.min() < 0 or stream.max() >= model.config.vocab_size:
        raise InputError(
            f"the stream has token ids {stream.min()} .. {stream.max()}, the model knows 0 .. "
            f"{model.config.vocab_size - 1}: wrong tokenizer?"
        )
    training, total, begin = model.training, 0.0, time.perf_counter()
    model.eval()
    with torch.inference_mode(), threads(threads_for_width(model.config.hidden_size)):
        for start in range(0, len(stream), batch_size):
            rows = np.ascontiguousarray(stream[start : start + batch_size], dtype=np.int64)
            batch = torch.from_numpy(rows).to(model.device)
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            total += F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum").item()
    seconds = time.perf_counter() - begin
    model.train(training)
    tokens = len(stream) * (stream.shape[1] - 1)
    if not math.isfinite(total):
        raise RoteError(
            "the memory diverged while reading: the loss is not finite. The chunk is larger than the step allows (a sum"
            " of stale gradients): evaluate at the trained chunk, or train with a smaller rate or with clip"
        )
    loss = total / tokens
    return Evaluation(loss, math.exp(min(loss, 700.0)), tokens, tokens / max(seconds, 1e-9))


def _is_local(config: TNTConfig, name: str) -> bool:
    """Does this parameter belong to a local memory? The global one is the first path, where there is one."""
    if config.architecture != "tnt" or ".paths." not in name:
        return False
    return config.global_chunk is None or int(name.partition(".paths.")[2].partition(".")[0]) > 0
