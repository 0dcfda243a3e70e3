"""White-box analyses: what goes on inside a model that recites."""

from rote._lazy import lazy

_HOMES = {
    "rote.internals.classifier": ("LearningEvents", "holdout_retraining", "loss_curvature", "train_subset_ensemble"),
    "rote.internals.curvature": ("collect_causal_lm", "select_matrices"),
    "rote.internals.neurons": ("ActivationStore", "TokenLabels", "intervene", "select_units", "train_probe"),
}
__getattr__, __dir__, __all__ = lazy(__name__, {name: home for home, names in _HOMES.items() for name in names})
