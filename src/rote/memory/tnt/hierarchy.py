"""TNT's hierarchy as a layer: one global memory with huge chunks, several local ones that are reset to learned states.

    o_t = f(V_{xi(t, C_G)}, q_t) + sum_i f(W^i_t, Pi^i_t q^i_t)

The global memory V is carried through the sequence and read at the start of its chunk (up to C_G - 1 tokens stale),
with the raw query. Local memory i writes with chunk C_i, is read at every token, is reset to its learned W_init every
`shard` tokens, and its query goes through the query-key projection. Every memory has its own projections and gates.

The printed equation 6 takes W_{t-1} where the chunk's start must stand, or gradients would count twice; equation 3 is
followed. The projection is summed since the reset (appendix C), not since the chunk's start (limit in equation 7).

Knows nothing about: the closed form of a chunk, stages of training, language models.
Source: Li et al. 2025, "TNT", arXiv 2511.07343, secs. 4.1 and 4.2, apps. C, D, E.
"""

from __future__ import annotations

from collections.abc import Sequence

from rote.errors import InputError
from rote.memory.tnt.layer import MemoryLayer
from rote.memory.tnt.path import PathSettings
from rote.memory.tnt.titans import memory_function


class HierarchicalMemory(MemoryLayer):
    """y, state = HierarchicalMemory(dim)(x): TNT's memory layer.

    Args:
        global_chunk: C_G, or None for no global memory.
        local_chunks: one local memory each; its chunk size is part of the function.
        shard: tokens between two resets of the local memories.
        qk_projection, projection_scale: project local queries on the shard's keys; "none" (printed), "l2", "count".
        momentum, forget: of every memory; TNT's inner step is plain gradient descent, so off.
        global_rate, local_rates: bound of theta; default 1 / chunk. Kept, not computed again, when stage 2 shrinks the
            chunks.
        memory, depth, expansion, activation, clip, conv: as for NeuralMemory.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 1,
        global_chunk: int | None = 2048,
        local_chunks: Sequence[int] = (8,),
        shard: int = 2048,
        qk_projection: bool = True,
        projection_scale: str = "none",
        momentum: bool = False,
        forget: bool = False,
        global_rate: float | None = None,
        local_rates: Sequence[float] | None = None,
        memory: str = "mlp",
        depth: int = 2,
        expansion: float = 2.0,
        activation: str = "silu",
        clip: float | None = 1.0,
        conv: int = 4,
    ):
        if global_chunk is None and not local_chunks:
            raise InputError("a hierarchy needs a global memory or a local one: give global_chunk or local_chunks")
        if local_rates is not None and len(local_rates) != len(local_chunks):
            raise InputError(f"{len(local_rates)} local rates for {len(local_chunks)} local memories: give one each")
        function = memory_function(memory, depth=depth, expansion=expansion, activation=activation, clip=clip)
        common = {
            "dim": dim, "heads": heads, "function": function, "momentum": momentum, "forget": forget, "conv": conv,
        }  # fmt: skip
        paths = []
        if global_chunk is not None:
            rate = 1 / max(1, global_chunk) if global_rate is None else global_rate
            paths.append(PathSettings(**common, chunk=global_chunk, read="chunk", rate_max=rate))
        for i, chunk in enumerate(local_chunks):
            rate = 1 / max(1, chunk) if local_rates is None else local_rates[i]
            local = {"shard": shard, "qk_projection": qk_projection, "projection_scale": projection_scale}
            paths.append(PathSettings(**common, **local, chunk=chunk, rate_max=rate))
        super().__init__(paths)
