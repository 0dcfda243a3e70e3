"""What the contrast arms show: counterfactual memorization of every text, and the worth of an altered copy.

    mem(x) = mean accuracy of the half:K arms that had x - mean accuracy of those that had not        (arXiv 2112.12938)
    rho    = (nu_eq - 1)/(n_dup - 1), nu_eq = exact copies with the membership AUROC of 1 exact + n_dup - 1 altered ones
                                                                                                      (arXiv 2405.15523)

Knows the bed, scores of its arms, and the measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from rote.errors import InputError
from rote.measures import membership
from rote.measures.counterfactual import counterfactual_memorization, token_accuracy
from rote.measures.mosaic import mosaic_equivalence
from rote.measures.roc import auroc
from rote.measures.statistics import bootstrap
from rote.testbed.bed import Bed
from rote.testbed.contrasts import half_of
from rote.testbed.train import parse_arm

if TYPE_CHECKING:
    from rote.scores.table import TokenScores

RESAMPLES = 500
SATURATED = 0.995  # an AUROC above this cannot tell numbers of copies apart


def possible(bed: Bed, arms: Iterable[str]) -> tuple[str, ...]:
    """Which of "counterfactual" and "mosaic" the bed and its trained arms allow."""
    names = list(arms)
    levels = set(bed.duplicates.tolist())
    fuzzy = any(parse_arm(name).replaced for name in names) and "perturbed" in names and {0, 1} < levels
    there = (("counterfactual", bool(halves_of(names)[1])), ("mosaic", fuzzy))
    return tuple(name for name, can in there if can)


def halves_of(arms: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """(number of every half:K arm, names of those whose other half is there too)."""
    halves = {name: number for name in arms if (number := parse_arm(name).half) is not None}
    other = {number: number + 1 if number % 2 else number - 1 for number in halves.values()}
    return halves, [name for name, number in halves.items() if other[number] in other]


def counterfactual_tables(bed: Bed, scores: Mapping[str, TokenScores]) -> dict[str, list[dict]]:
    """{"counterfactual": mean of mem(x) by number of copies, "counterfactual_texts": mem(x) of every text}.

    Texts with no copies are the placebo: drawn into halves like the others, never planted, so theirs must be about 0.
    Raises: InputError unless some half:K and its other half are both there.
    """
    halves, complete = halves_of(scores)
    pairs = {(number + 1) // 2 for number in halves.values()}
    if not complete:
        asked = f"half:{2 * min(pairs) - 1},half:{2 * min(pairs)}" if pairs else "half:1,half:2,half:3,half:4"
        raise InputError(
            f"counterfactual memorization needs both halves of a split: run `rote testbed train {bed.path} --arms"
            f" {asked}`"
        )
    duplicates, seed = bed.duplicates, bed.settings.seed
    performance = np.stack([token_accuracy(scores[name].greedy, ~np.isnan(scores[name].logp)) for name in complete])
    included = np.stack([half_of(len(duplicates), halves[name], seed=seed) for name in complete])
    found = counterfactual_memorization(performance, included)
    texts = [
        {
            "id": row["id"],
            "duplicates": int(copies),
            "memorization": float(found.value[i]),
            "se": None if np.isnan(found.se[i]) else float(found.se[i]),
            "with": float(found.inside[i]),
            "without": float(found.outside[i]),
            "models_with": int(found.n_inside[i]),
            "models_without": int(found.n_outside[i]),
        }
        for i, (row, copies) in enumerate(zip(bed.probes, duplicates, strict=True))
    ]
    rows = []
    for level in sorted(set(duplicates.tolist())):
        chosen = found.value[duplicates == level]
        interval = bootstrap(chosen, seed=seed) if len(chosen) > 1 and np.ptp(chosen) > 0 else None
        rows.append(
            {
                "duplicates": level,
                "n": len(chosen),
                "models": len(complete),
                "memorization": float(chosen.mean()),
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
            }
        )
    return {"counterfactual": rows, "counterfactual_texts": texts}


def mosaic_table(bed: Bed, scores: Mapping[str, TokenScores]) -> list[dict]:
    """rho of every mosaic:R arm for every number of copies n_dup of the bed at which exact copies are not yet sure to
    be found (AUROC below 0.995: above it, nu_eq has no meaning).

    Membership score: loss against the standard arm where it was trained, else loss. Exact curve: the perturbed arm over
    all numbers of copies of the bed, 1 among them. Intervals: percentile bootstrap over the texts of each number.
    Raises: InputError when the bed or the arms do not allow it.
    """
    fuzzy = {name: number for name in scores if (number := parse_arm(name).replaced)}
    levels = sorted({level for level in bed.duplicates.tolist() if level})
    if "perturbed" not in scores or not fuzzy:
        raise InputError(
            f"mosaic memory needs the arms perturbed and mosaic:R: run `rote testbed train {bed.path} --arms"
            " standard,perturbed,mosaic:1,mosaic:4`"
        )
    if 0 not in bed.duplicates or levels[:1] != [1] or len(levels) < 2:
        raise InputError(
            "mosaic memory needs texts with 0 copies, with 1, and with more: build with --levels 0,1,2,4,8"
        )
    reference = membership.loss(scores["standard"].logp) if "standard" in scores else 0.0
    value = {name: membership.loss(scores[name].logp) - reference for name in ("perturbed", *fuzzy)}
    members = {level: np.flatnonzero(bed.duplicates == level) for level in (0, *levels)}

    def curve(arm: str, rows: Mapping[int, np.ndarray], chosen: list[int]) -> np.ndarray:
        return np.array([auroc(value[arm][rows[level]], value[arm][rows[0]]) for level in chosen])

    def rho(rows: Mapping[int, np.ndarray], arm: str, n_dup: int) -> tuple[float, float, bool]:
        exact = curve("perturbed", rows, levels)
        found = mosaic_equivalence(np.array(levels, float), exact, curve(arm, rows, [n_dup]), n_dup=n_dup)
        return float(found.nu_eq[0]), float(found.rho[0]), bool(found.extrapolated[0])

    exact = dict(zip(levels, curve("perturbed", members, levels), strict=True))
    table = []
    for arm, replaced in sorted(fuzzy.items(), key=lambda item: item[1]):
        for n_dup in levels[1:]:
            if exact[n_dup] > SATURATED:
                continue
            nu_eq, value_, extrapolated = rho(members, arm, n_dup)
            rng = np.random.default_rng([bed.settings.seed, 32, replaced, n_dup])
            spread = [
                rho(
                    {level: rows[rng.integers(0, len(rows), len(rows))] for level, rows in members.items()}, arm, n_dup
                )[1]
                for _ in range(RESAMPLES)
            ]
            low, high = np.quantile(spread, [0.025, 0.975])
            table.append(
                {
                    "replaced": replaced,
                    "n_dup": n_dup,
                    "n": len(members[n_dup]),
                    "auroc_exact": float(exact[n_dup]),
                    "auroc_fuzzy": float(curve(arm, members, [n_dup])[0]),
                    "nu_eq": nu_eq,
                    "rho": value_,
                    "low": float(low),
                    "high": float(high),
                    "extrapolated": extrapolated,
                }
            )
    return table
