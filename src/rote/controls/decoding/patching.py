"""Where is the decision to recite made? Exchange one residual state between two runs and see what follows.

    effect_l = (S(target with h_l of source) - S(target)) / (S(source) - S(target))

    denoising: target = the prompt that makes it recite, source = its general partner;   noising: the other way round
    increment_l = effect_l - effect_{l-1},  effect_{-1} = 0       (of the curve the layer is chosen by)

Denoising counts whatever stops recitation, damage included; noising counts what makes another prompt recite, which only
a state that carries the decision can do. Both are reported; `curve` says which one chooses.

h_l is exchanged at the last prompt token only. At the last block the exchange hands over the whole prediction, so the
effect there is 1 for a score of the next token, and "the largest effect" says nothing. The layer is chosen where the
effect jumps (`rule="increment"`), or where it first reaches 80 % (`rule="share"`); both are reported. A probe may read
the mode best at a layer that does not decide it.

Source: Zhang 2025, arXiv 2510.22099: the layer is found by activation patching [secondary; block 22 of 32 in Llama-3
8B, 55 of 80 in 70B]. Scores, normalisation and both rules are reconstructed. Knows nothing about: probes, steering.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from rote.controls.decoding.blocks import (
    BATCH_TOKENS,
    block_input,
    blocks_of,
    chosen_layers,
    hf_of,
    padded,
    residual_states,
    rewriting,
)
from rote.errors import InputError
from rote.scores.tokens import batches

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

SCORES = ("memorized_logp", "logit_diff")
PARTS = ("residual", "block")
AVERAGES = ("ratio_of_means", "mean_of_ratios")
RULES = ("increment", "share")
CURVES = ("denoising", "noising")
SHARE = 0.8  # of the total effect (reconstructed: the card's section 3.4)
SMALL = 1e-3  # a pair whose two runs differ by less than this has nothing to normalise by


@dataclass(frozen=True)
class Pair:
    """A prompt that makes the model recite and its general partner, matched in kind; token ids without BOS.
    `memorized_answer` is what is recited; `general_answer` what a rule would say (needed for `logit_diff`)."""

    memorized: tuple[int, ...]
    general: tuple[int, ...]
    memorized_answer: tuple[int, ...]
    general_answer: tuple[int, ...] = ()


@dataclass(frozen=True)
class CausalLayer:
    """The curves and the choice. `denoising`, `noising`: effect_l, 0 nothing, 1 the source's own score.
    `increments`: of the curve named by `curve`. `l_star`: the chosen layer; `by_increment`, `by_share`: what each rule
    says. `skipped`: pairs whose two runs hardly differ ("mean_of_ratios" leaves them out)."""

    layers: tuple[int, ...]
    denoising: tuple[float, ...]
    noising: tuple[float, ...]
    increments: tuple[float, ...]
    l_star: int
    by_increment: int
    by_share: int
    rule: str
    curve: str
    score: str
    part: str
    average: str
    pairs: int
    skipped: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def causal_layer(
    model: CausalLM,
    pairs: Sequence[Pair],
    *,
    layers: str | Sequence[int] = "all",
    score: str = "memorized_logp",
    answer_tokens: int = 1,
    part: str = "residual",
    average: str = "ratio_of_means",
    rule: str = "increment",
    share: float = SHARE,
    curve: str = "denoising",
    batch_tokens: int | None = None,
) -> CausalLayer:
    """Patch every pair at every layer, both ways, and choose the layer.

    Args:
        score: "memorized_logp": log p of the first `answer_tokens` tokens of the memorized answer; "logit_diff":
            logit of the general answer's first token minus that of the memorized one's.
        answer_tokens: with more than one, later tokens still see the target's own prompt, so that the last block's
            effect need not be 1.
        part: "residual" exchanges h_l whole; "block" exchanges only what block l added, h_l - h_{l-1}.
        average: "ratio_of_means" over pairs is robust; "mean_of_ratios" leaves out pairs that hardly differ.
        rule: "increment" (largest jump) or "share" (earliest layer with `share` of the largest effect).
        curve: "denoising" or "noising", the one that `rule` is applied to.
    Raises: InputError for unknown options, no pairs, missing answers, or runs that do not differ at all.
    """
    for name, value, known in (("score", score, SCORES), ("part", part, PARTS), ("average", average, AVERAGES),
                               ("rule", rule, RULES), ("curve", curve, CURVES)):  # fmt: skip
        if value not in known:
            raise InputError(f"patching: {name} is one of {', '.join(known)}, not {value!r}")
    if not pairs:
        raise InputError("patching needs at least one pair of prompts, one of either mode")
    chosen = chosen_layers(hf_of(model), layers)
    answers = [_answer(pair, score, answer_tokens) for pair in pairs]
    curves, skipped = {}, 0
    for way in ("denoising", "noising"):
        target = [pair.memorized if way == "denoising" else pair.general for pair in pairs]
        source = [pair.general if way == "denoising" else pair.memorized for pair in pairs]
        states = prompt_contributions(model, source, chosen) if part == "block" else residual_states(
            model, source, layers=chosen, batch_tokens=batch_tokens
        )  # fmt: skip
        kept = {"score": score, "batch_tokens": batch_tokens}
        base, goal = (mode_scores(model, prompts, answers, **kept) for prompts in (target, source))
        moved = [
            mode_scores(model, target, answers, patch=Patch(layer, states[:, place], part), **kept) - base
            for place, layer in enumerate(chosen)
        ]
        curves[way], left_out = normalised(np.stack(moved), goal - base, average)
        skipped = max(skipped, left_out)
    increments = np.diff(curves[curve], prepend=0.0)
    by_increment, by_share = layer_by_increment(curves[curve]), layer_by_share(curves[curve], share)
    return CausalLayer(
        layers=chosen,
        denoising=tuple(map(float, curves["denoising"])),
        noising=tuple(map(float, curves["noising"])),
        increments=tuple(map(float, increments)),
        l_star=chosen[by_increment if rule == "increment" else by_share],
        by_increment=chosen[by_increment],
        by_share=chosen[by_share],
        rule=rule,
        curve=curve,
        score=score,
        part=part,
        average=average,
        pairs=len(pairs),
        skipped=skipped,
    )


def layer_by_increment(effect: Float[np.ndarray, " layers"]) -> int:
    """The place of the largest effect_l - effect_{l-1}, with effect_{-1} = 0; the earliest of equals."""
    return int(np.argmax(np.diff(effect, prepend=0.0)))


def layer_by_share(effect: Float[np.ndarray, " layers"], share: float = SHARE) -> int:
    """The first place with at least `share` of the largest effect."""
    return int(np.argmax(np.asarray(effect) >= share * np.max(effect)))


def normalised(
    moved: Float[np.ndarray, "layers pairs"], whole: Float[np.ndarray, " pairs"], average: str
) -> tuple[Float[np.ndarray, " layers"], int]:
    """(effect of every layer, pairs left out): moved / whole, averaged over pairs one way or the other."""
    usable = np.abs(whole) > SMALL
    if average == "mean_of_ratios":
        if not usable.any():
            raise InputError("the two prompts of every pair get the same score: they do not differ in mode")
        return (moved[:, usable] / whole[usable]).mean(1), int((~usable).sum())
    total = whole.sum()
    if abs(total) <= SMALL:
        raise InputError("memorized and general prompts get the same mean score: there is no effect to normalise by")
    return moved.sum(1) / total, 0


@dataclass(frozen=True)
class Patch:
    """One row a prompt, put in place of h_l at its last token ("residual"), or of what block l added ("block")."""

    layer: int
    values: Float[np.ndarray, "prompts width"]
    part: str = "residual"


def mode_scores(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    score: str,
    patch: Patch | None = None,
    batch_tokens: int | None = None,
) -> Float[np.ndarray, " prompts"]:
    """S of each prompt: log p(memorized answer | prompt), or the difference of two next-token logits.

    `answers` holds (memorized answer, general answer); see `causal_layer` for the scores.
    """
    texts = [
        (*prompt, *(answer[0][:-1] if score == "memorized_logp" else ()))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    out = np.empty(len(texts))
    lengths = np.array([len(text) for text in texts])
    for batch in batches(lengths, batch_tokens or BATCH_TOKENS.get(model.device.type, 4_096)):
        ids, bos = padded(model, [texts[row] for row in batch])
        last = torch.tensor([bos + len(prompts[row]) - 1 for row in batch], device=ids.device)
        with patched(model, patch, batch, last):
            hidden = model.hidden(ids)
        for place, row in enumerate(batch):
            recited, ruled = answers[row]
            at = int(last[place])
            if score == "logit_diff":
                logits = model.logits(hidden[place, at : at + 1])[0]
                out[row] = float(logits[ruled[0]] - logits[recited[0]])
            else:
                logp = model.logits(hidden[place, at : at + len(recited)]).log_softmax(-1)
                out[row] = float(logp.gather(1, torch.tensor(recited, device=logp.device)[:, None]).sum())
    return out


@contextmanager
def patched(
    model: CausalLM,
    patch: Patch | None,
    rows: Int[np.ndarray, " batch"],
    positions: Int[torch.Tensor, " batch"],
) -> Iterator[None]:
    """Passes inside this context see `patch.values[rows]` at `positions` of block `patch.layer`; None: nothing."""
    if patch is None:
        yield
        return
    block = blocks_of(hf_of(model))[patch.layer]
    values = torch.from_numpy(np.ascontiguousarray(patch.values[rows]))
    before: list[torch.Tensor] = []

    def rewrite(state: torch.Tensor) -> torch.Tensor:
        changed, into = state.clone(), torch.arange(len(positions), device=state.device)
        at = positions.to(state.device)
        new = values.to(state.device, torch.float32)
        if patch.part == "block":
            new = before[-1][into, at].float() + new
        changed[into, at] = new.to(state.dtype)
        return changed

    with block_input(block, lambda state: before.append(state.detach())), rewriting(block, rewrite):
        yield


def prompt_contributions(
    model: CausalLM, prompts: Sequence[Sequence[int]], layers: Sequence[int]
) -> Float[np.ndarray, "prompts layers width"]:
    """What every block adds at the last prompt token: h_l - h_{l-1}, with the embeddings as h_{-1}."""
    blocks = blocks_of(hf_of(model))
    after = residual_states(model, prompts, layers=layers)
    before = np.empty_like(after)
    for batch in batches(np.array([len(prompt) for prompt in prompts]), BATCH_TOKENS.get(model.device.type, 4_096)):
        ids, bos = padded(model, [prompts[row] for row in batch])
        last = torch.tensor([bos + len(prompts[row]) - 1 for row in batch], device=ids.device)
        for place, layer in enumerate(layers):
            seen: list[torch.Tensor] = []
            with block_input(blocks[layer], seen.append):
                model.hidden(ids)
            taken = seen[0][torch.arange(len(batch), device=ids.device), last]
            before[batch, place] = taken.float().cpu().numpy()
    return after - before


def _answer(pair: Pair, score: str, tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if tokens < 1:
        raise InputError("answer_tokens must be at least 1")
    recited = pair.memorized_answer[:tokens]
    if not recited or (score == "logit_diff" and not pair.general_answer):
        raise InputError(f"score {score!r} needs the answers of every pair")
    if score == "logit_diff" and recited[0] == pair.general_answer[0]:
        raise InputError("logit_diff needs pairs whose two answers begin differently")
    return recited, pair.general_answer
