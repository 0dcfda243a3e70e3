"""The chunk sweep: one set of weights, evaluated at several chunk sizes. Chunk size is part of the function.

Knows nothing about: training, files.
Source: Li et al. 2025, "TNT", arXiv 2511.07343, fig. 2 (a V with its tip at the trained chunk).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from rote.errors import InputError
from rote.memory.tnt.modeling import TNTForCausalLM
from rote.memory.tnt.training import evaluate, rechunked

if TYPE_CHECKING:
    import plotly.graph_objects


def at_chunk(model: TNTForCausalLM, chunk: int) -> TNTForCausalLM:
    """The model at this chunk size; all local memories of a TNT get the same one. Its own size gives the model."""
    if model.config.architecture == "tnt":
        chunks = [chunk] * len(model.config.local_chunks)
        return model if chunks == model.config.local_chunks else rechunked(model, local_chunks=chunks)
    return model if chunk == model.config.chunk else rechunked(model, chunk=chunk)


def chunk_sweep(
    model: TNTForCausalLM,
    stream: Int[np.ndarray, "sequences tokens"],
    chunks: Sequence[int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """One row a chunk size: chunk, loss (nats), perplexity, tokens, tokens_per_second, trained.

    Raises InputError for no chunk, a chunk below 1 or above the shard.
    """
    config = model.config
    if not chunks:
        raise InputError("there is nothing to sweep: give one chunk size or more")
    for chunk in chunks:
        if chunk < 1 or (config.architecture == "tnt" and chunk > config.shard):
            raise InputError(f"chunk {chunk} is not possible: it must lie in 1 .. {config.shard} (the shard)")
    trained = config.trained_chunks or config.chunks
    own = trained.get("local_chunks", [trained.get("chunk")])
    rows = []
    for done, chunk in enumerate(chunks):
        found = evaluate(at_chunk(model, chunk), stream)
        rows.append({"chunk": chunk, **asdict(found), "trained": set(own) == {chunk}})
        if progress:
            progress(done + 1, len(chunks))
    return rows


def sweep_figure(
    rows: Sequence[dict[str, Any]], *, title: str = "Perplexity by chunk size"
) -> plotly.graph_objects.Figure:
    """Perplexity against chunk size, the trained one marked; n tokens in the title."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=[row["chunk"] for row in rows], y=[row["perplexity"] for row in rows], mode="lines+markers", name="perplexity"
    )
    for row in rows:
        if row["trained"]:
            figure.add_vline(x=row["chunk"], line={"dash": "dot", "color": "#999"}, annotation_text="trained")
    figure.update_layout(title=f"Perplexity by chunk size (n = {rows[0]['tokens']:,} tokens)", template="plotly_white")
    figure.update_xaxes(type="log", title="chunk size at evaluation")
    figure.update_yaxes(title="perplexity")
    return figure
