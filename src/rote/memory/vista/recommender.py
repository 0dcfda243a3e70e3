"""Sequential recommendation: leave one out, train, rank every item.

Of each user's events the last is the test, the one before it the validation, the rest is trained on. A target is ranked
among all items the model knows (no sampled negatives), items the user already had left out. Users with fewer than three
events are trained on and not judged; they are counted.

Source: the protocol of Kang and McAuley 2018 (arXiv 1808.09781), with full ranking (Krichene and Rendle 2020).
Knows nothing about: files, stores, terminals.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rote.errors import InputError
from rote.memory.vista.baselines import RawTargetAttention, SequenceModel, make_baseline
from rote.memory.vista.embedding import Histories
from rote.memory.vista.evaluation import ndcg, ranking_figures, relative_quality, target_ranks
from rote.memory.vista.model import Vista
from rote.memory.vista.resume import Kept
from rote.memory.vista.training import TrainingSettings, fit_next_item
from rote.models.unfinished import Unfinished
from rote.runtime import threads, threads_for_width

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from rote.memory.vista.config import VistaConfig
    from rote.memory.vista.interactions import InteractionLog

Progress = Callable[[str, int, int], None]
RANKED_AT_ONCE = 200_000  # candidates in one pass
READ_AT_ONCE = 20_000_000  # (candidate, event) pairs in one pass of full target attention
Recommender = Vista | SequenceModel | RawTargetAttention
MOST_CHECKED = 1000  # users of a validation check


@dataclass(frozen=True)
class LeaveOneOut:
    """A log as one padded batch of the users who have three events or more, and a second for the rest.

    histories: at most `longest` events of everybody. `targets` users (rows of histories) are judged.
    """

    histories: Histories
    targets: Int[Tensor, " judged"]
    too_short: int

    @property
    def training(self) -> Histories:
        """Without the validation and test events of the judged."""
        length = self.histories.mask.sum(1)
        judged = torch.zeros(len(length), dtype=torch.long)
        judged[self.targets] = 2
        return self.histories.cut(length - judged)

    def request(self, part: str, rows: Int[Tensor, " n"] | None = None) -> tuple[Histories, Int[Tensor, " n"]]:
        """(histories before the held-out event, its item) of some judged users: `part` is "validation" or "test"."""
        users = self.targets if rows is None else self.targets[rows]
        whole = self.histories.rows(users)
        at = whole.mask.sum(1) - (2 if part == "validation" else 1)
        return whole.cut(at), whole.item.gather(1, at[:, None])[:, 0]


def leave_one_out(log: InteractionLog, *, longest: int = 200) -> LeaveOneOut:
    """Split a log. Errors: InputError when nobody has three events, or fewer than three events are to be read."""
    if longest < 3:
        raise InputError(f"a history of {longest} events is too short to hold training, validation and test")
    lengths = np.minimum(log.lengths, longest)
    if not (lengths >= 3).any():
        raise InputError("no user in the log has three events: nothing to train on, validate and test")
    shape = (len(log), int(lengths.max()))
    item, action, when = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape)
    place = np.arange(shape[1])[None] < lengths[:, None]
    take = np.concatenate([np.arange(stop - n, stop) for stop, n in zip(log.offsets[1:], lengths, strict=True)])
    item[place], action[place], when[place] = log.item[take], log.action[take], log.time[take]
    judged = np.flatnonzero(log.lengths >= 3)
    return LeaveOneOut(
        Histories(*(torch.from_numpy(part) for part in (item, action, when, place))),
        torch.from_numpy(judged),
        len(log) - len(judged),
    )


@torch.no_grad()
def all_item_scores(
    model: Recommender,
    histories: Histories,
    *,
    summaries: Float[Tensor, "b k dim"] | None = None,
    raw: bool = True,
) -> Float[Tensor, "b items"]:
    """Scores of every item for every user.

    summaries: cached ones instead of summaries made here. raw: with the last raw events beside them, where the model
    reads such.
    """
    items = torch.arange(model.embedding.item.num_embeddings)
    if isinstance(model, SequenceModel):
        return model.logits(histories, items.expand(len(histories), -1))[..., 0]
    found, most = [], RANKED_AT_ONCE // len(items)
    if isinstance(model, RawTargetAttention):
        most = min(most, READ_AT_ONCE // (len(items) * max(1, histories.item.shape[1])))
    for rows in torch.arange(len(histories)).split(max(1, most)):
        part = histories.rows(rows)
        if isinstance(model, RawTargetAttention):
            found.append(model.logits(part, items.expand(len(rows), -1))[..., 0])
            continue
        summary = model.summarise(part) if summaries is None else summaries[rows]
        use = raw and model.config.raw_events > 0
        beside = part.tail(part.mask.sum(1), model.config.raw_events) if use else None
        found.append(model.logits(summary, items.expand(len(rows), -1), beside)[..., 0])
    return torch.cat(found)


def ranks(
    model: Recommender,
    split: LeaveOneOut,
    part: str = "test",
    *,
    rows: Int[Tensor, " n"] | None = None,
    summaries: Float[Tensor, "n k dim"] | None = None,
    raw: bool = True,
    progress: Progress | None = None,
) -> Int[np.ndarray, " n"]:
    """Rank of every judged user's held-out item among all items."""
    users = torch.arange(len(split.targets)) if rows is None else rows
    found, done = [], 0
    for some in torch.arange(len(users)).split(256):
        histories, target = split.request(part, users[some])
        given = None if summaries is None else summaries[some]
        scores = all_item_scores(model, histories, summaries=given, raw=raw).numpy()
        seen = np.zeros(scores.shape, bool)
        who, where = np.nonzero(histories.mask.numpy())
        seen[who, histories.item.numpy()[who, where]] = True
        found.append(target_ranks(scores, target.numpy(), seen))
        done += len(some)
        if progress:
            progress(f"ranking ({part})", done, len(users))
    return np.concatenate(found)


@dataclass
class Trained:
    """A trained model with its losses, validation checks, seconds of training, test figures and test ranks."""

    name: str
    model: Recommender
    losses: list[float]
    checks: list[dict[str, float]]
    seconds: float
    test: dict[str, float] = field(default_factory=dict)
    ranks: Int[np.ndarray, " judged"] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def still_improving(self) -> bool:
        """Was the last validation the best one? Then training ended at its most steps, not because it had converged."""
        checks = [check["NDCG@10"] for check in self.checks]
        return bool(checks) and checks[-1] > max(checks[:-1], default=0.0)

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.name, "steps": len(self.losses), "still improving": self.still_improving,
                "seconds": round(self.seconds, 1),
                "parameters": sum(p.numel() for p in self.model.parameters()), "validation": self.checks,
                "test": self.test}  # fmt: skip


def train_recommender(
    log: InteractionLog,
    config: VistaConfig,
    settings: TrainingSettings,
    *,
    baselines: Sequence[str] = (),
    longest: int = 200,
    check_every: int = 200,
    patience: int = 5,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[LeaveOneOut, list[Trained]]:
    """Train VISTA, and baselines at the same width, depth, loss and steps; each stops after `patience` checks without a
    better validation NDCG@10 and keeps its best weights. Figures of the test events are taken once, at the end.
    resume: a folder in which an interrupted run with the same log and settings finds what it had done.

    Errors: InputError for a log too short to split; RoteError when training diverges.
    """
    split = leave_one_out(log, longest=longest)
    vocabulary = log.vocabulary
    places = torch.tensor(vocabulary.category_of) if config.categories else None
    models: dict[str, Recommender] = {"vista": Vista(config, vocabulary=vocabulary, seed=settings.seed)}
    for kind in baselines:
        models[kind] = make_baseline(config, kind, longest=longest, category_of=places, seed=settings.seed)
    found = []
    with threads(threads_for_width(config.dim)):
        for name, model in models.items():
            recipe = [name, config.to_dict(), asdict(settings), longest, check_every, patience, vocabulary.to_dict()]
            place = Unfinished.named(resume, recipe, log.offsets, log.item, log.action, log.time)
            kept = Kept(place, every=check_every)
            found.append(_fit(name, model, split, settings, check_every, patience, progress, kept))
            found[-1].ranks = ranks(model, split, "test", progress=progress)
            found[-1].test = ranking_figures(found[-1].ranks)
    return split, found


def against_baselines(found: Sequence[Trained]) -> dict[str, dict[str, float]]:
    """NDCG@10 of the first model over each of the others' on the test events, with 95 % intervals over users."""
    first, *others = found
    return {one.name: relative_quality(first.ranks, one.ranks) for one in others}


def _fit(
    name: str, model: Recommender, split: LeaveOneOut, settings: TrainingSettings, check_every: int,
    patience: int, progress: Progress | None, kept: Kept,
) -> Trained:  # fmt: skip
    draw = torch.Generator().manual_seed(settings.seed)
    checked = torch.randperm(len(split.targets), generator=draw)[:MOST_CHECKED]
    checks, best = kept.checks, kept.best

    def after(step: int, loss: float) -> bool:
        if step % check_every and step != settings.steps:
            return False
        model.eval()
        found = ndcg(ranks(model, split, "validation", rows=checked), 10)
        model.train()
        checks.append({"step": step, "loss": loss, "NDCG@10": found})
        if found >= max((check["NDCG@10"] for check in checks[:-1]), default=-1.0):
            best.update(copy.deepcopy(model.state_dict()))
        since = len(checks) - 1 - int(np.argmax([check["NDCG@10"] for check in checks]))
        return since >= patience

    began = time.perf_counter()
    tell = None if progress is None else lambda done, total, _loss: progress(f"training {name}", done, total)
    losses = fit_next_item(model, split.training, settings, progress=tell, after=after, kept=kept)
    model.load_state_dict(best)
    model.eval()
    if isinstance(model, Vista):
        model.centre_summaries(split.training)
    return Trained(name, model, losses, checks, time.perf_counter() - began)
