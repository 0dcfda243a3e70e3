"""Model adapters, safe loading, and the small from-scratch models that studies train."""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CausalLM": "rote.models.causal_lm",
        "Encoding": "rote.models.causal_lm",
        "fingerprint_in_memory": "rote.models.causal_lm",
        "Checkpoint": "rote.models.safe_loading",
        "inspect_checkpoint": "rote.models.safe_loading",
        "ClassifierSpec": "rote.models.classifiers",
        "Examples": "rote.models.classifiers",
        "SgdRecipe": "rote.models.classifiers",
        "small_gpt2": "rote.models.builders",
        "small_llama": "rote.models.builders",
        "train_bpe": "rote.models.tokenizers",
        "TrainingConfig": "rote.models.training",
        "train_causal_lm": "rote.models.training",
    },
)
