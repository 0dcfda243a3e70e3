"""Exact search in blocks against a faiss shortlist that is ranked again: seconds a query, share of exact results.

Codes are random with the structure that matters (unit latents near a few centres, skewed statistics), at the paper's
width: 37 channels, 128 latent dimensions, 65 folded bins. Run: python benchmarks/cases_search.py [--cases 2000 10000]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from rote.memory.cases.search import Shortlist, search_exact
from rote.memory.cases.similarity import IMPORTANCE, Codes, make_codes
from rote.memory.cases.statistics import Scaling
from rote.runtime import peak_rss_mb, versions

CHANNELS, DIM, BINS, K, CANDIDATES = 37, 128, 65, 10, 200


def codes(n: int, seed: int) -> tuple[Codes, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, 1, DIM, generator=torch.Generator().manual_seed(0))
    latent = centres[torch.randint(20, (n,), generator=g)] + torch.randn(n, CHANNELS, DIM, generator=g)
    size = torch.exp(0.5 * torch.randn(n, CHANNELS, generator=g))
    fft = 200 * size[..., None] * torch.rand(n, CHANNELS, BINS, generator=g)
    weights = torch.softmax(2 * torch.randn(n, CHANNELS, generator=g), 1)
    return make_codes(latent, 60 * size, 400 * size**2, fft, Scaling(30, 140, 40, 800)), weights


def measure(n: int, queries: int) -> dict:
    cases, _ = codes(n, 1)
    query, weights = codes(queries, 2)
    begin = time.perf_counter()
    exact = search_exact(query, weights, cases, IMPORTANCE, K)
    blocks = time.perf_counter() - begin
    begin = time.perf_counter()
    index = Shortlist(cases)
    build = time.perf_counter() - begin
    begin = time.perf_counter()
    listed = index.search(query, weights, IMPORTANCE, K, candidates=CANDIDATES)
    shortlist = time.perf_counter() - begin
    kept = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(exact.index, listed.index, strict=True)])
    return {
        "cases": n, "queries": queries, "exact_ms_a_query": 1000 * blocks / queries,
        "shortlist_ms_a_query": 1000 * shortlist / queries, "shortlist_build_s": build,
        "neighbours_kept": float(kept), "certified": float(listed.certified.mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for n in options.cases:
        rows.append(measure(n, options.queries))
        print(", ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()))
    result = {"machine": platform.machine(), "threads": torch.get_num_threads(), "versions": versions(),
              "peak_rss_mb": round(peak_rss_mb()), "rows": rows}  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
