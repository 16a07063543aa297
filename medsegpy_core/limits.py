"""Limits that the environment sets, in bytes."""

from __future__ import annotations

import functools
import os
from typing import Final

from medsegpy_core.errors import MemoryLimitError

__all__ = ["check_memory", "environment_bytes"]

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


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
