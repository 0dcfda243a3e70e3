"""Witness transformers on disk: witness.safetensors (the integers k of all weights) and witness.json (the rest).

Knows the two files. A witness that was read back is verified again from the file's own weights before it is returned.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rote.atomic import write_atomic
from rote.errors import InputError
from rote.theory.cot.fixed_precision import FixedPrecisionTransformer, Shape
from rote.theory.cot.witness import CotWitness, Verification
from rote.theory.cot.words import Alphabet, QADataset

FORMAT = "rote-cot-witness-1"


def save_cot_witness(witness: CotWitness, directory: str | Path) -> Verification:
    """Write both files, read them back, verify what was read, and return that verification.

    witness.json holds the shape, q, alphabet, records and plan (so it holds the records' contents), size and
    verification. Errors: OSError; InputError when what was read back does not verify.
    """
    from safetensors.numpy import save

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors writes the memory as it lies: a transposed view would come back scrambled
    integers = {name: np.ascontiguousarray(array) for name, array in witness.model.integers.items()}
    write_atomic(folder / "witness.safetensors", save(integers))
    plan = witness.plan
    content = {
        "format": FORMAT,
        "shape": asdict(witness.model.shape),
        "digits": witness.model.digits,
        "seed": witness.seed,
        "weights": "integers k; a weight is k * 10^-digits",
        "alphabet": list(witness.dataset.alphabet.symbols),
        "records": [
            {"input": list(word), "answer": answer, "cot": None if plan is None else list(plan[word])}
            for word, answer in witness.dataset.answers.items()
        ],
        "size": witness.size(),
        "verification": asdict(witness.verify()),
    }
    write_atomic(folder / "witness.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return load_cot_witness(folder)[1]


def load_cot_witness(directory: str | Path) -> tuple[CotWitness, Verification]:
    """A saved witness and its verification, made anew from the weights in the file.

    Errors: InputError for missing or damaged files, and when the witness does not verify.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(directory)
    try:
        content = json.loads((folder / "witness.json").read_text(encoding="utf-8"))
        integers = load((folder / "witness.safetensors").read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder}: no witness to read ({error.strerror}); give a directory that --build wrote"
        ) from None
    except (ValueError, SafetensorError):
        raise InputError(f"{folder}: the witness is damaged; build it again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{folder}/witness.json: not a {FORMAT} file")
    try:
        shape = Shape(**content["shape"])
        records = [(tuple(row["input"]), row["answer"], row["cot"]) for row in content["records"]]
        dataset = QADataset(Alphabet(tuple(content["alphabet"])), {word: answer for word, answer, _ in records})
        plan = None if any(cot is None for *_, cot in records) else {word: tuple(cot) for word, _, cot in records}
        model = FixedPrecisionTransformer(shape, integers, digits=content["digits"])
        witness = CotWitness(dataset, plan, model, content["seed"])
    except (KeyError, TypeError):
        raise InputError(f"{folder}/witness.json: a field is missing or has the wrong kind; build it again") from None
    found = witness.verify()
    if not found.holds:
        raise InputError(f"{folder}: the weights do not give the recorded answers; build it again")
    return witness, found
