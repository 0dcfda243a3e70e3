"""Whole files and directories or none: write beside the target, flush to the disk, rename.

A process that is killed while it writes leaves what it had written under a hidden name. Whoever next writes the same
target removes that: temporary names are locked while their writer lives, and the lock goes with it, however it ends.

Knows nothing about what is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # a system without such locks: leftovers stay there
    fcntl = None

_RANDOM = "[a-z0-9_]{8}"  # what tempfile puts between prefix and suffix


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write `content` (text is UTF-8); `path` then holds the old file or all of the new one, even after a crash.

    Errors: OSError (a full disk, no permission); the temporary file is removed and the old file is untouched.
    """
    with whole_file(path) as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """The same for content that is written piece by piece: a stream, whose file takes the name when the block ends
    without an error."""
    target = Path(path)
    with _beside(target, directory=False) as part:
        with open(part, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(0o666 & ~_umask())  # mkstemp makes 0600; a report is a file like any other
        os.replace(part, target)
    with contextlib.suppress(OSError):  # some file systems refuse to open a directory; the rename itself has happened
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """An empty directory beside `path`, to be filled; it takes that name when the block ends without an error.

    An empty directory at `path` is replaced. Errors: OSError where anything else is there; then, and after an error in
    the block, nothing of what was filled stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _beside(target, directory=True) as part:
        yield part
        part.chmod(0o777 & ~_umask())  # mkdtemp makes 0700
        if target.is_dir():
            target.rmdir()
        os.replace(part, target)


def leftovers(path: str | Path) -> list[Path]:
    """Temporary files and directories of writings of `path` that have not ended, or never will."""
    target = Path(path)
    ours = re.compile(re.escape(f".{target.name}.") + _RANDOM + re.escape(".tmp"))
    try:
        with os.scandir(target.parent) as entries:
            return [Path(entry.path) for entry in entries if ours.fullmatch(entry.name)]
    except OSError:  # no such directory: the writing itself says so
        return []


@contextlib.contextmanager
def _beside(target: Path, *, directory: bool) -> Iterator[Path]:
    """A locked temporary file or directory beside `target`, removed after an error; leftovers are removed first."""
    for leftover in leftovers(target):
        with contextlib.suppress(OSError):
            handle = _lock(leftover, wait=False)
            _remove(leftover)
            os.close(handle)
    while True:
        names = {"prefix": f".{target.name}.", "suffix": ".tmp", "dir": target.parent}
        if directory:
            part = Path(tempfile.mkdtemp(**names))
        else:
            handle, name = tempfile.mkstemp(**names)
            os.close(handle)
            part = Path(name)
        handle = None
        with contextlib.suppress(OSError):
            handle = _lock(part, wait=True)
        if part.exists():
            break
        if handle is not None:  # another writer of this target took it for a leftover before it was locked
            os.close(handle)
    try:
        yield part
    except BaseException:
        _remove(part)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _lock(path: Path, *, wait: bool) -> int:
    """A handle that holds the lock until it is closed. Errors: OSError where it cannot be had."""
    if fcntl is None:
        raise OSError("no locks on this system")
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
