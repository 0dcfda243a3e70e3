"""The proxies of a classifier's training against closed forms, loops and slow twins; tiny networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rote.errors import InputError
from rote.internals.classifier import (
    CurvatureRecorder,
    LearningEvents,
    draw_subsets,
    holdout_retraining,
    loss_curvature,
    train_subset_ensemble,
)
from rote.measures.proxies import learning_event
from rote.models.classifiers import ClassifierSpec, Examples, SgdRecipe, fit, penultimate, probabilities

SPEC = ClassifierSpec("mlp", (5,), 3, (8,))
RECIPE = SgdRecipe(learning_rate=0.1, epochs=3, batch_size=7)


def examples(count=30, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return Examples(torch.randn(count, 5, generator=generator), torch.randint(classes, (count,), generator=generator))


def test_learning_events_are_the_train_mode_logits_before_each_update():
    """A twin notes every step by hand; dropout makes train mode visible, and an update would move the logits."""
    data, noted = examples(), []
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    recorder = LearningEvents(len(data.y))

    def twin(ids, logits, labels):
        noted.append((ids.numpy(), logits.double().softmax(-1).numpy(), labels.numpy()))
        assert model.training

    fit(model, data, RECIPE, seed=1, observers=[recorder, twin])
    found = recorder.scores()
    sums = {name: np.zeros(30) for name in found}
    for ids, p, y in noted:
        for name, values in learning_event(p, y).items():
            for row, value in zip(ids, values, strict=True):
                sums[name][row] += value
    for name, values in found.items():
        np.testing.assert_allclose(values, sums[name] / RECIPE.epochs, atol=1e-6)
    np.testing.assert_array_equal(recorder.counts, 3)
    assert recorder.seconds > 0


def test_learning_events_name_what_was_never_shown():
    recorder = LearningEvents(4)
    recorder(torch.tensor([0, 1, 3]), torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(InputError, match="example 2"):
        recorder.scores()
    recorder(torch.tensor([4]), torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(InputError, match="outside"):
        recorder.scores()
    growing = LearningEvents()
    growing(torch.tensor([1, 0]), torch.zeros(2, 2), torch.tensor([0, 1]))
    np.testing.assert_allclose(growing.scores()["confidence"], 0.5)
    with pytest.raises(InputError, match=r"\[batch, classes\]"):
        growing(torch.tensor([1, 0]), torch.zeros(3, 2), torch.tensor([0, 1]))


def test_certain_logits_give_no_nan():
    recorder = LearningEvents(1)
    recorder(torch.tensor([0]), torch.tensor([[1e6, 0.0]]), torch.tensor([0]))
    assert recorder.scores()["negative_entropy"][0] == 0


@pytest.mark.parametrize("h", [1e-2, 1e-3])
def test_curvature_of_a_linear_softmax_is_its_hessian_vector_product(h):
    """H = W^T (diag p - p p^T) W; the difference of gradients is H z up to a relative error O(h)."""
    data = examples(12)
    model = nn.Linear(5, 3).double()
    x = data.x.double()
    found = loss_curvature(model, x, data.y, h=h, batch_size=5)
    w = model.weight.detach()
    for i in range(12):
        p = model(x[i]).detach().softmax(-1)
        g = w.T @ (p - torch.eye(3, dtype=torch.double)[data.y[i]])
        z = h * g.sign() / (g.sign().norm() + 1e-7)
        wanted = (w.T @ (torch.diag(p) - torch.outer(p, p)) @ w @ z).norm()
        assert found[i] == pytest.approx(float(wanted), rel=5 * h)


def test_curvature_is_per_example_keeps_the_mode_and_averages_over_epochs():
    data, model = examples(), SPEC.build(0).train()
    whole = loss_curvature(model, data.x, data.y)
    np.testing.assert_allclose(loss_curvature(model, data.x[4:5], data.y[4:5]), whole[4:5], rtol=1e-3, atol=1e-7)
    assert model.training
    recorder = CurvatureRecorder(model, data)
    recorder(0, 0.0)
    recorder(1, 0.0)
    np.testing.assert_allclose(recorder.scores(), whole, rtol=1e-6)
    with pytest.raises(InputError, match="floating-point"):
        loss_curvature(model, data.y[:, None], data.y)


def test_holdout_retraining_leaves_the_model_and_moves_the_copy():
    data, model = examples(), fit(SPEC.build(0), examples(), RECIPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = holdout_retraining(model, data.x, examples(20, seed=9), seed=3)
    assert (found > 0).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    np.testing.assert_array_equal(found, holdout_retraining(model, data.x, examples(20, seed=9), seed=3))
    with pytest.raises(InputError, match="unseen data"):
        holdout_retraining(model, data.x, data)
    with pytest.raises(InputError, match=r"classes 0\.\.2"):
        holdout_retraining(model, data.x, examples(20, seed=9, classes=9))


def test_holdout_retraining_stops_when_the_loss_no_longer_falls():
    """At a vanishing rate every epoch's loss is the same: one best epoch and `patience` more are run."""
    seen, held = [], examples(20, seed=9)
    model = SPEC.build(0)

    class Counting(nn.Sequential):
        def forward(self, x):
            if self.training:
                seen.append(len(x))
            return super().forward(x)

    counting = Counting(*model)
    recipe = SgdRecipe(learning_rate=1e-30, epochs=30, batch_size=20, schedule="constant", weight_decay=0)
    holdout_retraining(counting, examples().x, held, recipe=recipe, patience=4)
    assert 5 <= len(seen) <= 12  # float rounding of a shuffled sum may find a "better" loss or two


@pytest.mark.parametrize("spec", [SPEC, ClassifierSpec("cnn", (4, 4), 3, (2,))])
def test_the_stacked_ensemble_is_the_models_trained_one_by_one(spec):
    data = examples()
    if spec is not SPEC:
        data = Examples(torch.randn(30, 4, 4, generator=torch.Generator().manual_seed(2)), data.y)
    member = draw_subsets(4, 30, 0.7, seed=1)
    assert (member.sum(1) == 21).all()
    fast, slow = (
        train_subset_ensemble(spec.build, data, RECIPE, member=member, test=data, seed=5, stacked=stacked)
        for stacked in (True, False)
    )
    np.testing.assert_array_equal(fast.correct, slow.correct)
    np.testing.assert_array_equal(fast.test_correct, fast.correct)
    assert fast.correct.mean() != fast.correct[0].mean()  # the models differ


def test_batch_normalisation_is_trained_one_by_one_and_bad_subsets_are_refused():
    def normed(seed):
        torch.manual_seed(seed % 2**31)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    data, member = examples(), draw_subsets(2, 30, 0.7)
    found = train_subset_ensemble(normed, data, SgdRecipe(epochs=1), member=member)
    assert found.correct.shape == (2, 30)
    uneven = member.copy()
    uneven[0, np.flatnonzero(~uneven[0])[0]] = True
    with pytest.raises(InputError, match="equally large"):
        train_subset_ensemble(SPEC.build, data, RECIPE, member=uneven)
    with pytest.raises(InputError, match="0 < share < 1"):
        draw_subsets(4, 30, 1.0)


def test_classifiers_say_what_is_wrong_with_their_input():
    data, model = examples(), SPEC.build(0)
    with pytest.raises(InputError, match=r"classes 0\.\.2"):
        fit(model, Examples(data.x, data.y + 1), RECIPE)
    with pytest.raises(InputError, match="cannot read inputs of shape"):
        fit(model, Examples(data.x[:, :4], data.y), RECIPE)
    with pytest.raises(InputError, match="diverged"):
        fit(model, Examples(data.x * 1e20, data.y), SgdRecipe(learning_rate=1e20))
    assert penultimate(SPEC.build(0), data.x).shape == (30, 8)
    np.testing.assert_allclose(probabilities(SPEC.build(0), data.x).sum(1), 1)
