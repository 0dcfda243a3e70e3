"""What a cache of summaries costs and what it keeps, measured on a log's held-out last events.

* storage: ranking with summaries as stored (float32 .. int4), and bytes a user
* tokens: ranking when stage 2 reads only the first vectors of each summary
* staleness: ranking when summaries miss the most recent events, alone and with the raw events beside them
* reconstruction: L_rec with the user's own summary and with another user's. Own below other: the summary memorizes the
  user, not only the population; this is what deleting a user must remove.

Knows nothing about: files, stores, terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rote.errors import InputError
from rote.memory.vista.evaluation import ranking_figures
from rote.memory.vista.quantisation import DTYPES, dequantise, quantise
from rote.memory.vista.recommender import leave_one_out, ranks
from rote.memory.vista.reconstruction import shuffled_gap
from rote.memory.vista.value_layout import Summary, encode, no_raw

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from rote.memory.vista.embedding import Histories
    from rote.memory.vista.interactions import InteractionLog
    from rote.memory.vista.model import Vista

KEPT = ("users", "HR@10", "NDCG@10", "MRR")


@torch.no_grad()
def audit_model(
    model: Vista,
    log: InteractionLog,
    *,
    missing: Sequence[int] = (0, 1, 2, 4, 8, 16, 32),
    longest: int = 200,
    most_users: int = 1000,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Tables `storage`, `tokens`, `staleness` (one row each setting; higher HR@10, NDCG@10, MRR are better; full
    ranking) and `reconstruction`. Users are drawn with `seed`.

    Errors: InputError for a log in which nobody has three events.
    """
    if any(count < 0 for count in missing) or most_users < 1:
        raise InputError("missing events are counted from 0, and at least one user is to be judged")
    split = leave_one_out(log, longest=longest)
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(split.targets), generator=draw)[:most_users]
    histories, _ = split.request("test", rows)
    vectors = _summaries(model, histories)
    stages = len(DTYPES) + 2 * len(missing)
    done = 0

    def judged(summaries: Float[Tensor, "n k dim"], **more: Any) -> dict[str, Any]:
        nonlocal done
        found = ranking_figures(ranks(model, split, rows=rows, summaries=summaries, **more), (10,))
        done += 1
        if progress:
            progress("settings", min(done, stages), stages)
        return {name: found[name] for name in KEPT}

    storage = []
    for dtype in DTYPES:
        k, d = vectors.shape[1:]
        stored = [dequantise(quantise(z, dtype), k, d, dtype) for z in vectors.numpy()]
        raw = np.zeros(model.config.raw_events, no_raw().dtype)
        size = len(encode(Summary(vectors[0].numpy(), model.version, 0, 0.0, raw), dtype))
        storage.append({"dtype": dtype, "bytes a user": size} | judged(torch.tensor(np.stack(stored))))
    counts = [2**n for n in range(20) if 2**n < model.config.seeds] + [model.config.seeds]
    tokens = [{"vectors": count} | judged(vectors[:, :count]) for count in counts]
    staleness = []
    for count in missing:
        length = histories.mask.sum(1)
        old = _summaries(model, histories.cut((length - count).clamp(min=0)))
        row = {"missing": count} | judged(old, raw=False)
        if model.config.raw_events:
            row |= {f"{name}, with raw events": value for name, value in judged(old).items() if name != "users"}
        staleness.append(row)
    return {
        "schema_version": "1.0", "version": model.version, "users": len(rows), "items": model.config.items,
        "storage": storage, "tokens": tokens, "staleness": staleness,
        "reconstruction": _reconstruction(model, histories, vectors, draw),
    }  # fmt: skip


def _summaries(model: Vista, histories: Histories) -> Float[Tensor, "n k dim"]:
    return torch.cat([model.summarise(histories.rows(rows)) for rows in torch.arange(len(histories)).split(256)])


def _reconstruction(
    model: Vista, histories: Histories, vectors: Float[Tensor, "n k dim"], draw: torch.Generator
) -> dict[str, Any] | None:
    """L_rec over each history's first events, own summary against another's; None when it was not trained for it."""
    if not model.config.recon_weight or len(histories) < 2:
        return None
    window = slice(0, model.config.recon_window)
    events = model.embedding.content(histories.item[:, window], histories.action[:, window])
    own, other = shuffled_gap(model.decoder, model.restored(vectors), events, histories.mask[:, window], draw)
    gap = (other - own).double()
    return {
        "L_rec own": float(own.mean()), "L_rec other": float(other.mean()), "gap": float(gap.mean()),
        "standard error of the gap": float(gap.std() / len(gap) ** 0.5),
        "users told better by their own": float((gap > 0).double().mean()),
    }  # fmt: skip
