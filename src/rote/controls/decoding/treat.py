"""Fit steering from what must be forgotten and what must stay: prompts, probe, causal layer, vector, in one call.

    memorized prompts   prefixes of forget records, a seeded half of them; the other half is held out
    general prompts     beginnings of retain records, cut to the lengths of the memorized prompts
    pairs to patch      each memorized prompt with the general one nearest in length, ending in the same token

The retain text should be of the same kind as the forget records: whatever else tells the two apart, the probe will read
too. `details` says how much a bag of tokens alone tells them apart.

Source: Zhang 2025, arXiv 2510.22099; forget and retain records as the two prompt classes are reconstructed. Knows
nothing about: audits, files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rote.controls.decoding.blocks import blocks_of, check_layer, hf_of, residual_states
from rote.controls.decoding.labelling import GENERAL, MEMORIZED, LabelledPrompts
from rote.controls.decoding.mode_probe import ModeProbe, decoding_positions, group_folds
from rote.controls.decoding.patching import CausalLayer, Pair, causal_layer
from rote.controls.decoding.steering import Starts, SteeringSettings, mode_steering
from rote.controls.decoding.steering_vector import SCALES, SteeringVector, steering_vector, vector_from_states
from rote.errors import InputError
from rote.runtime import derive_seed
from rote.scores.continuations import greedy_continuations
from rote.scores.sequences import Sequence as Cut
from rote.scores.sequences import Split, prepare

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable

MOST_PROMPTS = 1_000  # of either mode: more do not change a mean or a linear probe of a few thousand features
MOST_PAIRS = 64
SURFACE = 0.05  # a bag of tokens this close to the probe's AUC: the probe may read topic


@dataclass(frozen=True)
class FittedSteering:
    """Everything `mode_steering` needs for one model, and how it was found."""

    probe: ModeProbe
    vector: SteeringVector
    settings: SteeringSettings
    causal: CausalLayer | None
    fitted: Int[np.ndarray, " records"]
    held_out: Int[np.ndarray, " records"]
    details: dict[str, Any]
    notes: tuple[str, ...]

    def on(self, model: CausalLM, *, starts: Starts | None = None):
        """The context manager that steers `model`."""
        return mode_steering(model, self.probe, self.vector, starts=starts, **self.settings.as_dict())


def fit_steering(
    model: CausalLM,
    forget: RecordTable,
    retain: RecordTable,
    *,
    split: Split | None = None,
    settings: SteeringSettings | None = None,
    layer: int | None = None,
    rule: str = "increment",
    curve: str = "denoising",
    kind: str = "mean_difference",
    scale: str = "residual",
    fit_share: float = 0.5,
    continuation_tokens: int = 0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> FittedSteering:
    """Fit probe and vector at the causally chosen layer (or at `layer`).

    Args:
        split: how forget records are cut into prompt and continuation.
        settings: of the steering itself.
        rule, curve: how the layer is chosen from the patching curves; see `causal_layer`.
        kind, scale: of the vector; see `rote.controls.decoding.steering_vector`.
        fit_share: share of forget records to fit on, in (0, 1]; the rest is held out. Groups stay together.
        continuation_tokens: probe and mean difference also read so many positions inside each record's own
            continuation, which is what they meet while decoding. Memory grows with it: the states of all blocks at all
            these positions are held.
    Raises: InputError when fewer than two groups are left to fit on in either set.
    """
    tell = progress or (lambda stage, done, total: None)
    settings = settings or SteeringSettings()
    cuts, is_fitted, labelled = prompts_of_both_modes(
        model, forget, retain, split=split, fit_share=fit_share, seed=seed
    )
    fitted = [cut for cut, chosen in zip(cuts, is_fitted, strict=True) if chosen][:MOST_PROMPTS]
    memorized, general = labelled.prompts[: len(fitted)], labelled.prompts[len(fitted) :]
    tell("mode probe", 0, 1)
    probe = ModeProbe.fit(model, labelled, continuation_tokens=continuation_tokens, seed=derive_seed(seed, "probe"))
    tell("mode probe", 1, 1)
    causal = None
    if layer is None:
        tell("causal layer", 0, 1)
        pairs = nearest_pairs(fitted, general)[:MOST_PAIRS]
        causal = causal_layer(model, pairs, rule=rule, curve=curve)
        layer = causal.l_star
        tell("causal layer", 1, 1)
    kept: dict[str, Any] = {
        "layer": layer, "kind": kind, "scale": scale, "probe": probe, "seed": derive_seed(seed, "vector"),
    }  # fmt: skip
    if continuation_tokens and kind == "mean_difference":
        vector = vector_from_states(*decoding_states(model, labelled, layer, continuation_tokens), **kept)
    else:
        pairs = [(i, len(memorized) + i % len(general)) for i in range(len(memorized))]
        vector = steering_vector(model, labelled, pairs=pairs, **kept)
    at = probe.figures[probe.layers.index(layer)]
    notes = ["steering is a reconstruction: the paper's method section was not available (arXiv 2510.22099)"]
    bag = (probe.baselines or {})["bag of tokens"].auc
    if bag >= at.auc - SURFACE:
        notes.append(
            f"the prompts' tokens alone tell forget from retain (held-out AUC {bag:.2f}, probe {at.auc:.2f}):"
            " the probe may read topic; use retain text of the same kind as the forget records"
        )
    details = {
        "reconstructed": True,
        "layer": layer,
        "layer_chosen_by": "the caller" if causal is None else f"activation patching, {causal.rule} of {causal.curve}",
        "probe": probe.as_rows(),
        "probe_best_layer": probe.best_layer,
        "vector": vector.as_dict(),
        "settings": settings.as_dict(),
        "causal": None if causal is None else causal.as_dict(),
        "prompts": {"memorized": len(memorized), "general": len(general), "held_out": int((~is_fitted).sum())},
    }
    rows = np.array([cut.index for cut in cuts])
    return FittedSteering(probe, vector, settings, causal, rows[is_fitted], rows[~is_fitted], details, tuple(notes))


def prompts_of_both_modes(
    model: CausalLM, forget: RecordTable, retain: RecordTable, *, split: Split | None, fit_share: float, seed: int
) -> tuple[list[Cut], Bool[np.ndarray, " records"], LabelledPrompts]:
    """(forget records that can be asked, which of them are fitted on, prompts: memorized ones, then general ones)."""
    if not 0 < fit_share <= 1:
        raise InputError(f"fit_share must lie in (0, 1], not {fit_share}")
    cuts = cut_records(model, forget, split)
    groups = record_groups(forget)
    is_fitted = fitting_half([groups[cut.index] for cut in cuts], fit_share, seed)
    fitted = [cut for cut, chosen in zip(cuts, is_fitted, strict=True) if chosen][:MOST_PROMPTS]
    documents = len({groups[cut.index] for cut in fitted})
    if documents < 2:
        raise InputError(
            f"{fit_share:.0%} of the forget records are fitted on, which is {documents} document(s): a probe needs at"
            " least 2 documents, one to learn from and one to be judged by; give more forget records"
        )
    general, tails, general_groups = matched_cuts(model, retain, [cut.prefix for cut in fitted], seed=seed)
    labelled = LabelledPrompts.known(
        [*(tuple(cut.ids[: cut.prefix]) for cut in fitted), *general],
        [MEMORIZED] * len(fitted) + [GENERAL] * len(general),
        groups=[*(f"forget/{groups[cut.index]}" for cut in fitted), *(f"retain/{name}" for name in general_groups)],
        continuations=[*(tuple(cut.ids[cut.prefix : cut.prefix + cut.suffix]) for cut in fitted), *tails],
    )
    return cuts, is_fitted, labelled


def check_steerable(
    model: CausalLM,
    forget: RecordTable,
    retain: RecordTable,
    *,
    split: Split | None = None,
    layer: int | None = None,
    scale: str = "residual",
    fit_share: float = 0.5,
    seed: int = 0,
) -> None:
    """Refuse what `fit_steering` would refuse, without a pass of the model: an unknown architecture, block or scale,
    too few documents of a mode. Raises InputError."""
    blocks_of(hf_of(model))
    if layer is not None:
        check_layer(hf_of(model), layer)
    if scale not in SCALES:
        raise InputError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}")
    _, _, labelled = prompts_of_both_modes(model, forget, retain, split=split, fit_share=fit_share, seed=seed)
    group_folds(labelled.labels, labelled.groups, seed=seed)


def decoding_states(
    model: CausalLM, labelled: LabelledPrompts, layer: int, continuation_tokens: int
) -> tuple[Float[np.ndarray, "positions width"], Int[np.ndarray, " positions"]]:
    """(states of one block, labels) at the last prompt token and inside each continuation."""
    sequences, positions = decoding_positions(labelled, continuation_tokens)
    states = residual_states(model, sequences, layers=[layer], positions=positions)[:, 0]
    return states, np.repeat(labelled.labels, [len(wanted) for wanted in positions])


def cut_records(model: CausalLM, records: RecordTable, split: Split | None) -> list[Cut]:
    """Records that can be asked, in file order: ids, prefix and suffix lengths. Raises InputError when there are none
    with at least one prompt token."""
    prepared = prepare(model, records, split)
    cuts = [cut for cut in prepared.sequences(np.sort(prepared.order)) if cut.prefix >= 1 and cut.suffix >= 1]
    if not cuts:
        raise InputError("no forget record has a prefix and a suffix: there is nothing to steer away from")
    return cuts


def record_groups(records: RecordTable) -> list[str]:
    """The document of each record: its group, else its own id."""
    return [
        name if group is None else f"group {group}"
        for name, group in zip(records.column("id"), records.column("group"), strict=True)
    ]


def fitting_half(groups: Sequence[str], share: float, seed: int) -> Bool[np.ndarray, " records"]:
    """Which records to fit on: whole groups in a seeded order until `share` of the records is reached."""
    names = sorted(set(groups))
    order = np.random.default_rng(derive_seed(seed, "fitted half")).permutation(len(names))
    sizes = np.array([groups.count(names[place]) for place in order])
    taken = np.concatenate([[0], np.cumsum(sizes)[:-1]]) < share * len(groups) - 1e-9
    chosen = {names[place] for place, take in zip(order, taken, strict=True) if take}
    return np.array([group in chosen for group in groups])


def matched_prompts(
    model: CausalLM, retain: RecordTable, lengths: Sequence[int], *, seed: int
) -> tuple[list[tuple[int, ...]], list[str]]:
    """(prompts, groups) of `matched_cuts`."""
    prompts, _, groups = matched_cuts(model, retain, lengths, seed=seed)
    return prompts, groups


def matched_cuts(
    model: CausalLM, retain: RecordTable, lengths: Sequence[int], *, seed: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[str]]:
    """(prompts, what follows each, groups): beginnings of retain records, with lengths drawn from those of the
    memorized prompts, so that length cannot tell the modes apart. Records with fewer than 2 tokens are left out."""
    prepared = prepare(model, retain, Split(1, 1, "truncate"))
    rng = np.random.default_rng(derive_seed(seed, "lengths"))
    names, prompts, tails, groups = record_groups(retain), [], [], []
    for cut in prepared.sequences(np.sort(prepared.order)[:MOST_PROMPTS]):
        wanted = int(rng.choice(np.asarray(lengths)))
        if len(cut.ids) >= 2:
            prompts.append(tuple(cut.ids[:wanted]))
            tails.append(tuple(cut.ids[wanted:]))
            groups.append(names[cut.index])
    if not prompts:
        raise InputError("no retain record has two tokens or more: there is no general text to steer towards")
    return prompts, tails, groups


def nearest_pairs(fitted: Sequence[Cut], general: Sequence[tuple[int, ...]]) -> list[Pair]:
    """Each memorized prompt with a general one: both sorted by length, then taken in step.

    The general one ends in the memorized one's last token: with another token there, exchanging the state after the
    first block would already exchange what is predicted, whatever the mode, and that block would always be chosen.
    """
    by_length = sorted(range(len(fitted)), key=lambda i: fitted[i].prefix)
    others = sorted(general, key=len)
    pairs = []
    for place, i in enumerate(by_length):
        cut, other = fitted[i], others[place * len(others) // len(by_length)]
        other = (*other[:-1], int(cut.ids[cut.prefix - 1]))
        answer = tuple(cut.ids[cut.prefix : cut.prefix + cut.suffix])
        pairs.append(Pair(tuple(cut.ids[: cut.prefix]), other, answer))
    rng = np.random.default_rng(0)
    return [pairs[place] for place in rng.permutation(len(pairs))]


def greedy_recitation(model: CausalLM, cuts: Sequence[Cut]) -> Bool[np.ndarray, " records"]:
    """Which suffixes greedy generation from the prefix reproduces exactly: what a user of `generate` would see."""
    made = greedy_continuations(model, [cut.ids[: cut.prefix] for cut in cuts], [cut.suffix for cut in cuts])
    return np.array(
        [
            made[row, : cut.suffix].tolist() == list(cut.ids[cut.prefix : cut.prefix + cut.suffix])
            for row, cut in enumerate(cuts)
        ]
    )


def recitation_before_after(
    model: CausalLM,
    forget: RecordTable,
    fitted: FittedSteering,
    *,
    split: Split | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Exact greedy recitation without and with the steering, on the records it was fitted on and on the others:
    {"fitted": {"records", "before", "after", "mean_mode_score"}, "held_out": ...}; rates in [0, 1]."""
    tell = progress or (lambda stage, done, total: None)
    cuts = cut_records(model, forget, split)
    found: dict[str, dict[str, Any]] = {}
    for number, (name, rows) in enumerate((("fitted", fitted.fitted), ("held_out", fitted.held_out))):
        tell("greedy recitation", number, 2)
        part = [cut for cut in cuts if cut.index in set(rows.tolist())]
        if not part:
            found[name] = {"records": 0, "before": None, "after": None, "mean_mode_score": None}
            continue
        before = greedy_recitation(model, part)
        with fitted.on(model) as steering:
            after = greedy_recitation(model, part)
        found[name] = {
            "records": len(part),
            "before": float(before.mean()),
            "after": float(after.mean()),
            "mean_mode_score": steering.mean_mode_score,
        }
    tell("greedy recitation", 2, 2)
    return found
