"""Titans, TTT and TNT: layers whose memory is a small network trained while the sequence is read."""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "MemoryFunction": "rote.memory.tnt.memory_functions",
        "NeuralMemory": "rote.memory.tnt.titans",
        "TTTLayer": "rote.memory.tnt.ttt",
        "HierarchicalMemory": "rote.memory.tnt.hierarchy",
        "MemoryState": "rote.memory.tnt.state",
    },
)
