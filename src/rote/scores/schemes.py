"""Decoding schemes: how a deployed model turns its next-token distribution f into the distribution q it samples from.

A scheme is what `transformers.generate(do_sample=True)` would apply, in its order: repetition penalty, temperature,
top-k, top-p, min-p, typical, epsilon, eta. log q(s) = z~_s - log sum_{v kept} exp z~_v, and -inf outside the kept set.

Knows nothing about: models, records, files. Source: Hayes et al. 2024 (arXiv 2410.19482, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from rote.errors import InputError

GREEDY = "greedy"


@dataclass(frozen=True)
class DecodingScheme:
    """One decoding scheme. The defaults are plain sampling from the softmax (temperature 1, nothing cut).

    Ranges: temperature > 0; top_k >= 1 or 0 (off); 0 < top_p <= 1; 0 <= min_p < 1; 0 < typical_p <= 1;
    0 <= epsilon_cutoff, eta_cutoff < 1 (0: off); repetition_penalty > 0 (1: off). Greedy decoding is top_k = 1.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        for ok, message in (
            (self.temperature > 0, f"temperature must be above 0, not {self.temperature} (greedy is top_k=1)"),
            (self.top_k >= 0 and int(self.top_k) == self.top_k, f"top_k must be a whole number, not {self.top_k}"),
            (0 < self.top_p <= 1, f"top_p must be in (0, 1], not {self.top_p}"),
            (0 <= self.min_p < 1, f"min_p must be in [0, 1), not {self.min_p}"),
            (0 < self.typical_p <= 1, f"typical_p must be in (0, 1], not {self.typical_p}"),
            (0 <= self.epsilon_cutoff < 1, f"epsilon_cutoff must be in [0, 1), not {self.epsilon_cutoff}"),
            (0 <= self.eta_cutoff < 1, f"eta_cutoff must be in [0, 1), not {self.eta_cutoff}"),
            (self.repetition_penalty > 0, f"repetition_penalty must be above 0, not {self.repetition_penalty}"),
        ):
            if not ok:
                raise InputError(f"decoding scheme: {message}")

    @classmethod
    def parse(cls, text: str) -> DecodingScheme:
        """`"top_k=40,temperature=0.7"`, `"sample"` (plain softmax) or `"greedy"`. Raises InputError, with a
        suggestion."""
        text = text.strip()
        if text == "sample":
            return cls()
        if text == GREEDY:
            return cls(top_k=1)
        kinds = {field.name: int if field.name == "top_k" else float for field in fields(cls)}
        values: dict[str, Any] = {}
        for part in text.replace(" ", "").split(","):
            name, equals, value = part.partition("=")
            name = name.replace("-", "_")
            if not equals:
                raise InputError(
                    f"decoding scheme {text!r}: {part!r} is not NAME=VALUE; example: top_k=40,temperature=0.7"
                )
            if name not in kinds:
                from difflib import get_close_matches

                near = get_close_matches(name, kinds, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(kinds)}"
                raise InputError(f"decoding scheme {text!r}: no setting {name!r}; {hint}")
            if name in values:
                raise InputError(f"decoding scheme {text!r}: {name} is given twice")
            try:
                values[name] = kinds[name](value)
            except ValueError:
                raise InputError(f"decoding scheme {text!r}: {name} needs a number, not {value!r}") from None
        return cls(**values)

    @classmethod
    def from_generation_config(cls, config) -> DecodingScheme:
        """The scheme a model's own generation_config.json deploys (sampling part)."""
        off = {
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "typical_p": 1.0,
            "epsilon_cutoff": 0.0,
            "eta_cutoff": 0.0,
            "repetition_penalty": 1.0,
        }
        chosen: dict[str, Any] = {}
        for name, default in off.items():
            value = getattr(config, name, None)
            chosen[name] = default if value is None else value
        return cls(**chosen)

    @property
    def name(self) -> str:
        """Canonical short text, e.g. `top_k=40,temperature=0.7`; `sample` when nothing is changed."""
        changed = [
            f"{field.name}={getattr(self, field.name):g}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ",".join(changed) or "sample"

    @property
    def cuts(self) -> bool:
        """Whether the scheme can give a token probability zero (so that the extraction ceiling means something)."""
        return bool(
            self.top_k or self.top_p < 1 or self.min_p or self.typical_p < 1 or self.epsilon_cutoff or self.eta_cutoff
        )

    def generation_kwargs(self) -> dict:
        """Arguments for `model.generate` that sample from exactly this scheme (every other setting switched off)."""
        return {
            "do_sample": True,
            "num_beams": 1,
            "temperature": float(self.temperature),
            "top_k": int(self.top_k),
            "top_p": float(self.top_p),
            "min_p": self.min_p or None,
            "typical_p": float(self.typical_p),
            "epsilon_cutoff": float(self.epsilon_cutoff),
            "eta_cutoff": float(self.eta_cutoff),
            "repetition_penalty": float(self.repetition_penalty),
        }

    def warpers_after_top_k(self, device: Any = "cpu") -> list:
        """transformers' own warpers that follow top-k, in generate's order, to be applied to the kept values."""
        from transformers.generation import logits_process as hf

        chain: list = []
        if self.top_p < 1:
            chain.append(hf.TopPLogitsWarper(self.top_p))
        if self.min_p:
            chain.append(hf.MinPLogitsWarper(self.min_p))
        if self.typical_p < 1:
            chain.append(hf.TypicalLogitsWarper(self.typical_p))
        if self.epsilon_cutoff:
            chain.append(hf.EpsilonLogitsWarper(self.epsilon_cutoff))
        if self.eta_cutoff:
            chain.append(hf.EtaLogitsWarper(self.eta_cutoff, device=device))
        return chain
