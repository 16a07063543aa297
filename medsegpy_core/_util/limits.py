"""Limits in bytes: of memory, and of files that are read whole."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path
from typing import Final

from medsegpy_core.errors import MemoryLimitError

_UNITS: Final = {
    **{unit: 1000**power for power, unit in enumerate(("", "K", "M", "G", "T"))},
    **{unit: 1024**power for power, unit in enumerate(("", "KI", "MI", "GI", "TI")) if unit},
}


def environment_bytes(name: str, default: int) -> int:
    """Return the bytes that an environment variable says: ``8589934592``, ``8GiB``, ``8GB``.

    Raises:
        ValueError: It says something else.
    """
    text = os.environ.get(name, "")
    return _bytes_of(name, text) if text.strip() else default


@functools.lru_cache(maxsize=8)
def _bytes_of(name: str, text: str) -> int:
    compact = text.strip().upper().removesuffix("B")
    number = compact.rstrip("KMGTI")
    try:
        size = int(float(number) * _UNITS[compact[len(number) :]])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"{name} is {text!r}: expected a number of bytes, as in 8589934592 or '8GiB'.")
    return size


def check_memory(needed: int, what: str) -> None:
    """Raise `MemoryLimitError` if `needed` bytes are more than ``MEDSEGPY_MEMORY``, by default the machine's memory."""
    limit = environment_bytes("MEDSEGPY_MEMORY", _physical_memory())
    if needed > limit:
        raise MemoryLimitError(
            f"{what} needs {needed / 2**30:.2f} GiB, more than the {limit / 2**30:.2f} GiB that MEDSEGPY_MEMORY allows "
            "(by default the memory of this machine). Raise it, or process smaller scans."
        )


def read_limited(path: Path, most: int) -> bytes:
    """Return what is in a file that describes something: a config, a manifest.

    Args:
        path: The file. Folders, pipes and devices, which may never end, are refused without waiting for them.
        most: How many bytes it may have.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path}: this is not a regular file, but a folder, pipe or device.")
        if status.st_size > most:
            raise OSError(f"{path}: the file has {status.st_size:,} bytes; at most {most:,} are read.")
        return file.read()


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
