"""Limits in bytes: of memory, and of files that are read entirely."""

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
    """Return the size in an environment variable in bytes: ``8589934592``, ``8GiB``, ``8GB``.

    Raises:
        ValueError: It is not a size.
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
            "(by default the memory of this machine). Increase it, or process smaller scans."
        )


def read_limited(path: Path, most: int) -> bytes:
    """Return the content of a small file, such as a config or a manifest.

    Args:
        path: The file. Folders, pipes and devices are rejected without reading them, because reading may never end.
        most: The largest size in bytes.

    Raises:
        OSError: The file cannot be read, is not a regular file, or is larger.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path}: this is not a regular file but a folder, pipe or device.")
        if status.st_size > most:
            raise OSError(f"{path}: the file has {status.st_size:,} bytes; the limit is {most:,}.")
        return file.read()


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
