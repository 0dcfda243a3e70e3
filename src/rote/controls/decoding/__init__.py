"""Decode-time controls: labels of prompts, mode probe, causal layer, steering vector, and steering itself."""

from rote._lazy import lazy

_HOMES = {
    "contrastive": ("ContrastiveSteering",),
    "decoding_baselines": ("Abstention", "DoLa", "SmallerAmateur"),
    "files": ("SavedSteering", "load_steering", "save_steering"),
    "identifiability": ("gaussian_ib_curve", "infonce_bound", "retrieval_accuracy"),
    "labelling": ("LabelledPrompts", "label_prompts"),
    "mode_probe": ("ModeProbe", "ProbeFigures"),
    "patching": ("CausalLayer", "Pair", "causal_layer"),
    "steering": ("ModeSteering", "SteeringSettings", "Trace", "mode_steering"),
    "steering_vector": ("SteeringVector", "random_vector"),
    "treat": ("FittedSteering", "fit_steering", "greedy_recitation", "recitation_before_after"),
    "teacher_forced": ("starts_from_records",),
}

__getattr__, __dir__, __all__ = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
