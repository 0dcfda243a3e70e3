"""What a classifier's training says of each example: learning events, holdout retraining, input curvature, and the
subset ensemble that memorization is defined by."""

from rote._lazy import lazy

_HOMES = {
    "holdout": ("holdout_retraining",),
    "learning_events": ("LearningEvents",),
    "input_curvature": ("CurvatureRecorder", "loss_curvature"),
    "subset_ensemble": ("SubsetEnsemble", "draw_subsets", "train_subset_ensemble"),
}

__getattr__, __dir__, __all__ = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
