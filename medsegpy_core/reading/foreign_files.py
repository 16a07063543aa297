"""Recognizing files that are not images, such as Git LFS pointers, with a remedy for each."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

# First bytes -> description and remedy.
_KINDS: Final = {
    b"version https://git-lfs": "a Git LFS pointer: the file itself was not downloaded. Run: git lfs pull",
    b"MATLAB 5.0 MAT-file": "a MATLAB file of an older version, which is not HDF5. Save it with the option '-v7.3'",
    b"<!doctype html": "a web page, as a failed download leaves it",
    b"<html": "a web page, as a failed download leaves it",
}
_LONGEST: Final = max(map(len, _KINDS))


def foreign_kind(path: str | os.PathLike[str]) -> str | None:
    """Return what a file that is not an image is, and what to do, or None if it is unknown or not a file.

    Readers call it for their error messages.

    Example:
        ```python
        if (kind := foreign_kind(path)) is not None:
            raise ReadError(f"this is {kind}", path)
        ```
    """
    try:
        fd = os.open(Path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    try:
        start = os.read(fd, _LONGEST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError:
        return None
    finally:
        os.close(fd)
    return next((kind for begin, kind in _KINDS.items() if start[: len(begin)].lower() == begin.lower()), None)
