"""Recited tokens seen from inside: token labels, activations, single units, linear probes, labelling of large text,
repetition and certainty, and interventions that switch recitation off.

Slonski 2024, "Detecting Memorization in Large Language Models", arXiv 2412.01014. Only its abstract and summaries could
be read: unit numbers, layers and percentages of the paper are unknown here, and inferred parts are named options.
"""

from rote._lazy import lazy

_HOMES = {
    "activations": ("ActivationStore",),
    "auto_labelling": (
        "ProbeLabeller",
        "TwoThresholds",
        "label_stream",
        "labels_of_stream",
        "read_stream",
        "threshold_labeller",
        "two_thresholds",
    ),
    "certainty": (
        "CertaintyUnit",
        "certainty_units",
        "ordinary_activations",
        "ordinary_tokens",
        "partial_auroc",
        "without_certainty",
    ),
    "coordinates": ("RunningMoments", "rank_auroc", "standardised_mean_difference"),
    "discriminant": ("fisher_reader",),
    "dose_response": ("dose_at_cost", "kind_nll", "sequence_logp"),
    "intervention": (
        "Direction",
        "intervene",
        "load_direction",
        "random_direction",
        "random_directions",
        "save_direction",
    ),
    "placement": ("choose_place", "class_direction", "together"),
    "probe_files": ("load_probe", "save_probe"),
    "probes": ("Probe", "ProbeReport", "cosine", "cross_auroc", "permuted_auroc", "sequence_score", "train_probe"),
    "repetition": ("repeated_segments",),
    "scoring": ("ScoredText", "score_texts", "token_scores"),
    "selection": ("Unit", "UnitSelection", "histograms", "select_units"),
    "sites": ("SITES", "Place", "output_matrix"),
    "specific": ("Part", "choose_specific"),
    "token_labels": ("TokenLabels",),
}

__getattr__, __dir__, __all__ = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
