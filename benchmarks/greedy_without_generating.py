"""Which records does one greedy query recite? By one teacher-forced pass, against generating.

Both give a verdict for every record; they must be identical. Generation uses transformers' own `generate` with its KV
cache, in batches of equal prefix length (the fastest way to call it). Run: python
benchmarks/greedy_without_generating.py
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from rote.measures.extraction import greedy_extractable
from rote.models import CausalLM
from rote.records import RecordTable
from rote.scores.sequences import Split, prepare
from rote.scores.tokens import TokenScorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=100, help="half of them are the prefix")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out")
    options = parser.parse_args()
    from audit_pass import gpt2_small

    hf = gpt2_small(50_257, "cpu", torch.float32)
    model = CausalLM(hf, name="gpt2-small-shaped", fingerprint="benchmark")
    half = options.tokens // 2
    rng = np.random.default_rng(0)
    prefixes = torch.from_numpy(rng.integers(0, 50_257, (options.records, half)))

    def generate(inputs: torch.Tensor) -> torch.Tensor:
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
                    for part in inputs.split(options.batch)
                ]
            )

    begin = time.perf_counter()
    made = generate(prefixes)
    generating = time.perf_counter() - begin
    # Every other record is what the model itself says, so it is greedily extractable; the rest are one token off.
    truth = made.clone()
    truth[1::2, -1] = (truth[1::2, -1] + 1) % 50_257
    expected = (made == truth).all(1).numpy()
    records = RecordTable.from_rows({"token_ids": row, "prefix_tokens": half} for row in truth.tolist())
    prepared = prepare(model, records, Split())
    scorer = TokenScorer(model)
    begin = time.perf_counter()
    block = scorer(prepared, np.arange(len(records)))
    verdict = greedy_extractable(block.greedy, block.prefix, block.suffix)
    scoring = time.perf_counter() - begin
    found = {
        "records": options.records,
        "tokens": options.tokens,
        "generating_seconds": generating,
        "scoring_seconds": scoring,
        "ratio": generating / scoring,
        "identical": bool((verdict == expected).all()),
        "extractable": int(verdict.sum()),
        "threads": torch.get_num_threads(),
    }
    print(
        f"generating {generating:.2f} s, one pass {scoring:.2f} s: {found['ratio']:.1f} x faster;"
        f" verdicts identical: {found['identical']} ({found['extractable']} of {options.records} extractable)"
    )
    if options.out:
        with open(options.out, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
