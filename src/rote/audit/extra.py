"""Membership attacks that need passes of their own: their inputs, per record row, as plain JSON values.

Knows nothing about: scores on disk, findings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rote.audit.settings import AuditSettings
from rote.errors import InputError
from rote.measures import membership
from rote.models.causal_lm import CausalLM
from rote.records.table import RecordTable
from rote.scores.conditional import choose_shots, conditional_logp
from rote.scores.gradients import gradient_norms
from rote.scores.neighbours import neighbour_scores
from rote.scores.sequences import PreparedRecords
from rote.scores.tokens import score_in_memory

Progress = Callable[[str, int, int], None]


def extra_passes(model: CausalLM, prepared: PreparedRecords, settings: AuditSettings, tell: Progress) -> dict:
    """{"inputs": {membership input: {row: value or list}}, "notes": {attack: what was done}} for `settings.attacks`."""
    records, split = prepared.records, prepared.split
    inputs: dict[str, dict[int, object]] = {}
    notes: dict[str, object] = {}
    if "lowercase" in settings.attacks:
        tell("lowercase [records]", 0, len(records))
        block = score_in_memory(model, _lowercased(records), split=split, batch_tokens=settings.batch_tokens)
        inputs["logp_lowercase"] = _by_row(block.index, membership.loss(block.logp))
        tell("lowercase [records]", len(records), len(records))
    if {"recall", "con_recall"} & set(settings.attacks):
        shots = choose_shots(records, count=settings.shots, seed=settings.seed)
        evaluated = shots.evaluated(len(records))
        kinds = [("logp_nonmember_prefix", shots.unseen)]
        if "con_recall" in settings.attacks:
            if not len(shots.seen):
                raise InputError("con_recall needs records known to be members (member true, or duplicates above 0)")
            kinds.append(("logp_member_prefix", shots.seen))
        for name, rows in kinds:
            context = [
                ids if text is None else text
                for text, ids in zip(
                    records.take(rows).column("text"), records.take(rows).column("token_ids"), strict=True
                )
            ]
            found = conditional_logp(
                model,
                records,
                context,
                split=split,
                batch_tokens=settings.batch_tokens,
                progress=lambda done, total, name=name: tell(name, done, total),
            )
            keep = np.isin(found.index, evaluated)
            inputs[name] = _by_row(found.index[keep], found.mean[keep])
            notes[name] = {"shots": len(rows), "records whose context lost shots": int((found.dropped > 0).sum())}
    if "neighbourhood" in settings.attacks:
        control = RecordTable(records.table.filter(records.is_control)) if records.is_control.any() else None
        found = neighbour_scores(
            model,
            records,
            count=settings.neighbours,
            control=control,
            seed=settings.seed,
            split=split,
            progress=lambda done, total: tell("neighbours [texts]", done, total),
        )
        inputs["neighbour_means"] = {
            int(row): values.tolist() for row, values in zip(found.index, found.mean_logp, strict=True)
        }
        notes["neighbour_means"] = {"method": found.method}
    if "gradient_norm" in settings.attacks:
        found = gradient_norms(
            model, records, split=split, progress=lambda done, total: tell("gradient norms [records]", done, total)
        )
        inputs["norms"] = {int(row): [float(value)] for row, value in zip(found.index, found.mean, strict=True)}
    return {"inputs": inputs, "notes": notes}


def _by_row(index: np.ndarray, values: np.ndarray) -> dict[int, object]:
    return {int(row): float(value) for row, value in zip(index, values, strict=True)}


def _lowercased(records: RecordTable) -> RecordTable:
    texts = records.column("text")
    if any(text is None for text in texts):
        raise InputError("the lowercase attack needs records with text, not token ids")
    return RecordTable.from_rows(
        {"id": name, "text": text.lower()} for name, text in zip(records.column("id"), texts, strict=True)
    )
