"""`ProtoKNN`: a classifier that is its memory. Its prediction is the mean vote of the k most similar remembered
segments.

    vote(x) = (1/k) sum_{p in top-k by S(x, p)} votes_p / raters
    p(x)    = isotonic(vote(x)),   fitted on patients kept out of training and out of the case base

Segments of a query's own patient (when its group is given) and identical segments are never its neighbours.
Source: Tang et al. 2025, "This EEG Looks Like These EEGs", arXiv 2510.20846, sections on training and kNN replacement.

Knows nothing about: files, figures, recordings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from rote.errors import InputError
from rote.memory.cases.backbone import ChannelTrunk, SpikeNet, centre_codes
from rote.memory.cases.case_base import CaseBase
from rote.memory.cases.channel_weights import channel_weights, check_mode
from rote.memory.cases.evaluation import Evaluation, evaluate_votes
from rote.memory.cases.explanation import Explanation, neighbours_of
from rote.memory.cases.mne_input import to_microvolts
from rote.memory.cases.model import CaseModel, Encoded
from rote.memory.cases.montage import Montage, make_montage
from rote.memory.cases.preprocessing import SignalSettings, check_segments, prepare
from rote.memory.cases.prototypes import train_prototypes
from rote.memory.cases.search import Found, Shortlist, search_exact
from rote.memory.cases.similarity import IMPORTANCE, check_importance
from rote.memory.cases.splits import (
    check_groups,
    check_patient_disjoint,
    check_two_classes,
    check_votes,
    held_out_patients,
)
from rote.memory.cases.statistics import Scaling, channel_statistics
from rote.memory.cases.training import Progress, TrainingSettings, train_detector
from rote.models.unfinished import Unfinished
from rote.runtime import derive_seed

SEARCHES = ("exact", "faiss")


class ProtoKNN(ClassifierMixin, BaseEstimator):
    """Case-based detector of events in multichannel epochs, with scikit-learn's verbs.

    Args:
        montage: "10-20" (37 channels), "average" (any electrodes; give ch_names) or a `Montage`.
        k: neighbours a prediction averages.
        weights: where to look, one of `channel_weights.MODES`.
        importance: a, shares of (latent, range, var, fft) in the similarity, on the simplex.
        learn_importance: train a with the prototypes; False is what the released code does.
        prototype_phase: train the trunk with prototypes; False keeps the detector's trunk after surgery.
        signal, training: settings; None is the paper's signal and `TrainingSettings.small()`.
        search: "exact" or "faiss" (a shortlist of `candidates` by the latent term, ranked again exactly).
        calibrate: isotonic calibration on `validation_share` of the patients; False: p(x) = vote(x).
        random_state, device: seed of everything random; device of the training.

    Fitted state: model_ (CaseModel), cases_ (CaseBase), prototypes_, importance_, calibration_, validation_groups_.
    Data are arrays (n, electrodes, samples) in microvolts, or MNE Epochs (volts, converted).
    """

    def __init__(
        self,
        *,
        montage: str | Montage = "10-20",
        k: int = 10,
        weights: str = "leave-one-in",
        importance: Sequence[float] = IMPORTANCE,
        learn_importance: bool = False,
        prototype_phase: bool = True,
        signal: SignalSettings | None = None,
        training: TrainingSettings | None = None,
        search: str = "exact",
        candidates: int = 200,
        calibrate: bool = True,
        validation_share: float = 0.2,
        random_state: int = 0,
        device: str = "cpu",
    ):
        self.montage = montage
        self.k = k
        self.weights = weights
        self.importance = importance
        self.learn_importance = learn_importance
        self.prototype_phase = prototype_phase
        self.signal = signal
        self.training = training
        self.search = search
        self.candidates = candidates
        self.calibrate = calibrate
        self.validation_share = validation_share
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        X,
        votes=None,
        *,
        groups=None,
        raters: int = 8,
        ids=None,
        ch_names: Sequence[str] | None = None,
        sfreq: float | None = None,
        resume: str | Path | None = None,
        progress: Progress | None = None,
    ) -> ProtoKNN:
        """Train detector, trunk and prototypes, remember the training segments, calibrate on held-out patients.

        votes: how many of `raters` marked each segment (raters=1: yes or no). groups: the patient of each, mandatory.
        resume: a folder where the trained detector is kept, should the rest be interrupted.
        Raises InputError for bad data (see `check_segments`), missing groups, votes outside 0 .. raters, one class.
        """
        from rote.runtime import pick_device

        check_mode(self.weights)
        importance = check_importance(self.importance)
        if self.search not in SEARCHES:
            raise InputError(f"no search {self.search!r}; use one of {', '.join(SEARCHES)}")
        signal, settings = self.signal or SignalSettings(), self.training or TrainingSettings.small()
        X, ch_names, sfreq = to_microvolts(X, ch_names, sfreq)
        montage = make_montage(self.montage, ch_names or ())
        data = self._checked(X, montage, signal, ch_names, sfreq, where="fit")
        groups = check_groups(groups, len(data))
        votes = check_votes(votes, len(data), raters)
        ids = np.array([f"case-{row:05d}" for row in range(len(data))]) if ids is None else np.asarray(ids).astype(str)
        if len(ids) != len(data):
            raise InputError(f"fit: {len(data)} segments but {len(ids)} ids")
        positive = 2 * votes >= raters
        check_two_classes(positive, where="fit")
        if not 1 <= self.k < len(data):
            raise InputError(f"k is {self.k}: give 1 or more, and fewer than the {len(data)} segments")
        held = np.zeros(len(data), bool)
        if self.calibrate:
            held = held_out_patients(
                groups, positive, share=self.validation_share, seed=derive_seed(self.random_state, "validation"),
                where="fit: validation patients for the calibration (calibrate=False does without)",
            )  # fmt: skip
        device = pick_device(self.device)
        shared: dict[str, Any] = {"device": device, "progress": progress}
        train, y = data[~held], votes[~held]
        seed = derive_seed(self.random_state, "detector")
        recipe = [raters, asdict(montage), signal.to_dict(), settings.to_dict(), seed]
        kept = Unfinished.named(resume, recipe, train, y)
        if found := kept.read():
            size = {"width": settings.width, "dropout": settings.dropout}
            detector = SpikeNet(len(montage.channels), signal.crop, **size).eval()
            detector.load_state_dict(found[0])
        else:
            detector = train_detector(train, y, raters, montage, signal, settings, seed=seed, **shared)
            kept.write(detector.state_dict())
        channels = torch.from_numpy(prepare(train, montage, signal))
        scaling = Scaling.fit(*channel_statistics(channels)[:2])
        trunk = ChannelTrunk.from_spikenet(detector)
        centre_codes(trunk, channels)
        self.prototypes_, self.importance_ = None, importance
        if self.prototype_phase:
            where = channel_weights(detector, channels, self.weights)
            self.prototypes_ = train_prototypes(
                trunk, train, channels, where, y, raters, scaling, importance, montage, signal, settings,
                learn_importance=self.learn_importance, seed=derive_seed(self.random_state, "prototypes"), **shared,
            )  # fmt: skip
            if self.learn_importance:
                self.importance_ = tuple(self.prototypes_.importance.tolist())
        self.model_ = CaseModel(montage, signal, scaling, detector, trunk, self.weights)
        self.cases_ = CaseBase.build(self.model_.encode(train), y, raters, groups[~held], ids[~held])
        self.validation_groups_ = np.unique(groups[held])
        self.classes_ = np.array([0, 1])
        self.calibration_ = self._calibrate(data[held], votes[held] / raters, groups[held]) if self.calibrate else None
        return self

    def _checked(self, X, montage, signal, ch_names, sfreq, *, where: str) -> np.ndarray:
        if ch_names is not None and np.ndim(X) == 3:
            if len(ch_names) != np.shape(X)[1]:
                raise InputError(f"{where}: {np.shape(X)[1]} channels in the data but {len(ch_names)} names")
            X = np.asarray(X)[:, montage.order(ch_names, where=where)]
        return check_segments(X, montage, signal, sfreq=sfreq, where=where)

    def _calibrate(self, data: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.isotonic import IsotonicRegression

        votes = self._votes(self.model_.encode(data), groups)
        # Pooled steps at 0 or 1 would claim certainty from a few patients: kept off the ends by a rule of succession.
        edge = 1 / (len(truth) + 2)
        curve = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip").fit(votes, truth >= 0.5)
        return np.asarray(curve.X_thresholds_, np.float64), np.asarray(curve.y_thresholds_, np.float64)

    # --- queries -----------------------------------------------------------------------------------------------------

    def encode(self, X, *, ch_names=None, sfreq=None) -> Encoded:
        """Codes and channel weights of segments (checked as in `fit`)."""
        check_is_fitted(self, "cases_")
        X, ch_names, sfreq = to_microvolts(X, ch_names, sfreq)
        model = self.model_
        return model.encode(self._checked(X, model.montage, model.signal, ch_names, sfreq, where="predict"))

    def kneighbors(self, X, *, groups=None, k: int | None = None, **channels) -> Found:
        """The k most similar cases of each segment (rows of `cases_`). groups: the queries' patients, excluded."""
        encoded = self.encode(X, **channels)
        names = None if groups is None else check_groups(groups, len(encoded.signals), where="predict")
        return self._search(encoded, names, k)

    def _search(self, encoded: Encoded, groups: np.ndarray | None, k: int | None = None) -> Found:
        base, k = self.cases_, k or self.k
        excluded = base.excluded_for(encoded.signals, groups)
        if self.search == "faiss":
            return Shortlist(base.codes).search(
                encoded.codes, encoded.weights, self.importance_, k, candidates=self.candidates, excluded=excluded
            )
        return search_exact(encoded.codes, encoded.weights, base.codes, self.importance_, k, excluded=excluded)

    def _votes(self, encoded: Encoded, groups: np.ndarray | None) -> np.ndarray:
        return self.cases_.fraction[self._search(encoded, groups).index].mean(1)

    def predict_vote(self, X, *, groups=None, **channels) -> Float[np.ndarray, " n"]:
        """Mean vote fraction of the k nearest cases, in [0, 1]: the paper's prediction, not calibrated."""
        return self.cases_.fraction[self.kneighbors(X, groups=groups, **channels).index].mean(1)

    def predict_proba(self, X, *, groups=None, **channels) -> Float[np.ndarray, "n 2"]:
        """(1 - p, p): calibrated probability that at least half of the raters would vote for the segment."""
        p = self.calibrated(self.predict_vote(X, groups=groups, **channels))
        return np.stack([1 - p, p], axis=1)

    def predict(self, X, *, groups=None, **channels) -> np.ndarray:
        """1 where the calibrated probability is at least one half."""
        return (self.predict_proba(X, groups=groups, **channels)[:, 1] >= 0.5).astype(np.int64)

    def calibrated(self, votes: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The isotonic curve at these vote fractions; unchanged without calibration."""
        return votes if self.calibration_ is None else np.interp(votes, *self.calibration_)

    def predict_black_box(self, X, **channels) -> Float[np.ndarray, " n"]:
        """The detector's own probability (SpikeNet), for comparison: no cases, no reasons."""
        return self.model_.black_box(self.encode(X, **channels).channels)

    def predict_prototypes(self, X, **channels) -> Float[np.ndarray, " n"]:
        """The ProtoPNet-style baseline: learned prototypes and the frozen head. Needs the prototype phase."""
        encoded = self.encode(X, **channels)
        if self.prototypes_ is None:
            raise InputError("this model has no prototypes; fit with prototype_phase=True")
        return self.prototypes_.predict(encoded.codes, encoded.weights).numpy()

    def explain(self, segment, *, group: str | None = None, id: str = "query", **channels) -> Explanation:
        """Neighbours of one segment (electrodes, samples), with the channels and the statistics that match."""
        segment = segment[None] if hasattr(segment, "ndim") and segment.ndim == 2 else segment
        encoded = self.encode(segment, **channels)
        if len(encoded.signals) != 1:
            raise InputError(f"explain takes one segment, got {len(encoded.signals)}; call it for each")
        found = self._search(encoded, None if group is None else np.array([str(group)]))
        cases = neighbours_of(encoded.codes, encoded.weights, self.cases_, found.index[0], self.importance_)
        vote = float(self.cases_.fraction[found.index[0]].mean())
        return Explanation(
            id, vote, float(self.calibrated(np.array([vote]))[0]), float(self.model_.black_box(encoded.channels)[0]),
            cases, encoded.weights[0].double().numpy(), encoded.signals[0], self.model_.montage, self.model_.signal,
        )  # fmt: skip

    def evaluate(self, X, votes, *, groups, resamples: int = 10_000, **channels) -> Evaluation:
        """AUROC, R^2, accuracy on new patients. Raises InputError when one of them was trained or calibrated on."""
        check_is_fitted(self, "cases_")
        predicted = self.predict_vote(X, **channels)
        names = check_groups(groups, len(predicted), where="evaluate")
        known = np.concatenate([self.cases_.groups, self.validation_groups_])
        check_patient_disjoint(known, names, where="evaluate")
        truth = check_votes(votes, len(predicted), self.cases_.raters, where="evaluate") / self.cases_.raters
        return evaluate_votes(predicted, truth, names, resamples=resamples, seed=self.random_state)

    # --- the memory --------------------------------------------------------------------------------------------------

    def forget(self, *, ids: Iterable[str] = (), groups: Iterable[str] = ()) -> int:
        """Take cases, or all cases of patients, out of the memory; returns how many.

        Exact for the predictions' neighbours: no later prediction can use them. The networks and the calibration keep
        what they learned from them; fit again where that matters.
        """
        check_is_fitted(self, "cases_")
        gone = self.cases_.rows(ids=ids, groups=groups)
        if len(self.cases_) - gone.sum() < self.k:
            raise InputError(f"taking out {int(gone.sum())} of {len(self.cases_)} cases leaves fewer than k = {self.k}")
        self.cases_ = self.cases_.take(~gone)
        return int(gone.sum())

    def remember(self, X, votes, *, groups, ids, **channels) -> int:
        """Add cases to the memory without training; returns how many there are then."""
        encoded = self.encode(X, **channels)
        names = check_groups(groups, len(encoded.signals), where="remember")
        count = check_votes(votes, len(encoded.signals), self.cases_.raters, where="remember")
        self.cases_ = self.cases_.added(CaseBase.build(encoded, count, self.cases_.raters, names, np.asarray(ids)))
        return len(self.cases_)
