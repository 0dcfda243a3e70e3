"""Built memories on disk: memory.safetensors (weights, contexts, targets) and memory.json (sizes, seed, certificate).

Knows the two files and checks again, on what was read, what was certified when it was written. A longdouble weight is
two float64 arrays, `name` and `name.low`, whose sum it is. No pickles. The directory holds the memorized facts: treat
it like them. Deliberately knows nothing about building.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.theory.attention.construction import AttentionMemory, certified
from rote.theory.attention.model import AttentionWeights, kl_by_context, logits
from rote.theory.attention.partial import Remainder

if TYPE_CHECKING:
    from rote.theory.attention.distribution_memory import DistributionMemory

FORMAT = "rote-attention-memory"
VERSION = 1
WEIGHTS_FILE, FACTS_FILE = "memory.safetensors", "memory.json"
SCALARS = ("rank", "cond", "min_margin", "ideal_margin", "logit_error", "accuracy", "code", "scale", "seed", "draws")
NAMES = tuple(AttentionWeights.__dataclass_fields__)


def save_memory(memory: AttentionMemory, directory: str | Path) -> Path:
    """Write an association memory; returns the directory. The JSON comes last, so half a write is no memory."""
    arrays = {"contexts": memory.contexts, "labels": memory.labels, "kept": memory.kept.astype(np.uint8)}
    facts = {name: getattr(memory, name) for name in SCALARS} | {"precision": memory.precision}
    return _write(directory, "association", memory.weights, arrays, facts, memory.remainder)


def load_memory(directory: str | Path) -> AttentionMemory:
    """Read an association memory and certify it again.

    Errors: `InputError` when files are missing, damaged, of another kind or version, or when a kept context is not
    recalled by the weights that were read.
    """
    facts, arrays, weights = _read(directory, "association", ("contexts", "labels", "kept"))
    try:
        scalars: dict[str, Any] = {name: facts[name] for name in SCALARS} | {"cond": _cond(facts)}
        memory = AttentionMemory(
            weights=weights,
            contexts=arrays["contexts"],
            labels=arrays["labels"],
            kept=arrays["kept"].astype(bool),
            precision=facts["precision"],
            remainder=_remainder(facts),
            **scalars,
        )
        checked = certified(memory, weights)
        forgets = facts["min_margin"] > 0 and not checked.min_margin > 0
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{directory}: memory.json and memory.safetensors do not fit together ({type(error).__name__})"
        ) from None
    if forgets:
        raise InputError(f"{directory}: the weights read do not recall what was stored; build the memory again")
    return checked


def save_distribution_memory(memory: DistributionMemory, directory: str | Path) -> Path:
    """Write a memory of distributions; returns the directory."""
    arrays = {
        "contexts": memory.contexts, "pi": memory.pi, "prior": memory.prior, "kept": memory.kept.astype(np.uint8),
    }  # fmt: skip
    facts = {name: getattr(memory, name) for name in ("rank", "cond", "kl", "floor", "seed", "draws")}
    return _write(directory, "distribution", memory.weights, arrays, facts, memory.remainder)


def load_distribution_memory(directory: str | Path) -> DistributionMemory:
    """Read a memory of distributions and measure its KL again. Errors: `InputError` as `load_memory`."""
    from rote.theory.attention.distribution_memory import TOLERANCE, DistributionMemory

    facts, arrays, weights = _read(directory, "distribution", ("contexts", "pi", "prior", "kept"))
    try:
        scalars: dict[str, Any] = {name: facts[name] for name in ("rank", "kl", "floor", "seed", "draws")} | {
            "cond": _cond(facts)
        }
        memory = DistributionMemory(
            weights=weights,
            contexts=arrays["contexts"],
            pi=arrays["pi"],
            prior=arrays["prior"],
            kept=arrays["kept"].astype(bool),
            remainder=_remainder(facts),
            **scalars,
        )
        kl = float(memory.prior @ kl_by_context(memory.pi, logits(weights, memory.contexts)))
        fits = abs(kl - memory.kl) <= TOLERANCE
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{directory}: memory.json and memory.safetensors do not fit together ({type(error).__name__})"
        ) from None
    if not fits:
        raise InputError(f"{directory}: the weights read do not give the KL that was stored; build the memory again")
    return replace(memory, kl=kl)


def _write(directory, kind, weights, arrays, facts, remainder) -> Path:
    from safetensors.numpy import save

    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, array in weights.arrays().items():
        high = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
        tensors[name] = np.ascontiguousarray(high)
        if array.dtype == np.longdouble and array.dtype != np.float64:
            tensors[f"{name}.low"] = np.ascontiguousarray((array - high).astype(np.float64))
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "kind": kind}
    content |= {
        "vocab": weights.vocab, "context": weights.context, "d": weights.d, "d_head": weights.d_head,
        "heads": weights.heads, "parameters": weights.parameters,
        "model": "W_U (x(t,S) + W_O W_V A(t)), softmax without 1/sqrt(d), last position only (arXiv 2411.10115)",
    }  # fmt: skip
    content |= {name: _finite(value) for name, value in facts.items()}
    content["remainder"] = None if remainder is None else {key: _finite(v) for key, v in asdict(remainder).items()}
    write_atomic(target / WEIGHTS_FILE, save(tensors))
    write_atomic(target / FACTS_FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return target


def _read(directory, kind, needed) -> tuple[dict, dict[str, np.ndarray], AttentionWeights]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    source = Path(directory)
    try:
        facts = json.loads((source / FACTS_FILE).read_text(encoding="utf-8"))
        tensors = load((source / WEIGHTS_FILE).read_bytes())
    except OSError as error:
        raise InputError(
            f"{source}: no built memory there ({error.strerror}); give a directory that --build wrote"
        ) from None
    except (ValueError, SafetensorError):
        raise InputError(f"{source}: memory.json or memory.safetensors is damaged; build the memory again") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or facts.get("kind") != kind:
        raise InputError(f"{source}: {FACTS_FILE} does not describe a built {kind} memory")
    if facts.get("version") != VERSION:
        raise InputError(f"{source}: format version {facts.get('version')} is not {VERSION}; build the memory again")
    missing = [name for name in (*NAMES, *needed) if name not in tensors]
    if missing:
        raise InputError(f"{source}: {WEIGHTS_FILE} lacks {', '.join(missing)}; build the memory again")
    arrays = {name: tensors[name] for name in needed}
    wide = all(f"{name}.low" in tensors for name in NAMES)
    dimensions = dict(zip(NAMES, (2, 2, 3, 3, 3, 2, 2), strict=True))
    if any(tensors[name].ndim != count for name, count in dimensions.items()):
        raise InputError(f"{source}: {WEIGHTS_FILE} holds a weight of the wrong shape; build the memory again")
    weights = AttentionWeights(
        **{
            name: tensors[name].astype(np.longdouble) + tensors[f"{name}.low"] if wide else tensors[name]
            for name in NAMES
        }
    )
    return facts, arrays, weights


def _remainder(facts: dict) -> Remainder | None:
    return Remainder(**facts["remainder"]) if facts.get("remainder") else None


def _cond(facts: dict) -> float:
    """An infinite condition number is null in JSON."""
    return float("inf") if facts["cond"] is None else float(facts["cond"])


def _finite(value):
    return None if isinstance(value, float) and not np.isfinite(value) else value
