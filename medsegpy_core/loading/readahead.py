"""Asking the operating system for files before they are read, where reading has to wait for the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Final

__all__ = ["Waiting", "read_ahead"]

# The share of the time of a batch that was spent waiting, from which on the files of the next are asked for at once.
_WAITING: Final = 0.25
# How many batches are asked for before they are made, so that the disk works while others are.
_BATCHES_AHEAD: Final = 4


def read_ahead(paths: Iterable[str]) -> None:
    """Begin to read files into the page cache, all of them side by side. What cannot be opened is passed over: reading
    it says why."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            advise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # a pipe, or a file system that does not know it
        finally:
            os.close(fd)


class Waiting:
    """Whether the batches of a pass wait for the disk: their time is more than what the processor took for them.

    Use it as a context around each batch. Several threads may: what is shared is a flag, and how far files were asked
    for.
    """

    def __init__(self) -> None:
        # Until it is known, as for a data set that has just been copied.
        self.expected = True
        self._asked = 0

    def to_ask_for(self, batch: int, batches: int) -> range:
        """Return the batches whose files are to be asked for before this one is made: itself and those that follow,
        each of them once."""
        if not self.expected:
            return range(0)
        # Two threads may both ask for a batch, which costs little.
        first, self._asked = max(batch, self._asked), max(self._asked, min(batch + 1 + _BATCHES_AHEAD, batches))
        return range(first, self._asked)

    def measure(self) -> _Measured:
        """Return a context that measures one batch."""
        return _Measured(self)


class _Measured:
    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def __enter__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        wall, processor = time.perf_counter() - self._wall, time.thread_time() - self._processor
        self._waiting.expected = wall - processor > _WAITING * wall
