"""Arms whose models copy from the context, when a bed's `copying_rows` asks for it.

    start      heads that copy are planted in the initial weights (`rote.models.copying_heads`), the same in every arm
    batch      the bed's rows and `copying_rows` in which a segment recurs (`rote.records.recurring`), the same in every
               arm; every row begins with end-of-text, as text does when it is scored

Segments are cut from the bed's background, which holds none of the planted passages and none of the unseen text; a
quarter is drawn from the vocabulary. Without practice such heads fade: hardly anything recurs in rows this short.

Knows beds and models. Knows nothing about: measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rote.testbed.bed import Bed


def initial_model(bed: Bed) -> PreTrainedModel:
    """The weights every arm of the bed begins with.

    Raises InputError when heads that copy do not fit the settings.
    """
    from rote.models.builders import BUILDERS, small_llama

    settings = bed.settings
    shape: dict[str, Any] = {
        "vocab_size": len(bed.tokenizer),
        "context_length": settings.sequence_tokens + 15,  # room for a begin-of-text token and a few generated ones
        "width": settings.width,
        "layers": settings.layers,
        "heads": settings.heads,
        "eos_id": bed.eos_id,
        "seed": settings.seed,
    }
    if not settings.copying_rows:
        return BUILDERS[settings.architecture](**shape)
    from rote.models.copying_heads import plant_copying_heads

    model = small_llama(**shape, attention_bias=True)
    plant_copying_heads(model, begin_id=bed.eos_id, seed=settings.seed)
    return model


def with_practice(bed: Bed, stream: Int[np.ndarray, "sequences tokens"]) -> Int[np.ndarray, "rows tokens"]:
    """The rows an arm trains on: the stream itself, or each of its whole batches with `copying_rows` more."""
    from rote.records.recurring import recurring_rows

    settings = bed.settings
    size, extra, width = settings.batch_size, settings.copying_rows, stream.shape[1]
    if not extra:
        return stream
    batches = len(stream) // size
    practice = recurring_rows(
        batches * extra,
        width,
        np.load(bed.path / "background.npy"),
        np.setdiff1d(np.arange(len(bed.tokenizer)), [bed.eos_id]),
        seed=settings.seed,
    )
    both = [stream[: batches * size].reshape(batches, size, width), practice.reshape(batches, extra, width)]
    rows = np.concatenate(both, axis=1, dtype=stream.dtype).reshape(-1, width)
    return np.insert(rows, 0, bed.eos_id, axis=1)
