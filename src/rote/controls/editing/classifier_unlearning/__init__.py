"""Unlearning for classifiers: nine unlearners, and RUM, which applies them stratum by stratum."""

from rote._lazy import lazy

_HOMES = {
    "base": ("Unlearner", "lost_classes", "unlearn"),
    "fine_tuning": ("FineTune", "L1Sparse", "Retrain"),
    "gradient_ascent": ("NegGrad", "NegGradPlus"),
    "registry": ("UNLEARNERS", "make_unlearner"),
    "relabelling": ("RandomLabel", "SalUn", "saliency_mask"),
    "scrubbing": ("Scrub",),
    "sequence": ("RumResult", "continual", "rum", "shuffled"),
    "woodfisher": ("Influence", "inverse_fisher_product"),
}

__getattr__, __dir__, __all__ = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
