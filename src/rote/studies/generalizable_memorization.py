"""Study: which memorizing networks generalize (Yu, Gao, Zhang, Miao 2024, arXiv 2411.00372).

The paper's pairs of digits on scikit-learn's 8 x 8 images (half to memorize, half to test) instead of MNIST; the laws
of its proofs (balls and shells, rings, a finite grid) at a size where every number can be checked.
"""

from __future__ import annotations

from math import exp, sqrt

import numpy as np

from rote.runtime import derive_seed, threads
from rote.studies.protocol import Claim, Study, StudyContext
from rote.theory.generalize import (
    AdversarialInterpolator,
    ShellLaw,
    SqrtMemorizer,
    VoronoiMemorizer,
    constant_size_core,
    decision_radius_squared,
    efficient_sample_size,
    log_core_bound,
    log_core_bound_as_printed,
    nearby_set,
    stratified_split,
    width_generalization_bound,
)

PAIRS = ((1, 7), (2, 3), (4, 9), (5, 6), (8, 9))
DIMENSION, NARROW, WIDE = 10, (2, 5), (10, 40)
TEST = 20_000
HALVES = 5  # one half of 8/9 in 60 is below 0.97: a mean over splits does not hang on one draw
RING_C = 0.15
RING_SIZES = (50, 200, 1000, 5000, 20_000)
TRIALS = 300

CLAIMS = (
    Claim(
        "interpolate",
        "both networks are right on every training digit",
        "by construction (theorems 4.1 and 7.3)",
        "training accuracy exactly 1 on all five pairs, 5 random halves each",
    ),
    Claim(
        "voronoi_generalizes",
        "the Voronoi memorizer generalizes on digit pairs",
        "MNIST pairs, 500 a class: almost all above 90%",
        "test accuracy (mean of 5 random halves) >= 0.97 on all five pairs, abstentions counted as wrong",
    ),
    Claim(
        "sqrt_is_chance",
        "the sqrt(N) memorizer does not generalize",
        "1-dimensional compression destroys structure",
        "test accuracy (mean of 5 random halves) within 0.5 +/- 0.08 on all five pairs",
    ),
    Claim(
        "gap", "training accuracy says nothing: both have 1.0", "M1 best on all pairs", "test gap >= 0.4 on all five"
    ),
    Claim(
        "certified",
        "no flip within 0.98 of half the distance between classes, and none before 0.49 of the way to the other class",
        "derived from theorem 7.3's planes, not in the paper",
        "0 flips of 15 digits x 400 directions; first flip at a fraction >= 0.49 for each of the 15",
    ),
    Claim(
        "nearest_neighbour",
        "where the Voronoi memorizer does not abstain it answers like 1-nearest-neighbour",
        "derived here, not in the paper",
        "no exception among test digits and midpoints of training digits, all five pairs",
    ),
    Claim(
        "best_rule",
        "the best function of one projection of the 2-dimensional shell law reaches the bound 0.7875",
        "theorem 5.1's integral",
        "Monte Carlo within 3 sigma, 200,000 points",
    ),
    Claim(
        "narrow_below_bound",
        "no trained network with 2 or 5 units in its first layer beats the bound in 10 dimensions",
        "theorem 5.1: width below n cannot generalize on this law",
        "test accuracy <= bound + 3 sigma (n = 20,000) for every run",
    ),
    Claim(
        "wide_exceeds",
        "networks with 10 and 40 units in the first layer go beyond what 5 can",
        "the theorem needs width < n",
        "test accuracy above the bound of width 5 by more than 0.1, both widths",
    ),
    Claim(
        "adversarial",
        "an interpolator of a law with bounded density is right half of the time",
        "theorem 5.3: accuracy <= 0.51",
        "training accuracy 1, test accuracy <= 0.51 + 3 sigma (n = 4,000)",
    ),
    Claim(
        "net_saturates",
        "the c0/3-net of the rings stops growing with the sample",
        "theorem 4.3: |D_s| <= Q = 154.06 for all N",
        "|D_s| <= 154.06 at N = 50 to 20,000, growth from 5,000 to 20,000 below 15%",
    ),
    Claim(
        "net_labels",
        "fresh points get the label of the nearest net point, and the net's network memorizes all of the sample",
        "theorem 4.3",
        ">= 99.5% of 4,000 fresh points at N = 20,000; training accuracy 1 at every N",
    ),
    Claim(
        "cover",
        "the grid law has S_D = 20, so N = 530 (eps 0.2) and 1060 (eps 0.1) samples at delta 0.1",
        "section 7, theorem 7.3",
        "exactly, by integer programming",
    ),
    Claim(
        "enough_samples",
        "so many samples are enough",
        "theorem 7.3: P(accuracy >= 1 - eps) >= 1 - delta",
        "share of 300 trials with accuracy >= 1 - eps at least 0.9, for both eps",
    ),
)


def run(context: StudyContext) -> None:
    context.progress("five pairs of digits: two memorizers and 1-nearest-neighbour")
    _digits(context)
    context.progress("networks of several widths on the shell law")
    with threads(1):
        _widths(context)
    _adversarial(context)
    context.progress("nets of two rings")
    _rings(context)
    context.progress("the grid law: cover and sample size")
    _grid(context)


def _digits(context: StudyContext) -> None:
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    images, target = (np.asarray(part) for part in load_digits(return_X_y=True))
    rng = np.random.default_rng(derive_seed(context.seed, "queries"))
    runs, exceptions, asked = [], 0, 0
    for a, b in PAIRS:
        kept = np.isin(target, (a, b))
        X, y = images[kept] / 16, target[kept]
        for half in range(HALVES):
            train, test = stratified_split(y, test_share=0.5, seed=derive_seed(context.seed, "split", a, b, half))
            voronoi = VoronoiMemorizer(abstain_label=-1).fit(X[train], y[train])
            direction = derive_seed(context.seed, "direction", a, b, half)
            compressed = SqrtMemorizer(seed=direction).fit(X[train], y[train])
            neighbour = KNeighborsClassifier(1).fit(X[train], y[train])
            runs.append(
                {
                    "pair": f"{a}/{b}",
                    "half": half,
                    "train": len(train),
                    "test": len(test),
                    "c0": voronoi.c0_,
                    "voronoi_train": voronoi.score(X[train], y[train]),
                    "voronoi_test": voronoi.score(X[test], y[test]),
                    "voronoi_abstains": int(voronoi.abstains(X[test]).sum()),
                    "voronoi_parameters": voronoi.dense_parameters_,
                    "voronoi_nonzero": voronoi.sparse_parameters_,
                    "sqrt_train": compressed.score(X[train], y[train]),
                    "sqrt_test": compressed.score(X[test], y[test]),
                    "sqrt_parameters": compressed.parameters_,
                    "sqrt_depth": compressed.depth_,
                    "one_nn_test": neighbour.score(X[test], y[test]),
                }
            )
            middle = (X[rng.choice(train, 100)] + X[rng.choice(train, 100)]) / 2
            queries = np.vstack([X[test], middle])
            speaks = ~voronoi.abstains(queries)
            exceptions += int((voronoi.predict(queries) != neighbour.predict(queries))[speaks].sum())
            asked += int(speaks.sum())
            if (a, b, half) == (4, 9, 0):
                _certificate(context, voronoi, X[train], y[train])
    context.table("digits", runs)
    rows = []
    for a, b in PAIRS:
        mine = [run for run in runs if run["pair"] == f"{a}/{b}"]
        means = {key: float(np.mean([run[key] for run in mine])) for key in mine[0] if key not in ("pair", "half")}
        rows.append({"pair": f"{a}/{b}", **means})
    by = {key: {row["pair"]: row[key] for row in rows} for key in rows[0]}
    context.claim(
        "interpolate",
        observed={"voronoi": by["voronoi_train"], "sqrt": by["sqrt_train"]},
        holds=all(row["voronoi_train"] == 1 == row["sqrt_train"] for row in rows),
    )
    context.claim(
        "voronoi_generalizes",
        observed={"voronoi": by["voronoi_test"], "1-NN": by["one_nn_test"]},
        holds=all(row["voronoi_test"] >= 0.97 for row in rows),
    )
    context.claim(
        "sqrt_is_chance", observed=by["sqrt_test"], holds=all(abs(row["sqrt_test"] - 0.5) <= 0.08 for row in rows)
    )
    gaps = {row["pair"]: row["voronoi_test"] - row["sqrt_test"] for row in rows}
    context.claim("gap", observed=gaps, holds=all(gap >= 0.4 for gap in gaps.values()))
    context.claim(
        "nearest_neighbour", observed={"exceptions": exceptions, "answers": asked}, holds=exceptions == 0 < asked
    )
    context.figure("digits", _digits_figure(rows))


def _certificate(context: StudyContext, memorizer: VoronoiMemorizer, X: np.ndarray, y: np.ndarray) -> None:
    rng = np.random.default_rng(derive_seed(context.seed, "directions"))
    flips, first = 0, []
    for row in rng.permutation(len(X))[:15]:
        direction = rng.standard_normal((400, X.shape[1]))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        flips += int((memorizer.predict(X[row] + 0.98 * memorizer.c0_ / 2 * direction) != y[row]).sum())
        others = X[y != y[row]]
        towards = others[np.linalg.norm(others - X[row], axis=1).argmin()] - X[row]
        steps = np.linspace(0, 1, 2001)
        first.append(float(steps[(memorizer.predict(X[row] + steps[:, None] * towards) != y[row]).argmax()]))
    context.claim(
        "certified",
        observed={"flips": flips, "first flip": [min(first), max(first)]},
        holds=flips == 0 and min(first) >= 0.49,
    )


def _widths(context: StudyContext) -> None:
    law = ShellLaw(2)
    X, y = law.sample(200_000, seed=derive_seed(context.seed, "shell 2"))
    inside = ((X - 0.5) / law.scale)[:, 0] ** 2 < decision_radius_squared(n=2, width=1)
    bound = width_generalization_bound(n=2, width=1)
    found, sigma = float(np.mean(inside == (y > 0))), sqrt(bound * (1 - bound) / len(y))
    context.claim("best_rule", observed={"bound": bound, "found": found}, holds=abs(found - bound) <= 3 * sigma)

    rows = []
    for width in (*NARROW, *WIDE):
        limit = width_generalization_bound(n=DIMENSION, width=width)
        for repeat in range(2):
            accuracy = _train(width, derive_seed(context.seed, "mlp", width, repeat))
            rows.append({"width": width, "accuracy": accuracy, "bound": limit, "n": TEST, "repeat": repeat})
    context.table("widths", rows)
    sigma = sqrt(0.25 / TEST)
    context.claim(
        "narrow_below_bound",
        observed={f"{row['width']} (run {row['repeat']})": [row["accuracy"], row["bound"]] for row in rows[:4]},
        holds=all(row["accuracy"] <= row["bound"] + 3 * sigma for row in rows if row["width"] in NARROW),
    )
    best = {width: max(row["accuracy"] for row in rows if row["width"] == width) for width in WIDE}
    beyond = width_generalization_bound(n=DIMENSION, width=max(NARROW))
    context.claim(
        "wide_exceeds",
        observed={"bound of width 5": beyond, **{str(width): value for width, value in best.items()}},
        holds=all(value > beyond + 0.1 for value in best.values()),
    )
    from rote.theory.generalize.figures import width_figure

    context.figure("widths", width_figure(n=DIMENSION, measured=rows))


def _train(width: int, seed: int) -> float:
    """Test accuracy of a ReLU network n - width - 64 - 64 - 1, trained on fresh samples of the shell law."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    layers = [nn.Linear(DIMENSION, width), nn.Linear(width, 64), nn.Linear(64, 64), nn.Linear(64, 1)]
    network = nn.Sequential(*(part for layer in layers[:-1] for part in (layer, nn.ReLU())), layers[-1])
    law = ShellLaw(DIMENSION)
    steps, batch = 1500, 512
    X, y = law.sample(steps * batch, seed=derive_seed(seed, "train"))
    # centred and scaled: an affine map, which the first layer could hold as well
    inputs = torch.tensor((X - 0.5) / law.scale * sqrt(DIMENSION), dtype=torch.float32)
    labels = torch.tensor(y > 0, dtype=torch.float32)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for step in range(steps):
        part = slice(step * batch, (step + 1) * batch)
        loss = nn.functional.binary_cross_entropy_with_logits(network(inputs[part])[:, 0], labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    X, y = law.sample(TEST, seed=derive_seed(seed, "test"))
    with torch.inference_mode():
        scores = network(torch.tensor((X - 0.5) / law.scale * sqrt(DIMENSION), dtype=torch.float32))[:, 0]
    return float(np.mean((scores.numpy() > 0) == (y > 0)))


def _slabs(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Uniform on [0,1]^2 without the slab 0.45 < x < 0.55, label by side: density 1/0.9, separation 0.1."""
    X, y = rng.random((count, 2)), rng.integers(0, 2, count)
    X[:, 0] = 0.45 * X[:, 0] + 0.55 * y
    return X, y


def _adversarial(context: StudyContext) -> None:
    rng = np.random.default_rng(derive_seed(context.seed, "slabs"))
    X, y = _slabs(100, rng)
    fresh, labels = _slabs(4000, rng)
    wrong = AdversarialInterpolator(density=1 / 0.9, seed=derive_seed(context.seed, "hostile")).fit(X, y)
    right = VoronoiMemorizer(abstain_label=-1).fit(X, y)
    found = {
        "adversarial": [wrong.score(X, y), wrong.score(fresh, labels)],
        "voronoi": [right.score(X, y), right.score(fresh, labels)],
    }
    limit = 0.51 + 3 * sqrt(0.25 / len(fresh))
    context.claim(
        "adversarial",
        observed={"training and test accuracy": found},
        holds=found["adversarial"][0] == 1 and found["adversarial"][1] <= limit,
    )


def _ring_law(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Label 1 within 0.15 of the centre, label -1 between 0.3 and 0.45: c = 0.15."""
    y = rng.choice([-1, 1], count)
    low, high = np.where(y > 0, 0, 0.3**2), np.where(y > 0, 0.15**2, 0.45**2)
    radius, angle = np.sqrt(low + rng.random(count) * (high - low)), 2 * np.pi * rng.random(count)
    return 0.5 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), y


def _rings(context: StudyContext) -> None:
    rng = np.random.default_rng(derive_seed(context.seed, "rings"))
    fresh, labels = _ring_law(4000, rng)
    printed, proved = (exp(bound(n=2, c=RING_C)) for bound in (log_core_bound_as_printed, log_core_bound))
    rows = []
    for count in RING_SIZES:
        X, y = _ring_law(count, rng)
        core = constant_size_core(X, y)
        nearest = np.linalg.norm(fresh[:, None] - core.points[None], axis=2).argmin(axis=1)
        rows.append(
            {
                "N": count,
                "net": len(core.indices),
                "Q as printed": printed,
                "proved bound": proved,
                "c0": core.c0,
                "memorized": core.network().score(X, y),
                "fresh labels right": float((core.labels[nearest] == labels).mean()),
            }
        )
    context.table("net", rows)
    sizes = {row["N"]: row["net"] for row in rows}
    growth = sizes[20_000] / sizes[5000] - 1
    context.claim(
        "net_saturates",
        observed={"sizes": sizes, "growth": growth, "Q as printed": printed, "proved bound": proved},
        holds=max(sizes.values()) <= printed and growth < 0.15,
    )
    context.claim(
        "net_labels",
        observed={row["N"]: row["fresh labels right"] for row in rows},
        holds=rows[-1]["fresh labels right"] >= 0.995 and all(row["memorized"] == 1 for row in rows),
    )


def _grid(context: StudyContext) -> None:
    """Equal mass on a 5 x 5 grid of [0,1]^2 without the column x = 1/2, label by side."""
    X = np.array([(i / 4, j / 4) for i in (0, 1, 3, 4) for j in range(5)])
    y = np.where(X[:, 0] > 0.5, 1, -1)
    cover = nearby_set(X, y)
    needed = {eps: efficient_sample_size(S=cover.size, eps=eps, delta=0.1) for eps in (0.2, 0.1)}
    context.claim(
        "cover",
        observed={"S_D": cover.size, "optimal": cover.optimal, "N": {str(eps): N for eps, N in needed.items()}},
        holds=(cover.size, cover.optimal, needed[0.2], needed[0.1]) == (20, True, 530, 1060),
    )
    rng = np.random.default_rng(derive_seed(context.seed, "grid"))

    def accuracy(count: int) -> float:
        rows = rng.integers(0, len(X), count)
        if len(set(y[rows])) == 1:  # a constant memorizes it
            return 0.5
        memorizer = VoronoiMemorizer(abstain_label=0).fit(X[rows], y[rows])
        return float((memorizer.predict(X) == y).mean())

    rows = []
    for count in (3, 5, 10, 20, *needed.values()):
        found = np.array([accuracy(count) for _ in range(TRIALS)])
        shares = {f"accuracy >= {1 - eps:g}": float((found >= 1 - eps - 1e-12).mean()) for eps in needed}
        rows.append({"N": count, "trials": TRIALS, "mean accuracy": float(found.mean()), **shares})
    context.table("samples", rows)
    success = {eps: row[f"accuracy >= {1 - eps:g}"] for row in rows for eps, N in needed.items() if row["N"] == N}
    context.claim(
        "enough_samples",
        observed={
            "share of trials": {str(eps): share for eps, share in success.items()},
            "mean accuracy": {row["N"]: row["mean accuracy"] for row in rows},
        },
        holds=len(success) == 2 and all(share >= 0.9 for share in success.values()),
    )


def _digits_figure(rows: list[dict]):
    import plotly.graph_objects as go

    figure = go.Figure()
    for key, name in (("voronoi_test", "Voronoi"), ("one_nn_test", "1-NN"), ("sqrt_test", "sqrt(N)")):
        figure.add_bar(x=[row["pair"] for row in rows], y=[row[key] for row in rows], name=name)
    figure.add_hline(y=0.5, line_dash="dot", annotation_text="chance")
    sizes = sorted({round(row["test"]) for row in rows})
    figure.update_layout(
        title=f"Test accuracy, all right in training ({HALVES} halves, n = {sizes[0]} to {sizes[-1]} each)",
        template="plotly_white",
        barmode="group",
    )
    figure.update_yaxes(title="test accuracy", range=[0, 1.02])
    figure.update_xaxes(title="digits", type="category")
    return figure


STUDY = Study(
    slug="generalizable-memorization",
    title="When a memorizing network generalizes",
    arxiv="2411.00372",
    claims=CLAIMS,
    run=run,
)
