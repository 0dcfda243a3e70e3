"""Theory made runnable: memorizing networks, bounds, certificates, capacity planning.

    robust       ReLU networks that memorize whole balls        certify      exact proofs for every ball, export
    generalize   memorizers that do, and do not, generalize     attention    facts in one attention layer
    cot          what chain of thought can memorize             exact_network, integer_memorizer: the common parts

The main entries are here; everything else is in the five packages. Names load their module when first used.
"""

from rote._lazy import lazy

_HOMES = {
    "rote.theory.robust": ("robust_relu_plan", "build_robust_memorizer"),
    "rote.theory.certify": ("collision_bound", "from_torch", "save_onnx", "vnnlib"),
    "rote.theory.generalize": (
        "AdversarialInterpolator",
        "SqrtMemorizer",
        "VoronoiMemorizer",
        "constant_size_core",
        "efficient_sample_size",
        "width_generalization_bound",
    ),
    "rote.theory.attention": (
        "attention_plan",
        "build_attention_memory",
        "measure_attention",
        "sequence_encoder_floor",
    ),
    "rote.theory.cot": ("build_cot_witness", "cot_check", "fixed_precision_floor"),
    "rote.theory.exact_network": ("ExactNetwork",),
    "rote.theory.integer_memorizer": ("memorize_integers",),
    "rote.theory.labelled_points": ("LabelledPoints", "read_labelled_points"),
}
__getattr__, __dir__, __all__ = lazy(__name__, {name: home for home, names in _HOMES.items() for name in names})
