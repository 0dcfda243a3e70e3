"""Training, decoding and forward speed of test-time memories: TNT, Titans, and the public titans-pytorch.

Training. One block of width 32 on bytes, one row of 4,096 or 16,384 tokens: a whole step (forward, backward, AdamW).
Titans (momentum and forgetting, and the plain descent that TNT uses) at its accurate chunk, 8, against stage 1 of TNT.
Both sides are the same code (`rote.memory.tnt.chunkwise`), each with the number of threads (1 or 2) that it is fastest
with, taken in turns; the least wall time counts, and beside it the least CPU time with one thread.

Quality. Both are then trained on the same bytes for the same number of steps, TNT for 5 % more of them in stage 2 at
local chunk 8, Titans for 5 % more at its own; perplexity is of held-out rows.

Decoding. Milliseconds a token behind contexts of several lengths, and the numbers that the state holds.

Peer. titans-pytorch (`--peer DIR` puts a folder with it on the path; it is no dependency). The functions coincide with
its `chunk_size=1, batch_size=C` (every token its own gates, gradients at the start of C tokens: our per-token read)
and with its `chunk_size=C, batch_size=C` (gates a chunk, reads at the chunk's start, the last token of a chunk behind
its end: our chunk read with queries shifted by one), one head, no norms, no residual, loss averaged over features (our
theta divided by the width). Weights are copied; the largest difference and the least time of either forward count.

Run: python benchmarks/tnt_speed.py [--out FILE] [--peer DIR] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rote.memory.tnt import MemoryFunction, TNTConfig, TNTForCausalLM, evaluate, finetune, rechunked, train
from rote.memory.tnt.checkpoints import make, split
from rote.memory.tnt.chunkwise import FastWeights, scan
from rote.memory.tnt.coefficients import Coefficients, titans_coefficients
from rote.models import TrainingConfig
from rote.records import stdlib_documents
from rote.runtime import threads, versions

BLOCK = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 1}
TITANS = {"architecture": "titans", "chunk": 8}
PLAIN = TITANS | {"momentum": False, "forget": False}
TNT = {"global_chunk": 512, "shard": 128}
ARMS = {
    "titans, chunk 8": TITANS,
    "titans without momentum and forgetting, chunk 8": PLAIN,
    "tnt, local chunk 16": TNT | {"local_chunks": [16]},
    "tnt, local chunk 32": TNT | {"local_chunks": [32]},
    "tnt, local chunk 64": TNT | {"local_chunks": [64]},
}


def least(tasks: dict[Any, Callable[[], object]], repetitions: int) -> dict[Any, tuple[float, float]]:
    """Least (wall seconds, CPU seconds) of each, taken in turns. On a busy machine only the second can be compared."""
    best = dict.fromkeys(tasks, (float("inf"), float("inf")))
    for _ in range(repetitions):
        for name, task in tasks.items():
            begin = time.perf_counter(), time.process_time()
            task()
            took = time.perf_counter() - begin[0], time.process_time() - begin[1]
            best[name] = (min(best[name][0], took[0]), min(best[name][1], took[1]))
    return best


def training(lengths: list[int], repetitions: int, counts: list[int]) -> list[dict[str, Any]]:
    rows = []
    for length in lengths:
        ids = torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(0))
        tasks = {}
        for name, settings in ARMS.items():
            model = make(TNTConfig(**BLOCK, **settings), 0)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
            for count in counts:
                tasks[name, count] = step_of(model, optimizer, ids, count)
        found = least(tasks, repetitions)
        for name in ARMS:
            walls = {count: found[name, count][0] for count in counts}
            count = min(walls, key=walls.__getitem__)
            row = {
                "tokens": length, "model": name, "threads": count, "tokens_per_second": length / walls[count],
                "tokens_per_cpu_second": length / found[name, 1][1], "seconds_by_threads": walls,
            }  # fmt: skip
            rows.append(row)
            print(
                f"{length:6} tokens, {name:50} {row['tokens_per_second']:9,.0f} tokens/s with {count} threads,"
                f" {row['tokens_per_cpu_second']:9,.0f} tokens/CPU s with 1",
                flush=True,
            )
    return rows


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens a second of every TNT over either Titans, by wall time and by CPU time."""
    by = {(row["tokens"], row["model"]): row for row in rows}
    found = []
    for (tokens, name), row in by.items():
        if not name.startswith("tnt"):
            continue
        for base in list(ARMS)[:2]:
            other = by[tokens, base]
            line = {
                "tokens": tokens, "tnt": name, "over": base,
                "wall": row["tokens_per_second"] / other["tokens_per_second"],
                "cpu": row["tokens_per_cpu_second"] / other["tokens_per_cpu_second"],
            }  # fmt: skip
            found.append(line)
            print({key: round(value, 2) if isinstance(value, float) else value for key, value in line.items()})
    return found


def step_of(model: TNTForCausalLM, optimizer: torch.optim.Optimizer, ids: torch.Tensor, count: int) -> Callable:
    def run() -> None:
        with threads(count):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def quality(steps: int, context: int, seed: int) -> dict[str, Any]:
    """Perplexity of TNT after both stages, and of Titans with as many steps."""
    topics = (document.text for document in stdlib_documents() if document.id.startswith("topics/"))
    content = np.frombuffer("\n\n".join(topics).encode(), dtype=np.uint8).astype(np.int64)
    width, batch, second = context + 1, 4, max(1, round(0.05 * steps))
    rows, held = split(content[: len(content) // width * width].reshape(-1, width), 0.1, seed)
    stream = np.resize(rows, (batch * (steps + second), width))
    first, rest = stream[: batch * steps], stream[batch * steps :]
    recipe, short = TrainingConfig(batch_size=batch), TrainingConfig(batch_size=batch, learning_rate=1e-3)
    out: dict[str, Any] = {
        "context": context,
        "batch": batch,
        "steps": steps,
        "second_stage_steps": second,
        "seed": seed,
    }
    for name, settings, after in (
        ("titans, chunk 8", TITANS, {"chunk": 8}),
        ("tnt, local chunk 32", TNT | {"local_chunks": [32]}, {"local_chunks": [8]}),
    ):
        model = make(TNTConfig(**BLOCK, **settings), seed)
        begin = time.perf_counter()
        train(model, first, recipe)
        stage1 = time.perf_counter() - begin
        begin = time.perf_counter()
        tuned = finetune(model, rest, config=short, **after)
        stage2 = time.perf_counter() - begin
        untuned = evaluate(rechunked(model, **after), held).perplexity
        out[name] = {
            "stage_1_seconds": stage1, "stage_2_seconds": stage2,
            "perplexity_stage_1": evaluate(model, held).perplexity,
            "perplexity_at_new_chunk_untuned": untuned, "perplexity_stage_2": evaluate(tuned, held).perplexity,
            "held_out_bytes": len(held) * context,
        }  # fmt: skip
        print(name, {key: round(value, 3) for key, value in out[name].items()})
    return out


def decoding(lengths: list[int], tokens: int) -> list[dict[str, Any]]:
    """Milliseconds a token behind a context, 1 thread; the state's size. Positions are aligned to chunk and shard."""
    model = make(TNTConfig(**BLOCK, **TNT, local_chunks=[8]), 0).eval()
    rows = []
    with threads(1), torch.inference_mode():
        for length in lengths:
            ids = torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(0))
            cache = model(input_ids=ids, use_cache=True).past_key_values
            size, times, work, token = cache.numel, [], [], ids[:, -1:]
            for _ in range(tokens):
                begin = time.perf_counter(), time.process_time()
                token = (
                    model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
                )
                times.append(time.perf_counter() - begin[0])
                work.append(time.process_time() - begin[1])
            rows.append(
                {
                    "context": length,
                    "ms_a_token": 1e3 * float(np.median(times)),
                    "cpu_ms_a_token": 1e3 * float(np.median(work)),
                    "state_numbers": size,
                }
            )
            print(
                f"decode behind {length:6}: {rows[-1]['ms_a_token']:.2f} ms a token"
                f" ({rows[-1]['cpu_ms_a_token']:.2f} of CPU), {size:,} numbers of state"
            )
    return rows


def chunk_gates(rates: dict[str, torch.Tensor], position: int, reads: bool) -> Coefficients:
    """Momentum and decay once a chunk: M <- (1 - alpha) M + S, S <- eta S - sum theta_i u_i."""
    theta, keep, eta = rates["theta"], 1 - rates["alpha"], rates["eta"]
    return Coefficients(last=theta, keep=keep, carry=eta, momentum_keep=eta[..., -1], momentum_write=theta)


def peer(folder: str | None, tokens: int, width: int, sizes: list[int], repetitions: int) -> list[dict[str, Any]]:
    """Agreement with titans-pytorch and the time of either forward."""
    if folder:
        sys.path.append(folder)
    try:
        from titans_pytorch import NeuralMemory  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"titans-pytorch is not importable ({error}): left out")
        return []
    rows = []
    function = MemoryFunction(depth=2, expansion=2, activation="gelu")
    for per_token in (True, False):
        for size in sizes:
            torch.manual_seed(0)
            theirs = NeuralMemory(
                dim=width, chunk_size=1 if per_token else size, batch_size=size, heads=1, pre_rmsnorm=False,
                mem_model_norm_add_residual=False, default_step_transform_max_lr=0.1, activation=torch.nn.SiLU(),
                default_model_kwargs={"depth": 2, "expansion_factor": 2.0},
            )  # fmt: skip
            x = torch.randn(1, tokens, width)
            weights = [parameter.detach().clone() for parameter in theirs.memory_model_parameters]

            def ours(x=x, weights=weights, theirs=theirs, size=size, per_token=per_token):
                k, v, q = theirs.to_keys(x), theirs.to_values(x), theirs.to_queries(x)
                pooled = x if per_token else x.unflatten(1, (-1, size)).mean(2)
                spread = 1 if per_token else size
                rates = {
                    "theta": theirs.to_adaptive_step(x).sigmoid() * 0.1 / x.shape[-1],
                    "alpha": theirs.to_decay_factor(pooled).sigmoid()[..., 0].repeat_interleave(spread, 1),
                    "eta": theirs.to_momentum(pooled).sigmoid()[0, ..., 0].repeat_interleave(spread, 1),
                }
                state = FastWeights(weights, weights)
                if per_token:
                    rule = lambda r, _, reads: titans_coefficients(r["theta"], r["alpha"], r["eta"], reads=reads)  # noqa: E731
                    return scan(function, state, q, k, v, rates, rule, chunk=size)[0]
                late = torch.cat([torch.zeros_like(q[:, :1]), q[:, :-1]], 1)
                y, end, _ = scan(function, state, late, k, v, rates, chunk_gates, chunk=size, read="chunk")
                return torch.cat([y[:, 1:], function.forward(end.now, q[:, -1:])], 1)

            with torch.no_grad():
                reference, mine = theirs(x)[0], ours()
                difference = float((reference - mine).abs().max() / reference.abs().max())
                tasks = {}
                for count in (1, 2):
                    tasks["theirs", count] = lambda count=count, theirs=theirs, x=x: _with(count, lambda: theirs(x))
                    tasks["ours", count] = lambda count=count, ours=ours: _with(count, ours)
                found = least(tasks, repetitions)
            best = {name: min(found[name, 1][0], found[name, 2][0]) for name in ("theirs", "ours")}
            rows.append({
                "function": "per-token gates and reads" if per_token else "gates a chunk, reads at chunk start",
                "tokens": tokens, "width": width, "chunk": size, "relative_difference": difference,
                "ours_seconds": best["ours"], "theirs_seconds": best["theirs"], "ratio": best["theirs"] / best["ours"],
                "ratio_cpu_one_thread": found["theirs", 1][1] / found["ours", 1][1],
            })  # fmt: skip
            print({key: value if isinstance(value, str) else float(f"{value:.4g}") for key, value in rows[-1].items()})
    return rows


def _with(count: int, task: Callable[[], object]) -> None:
    with threads(count):
        task()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out")
    parser.add_argument("--peer", help="folder with titans-pytorch and what it needs")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--threads", default="1,2", help="numbers of threads to try in training; 1 must be among them")
    parser.add_argument("--repetitions", type=int, default=3, help="of every timed training step")
    parser.add_argument("--only", default="training,decoding,peer,quality", help="parts; others in --out are kept")
    options = parser.parse_args()
    quick, only = options.quick, options.only.split(",")
    counts = [int(count) for count in options.threads.split(",")]
    result: dict[str, Any] = {}
    if options.out and os.path.exists(options.out):
        with open(options.out) as file:
            result = json.load(file)
    result["versions"] = versions()
    if "training" in only:
        result["training"] = training([256, 512] if quick else [4096, 16384], options.repetitions, counts)
        result["ratios"] = ratios(result["training"])
    if "decoding" in only:
        result["decoding"] = decoding([512, 1024] if quick else [512, 1024, 4096, 16384], 16 if quick else 128)
    if "peer" in only:
        result["peer"] = peer(options.peer, 128 if quick else 512, 32, [16] if quick else [16, 64], 1 if quick else 3)
    if "quality" in only:
        result["quality"] = quality(4 if quick else 120, 64 if quick else 512, 0)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
