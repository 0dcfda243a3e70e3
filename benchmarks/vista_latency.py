"""How long does a request take from a cached summary, over histories of 1,000 to 1,000,000 events, and what does
summarising a history of that length cost?

A request = LMDB look-up, checksum, dequantising, stage 2 for 100 candidates. Lengths take turns in one process, so that
a busy moment falls on all of them; medians of the rounds. Full attention to the raw history beside it where it is
feasible. What summarising adds to the resident memory at most, by a fresh process per length (Linux).
Run: python benchmarks/vista_latency.py [--out benchmarks/results/vista_latency.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import tempfile
import time

import numpy as np
import torch

from rote.memory.vista import RawTargetAttention, Vista, VistaConfig, latency_rows, open_store, summarise_user

LIMIT = 1.10  # slowest over fastest median across lengths: flat within 10 %


def config(options) -> VistaConfig:
    return VistaConfig(
        items=100_000, actions=4, dim=options.dim, heads=4, seeds=options.seeds, stage1_layers=options.layers,
        stage2_layers=options.layers, order="gap",
    )  # fmt: skip


def _resident(field: str) -> float:
    """MiB of this process from Linux's own account: VmRSS now, VmHWM at most since `clear_refs`."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def _memory(length: int, options, answer) -> None:
    torch.set_num_threads(options.threads)
    model = Vista(config(options)).eval()
    rng = np.random.default_rng(0)
    events = rng.integers(0, 100_000, length), rng.integers(0, 4, length), np.cumsum(rng.exponential(60.0, length))
    summarise_user(model, *(part[:1] for part in events))
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = _resident("VmRSS")
    began = time.perf_counter()
    summarise_user(model, *events)
    answer.put((before, _resident("VmHWM") - before, time.perf_counter() - began))


def memory(length: int, options) -> dict:
    """By a fresh process: what it holds before (libraries, model, events), and what summarising adds at most."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    worker = context.Process(target=_memory, args=(length, options, answer))
    worker.start()
    before, grown, seconds = answer.get()
    worker.join()
    return {"history": length, "MiB before": round(before, 1), "MiB added": round(grown, 1),
            "seconds": round(seconds, 2)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--history", default="1000,10000,100000,1000000")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--longest-full", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lengths = [int(part) for part in options.history.split(",")]
    settings = config(options)
    model, full = Vista(settings).eval(), RawTargetAttention(settings).eval()
    with tempfile.TemporaryDirectory() as home, open_store(f"lmdb:{home}/store", version=model.version) as store:
        rows = latency_rows(
            model, full, store, histories=lengths, candidates=options.candidates, repeats=options.repeats,
            longest_full=options.longest_full,
        )  # fmt: skip
        stats = store.stats()
    cached = [row["cached p50 ms"] for row in rows]
    found = {
        "machine": platform.processor() or platform.machine(), "threads": options.threads, "torch": torch.__version__,
        "dim": options.dim, "seeds": options.seeds, "layers": options.layers, "candidates": options.candidates,
        "repeats": options.repeats, "rows": rows, "slowest over fastest": max(cached) / min(cached), "limit": LIMIT,
        "memory": [memory(length, options) for length in lengths], "store bytes": stats["bytes"],
    }  # fmt: skip
    for row, held in zip(rows, found["memory"], strict=True):
        raw = row["full attention p50 ms"]
        print(
            f"{row['history']:>9,} events: cached {row['cached p50 ms']:.2f} ms (p99 {row['cached p99 ms']:.2f}), raw "
            + ("not measured" if raw is None else f"{raw:.1f} ms")
            + f"; summarising {held['seconds']:.2f} s, {held['MiB added']:.0f} MiB more"
        )
    verdict = "within" if found["slowest over fastest"] <= LIMIT else "OVER"
    print(f"slowest over fastest: {found['slowest over fastest']:.3f} ({verdict} {LIMIT})")
    if options.out:
        with open(options.out, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
