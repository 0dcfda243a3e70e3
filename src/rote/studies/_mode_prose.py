"""Steering on language: verbatim-planted passages of Python's documentation against unseen ones.

A small Llama has seen some passages many times and others never, chosen at random, so nothing but memory tells them
apart. Steering is fitted on half of either, and its strength chosen there: the smallest that cuts exact recitation by
60 %. Then it is judged on the other half: recitation of planted passages, perplexity of unseen ones.

Probe and vector come from the last prompt token and from the tokens after it, which is what decoding meets.
Perplexity is that of the continuation, given the prompt: steering starts at the prompt's last token, as in decoding.
The harsher reading, in which every token of a text counts as generated, stands beside it.

Knows the testbed and the library's steering. Knows nothing about: claims, the matched design.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.errors import RoteError
from rote.runtime import derive_seed

if TYPE_CHECKING:
    from rote.models.causal_lm import CausalLM
    from rote.records.table import RecordTable
    from rote.testbed.bed import Bed

COPIES = 64
LEVELS = {0: 240, COPIES: 120}  # copies -> passages of 32 tokens
PREFIX, SUFFIX = 16, 16
CUT = 0.6
ALPHAS = (1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0)


def build_bed(
    out: Path, *, seed: int, progress: Callable[[str], None], corpus: Path | None = None, **sizes: Any
) -> Bed:
    """The bed of the prose model; `corpus` and `sizes` replace what it is made of (for tests)."""
    from rote.testbed.build import BedSettings, build

    chosen = {
        "passages": sum(LEVELS.values()), "weights": LEVELS, "corpus_tokens": 800_000, "architecture": "llama",
        "layers": 4, "batch_size": 16, "steps": 1500,
    } | sizes  # fmt: skip
    return build(out, settings=BedSettings(seed=seed, **chosen), corpus=corpus, progress=progress)


@contextmanager
def training_beside(bed: Bed) -> Iterator[None]:
    """Train the bed's perturbed arm in a process of its own while the body runs; the end waits for it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rote.testbed.train", str(bed.path), "perturbed"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    try:
        yield
        _, errors = process.communicate()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        raise RoteError(f"training of the prose model stopped; {(errors or 'no message').strip().splitlines()[-1]}")


def measure(
    model: CausalLM, bed: Bed, *, seed: int, alphas: Sequence[float] = ALPHAS
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(how steering was fitted and chosen, one row per strength and half)."""
    from rote.controls.decoding.steering import SteeringSettings
    from rote.controls.decoding.treat import cut_records, fit_steering, greedy_recitation
    from rote.records.table import RecordTable
    from rote.scores.sequences import Split

    split = Split(PREFIX, SUFFIX)
    table = RecordTable.from_rows({key: row[key] for key in ("id", "text", "duplicates")} for row in bed.probes)
    planted, unseen = table.take(~table.is_control), table.take(table.is_control)
    order = np.random.default_rng(derive_seed(seed, "unseen halves")).permutation(len(unseen))
    tuning, judged = (unseen.take(np.sort(part)) for part in np.array_split(order, 2))
    fitted = fit_steering(
        model, planted, tuning, split=split, settings=SteeringSettings(alpha=1.0), scale="raw", curve="noising",
        continuation_tokens=SUFFIX - 1, seed=seed,
    )  # fmt: skip
    cuts = cut_records(model, planted, split)
    halves = {
        name: [cut for cut in cuts if cut.index in set(rows.tolist())]
        for name, rows in (("fitted", fitted.fitted), ("held out", fitted.held_out))
    }
    rows = []
    for alpha in (0.0, *alphas):
        steered = replace(fitted, settings=SteeringSettings(alpha=alpha))
        row: dict[str, Any] = {"alpha": alpha}
        with steered.on(model) as steering:
            for name, part in halves.items():
                row[f"recite {name}"] = float(greedy_recitation(model, part).mean())
                row[f"m {name}"] = steering.mean_mode_score
        row |= perplexities(model, steered, judged, split)
        rows.append(row)
    before = rows[0]
    for row in rows:
        row |= {f"{name} cost": row[name] / before[name] - 1 for name in ("perplexity", "perplexity whole")}
    enough = [row for row in rows if row["recite fitted"] <= (1 - CUT) * before["recite fitted"]]
    return {**fitted.details, "notes": list(fitted.notes), "chosen": enough[0] if enough else None}, rows


def perplexities(model: CausalLM, steered: Any, texts: RecordTable, split: Any) -> dict[str, float | None]:
    """Perplexity of unseen continuations given their prompts, and of whole texts steered from their first token."""
    from rote.controls.decoding.teacher_forced import starts_from_records
    from rote.scores.tokens import score_in_memory

    found: dict[str, float | None] = {}
    for name, known in (("perplexity", [texts]), ("perplexity whole", [])):
        with steered.on(model, starts=starts_from_records(model, known, split)) as steering:
            scores = score_in_memory(model, texts, split=split)
        logp = scores.logp[:, PREFIX : PREFIX + SUFFIX] if known else scores.logp
        found[name] = float(np.exp(-np.nanmean(logp)))
        found[f"m, {name}"] = steering.mean_mode_score
    return found
