"""One number per token of any text, by a forward pass of the target model alone: how much it looks recited.

Long texts are read in windows of the context that overlap by half, and a token takes its score from the window in which
it has the most context. Tokens predicted from the first input position (or from nothing) have no score: NaN.

Knows windows and places. Knows nothing about: how the rule that scores was made, files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError, RunMismatchError
from rote.internals.neurons.sites import Place
from rote.internals.neurons.stream import run_batches

if TYPE_CHECKING:
    from rote.internals.neurons.probes import Probe
    from rote.models.causal_lm import CausalLM

#: Activations [tokens, dim] -> one number per token.
Rule = Callable[[Float[np.ndarray, "tokens dim"]], Float[np.ndarray, " tokens"]]


@dataclass(frozen=True)
class ScoredText:
    """One text's tokens. ends: the character before which each token ends. score: NaN where there is none."""

    ids: Int[np.ndarray, " tokens"]
    ends: Int[np.ndarray, " tokens"]
    score: Float[np.ndarray, " tokens"]


def windows(tokens: int, room: int | None) -> list[tuple[int, int, int]]:
    """(start, stop, first) of each window: tokens start..stop are read, those from `first` on take their score there.

    Every token is scored once; those of later windows have at least half a window of context.
    """
    if room is None or tokens <= room:
        return [(0, tokens, 0)]
    step = max(1, room // 2)
    found = [(0, room, 0)]
    while found[-1][1] < tokens:
        start = min(found[-1][0] + step, tokens - room)
        found.append((start, start + room, found[-1][1]))
    return found


def score_sequences(
    model: CausalLM,
    place: Place,
    rule: Rule,
    sequences: Sequence[Sequence[int] | Int[np.ndarray, " tokens"]],
    *,
    batch_tokens: int | None = None,
) -> list[Float[np.ndarray, " tokens"]]:
    """`rule` of the activation that predicts each token; an empty sequence has no scores."""
    room = None if model.context_length is None else model.context_length - (model.bos_id is not None)
    pieces, homes = [], []
    for number, sequence in enumerate(sequences):
        for start, stop, first in windows(len(sequence), room) if len(sequence) else ():
            pieces.append(np.asarray(sequence[start:stop], np.int64))
            homes.append((number, start, stop, first))
    out = [np.full(len(sequence), np.nan) for sequence in sequences]
    for batch in run_batches(model, pieces, [place], batch_tokens=batch_tokens):
        activation = batch.activations[place]
        least = 1 if batch.bos else 2  # a token predicted at input 0 has no score
        for i, row in enumerate(batch.rows):
            number, start, stop, first = homes[row]
            token = np.arange(max(least, first - start), stop - start)
            if len(token):
                values = activation[i, token[0] - 1 + batch.bos : token[-1] + batch.bos].float().cpu().numpy()
                out[number][start + token] = rule(values)
    return out


def probability(probe: Probe) -> Rule:
    """sigmoid of the probe's logit."""

    def rule(values: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(probe.linear.logit(values))

    return rule


def score_texts(probe: Probe, model: CausalLM, texts: Sequence[str], *, any_model: bool = False) -> list[ScoredText]:
    """P(memorized) of every token. Raises RunMismatchError on a model the probe was not fitted on: coordinates of
    another model mean something else; `any_model` reads them nevertheless (for a control, say)."""
    check_model(probe, model, any_model=any_model)
    encoded = model.encode(list(texts))
    scores = score_sequences(model, probe.place, probability(probe), [e.ids for e in encoded])
    return [
        ScoredText(np.asarray(e.ids, np.int64), np.asarray(e.ends, np.int64), score)
        for e, score in zip(encoded, scores, strict=True)
    ]


def token_scores(probe: Probe, model: CausalLM, texts: Sequence[str]) -> list[Float[np.ndarray, " tokens"]]:
    """The scores of `score_texts` alone."""
    return [scored.score for scored in score_texts(probe, model, texts)]


def check_model(probe: Any, model: CausalLM, *, any_model: bool = False) -> None:
    """Refuse a model whose fingerprint is not the probe's."""
    if not any_model and probe.model != model.fingerprint:
        raise RunMismatchError(
            f"the probe was fitted on another model than {model.name} (fingerprint {probe.model[:12]}..., not"
            f" {model.fingerprint[:12]}...): fit one for this model"
        )
    from rote.internals.neurons.stream import widths

    width = widths(model, [probe.place])[probe.place]
    if width != len(probe.mean0):
        raise InputError(
            f"the probe reads {len(probe.mean0)} coordinates, {model.name} has {width} at {probe.place.site} of layer"
            f" {probe.place.layer}"
        )
