"""When does a memorizing network also generalize: Yu, Gao, Zhang, Miao 2024 (arXiv 2411.00372), made runnable.

Memorizers (`VoronoiMemorizer`, `SqrtMemorizer`, `AdversarialInterpolator`, `constant_size_core`), the law and the bound
of theorem 5.1, sample sizes, nearby sets, packings. Names load their module when first used.
"""

from __future__ import annotations

from rote._lazy import lazy

_HOMES = {
    "comparison": ("Compared", "compare_memorizers", "into_unit_cube", "pick_pair", "stratified_split"),
    "core": ("ConstantSizeCore", "constant_size_core"),
    "nearby": ("NearbySet", "nearby_set", "samples_for"),
    "packing": ("log2_cube_vertices", "log_core_bound", "log_core_bound_as_printed", "separated_vertices"),
    "sample_size": (
        "UpToConstant",
        "efficient_sample_size",
        "log10_nearby_set_bound",
        "necessary_samples",
        "sufficient_samples",
        "worst_law_nearby_samples",
        "worst_law_samples",
    ),
    "shell_law": ("ShellLaw",),
    "sqrt_memorizer": ("AdversarialInterpolator", "SqrtMemorizer"),
    "voronoi": ("VoronoiMemorizer",),
    "width_bound": ("decision_radius_squared", "smallest_hopeless_dimension", "width_generalization_bound"),
}

_getattr, __dir__, _names = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
__getattr__ = _getattr
__all__ = [*_names]
