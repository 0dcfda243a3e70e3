"""Is the model reciting right now? A logistic probe on the residual stream, one a block, and how far to believe it.

    m_t = sigmoid(w_l . h_{l,t} + b_l)

Features are standardised, weights have an L2 penalty whose strength C is chosen by cross-validation, and everything
that is reported comes from documents the probe at hand has not seen: folds are made of groups, never of tokens. Platt's
scaling, fitted on those held-out scores, keeps m_t from saturating at 0 or 1 (a saturated probe makes dynamic steering
static). Beside each block stand two probes that see no activation: the prompt's tokens as a bag, and its length.

Source: Zhang 2025, arXiv 2510.22099: a linear probe, one a layer [secondary]; standardisation, penalty, folds, class
weights and calibration are reconstructed. Knows nothing about: decoding, steering.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rote.controls.decoding.blocks import chosen_layers, hf_of, residual_states
from rote.controls.decoding.labelling import MEMORIZED, LabelledPrompts
from rote.errors import InputError

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C, the inverse strength, of standardised features
PRIORS = ("balanced", "as_given")
FOLDS = 5
BINS = 10


@dataclass(frozen=True)
class ProbeFigures:
    """How a probe did on prompts of documents it had not seen. auc: area under the ROC curve (0.5: nothing).
    accuracy: balanced, at m = 0.5. brier: mean squared error of m, in [0, 1]. ece: expected calibration error over 10
    bins, in [0, 1]. C: the chosen inverse penalty."""

    auc: float
    accuracy: float
    brier: float
    ece: float
    C: float


@dataclass(frozen=True)
class ModeProbe:
    """Probes of several blocks, in the coordinates of the raw residual stream. `w` and `b` contain standardisation
    and calibration already. `figures` are held out, in the order of `layers`; `baselines` are probes without
    activations."""

    layers: tuple[int, ...]
    w: Float[np.ndarray, "layers width"]
    b: Float[np.ndarray, " layers"]
    figures: tuple[ProbeFigures, ...] = ()
    baselines: dict[str, ProbeFigures] | None = None
    n_memorized: int = 0
    n_general: int = 0
    prior: str = "balanced"

    @classmethod
    def fit(
        cls,
        model: CausalLM,
        labelled: LabelledPrompts,
        *,
        layers: str | Sequence[int] = "all",
        continuation_tokens: int = 0,
        prior: str = "balanced",
        calibrate: bool = True,
        folds: int = FOLDS,
        seed: int = 0,
    ) -> ModeProbe:
        """Read h_l at the last prompt token and fit one probe a block.

        Args:
            labelled: prompts with modes; dropped ones are left out. Folds follow its groups.
            continuation_tokens: also train on so many positions inside each continuation, which is what decoding will
                show the probe (the labelled prompts must carry continuations). Figures then count positions.
            prior: "balanced" weighs both modes alike, so that m = 0.5 means undecided; "as_given" keeps their shares.
        Raises: InputError for fewer than 2 groups of a mode, or continuations that are missing.
        """
        chosen = chosen_layers(hf_of(model), layers)
        labelled = labelled.used
        sequences, positions = decoding_positions(labelled, continuation_tokens)
        states = residual_states(model, sequences, layers=chosen, positions=positions)
        per = [len(wanted) for wanted in positions]
        labels = np.repeat(labelled.labels, per)
        groups = np.repeat(np.array(labelled.groups), per)
        probe = cls.from_states(
            states, labels, groups, layers=chosen, prior=prior, calibrate=calibrate, folds=folds, seed=seed
        )
        return ModeProbe(
            **{**vars(probe), "baselines": surface_baselines(labelled, prior=prior, folds=folds, seed=seed)}
        )

    @classmethod
    def from_states(
        cls,
        states: Float[np.ndarray, "rows layers width"],
        labels: Int[np.ndarray, " rows"],
        groups: Sequence[str] | np.ndarray,
        *,
        layers: Sequence[int],
        prior: str = "balanced",
        calibrate: bool = True,
        folds: int = FOLDS,
        seed: int = 0,
    ) -> ModeProbe:
        """The same from residual states that are at hand."""
        fits = [
            fit_logistic(states[:, place], labels, groups, prior=prior, calibrate=calibrate, folds=folds, seed=seed)
            for place in range(len(layers))
        ]
        return cls(
            tuple(layers),
            np.stack([fit.w for fit in fits]).astype(np.float32),
            np.array([fit.b for fit in fits], np.float32),
            tuple(fit.figures for fit in fits),
            None,
            int((np.asarray(labels) == MEMORIZED).sum()),
            int((np.asarray(labels) != MEMORIZED).sum()),
            prior,
        )

    def at(self, layer: int) -> tuple[Float[np.ndarray, " width"], float]:
        """(w_l, b_l). Raises InputError when the probe was not fitted there."""
        if layer not in self.layers:
            raise InputError(f"the probe has no block {layer}; it was fitted at {', '.join(map(str, self.layers))}")
        place = self.layers.index(layer)
        return self.w[place], float(self.b[place])

    def score(self, states: Float[np.ndarray, "rows width"], layer: int) -> Float[np.ndarray, " rows"]:
        """m = sigmoid(w_l . h + b_l), in [0, 1]: the probability that the model is reciting."""
        w, b = self.at(layer)
        return sigmoid(np.asarray(states, np.float64) @ w.astype(np.float64) + b)

    @property
    def best_layer(self) -> int:
        """Where the mode reads best. Not where to steer: see `rote.controls.decoding.patching.causal_layer`."""
        if not self.figures:
            raise InputError("this probe carries no held-out figures")
        return self.layers[int(np.argmax([figure.auc for figure in self.figures]))]

    def as_rows(self) -> list[dict[str, Any]]:
        """One row a block, then one a baseline, as plain values."""
        rows = [{"layer": layer, **asdict(figure)} for layer, figure in zip(self.layers, self.figures, strict=True)]
        return rows + [{"layer": name, **asdict(figure)} for name, figure in (self.baselines or {}).items()]


@dataclass(frozen=True)
class LogisticFit:
    """One probe: raw-coordinate weights, held-out figures and the held-out scores they came from."""

    w: Float[np.ndarray, " width"]
    b: float
    figures: ProbeFigures
    held_out: Float[np.ndarray, " rows"]


def sigmoid(z: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """1 / (1 + exp(-z)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(z, np.float64)))


def fit_logistic(
    states: Float[np.ndarray, "rows width"],
    labels: Int[np.ndarray, " rows"],
    groups: Sequence[str] | np.ndarray,
    *,
    prior: str = "balanced",
    calibrate: bool = True,
    folds: int = FOLDS,
    seed: int = 0,
) -> LogisticFit:
    """Fit w, b on all rows; judge by folds of whole groups.

    C is the one with the least held-out log-loss, and the figures are those folds' own scores: choosing among five
    values leans them by far less than their sampling error. Calibration for the figures is fitted on the other folds.
    """
    if prior not in PRIORS:
        raise InputError(f"prior must be one of {', '.join(PRIORS)}, not {prior!r}")
    x, y = np.asarray(states, np.float64), (np.asarray(labels) == MEMORIZED).astype(int)
    fold_of = group_folds(y, groups, folds=folds, seed=seed)
    weights = class_weights(y, prior)
    scores = np.empty((len(PENALTIES), len(y)))
    for fold in range(fold_of.max() + 1):
        train, held = fold_of != fold, fold_of == fold
        for place, (w, b) in enumerate(_path(x[train], y[train], weights[train], PENALTIES)):
            scores[place, held] = x[held] @ w + b
    losses = [np.average(np.logaddexp(0, -(2 * y - 1) * z), weights=weights) for z in scores]
    best = int(np.argmin(losses))
    raw = scores[best]
    held_out = np.empty(len(y))
    for fold in range(fold_of.max() + 1):
        held = fold_of == fold
        a, c = platt(raw[~held], y[~held], weights[~held]) if calibrate else (1.0, 0.0)
        held_out[held] = sigmoid(a * raw[held] + c)
    w, b = _path(x, y, weights, (PENALTIES[best],))[0]
    a, c = platt(raw, y, weights) if calibrate else (1.0, 0.0)
    return LogisticFit(a * w, a * b + c, figures_of(raw, held_out, y, weights, PENALTIES[best]), held_out)


def group_folds(
    labels: Int[np.ndarray, " rows"], groups: Sequence[str] | np.ndarray, *, folds: int = FOLDS, seed: int = 0
) -> Int[np.ndarray, " rows"]:
    """Fold of every row: a group is never divided, and every fold trains on both modes.

    Raises InputError when a mode has fewer than 2 groups: then nothing unseen is left to judge by.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups, y = np.asarray(groups), np.asarray(labels)
    fewest = min(len(set(groups[y == mode].tolist())) for mode in (0, 1))
    if fewest < 2:
        raise InputError(
            "a probe needs prompts of at least 2 documents of each mode: one to learn from, one to be judged by"
        )
    fold_of = np.empty(len(y), np.int64)
    count = min(folds, fewest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # groups of very different sizes are not our user's fault
        parts = StratifiedGroupKFold(count, shuffle=True, random_state=seed % 2**32).split(np.zeros(len(y)), y, groups)
        for fold, (_, held) in enumerate(parts):
            fold_of[held] = fold
    return fold_of


def class_weights(labels: Int[np.ndarray, " rows"], prior: str) -> Float[np.ndarray, " rows"]:
    """Weights of the rows, mean 1: both modes alike ("balanced"), or all rows alike."""
    if prior == "as_given":
        return np.ones(len(labels))
    counts = np.bincount(labels, minlength=2)
    return len(labels) / (2.0 * counts[labels])


def platt(
    scores: Float[np.ndarray, " rows"], labels: Int[np.ndarray, " rows"], weights: Float[np.ndarray, " rows"]
) -> tuple[float, float]:
    """(a, c) of sigmoid(a z + c) with the greatest weighted likelihood, a >= 0 (Platt 1999). A slope that wants to be
    negative says that the scores carry nothing: it becomes 0."""
    from sklearn.linear_model import LogisticRegression

    scale = float(np.std(scores)) or 1.0
    fit = LogisticRegression(C=1e4, max_iter=1_000).fit(scores[:, None] / scale, labels, sample_weight=weights)
    slope = float(fit.coef_[0, 0]) / scale
    return (slope, float(fit.intercept_[0])) if slope > 0 else (0.0, 0.0)


def figures_of(
    raw: Float[np.ndarray, " rows"],
    m: Float[np.ndarray, " rows"],
    y: Int[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    C: float,
) -> ProbeFigures:
    """Figures of held-out scores: AUC of the raw ones, the others of the calibrated m, weighted as in the fit."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    return ProbeFigures(
        auc=float(roc_auc_score(y, raw)),
        accuracy=float(balanced_accuracy_score(y, m > 0.5)),
        brier=float(np.average((m - y) ** 2, weights=weights)),
        ece=expected_calibration_error(m, y, weights),
        C=C,
    )


def expected_calibration_error(
    m: Float[np.ndarray, " rows"],
    labels: Int[np.ndarray, " rows"] | Bool[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"] | None = None,
    *,
    bins: int = BINS,
) -> float:
    """sum over equal-width bins of (share of rows) |mean m - share of memorized|, in [0, 1]."""
    m, y = np.asarray(m, float), np.asarray(labels, float)
    weights = np.ones(len(m)) if weights is None else weights
    place = np.minimum((m * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights * (m - y), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())


def surface_baselines(
    labelled: LabelledPrompts, *, prior: str = "balanced", folds: int = FOLDS, seed: int = 0
) -> dict[str, ProbeFigures]:
    """Probes that see no activation: what the prompts' tokens (as a bag) or their length alone give away."""
    labelled = labelled.used
    tokens = sorted({token for prompt in labelled.prompts for token in prompt})
    column = {token: place for place, token in enumerate(tokens)}
    bag = np.zeros((len(labelled), len(tokens)), np.float32)
    for row, prompt in enumerate(labelled.prompts):
        for token in prompt:
            bag[row, column[token]] += 1
    length = np.array([[len(prompt)] for prompt in labelled.prompts], np.float32)
    kept = {"prior": prior, "folds": folds, "seed": seed}
    return {
        name: fit_logistic(features, labelled.labels, labelled.groups, **kept).figures
        for name, features in (("bag of tokens", bag), ("length", length))
    }


def _path(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, penalties: Sequence[float]
) -> list[tuple[np.ndarray, float]]:
    """(w, b) in raw coordinates for each C.

    The optimum of an L2-penalised loss lies in the span of the rows, so with more features than rows the problem is
    solved exactly in that span.
    """
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-12 * max(1.0, float(np.abs(x).max())), scale, np.inf)  # a constant feature has no say
    z = (x - mean) / scale
    basis = None
    if z.shape[1] > len(z):
        u, s, basis = np.linalg.svd(z, full_matrices=False)
        z = u * s
    found = []
    for C in penalties:
        fit = LogisticRegression(C=C, max_iter=2_000).fit(z, y, sample_weight=weights)
        w = fit.coef_[0] if basis is None else fit.coef_[0] @ basis
        w = w / scale
        found.append((w, float(fit.intercept_[0] - w @ mean)))
    return found


def decoding_positions(
    labelled: LabelledPrompts, continuation_tokens: int
) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """(sequences, positions): the last prompt token, and so many positions inside the continuation."""
    if continuation_tokens == 0:
        return list(labelled.prompts), [[len(prompt) - 1] for prompt in labelled.prompts]
    if len(labelled.continuations) != len(labelled):
        raise InputError("continuation_tokens needs labelled prompts that carry their continuations")
    sequences, positions = [], []
    for prompt, tail in zip(labelled.prompts, labelled.continuations, strict=True):
        kept = tail[:continuation_tokens]
        sequences.append((*prompt, *kept))
        positions.append(list(range(len(prompt) - 1, len(prompt) + len(kept))))
    return sequences, positions
