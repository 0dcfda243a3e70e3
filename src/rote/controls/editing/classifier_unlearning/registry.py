"""Unlearners by name, with settings given as plain values: what a command line or a configuration file has.

Knows nothing about: what the methods do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from rote.controls.editing.classifier_unlearning.base import Unlearner
from rote.controls.editing.classifier_unlearning.fine_tuning import FineTune, L1Sparse, Retrain
from rote.controls.editing.classifier_unlearning.gradient_ascent import NegGrad, NegGradPlus
from rote.controls.editing.classifier_unlearning.relabelling import RandomLabel, SalUn
from rote.controls.editing.classifier_unlearning.scrubbing import Scrub
from rote.controls.editing.classifier_unlearning.woodfisher import Influence
from rote.errors import InputError
from rote.models.classifiers import SgdRecipe

NOTHING = "nothing"
UNLEARNERS: dict[str, type[Unlearner]] = {
    kind.slug: kind
    for kind in (Retrain, FineTune, L1Sparse, NegGrad, NegGradPlus, Scrub, RandomLabel, SalUn, Influence)
}
_RECIPE = {item.name: item.type for item in fields(SgdRecipe)}


def make_unlearner(name: str, settings: Mapping[str, Any] | None = None) -> Unlearner | None:
    """The unlearner called `name` (None for `nothing`); settings are its own fields or those of its SGD recipe.

    Errors: `InputError` for an unknown name or setting, or a value of the wrong kind.
    """
    given = dict(settings or {})
    if name == NOTHING:
        if given:
            raise InputError(f"'nothing' has no setting {next(iter(given))!r}")
        return None
    if name not in UNLEARNERS:
        near = get_close_matches(name, [NOTHING, *UNLEARNERS], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join([NOTHING, *UNLEARNERS])}"
        raise InputError(f"no unlearner {name!r}; {hint}")
    made = UNLEARNERS[name]()
    own = {item.name: item.type for item in fields(made) if item.name not in ("recipe", "make_model")}
    for key, value in given.items():
        kind = own.get(key) or _RECIPE.get(key)
        if kind is None:
            near = get_close_matches(key, [*own, *_RECIPE], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join([*own, *_RECIPE])}"
            raise InputError(f"{name} has no setting {key!r}; {hint}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if (
            (kind == "str") != isinstance(value, str)
            or (kind == "int" and not isinstance(value, int))
            or (kind == "float" and not number)
        ):
            raise InputError(f"{name}.{key} is {value!r}: it must be of kind {kind}")
    recipe = replace(made.recipe, **{key: value for key, value in given.items() if key in _RECIPE and key not in own})
    return replace(made, recipe=recipe, **{key: value for key, value in given.items() if key in own})
