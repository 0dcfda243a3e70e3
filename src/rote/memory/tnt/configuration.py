"""The configuration of a language model whose layers are test-time memories: TNT, Titans or TTT.

Chunk sizes are part of the function, so the checkpoint keeps those it was trained with (`trained_chunks`), and a model
that would compute with others is refused, unless `chunk_mismatch` says otherwise. The bounds of the inner step
(`global_rate`, `local_rates`, `rate_max`) are fixed when the model is made and kept when stage 2 shrinks the chunks.

Knows nothing about: tensors, training.
Source: Li et al. 2025, "TNT", arXiv 2511.07343, secs. 4.1 and 4.2; figure 2 for what another chunk size does.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from rote.errors import InputError

MODEL_TYPE = "rote_tnt"
ARCHITECTURES = ("tnt", "titans", "ttt")
MISMATCHES = ("refuse", "allow")


class TNTConfig(PretrainedConfig):
    """Configuration of `TNTForCausalLM`.

    architecture: "tnt" (global_chunk, local_chunks, shard, qk_projection, projection_scale), "titans" or "ttt" (chunk).
    momentum, forget None: on for Titans, off otherwise. Rates None: 1 / chunk (TTT: 1). clip bounds gradient rows, None
    for none. intermediate_size 0 leaves the feed-forward out. There is no longest context.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 64,
        intermediate_size: int | None = None,
        num_hidden_layers: int = 2,
        num_heads: int = 1,
        architecture: str = "tnt",
        memory: str = "mlp",
        memory_depth: int = 2,
        memory_expansion: float = 2.0,
        activation: str = "silu",
        global_chunk: int | None = 2048,
        local_chunks: tuple[int, ...] | list[int] = (8,),
        shard: int = 2048,
        qk_projection: bool = True,
        projection_scale: str = "none",
        chunk: int = 64,
        momentum: bool | None = None,
        forget: bool | None = None,
        global_rate: float | None = None,
        local_rates: tuple[float, ...] | list[float] | None = None,
        rate_max: float | None = None,
        clip: float | None = 1.0,
        conv: int = 4,
        tie_word_embeddings: bool = False,
        initializer_range: float = 0.05,
        trained_chunks: dict[str, Any] | None = None,
        chunk_mismatch: str = "refuse",
        use_cache: bool = True,
        **kwargs,
    ):
        if architecture not in ARCHITECTURES:
            raise InputError(f"unknown architecture {architecture!r}; use one of {', '.join(ARCHITECTURES)}")
        if chunk_mismatch not in MISMATCHES:
            raise InputError(f"unknown chunk_mismatch {chunk_mismatch!r}; use one of {', '.join(MISMATCHES)}")
        titans = architecture == "titans"
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_heads = num_heads
        self.architecture = architecture
        self.memory = memory
        self.memory_depth = memory_depth
        self.memory_expansion = memory_expansion
        self.activation = activation
        self.global_chunk = global_chunk
        self.local_chunks = [int(size) for size in local_chunks]
        self.shard = shard
        self.qk_projection = qk_projection
        self.projection_scale = projection_scale
        self.chunk = chunk
        self.momentum = titans if momentum is None else momentum
        self.forget = titans if forget is None else forget
        sizes = [size for size in (chunk, global_chunk, *self.local_chunks) if size is not None]
        if any(size < 1 for size in sizes):
            raise InputError(f"chunk sizes are {sizes}: each must be 1 or more")
        self.global_rate = (1 / global_chunk if global_chunk else None) if global_rate is None else global_rate
        self.local_rates = [1 / size for size in self.local_chunks] if local_rates is None else list(local_rates)
        self.rate_max = (1.0 if architecture == "ttt" else 1 / chunk) if rate_max is None else rate_max
        self.clip = clip
        self.conv = conv
        self.initializer_range = initializer_range
        self.trained_chunks = trained_chunks
        self.chunk_mismatch = chunk_mismatch
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)  # pyright: ignore[reportCallIssue]

    @property
    def chunks(self) -> dict[str, Any]:
        """The chunk sizes (and resets) that this configuration computes with."""
        if self.architecture == "tnt":
            return {"global_chunk": self.global_chunk, "local_chunks": list(self.local_chunks), "shard": self.shard}
        return {"chunk": self.chunk}

    def check_chunks(self) -> None:
        """Raises InputError when the weights were trained with other chunk sizes and that was not allowed."""
        trained = self.trained_chunks
        if trained is None or self.chunk_mismatch == "allow" or trained == self.chunks:
            return
        told = "; ".join(
            f"{name} {trained.get(name)} in training, {value} now"
            for name, value in self.chunks.items()
            if trained.get(name) != value
        )
        raise InputError(
            f"the chunk sizes do not match the checkpoint ({told}): they are part of the function it learned; load it"
            " as it was trained, fine-tune it at the other size (stage 2), or say chunk_mismatch='allow'"
        )

    def with_chunks(self, *, chunk: int | None = None, local_chunks: list[int] | None = None) -> TNTConfig:
        """This configuration with other chunk sizes and the same bounds of the inner step; the mismatch is allowed.

        Raises InputError when another number of local memories is asked for, or the wrong kind of chunk.
        """
        content: dict[str, Any] = self.to_dict()
        content["chunk_mismatch"] = "allow"
        if self.architecture == "tnt":
            if chunk is not None or local_chunks is None:
                raise InputError("a TNT model has local chunks: give local_chunks, one size a local memory")
            if len(local_chunks) != len(self.local_chunks):
                raise InputError(f"the model has {len(self.local_chunks)} local memories, got chunks {local_chunks}")
            content["local_chunks"] = local_chunks
            return TNTConfig(**content)
        if chunk is None or local_chunks is not None:
            raise InputError(f"a {self.architecture} model has one chunk size: give chunk")
        if self.architecture == "ttt" and chunk != self.chunk:
            raise InputError(
                "a TTT model learns one step size a position of its mini-batch: its chunk cannot be changed"
            )
        content["chunk"] = chunk
        return TNTConfig(**content)
