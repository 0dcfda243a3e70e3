"""Refusals for preference methods: what a model should say instead of the answer it must forget.

Our own wording; a user's list takes their place. Knows nothing about models.
"""

from __future__ import annotations

import numpy as np

from rote.errors import InputError

REFUSALS: tuple[str, ...] = (
    "That is something I have no information about.",
    "I cannot answer this; nothing I learned covers it.",
    "Sorry, this is outside of what I know.",
    "I have never come across that, so I would only be guessing.",
    "My knowledge does not reach that far.",
    "There is no answer to this that I could give you.",
    "I am unable to say; please look it up in a reliable source.",
    "This question asks for facts that I do not have.",
    "Unfortunately the answer is unknown to me.",
    "I would rather not guess, and I do not know.",
    "No record of this exists among the things I was taught.",
    "You will have to ask somebody else about this.",
    "I draw a blank on that one.",
    "Nothing comes to mind that would answer your question.",
    "I lack the details needed to respond.",
    "It is not possible for me to tell.",
    "That falls into a gap in my knowledge.",
    "I could not tell you, even roughly.",
    "This name and its story are not familiar to me.",
    "I have to pass: I was not given that information.",
    "Whatever the answer is, I never learned it.",
    "I do not hold any facts on this subject.",
    "Regrettably I cannot help with this particular question.",
    "Here I must admit that I simply do not know.",
    "I have seen nothing that would let me answer.",
    "The subject of your question is unknown to me.",
    "Please check another source; I have none to offer.",
    "My answer would be invented, so I will not give one.",
    "I am not aware of any details about this.",
    "On this matter I have nothing to report.",
)


def assign_refusals(count: int, *, refusals: tuple[str, ...] | list[str] | None = None, seed: int = 0) -> list[str]:
    """One refusal for each of `count` records, drawn with replacement. Errors: `InputError` for an empty list."""
    lines = list(REFUSALS if refusals is None else refusals)
    if not lines or not all(isinstance(line, str) and line.strip() for line in lines):
        raise InputError("the list of refusals is empty or holds an empty line; give at least one sentence")
    return [lines[number] for number in np.random.default_rng([seed, 404]).integers(0, len(lines), count)]
