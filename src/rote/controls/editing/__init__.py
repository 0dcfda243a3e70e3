"""Editing weights: the curvature edit and what it is compared with. Each edit can be undone or committed."""

from rote._lazy import lazy

_HOMES = {
    "curvature": ("CurvatureReport", "LayerFigures", "edit_by_curvature", "treat_by_curvature"),
    "curvature_sweep": ("METHODS", "at_matched", "sweep"),
    "matrix_edit": ("MatrixEdit",),
    "selection": ("PairSelection", "select_by_mass", "select_pairs"),
    "supermask": ("SupermaskReport", "train_supermask"),
    "svd_truncation": ("svd_truncated",),
}

__getattr__, __dir__, __all__ = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
