"""Errors a user can act on. Every message says what is wrong, where, and what to do; the CLI prints it without a
traceback.

Knows nothing about: models, files, terminals.
"""

from __future__ import annotations


class RoteError(Exception):
    """Base of all errors Rote raises on purpose. `exit_status` is what the command line returns."""

    exit_status = 3


class InputError(RoteError):
    """Wrong use or bad input (exit status 2): what is wrong, where (file, line, field, record id), and what to do."""

    exit_status = 2


class RunMismatchError(InputError):
    """A run directory belongs to another model, record file or settings; mixing is refused."""


class MissingDependencyError(InputError):
    """An optional library is missing. The message is the install command."""

    def __init__(self, library: str, extra: str):
        super().__init__(f"{library} is not installed; run: pip install 'rote[{extra}]'")
