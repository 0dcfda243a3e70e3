"""Phase 2, and the ProtoPNet-style baseline: prototypes of every vote class, learned with the channel-wise trunk.

    z(x) = sum_p h(class(p)) S(x, p) + bias,    h = log-odds of the class's vote fraction / prototypes per class, frozen

Prototypes are whole codes (latent, range, var, fft of every channel), started from training segments. Warm phase:
prototypes only; the trunk stands still, so the training segments are encoded once, as they are. Joint rounds: trunk,
prototypes, bias (and, on request, the importance a), on augmented segments. A projection ends each round: every
prototype becomes the training case of its class that is most similar to it. Last, the scale and the bias of the head
are fitted to the projected prototypes (convex, two numbers): S of all classes lie close together, and a frozen scale
would leave every probability near one half.
In the case-based model they are then replaced by all training segments; kept, they are the baseline.
Source: Tang et al. 2025, arXiv 2510.20846 (code); Chen et al. 2019, arXiv 1806.10574 (projection, last layer fitted
after it).

Knows nothing about: the kNN head, files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from rote.errors import RoteError
from rote.memory.cases import losses
from rote.memory.cases.backbone import ChannelTrunk, in_batches
from rote.memory.cases.montage import Montage
from rote.memory.cases.preprocessing import SignalSettings, augment
from rote.memory.cases.search import similarity_matrix
from rote.memory.cases.similarity import Codes, make_codes, similarity
from rote.memory.cases.statistics import Scaling, channel_statistics
from rote.memory.cases.training import Progress, TrainingSettings


class Prototypes(nn.Module):
    """Codes of `per_class` prototypes of every vote class, the frozen head and its bias."""

    def __init__(self, start: Codes, classes: Int[Tensor, " p"], raters: int, importance: Sequence[float], bias: float):
        super().__init__()
        self.latent, self.range, self.var, self.fft = (
            nn.Parameter(part.clone()) for part in (start.latent, start.range, start.var, start.fft)
        )
        self.classes: Tensor
        self.head: Tensor
        self.register_buffer("classes", classes)
        self.raters = raters
        count = torch.bincount(classes, minlength=raters + 1).clamp_min(1)
        self.register_buffer("head", (losses.head_log_odds(raters) / count)[classes])
        self.bias = nn.Parameter(torch.tensor(bias))
        self.logits = nn.Parameter(torch.tensor(list(importance)).clamp_min(1e-6).log())

    @property
    def importance(self) -> Float[Tensor, " 4"]:
        """a = softmax(logits)."""
        return self.logits.softmax(0)

    def codes(self) -> Codes:
        return Codes(F.normalize(self.latent, dim=-1, eps=1e-12), self.range, self.var, self.fft)

    def forward(self, query: Codes, weights: Float[Tensor, "q c"]) -> tuple[Float[Tensor, " q"], Float[Tensor, "q p"]]:
        """Logit of each query, and its similarity to every prototype."""
        scores = similarity(query, weights, self.codes(), self.importance)
        return scores @ self.head + self.bias, scores

    @torch.no_grad()
    def predict(self, query: Codes, weights: Float[Tensor, "q c"]) -> Float[Tensor, " q"]:
        """sigmoid(z), in blocks."""
        scores = similarity_matrix(query, weights, self.codes(), self.importance.tolist())
        return torch.sigmoid(scores @ self.head + self.bias)

    @torch.no_grad()
    def project(
        self, cases: Codes, weights: Float[Tensor, "n c"], votes: Int[Tensor, " n"], importance: Sequence[float]
    ) -> Int[Tensor, " p"]:
        """Every prototype <- the case of its class with the largest S(case, prototype); returns which (-1: no case)."""
        chosen = torch.full((len(self.classes),), -1, dtype=torch.long)
        for vote in self.classes.unique().tolist():
            rows, own = torch.nonzero(votes == vote)[:, 0], torch.nonzero(self.classes == vote)[:, 0]
            if len(rows):
                scores = similarity_matrix(cases.take(rows), weights[rows], self.codes().take(own), importance)
                chosen[own] = rows[scores.argmax(0)]
        found = chosen >= 0
        for name in ("latent", "range", "var", "fft"):
            getattr(self, name)[found] = getattr(cases, name)[chosen[found]]
        return chosen

    @torch.no_grad()
    def fit_head(self, cases: Codes, weights: Float[Tensor, "n c"], votes: Int[Tensor, " n"], steps: int = 50) -> None:
        """z <- s (h . S) + bias with the s >= 0 and the bias that are most likely for the votes of these cases.

        Newton's method on the convex mean BCE(sigmoid(z), votes / raters), in float64; s goes into the head.
        """
        own = (similarity_matrix(cases, weights, self.codes(), self.importance.tolist()) @ self.head).double()
        centre, spread = own.mean(), own.std().clamp_min(1e-9)
        x = torch.stack([(own - centre) / spread, torch.ones_like(own)], 1)
        y, found = votes.double() / self.raters, own.new_zeros(2)
        for _ in range(steps):
            p = torch.sigmoid(x @ found)
            slope = x.T @ (p - y) + 1e-6 * found
            curve = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * torch.eye(2, dtype=x.dtype)
            found = found - torch.linalg.solve(curve, slope)
        scale = max(0.0, float(found[0] / spread))
        self.head.mul_(scale)
        self.bias.fill_(float(found[1]) - scale * float(centre))


def encode(trunk: ChannelTrunk, channels: Float[Tensor, "n c samples"], scaling: Scaling, *, batch: int = 64) -> Codes:
    """Codes of prepared segments (n, c, samples), without gradients. Every row alone: batches do not matter."""
    trunk.eval()
    latent = in_batches(trunk, channels, batch)
    return make_codes(latent, *channel_statistics(channels), scaling)


def train_prototypes(
    trunk: ChannelTrunk,
    data: Float[np.ndarray, "n electrodes samples"],
    channels: Float[Tensor, "n c samples"],
    weights: Float[Tensor, "n c"],
    votes: Int[np.ndarray, " n"],
    raters: int,
    scaling: Scaling,
    importance: Sequence[float],
    montage: Montage,
    signal: SignalSettings,
    settings: TrainingSettings,
    *,
    learn_importance: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Prototypes:
    """Warm and joint training of trunk (in place) and prototypes. data: raw uV, for augmentation; channels: prepared.

    Raises RoteError when the loss stops being finite.
    """
    rng = np.random.default_rng(seed)
    y = torch.from_numpy(np.asarray(votes, np.int64))
    by_class = [np.flatnonzero(votes == vote) for vote in range(raters + 1)]
    present = [rows for rows in by_class if len(rows)]
    picked = np.concatenate([rng.choice(rows, settings.prototypes, replace=len(rows) < settings.prototypes)
                             for rows in present])  # fmt: skip
    start = encode(trunk, channels[picked], scaling)
    prototypes = Prototypes(start, y[picked], raters, importance, settings.bias_start).to(device)
    prototypes.logits.requires_grad_(learn_importance)
    trunk.to(device)
    class_weight = losses.vote_class_weights(y, raters).to(device)
    own = [prototypes.latent, prototypes.range, prototypes.var, prototypes.fft]
    flip = montage.mirror_channels()
    steps = max(1, len(data) // (len(present) * settings.per_class))
    total = (settings.warm_epochs + settings.rounds * settings.epochs) * steps
    done = 0

    def augmented(rows: np.ndarray) -> tuple[Codes, Tensor]:
        made = augment(data[rows], montage, signal, rng)
        batch, w = torch.from_numpy(made.channels).to(device), weights[rows].clone()
        if flip is not None:
            mirrored = torch.from_numpy(made.mirrored)
            w[mirrored] = w[mirrored][:, torch.from_numpy(flip)]
        return make_codes(trunk(batch), *channel_statistics(batch), scaling), w

    def epoch(optimizer: torch.optim.Optimizer, known: Codes | None = None) -> None:
        nonlocal done
        for _ in range(steps):
            rows = np.concatenate([rng.choice(members, settings.per_class) for members in present])
            query, w = augmented(rows) if known is None else (known.take(torch.from_numpy(rows)), weights[rows])
            query = Codes(*(part.to(device) for part in vars(query).values()))
            logit, scores = prototypes(query, w.to(device))
            loss = _loss(prototypes, logit, scores, y[rows].to(device), raters, class_weight, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if not torch.isfinite(loss):
                raise RoteError("the prototype phase diverged; lower prototype_rate and backbone_rate")
            done += 1
            if progress:
                progress("prototypes", done, total)

    if settings.warm_epochs:
        warm, known = torch.optim.Adam(own, lr=settings.warm_rate), encode(trunk.cpu(), channels, scaling)
        for _ in range(settings.warm_epochs):
            epoch(warm, known)
        trunk.to(device)
    groups = [
        {"params": list(trunk.parameters()), "lr": settings.backbone_rate, "weight_decay": settings.backbone_decay},
        {"params": own, "lr": settings.prototype_rate},
        {"params": [prototypes.bias], "lr": settings.bias_rate},
    ]
    if learn_importance:
        groups.append({"params": [prototypes.logits], "lr": settings.prototype_rate})
    joint = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.StepLR(joint, settings.step, settings.gamma)
    for _ in range(settings.rounds):
        trunk.train()
        for _ in range(settings.epochs):
            epoch(joint)
            schedule.step()
        trunk.eval().cpu()
        a = prototypes.cpu().importance.tolist()
        prototypes.project(encode(trunk, channels, scaling), weights, y, a)
        trunk.to(device)
        prototypes.to(device)
    trunk.eval().cpu()
    prototypes.eval().cpu().fit_head(encode(trunk, channels, scaling), weights, y)
    return prototypes


def _loss(
    prototypes: Prototypes, logit: Tensor, scores: Tensor, votes: Tensor, raters: int, class_weight: Tensor,
    settings: TrainingSettings,
) -> Tensor:  # fmt: skip
    c = settings.loss
    total = c.bce * losses.weighted_bce(logit, votes, raters, class_weight)
    total = total + c.cluster * losses.cluster_cost(scores, votes, prototypes.classes, raters)
    total = total + c.separation * losses.separation_cost(scores, votes, prototypes.classes, raters)
    total = total + c.orthogonality * losses.orthogonality_cost(prototypes.latent, prototypes.fft)
    if prototypes.logits.requires_grad:
        total = total + c.statistics * losses.statistics_cost(prototypes.importance)
    return total + c.l1 * prototypes.head.abs().sum()  # the head is frozen: a constant
