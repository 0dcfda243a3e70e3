"""What does an audit's pass cost over the bare forward pass of the same model on the same batches?

Bare = logits and cross-entropy, as transformers computes them. Audit = log-probability, rank, entropy, spread, greedy
verdict and the stated schemes for every token. Interleaved repetitions, the least time of each; memory by a fresh
process per variant. Run: python benchmarks/audit_pass.py [--device cuda] [--dtype bfloat16] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time

import numpy as np
import torch

from rote.models import CausalLM
from rote.records import RecordTable
from rote.runtime import peak_rss_mb
from rote.scores.schemes import DecodingScheme
from rote.scores.sequences import prepare
from rote.scores.tokens import TokenScorer, batches

VARIANTS = {
    "membership scores, greedy": (),
    "membership scores, greedy, top_k=40": ("top_k=40",),
    "membership scores, greedy, 3 schemes": ("top_k=40", "temperature=0.7", "top_p=0.9"),
}
LIMITS = dict(zip(VARIANTS, (1.15, 1.15, 1.35), strict=True))


def gpt2_small(vocab_size: int, device: str, dtype: torch.dtype):
    """12 layers, d 768, random weights scaled so that next-token distributions are neither flat nor certain."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size, n_layer=12, n_embd=768, n_head=12, n_positions=1024, bos_token_id=0, eos_token_id=0
        )
    )
    model.transformer.wte.weight.data.mul_(4)
    return model.to(device, dtype).eval()


def documents(vocab_size: int, tokens: int) -> RecordTable:
    rng = np.random.default_rng(0)
    lengths, total = [], 0
    while total < tokens:
        lengths.append(int(rng.integers(64, 257)))
        total += lengths[-1]
    return RecordTable.from_rows({"token_ids": rng.integers(0, vocab_size, n).tolist()} for n in lengths)


def bare(model, sequences, groups, device) -> float:
    """transformers' own logits and cross-entropy over the same batches; returns the summed loss."""
    total = 0.0
    for group in groups:
        length = max(len(sequences[row].ids) for row in group)
        ids = torch.zeros(len(group), length, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for place, row in enumerate(group):
            found = torch.tensor(sequences[row].ids)
            ids[place, : len(found)], labels[place, : len(found)] = found, found
        with torch.inference_mode():
            logits = model(input_ids=ids.to(device), use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(device), reduction="sum"
            )
        total += float(loss)
    return total


def measure(vocab_size: int, options) -> dict:
    device, dtype = options.device, getattr(torch, options.dtype)
    model = gpt2_small(vocab_size, device, dtype)
    adapter = CausalLM(model, name="gpt2-small-shaped", fingerprint="benchmark")
    prepared = prepare(adapter, documents(vocab_size, options.tokens))
    rows = prepared.order
    sequences = prepared.sequences(rows)
    scorers = {
        name: TokenScorer(adapter, [DecodingScheme.parse(text) for text in schemes], batch_tokens=options.batch_tokens)
        for name, schemes in VARIANTS.items()
    }
    budget = next(iter(scorers.values())).batch_tokens
    groups = batches(np.array([len(sequence.ids) for sequence in sequences]), budget)

    def clock(work) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    times: dict[str, list[float]] = {"bare": [], **{name: [] for name in VARIANTS}}
    bare(model, sequences, groups[:1], device)
    for scorer in scorers.values():
        scorer(prepared, rows[:8])
    for _ in range(options.repeat):
        times["bare"].append(clock(lambda: bare(model, sequences, groups, device)))
        for name, scorer in scorers.items():
            times[name].append(clock(lambda scorer=scorer: scorer(prepared, rows)))
    # The same numbers? The audit's summed log-probability is minus the bare pass's summed cross-entropy.
    block = scorers["membership scores, greedy"](prepared, rows)
    agreement = (
        abs(float(np.nansum(block.logp.astype(np.float64))) + bare(model, sequences, groups, device))
        / block.length.sum()
    )
    least = {name: min(found) for name, found in times.items()}
    return {
        "vocabulary": vocab_size,
        "tokens": prepared.tokens,
        "bare_seconds": least["bare"],
        "bare_tokens_per_second": prepared.tokens / least["bare"],
        "ratios": {name: least[name] / least["bare"] for name in VARIANTS},
        "ratios_median": {name: float(np.median(times[name]) / np.median(times["bare"])) for name in VARIANTS},
        "limits": LIMITS,
        "mean_difference_nats": agreement,
    }


def _memory(vocab_size: int, variant: str, options, answer) -> None:
    model = gpt2_small(vocab_size, "cpu", torch.float32)
    adapter = CausalLM(model, name="gpt2-small-shaped", fingerprint="benchmark")
    prepared = prepare(adapter, documents(vocab_size, options.tokens // 4))
    sequences = prepared.sequences(prepared.order)
    if variant == "bare":
        scorer = TokenScorer(adapter, batch_tokens=options.batch_tokens)
        bare(model, sequences, batches(np.array([len(s.ids) for s in sequences]), scorer.batch_tokens), "cpu")
    else:
        TokenScorer(
            adapter, [DecodingScheme.parse(text) for text in VARIANTS[variant]], batch_tokens=options.batch_tokens
        )(prepared, prepared.order)
    answer.put(peak_rss_mb())


def peak_memory(vocab_size: int, variant: str, options) -> float:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    worker = context.Process(target=_memory, args=(vocab_size, variant, options, answer))
    worker.start()
    found = answer.get()
    worker.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[50_257, 151_936])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    results = []
    for vocab_size in options.vocabularies:
        found = measure(vocab_size, options)
        if options.device == "cpu" and not options.no_memory:
            found["peak_rss_mb"] = {name: round(peak_memory(vocab_size, name, options)) for name in ("bare", *VARIANTS)}
        results.append(found)
        print(f"vocabulary {vocab_size:,}: bare {found['bare_tokens_per_second']:,.0f} tokens/s")
        for name, ratio in found["ratios"].items():
            verdict = "within" if ratio <= LIMITS[name] else "OVER"
            print(
                f"  {name:42} {ratio:.3f} x bare (median {found['ratios_median'][name]:.3f}; {verdict} {LIMITS[name]})"
            )
        print(
            f"  difference from the bare loss: {found['mean_difference_nats']:.2e} nats a token; memory"
            f" {found.get('peak_rss_mb')}"
        )
    report = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "dtype": options.dtype,
        "results": results,
    }
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
