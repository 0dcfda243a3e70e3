"""Which records does one greedy query recite? Without generating, against generating.

Four ways, identical verdicts: transformers' own `generate` with its KV cache (in batches of equal prefix length, the
fastest way to call it), the full pass (which gives every other score too), and the greedy screen (verdicts alone: a
record is dropped at its first wrong token) with and without a draft in bfloat16, whose making is timed too. A share
of the records (`--recited`, default a tenth) is what the model
itself says, as many are that but for the last token, and the others leave it at a place drawn as on ordinary text,
where a token is the model's first choice with probability 0.4. Reported shares of training text that models of this
size recite are far lower, near one in a hundred (Carlini et al. 2023, arXiv 2202.07646): `--recited 0.025`.
Run: python benchmarks/greedy_without_generating.py [--batch 1] [--recited 0.025]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from rote.measures.extraction import greedy_extractable
from rote.models import CausalLM
from rote.records import RecordTable
from rote.runtime import speedup_of
from rote.scores.greedy_screen import greedy_screen
from rote.scores.sequences import Split, prepare
from rote.scores.tokens import TokenScorer

RIGHT = 0.4  # share of a text's tokens that are a model's first choice


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=100, help="half of them are the prefix")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--recited", type=float, default=0.1)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--out")
    options = parser.parse_args()
    from audit_pass import gpt2_small

    hf: Any = gpt2_small(50_257, "cpu", torch.float32)
    model = CausalLM(hf, name="gpt2-small-shaped", fingerprint="benchmark")
    half = options.tokens // 2
    rng = np.random.default_rng(0)
    prefixes = torch.from_numpy(rng.integers(0, 50_257, (options.records, half)))

    def generate(given: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat(
                [
                    hf.generate(
                        part,
                        attention_mask=torch.ones_like(part),
                        max_new_tokens=half,
                        min_new_tokens=half,
                        do_sample=False,
                        pad_token_id=0,
                    )
                    for part in given.split(options.batch)
                ]
            )

    generate(prefixes[: options.batch])
    begin = time.perf_counter()
    generated = generate(prefixes)
    seconds_generating = time.perf_counter() - begin
    truth = generated.clone()
    recited = round(options.recited * options.records)
    for row in range(options.records):
        if row >= 2 * recited:
            place = half + min(half - 1, int(rng.geometric(1 - RIGHT)) - 1)
            truth[row, place:] = torch.from_numpy(rng.integers(0, 50_257, options.tokens - place))
        elif row >= recited:
            truth[row, -1] = (truth[row, -1] + 1) % 50_257
    records = RecordTable.from_rows({"token_ids": row, "prefix_tokens": half} for row in truth.tolist())
    prepared = prepare(model, records, Split())
    scorer = TokenScorer(model)
    rows = np.arange(len(records))

    def full_pass() -> np.ndarray:
        block = scorer(prepared, rows)
        return greedy_extractable(block.greedy, block.prefix, block.suffix)

    ways = {
        "full pass": full_pass,
        "screen without draft": lambda: greedy_screen(prepared, rows, draft=None),
        "screen": lambda: greedy_screen(prepared, rows),
    }
    seconds, verdicts = {"generating": [seconds_generating]} | {name: [] for name in ways}, {}
    verdicts["generating"] = (generated == truth).all(1).numpy()
    for _ in range(options.repeat):
        for name, way in ways.items():
            begin = time.perf_counter()
            verdicts[name] = way()
            seconds[name].append(time.perf_counter() - begin)
    best = {name: min(times) for name, times in seconds.items()}
    found = {
        "records": options.records,
        "tokens": options.tokens,
        "batch": options.batch,
        "recited": options.recited,
        "seconds": best,
        "ratio": {name: best["generating"] / best[name] for name in best if name != "generating"},
        "identical": all(bool((verdict == verdicts["generating"]).all()) for verdict in verdicts.values()),
        "extractable": int(verdicts["generating"].sum()),
        "bfloat16 over float32": speedup_of(torch.bfloat16, model.device),
        "threads": torch.get_num_threads(),
    }
    print(f"generating in batches of {options.batch}: {best['generating']:.2f} s")
    for name, ratio in found["ratio"].items():
        print(f"{name}: {best[name]:.2f} s, {ratio:.1f} times faster")
    print(f"verdicts identical: {found['identical']} ({found['extractable']} of {options.records} extractable)")
    if options.out:
        with open(options.out, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
