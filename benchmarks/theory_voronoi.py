"""10,000 predictions of a Voronoi memorizer of 10,000 records, against the matrix product nobody can avoid.

Lower bound. Theorem 7.3's first layer holds S_ij(x) = M_i(x) - M_j(x) - m |x_i - x_j|^2 for every opposite pair, with
M_i(x) = <x, x_i> - |x_i|^2 / 2. Whoever knows all S_ij(x) knows every difference <x, x_i - x_j>, which takes the
product X_test X_train^T (queries x n times n x N). The |x_i - x_j|^2 take the second product, X_+ X_-^T, once, at fit.
The bound is the first product alone, by the same BLAS, in the same blocks, into memory that is there already: no unit
is evaluated, nothing is stored. The fit is held against the second product in the same way.

What predict does. The same product with one more column, which subtracts |x_i|^2 / 2; per query the largest M of each
class; and where these two are too close to decide, the exact sums over the few records and rivals that can still matter
(the proof is in rote.theory.generalize.voronoi_forward). The 2 N+ N- = 50,000,000 units of a query never exist; they
would take 400 MB. `decision_function` must also count the polytopes a query lies in, so it looks at every record nearer
than the other class; its ratio is reported beside.

Two kinds of data: `clusters` (20 groups, one label each, as classes usually are) and `noise` (uniform points, labels
tossed: hard, as most queries lie between labels). One thread, since only the product would use more. Ratios are taken
interleaved in one process, the least CPU time of several repetitions on either side; memory is what numpy allocated at
most (tracemalloc) during fit and predict, in a run that is not timed.

Run: python benchmarks/theory_voronoi.py [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from rote.theory.generalize import VoronoiMemorizer
from rote.theory.generalize.labelled import BLOCK_NUMBERS


def data(kind: str, count: int, features: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of [0,1]^n and labels 0, 1, as many of either."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    if kind == "noise":
        return rng.random((count, features)), labels
    centres = np.random.default_rng(0).uniform(0.25, 0.75, (20, features))
    group = 2 * rng.integers(0, 10, count) + labels
    return np.clip(centres[group] + 0.15 * rng.standard_normal((count, features)), 0, 1), labels


def products(left: np.ndarray, right: np.ndarray, rows: int) -> Callable[[], None]:
    """left right^T in blocks of `rows` rows, into one block of memory."""
    room = np.empty((rows, len(right)))
    columns = np.ascontiguousarray(right.T)

    def run() -> None:
        for start in range(0, len(left), rows):
            part = left[start : start + rows]
            np.matmul(part, columns, out=room[: len(part)])

    return run


def least(tasks: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Least CPU seconds of each, taken in turns."""
    best = dict.fromkeys(tasks, float("inf"))
    for task in tasks.values():
        task()
    for _ in range(repetitions):
        for name, task in tasks.items():
            begin = time.process_time()
            task()
            best[name] = min(best[name], time.process_time() - begin)
    return best


def measure(kind: str, records: int, queries: int, features: int, repetitions: int) -> dict:
    X, y = data(kind, records, features, 1)
    Q, truth = data(kind, queries, features, 2)
    tracemalloc.start()
    memorizer = VoronoiMemorizer(abstain_label=-1).fit(X, y)
    predicted = memorizer.predict(Q)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = max(1, BLOCK_NUMBERS // records)
    timed = least(
        {
            "product": products(Q, X, rows),
            "predict": lambda: memorizer.predict(Q),
            "product, large blocks": products(Q, X, 4 * rows),
            "decision_function": lambda: memorizer.decision_function(Q),
            "product of the classes": products(X[y == 1], X[y == 0], max(1, BLOCK_NUMBERS // (records // 2))),
            "fit": lambda: memorizer.fit(X, y),
        },
        repetitions,
    )
    bound = min(timed["product"], timed["product, large blocks"])
    return {
        "data": kind,
        "features": features,
        "records": records,
        "queries": queries,
        "seconds": timed,
        "ratios": {
            "predict": timed["predict"] / bound,
            "decision_function": timed["decision_function"] / bound,
            "fit": timed["fit"] / timed["product of the classes"],
        },
        "peak_mb_allocated": peak / 1e6,
        "units_of_one_query_mb": 2 * (records // 2) ** 2 * 8 / 1e6,
        "train_accuracy": memorizer.score(X, y),
        "test_accuracy": float((predicted == truth).mean()),
        "abstained": float((predicted == -1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--features", type=int, nargs="+", default=[64, 784])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    results = []
    for features in options.features:
        for kind in ("clusters", "noise"):
            with threadpool_limits(1):
                found = measure(kind, options.records, options.queries, features, options.repetitions)
            results.append(found)
            seconds, ratios = found["seconds"], found["ratios"]
            print(
                f"n = {features:4}, {kind:8}: predict {seconds['predict']:.2f} s, product alone"
                f" {seconds['product']:.2f} s: {ratios['predict']:.2f} x; decision_function"
                f" {ratios['decision_function']:.2f} x; fit {ratios['fit']:.2f} x its own product;"
                f" {found['peak_mb_allocated']:.0f} MB at most (one query's units:"
                f" {found['units_of_one_query_mb']:.0f} MB); {found['abstained']:.1%} abstained"
            )
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"results": results}, file, indent=1)


if __name__ == "__main__":
    main()
