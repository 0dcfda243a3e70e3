"""Unlearning for causal language models: losses, one trainer, task vectors, and two stress tests (quantisation,
relearning)."""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "METHODS": "rote.controls.editing.unlearning.methods",
        "UnlearningReport": "rote.controls.editing.unlearning.methods",
        "method_settings": "rote.controls.editing.unlearning.methods",
        "unlearn": "rote.controls.editing.unlearning.methods",
        "LoraSettings": "rote.controls.editing.unlearning.settings",
        "MethodSettings": "rote.controls.editing.unlearning.settings",
        "TrainerSettings": "rote.controls.editing.unlearning.settings",
        "TrainingStopped": "rote.controls.editing.unlearning.trainer",
        "gradient_surgery": "rote.controls.editing.unlearning.trainer",
        "REFUSALS": "rote.controls.editing.unlearning.refusals",
        "add_task_vector": "rote.controls.editing.unlearning.task_vectors",
        "task_vector": "rote.controls.editing.unlearning.task_vectors",
        "fake_quantise": "rote.controls.editing.unlearning.quantise",
        "quantised": "rote.controls.editing.unlearning.quantise",
        "RelearningCurve": "rote.controls.editing.unlearning.relearn",
        "relearn_curve": "rote.controls.editing.unlearning.relearn",
        "steps_to_recovery": "rote.controls.editing.unlearning.relearn",
    },
)
