"""Study: what robust memorization costs in ReLU networks (Kim, Moon, Yun 2025, arXiv 2510.24643).

The paper is theory without experiments, so its theorems are run: networks of all three regimes are built in exact
arithmetic and certified ball by ball, their sizes are measured as N grows, and trained networks are held against the
lower bound on the first layer's width.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np

from rote.runtime import derive_seed, threads
from rote.studies.protocol import Claim, Study, StudyContext
from rote.theory.certify import certify_balls, collision_bound
from rote.theory.robust import (
    build_robust_memorizer,
    collision_figure,
    growth_figure,
    min_first_layer_width,
    sampled_error,
    width_dataset,
)
from rote.theory.robust.plots import bounds_figure
from rote.theory.robust.projection import theorem_dimensions

SIZES = (16, 64, 256, 1024)
XOR = np.array([[0, 0], [1, 1], [1, 0], [0, 1.0]])
XOR_LABELS = np.array([1, 1, 2, 2])
WIDTHS, D = (4, 8, 16), 16
ETA = Fraction(1, 20)
STEPS = 400  # of adversarial training
STARTS = 4  # trainings a width; the one with the least loss is judged
NODES = 300  # of a search tree, so that verdicts do not depend on the machine

CLAIMS = (
    Claim(
        "width_bound",
        "the least first-layer width for N = 60,000, d = 784 at rho = 0.1, 0.5, 0.9",
        "Prop. 3.2: ceil(rho^2 min{N-1, d})",
        "exactly 8, 196, 636",
    ),
    Claim(
        "xor",
        "the XOR points with the paper's scale: every ball proved at rho = 1/(20 sqrt 2), and at three times that",
        "Thm B.3 (guaranteed up to 1/(5 N sqrt d) = 0.035)",
        "4 of 4 balls, both times, by exact analysis",
    ),
    Claim(
        "all_certified",
        "square grids with random labels: every ball of every built network is proved, at the theorem's rho and at the "
        "largest rho the points' own gaps allow",
        "Thm B.3: exact on the whole ball",
        "100% of the balls, exact arithmetic",
    ),
    Claim(
        "parameters",
        "parameters of these networks grow like sqrt N up to logarithms",
        "Thm 4.2: ~O(sqrt N)",
        "slope of log2 P in log2 N between 0.5 and 0.7, N = 16..1024",
    ),
    Claim(
        "bits",
        "the longest weight grows like sqrt N up to logarithms",
        "Thm 4.2: ~O(sqrt N) bits",
        "slope of log2 bits in log2 N between 0.4 and 0.7, N = 64..1024",
    ),
    Claim(
        "projection",
        "100 Gaussian points of R^256 are projected to few dimensions with the proof's inequality intact, and proved",
        "exists at m = max(864 ln N, 10 ln d), here all 256",
        "m <= 32, every ball by exact analysis",
    ),
    Claim(
        "moderate",
        "above the small range, groups of points with their own shifts are wrong on less than a share eta of each ball",
        "Thm B.5: error below eta",
        "proved error bound and sampled share both below eta = 0.05, on every ball",
    ),
    Claim(
        "large",
        "at rho = 0.9 a comparison of distances per point is right on every ball",
        "Thm B.14: any rho < 1",
        "every ball by the construction's exact inequalities; no sampled point wrong",
    ),
    Claim(
        "cost_rises",
        "on the same points the small, moderate and large networks cost more and more",
        "Thm 4.2: sqrt N, then N d^(1/4) rho^(1/2), then N d^2 rho^4",
        "parameters strictly rising",
    ),
    Claim(
        "collision",
        "no first layer of m units allows more than rho = sqrt(m/d) on {e_j} and 0; Hadamard rows reach it",
        "Prop. 3.2",
        "300 random matrices at most sqrt(m/d); 4 rows of the 16 x 16 Hadamard matrix: 1/2 within 1e-12",
    ),
    Claim(
        "trained",
        "adversarially trained networks stay under their collision bound, in what is certified and in what survives "
        "attacks; width 4 cannot exceed 0.5",
        "Prop. 3.2 applied to any network",
        "certified <= attacked <= collision bound <= sqrt(m/d) for widths 4, 8, 16; some rho certified for each",
    ),
)


def run(context: StudyContext) -> None:
    with threads(1):
        _formulas(context)
        context.progress("building and certifying small-radius networks")
        rows = _small(context)
        context.progress("projecting from 256 dimensions")
        _projected(context)
        context.progress("moderate and large radius")
        _regimes(context)
        context.progress("training networks under the width bound")
        _trained(context)
    context.table("growth", rows)
    context.figure("growth", growth_figure([row for row in rows if row["rho_choice"] == "largest"]))
    built = [{"rho": row["rho"], "parameters": row["parameters"], "regime": "small"} for row in rows[-1:]]
    context.figure("bounds", bounds_figure(1000, 1000, built=[]))
    context.figure("bounds-plane", bounds_figure(SIZES[-1], 2, built=built))


def _formulas(context: StudyContext) -> None:
    widths = [min_first_layer_width(60_000, 784, rho) for rho in (0.1, 0.5, 0.9)]
    context.claim("width_bound", observed=widths, holds=widths == [8, 196, 636])
    rho = 1 / (20 * math.sqrt(2))
    made = build_robust_memorizer(XOR, XOR_LABELS, rho=rho, scale="paper")
    proved = [certify_balls(made, XOR, XOR_LABELS, radius=made.mu * times).verified for times in (1, 3)]
    context.claim(
        "xor", observed={"verified at rho, 3 rho": proved, "parameters": made.parameters}, holds=proved == [4, 4]
    )

    data = width_dataset(D + 1, D)
    rng = np.random.default_rng(derive_seed(context.seed, "matrices"))
    above = 0
    for _ in range(300):
        m = int(rng.integers(1, D))
        found = collision_bound(rng.standard_normal((m, D)), data.X, data.y)
        above += found.rho_upper > math.sqrt(m / D) + 1e-12
    from scipy.linalg import hadamard

    half = collision_bound(hadamard(D)[:4].astype(float), data.X, data.y).rho_upper
    context.claim(
        "collision", observed={"above": above, "Hadamard": half}, holds=not above and abs(half - 0.5) <= 1e-12
    )


def _small(context: StudyContext) -> list[dict]:
    rows, complete = [], True
    for n in SIZES:
        side = math.isqrt(n)
        X = np.array(list(product(range(side), repeat=2)), dtype=float)
        y = np.random.default_rng(derive_seed(context.seed, "labels", n)).integers(0, 2, n)
        y[:2] = 0, 1
        for choice, rho in (("theorem", 1 / (5 * n * math.sqrt(2))), ("largest", "auto")):
            made = build_robust_memorizer(X, y, rho=rho, seed=context.seed)
            found = certify_balls(made, X, y, radius=made.radius)
            complete &= found.complete and set(Counter(r.method for r in found.records)) == {"stable-affine (exact)"}
            rows.append({"n": n, "rho_choice": choice, "verified": found.verified, **made.to_dict()})
    largest = [row for row in rows if row["rho_choice"] == "largest"]
    context.claim(
        "all_certified",
        observed={f"N = {row['n']}, rho = {row['rho']:.4g}": row["verified"] for row in rows},
        holds=complete,
    )
    slope = _slope(largest, "parameters")
    context.claim("parameters", observed=slope, holds=0.5 <= slope <= 0.7)
    slope = _slope(largest[1:], "bits")
    context.claim("bits", observed=slope, holds=0.4 <= slope <= 0.7)
    return rows


def _slope(rows: list[dict], key: str) -> float:
    return float(np.polyfit(np.log2([row["n"] for row in rows]), np.log2([row[key] for row in rows]), 1)[0])


def _projected(context: StudyContext) -> None:
    rng = np.random.default_rng(derive_seed(context.seed, "gaussian"))
    X, y = rng.standard_normal((100, 256)), rng.integers(0, 2, 100)
    made = build_robust_memorizer(X, y, seed=context.seed)
    found = certify_balls(made, X, y, radius=made.radius)
    exact = sum(record.method == "stable-affine (exact)" for record in found.records)
    context.claim(
        "projection",
        observed={"m": made.details["dimensions"], "theorem": theorem_dimensions(100, 256), "verified": exact},
        holds=made.details["dimensions"] <= 32 and exact == found.verified == 100,
    )


def _regimes(context: StudyContext) -> None:
    rng = np.random.default_rng(derive_seed(context.seed, "regimes"))
    n = 64
    X, y = rng.random((n, 2)), rng.integers(0, 2, n)
    small = build_robust_memorizer(X, y, rho=1 / (5 * n * math.sqrt(2)), seed=context.seed)
    moderate = build_robust_memorizer(X, y, rho="0.02", regime="moderate", error=ETA, seed=context.seed)
    wrong = sampled_error(
        moderate.network,
        X,
        moderate.outputs_for(y),
        moderate.radius,
        samples=60,
        seed=derive_seed(context.seed, "balls"),
    )
    found = certify_balls(moderate, X, y, radius=moderate.radius, time_limit=0.5, seed=context.seed)
    context.claim(
        "moderate",
        observed={
            "error bound": moderate.details["error_bound"],
            "largest sampled share": float(wrong.max()),
            "balls proved without error": found.verified,
            "balls": n,
        },
        holds=moderate.details["error_bound"] < ETA and wrong.max() < ETA,
    )
    large = build_robust_memorizer(X, y, rho="0.9", regime="large", seed=context.seed)
    proved = certify_balls(large, X, y, radius=large.radius, samples=0)
    wrong = sampled_error(
        large.network, X, large.outputs_for(y), large.radius, samples=10, seed=derive_seed(context.seed, "balls")
    )
    context.claim(
        "large",
        observed={
            "verified": proved.verified,
            "sampled points wrong": float(wrong.max()),
            "case": large.details["case"],
        },
        holds=proved.complete and not wrong.any(),
    )
    sizes = [made.parameters for made in (small, moderate, large)]
    context.claim("cost_rises", observed=sizes, holds=sizes[0] < sizes[1] < sizes[2])
    context.table("regimes", [made.to_dict() for made in (small, moderate, large)])


def _trained(context: StudyContext) -> None:
    """{e_j} with label 1 and 0 with label 0 in R^16: one hidden layer, trained on the worst points of the balls."""
    data = width_dataset(D + 1, D)
    rows = []
    for width in WIDTHS:
        net = _train(data.X, data.y, width, derive_seed(context.seed, "net", width))
        bound = collision_bound(net, data.X, data.y)
        attacked = _attacked(net, data.X, data.y, bound, derive_seed(context.seed, "attack", width))
        rows.append(
            {
                "width": width,
                "d": D,
                "certified": _certified(net, data.X, data.y),
                "attacked": attacked,
                "collision": bound.rho_upper,
                "limit": math.sqrt(width / D),
            }
        )
    context.table("trained", rows)
    context.figure("trained", collision_figure(rows))
    slack = 1e-6
    context.claim(
        "trained",
        observed=[{key: round(value, 4) for key, value in row.items()} for row in rows],
        holds=all(
            0 < row["certified"] <= row["attacked"] + slack
            and row["attacked"] <= row["collision"] + slack
            and row["collision"] <= row["limit"] + slack
            for row in rows
        ),
    )


def _train(X: np.ndarray, y: np.ndarray, width: int, seed: int):
    """The best of STARTS trainings by its last losses: a single start can end with most units dead."""
    trained = [_train_once(X, y, width, derive_seed(seed, "start", start)) for start in range(STARTS)]
    return min(trained, key=lambda found: found[1])[0]


def _train_once(X: np.ndarray, y: np.ndarray, width: int, seed: int):
    import torch

    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(D, width), torch.nn.ReLU(), torch.nn.Linear(width, 1)).double()
    points, labels = torch.tensor(X), torch.tensor(y, dtype=torch.float64)[:, None]
    weight = torch.where(labels == 0, float(D), 1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    target = 0.6 * math.sqrt(width / D) * 0.5  # a radius that the width can reach
    last = []
    for step in range(STEPS):
        mu = target * min(1.0, 2 * step / STEPS)
        worst = _pgd(net, points, labels, mu, steps=4, generator=torch.Generator().manual_seed(seed + step))
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(worst), labels, weight=weight)
        loss.backward()
        optimizer.step()
        last = [*last[-19:], loss.item()]
    return net, sum(last) / len(last)


def _pgd(net, points, labels, mu: float, *, steps: int, generator):
    """Points of the 2-norm balls that raise the loss (projected gradient ascent from a random start)."""
    import torch

    delta = torch.randn(points.shape, generator=generator, dtype=points.dtype)
    delta = mu * delta / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)
    signs = 2 * labels - 1
    for _ in range(steps):
        delta = delta.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad((-signs * net(points + delta)).sum(), delta)
        delta = delta + 0.5 * mu * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-12)
        delta = delta * (mu / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return (points + delta).detach()


def _attacked(net, X: np.ndarray, y: np.ndarray, bound, seed: int) -> float:
    """The smallest rho at which an attack succeeded: PGD over a grid of radii, and the colliding pair, of which the net
    must get one wrong. eps is 1/2."""
    import torch

    points, labels = torch.tensor(X), torch.tensor(y, dtype=torch.float64)[:, None]
    with torch.inference_mode():
        pair = net(torch.tensor(np.stack(bound.points)))[:, 0]
    wanted = y[list(bound.pair)]
    broken = any((value > 0) != bool(label) for value, label in zip(pair.tolist(), wanted.tolist(), strict=True))
    smallest = bound.rho_upper if broken else math.inf
    for k, rho in enumerate(np.linspace(0.02, 1, 99)):
        for start in range(3):
            generator = torch.Generator().manual_seed(seed + 1000 * k + start)
            worst = _pgd(net, points, labels, 0.5 * float(rho), steps=15, generator=generator)
            with torch.inference_mode():
                wrong = ((net(worst) > 0) != (labels > 0))[:, 0]
            if wrong.any():
                reached = (worst - points).norm(dim=1)[wrong].min().item() / 0.5
                return min(smallest, reached)
    return smallest


def _certified(net, X: np.ndarray, y: np.ndarray) -> float:
    """The largest rho (bisected to 1/64, knowing nothing of attacks) at which every ball is certified."""
    order = list(range(len(X)))

    def holds(rho: float) -> bool:
        for place, i in enumerate(order):
            found = certify_balls(
                net, X[i : i + 1], y[i : i + 1], radius=0.5 * rho, samples=0, time_limit=60.0, node_limit=NODES
            )
            if not found.complete:
                order.insert(0, order.pop(place))  # the hardest ball first next time
                return False
        return True

    low, top = 0.0, 1.0
    for _ in range(6):
        middle = (low + top) / 2
        low, top = (middle, top) if holds(middle) else (low, middle)
    return low


STUDY = Study(
    slug="robust-relu",
    title="Parameter cost of robust memorization in ReLU networks",
    arxiv="2510.24643",
    claims=CLAIMS,
    run=run,
)
