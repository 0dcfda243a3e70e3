"""Small models of fictitious authors for unlearning experiments: one that saw the forget set, one that never did.

    base     told about many other authors, in all templates        full     base, then retain and forget authors
    oracle   base, then retain authors only, for as many steps as full

Everything is a function of the size and the seed. Knows nothing about unlearning methods or measures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rote.models.builders import small_llama
from rote.models.causal_lm import CausalLM
from rote.models.training import TrainingConfig, train_causal_lm
from rote.records import fictitious_authors as fa


@dataclass(frozen=True)
class AuthorSize:
    """background authors for the base; `authors` in each of retain, forget, holdout; steps of both trainings."""

    width: int = 96
    layers: int = 2
    background: int = 1500
    authors: int = 200
    base_steps: int = 500
    fit_steps: int = 700
    batch: int = 32


@dataclass(frozen=True)
class AuthorModels:
    """The trained models and the splits of authors they did or did not see."""

    splits: fa.AuthorSplits
    models: dict[str, CausalLM]


def train_author_models(
    size: AuthorSize,
    *,
    seed: int = 0,
    names: tuple[str, ...] = ("full", "oracle"),
    progress: Callable[[str], None] | None = None,
) -> AuthorModels:
    """Train the base and the named models from it. The order of batches differs between the models, as the data do."""
    from transformers import PreTrainedTokenizerFast

    tell = progress or (lambda text: None)
    n = size.authors
    splits = fa.author_splits(background=size.background, retain=n, forget=n, holdout=n, seed=seed)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fa.word_level_tokenizer(), **fa.SPECIAL_TOKENS)

    def fit(hf: Any, rows: np.ndarray, steps: int, order: int) -> Any:
        rng = np.random.default_rng([seed, order])
        epochs = [rng.permutation(len(rows)) for _ in range(steps * size.batch // len(rows) + 1)]
        train_causal_lm(hf, rows[np.concatenate(epochs)[: steps * size.batch]], TrainingConfig(batch_size=size.batch))
        return hf

    tell("training the base model")
    base = small_llama(
        vocab_size=len(tokenizer), context_length=64, width=size.width, layers=size.layers, heads=4, seed=seed
    )
    fit(base, np.concatenate([fa.token_matrix(splits.background, t) for t in fa.TEMPLATES]), size.base_steps, 0)
    known = {"full": (*splits.retain, *splits.forget), "oracle": splits.retain}
    models = {"base": CausalLM(copy.deepcopy(base), tokenizer, name="base")}
    for order, name in enumerate(names, start=1):
        tell(f"training the {name} model")
        hf = fit(copy.deepcopy(base), fa.token_matrix(known[name]), size.fit_steps, order)
        models[name] = CausalLM(hf, tokenizer, name=name)
    return AuthorModels(splits, models)
