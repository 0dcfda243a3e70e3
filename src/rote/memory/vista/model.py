"""VISTA: a lifetime of events becomes K vectors (stage 1), and candidates attend to those alone (stage 2).

    z = summary of the history;    score(c) = head(target attention of c' over z)
    c' = c after target attention over the last R raw events, where such are kept (not in the paper)

Serving costs the same for a history of a hundred events and of a million: it reads K vectors from a store. A model's
`version` is a fingerprint of its weights, settings and names; summaries of another version are another vector space.

Source: Chen et al. 2025, arXiv 2510.22049 ("Massive Memorization with Hundreds of Trillions of Parameters ...").
Knows nothing about: files, stores, training.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from rote.errors import InputError
from rote.memory.vista.config import VistaConfig
from rote.memory.vista.embedding import EventEmbedding, Histories
from rote.memory.vista.reconstruction import Decoder, reconstruction_error
from rote.memory.vista.summariser import BLOCK, Summariser
from rote.memory.vista.target_attention import TargetAttention, TargetAttentionLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from rote.memory.vista.vocabulary import Vocabulary


class Vista(nn.Module):
    """The two stages, their shared tables and the reconstruction decoder. Weights depend on `seed` alone."""

    def __init__(
        self,
        config: VistaConfig,
        *,
        vocabulary: Vocabulary | None = None,
        category_of: Int[Tensor, " items"] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self._known: tuple[tuple[int, ...], str] | None = None
        if vocabulary is not None:
            category_of = torch.as_tensor(vocabulary.category_of) if config.categories else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = EventEmbedding(config, category_of)
            self.stage1 = Summariser(config.dim, config.heads, config.seeds, config.stage1_layers)
            self.stage2 = TargetAttention(
                config.dim, config.heads, config.stage2_layers, mlp=config.mlp, tasks=config.tasks
            )
            self.decoder = Decoder(config.dim, config.heads, config.recon_layers)
            self.raw_norm = nn.LayerNorm(config.dim)
            self.stage2_raw = nn.ModuleList(
                TargetAttentionLayer(config.dim, config.heads, mix=False)
                for _ in range(config.stage2_layers if config.raw_events else 0)
            )

    @property
    def device(self) -> torch.device:
        return self.stage1.seeds.device

    @property
    def version(self) -> str:
        """16 hex digits: sha256 over settings, names and weights. Computed again only when a weight has changed."""
        changes = tuple(value._version for value in self.state_dict(keep_vars=True).values())
        if self._known is not None and self._known[0] == changes:
            return self._known[1]
        names = None if self.vocabulary is None else self.vocabulary.to_dict()
        digest = hashlib.sha256(json.dumps([self.config.to_dict(), names], sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        self._known = (changes, digest.hexdigest()[:16])
        return self._known[1]

    def summarise(self, histories: Histories) -> Float[Tensor, "b k dim"]:
        """z of every user, in one piece: for training and short histories."""
        return self.stage1(self.embedding(histories), histories.mask)[0]

    @torch.no_grad()
    def summarise_long(
        self,
        item: Int[Tensor, " m"],
        action: Int[Tensor, " m"],
        time: Float[Tensor, " m"],
        *,
        block: int = BLOCK,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Float[Tensor, "k dim"], list[Float[Tensor, "heads d d"]]]:
        """One user's z and layer states, in memory of one block however long the history."""
        events = len(item)

        def blocks():
            for start in range(0, events, block):
                stop = min(start + block, events)
                gap = torch.diff(time[max(0, start - 1) : stop])
                if start == 0:
                    gap = torch.cat([gap.new_zeros(min(1, stop)), gap])
                rank = torch.arange(events - 1 - start, events - 1 - stop, -1, device=item.device)
                yield self.embedding.block(item[start:stop], action[start:stop], gap, rank)
                if progress:
                    progress(stop - start)

        return self.stage1.stream(blocks, events)

    @torch.no_grad()
    def centre_summaries(self, histories: Histories, *, most: int = 1024) -> None:
        """Measure the mean summary over at most `most` of these users (the training users): summaries then tell only
        how a user differs from it, which halves the error of int8. Scores stay as they are, the version does not."""
        self.stage1.centre.zero_()
        total = torch.zeros_like(self.stage1.centre)
        users = min(most, len(histories))
        for rows in torch.arange(users).split(256):
            total += self.summarise(histories.rows(rows)).sum(0)
        self.stage1.centre.copy_(total / max(1, users))

    def restored(self, summary: Float[Tensor, "b k dim"]) -> Float[Tensor, "b k dim"]:
        """Summaries with what is common to all users back in them; of fewer than K vectors, the first are meant."""
        return summary + self.stage1.centre[: summary.shape[1]]

    def logits(
        self, summary: Float[Tensor, "b k dim"], candidates: Int[Tensor, "b t"], raw: Histories | None = None
    ) -> Float[Tensor, "b t tasks"]:
        """Logits of many users' candidates at once. A user without raw events is scored from the summary alone."""
        return self.stage2(self.restored(summary), self._read_raw(self.embedding.candidates(candidates), raw))

    @torch.no_grad()
    def score(
        self, summary: Float[Tensor, "k dim"], candidates: Int[Tensor, " t"], raw: Histories | None = None
    ) -> Float[Tensor, "t tasks"]:
        """Logits of one user's candidates, each to the last bit independent of the others beside it."""
        before = None if raw is None else lambda block: self._read_raw(block, raw)
        return self.stage2.score(self.restored(summary[None])[0], self.embedding.candidates(candidates), before)

    def _read_raw(self, candidates: Float[Tensor, "b t dim"], raw: Histories | None) -> Float[Tensor, "b t dim"]:
        """Candidates after attending to the last raw events: a softmax of their own. In one softmax with the summary's
        K vectors the few events that tell the next item are drowned, and are learned far later."""
        if raw is None or not self.stage2_raw or raw.item.shape[1] == 0:
            return candidates
        tokens, read = self.raw_norm(self.embedding(raw)), candidates
        for layer in self.stage2_raw:
            _, read = layer(tokens, raw.mask, read)
        return torch.where(raw.mask.any(1)[:, None, None], read, candidates)

    def reconstruction(
        self, summary: Float[Tensor, "b k dim"], histories: Histories, start: int = 0
    ) -> Float[Tensor, " b"]:
        """L_rec of every user over the `recon_window` events from `start` on."""
        window = slice(start, start + self.config.recon_window)
        events = self.embedding.content(histories.item[:, window], histories.action[:, window])
        return reconstruction_error(self.decoder(self.restored(summary), events), events, histories.mask[:, window])

    def histories(self, item: Sequence[Any], action: Sequence[Any], time: Sequence[Any]) -> Histories:
        """Lists or arrays of different lengths, padded into one batch. Errors: InputError for an unknown number."""
        longest = max(map(len, item), default=0)
        device = self.device
        batch = Histories(
            torch.zeros(len(item), longest, dtype=torch.long),
            torch.zeros(len(item), longest, dtype=torch.long),
            torch.zeros(len(item), longest, dtype=torch.float64),
            torch.zeros(len(item), longest, dtype=torch.bool),
        )
        for row, parts in enumerate(zip(item, action, time, strict=True)):
            items, actions, times = map(np.asarray, parts)
            for what, found, known in (("item", items, self.config.items), ("action", actions, self.config.actions)):
                if len(found) and (found.min() < 0 or found.max() >= known):
                    raise InputError(f"history {row}: {what} number {found.max()}, the model knows 0 .. {known - 1}")
            for whole, part in ((batch.item, items), (batch.action, actions), (batch.time, times)):
                whole[row, : len(items)] = torch.as_tensor(np.ascontiguousarray(part), dtype=whole.dtype)
            batch.mask[row, : len(items)] = True
        return Histories(*(getattr(batch, name).to(device) for name in ("item", "action", "time", "mask")))
