"""TTT-Linear and TTT-MLP as layers: a memory with layer norm and residual inside, averaged steps, no decay.

    f(x) = x + LN(MLP(x)),  l = ||f(k) - v||^2 / 2
    W_t = W_{t'} - max(0, 1/(j+1) + learned_j) sum_{i<=j} rate_i grad_i
    rate_i = base_rate sigmoid(w x_i + b) / width,  j the position in the mini-batch,  y = W_O LN(q + LN(read))

Rotary positions restart with every mini-batch. Agrees with the published module when its weights are copied.

Knows nothing about: the closed form of a mini-batch, language models.
Source: Sun et al. 2024, "Learning to (learn at test time)", arXiv 2407.04620, secs. 2.3 to 2.7 and its public code.
"""

from __future__ import annotations

from rote.memory.tnt.layer import MemoryLayer
from rote.memory.tnt.memory_functions import MemoryFunction
from rote.memory.tnt.path import PathSettings


class TTTLayer(MemoryLayer):
    """y, state = TTTLayer(dim)(x): TTT-Linear (depth 1) or TTT-MLP (depth 2, hidden width 4 times).

    Args:
        chunk: the mini-batch, 16 as published. Part of the function.
        rate_max: the base learning rate of the inner step (1.0 as published).
        gate: multiply by gelu(W_g x) before the output projection.
        conv: taps of a causal convolution before queries, keys and values, 0 for none.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 1,
        depth: int = 1,
        expansion: float = 4.0,
        chunk: int = 16,
        rate_max: float = 1.0,
        clip: float | None = None,
        gate: bool = False,
        conv: int = 0,
    ):
        function = MemoryFunction(depth, expansion, "gelu_tanh", head="residual", bias=True, clip=clip)
        settings = PathSettings(
            dim=dim, heads=heads, function=function, chunk=chunk, rate_max=rate_max, averaged=True, conv=conv,
            silu=False, unit_keys=False,
        )  # fmt: skip
        super().__init__([settings], gate="gelu" if gate else "none", norm="layer")
