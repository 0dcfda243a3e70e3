"""What an intervention does and what it costs, dose by dose, beside random controls of the same size.

Measured under the hook: NLL of the labelled tokens of every kind (memorized ones should rise, the others stay),
perplexity of held-out text, share of records whose suffix is still recited greedily, and share of held-out positions
whose greedy next token changed. Suppression on memorized text alone proves nothing: any damage does that.

Knows how to run a model over sequences. Knows nothing about: how the direction was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.internals.neurons.intervention import Directions, intervene, random_directions
from rote.internals.neurons.stream import next_tokens, run_batches

if TYPE_CHECKING:
    from rote.internals.neurons.token_labels import TokenLabels
    from rote.models.causal_lm import CausalLM

SCALES = (0.5, 1.0, 2.0, 4.0)
Tokens = Sequence[Int[np.ndarray, " length"]]


def sequence_logp(
    model: CausalLM, sequences: Tokens
) -> tuple[list[Float[np.ndarray, " length"]], list[Int[np.ndarray, " length"]]]:
    """(log p(x_t), greedy token at t) of every token, under whatever hooks are in place; NaN and -1 where nothing is
    predicted."""
    logp = [np.full(len(sequence), np.nan) for sequence in sequences]
    greedy = [np.full(len(sequence), -1, np.int64) for sequence in sequences]
    for batch in run_batches(model, sequences):
        first = 1 - batch.bos
        lengths = [max(len(sequences[row]) - first, 0) for row in batch.rows]
        inside = torch.cat([batch.hidden[i, :length] for i, length in enumerate(lengths)])
        targets = torch.cat([batch.ids[i, 1 : length + 1] for i, length in enumerate(lengths)])
        mine, best = next_tokens(model, inside, targets)
        ends = np.cumsum(lengths)
        for row, end, length in zip(batch.rows, ends, lengths, strict=True):
            logp[row][first:], greedy[row][first:] = mine[end - length : end], best[end - length : end]
    return logp, greedy


def perplexity(logp: Sequence[Float[np.ndarray, " length"]]) -> float:
    """exp of the mean NLL over all predicted tokens."""
    flat = np.concatenate(list(logp))
    return float(np.exp(-np.nanmean(flat)))


def recited(greedy: Tokens, sequences: Tokens, *, prefix: int, suffix: int) -> Float[np.ndarray, " records"]:
    """1 where greedy decoding from the first `prefix` tokens gives the next `suffix` ones, which is the case exactly
    when every one of them is the argmax after the true tokens before it."""
    if any(len(sequence) < prefix + suffix for sequence in sequences):
        raise InputError(f"every record needs {prefix} + {suffix} tokens to be tested for recitation")
    window = slice(prefix, prefix + suffix)
    return np.array([float(np.array_equal(g[window], s[window])) for g, s in zip(greedy, sequences, strict=True)])


def kind_nll(model: CausalLM, labels: TokenLabels) -> dict[str, float]:
    """Mean NLL in nats of the labelled tokens of every kind."""
    used, row = np.unique(labels.sample, return_inverse=True)
    logp, _ = sequence_logp(model, [labels.sequences[sample] for sample in used])
    mine = np.array([logp[number][token] for number, token in zip(row, labels.token, strict=True)])
    return {
        name: float(-mine[labels.kind == number].mean())
        for number, name in enumerate(labels.kinds)
        if (labels.kind == number).any()
    }


def dose_response(
    model: CausalLM,
    direction: Directions,
    labels: TokenLabels,
    *,
    heldout: Tokens,
    records: Tokens | None = None,
    prefix: int = 16,
    suffix: int = 16,
    mode: str = "diff-means",
    scales: Sequence[float] = SCALES,
    positions: str = "all",
    random_controls: int = 1,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per dose: the direction, and the mean over `random_controls` random ones of the same norm.

    labels: tokens of passages the direction was NOT made from. heldout: ordinary unseen text. records: memorized
    records to recite. Row keys: direction (none, selected, random), mode, scale, nll_<kind> and rise_<kind> (nats over
    the untouched model), perplexity, cost (perplexity ratio - 1), extraction, greedy_changed.
    """
    base = _measure(model, labels, heldout, records, prefix, suffix)
    rows = [_row("none", mode, 0.0, base, base)]
    for scale in scales:
        with intervene(model, direction, mode=mode, scale=scale, positions=positions):
            rows.append(_row("selected", mode, scale, _measure(model, labels, heldout, records, prefix, suffix), base))
        control = []
        for number in range(random_controls):
            other = random_directions(direction, seed=seed + number)
            with intervene(model, other, mode=mode, scale=scale, positions=positions):
                measured = _measure(model, labels, heldout, records, prefix, suffix)
            control.append(_row("random", mode, scale, measured, base))
        if control:
            rows.append({key: _mean([row[key] for row in control]) for key in control[0]})
    return rows


def dose_at_cost(
    model: CausalLM,
    direction: Directions,
    heldout: Tokens,
    *,
    cost: float = 0.03,
    mode: str = "diff-means",
    largest: float = 16.0,
    steps: int = 12,
) -> tuple[float, float]:
    """(dose, its cost): the largest dose, found by bisection, whose perplexity on held-out text stays below
    (1 + cost) times that of the untouched model. Costs need not rise evenly, so the dose is a lower bound."""
    base = perplexity(sequence_logp(model, heldout)[0])

    def paid(scale: float) -> float:
        with intervene(model, direction, mode=mode, scale=scale) if scale else nullcontext():
            return perplexity(sequence_logp(model, heldout)[0]) / base - 1

    low, high, at_low = 0.0, largest, 0.0
    for _ in range(steps):
        middle = (low + high) / 2
        found = paid(middle)
        if found < cost:
            low, at_low = middle, found
        else:
            high = middle
    return low, at_low


def _measure(model, labels, heldout, records, prefix, suffix) -> dict[str, Any]:
    logp, greedy = sequence_logp(model, heldout)
    found: dict[str, Any] = {"nll": kind_nll(model, labels), "perplexity": perplexity(logp), "greedy": greedy}
    if records is not None:
        found["extraction"] = float(
            recited(sequence_logp(model, records)[1], records, prefix=prefix, suffix=suffix).mean()
        )
    return found


def _row(name: str, mode: str, scale: float, found: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"direction": name, "mode": mode, "scale": float(scale)}
    for kind, value in found["nll"].items():
        row[f"nll_{kind}"] = value
        row[f"rise_{kind}"] = value - base["nll"][kind]
    row["perplexity"] = found["perplexity"]
    row["cost"] = found["perplexity"] / base["perplexity"] - 1
    row["extraction"] = found.get("extraction")
    changed = [a != b for a, b in zip(found["greedy"], base["greedy"], strict=True)]
    row["greedy_changed"] = float(np.concatenate(changed).mean())
    return row


def _mean(values: list[Any]) -> Any:
    return values[0] if isinstance(values[0], str) or values[0] is None else float(np.mean(values))
