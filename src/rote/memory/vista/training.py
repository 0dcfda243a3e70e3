"""One training loop, and the losses of the two tasks.

* clicks: labelled candidates of a user at the end of the history; binary cross-entropy plus recon_weight * L_rec.
* next item: the event at a position against sampled negatives, the summary cut before it.

In both, a summary is older than the request it serves: it misses the last `stale` events (the refresh delay, replayed
in training), and never holds the labelled event. Where the model reads raw events, some requests of a batch see the
last R before them and some see none, so that the summary works alone too.

Source: Chen et al. 2025, arXiv 2510.22049, section 3; warm-up, gate and detached targets after measurement.
Knows nothing about: files, stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from rote.errors import InputError, RoteError
from rote.runtime import threads, threads_for_width

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from rote.memory.vista.baselines import RawTargetAttention, SequenceModel
    from rote.memory.vista.embedding import Histories
    from rote.memory.vista.model import Vista
    from rote.memory.vista.resume import Kept

    Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class TrainingSettings:
    """AdamW with a linear warm-up, then a cosine down to a tenth. `stale`: the most events a summary misses.

    without_raw: share of the requests that see no raw events, where the model reads such. They teach the summary to do
    alone; answers with raw events beside it learn from the other requests only, so a large share slows these down.
    """

    steps: int = 600
    batch_users: int = 64
    learning_rate: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    stale: int = 0
    negatives: int = 64
    without_raw: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_users", 1), ("warmup", 0), ("stale", 0), ("negatives", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning rate {self.learning_rate!r}; it must lie between 0 and 1")
        if not 0 <= self.without_raw <= 1:
            raise InputError(f"without_raw is {self.without_raw!r}; it must lie between 0 and 1")

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def optimise(
    model: nn.Module,
    loss_of: Callable[[torch.Generator], Float[Tensor, ""]],
    settings: TrainingSettings,
    *,
    progress: Progress | None = None,
    after: Callable[[int, float], bool] | None = None,
    kept: Kept | None = None,
) -> list[float]:
    """Run the loop; `loss_of` draws its batch from the generator it is given. Returns the loss of every step.

    `after(steps done, loss)` is called after every step and may end the run by returning True. With `kept`, the state
    is written every so often, and a run that was interrupted goes on from there.
    Errors: RoteError when the loss is not finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    losses, done = ([], False) if kept is None else kept.restore(model, optimizer, generator)
    model.train()
    for step in range(settings.steps if done else len(losses), settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        loss = loss_of(generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise RoteError(
                f"training diverged at step {step + 1} of {settings.steps}; lower the learning rate"
                f" ({settings.learning_rate:g})"
            )
        optimizer.step()
        if progress:
            progress(step + 1, settings.steps, losses[-1])
        ended = (after is not None and after(step + 1, losses[-1])) or step + 1 == settings.steps
        if kept is not None and (ended or (step + 1) % kept.every == 0):
            kept.save(model, optimizer, generator, losses, done=ended)
        if ended:
            break
    model.eval()
    return losses


def fit_clicks(
    model: Vista | RawTargetAttention,
    histories: Histories,
    candidates: Int[Tensor, "users t"],
    labels: Float[Tensor, "users t"],
    settings: TrainingSettings,
    *,
    progress: Progress | None = None,
) -> list[float]:
    """Train on labelled candidates (0 or 1) that were shown after each user's whole history. A VISTA model's summaries
    are centred in the end."""
    from rote.memory.vista.model import Vista

    users = len(histories)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(users, (min(settings.batch_users, users),), generator=generator)
        batch, label = histories.rows(rows), labels[rows]
        logit, extra = request_logits(model, batch, batch.mask.sum(1), candidates[rows], settings, generator)
        return F.binary_cross_entropy_with_logits(logit[..., 0], label) + extra

    with threads(threads_for_width(model.config.dim)):
        losses = optimise(model, loss, settings, progress=progress)
        if isinstance(model, Vista):
            model.centre_summaries(histories)
    return losses


def fit_next_item(
    model: Vista | SequenceModel | RawTargetAttention,
    histories: Histories,
    settings: TrainingSettings,
    *,
    progress: Progress | None = None,
    after: Callable[[int, float], bool] | None = None,
    kept: Kept | None = None,
) -> list[float]:
    """Train to tell each next item from `negatives` uniformly drawn ones (cross-entropy over 1 + negatives).

    A sequence model learns from every position of a batch at once; VISTA and raw target attention from one position a
    user and batch, since a summary must end before the event it is asked about.
    Errors: InputError when no user has two events.
    """
    from rote.memory.vista.baselines import SequenceModel
    from rote.memory.vista.model import Vista

    length = histories.mask.sum(1)
    able = torch.nonzero(length >= 2)[:, 0]
    if not len(able):
        raise InputError("no user has two events or more: there is no next item to learn from")
    items = model.embedding.item.num_embeddings

    def loss(generator: torch.Generator) -> Tensor:
        rows = able[torch.randint(len(able), (min(settings.batch_users, len(able)),), generator=generator)]
        batch = histories.rows(rows)
        if isinstance(model, SequenceModel):
            return _all_positions(model, batch, items, settings.negatives, generator)
        # The first event has no past to be told from; any later one may be the request.
        at = 1 + (torch.rand(len(rows), generator=generator) * (length[rows] - 1)).long()
        target = batch.item.gather(1, at[:, None])
        drawn = torch.randint(items, (len(rows), settings.negatives), generator=generator)
        logit, extra = request_logits(model, batch, at, torch.cat([target, drawn], dim=1), settings, generator)
        logit = _without_target(logit[..., 0], drawn == target)
        return F.cross_entropy(logit, torch.zeros(len(rows), dtype=torch.long)) + extra

    with threads(threads_for_width(model.embedding.item.embedding_dim)):
        losses = optimise(model, loss, settings, progress=progress, after=after, kept=kept)
        if isinstance(model, Vista):
            model.centre_summaries(histories)
    return losses


def request_logits(
    model: Vista | RawTargetAttention | SequenceModel,
    batch: Histories,
    at: Int[Tensor, " b"],
    candidates: Int[Tensor, "b t"],
    settings: TrainingSettings,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "b t tasks"], Float[Tensor, ""] | float]:
    """Logits of candidates asked for after the first `at` events, and the weighted reconstruction loss."""
    from rote.memory.vista.model import Vista

    if not isinstance(model, Vista):
        return model.logits(batch.cut(at), candidates), 0.0
    config = model.config
    stale = settings.stale
    delay = torch.randint(stale + 1, (len(at),), generator=generator) if stale else torch.zeros_like(at)
    seen = batch.cut((at - delay).clamp(min=0))
    summary = model.summarise(seen)
    raw = None
    if config.raw_events:
        raw = batch.tail(at, config.raw_events)
        with_raw = torch.rand(len(at), generator=generator) >= settings.without_raw
        raw = replace(raw, mask=raw.mask & with_raw[:, None])
    extra: Tensor | float = 0.0
    if config.recon_weight:
        spare = max(1, batch.item.shape[1] - config.recon_window + 1)
        start = int(torch.randint(spare, (1,), generator=generator))
        extra = config.recon_weight * model.reconstruction(summary, seen, start).mean()
    return model.logits(summary, candidates, raw), extra


def _all_positions(model: SequenceModel, batch: Histories, items: int, negatives: int, generator: torch.Generator):
    seen = batch.tail(batch.mask.sum(1), min(model.longest + 1, batch.item.shape[1]))
    rows = slice(0, -1)
    states = model.encode(type(seen)(seen.item[:, rows], seen.action[:, rows], seen.time[:, rows], seen.mask[:, rows]))
    kept = seen.mask[:, 1:]
    states, target = states[kept], seen.item[:, 1:][kept]
    drawn = torch.randint(items, (negatives,), generator=generator)
    table = model.embedding.candidates(drawn)
    size = states.shape[-1] ** -0.5
    own = (states * model.embedding.candidates(target)).sum(-1, keepdim=True) * size
    logit = torch.cat([own, _without_target(states @ table.T * size, drawn[None] == target[:, None], first=False)], 1)
    return F.cross_entropy(logit, torch.zeros(len(target), dtype=torch.long))


def _without_target(logit: Tensor, same: Tensor, *, first: bool = True) -> Tensor:
    """A negative that is the target itself is no negative."""
    if first:
        same = torch.cat([same.new_zeros(len(same), 1), same], dim=1)
    return logit.masked_fill(same, float("-inf"))
