"""Certificates for ReLU networks: exact stable-affine analysis, mixed-integer programs, collisions, and export."""

from __future__ import annotations

from rote._lazy import lazy

_HOMES = {
    "certificate": ("Certificate", "RecordVerdict", "certify_balls", "largest_certified"),
    "collision": ("CollisionBound", "collision_bound"),
    "export": ("compare_onnx", "load_exact", "save_exact", "save_onnx", "vnnlib"),
    "sequential": ("from_torch", "load_sequential"),
    "stable": ("StableResult", "stable_affine"),
}

_getattr, __dir__, _names = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
__getattr__ = _getattr
__all__ = [*_names]
