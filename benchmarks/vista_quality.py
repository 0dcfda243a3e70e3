"""How much of full target attention's ranking does VISTA keep, and SASRec and HSTU beside it?

Simulated shoppers: 24 departments, three of which a user likes; the first only in the early half of the history, the
third only in the late half. 35 % of the events are the successor of the event before, 57 % come from a liked
department by popularity, the rest is noise. The last event of every user is ranked among all items
(leave-one-out, no sampled negatives). Every model has the same width, depth, loss, negatives, schedule and stopping
rule (`train_recommender`): training ends after `patience` validations without a better NDCG@10 or at `steps`, and the
best weights are judged once on the test events. Intervals resample users, both models' ranks together.
Run: python benchmarks/vista_quality.py [--logs 6,7] [--out benchmarks/results/vista_quality.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys

import numpy as np
import torch

from rote.memory.vista import InteractionLog, TrainingSettings, VistaConfig, Vocabulary, train_recommender
from rote.memory.vista.evaluation import ranking_figures, relative_quality

NAMES = ("vista", "sasrec", "hstu", "target")
LIMIT = 0.98  # of the NDCG@10 of full target attention
DEPARTMENTS, SUCCESSOR, LIKED, PERIOD = 24, 0.35, 0.9, 0.8


def shoppers(seed: int, *, users: int, items: int) -> InteractionLog:
    """Histories of 5 to 150 events (log-normal, median 37); popularity falls as rank^-0.8."""
    rng = np.random.default_rng(seed)
    department = rng.integers(0, DEPARTMENTS, items)
    members = [np.flatnonzero(department == d) for d in range(DEPARTMENTS)]
    popularity = rng.permutation(1 / np.arange(1, items + 1) ** 0.8)
    share = [popularity[m] / popularity[m].sum() for m in members]
    successor = np.empty(items, np.int64)
    for m in members:
        successor[m] = np.roll(m, -1)
    offsets, item, action, when = [0], [], [], []
    for _ in range(users):
        length = int(np.clip(rng.lognormal(3.6, 0.6), 5, 150))
        liked = rng.choice(DEPARTMENTS, 3, replace=False)
        draw, moment = rng.random(length), 1.6e9 + rng.uniform(0, 3e7)
        for place in range(length):
            if place and draw[place] < SUCCESSOR:
                item.append(successor[item[-1]])
            elif draw[place] < LIKED:
                period = liked[:2] if place < length / 2 or rng.random() >= PERIOD else liked[1:]
                chosen = int(rng.choice(period))
                item.append(rng.choice(members[chosen], p=share[chosen]))
            else:
                item.append(rng.choice(items, p=popularity / popularity.sum()))
            moment += rng.exponential(20_000)
            when.append(moment)
            action.append(int(rng.random() < 0.2))
        offsets.append(len(item))
    names = Vocabulary(
        tuple(f"item-{n}" for n in range(items)), ("view", "buy"), tuple(f"department-{n}" for n in range(DEPARTMENTS)),
        tuple(department.tolist()),
    )  # fmt: skip
    people = tuple(f"user-{n}" for n in range(users))
    return InteractionLog(people, np.array(offsets), np.array(item), np.array(action), np.array(when), names)


def area(rank: np.ndarray, others: np.ndarray) -> float:
    """AUC: the mean share of the items ranked beside the target (those the user has not had) that it is above."""
    return float(np.mean(1 - (rank - 1) / others))


def judge(seed: int, options) -> tuple[list[dict], dict[str, np.ndarray]]:
    """(one row a model, every user's test rank by model) for one log."""
    log = shoppers(seed, users=options.users, items=options.items)
    config = VistaConfig(
        items=options.items, actions=2, categories=DEPARTMENTS, dim=options.dim, heads=options.heads,
        seeds=options.seeds, stage1_layers=1, stage2_layers=1, raw_events=options.raw_events,
    )  # fmt: skip
    settings = TrainingSettings(
        steps=options.steps, batch_users=64, learning_rate=options.learning_rate, warmup=100, negatives=128, seed=seed
    )
    last = [""]

    def tell(what: str, done: int, total: int) -> None:
        if what != last[0] or done % 100 == 0:
            last[0] = what
            print(f"log {seed}: {what}, {done:,} of {total:,}", file=sys.stderr)

    split, found = train_recommender(
        log, config, settings, baselines=NAMES[1:], longest=options.longest, check_every=options.check_every,
        patience=options.patience, progress=tell,
    )  # fmt: skip
    histories, _ = split.request("test")
    had = [len(set(i[m].tolist())) for i, m in zip(histories.item, histories.mask, strict=True)]
    others = options.items - np.array(had)
    rows = []
    for one in found:
        best = max(one.checks, key=lambda check: check["NDCG@10"])
        rows.append({
            "log": seed, "model": one.name, "parameters": one.to_dict()["parameters"], "steps": len(one.losses),
            "best step": best["step"], "seconds": round(one.seconds, 1), "NDCG@10": one.test["NDCG@10"],
            "HR@10": one.test["HR@10"], "AUC": area(one.ranks, others), "validation": one.checks,
        })  # fmt: skip
    return rows, {one.name: one.ranks for one in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--logs", default="6", help="seeds of the logs (and of the trainings on them)")
    parser.add_argument("--users", type=int, default=1200)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--longest", type=int, default=64)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=16, help="vectors in a summary")
    parser.add_argument("--raw-events", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1200, help="at most")
    parser.add_argument("--check-every", type=int, default=150)
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, ranks = [], {name: [] for name in NAMES}
    for seed in map(int, options.logs.split(",")):
        some, found = judge(seed, options)
        rows += some
        for name in NAMES:
            ranks[name].append(found[name])
        for row in some:
            print(
                f"log {seed} {row['model']:>7}: NDCG@10 {row['NDCG@10']:.4f}, HR@10 {row['HR@10']:.4f}, AUC"
                f" {row['AUC']:.4f} (best of {row['steps']:,} steps: {row['best step']:,})"
            )
    together = {name: np.concatenate(parts) for name, parts in ranks.items()}
    over = {name: relative_quality(together["vista"], together[name]) for name in NAMES[1:]}
    by_log = [relative_quality(ours, theirs) for ours, theirs in zip(ranks["vista"], ranks["target"], strict=True)]
    for name, one in over.items():
        print(f"VISTA has {one['ratio']:.3f} of the NDCG@10 of {name} (95 % {one['low']:.3f} to {one['high']:.3f})")
    print(f"within 2 % of full target attention: {'yes' if over['target']['ratio'] >= LIMIT else 'NO'}")
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "rows": rows, "together": {name: ranking_figures(part) for name, part in together.items()},
        "vista NDCG@10 over": over, "over target by log": by_log, "limit": LIMIT,
        "CPU seconds": round(used.ru_utime + used.ru_stime), "peak MiB": round(used.ru_maxrss / 1024),
    }  # fmt: skip
    if options.out:
        with open(options.out, "w") as file:
            json.dump(found, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
