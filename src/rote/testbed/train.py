"""Train the arms of a bed: same initial weights, same order of batches, different copies.

    standard            no copies                                perturbed     copies over the bed's own window
    early:0-25          copies in that percentage of training    late:75-100   (any name:A-B)
    dilute:x2           the same copies in a stream N times as long
    half:1, half:2, ..  the copies of a random half of the texts; 2j is the other half of 2j - 1
    mosaic:4            one exact copy of each text, R = 4 tokens exchanged at random in each of its other copies

Each arm ends as an ordinary Hugging Face directory `bed/arms/<arm>/` (weights, tokenizer, `arm.json`, `copies.jsonl`),
there whole or not at all; a finished arm is not trained again, an interrupted one goes on from its last checkpoint.
Arms are independent, so they run in parallel processes of one thread each: matrices this small gain nothing from
threads.

Knows nothing about measures.
Source: Wei et al. 2025, "Hubble", arXiv 2510.19811, section 4 (standard/perturbed, timing and dilution runs).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rote.atomic import whole_directory
from rote.errors import InputError, RoteError, RunMismatchError
from rote.records.planting import write_log
from rote.testbed.bed import Bed

#: progress(arm, step, steps)
Progress = Callable[[str, int, int], None]

CHECKPOINT_EVERY = 500
_DEFAULTS = {"early": "early:0-25", "late": "late:75-100", "dilute": "dilute:x2"}


@dataclass(frozen=True)
class Arm:
    """One training run of a bed. `window` None is the standard arm; `dilution` N makes the stream N times as long;
    `half` withholds the copies of half of the texts; `replaced` tokens are exchanged in every copy but the first."""

    name: str
    window: tuple[float, float] | None
    dilution: int = 1
    half: int | None = None
    replaced: int = 0

    @property
    def folder(self) -> str:
        """The name as a path component: built from checked letters and digits only."""
        return self.name.replace(":", "_")


def parse_arm(text: str, *, window: tuple[float, float] = (0.0, 1.0)) -> Arm:
    """`standard`, `perturbed`, `NAME:A-B` (percent of training), `dilute:xN`, `half:K`, `mosaic:R`; `early`, `late`,
    `dilute` have the usual values.

    Raises: InputError for anything else.
    """
    name = _DEFAULTS.get(text, text)
    if name == "standard":
        return Arm(name, None)
    if name == "perturbed":
        return Arm(name, window)
    if match := re.fullmatch(r"dilute:x(\d{1,4})", name):
        factor = int(match[1])
        if factor < 1:
            raise InputError(f"arm {text!r}: the dilution must be x1 or more")
        return Arm(name, window, factor)
    if match := re.fullmatch(r"(half|mosaic):(\d{1,4})", name):
        number = int(match[2])
        if number < 1:
            raise InputError(f"arm {text!r}: the number must be 1 or more")
        return Arm(name, window, half=number) if match[1] == "half" else Arm(name, window, replaced=number)
    if match := re.fullmatch(r"[a-z]{1,20}:(\d{1,3})-(\d{1,3})", name):
        low, high = int(match[1]) / 100, int(match[2]) / 100
        if not 0 <= low < high <= 1:
            raise InputError(f"arm {text!r}: a window is A-B in percent with 0 <= A < B <= 100")
        return Arm(name, (low, high))
    raise InputError(
        f"unknown arm {text!r}: use standard, perturbed, early:0-25, late:75-100, NAME:A-B, dilute:xN, half:K or"
        " mosaic:R"
    )


def arm_directory(bed: Bed, arm: Arm) -> Path:
    return bed.path / "arms" / arm.folder


def is_finished(bed: Bed, arm: Arm) -> bool:
    """True when the arm's checkpoint is there. Raises: RunMismatchError when it was trained on another bed."""
    path = arm_directory(bed, arm) / "arm.json"
    if not path.exists():
        return False
    if json.loads(path.read_text(encoding="utf-8"))["bed"] != bed.fingerprint:
        raise RunMismatchError(f"{path.parent} was trained on another bed: remove it or build into a fresh directory")
    return True


def train_arm(bed: Bed, arm: Arm, *, progress: Progress | None = None) -> Path:
    """Train one arm in this process and save it; returns its checkpoint directory. Finished arms are left as they
    are."""
    from transformers.utils import logging as hf_logging

    from rote.models.training import TrainingConfig, train_causal_lm
    from rote.testbed.copying import initial_model, with_practice

    target = arm_directory(bed, arm)
    if is_finished(bed, arm):
        return target
    settings = bed.settings
    stream, log = bed.planted_stream(window=arm.window, dilution=arm.dilution, half=arm.half, replaced=arm.replaced)
    model = initial_model(bed)
    rows = with_practice(bed, stream)
    resume = target.with_name(f".{target.name}.resume")
    losses = train_causal_lm(
        model,
        rows,
        TrainingConfig(batch_size=settings.batch_size + settings.copying_rows, learning_rate=settings.learning_rate),
        progress=(lambda step, steps, loss: progress(arm.name, step, steps)) if progress else None,
        checkpoint=resume,
        checkpoint_every=CHECKPOINT_EVERY,
    )
    summary = {
        "bed": bed.fingerprint,
        "arm": arm.name,
        "window": arm.window,
        "dilution": arm.dilution,
        "half": arm.half,
        "replaced": arm.replaced,
        "steps": len(losses),
        "tokens": int(stream.size),
        "copies": len(log),
        "final_loss": round(float(losses[-100:].mean()), 6),
        "losses": [round(float(value), 4) for value in losses[:: max(1, len(losses) // 200)]],
    }
    hf_logging.disable_progress_bar()
    with whole_directory(target) as part:
        model.save_pretrained(part)
        bed.tokenizer.save_pretrained(part)
        write_log(part / "copies.jsonl", log, [row["id"] for row in bed.probes])
        (part / "arm.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(resume, ignore_errors=True)
    return target


def train_arms(
    bed: Bed, arms: Sequence[str | Arm], *, workers: int | None = None, progress: Progress | None = None
) -> dict[str, Path]:
    """Train several arms of one bed (see `train_beds`); returns their directories by arm name."""
    chosen = [arm if isinstance(arm, Arm) else parse_arm(arm, window=bed.settings.window) for arm in arms]
    if len({arm.name for arm in chosen}) != len(chosen):
        raise InputError("an arm is named twice: name each arm once")
    paths = train_beds([(bed, arm) for arm in chosen], workers=workers, progress=progress)
    return {arm.name: path for arm, path in zip(chosen, paths, strict=True)}


def train_beds(
    jobs: Sequence[tuple[Bed, str | Arm]], *, workers: int | None = None, progress: Progress | None = None
) -> list[Path]:
    """Train arms of one or several beds, the longest first, `workers` at a time (default: the number of CPU cores).

    With one worker the arms are trained in this process. Ctrl-C stops the workers; the same call goes on from their
    checkpoints. Returns the checkpoint directories in the order of `jobs`.
    Raises: RoteError with the worker's own message when one fails.
    """
    chosen = [(bed, arm if isinstance(arm, Arm) else parse_arm(arm, window=bed.settings.window)) for bed, arm in jobs]
    pending = [(bed, arm) for bed, arm in chosen if not is_finished(bed, arm)]
    pending.sort(key=lambda job: -job[0].settings.steps * job[0].settings.layers * job[1].dilution)
    workers = min(workers or os.cpu_count() or 1, len(pending))
    if workers <= 1:
        for bed, arm in pending:
            train_arm(bed, arm, progress=progress)
    else:
        _in_parallel(pending, workers, progress)
    return [arm_directory(bed, arm) for bed, arm in chosen]


def _in_parallel(jobs: list[tuple[Bed, Arm]], workers: int, progress: Progress | None) -> None:
    """Plain subprocesses of this module: no shared state, no import of the caller's main module, killed with the
    caller."""
    queue, running, failed = list(jobs), [], []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not queue or failed:
                    return
                bed, arm = queue.pop(0)
                process = subprocess.Popen(
                    [sys.executable, "-m", "rote.testbed.train", str(bed.path), arm.name],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=os.environ
                    | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                )
                running.append(process)
            errors: list[str] = []
            reader = threading.Thread(target=lambda p=process, e=errors: e.extend(p.stderr or ()), daemon=True)
            reader.start()
            for line in process.stdout or ():
                if progress and line.startswith("step "):
                    _, step, steps = line.split()
                    with lock:
                        progress(arm.name, int(step), int(steps))
            code = process.wait()
            reader.join()
            if code:
                failed.append(f"arm {arm.name}: {errors[-1].strip() if errors else f'exit status {code}'}")
                return

    crew = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    try:
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
    if failed:
        raise RoteError(f"training stopped; {failed[0]}")


def _worker(bed_path: str, name: str) -> None:
    import torch

    torch.set_num_threads(1)
    bed = Bed.open(bed_path)

    def report(arm: str, step: int, steps: int) -> None:
        if step % 25 == 0 or step == steps:
            print("step", step, steps, flush=True)

    try:
        train_arm(bed, parse_arm(name, window=bed.settings.window), progress=report)
    except RoteError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_status) from None


if __name__ == "__main__":
    _worker(sys.argv[1], sys.argv[2])
