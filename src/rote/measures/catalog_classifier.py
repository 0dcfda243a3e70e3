"""The catalogue's part on classifiers: memorization of training examples, its proxies, how well unlearning went.

Knows nothing about how anything is computed (`rote.measures.proxies`, `rote.measures.unlearned_classifier`).
"""

from __future__ import annotations

from rote.measures.catalog_entries import HIGHER, LOWER, MeasureInfo

_PROXIES = "Zhao & Triantafillou 2024, arXiv 2410.16516"
_CHEAP = "Which examples to unlearn with which method, where training many models is too dear."
_RUM = "Zhao et al. 2024 (RUM), arXiv 2406.01257"
_ORACLES = "retrained models without the forget set"

CLASSIFIER_MEASURES = (
    MeasureInfo(
        "memorization.classifier",
        "Memorization of a training example (Feldman)",
        "What training on the example itself adds to its chance of being classified right: mem_i = P[f(x_i) = y_i | i "
        "in S] - P[f(x_i) = y_i | i not in S] over models trained on random subsets S.",
        (-1.0, 1.0),
        HIGHER,
        "probability",
        "Feldman 2020, arXiv 1906.05271; Feldman & Zhang 2020, arXiv 2008.03703, sec. 2",
        "Which examples are memorized and not learnt from others: the ground truth that the proxies are judged "
        "against. Its split-half correlation bounds what any proxy can reach.",
    ),
    MeasureInfo(
        "proxy.confidence",
        "Confidence in training",
        "Probability of the example's own label, mean over epochs, each taken from the very step that trained on it: "
        "mean of p_y.",
        (0.0, 1.0),
        LOWER,
        "probability",
        f"{_PROXIES}; Jiang et al. 2021, arXiv 2002.03206",
        _CHEAP,
    ),
    MeasureInfo(
        "proxy.max_confidence",
        "Largest confidence in training",
        "Probability of the likeliest label, mean over epochs: mean of max_k p_k. Needs no label.",
        (0.0, 1.0),
        LOWER,
        "probability",
        f"{_PROXIES}; Jiang et al. 2021, arXiv 2002.03206",
        _CHEAP,
    ),
    MeasureInfo(
        "proxy.negative_entropy",
        "Negative entropy in training",
        "sum_k p_k log p_k, mean over epochs. 0 = sure, -log(classes) = no idea. Needs no label.",
        (None, 0.0),
        LOWER,
        "nats",
        f"{_PROXIES}; Jiang et al. 2021, arXiv 2002.03206",
        _CHEAP,
    ),
    MeasureInfo(
        "proxy.binary_accuracy",
        "Accuracy in training",
        "Share of the epochs in which the step that trained on the example classified it right: mean of 1[argmax_k p_k "
        "= y].",
        (0.0, 1.0),
        LOWER,
        "share of epochs",
        f"{_PROXIES}; Jiang et al. 2021, arXiv 2002.03206",
        _CHEAP,
    ),
    MeasureInfo(
        "proxy.holdout_retraining",
        "Holdout retraining",
        "How far the example's prediction moves when a copy of the model is tuned on held-out data: (KL(p || q) + "
        "KL(q || p))/2, p before and q after.",
        (0.0, None),
        HIGHER,
        "nats",
        f"{_PROXIES}; Carlini et al. 2019, arXiv 1910.13427",
        f"{_CHEAP} Needs a delivered checkpoint and labelled unseen data, no training log.",
    ),
    MeasureInfo(
        "proxy.curvature",
        "Input loss curvature",
        "How fast the input gradient of the example's loss turns along its own sign direction: ||grad l(x + z) - grad "
        "l(x)||, z of length h; of the finished model, or the mean over epochs where it was recorded.",
        (0.0, None),
        HIGHER,
        "change of the gradient's norm",
        "Garg et al. 2024, arXiv 2307.05831; finite difference: Moosavi-Dezfooli et al. 2019, arXiv 1811.09716",
        _CHEAP,
    ),
    MeasureInfo(
        "unlearned.tow",
        "Tug of war (ToW)",
        "Closeness of an unlearned classifier to a retrained one in accuracy: prod over Z in {forget, retain, test} of "
        "(1 - |a(unlearned, Z) - a(oracle, Z)|). 1 = alike on all three.",
        (0.0, 1.0),
        "higher = closer to the oracles",
        "product of shares",
        f"{_RUM}, sec. 3",
        f"Which unlearning method to use. Read it beside the ceiling: what {_ORACLES} get against each other.",
    ),
    MeasureInfo(
        "unlearned.tow_mia",
        "Tug of war with membership (ToW-MIA)",
        "ToW with the forget factor 1 - |MIA(unlearned) - MIA(oracle)| in place of that of accuracies.",
        (0.0, 1.0),
        "higher = closer to the oracles",
        "product of shares",
        _RUM,
        "Whether an unlearned model also treats its forget set as unseen, as far as a weak attack can tell.",
    ),
    MeasureInfo(
        "unlearned.mia",
        "Population membership attack on the forget set",
        "Share of the forget set that an RBF-SVC, trained to tell retain from test by one feature of the predictions, "
        "calls unseen.",
        (0.0, 1.0),
        "the oracles' value is the target, not 1",
        "share of the forget set",
        "Jia et al. 2023, arXiv 2304.04934; features: Song & Mittal 2021, arXiv 2003.10595",
        "A first check only: it is weak, and a match with the oracles does not prove forgetting.",
    ),
    MeasureInfo(
        "unlearned.lira_auroc",
        "Per-example membership of the forget set (LiRA)",
        "AUROC of forget against test examples by offline LiRA whose out-models are the oracles: score (phi - mu_out)/"
        "s_out, phi = logit p_y.",
        (0.0, 1.0),
        "0.5 = forgotten; above = still known; below = conspicuously worse (over-unlearned)",
        "probability",
        "Carlini et al. 2022, arXiv 2112.03570, sec. 6.3, with retrained models as shadow models",
        "Whether single examples are still given away, which population averages hide.",
    ),
    MeasureInfo(
        "unlearned.entanglement",
        "Entanglement of forget and retain set",
        "Spread within over distance between the two sets in the original model's features: [mean ||phi_R - mu_R||^2 + "
        "mean ||phi_S - mu_S||^2] / [(||mu_R - mu||^2 + ||mu_S - mu||^2)/2].",
        (0.0, None),
        "higher = harder to unlearn",
        "ratio",
        f"{_RUM}, sec. 4",
        "How hard a forget set is before anything is unlearned.",
    ),
)
