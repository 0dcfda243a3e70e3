"""Approximate extraction on a model: p_{z,eps} per record by Monte Carlo, exact Hamming-1 branches or constrained beam.

The prefix is encoded once a record and its cache shared by all samples, branches and beams. The arithmetic is
`rote.measures.approximate`; here is only what a model must be asked.

Source: Hayes et al. 2024, arXiv 2410.19482, section 3; Cooper et al. 2026, arXiv 2603.24917 (beam instead of samples).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from rote.errors import InputError
from rote.measures import approximate as pure
from rote.runtime import derive_seed
from rote.scores.continuations import (
    NextLogQ,
    check_room,
    encode_prefix,
    next_logq,
    rows_at_a_time,
    sample_continuations,
)
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import BLOCK, Sequence, Split, prepare
from rote.scores.tokens import TokenScorer

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable
    from rote.scores.context_cache import ContextCache

METHODS = ("monte_carlo", "hamming1", "beam")
MOST_BRANCHES = 1_000_000  # branches of one record beyond which the exact sum is refused


@dataclass(frozen=True)
class ApproximateExtraction:
    """Per record, natural logarithms: `log_p` estimates p_{z,eps}, with low <= p_{z,eps} <= high.

    monte_carlo: log_p = log(hits/samples), -inf without a hit; low and high are the Clopper-Pearson interval.
    hamming1: all three equal. beam: log_p = low, the finished beams; high adds what was pruned; `exact` when nothing
    was.
    `hits` and `samples` are 0 for the methods that draw none; `work` counts samples, branches or finished beams.
    `skipped` maps rows to the reason they are absent.
    """

    index: Int[np.ndarray, " records"]
    log_p: Float[np.ndarray, " records"]
    log_low: Float[np.ndarray, " records"]
    log_high: Float[np.ndarray, " records"]
    exact: Bool[np.ndarray, " records"]
    hits: Int[np.ndarray, " records"]
    samples: Int[np.ndarray, " records"]
    work: Int[np.ndarray, " records"]
    method: str
    distance: str
    eps: float
    scheme: str
    skipped: dict[int, str] = field(default_factory=dict)


def approximate_extraction(
    model: CausalLM,
    records: RecordTable,
    *,
    scheme: DecodingScheme,
    eps: float = 1,
    method: str = "beam",
    distance: str = "hamming",
    samples: int = 1_000,
    width: int = 32,
    seed: int = 0,
    confidence: float = 0.95,
    split: Split | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ApproximateExtraction:
    """p_{z,eps} = sum over s with dist(s, y) <= eps of q(s | prefix), for every record.

    `method`: "monte_carlo" (any distance; `samples` continuations, seeded by `seed` and the record's id), "hamming1"
    (exact; Hamming distance, eps = 1), "beam" (Hamming; bounds from `width` beams). `eps` counts tokens, or is
    1 - BLEU.
    Raises InputError for a combination that does not exist, and for what `prepare` refuses.
    """
    check(method, distance, eps, samples, width)
    prepared = prepare(model, records, split)
    skipped = dict(prepared.skipped)
    rows = np.sort(prepared.order)
    ids = records.table.column("id")
    scorer = TokenScorer(model, [scheme])
    found: list[tuple[int, _Answer]] = []
    for start in range(0, len(rows), BLOCK):
        for sequence in prepared.sequences(rows[start : start + BLOCK]):
            if sequence.prefix == 0 and model.bos_id is None:
                skipped[sequence.index] = "an empty prefix and no BOS token: the first token is not predicted"
                continue
            root = encode_prefix(model, sequence.ids[: sequence.prefix])
            target = np.array(sequence.ids[sequence.prefix : sequence.prefix + sequence.suffix], np.int64)
            check_room(model, root.ids.shape[1] + len(target))
            if method == "monte_carlo":
                own_seed = derive_seed(seed, "monte_carlo", ids[sequence.index].as_py())
                answer = _monte_carlo(root, target, scheme, eps, distance, samples, own_seed, confidence)
            elif method == "hamming1":
                answer = _hamming1(root, target, scheme, scorer, sequence)
            else:
                bound = pure.constrained_beam(NextLogQ(model, root, scheme), target, eps=int(eps), width=width)
                answer = _Answer(bound.log_lower, bound.log_lower, bound.log_upper, bound.exact, work=len(bound.logq))
            found.append((sequence.index, answer))
            if progress:
                progress(len(found), len(rows))
    columns = {name: np.array([getattr(answer, name) for _, answer in found], kind) for name, kind in _COLUMNS.items()}
    return ApproximateExtraction(
        index=np.array([row for row, _ in found], np.int64),
        **columns,
        method=method,
        distance=distance,
        eps=eps,
        scheme=scheme.name,
        skipped=skipped,
    )


@dataclass(frozen=True)
class _Answer:
    log_p: float
    log_low: float
    log_high: float
    exact: bool
    hits: int = 0
    samples: int = 0
    work: int = 0


_COLUMNS = {
    "log_p": float,
    "log_low": float,
    "log_high": float,
    "exact": bool,
    "hits": np.int64,
    "samples": np.int64,
    "work": np.int64,
}


def _monte_carlo(
    root: ContextCache,
    target: np.ndarray,
    scheme: DecodingScheme,
    eps: float,
    distance: str,
    samples: int,
    seed: int,
    confidence: float,
) -> _Answer:
    def within_reach(tokens: np.ndarray) -> np.ndarray:
        return (tokens != target[: tokens.shape[1]]).sum(1) <= eps

    # Beyond eps mismatches a sample can never come back (Hamming distance only): it need not be finished.
    keep = within_reach if distance == "hamming" else None
    drawn = sample_continuations(
        root.model, root, length=len(target), count=samples, scheme=scheme, seed=seed, keep=keep
    )
    hits = int(pure.within(drawn, target, eps=eps, distance=distance).sum())
    estimate = pure.monte_carlo(np.array([hits]), samples, confidence=confidence)
    with np.errstate(divide="ignore"):
        logs = [float(np.log(each[0])) for each in (estimate.estimate, estimate.low, estimate.high)]
    return _Answer(*logs, exact=False, hits=hits, samples=samples, work=samples)


def _hamming1(
    root: ContextCache, target: np.ndarray, scheme: DecodingScheme, scorer: TokenScorer, sequence: Sequence
) -> _Answer:
    """Every branch (position j, alternative v in the support), teacher-forced once from the cache of prefix + y_<j."""
    k, state = len(target), root
    verbatim = np.full(k, -np.inf)
    branches: list[np.ndarray] = []
    rests: list[np.ndarray] = []
    for j in range(k):
        logq = next_logq(state.logits(), scheme, state.ids)[0].double().cpu().numpy()
        verbatim[j] = logq[target[j]]
        alternatives = np.flatnonzero(logq > -np.inf)
        alternatives = alternatives[alternatives != target[j]]
        if len(alternatives) * k > MOST_BRANCHES:
            raise InputError(
                f"record row {sequence.index}: the exact sum has about {len(alternatives) * k:,} branches"
                f" under {scheme.name!r}; use a scheme that cuts the vocabulary (top_k=40), or the beam"
            )
        branches.append(logq[alternatives])
        rests.append(_rest_logq(state, alternatives, target[j + 1 :], scheme, scorer))
        if np.isneginf(verbatim[j]) or j + 1 == k:
            break  # y_<=j is impossible: every later branch has probability 0
        state = state.extend(None, torch.tensor([target[j]]))
    width = max(map(len, branches))
    matrices = np.full((2, k, width), -np.inf)
    for j, (branch, rest) in enumerate(zip(branches, rests, strict=True)):
        matrices[0, j, : len(branch)], matrices[1, j, : len(rest)] = branch, rest
    value = pure.hamming1_log_probability(verbatim, *matrices)
    return _Answer(value, value, value, exact=True, work=sum(map(len, branches)))


def _rest_logq(
    state: ContextCache, alternatives: np.ndarray, rest: np.ndarray, scheme: DecodingScheme, scorer: TokenScorer
) -> np.ndarray:
    """log q(rest | context, v) for every alternative v, in batches."""
    if not len(rest) or not len(alternatives):
        return np.zeros(len(alternatives))
    found = []
    step = max(1, min(rows_at_a_time(state.model, state, len(rest)), scorer.batch_tokens // len(rest)))
    device = state.ids.device
    for start in range(0, len(alternatives), step):
        first = torch.from_numpy(alternatives[start : start + step]).to(device)
        after = torch.from_numpy(rest).to(device).expand(len(first), -1)
        inputs = torch.cat([first[:, None], after[:, :-1]], dim=1)
        hidden, targets = state.read(inputs).flatten(0, 1), after.flatten()
        history = None
        if scheme.repetition_penalty != 1:
            whole = torch.cat([state.ids.expand(len(first), -1), inputs], dim=1)
            seen = torch.arange(len(rest), device=device) + state.ids.shape[1] + 1
            later = torch.arange(whole.shape[1], device=device)[None] >= seen[:, None]
            history = torch.where(later[None], whole[:, None, :1], whole[:, None]).flatten(0, 1)
        logq = [
            scorer.score_rows(
                hidden[i : i + scorer.product_rows],
                targets[i : i + scorer.product_rows],
                None if history is None else history[i : i + scorer.product_rows],
            )["schemes"][0]
            for i in range(0, len(hidden), scorer.product_rows)
        ]
        found.append(np.concatenate(logq).reshape(len(first), -1).astype(np.float64).sum(1))
    return np.concatenate(found)


def check(method: str, distance: str, eps: float, samples: int, width: int) -> None:
    """Raises InputError for a combination of settings that does not exist."""
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    if distance not in pure.DISTANCES:
        raise InputError(f"unknown distance {distance!r}; choose from {', '.join(pure.DISTANCES)}")
    if method != "monte_carlo" and distance != "hamming":
        raise InputError(f"{method} knows the Hamming distance only; use method='monte_carlo' for {distance}")
    if not eps >= 0:
        raise InputError(f"eps must be at least 0, not {eps}")
    if distance != "bleu" and int(eps) != eps:
        raise InputError(f"eps counts tokens: it must be a whole number, not {eps}")
    if method == "hamming1" and eps != 1:
        raise InputError(f"method 'hamming1' is for eps = 1, not {eps}; use the beam or Monte Carlo")
    if samples < 1 or width < 1:
        raise InputError(f"samples and width must be at least 1, not {samples} and {width}")
