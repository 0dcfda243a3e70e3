"""Decontamination: find the corpus documents that already contain a probe text, so that "zero copies" means zero.

    n = tokens of the probe:  n < 10: skipped;  10 <= n <= 40: the whole probe, exactly;
    n > 40: every window of floor(n / 2) tokens, at stride floor(n / 4)

A document that contains any of these token strings is reported. Knows nothing about text or tokenizers: token ids in,
indices out.
Source: Wei et al. 2025, "Hubble", arXiv 2510.19811, section 3 and appendix (decontamination).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

SHORTEST = 10  # tokens: below this a match says nothing
WHOLE = 40  # tokens: up to here the probe is matched as a whole


@dataclass(frozen=True)
class Overlap:
    """`documents[document]` contains tokens `window` .. `window + length` of `probes[probe]`."""

    document: int
    probe: int
    window: int
    length: int


@dataclass(frozen=True)
class Decontamination:
    """Outcome over a corpus: `overlaps` holds the first overlap of each (document, probe) pair that has one."""

    documents: int
    overlaps: tuple[Overlap, ...]
    skipped: tuple[int, ...]  # probes too short to be searched for

    @property
    def dropped(self) -> list[int]:
        """Documents to remove, ascending."""
        return sorted({overlap.document for overlap in self.overlaps})

    @property
    def kept(self) -> list[int]:
        """Documents that contain no probe, ascending."""
        dropped = set(self.dropped)
        return [document for document in range(self.documents) if document not in dropped]

    @property
    def contaminated(self) -> list[int]:
        """Probes found in the corpus, ascending (to be re-drawn, where that is the better cure)."""
        return sorted({overlap.probe for overlap in self.overlaps})


def windows(n: int) -> list[tuple[int, int]]:
    """(start, length) of the token strings searched for a probe of `n` tokens; empty when it is too short to tell."""
    if n < SHORTEST:
        return []
    if n <= WHOLE:
        return [(0, n)]
    length, stride = n // 2, n // 4
    return [(start, length) for start in range(0, n - length + 1, stride)]


def _anchor_hashes(tokens: np.ndarray) -> np.ndarray:
    """Polynomial hash modulo 2^64 of every run of SHORTEST tokens. Collisions are harmless: every hit is compared token
    by token."""
    if len(tokens) < SHORTEST:
        return np.zeros(0, dtype=np.uint64)
    values = tokens.astype(np.uint64) + np.uint64(1)
    hashes = np.zeros(len(tokens) - SHORTEST + 1, dtype=np.uint64)
    for k in range(SHORTEST):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[k : k + len(hashes)]
    return hashes


def find_overlaps(
    documents: Iterable[Int[np.ndarray, " length"]], probes: Sequence[Int[np.ndarray, " length"]]
) -> Decontamination:
    """Search every document for every probe, by the rule at the top of this file, in one pass over the corpus.

    All searched strings have at least 10 tokens, so their first 10 tokens serve as one common anchor: the corpus is
    hashed once, whatever the lengths, and only anchored positions are compared. Documents are read one at a time (any
    iterable).

    Args:
        documents: token ids of each corpus document.
        probes: token ids of each probe, without end-of-text.
    """
    queries: dict[int, list[tuple[int, int, np.ndarray]]] = defaultdict(list)
    skipped = []
    for index, probe in enumerate(probes):
        probe = np.asarray(probe, dtype=np.int64)
        spans = windows(len(probe))
        if not spans:
            skipped.append(index)
        for start, length in spans:
            string = probe[start : start + length]
            queries[int(_anchor_hashes(string[:SHORTEST])[0])].append((index, start, string))
    anchors = np.array(sorted(queries), dtype=np.uint64)
    overlaps: list[Overlap] = []
    count = 0
    for document_index, document in enumerate(documents):
        count += 1
        document = np.asarray(document, dtype=np.int64)
        hashes = _anchor_hashes(document)
        if not len(hashes) or not len(anchors):
            continue
        seen: set[int] = set()
        places = np.searchsorted(anchors, hashes)
        places[places == len(anchors)] = 0
        for position in np.flatnonzero(anchors[places] == hashes).tolist():
            for probe_index, start, string in queries[int(hashes[position])]:
                if probe_index not in seen and np.array_equal(document[position : position + len(string)], string):
                    seen.add(probe_index)
                    overlaps.append(Overlap(document_index, probe_index, start, len(string)))
    return Decontamination(count, tuple(overlaps), tuple(skipped))
