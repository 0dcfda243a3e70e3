"""Public names that are imported when first used (PEP 562), so that `import rote` and `rote -h` never wait for
PyTorch."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


def lazy(package: str, homes: dict[str, str]):
    """`__getattr__`, `__dir__` and `__all__` for a package whose public name N lives in module homes[N]."""

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*homes, *vars(sys.modules[package])})

    return __getattr__, __dir__, sorted(homes)
