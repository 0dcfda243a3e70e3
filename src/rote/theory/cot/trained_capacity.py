"""Capacity side by side: the smallest transformer that trains to 100% on N random records, beside the counting floor.

Knows a ladder of shapes and how to search it. The smallest size that TRAINS is an upper bound on the size needed; the
floor of `size_floor` is a lower one. Deliberately claims nothing between them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from rote.errors import InputError, RoteError
from rote.runtime import derive_seed
from rote.theory.cot.fixed_precision import Shape
from rote.theory.cot.size_floor import bits_per_weight, fixed_precision_floor, label_bits
from rote.theory.cot.trained import TrainedRuns, train_table
from rote.theory.cot.words import Word, single_symbol


@dataclass(frozen=True)
class MeasuredCapacity:
    """records N; parameters P of the smallest shape that trained; digits: q its weights can be rounded to.

    bits_per_parameter: N log2 T / P; bits_per_weight: B(q) of those digits, the most a parameter could hold;
    floor_parameters: the counting floor at q; failed_parameters: the largest tried shape below P that did not train.
    """

    records: int
    parameters: int
    digits: int | None
    width: int
    mlp: int
    bits_per_parameter: float
    bits_per_weight: float | None
    floor_parameters: int | None
    failed_parameters: int | None


def random_table(*, records: int, symbols: int = 4, length: int = 5, seed: int = 0) -> dict[Word, int]:
    """N distinct random words of one length with two types or more, each with a random answer: every labeling of them
    satisfies Theorem 4.1. InputError when there are not so many words."""
    if records < 1 or records > symbols**length - symbols:
        raise InputError(f"{records} records: there are {symbols**length - symbols} words of two types of that length")
    rng = np.random.default_rng(seed)
    found: dict[Word, int] = {}
    while len(found) < records:
        word = tuple(int(symbol) for symbol in rng.integers(symbols, size=length))
        if single_symbol(word) is None and word not in found:
            found[word] = int(rng.integers(symbols))
    return found


def shape_ladder(*, symbols: int = 4, layers: int = 2, widest: int = 32) -> list[Shape]:
    """Shapes of one head and m = 4 d (the proportions of the witnesses) for d = 1, 2, .., by size."""
    return [Shape(symbols, d, layers, 1, 4 * d) for d in range(1, widest + 1)]


def smallest_trained(
    *,
    records: int,
    symbols: int = 4,
    runs: int | None = None,
    steps: int | None = None,
    learning_rate: float = 1e-2,
    begin: int | None = None,
    seed: int = 0,
) -> MeasuredCapacity:
    """The smallest rung of the ladder on which at least half of the starts get all N records right in `steps` steps.

    Half, not one: that one start of many is lucky says more about how many there were. runs: default 4, and up to 16
    where they are cheap (512 / N). steps: default max(1000, 8 N), in proportion to N, because the last few words take
    the longer the more there are: with one number for all, the steps and not the size would hold back the largest N.
    begin: parameters at which to begin (default 2 N log2 T). From there the search strides up or down, doubling its
    stride, until it has a shape that trains above one that does not, and halves the gap between them: the answer is a
    shape that trains, and the next smaller one was tried and does not.
    Errors: InputError when no shape of the ladder trains.
    """
    table = random_table(records=records, symbols=symbols, seed=derive_seed(seed, "records", records))
    ladder = shape_ladder(symbols=symbols)
    starts = max(4, min(16, 512 // records)) if runs is None else runs
    needed = -(-starts // 2)
    most_steps = max(1000, 8 * records) if steps is None else steps
    tried: dict[int, TrainedRuns] = {}

    def trains(rung: int) -> bool:
        tried[rung] = train_table(
            table,
            shape=ladder[rung],
            runs=starts,
            steps=most_steps,
            learning_rate=learning_rate,
            enough=needed,
            seed=derive_seed(seed, "shape", records, rung),
        )
        return tried[rung].solved >= needed

    bits = label_bits(n=records, labels=symbols)
    target = 2 * bits if begin is None else begin
    rung = next((i for i, shape in enumerate(ladder) if shape.parameters >= target), len(ladder) - 1)
    low, high, stride = -1, len(ladder), 1  # rungs up to `low` do not train (or are none), `high` does (or is none)
    while high - low > 1:
        if trains(rung):
            high = rung
        else:
            low = rung
        if high == len(ladder):
            rung, stride = min(low + stride, len(ladder) - 1), 2 * stride
        elif low < 0:
            rung, stride = max(high - stride, 0), 2 * stride
        else:
            rung = (low + high) // 2
    if high == len(ladder):
        raise InputError(f"{records} records: no shape up to {ladder[-1].parameters} parameters trained")
    rung = high
    shape, digits = ladder[rung], tried[rung].digits
    failed = [ladder[i].parameters for i in tried if i < rung]
    return MeasuredCapacity(
        records,
        shape.parameters,
        digits,
        shape.width,
        shape.mlp,
        bits / shape.parameters,
        None if digits is None else bits_per_weight(digits),
        None if digits is None else fixed_precision_floor(n=records, labels=symbols, digits=digits),
        max(failed, default=None),
    )


def side_by_side(
    counts: Sequence[int] = (32, 64, 128, 256, 512),
    *,
    seed: int = 0,
    runs: int | None = None,
    steps: int | None = None,
    workers: int = 1,
) -> list[MeasuredCapacity]:
    """`smallest_trained` for each N, in the order of `counts`.

    workers: searches at a time; above 1 each runs in a process of its own, the largest N first. The result does not
    depend on it. Errors: InputError as `smallest_trained`; RoteError when a process fails.
    """
    if workers <= 1:
        return [smallest_trained(records=records, runs=runs, steps=steps, seed=seed) for records in counts]
    jobs = sorted(range(len(counts)), key=lambda i: -counts[i])
    with ThreadPoolExecutor(workers) as pool:
        waiting = {
            i: pool.submit(_in_own_process, {"records": counts[i], "runs": runs, "steps": steps, "seed": seed})
            for i in jobs
        }
        return [waiting[i].result() for i in range(len(counts))]


def _in_own_process(options: dict[str, int | None]) -> MeasuredCapacity:
    """This module run as a program: no shared state, and the caller's main module is not imported."""
    done = subprocess.run(
        [sys.executable, "-m", "rote.theory.cot.trained_capacity"],
        input=json.dumps(options),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RoteError(f"{options['records']} records: the process that trains them failed: {last}")
    return MeasuredCapacity(**json.loads(done.stdout))


def log_log_slope(rows: list[MeasuredCapacity]) -> float:
    """Least-squares slope of log P against log N: 1 when P is proportional to N. InputError for fewer than two N."""
    if len({row.records for row in rows}) < 2:
        raise InputError("a slope needs at least two numbers of records")
    x, y = np.log([row.records for row in rows]), np.log([row.parameters for row in rows])
    return float(np.polyfit(x, y, 1)[0])


if __name__ == "__main__":
    json.dump(asdict(smallest_trained(**json.load(sys.stdin))), sys.stdout)
