"""What does steering cost per generated token, over plain greedy generation of the same model and prompts?

Variants, interleaved in one process, the least and the median time of each: plain `generate`, dynamic steering (probe
and addition in one hook), static steering, and contrastive steering (three passes a token). Random weights: the cost
does not depend on what the model says. Run: python benchmarks/steering_overhead.py [--device cuda] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from contextlib import nullcontext

import numpy as np
import torch

from rote.controls.decoding.contrastive import ContrastiveSteering
from rote.controls.decoding.mode_probe import ModeProbe
from rote.controls.decoding.steering import mode_steering
from rote.controls.decoding.steering_vector import SteeringVector

LIMIT = 1.05  # of plain generation, for the dynamic hook at this size: a step does O(d) more beside O(12 L d^2)


def gpt2_shaped(layers: int, width: int, device: str, dtype: torch.dtype):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50257, n_layer=layers, n_embd=width, n_head=width // 64, n_positions=1024, bos_token_id=0,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(device, dtype).eval()


def measure(options) -> dict:
    model = gpt2_shaped(options.layers, options.width, options.device, getattr(torch, options.dtype))
    rng = np.random.default_rng(0)
    probe = ModeProbe(
        (options.layers // 2,), rng.normal(0, 0.05, (1, options.width)).astype(np.float32), np.zeros(1, np.float32)
    )
    vector = SteeringVector(
        options.layers // 2, rng.normal(size=options.width).astype(np.float32), "random", "raw", 1.0, 1.0, 1, 1
    )
    ids = torch.from_numpy(rng.integers(1, 50_000, (options.batch, options.prompt))).to(options.device)

    def generate(processors=()):
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=options.tokens, min_new_tokens=options.tokens,
                do_sample=False, logits_processor=list(processors),
            )  # fmt: skip
        if options.device != "cpu":
            torch.cuda.synchronize()

    contexts = {
        "plain": nullcontext,
        "dynamic": lambda: mode_steering(model, probe, vector, alpha=1.4),
        "static": lambda: mode_steering(model, None, vector, alpha=1.4, dynamic=False),
        "contrastive": lambda: ContrastiveSteering(model, probe, vector, alpha=1.4),
    }
    times: dict[str, list[float]] = {name: [] for name in contexts}
    for repeat in range(options.repeat + 1):  # the first round warms up
        for name, context in contexts.items():
            with context() as active:
                begin = time.perf_counter()
                generate([active] if name == "contrastive" else ())
                if repeat:
                    times[name].append(time.perf_counter() - begin)
    least = {name: min(found) for name, found in times.items()}
    paired = {name: float(np.median(np.array(found) / np.array(times["plain"]))) for name, found in times.items()}
    per_token = {name: 1e6 * (value - least["plain"]) / options.tokens for name, value in least.items()}
    return {
        "layers": options.layers,
        "width": options.width,
        "batch": options.batch,
        "prompt": options.prompt,
        "tokens": options.tokens,
        "plain_ms_per_token": 1e3 * least["plain"] / options.tokens,
        "ratio_of_least": {name: value / least["plain"] for name, value in least.items()},
        "ratio_paired_median": paired,
        "added_microseconds_per_token": per_token,
        "limit_dynamic": LIMIT,
        "within_limit": least["dynamic"] / least["plain"] <= LIMIT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", help="write the result here as JSON")
    options = parser.parse_args()
    found = {
        "benchmark": "steering_overhead",
        "device": options.device,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **measure(options),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
