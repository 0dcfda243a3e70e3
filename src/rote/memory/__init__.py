"""Models in which memory is the point: `tnt` learns at test time, `vista` keeps a lifetime in a cache, `cases` reasons
from remembered cases.

The main entries are here; everything else is in the three packages. Names load their module when first used.
"""

from rote._lazy import lazy

_HOMES = {
    "rote.memory.tnt": ("HierarchicalMemory", "NeuralMemory", "TNTConfig", "TNTForCausalLM", "TTTLayer"),
    "rote.memory.vista": ("Vista", "VistaConfig", "open_store", "read_interactions"),
    "rote.memory.cases": ("ProtoKNN", "load_case_base", "save_case_base"),
}
__getattr__, __dir__, __all__ = lazy(__name__, {name: home for home, names in _HOMES.items() for name in names})
