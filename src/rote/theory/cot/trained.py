"""Training small causal transformers on a table of words and outputs, several random starts at a time.

What Adam finds beside what the theorem allows. Knows one architecture (that of `fixed_precision`, in float32, weights
of any value) with no positions, a BOS token or learned positions. Deliberately does not know conditions or plans: a
failure to train proves nothing, and is never reported as an impossibility.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int

from rote.errors import InputError
from rote.runtime import derive_seed, threads
from rote.theory.cot.fixed_precision import MOST_DIGITS, SCALES, Shape
from rote.theory.cot.words import Word

STRICT = 1e-3  # a right output must lead by so much: float32 rounding alone must not tell equal inputs apart
CHECK_EVERY = 25
# The scales at which random bodies tell words apart (see there). With all of them 1 and no biases, words that differ in
# the order of their symbols alone start almost equal, and training leaves a few such pairs equal at any size.
START = SCALES | {"places": SCALES["embed"], "unembed": 1.0}


@dataclass(frozen=True)
class TrainedRuns:
    """accuracy: best share of words right (led by > 1e-3) that each start reached at one check; steps: the check at
    which it first had all words right, None when never; parameters: of one model.
    digits: the least q (up to 7) for which the weights of the start that was first to have all words right, rounded to
    q decimals, still have; None when no start had."""

    accuracy: tuple[float, ...]
    steps: tuple[int | None, ...]
    parameters: int
    digits: int | None

    @property
    def solved(self) -> int:
        return sum(step is not None for step in self.steps)


def train_table(
    table: Mapping[Word, int],
    *,
    shape: Shape,
    positions: str = "none",
    runs: int = 5,
    steps: int = 2000,
    learning_rate: float = 3e-3,
    enough: int | None = None,
    seed: int = 0,
) -> TrainedRuns:
    """Adam on the cross-entropy of the last position's output, all words in every step, `runs` starts side by side.

    table: word -> output, a symbol or STOP. positions: "none", "bos" (one more embedding, in front) or "absolute" (a
    learned vector for every place). enough: stop when so many starts have all words right (default: all of them).
    The learning rate falls to a tenth along a cosine. Deterministic for a seed.
    Errors: InputError for an empty table, unknown positions, runs or steps below 1.
    """
    if not table or runs < 1 or steps < 1:
        raise InputError("training needs at least one word, one run and one step")
    if positions not in ("none", "bos", "absolute"):
        raise InputError(f"positions must be none, bos or absolute, not {positions!r}")
    words = list(table)
    lead_in = (shape.symbols,) if positions == "bos" else ()
    prefixes = _prefixes([lead_in + word for word in words])
    goal = torch.tensor([table[word] % (shape.symbols + 1) for word in words])
    with threads(1):
        weights = _start(
            shape, runs, prefixes.chain.shape[1] if positions == "absolute" else 0, positions == "bos", seed
        )
        optimizer = torch.optim.Adam(weights.values(), lr=learning_rate, betas=(0.9, 0.99), fused=True)
        best, digits = torch.zeros(runs), None
        solved: list[int | None] = [None] * runs
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (0.55 + 0.45 * math.cos(math.pi * (step - 1) / steps))
            logits = _logits(weights, shape, prefixes)
            if step % CHECK_EVERY == 0 or step == steps:
                share = _share_right(logits.detach(), goal)
                if digits is None and (share == 1).any():
                    digits = _digits_needed(weights, int(share.argmax()), shape, prefixes, goal)
                best = torch.maximum(best, share)
                solved = [
                    step if old is None and s == 1 else old for old, s in zip(solved, share.tolist(), strict=True)
                ]
                if sum(item is not None for item in solved) >= (runs if enough is None else enough):
                    break
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), goal.repeat(runs), reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            (loss / len(words)).backward()  # a mean over words, a sum over runs: the runs do not share gradients
            optimizer.step()
    parameters = sum(weight[0].numel() for weight in weights.values())
    return TrainedRuns(tuple(best.tolist()), tuple(solved), parameters, digits)


def _share_right(
    logits: Float[torch.Tensor, "runs words outputs"], goal: Int[torch.Tensor, " words"]
) -> Float[torch.Tensor, " runs"]:
    index = goal.expand(len(logits), -1)[..., None]
    lead = logits.gather(2, index)[..., 0] - logits.scatter(2, index, -torch.inf).amax(2)
    return (lead > STRICT).float().mean(1)


def _digits_needed(
    weights: dict[str, torch.Tensor],
    run: int,
    shape: Shape,
    prefixes: _Prefixes,
    goal: Int[torch.Tensor, " words"],
) -> int | None:
    for digits in range(1, MOST_DIGITS + 1):
        limit = 10.0**digits
        rounded = {
            name: ((weight[run : run + 1].detach().double() * limit).round() / limit).clamp(-limit, limit)
            for name, weight in weights.items()
        }
        if float(_share_right(_logits(rounded, shape, prefixes), goal)) == 1:
            return digits
    return None


def _start(shape: Shape, runs: int, places: int, bos: bool, seed: int) -> dict[str, torch.Tensor]:
    """Weights of all runs, each with a leading axis of runs; each run has its own seed, so runs do not depend on how
    many there are."""
    sizes = shape.weights()
    sizes["embed"] = (shape.symbols + bos, shape.width)
    if places:
        sizes["places"] = (places, shape.width)
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in sizes}
    for run in range(runs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "start", run))
        for name, size in sizes.items():
            fan_in = 1 if name in ("embed", "places") or len(size) == 1 else size[-1]
            scale = START.get(name.rpartition(".")[2], 1.0) * fan_in**-0.5
            drawn[name].append(scale * torch.randn(size, generator=generator))
    return {name: torch.stack(items).requires_grad_() for name, items in drawn.items()}


def _logits(
    weights: dict[str, torch.Tensor], shape: Shape, prefixes: _Prefixes
) -> Float[torch.Tensor, "runs words outputs"]:
    z = weights["embed"].index_select(1, prefixes.token)
    if "places" in weights:
        z = z + weights["places"].index_select(1, prefixes.place)
    runs, width = len(z), z.shape[2]
    chain, beyond = prefixes.chain, prefixes.beyond
    for layer in range(shape.layers):
        key, value = (torch.bmm(z, weights[f"{layer}.{name}"].mT) for name in ("key", "value"))
        if layer == shape.layers - 1:  # from here on nothing is read but the words themselves
            z, chain, beyond = z.index_select(1, prefixes.word), chain[prefixes.word], beyond[prefixes.word]
        query = torch.bmm(z, weights[f"{layer}.query"].mT)
        nodes, length = chain.shape
        split = (runs, nodes, length, shape.heads, width // shape.heads)
        key, value = (item.index_select(1, chain.flatten()).view(split) for item in (key, value))
        scores = (query.view(runs, nodes, 1, *split[3:]) * key).sum(-1) / math.sqrt(split[4])
        share = scores.masked_fill(beyond[:, :, None], -torch.inf).softmax(2)
        mixed = (share[..., None] * value).sum(2).view(runs, nodes, width)
        z = z + torch.bmm(mixed, weights[f"{layer}.out"].mT)
        hidden = torch.baddbmm(weights[f"{layer}.bias"][:, None], z, weights[f"{layer}.up"].mT).relu()
        z = z + torch.bmm(hidden, weights[f"{layer}.down"].mT)
    return torch.bmm(z, weights["unembed"].mT)


class _Prefixes(NamedTuple):
    """The distinct prefixes of all words. A causal model's state at a place depends on the prefix alone, so each prefix
    is computed once however many words begin with it: the same function at a third of the cost for short words.

    token, place: last symbol and its place. chain: the prefixes of each prefix, shortest first, filled up with itself;
    beyond: where it is filled up. word: the node of every word.
    """

    token: Int[torch.Tensor, " nodes"]
    place: Int[torch.Tensor, " nodes"]
    chain: Int[torch.Tensor, "nodes longest"]
    beyond: Bool[torch.Tensor, "nodes longest"]
    word: Int[torch.Tensor, " words"]


def _prefixes(words: Sequence[Word]) -> _Prefixes:
    number: dict[Word, int] = {}
    for word in words:
        for end in range(1, len(word) + 1):
            number.setdefault(word[:end], len(number))
    longest = max(map(len, words))
    chains = [[number[node[: min(end, len(node))]] for end in range(1, longest + 1)] for node in number]
    lengths = torch.tensor([len(node) for node in number])
    return _Prefixes(
        torch.tensor([node[len(node) - 1] for node in number]),
        lengths - 1,
        torch.tensor(chains),
        torch.arange(longest) >= lengths[:, None],
        torch.tensor([number[word] for word in words]),
    )
