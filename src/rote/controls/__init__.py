"""Controls: what changes what a model recites, while decoding, by editing weights, or during training."""

from rote._lazy import lazy

_HOMES = {
    "rote.controls.editing": ("edit_by_curvature", "svd_truncated", "train_supermask", "treat_by_curvature"),
    "rote.controls.editing.classifier_unlearning": ("UNLEARNERS", "make_unlearner", "rum"),
    "rote.controls.editing.unlearning": ("METHODS", "unlearn"),
    "rote.controls.decoding": ("ModeProbe", "causal_layer", "load_steering", "mode_steering"),
}
__getattr__, __dir__, __all__ = lazy(__name__, {name: home for home, names in _HOMES.items() for name in names})
