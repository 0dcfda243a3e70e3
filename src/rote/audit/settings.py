"""Everything a user can set about an audit of a language model, validated once and printable as JSON or YAML."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rote.errors import InputError

SINGLE_PASS_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "surp", "dc_pdd")
EXTRA_PASS_ATTACKS = ("lowercase", "recall", "con_recall", "neighbourhood", "gradient_norm")
QUERIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000)
LEVELS = (0.1, 0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class AuditSettings:
    """Settings of `rote audit lm`.

    schemes: decoding schemes, the first is the one verdicts speak of. prefix, suffix: tokens (None: automatic, at most
    50 each). long: "error" or "truncate" for records over the context window. queries, levels: the (n, p) grid;
    verdicts
    use `headline_queries` at p = 0.5. attacks: membership attacks beyond those one pass gives. randomized: membership
    was assigned to each record by an independent fair coin, which is what the one-run privacy bound needs.
    corpus_column: field of the corpus that holds its text. shots: non-member texts shown to ReCaLL. neighbours:
    perturbed copies per record. near: almost reciting (`rote.audit.near.NearExtraction`), asked of at most
    `near_records` targets and as many controls. compress: for so many targets and as many controls a prompt shorter
    than their first `compress_tokens` tokens is searched, by `compress_steps` steps a prompt length. confidence: of
    every interval. engine: local, or ray (many machines).
    """

    schemes: tuple[str, ...] = ("top_k=40",)
    prefix: int | None = None
    suffix: int | None = None
    long: str = "error"
    bos: str = "auto"
    queries: tuple[int, ...] = QUERIES
    levels: tuple[float, ...] = LEVELS
    headline_queries: int = 100
    attacks: tuple[str, ...] = ()
    randomized: bool = False
    corpus_column: str = "text"
    shots: int = 7
    neighbours: int = 25
    near: tuple[str, ...] = ()
    near_records: int = 200
    compress: int = 0
    compress_tokens: int = 16
    compress_steps: int = 200
    confidence: float = 0.95
    exposed: int = 20
    seed: int = 0
    device: str = field(default="auto", metadata={"result": False})
    dtype: str = "auto"
    batch_tokens: int | None = field(default=None, metadata={"result": False})
    engine: str = field(default="local", metadata={"result": False})

    def __post_init__(self):
        from rote.scores.schemes import DecodingScheme

        if not self.schemes:
            raise InputError("at least one decoding scheme is needed, e.g. --scheme top_k=40")
        names = [DecodingScheme.parse(text).name for text in self.schemes]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"decoding scheme {sorted(twice)[0]} is given twice")
        object.__setattr__(self, "schemes", tuple(names))
        for attack in self.attacks:
            if attack not in EXTRA_PASS_ATTACKS:
                from difflib import get_close_matches

                near = get_close_matches(attack, EXTRA_PASS_ATTACKS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(EXTRA_PASS_ATTACKS)}"
                raise InputError(f"no extra attack {attack!r}; {hint} ({', '.join(SINGLE_PASS_ATTACKS)} always run)")
        if self.near:
            self._check_near()
        for ok, message in (
            (all(q >= 1 for q in self.queries) and len(self.queries) > 0, "queries must be at least 1"),
            (
                all(0 < p < 1 for p in self.levels) and len(self.levels) > 0,
                "levels p must lie strictly between 0 and 1",
            ),
            (self.headline_queries >= 1, "headline_queries must be at least 1"),
            (0.5 <= self.confidence < 1, "confidence must be in [0.5, 1)"),
            (self.shots >= 1, "shots must be at least 1"),
            (self.neighbours >= 1, "neighbours must be at least 1"),
            (self.near_records >= 1, "near_records must be at least 1"),
            (self.compress >= 0, "compress counts records and must not be negative"),
            (self.compress_tokens >= 2, "compress_tokens must be at least 2: a shorter prompt must exist"),
            (self.compress_steps >= 1, "compress_steps must be at least 1"),
            (self.exposed >= 0, "exposed must not be negative"),
            (self.engine in ("local", "ray"), f"engine is local or ray, not {self.engine!r}"),
        ):
            if not ok:
                raise InputError(f"audit settings: {message}")

    def _check_near(self) -> None:
        from rote.audit.near import NearExtraction
        from rote.scores.schemes import DecodingScheme

        chosen = [NearExtraction.parse(text) for text in self.near]
        kinds = [(near.eps, near.distance, near.method) for near in chosen]
        if len(set(kinds)) < len(kinds):
            raise InputError("--near: the same eps, distance and method are given twice")
        if any(near.method == "hamming1" for near in chosen) and not DecodingScheme.parse(self.schemes[0]).cuts:
            raise InputError(
                f"--near method=hamming1 needs a scheme that cuts the vocabulary, such as top_k=40; {self.schemes[0]!r}"
                " does not: use the beam"
            )
        object.__setattr__(self, "near", tuple(near.name for near in chosen))

    def as_dict(self) -> dict:
        """Plain values, tuples as lists: what run.json keeps."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def results_only(self) -> dict:
        """The settings that can change a number (not the device or the batch size): what findings.json shows."""
        return {item.name: self.as_dict()[item.name] for item in fields(self) if item.metadata.get("result", True)}

    @classmethod
    def from_dict(cls, values: dict) -> AuditSettings:
        """From plain values. Raises InputError for an unknown key, with the nearest name."""
        names = [item.name for item in fields(cls)]
        for key in values:
            if key not in names:
                from difflib import get_close_matches

                near = get_close_matches(key, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
                raise InputError(f"no audit setting {key!r}; {hint}")
        chosen: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return cls(**chosen)
