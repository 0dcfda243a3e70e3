"""How long does it take to build the robust memorizer of 4,096 points, and to certify 1,000 of its balls?

Both are done in exact arithmetic and checked: every point is interpolated, every ball is verified. Memory is measured
in a fresh process a case. Run: python benchmarks/theory_robust.py [--points 4096] [--balls 1000] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time

import numpy as np

from rote.runtime import peak_rss_mb
from rote.theory.certify import certify_balls
from rote.theory.robust import build_robust_memorizer

LIMITS = {"certify_seconds": 60.0}  # 1,000 balls in under a minute
CASES = {"plane, 3 classes": (2, 3), "64 dimensions, 2 classes": (64, 2)}


def points(n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((n, d)), rng.integers(0, classes, n)


def measure(name: str, n: int, balls: int, answer) -> None:
    X, y = points(n, *CASES[name])
    before = peak_rss_mb()
    begin = time.perf_counter()
    made = build_robust_memorizer(X, y)
    built = time.perf_counter()
    found = certify_balls(made, X[:balls], y[:balls], radius=made.radius)
    certified = time.perf_counter()
    right = int((made.predict(X) == y).sum())
    if right != n or not found.complete or found.to_dict()["methods"] != {"stable-affine (exact)": min(balls, n)}:
        raise SystemExit(f"{name}: {right} of {n} points interpolated, {found.verified} of {balls} balls verified")
    answer.put(
        {
            "case": name,
            "points": n,
            "balls": len(found),
            "verified": found.verified,
            "interpolated": right,
            "rho": float(made.rho),
            "parameters": made.parameters,
            "depth": made.depth,
            "width": made.width,
            "bits": made.bits,
            "dimensions": made.details["dimensions"],
            "build_seconds": built - begin,
            "certify_seconds": certified - built,
            "rss_before_mb": round(before),
            "peak_rss_mb": round(peak_rss_mb()),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=4096)
    parser.add_argument("--balls", type=int, default=1000)
    parser.add_argument("--out")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = []
    for name in CASES:
        answer = context.Queue()
        worker = context.Process(target=measure, args=(name, options.points, options.balls, answer))
        worker.start()
        worker.join()
        if worker.exitcode:
            raise SystemExit(worker.exitcode)
        found = answer.get()
        results.append(found)
        verdict = "within" if found["certify_seconds"] <= LIMITS["certify_seconds"] else "OVER"
        print(
            f"{name}: built in {found['build_seconds']:.2f} s; {found['parameters']:,} parameters, {found['bits']} bits"
        )
        print(
            f"  {found['verified']} of {found['balls']} balls certified in {found['certify_seconds']:.2f} s "
            f"({verdict} {LIMITS['certify_seconds']:.0f} s); peak memory {found['peak_rss_mb']} MiB"
        )
    report = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "limits": LIMITS,
        "results": results,
    }
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
