"""Where in a text a memory was told to change: tokens ranked by the norm of their gradient.

    surprise_t = sqrt( sum_{blocks, heads} ||grad_M l(M_{t'}; k_t, v_t)||^2 ),   t' the start of the token's chunk

High: the memory did not know this association yet and writes it. Low: it knew. Each path is ranked by itself, for a
global and a local memory measure different things.

Knows nothing about: tokenizers, files.
Source: Behrouz et al. 2025, "Titans", arXiv 2501.00663, sec. 3.1 (momentary surprise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rote.errors import InputError
from rote.memory.tnt.modeling import TNTForCausalLM


@dataclass(frozen=True)
class TokenSurprise:
    """One token: its place, its surprise, the shard and the chunk it fell in (numbered over the text)."""

    position: int
    token: int
    surprise: float
    shard: int | None
    chunk: int


def path_names(model: TNTForCausalLM) -> list[str]:
    """Names of the memories of a block, in order: global, local-8, local-16, ... or memory."""
    config = model.config
    if config.architecture != "tnt":
        return ["memory"]
    names = ["global"] if config.global_chunk is not None else []
    return [*names, *(f"local{i}-{size}" for i, size in enumerate(config.local_chunks))]


def token_surprise(
    model: TNTForCausalLM, input_ids: Int[Tensor, " tokens"], *, path: int | None = None
) -> Float[Tensor, " tokens"]:
    """Surprise of every token in one path (default: the first local memory, or the only one)."""
    names = path_names(model)
    path = (1 if names[0] == "global" and len(names) > 1 else 0) if path is None else path
    if not 0 <= path < len(names):
        raise InputError(f"there is no memory {path}; the model has {len(names)}: {', '.join(names)}")
    if not len(input_ids):
        raise InputError("the text is empty: there is no token to be surprised by")
    training = model.training
    model.eval()
    with torch.inference_mode():
        blocks = model.model.surprise(input_ids[None].to(model.device))
    model.train(training)
    return torch.stack([block[0, :, path].square().sum(-1) for block in blocks]).sum(0).sqrt()


def most_surprising(
    model: TNTForCausalLM, input_ids: Int[Tensor, " tokens"] | Sequence[int], *, top: int = 50, path: int | None = None
) -> list[dict[str, Any]]:
    """The `top` tokens by surprise, highest first."""
    input_ids = torch.as_tensor(input_ids, dtype=torch.int64)
    values = token_surprise(model, input_ids, path=path)
    names = path_names(model)
    chosen = (1 if names[0] == "global" and len(names) > 1 else 0) if path is None else path
    settings = model.model.blocks[0].memory.paths[chosen].settings  # pyright: ignore
    order = values.argsort(descending=True, stable=True)[:top].tolist()
    rows = []
    for position in order:
        shard = settings.shard
        inside = position % shard if shard else position
        before = 0 if not shard else (position // shard) * -(-shard // settings.chunk)
        chunk = before + inside // settings.chunk
        value = float(values[position])
        rows.append(
            TokenSurprise(position, int(input_ids[position]), value, position // shard if shard else None, chunk)
        )
    return [asdict(row) for row in rows]
