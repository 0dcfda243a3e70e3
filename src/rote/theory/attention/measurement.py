"""What training finds, beside what Corollary 2 says exists: accuracy of trained models against heads, slope and fit.

Knows look-up tasks (every context, one random next token), the line through associations against heads, and the
comparison with a one-head GELU MLP of exactly the same number of parameters. Deliberately knows no verdict: Corollary 2
says that a good model exists, so a trained one below it would break no theorem.

Source: Dana, Pydi & Chevaleyre 2024 (arXiv 2411.10115, section 4.2, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int

from rote.errors import InputError
from rote.runtime import derive_seed
from rote.theory.attention import bounds

SATURATED = 0.95  # mean accuracy from which a point leaves the linear fit (card 5)


@dataclass(frozen=True)
class AttentionCurve:
    """Trained accuracy per head count; every array has one entry a head count, `accuracy` one row a seed.

    `bound`: Corollary 2's accuracy. `slope`: associations per head of the least-squares line through
    T_0 (acc - 1/N)/(1 - 1/N) below 0.95 mean accuracy, None with fewer than two such points; Corollary 1 promises d_h.
    `r2`: its coefficient of determination. `kind` is "attention" or "mlp" (one head, GELU MLP of width 2 d_h (H - 1)).
    """

    kind: str
    vocab: int
    context: int
    d: int
    d_head: int
    steps: int
    heads: tuple[int, ...]
    accuracy: Float[np.ndarray, "seeds heads"]
    kl: Float[np.ndarray, "seeds heads"]
    parameters: Int[np.ndarray, " heads"]
    bound: Float[np.ndarray, " heads"]
    slope: float | None
    r2: float | None

    @property
    def mean_accuracy(self) -> Float[np.ndarray, " heads"]:
        return self.accuracy.mean(axis=0)

    @property
    def slope_ratio(self) -> float | None:
        """Trained associations per head over the d_h that Corollary 1 guarantees."""
        return None if self.slope is None else self.slope / self.d_head

    def rows(self) -> list[dict]:
        """One plain row a head count."""
        return [
            {
                "kind": self.kind,
                "vocab": self.vocab,
                "d": self.d,
                "d_head": self.d_head,
                "heads": heads,
                "parameters": int(self.parameters[i]),
                "accuracy": float(self.mean_accuracy[i]),
                "lowest": float(self.accuracy[:, i].min()),
                "highest": float(self.accuracy[:, i].max()),
                "seeds": len(self.accuracy),
                "bound": float(self.bound[i]),
                "kl": float(self.kl[:, i].mean()),
            }
            for i, heads in enumerate(self.heads)
        ]


def lookup_task(
    vocab: int, context: int, *, seed: int
) -> tuple[Int[np.ndarray, "contexts context"], Int[np.ndarray, " contexts"]]:
    """All N^S contexts, each with one next token drawn uniformly (appendix B). Errors: `InputError` above 100,000."""
    if vocab**context > 100_000:
        raise InputError(f"{vocab}^{context} contexts are too many to train on in full; use a smaller vocabulary")
    contexts = np.array(list(product(range(vocab), repeat=context)), dtype=np.int64)
    labels = np.random.default_rng(derive_seed(seed, "lookup", vocab, context)).integers(0, vocab, len(contexts))
    return contexts, labels


def measure_attention(
    *,
    N: int,
    d: int,
    d_head: int,
    heads: Sequence[int],
    seeds: int | Sequence[int],
    S: int = 2,
    steps: int = 1500,
    mlp: bool = False,
) -> AttentionCurve:
    """Train on every context of a look-up task, for every head count and seed at once, and set it beside Corollary 2.

    `seeds`: how many, or the seeds themselves; a seed draws the task and the first weights. `mlp`: instead of H heads,
    one head and a GELU MLP of width 2 d_h (H - 1), which has exactly as many parameters.
    Minutes grow with seeds * max(heads) * N^S * steps; 5 x 17 heads, N = 10, 1,500 steps take about ten seconds.
    """
    from rote.theory.attention.training import Run, train_runs

    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    counts = list(heads)
    if not chosen or not counts or min(counts) < 1:
        raise InputError("measure_attention needs at least one seed and head counts of at least 1")
    tasks = {seed: lookup_task(N, S, seed=seed) for seed in chosen}
    contexts = tasks[chosen[0]][0]
    pairs = [(seed, count) for seed in chosen for count in counts]
    runs = [Run(1, 2 * d_head * (count - 1), seed) if mlp else Run(count, 0, seed) for seed, count in pairs]
    targets = np.eye(N)[np.stack([tasks[seed][1] for seed, _ in pairs])]
    trained = train_runs(contexts, targets, runs, d=d, d_head=d_head, steps=steps)
    accuracy = trained.accuracy.reshape(len(chosen), len(counts))
    slope, r2 = line_before_saturation(counts, accuracy.mean(axis=0), vocab=N, contexts=len(contexts))
    return AttentionCurve(
        kind="mlp" if mlp else "attention",
        vocab=N,
        context=S,
        d=d,
        d_head=d_head,
        steps=steps,
        heads=tuple(counts),
        accuracy=accuracy,
        kl=trained.kl.reshape(accuracy.shape),
        parameters=trained.parameters[: len(counts)],
        bound=np.array(
            [
                bounds.corollary2_accuracy(vocab=N, contexts=len(contexts), d=d, d_head=d_head, heads=count, context=S)
                for count in counts
            ]
        ),
        slope=slope,
        r2=r2,
    )


def line_before_saturation(
    heads: Sequence[int], accuracy: Sequence[float] | Float[np.ndarray, " heads"], *, vocab: int, contexts: int
) -> tuple[float | None, float | None]:
    """Slope (associations per head) and R^2 of the least-squares line below 0.95 accuracy; None with too few points."""
    kept = [(count, value) for count, value in zip(heads, accuracy, strict=True) if value < SATURATED]
    if len({count for count, _ in kept}) < 2:
        return None, None
    x = np.array([count for count, _ in kept], dtype=float)
    y = np.array([bounds.associations_from_accuracy(value, vocab=vocab, contexts=contexts) for _, value in kept])
    slope, intercept = np.polyfit(x, y, 1)
    total = ((y - y.mean()) ** 2).sum()
    r2 = float(1 - ((y - slope * x - intercept) ** 2).sum() / total) if total > 0 and len(x) > 2 else None
    return float(slope), r2


def log_log_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares b of log y = a + b log x; all values must be positive. Errors: `InputError` otherwise."""
    if len(x) < 2 or min(*x, *y) <= 0:
        raise InputError("a log-log exponent needs at least two points, all of them above 0")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
