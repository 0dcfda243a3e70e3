"""Finished arms as scored models: every text stands behind one end-of-text token, as it does in the stream.

Knows the bed and the one forward pass. Knows no measure but the mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rote.errors import InputError
from rote.measures import membership
from rote.testbed.bed import Bed
from rote.testbed.train import Arm, arm_directory, is_finished

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.scores.table import TokenScores


def load_arm(bed: Bed, arm: Arm) -> CausalLM:
    """The arm's checkpoint, with an end-of-text token in front of every text. Raises: InputError when it is not
    trained."""
    from rote.models.causal_lm import CausalLM

    if not is_finished(bed, arm):
        raise InputError(
            f"arm {arm.name} of {bed.path} is not trained: run `rote testbed train {bed.path} --arms {arm.name}`"
        )
    return CausalLM.load(arm_directory(bed, arm), device="cpu", bos="always")


def trained_arms(bed: Bed) -> list[str]:
    """Names of the finished arms, standard and perturbed first."""
    found = [
        json.loads(p.read_text(encoding="utf-8"))["arm"] for p in sorted((bed.path / "arms").glob("[a-z]*/arm.json"))
    ]
    return sorted(found, key=lambda name: (name != "standard", name != "perturbed", name))


def score_texts(model: CausalLM, texts: Sequence[str]) -> TokenScores:
    """Per-token scores of texts, in order."""
    from rote.records.table import RecordTable
    from rote.scores.tokens import score_in_memory

    return score_in_memory(model, RecordTable.from_rows({"text": text} for text in texts))


def score_ids(model: CausalLM, rows: Sequence[Sequence[int]]) -> TokenScores:
    """Per-token scores of token sequences, in order."""
    from rote.records.table import RecordTable
    from rote.scores.tokens import score_in_memory

    return score_in_memory(model, RecordTable.from_rows({"token_ids": list(map(int, row))} for row in rows))


def mean_nll(scores: TokenScores) -> np.ndarray:
    """-1/T sum_t log p(x_t | x_<t) of every record, nats per token."""
    return -membership.loss(scores.logp)
