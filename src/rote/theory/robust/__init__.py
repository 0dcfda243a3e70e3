"""Robust memorization in ReLU networks: definitions, bounds, and the networks that reach them (arXiv 2510.24643)."""

from __future__ import annotations

from rote._lazy import lazy

_HOMES = {
    "bounds": (
        "Bound",
        "all_bounds",
        "egosi_width",
        "lower_rate",
        "min_first_layer_parameters",
        "min_first_layer_width",
        "old_lower_rate",
        "old_upper_rates",
        "regime_endpoints",
        "shattered_points",
        "upper_rate",
    ),
    "definitions": (
        "Separation",
        "sample_ball",
        "sampled_error",
        "separation",
        "shatter_dataset",
        "width_dataset",
    ),
    "memorizer": ("RobustMemorizer", "build_robust_memorizer"),
    "norms": ("Radius", "gamma_p"),
    "plan": ("RobustPlan", "robust_relu_plan"),
    "plots": ("bounds_figure", "collision_figure", "growth_figure"),
}

_getattr, __dir__, _names = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
__getattr__ = _getattr
__all__ = [*_names]
