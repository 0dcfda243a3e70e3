"""The pass on many machines: the same shards, the same store, the same resume, scored by Ray workers.

Every worker loads the checkpoint once and scores whole shards into the store's directory, which all workers must see
(one machine, or a shared file system). A shard is a pure function of model, records and settings, so the result is the
local engine's up to the last rounding of the workers' processors. A worker that dies gives its shard back; a failed
shard is tried three times.

Connect to a cluster as usual with the environment variable RAY_ADDRESS; otherwise a private one is started here.
Knows nothing about measures. Ray is an optional library.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rote.errors import InputError, MissingDependencyError, RoteError
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import Split, prepare
from rote.scores.store import ScoreStore

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

ATTEMPTS = 3


class ShardWorker:
    """One Ray actor: a loaded model and the record table. Its methods run in the worker process."""

    def __init__(self, checkpoint: str, options: dict[str, Any], table: Any, split: dict, schemes: list[str]):
        import torch

        from rote.models.causal_lm import CausalLM
        from rote.records.table import RecordTable
        from rote.scores.tokens import TokenScorer, shard_rows

        torch.set_num_threads(max(1, int(options.pop("threads", 1))))
        batch_tokens = options.pop("batch_tokens", None)
        self.model = CausalLM.load(checkpoint, **options)
        self.prepared = prepare(self.model, RecordTable(table), Split(**split))
        self.scorer = TokenScorer(
            self.model, [DecodingScheme.parse(text) for text in schemes], batch_tokens=batch_tokens
        )
        self.shards = shard_rows(self.prepared)

    def fingerprint(self) -> str:
        return self.model.fingerprint

    def score(self, directory: str, key: dict, shard: int) -> int:
        """Score one shard and write it; returns its tokens."""
        rows = self.shards[shard]
        ScoreStore(directory, key).write(shard, self.scorer(self.prepared, rows))
        return int(self.prepared.lengths[rows].sum())


def score_with_ray(
    model: CausalLM,
    records: RecordTable,
    store: ScoreStore,
    missing: Sequence[int],
    *,
    schemes: Sequence[DecodingScheme],
    split: Split,
    batch_tokens: int | None = None,
    workers: int | None = None,
    report: Callable[[int], None] | None = None,
) -> None:
    """Score the `missing` shards of `store` with Ray workers: one a GPU where there are any, else one a CPU core.

    report(tokens) is called as each shard is finished. Raises MissingDependencyError without Ray; InputError for a
    model that was not loaded from a directory; RoteError when a shard keeps failing or a worker has other weights.
    """
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("ray", "ray") from None
    if model.source is None:
        raise InputError(
            "the Ray engine loads the checkpoint in every worker: give a checkpoint directory, not a model"
        )
    mine = not ray.is_initialized()
    if mine:
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **local)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if model.device.type == "cuda" else 0
        cores = int(resources.get("CPU", 1))
        count = max(1, min(len(missing), workers or gpus or cores))
        threads = max(1, cores // count)
        options = {
            "device": "cuda" if gpus else "cpu",
            "dtype": str(model.dtype).removeprefix("torch."),
            "bos": model.bos_rule,
            "threads": threads,
            "batch_tokens": batch_tokens,
        }
        actor = ray.remote(num_cpus=threads, num_gpus=1 if gpus else 0)(ShardWorker)
        table = ray.put(records.table.combine_chunks())
        cut = {"prefix": split.prefix, "suffix": split.suffix, "long": split.long}
        names = [scheme.name for scheme in schemes]

        def start() -> Any:
            return actor.remote(str(model.source), dict(options), table, cut, names)

        crew = [start() for _ in range(count)]
        for fingerprint in ray.get([worker.fingerprint.remote() for worker in crew]):
            if fingerprint != model.fingerprint:
                raise RoteError(f"{model.source}: a worker reads other weights there than this machine does")
        _distribute(ray, crew, start, store, list(missing), report)
    finally:
        if mine:
            ray.shutdown()


def _distribute(
    ray: Any,
    crew: list[Any],
    start: Callable[[], Any],
    store: ScoreStore,
    queue: list[int],
    report: Callable[[int], None] | None,
) -> None:
    """Hand out shards, one at a time a worker; a shard whose worker died or failed goes back into the queue."""
    directory = str(Path(store.directory).resolve())
    failures: dict[int, int] = {}
    running: dict[Any, tuple[Any, int]] = {}
    idle = list(crew)
    while queue or running:
        while queue and idle:
            worker, shard = idle.pop(), queue.pop(0)
            running[worker.score.remote(directory, store.key, shard)] = (worker, shard)
        done, _ = ray.wait(list(running), num_returns=1)
        worker, shard = running.pop(done[0])
        try:
            tokens = ray.get(done[0])
        except ray.exceptions.RayError as error:
            failures[shard] = failures.get(shard, 0) + 1
            if failures[shard] >= ATTEMPTS:
                cause = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
                raise RoteError(f"shard {shard} failed {ATTEMPTS} times in the Ray workers: {cause}") from error
            queue.append(shard)
            alive = not isinstance(error, ray.exceptions.RayActorError)
            idle.append(worker if alive else start())
            continue
        idle.append(worker)
        if report:
            report(tokens)
