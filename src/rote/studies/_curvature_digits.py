"""The classifier half of the study `curvature-edit`: real digits with a tenth of the labels wrong.

The wrong labels are memorized one by one, the right ones are learnt. The edit must take the first and leave the second.
Knows nothing about: language models, the study's other half.
Source: Merullo et al. 2025, arXiv 2510.24256 (their ViT trained on ImageNet with 10 % relabelled images); the card's
section 5a.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rote.runtime import derive_seed
from rote.studies.protocol import StudyContext

if TYPE_CHECKING:
    import torch
    from torch import nn

TRAIN, NOISY, WIDTH, EPOCHS = 1200, 120, 128, 250
DIGIT_RHOS = (0.998, 0.995, 0.99, 0.985, 0.98, 0.975, 0.97, 0.96, 0.95)
DIGIT_RANKS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)


def label_noise(context: StudyContext) -> None:
    from rote.controls.editing import sweep
    from rote.internals.curvature import collect_classifier, decompose

    context.progress("digits: training on 10% wrong labels")
    x, truth, labels, noisy, x_validation, y_validation = _digits(context.seed)
    model = _train_mlp(x, labels, derive_seed(context.seed, "mlp") % 2**31)

    def accuracy(inputs, wanted) -> Callable[[], float]:
        return lambda: float((model(inputs).argmax(1) == wanted).float().mean())

    metrics = {
        "memorized": accuracy(x[noisy], labels[noisy]),
        "ground_truth": accuracy(x[noisy], truth[noisy]),
        "clean": accuracy(x[~noisy], truth[~noisy]),
        "validation": accuracy(x_validation, y_validation),
    }
    base = {name: measure() for name, measure in metrics.items()}
    factors = collect_classifier(model, x, layers=["0", "2"], seed=context.seed, passes=5)
    bases = decompose(factors)
    curvature = sweep(model, factors, strengths=DIGIT_RHOS, metrics=metrics, bases=bases)
    svd = sweep(model, factors, strengths=DIGIT_RANKS, metrics=metrics, method="svd", bases=bases)
    # The strongest edit within the stated limits on what must be kept: rho is swept, never hard-coded.
    allowed = [
        row for row in curvature if row["clean"] >= 0.95 and row["validation"] >= base["validation"] - 0.03
    ] or curvature[:1]
    best = min(allowed, key=lambda row: row["memorized"])
    controls = [
        row
        for method in ("random-pairs", "lowest-mass-pairs")
        for row in sweep(
            model, factors, strengths=[best["share"]], metrics=metrics, method=method, bases=bases, seed=context.seed
        )
    ]
    rows = [{"method": "none", "strength": None, "share": 1.0, "relative_change": 0.0, **base}]
    rows += [*curvature, *svd, *controls]
    context.table("label_noise", rows)
    context.figure("label_noise", _figure(base, curvature, svd))
    context.claim(
        "label_noise",
        observed={"base": base, "edited": best},
        holds=base["memorized"] - best["memorized"] >= 0.35
        and best["ground_truth"] - base["ground_truth"] >= 0.3
        and best["clean"] >= 0.95
        and abs(best["validation"] - base["validation"]) <= 0.03,
    )
    as_forgetful = [row for row in svd if row["memorized"] <= best["memorized"]]
    rival = max(as_forgetful, key=lambda row: row["clean"]) if as_forgetful else None
    context.claim(
        "label_noise_svd",
        observed={"curvature clean": best["clean"], "memorized": best["memorized"], "svd": rival},
        holds=rival is None or best["clean"] - rival["clean"] >= 0.08,
    )
    context.claim(
        "label_noise_controls",
        observed={row["method"]: row["clean"] for row in controls},
        holds=all(row["clean"] <= 0.25 for row in controls),
    )


def _digits(seed: int) -> tuple[torch.Tensor, ...]:
    """(x, true labels, given labels, which are wrong, validation x, validation labels); every wrong label differs."""
    import torch
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(derive_seed(seed, "digits"))
    order = rng.permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int64)
    noisy = np.zeros(TRAIN, bool)
    noisy[rng.choice(TRAIN, NOISY, replace=False)] = True
    labels = y[:TRAIN].copy()
    labels[noisy] = (labels[noisy] + rng.integers(1, 10, NOISY)) % 10
    arrays = (x[:TRAIN], y[:TRAIN], labels, noisy, x[TRAIN:], y[TRAIN:])
    return tuple(torch.from_numpy(array) for array in arrays)


def _train_mlp(x: torch.Tensor, labels: torch.Tensor, seed: int) -> nn.Module:
    """64-128-128-10 ReLU, AdamW 1e-3, decay 0.1, batch 128, 250 epochs: fits most wrong labels, not all."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x[rows]), labels[rows]).backward()
            optimizer.step()
    return model.requires_grad_(False)


def _figure(base: Mapping, curvature: Sequence[Mapping], svd: Sequence[Mapping]):
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, rows in (("curvature edit", curvature), ("SVD truncation", svd)):
        points = [base, *rows]
        figure.add_scatter(
            x=[row["memorized"] for row in points],
            y=[row["clean"] for row in points],
            mode="lines+markers",
            name=name,
            text=["unedited", *(f"strength {row['strength']}" for row in rows)],
        )
    figure.update_layout(
        title=f"Digits with {NOISY} of {TRAIN} labels wrong: what is kept against what is still memorized",
        template="plotly_white",
    )
    figure.update_xaxes(title=f"accuracy on the wrong labels (n = {NOISY})", range=[0, 1])
    figure.update_yaxes(title=f"accuracy on the right ones (n = {TRAIN - NOISY})")
    return figure
