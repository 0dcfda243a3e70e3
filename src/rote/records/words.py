"""Words of a text for comparing passages whatever their case, spacing and punctuation.

Knows text only. A word is a run of letters and digits, case-folded; where writing has no spaces (Chinese, Japanese,
Korean, Thai) every character is a word of its own.
"""

from __future__ import annotations

import re

_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """["the", "cat", "s", "hat"] for "The cat's HAT!"."""
    return _WORD.findall(text.casefold())
