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
        "TNTConfig": "rote.memory.tnt.configuration",
        "TNTForCausalLM": "rote.memory.tnt.modeling",
        "Evaluation": "rote.memory.tnt.training",
        "evaluate": "rote.memory.tnt.training",
        "finetune": "rote.memory.tnt.training",
        "rechunked": "rote.memory.tnt.training",
        "train": "rote.memory.tnt.training",
        "chunk_sweep": "rote.memory.tnt.sweep",
        "sweep_figure": "rote.memory.tnt.sweep",
        "RecallTask": "rote.memory.tnt.recall",
        "recall_accuracy": "rote.memory.tnt.recall",
        "train_recall": "rote.memory.tnt.recall",
        "most_surprising": "rote.memory.tnt.surprise",
        "token_surprise": "rote.memory.tnt.surprise",
    },
)
