"""Arms that differ from the perturbed one in a single respect: which texts have copies at all, or how exact they are.

    half:K      the copies of a random half of the texts are withheld   -> counterfactual memorization (Zhang et al.)
    mosaic:R    every copy of a text but its first has R tokens exchanged -> what a fuzzy copy is worth (Shilov et al.)

Every copy that is planted stands where the perturbed arm has it. Knows probes and tokens; nothing about training.
Sources: Zhang et al. 2023, arXiv 2112.12938, def. 2.1; Shilov et al. 2024, arXiv 2405.15523, section 3 (A_replace).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from rote.errors import InputError
from rote.records.planting import Content

if TYPE_CHECKING:
    from rote.testbed.bed import Bed


def half_of(probes: int, half: int, *, seed: int) -> Bool[np.ndarray, " probes"]:
    """Which probes arm `half:K` is shown: a random half, drawn without looking at copies; K = 2j shows the texts that
    K = 2j - 1 does not, so that two arms are enough for every text to be on both sides.

    Texts with no copies are drawn as well: nothing of them is ever planted, which makes them the placebo.
    """
    if half < 1:
        raise InputError(f"half:{half}: halves are numbered from 1")
    order = np.random.default_rng([seed, 30, (half - 1) // 2]).permutation(probes)
    shown = np.zeros(probes, bool)
    shown[order[: probes // 2]] = True
    return shown if half % 2 else ~shown


def altered(
    tokens: Int[np.ndarray, " length"],
    *,
    replaced: int,
    vocabulary: Int[np.ndarray, " tokens"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " length"]:
    """`tokens` (end-of-text last, which stays) with `replaced` different places exchanged for tokens drawn from
    `vocabulary`, a sample of running text: an exchanged token is as common as text has it, and never the same."""
    text = len(tokens) - 1
    if not 1 <= replaced <= text:
        raise InputError(f"mosaic:{replaced}: a text of {text} tokens cannot have {replaced} exchanged")
    found = np.array(tokens)
    for place in rng.choice(text, size=replaced, replace=False):
        others = vocabulary[vocabulary != tokens[place]]
        found[place] = others[rng.integers(len(others))]
    return found


def contents(bed: Bed, *, half: int | None, replaced: int) -> Content | None:
    """What stands in the place of each copy, for `rote.records.planting.plant`; None for the probes themselves."""
    if half is None and not replaced:
        return None
    seed = bed.settings.seed
    probes = [np.append(ids, np.int32(bed.eos_id)) for ids in bed.probe_tokens]
    if half is not None:
        shown = half_of(len(probes), half, seed=seed)
        return lambda record, copy: probes[record] if shown[record] else None
    background = np.load(bed.path / "background.npy", mmap_mode="r")
    sample = np.array(background[:: max(1, len(background) // 50_000)])
    sample = sample[sample != bed.eos_id]

    def content(record: int, copy: int) -> Int[np.ndarray, " length"]:
        if copy == 0:
            return probes[record]
        rng = np.random.default_rng([seed, 31, replaced, record, copy])
        return altered(probes[record], replaced=replaced, vocabulary=sample, rng=rng)

    return content
