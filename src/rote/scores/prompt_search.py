"""Adversarial compression: search for the shortest prompt that makes a model recite a text greedily.

GCG optimises n free tokens by the gradient of the recitation loss with respect to their one-hot encodings, tried out on
a batch of single-token exchanges; MiniPrompt (`rote.measures.compression`) decides which n to try. Prompts are token
ids: what is found need not survive decoding and tokenising again. BOS, where the model has one, comes before the prompt
and is not counted.

Knows nothing about: what a ratio means.
Source: Schwarzschild et al. 2024, arXiv 2404.15146, alg. 1 (MiniPrompt); Zou et al. 2023, arXiv 2307.15043, alg. 1
(GCG).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from rote.errors import InputError
from rote.measures.compression import CompressionResult, mini_prompt
from rote.runtime import derive_seed
from rote.scores.sequences import BLOCK, Split, prepare
from rote.scores.tokens import BATCH_TOKENS, PRODUCT_BYTES

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable


@dataclass(frozen=True)
class Prompt:
    """The best prompt met. `recites`: greedy decoding from it gives the whole target. `loss`: nats a target token."""

    tokens: tuple[int, ...]
    loss: float
    recites: bool
    steps: int


class GreedyCoordinateGradient:
    """GCG for one target: minimise L(x) = -(1/|y|) sum_t log p(y_t | x, y_<t) over prompts x of a given length.

    Each step takes the gradient of L with respect to the one-hot rows of x, keeps the `top_k` most promising exchanges
    of every position, tries `batch` different ones of them, and moves to the best (even when it is worse: it leaves
    local minima that way). It ends at once when a prompt recites the target. Paper's settings: batch 100, top_k 250.
    """

    def __init__(self, model: CausalLM, target: Sequence[int], *, batch: int = 100, top_k: int = 250):
        if not len(target) or batch < 1 or top_k < 1:
            raise InputError(
                f"prompt search needs a target, batch and top_k of at least 1, got {len(target)}, {batch}, {top_k}"
            )
        self.model = model
        self.batch = batch
        self.target = torch.tensor([int(token) for token in target], device=model.device)
        self.bos = torch.tensor([] if model.bos_id is None else [model.bos_id], dtype=torch.int64, device=model.device)
        self.allowed = allowed_tokens(model)
        self.top_k = min(top_k, int(self.allowed.sum()))

    def search(self, length: int, steps: int, *, seed: int) -> Prompt:
        """The best of `steps` steps from a random start of `length` tokens. Deterministic for a seed (on a CPU)."""
        if length < 1 or steps < 0:
            raise InputError(
                f"prompt search needs a length of at least 1 and steps of at least 0, got {length} and {steps}"
            )
        room = self.model.context_length
        if room is not None and len(self.bos) + length + len(self.target) > room:
            raise InputError(
                f"a prompt of {length} tokens and a target of {len(self.target)} exceed the context window of {room}"
            )
        random = np.random.default_rng(seed)
        choices = np.flatnonzero(self.allowed.cpu().numpy())
        prompt = torch.from_numpy(random.choice(choices, length)).to(self.model.device)
        loss, recites = self._evaluate(prompt[None])
        best = Prompt(tuple(prompt.tolist()), float(loss[0]), bool(recites[0]), 0)
        for step in range(1, steps + 1):
            if best.recites:
                break
            candidates = self._candidates(prompt, random)
            loss, recites = self._evaluate(candidates)
            loss = torch.where(recites, -1.0, loss)  # one that recites comes before any that does not
            chosen = int(loss.argmin())
            prompt = candidates[chosen]
            if recites[chosen] or float(loss[chosen]) < best.loss:
                value = float(self._evaluate(prompt[None])[0][0]) if recites[chosen] else float(loss[chosen])
                best = Prompt(tuple(prompt.tolist()), value, bool(recites[chosen]), step)
        return best

    def _candidates(
        self, prompt: Int[torch.Tensor, " length"], random: np.random.Generator
    ) -> Int[torch.Tensor, "batch length"]:
        """Different single exchanges, drawn from the top_k of every position."""
        promise = -self.gradient(prompt)
        promise[:, ~self.allowed] = -torch.inf
        promise.scatter_(1, prompt[:, None], -torch.inf)
        usable = max(1, min(self.top_k, int(self.allowed.sum()) - 1))
        best = promise.topk(usable, dim=-1).indices
        flat = torch.from_numpy(random.permutation(best.numel())[: self.batch]).to(prompt.device)
        position, rank = flat // usable, flat % usable
        candidates = prompt.repeat(len(flat), 1)
        candidates[torch.arange(len(flat), device=prompt.device), position] = best[position, rank]
        return candidates

    def gradient(self, prompt: Int[torch.Tensor, " length"]) -> Float[torch.Tensor, "length vocabulary"]:
        """dL / d onehot(x_i) = E dL / d e(x_i), float32, E the embedding matrix."""
        embed = self.model.hf.get_input_embeddings()
        ids = torch.cat([self.bos, prompt, self.target[:-1]])
        with torch.enable_grad():
            inputs = embed(ids).detach().requires_grad_(True)
            logits = self.model.hf(inputs_embeds=inputs[None], use_cache=False).logits[0, -len(self.target) :].float()
            loss = torch.nn.functional.cross_entropy(logits, self.target)
            (slope,) = torch.autograd.grad(loss, inputs)
        with torch.no_grad():
            # An embedding module of its own kind may scale: ask it for all rows then.
            plain = type(embed) is torch.nn.Embedding
            matrix = embed.weight if plain else embed(torch.arange(len(self.allowed), device=ids.device))
            return slope[len(self.bos) : len(self.bos) + len(prompt)].float() @ matrix[: len(self.allowed)].float().T

    def _evaluate(
        self, prompts: Int[torch.Tensor, "prompts length"]
    ) -> tuple[Float[torch.Tensor, " prompts"], Bool[torch.Tensor, " prompts"]]:
        """(loss, does greedy decoding recite the target) of each prompt, from one teacher-forced pass."""
        model, k = self.model, len(self.target)
        total = len(self.bos) + prompts.shape[1] + k - 1
        step = max(1, BATCH_TOKENS.get(model.device.type, 2_048) // total)
        losses, verdicts = [], []
        for start in range(0, len(prompts), step):
            part = prompts[start : start + step]
            ids = torch.cat([self.bos.expand(len(part), -1), part, self.target[:-1].expand(len(part), -1)], dim=1)
            hidden = model.hidden(ids)[:, -k:].flatten(0, 1)
            target = self.target.repeat(len(part))
            logp, right = self._target_scores(hidden, target)
            losses.append(-logp.reshape(len(part), k).mean(1))
            verdicts.append(right.reshape(len(part), k).all(1))
        return torch.cat(losses), torch.cat(verdicts)

    def _target_scores(self, hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = max(1, PRODUCT_BYTES.get(hidden.device.type, 64 << 20) // (4 * self.model.vocab_size))
        logp, right = [], []
        for start in range(0, len(hidden), rows):
            wanted = target[start : start + rows]
            logits = self.model.logits(hidden[start : start + rows])
            logp.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
            right.append(logits.argmax(-1) == wanted)
        return torch.cat(logp), torch.cat(right)


@dataclass(frozen=True)
class Compression:
    """Adversarial compression of each record. `ratio` is a lower bound of ACR, 0 where no reciting prompt was found."""

    index: Int[np.ndarray, " records"]
    ratio: Float[np.ndarray, " records"]
    target_tokens: Int[np.ndarray, " records"]
    prompts: list[tuple[int, ...] | None]
    traces: list[tuple[tuple[int, int, bool], ...]]
    skipped: dict[int, str]


def compress(
    model: CausalLM,
    target: Sequence[int],
    *,
    seed: int = 0,
    batch: int = 100,
    top_k: int = 250,
    length: int = 5,
    steps: int = 200,
    stride: int = 5,
    growth: float = 1.2,
    cap: int = 5,
) -> tuple[CompressionResult, tuple[int, ...] | None]:
    """MiniPrompt with GCG for one target: (lengths tried and ratio, the shortest reciting prompt or None).

    The lengths start at `length`, step by `stride` after a miss, and end at `cap` times the target; `steps` grows by
    `growth` after each miss. A length that does not fit the context window counts as a miss.
    """
    search = GreedyCoordinateGradient(model, target, batch=batch, top_k=top_k)
    room = None if model.context_length is None else model.context_length - len(search.bos) - len(target)
    found: dict[int, tuple[int, ...]] = {}

    def try_prompt_length(tokens: int, budget: int) -> bool:
        if room is not None and tokens > room:
            return False
        prompt = search.search(tokens, budget, seed=derive_seed(seed, "prompt", tokens))
        if prompt.recites:
            found[tokens] = prompt.tokens
        return prompt.recites

    result = mini_prompt(
        len(target), try_prompt_length, length=length, steps=steps, stride=stride, growth=growth, cap=cap
    )
    return result, None if result.prompt_tokens is None else found[result.prompt_tokens]


def compress_records(
    model: CausalLM,
    records: RecordTable,
    *,
    seed: int = 0,
    split: Split | None = None,
    tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings,
) -> Compression:
    """`compress` for every record: the target is the record, or its first `tokens` tokens; `settings` as there.

    Seeded by the record's id: the order of the records does not matter. Costs hundreds of passes a record.
    """
    prepared = prepare(model, records, split)
    rows = np.sort(prepared.order)
    ids = records.table.column("id")
    ratios, sizes, prompts, traces = [], [], [], []
    for start in range(0, len(rows), BLOCK):
        for sequence in prepared.sequences(rows[start : start + BLOCK]):
            target = sequence.ids[:tokens]
            own_seed = derive_seed(seed, ids[sequence.index].as_py())
            result, prompt = compress(model, target, seed=own_seed, **settings)
            ratios.append(result.ratio)
            sizes.append(len(target))
            prompts.append(prompt)
            traces.append(result.trace)
            if progress:
                progress(len(ratios), len(rows))
    return Compression(rows, np.array(ratios), np.array(sizes, np.int64), prompts, traces, dict(prepared.skipped))


def allowed_tokens(model: CausalLM) -> Bool[torch.Tensor, " vocabulary"]:
    """Tokens a prompt may use: those the tokenizer knows (all, without one), special tokens excepted."""
    rows = min(model.vocab_size, int(model.hf.get_input_embeddings().weight.shape[0]))
    allowed = torch.ones(rows, dtype=torch.bool, device=model.device)
    if model.tokenizer is not None:
        allowed[len(model.tokenizer) :] = False
        special = [token for token in model.tokenizer.all_special_ids if token < rows]
        allowed[special] = False
    if int(allowed.sum()) < 2:
        raise InputError(f"{model.name}: fewer than two tokens could stand in a prompt")
    return allowed
