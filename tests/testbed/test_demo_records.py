"""The record files of the demo: planted and never planted apart, other people to keep, no end-of-text in any text."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rote.records import biographies
from rote.testbed.bed import Bed, BedSettings
from rote.testbed.demo_records import PEOPLE, write_retain_and_unseen, write_targets_and_controls


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def bed(tmp_path_factory, tokenizer, texts):
    """A bed made by hand: 40 sequences of two documents each, four probes."""
    path = tmp_path_factory.mktemp("demo") / "bed"
    path.mkdir()
    tokenizer.save_pretrained(path / "tokenizer")
    eos = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = 60
    packed = [([*ids[i % 25], eos, *ids[(i + 7) % 25], eos] * 3)[i % 11 : i % 11 + width] for i in range(80)]
    np.save(path / "stream.npy", np.array(packed[:40], np.int32))
    np.save(path / "unseen.npy", np.array(packed[40:], np.int32))
    probes = [
        {"id": f"p{i}", "text": f"probe {i}", "group": "person", "duplicates": n} for i, n in enumerate((0, 4, 0, 64))
    ]
    (path / "probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in probes))
    settings = BedSettings(seed=3, sequence_tokens=width)
    return Bed(path, {"settings": settings.to_json(), "eos_id": eos})


def test_targets_are_what_was_planted(bed, tmp_path):
    targets, controls = write_targets_and_controls(bed, tmp_path)
    assert [(row["id"], row["duplicates"]) for row in rows(targets)] == [("p1", 4), ("p3", 64)]
    assert [row["id"] for row in rows(controls)] == ["p0", "p2"]


def test_what_must_stay_is_other_people_and_text_of_one_document(bed, tmp_path, texts):
    people = {person.name for person in biographies(PEOPLE, seed=bed.settings.seed)}
    retain, unseen = (rows(path) for path in write_retain_and_unseen(bed, tmp_path))
    kept = [row["text"] for row in retain if row.get("group") == "person"]
    assert len(kept) == len(set(kept)) == 100
    assert not people & {text.partition(" was born")[0] for text in kept}
    documents = [row["text"] for row in (*retain, *unseen) if row.get("group") is None]
    assert len(documents) > 40
    for text in documents:
        assert "<|endoftext|>" not in text
        assert any(text in whole for whole in texts)  # a piece of one document, never of two
    first = (tmp_path / "retain.jsonl").read_bytes()
    write_retain_and_unseen(bed, tmp_path)
    assert (tmp_path / "retain.jsonl").read_bytes() == first
