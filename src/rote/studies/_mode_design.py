"""A task with two modes and no surface cue between them: a rule, and memorized exceptions of the same format.

    R a b c d =  ->  d c b a       any 4 of 30 symbols (the rule: reversal)
    R a b c d =  ->  w x y z       240 planted 4-tuples with a random answer of their own (the exceptions)

A small Llama is trained on fresh tuples and planted ones, with the loss on the four answer tokens. Two kinds of prompts
are matched with a planted tuple, and the rule answers both: a *near* one has one symbol changed; a *partner* is a fresh
tuple that ends in the same symbol, so that the rule's answer to either begins alike.

Knows nothing about: steering, claims. Source of the design: the card's pilot for Zhang 2025, arXiv 2510.22099.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from rote.models.causal_lm import CausalLM
from rote.runtime import derive_seed, threads, threads_for_width

SYMBOLS, LENGTH = 30, 4
END, RULE, EQUALS, FIRST = 0, 1, 2, 3
VOCABULARY = FIRST + SYMBOLS
PLANTED = 240
Tuples = Int[np.ndarray, "tuples 4"]


@dataclass(frozen=True)
class Recipe:
    """The model and its training.

    Layers, width, heads and learning rate are the card's. Its training, 2,500 steps of 64 + 64 rows, takes four
    CPU-minutes. On development seeds a third of that left both modes whole, and narrow MLPs and more exceptions than
    fresh tuples in a batch made the mode easier to read (AUC .83 to .87 for .72 to .81).
    """

    width: int = 128
    mlp_width: int = 128
    layers: int = 4
    heads: int = 4
    steps: int = 1200
    fresh: int = 32  # rows of a batch that follow the rule
    planted: int = 64  # rows of a batch that are exceptions
    learning_rate: float = 2e-3
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Exceptions:
    """Planted tuples (symbols 0 .. 29) and the answers to them; an answer is never the rule's, nor begins like it, so
    that one token tells the two modes apart."""

    tuples: Tuples
    answers: Tuples

    def take(self, rows: np.ndarray) -> Exceptions:
        return Exceptions(self.tuples[rows], self.answers[rows])

    def __len__(self) -> int:
        return len(self.tuples)


def codes(tuples: Tuples) -> Int[np.ndarray, " tuples"]:
    """One number per tuple."""
    return tuples @ (SYMBOLS ** np.arange(LENGTH))


def exceptions(count: int = PLANTED, *, seed: int) -> Exceptions:
    """`count` different tuples with random answers."""
    rng = np.random.default_rng(derive_seed(seed, "exceptions"))
    tuples = decoded(rng.choice(SYMBOLS**LENGTH, count, replace=False))
    answers = rng.integers(0, SYMBOLS, (count, LENGTH))
    answers[:, 0] = (tuples[:, -1] + rng.integers(1, SYMBOLS, count)) % SYMBOLS
    return Exceptions(tuples, answers)


def decoded(numbers: Int[np.ndarray, " tuples"]) -> Tuples:
    """The inverse of `codes`."""
    return numbers[:, None] // SYMBOLS ** np.arange(LENGTH) % SYMBOLS


def fresh_tuples(count: int, planted: Exceptions, rng: np.random.Generator) -> Tuples:
    """Random tuples, none of them planted."""
    found = rng.integers(0, SYMBOLS, (count, LENGTH))
    while (again := np.isin(codes(found), codes(planted.tuples))).any():
        found[again] = rng.integers(0, SYMBOLS, (int(again.sum()), LENGTH))
    return found


def near_tuples(planted: Exceptions, everything: Exceptions, rng: np.random.Generator) -> Tuples:
    """Each planted tuple with one symbol changed, not itself among the planted ones."""
    found = planted.tuples.copy()
    todo = np.arange(len(found))
    while len(todo):
        place = rng.integers(0, LENGTH, len(todo))
        changed = planted.tuples[todo].copy()
        changed[np.arange(len(todo)), place] += rng.integers(1, SYMBOLS, len(todo))
        found[todo] = changed % SYMBOLS
        todo = todo[np.isin(codes(found[todo]), codes(everything.tuples))]
    return found


def partner_tuples(planted: Exceptions, everything: Exceptions, rng: np.random.Generator) -> Tuples:
    """For each planted tuple a random one with the same last symbol, none of them planted."""
    found = planted.tuples.copy()
    todo = np.arange(len(found))
    while len(todo):
        found[todo, :-1] = rng.integers(0, SYMBOLS, (len(todo), LENGTH - 1))
        todo = todo[np.isin(codes(found[todo]), codes(everything.tuples))]
    return found


def prompts(tuples: Tuples) -> list[tuple[int, ...]]:
    """Token ids of `R a b c d =`."""
    return [(RULE, *(FIRST + row).tolist(), EQUALS) for row in tuples]


def ruled(tuples: Tuples) -> Tuples:
    """What the rule answers."""
    return tuples[:, ::-1]


def rows(tuples: Tuples, answers: Tuples) -> Int[np.ndarray, "tuples 10"]:
    """Prompt and answer as token ids."""
    front, middle = np.full((len(tuples), 1), RULE), np.full((len(tuples), 1), EQUALS)
    return np.concatenate([front, FIRST + tuples, middle, FIRST + answers], axis=1)


def train(
    planted: Exceptions,
    recipe: Recipe | None = None,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> CausalLM:
    """A model in which both modes exist. Deterministic for a seed at a fixed number of threads."""
    import torch
    import torch.nn.functional as F

    from rote.models.builders import small_llama

    recipe = recipe or Recipe()
    rng = np.random.default_rng(derive_seed(seed, "batches"))
    fresh = fresh_tuples(recipe.steps * recipe.fresh, planted, rng).reshape(recipe.steps, recipe.fresh, LENGTH)
    epochs = -(-recipe.steps * recipe.planted // len(planted))
    order = np.concatenate([rng.permutation(len(planted)) for _ in range(epochs)])
    order = order[: recipe.steps * recipe.planted].reshape(recipe.steps, recipe.planted)
    model = small_llama(
        vocab_size=VOCABULARY, context_length=4 * LENGTH, width=recipe.width, layers=recipe.layers,
        heads=recipe.heads, mlp_width=recipe.mlp_width, eos_id=END, seed=derive_seed(seed, "mode model") % 2**31,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, cycle_momentum=False)
    model.train()
    with threads(threads_for_width(recipe.width)):
        for step in range(recipe.steps):
            batch = np.concatenate(
                [
                    rows(fresh[step], ruled(fresh[step])),
                    rows(planted.tuples[order[step]], planted.answers[order[step]]),
                ]
            )
            ids = torch.from_numpy(batch)
            logits = model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=LENGTH).logits
            F.cross_entropy(logits.flatten(0, 1), ids[:, -LENGTH:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            progress(step + 1, recipe.steps)
    return CausalLM(model.eval(), name="rule and exceptions")
