"""The Titans neural memory as a layer: one memory, carried through the sequence, with momentum and forgetting.

    u_t = grad l(M_{t'}; k_t, v_t),  S_t = eta_t S_{t-1} - theta_t u_t
    M_t = (1 - alpha_t) M_{t-1} + S_t,  y_t = M_t(q_t)

t' is the start of the chunk; chunk = 1 is the online recurrence. This is the memory alone (LMM); the three arrangements
with attention (MAC, MAG, MAL) are not here.

Knows nothing about: the closed form of a chunk, shards, language models.
Source: Behrouz, Zhong, Mirrokni 2025, "Titans", arXiv 2501.00663, secs. 3.1 and 3.2.
"""

from __future__ import annotations

from rote.errors import InputError
from rote.memory.tnt.layer import MemoryLayer
from rote.memory.tnt.memory_functions import MemoryFunction
from rote.memory.tnt.path import PathSettings

MEMORIES = ("linear", "mlp")


def memory_function(
    memory: str, *, depth: int = 2, expansion: float = 2.0, activation: str = "silu", clip: float | None = 1.0
) -> MemoryFunction:
    """The network that remembers: "linear" (depth 1) or an "mlp" of `depth` layers, rows clipped at `clip`."""
    if memory not in MEMORIES:
        raise InputError(f"unknown memory {memory!r}; use one of {', '.join(MEMORIES)}")
    if memory == "mlp" and depth < 2:
        raise InputError(f"an mlp memory of depth {depth} is linear: say memory='linear', or give depth 2 or more")
    return MemoryFunction(1 if memory == "linear" else depth, expansion, activation, clip=clip)


class NeuralMemory(MemoryLayer):
    """y, state = NeuralMemory(dim)(x): Titans' memory layer.

    Args:
        dim, heads: width of the layer, shared by independent memories.
        memory, depth, expansion, activation: the network whose weights are the memory.
        momentum, forget: eta_t and alpha_t, data-dependent; off gives plain gradient descent.
        chunk: tokens whose gradients are taken at the same weights. Part of the function.
        read: "token" (M_t, as published) or "chunk" (the frozen weights at the chunk's start).
        rate_max: theta_t lies in (0, rate_max); default 1 / chunk, so that a chunk's summed step stays bounded.
        clip: bound on the norm of each token's gradient rows, None for none.
        conv: taps of the causal convolution on queries, keys and values, 0 for none.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 1,
        memory: str = "mlp",
        depth: int = 2,
        expansion: float = 2.0,
        activation: str = "silu",
        momentum: bool = True,
        forget: bool = True,
        chunk: int = 64,
        read: str = "token",
        rate_max: float | None = None,
        clip: float | None = 1.0,
        conv: int = 4,
    ):
        function = memory_function(memory, depth=depth, expansion=expansion, activation=activation, clip=clip)
        settings = PathSettings(
            dim=dim, heads=heads, function=function, chunk=chunk, read=read, momentum=momentum, forget=forget,
            rate_max=1 / max(1, chunk) if rate_max is None else rate_max, conv=conv,
        )  # fmt: skip
        super().__init__([settings])
