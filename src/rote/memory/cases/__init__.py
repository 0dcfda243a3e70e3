"""Reasoning from remembered cases: this EEG looks like these EEGs.

A detector whose prediction is the mean vote of the k most similar training segments; the memory can be read, audited
and edited case by case. Works for any multichannel epochs.
"""

from rote._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Montage": "rote.memory.cases.montage",
        "make_montage": "rote.memory.cases.montage",
        "SignalSettings": "rote.memory.cases.preprocessing",
        "TrainingSettings": "rote.memory.cases.training",
        "SpikeNet": "rote.memory.cases.backbone",
        "ChannelTrunk": "rote.memory.cases.backbone",
        "channel_weights": "rote.memory.cases.channel_weights",
        "similarity": "rote.memory.cases.similarity",
        "search_exact": "rote.memory.cases.search",
        "Shortlist": "rote.memory.cases.search",
    },
)
