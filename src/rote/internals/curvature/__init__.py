"""Loss curvature of weight matrices: K-FAC factors, their eigenbasis, and how strongly text drives each curvature band.

Merullo et al. 2025, arXiv 2510.24256. What is done with the basis (the edit) lives in
`rote.controls.editing.curvature`.
"""

from rote._lazy import lazy

_HOMES = {
    "bands": ("BANDS", "band_masks", "band_strengths", "rises_through_bands"),
    "collect": ("LABELS", "collect_causal_lm", "collect_classifier"),
    "eigenbasis": ("Eigenbasis", "decompose", "effective_rank", "eigenbasis_of"),
    "ekfac": ("ekfac_masses_causal_lm", "ekfac_masses_classifier"),
    "factors": ("FactorSet", "LayerFactors", "mixed", "weights_fingerprint"),
    "layers": ("MatrixLayer", "default_layers", "expand_braces", "select_matrices"),
    "windows": ("packed_windows",),
}

__getattr__, __dir__, __all__ = lazy(
    __name__, {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
)
