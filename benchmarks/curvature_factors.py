"""What does collecting curvature factors cost over one forward and backward pass of the same model on the same batches?

Bare = transformers' logits, cross-entropy, and the gradient of every weight. Factors = A and G of the chosen layers
with labels drawn from the model: the weights are frozen, so no weight gradient is made, and the backward pass ends at
the lowest chosen layer. Interleaved repetitions in one process, the least time of each; memory by a fresh process per
variant. The pair selection of one 11008 x 4096 matrix (a 7B model's) is timed too, with the memory it allocates.
Run: python benchmarks/curvature_factors.py [--device cuda] [--dtype bfloat16] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
import tracemalloc

import numpy as np
import torch

from rote.controls.editing.selection import select_pairs
from rote.internals.curvature import collect_causal_lm, default_layers
from rote.models import CausalLM
from rote.runtime import peak_rss_mb

LIMIT = 1.6
VARIANTS = ("default layers", "every MLP matrix")


def gpt2_small(options) -> CausalLM:
    """12 layers, d 768, random weights scaled so that next-token distributions are neither flat nor certain."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=options.vocabulary,
            n_layer=options.blocks,
            n_embd=768,
            n_head=12,
            n_positions=1024,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    model.transformer.wte.weight.data.mul_(4)
    return CausalLM(
        model.to(options.device, getattr(torch, options.dtype)), name="gpt2-small-shaped", fingerprint="benchmark"
    )


def patterns(model: CausalLM, variant: str) -> tuple[str, ...]:
    return default_layers(model.hf) if variant == "default layers" else ("transformer.h.*.mlp.c_*",)


def bare(model: CausalLM, windows: np.ndarray, rows: int) -> float:
    """Forward and backward over batches of `rows` windows, as training does it; returns the summed loss."""
    total = 0.0
    for start in range(0, len(windows), rows):
        ids = torch.from_numpy(windows[start : start + rows]).to(model.device)
        logits = model.hf(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        total += loss.item()
        model.hf.zero_grad(set_to_none=True)
    return total


def clock(work, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(options) -> dict:
    model = gpt2_small(options)
    windows = data(options)

    def collect(variant: str, rows: np.ndarray) -> None:
        budget = options.batch * (options.length - 1)
        collect_causal_lm(model, rows, layers=patterns(model, variant), seed=0, batch_tokens=budget)

    work = {"bare": lambda: bare(model, windows, options.batch)}
    work |= {variant: lambda variant=variant: collect(variant, windows) for variant in VARIANTS}
    times: dict[str, list[float]] = {name: [] for name in work}
    bare(model, windows[: options.batch], options.batch)
    collect(VARIANTS[0], windows[: options.batch])
    for _ in range(options.repeat):
        for name, one in work.items():
            times[name].append(clock(one, options.device))
    least = {name: min(found) for name, found in times.items()}
    return {
        "vocabulary": options.vocabulary,
        "blocks": options.blocks,
        "windows": options.windows,
        "length": options.length,
        "batch": options.batch,
        "repetitions": options.repeat,
        "bare_seconds": least["bare"],
        "layers": {variant: len(patterns(model, variant)) or 0 for variant in VARIANTS},
        "ratios": {variant: least[variant] / least["bare"] for variant in VARIANTS},
        "ratios_median": {variant: float(np.median(times[variant]) / np.median(times["bare"])) for variant in VARIANTS},
        "limit": LIMIT,
    }


def selection(p: int = 11_008, q: int = 4_096, rho: float = 0.6) -> dict:
    """Time and allocated memory of the exact threshold search on steep random spectra; the least of five runs."""
    rng = np.random.default_rng(0)
    lam, mu = (np.sort(np.exp(rng.normal(0, 3, size)))[::-1].copy() for size in (p, q))
    seconds = min(clock(lambda: select_pairs(lam, mu, rho), "cpu") for _ in range(5))
    tracemalloc.start()
    found = select_pairs(lam, mu, rho)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "outputs": p,
        "inputs": q,
        "rho": rho,
        "pairs": found.pairs,
        "seconds": seconds,
        "peak_allocated_mb": peak / 2**20,
        "all_pairs_mb": p * q * 8 / 2**20,
    }


def data(options) -> np.ndarray:
    return np.random.default_rng(0).integers(0, options.vocabulary, (options.windows, options.length))


def _memory(variant: str, options, answer) -> None:
    model = gpt2_small(options)
    windows = data(options)[: options.batch]
    if variant == "bare":
        bare(model, windows, options.batch)
    elif variant != "model alone":
        collect_causal_lm(model, windows, layers=patterns(model, variant), batch_tokens=options.batch * options.length)
    answer.put(peak_rss_mb())


def peak_memory(variant: str, options) -> float:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    worker = context.Process(target=_memory, args=(variant, options, answer))
    worker.start()
    found = answer.get()
    worker.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=257)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    found = measure(options)
    if options.device == "cpu" and not options.no_memory:
        found["peak_rss_mb"] = {name: round(peak_memory(name, options)) for name in ("model alone", "bare", *VARIANTS)}
    print(f"bare forward and backward: {found['bare_seconds']:.2f} s")
    for variant, ratio in found["ratios"].items():
        verdict = "within" if ratio <= LIMIT else "OVER"
        median = found["ratios_median"][variant]
        print(f"  {variant:20} {ratio:.3f} x bare (median {median:.3f}; {verdict} {LIMIT})")
    print(f"  memory {found.get('peak_rss_mb')}")
    pairs = selection()
    print(
        f"pair selection, {pairs['outputs']} x {pairs['inputs']}: {pairs['seconds']:.3f} s,"
        f" {pairs['peak_allocated_mb']:.1f} MB (all pairs: {pairs['all_pairs_mb']:.0f} MB)"
    )
    report = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "dtype": options.dtype,
        "results": [found],
        "pair_selection": pairs,
    }
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
