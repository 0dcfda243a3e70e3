"""Classifier unlearners where their objectives coincide, SalUn's mask, WoodFisher's inverse, and RUM's bookkeeping."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from rote.controls.editing.classifier_unlearning import (
    UNLEARNERS,
    FineTune,
    Influence,
    L1Sparse,
    NegGrad,
    NegGradPlus,
    RandomLabel,
    Retrain,
    SalUn,
    Scrub,
    continual,
    inverse_fisher_product,
    lost_classes,
    make_unlearner,
    rum,
    saliency_mask,
    shuffled,
    unlearn,
)
from rote.controls.editing.classifier_unlearning.base import constant
from rote.controls.editing.classifier_unlearning.scrubbing import distillation
from rote.controls.editing.classifier_unlearning.sequence import steps_of
from rote.errors import InputError
from rote.internals.classifier import holdout_retraining
from rote.measures.proxies import refine
from rote.models.classifiers import ClassifierSpec, Examples, SgdRecipe, fit

SPEC = ClassifierSpec("mlp", (5,), 3, (8,))
SGD = constant(0.05, 2, batch_size=7)


@pytest.fixture(scope="module")
def setting():
    generator = torch.Generator().manual_seed(0)
    data = Examples(torch.randn(40, 5, generator=generator), torch.randint(3, (40,), generator=generator))
    model = fit(SPEC.build(0), data, SgdRecipe(epochs=20, batch_size=10), seed=0)
    return model, data, np.arange(12), np.arange(12, 40)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run(setting, unlearner, seed=3):
    model, data, forget, retain = setting
    return unlearn(model, unlearner, data.rows(forget), data.rows(retain), seed=seed)


@pytest.mark.parametrize(("special", "base"), [
    (NegGradPlus(SGD, alpha=1.0), FineTune(SGD)),
    (Scrub(SGD, msteps=-1, beta=0.0), FineTune(SGD)),
    (L1Sparse(SGD, alpha=0.0), FineTune(SGD)),
    (SalUn(SGD, fraction=1.0), RandomLabel(SGD)),
])  # fmt: skip
def test_objectives_that_coincide_give_the_same_weights(setting, special, base):
    ours, theirs = weights(run(setting, special)), weights(run(setting, base))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, weights(setting[0]))


def test_every_unlearner_runs_leaves_the_original_and_repeats_itself(setting):
    before = weights(setting[0]).clone()
    for name in UNLEARNERS:
        one, two = (weights(run(setting, make_unlearner(name))) for _ in range(2))
        assert torch.equal(one, two), name
        assert not torch.equal(one, before), name
    assert torch.equal(weights(run(setting, None)), before)
    assert torch.equal(weights(setting[0]), before)


def test_neggrad_raises_the_forget_loss_and_neggrad_plus_mixes_both(setting):
    model, data, forget, retain = setting

    def loss(made, rows):
        part = data.rows(rows)
        return float(nn.functional.cross_entropy(made(part.x), part.y).detach())

    up = run(setting, NegGrad(constant(1e-3, 5, batch_size=6)))
    assert loss(up, forget) > loss(model, forget)
    # one full-batch step of plain SGD, by hand
    plain = SgdRecipe(0.1, 1, 40, momentum=0.0, weight_decay=0.0, schedule="constant")
    twin = copy.deepcopy(model)
    objective = sum(
        factor * nn.functional.cross_entropy(twin(data.rows(rows).x), data.rows(rows).y)
        for factor, rows in ((0.8, retain), (-0.2, forget))
    )
    gradients = torch.autograd.grad(objective, list(twin.parameters()))
    wanted = torch.cat([(p - 0.1 * g).flatten() for p, g in zip(twin.parameters(), gradients, strict=True)])
    torch.testing.assert_close(weights(run(setting, NegGradPlus(plain, alpha=0.8))), wanted.detach())


def test_distillation_against_a_loop():
    teacher, student = torch.randn(4, 3, dtype=torch.double), torch.randn(4, 3, dtype=torch.double)
    p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
    wanted = sum(p[i, k] * (p[i, k] / q[i, k]).log() for i in range(4) for k in range(3)) / 4 * 16
    assert float(distillation(teacher, student, 4.0)) == pytest.approx(float(wanted))
    assert float(distillation(teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-12)


def test_scrub_counts_its_maximise_passes_from_zero(setting):
    same = [weights(run(setting, Scrub(SGD, msteps=value))) for value in (1, 5)]  # two epochs: 0 and 1
    assert torch.equal(*same)
    assert not torch.equal(same[0], weights(run(setting, Scrub(SGD, msteps=0))))


def test_saliency_mask_is_the_top_half_at_fixed_weights(setting):
    model, data, forget, _ = setting
    part, before = data.rows(forget), weights(model).clone()
    mask = saliency_mask(model, part, 0.5, batch_size=5)
    assert torch.equal(weights(model), before)
    loss = nn.functional.cross_entropy(model(part.x), part.y, reduction="sum")
    size = torch.cat([g.abs().flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    flat = torch.cat([mask[name].flatten() for name, _ in model.named_parameters()])
    assert int(flat.sum()) == round(0.5 * len(flat))
    assert size[flat].min() >= size[~flat].max() - 1e-5
    made = weights(run(setting, SalUn(SGD, fraction=0.5)))
    seen = torch.cat([
        part.flatten() for part in saliency_mask(model, data.rows(forget), 0.5, batch_size=SGD.batch_size).values()
    ])  # fmt: skip
    assert torch.equal(made[~seen], before[~seen])
    assert not torch.equal(made[seen], before[seen])


def test_inverse_fisher_is_woodfishers_recursion():
    torch.manual_seed(0)
    gradients, v = torch.randn(6, 9, dtype=torch.double), torch.randn(9, dtype=torch.double)
    inverse = torch.eye(9, dtype=torch.double) / 0.3
    for g in gradients:  # rank-one updates, one sample after the other
        moved = inverse @ g
        inverse -= torch.outer(moved, moved) / (len(gradients) + g @ moved)
    torch.testing.assert_close(inverse_fisher_product(gradients, v, 0.3), inverse @ v)


def test_influence_step_points_up_the_forget_loss(setting):
    model, data, forget, retain = setting
    made = run(setting, Influence(alpha=0.05, damping=1.0))
    part = data.rows(forget)
    gone, kept = (
        torch.cat([
            g.flatten()
            for g in torch.autograd.grad(
                nn.functional.cross_entropy(model(data.rows(rows).x), data.rows(rows).y, reduction="sum"),
                list(model.parameters()),
            )
        ])
        for rows in (forget, retain)
    )  # fmt: skip
    pull = (gone - 12 / 28 * kept) / 40
    assert float((weights(made) - weights(model)) @ pull) > 0
    assert nn.functional.cross_entropy(made(part.x), part.y) > nn.functional.cross_entropy(model(part.x), part.y)


def test_retraining_forgets_the_old_weights_and_says_what_it_cannot_redraw(setting):
    _, data, forget, retain = setting
    recipe = SgdRecipe(epochs=1)
    other = (SPEC.build(99), *setting[1:])
    for unlearner in (Retrain(recipe), Retrain(recipe, make_model=SPEC.build)):
        assert torch.equal(weights(run(setting, unlearner)), weights(run(other, unlearner)))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Linear(5, 3), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.inner(x) * self.scale

    with pytest.raises(InputError, match="scale"):
        unlearn(Scaled(), Retrain(recipe), data.rows(forget), data.rows(retain))


def test_forget_batches_leave_batch_statistics_alone(setting):
    _, data, forget, retain = setting
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[1].running_mean.fill_(7.0)  # type: ignore[union-attr]
    for unlearner, moved in ((NegGrad(SGD), False), (NegGradPlus(SGD), True)):
        made = unlearn(model, unlearner, data.rows(forget), data.rows(retain))
        assert bool((made[1].running_mean != 7.0).any()) == moved  # type: ignore[index]


# ---- RUM


def test_one_stratum_is_the_base_method(setting):
    model, data, forget, _ = setting
    for unlearner in (FineTune(SGD), NegGradPlus(SGD), SalUn(SGD)):
        found = rum(model, data, {"all": forget}, {"all": unlearner}, seed=3)
        assert torch.equal(weights(found.model), weights(run(setting, unlearner)))
    assert found.steps[0].as_dict()["unlearner"]["method"] == "salun"


def test_retain_sets_are_nested_and_never_hold_what_is_done(setting):
    strata = {"high": np.array([1, 2]), "low": np.array([3]), "medium": np.array([0, 9])}
    found = list(steps_of(12, strata, already=[5]))
    assert [name for name, _, _ in found] == ["low", "medium", "high"]
    done = {5}
    for (_, rows, retained), (_, _, before) in zip(found, [(None, None, np.arange(12)), *found], strict=False):
        done |= set(rows.tolist())
        assert set(retained.tolist()) == set(range(12)) - done
        assert set(retained.tolist()) < set(before.tolist())
    with pytest.raises(InputError, match="disjoint"):
        list(steps_of(12, {"low": np.array([1]), "high": np.array([1])}))
    with pytest.raises(InputError, match="row 12"):
        list(steps_of(12, {"low": np.array([12])}))


def test_doing_nothing_for_a_stratum_still_removes_it_from_the_retain_set(setting):
    model, data, forget, _ = setting
    strata = {"low": forget[:6], "high": forget[6:]}
    found = rum(model, data, strata, {"low": None, "high": FineTune(SGD)}, seed=0)
    assert [step.retain for step in found.steps] == [34, 28]
    with pytest.raises(InputError, match="the plan is for"):
        rum(model, data, strata, {"low": None})


def test_the_shuffled_control_keeps_sizes_and_examples():
    strata = {"low": np.arange(3), "medium": np.arange(3, 8), "high": np.arange(8, 12)}
    found = shuffled(strata, seed=1)
    assert [len(part) for part in found.values()] == [3, 5, 4]
    np.testing.assert_array_equal(np.sort(np.concatenate(list(found.values()))), np.arange(12))
    assert any(set(found[name]) != set(strata[name]) for name in strata)


def test_a_forgotten_class_is_said(setting):
    model, data, _, _ = setting
    rows = np.flatnonzero(data.y.numpy() == 2)
    assert lost_classes(data.rows(rows), data.rows(np.flatnonzero(data.y.numpy() != 2))) == [2]
    found = rum(model, data, {"all": rows}, {"all": None})
    assert "class 2" in found.notes[0]


def test_continual_requests_are_scored_on_the_model_as_it_is_then(setting):
    model, data, _, _ = setting
    generator = torch.Generator().manual_seed(9)
    held = Examples(torch.randn(20, 5, generator=generator), torch.randint(3, (20,), generator=generator))
    seen = []

    def strata_of(current, rows):
        scores = holdout_retraining(current, data.x, held, recipe=SGD)
        seen.append(scores)
        return refine(rows, scores, k=2, proxy="holdout_retraining")

    plan = {"low": None, "high": NegGradPlus(SGD, alpha=0.9)}
    found = continual(model, data, [np.arange(6), np.arange(6, 10)], strata_of, plan, seed=1)
    assert not np.allclose(*seen)
    assert [step.retain for result in found for step in result.steps] == [37, 34, 32, 30]


def test_settings_by_name_and_what_is_wrong_with_them(setting):
    made = make_unlearner("neggrad+", {"alpha": 0.9, "learning_rate": 0.02, "epochs": 3})
    assert made == NegGradPlus(SgdRecipe(0.02, 3, schedule="constant"), alpha=0.9)
    assert make_unlearner("nothing") is None
    for name, settings, words in (
        ("salum", {}, "did you mean salun"),
        ("salun", {"fractoin": 0.5}, "did you mean fraction"),
        ("ft", {"epochs": "ten"}, "must be of kind int"),
        ("neggrad+", {"alpha": 2}, r"alpha is 2"),
        ("nothing", {"alpha": 2}, "has no setting"),
    ):
        with pytest.raises(InputError, match=words):
            make_unlearner(name, settings)
    model, data, forget, retain = setting
    with pytest.raises(InputError, match="diverged"):
        unlearn(model, FineTune(constant(1e12, 3)), data.rows(forget), data.rows(retain))
    with pytest.raises(InputError, match="at least one"):
        unlearn(model, FineTune(), data.rows([]), data.rows(retain))
