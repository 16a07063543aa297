"""The cost of reading: bytes and seconds of reading and decoding, for `medsegpy profile` and `datasets show`.

Code that reads or decodes calls `current_costs`, and adds to them if there are any. While nothing is observed, this
call is the only overhead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field


@define
class BatchSeconds:
    """The time that compiled kernels spent on whole batches.

    Attributes:
        opening: Opening files, and checking that they are unchanged.
        reading: System calls, without waiting.
        waiting: Waiting for the disk.
        converting: Converting stored voxels to float32 and categories.
    """

    opening: float = 0.0
    reading: float = 0.0
    converting: float = 0.0
    waiting: float = 0.0


@define
class Costs:
    """The costs over all threads during an observation. Thread-safe.

    Attributes:
        bytes_read: Bytes read by byte ranges, and bytes requested from the HDF5 library.
        bytes_decoded: The decoded size of chunks.
        seconds_reading: The time in system calls and in the library.
        seconds_decoding: The time of decompression.
        batches: The time that compiled kernels spent on whole batches.
    """

    bytes_read: int = 0
    bytes_decoded: int = 0
    seconds_reading: float = 0.0
    seconds_decoding: float = 0.0
    batches: BatchSeconds = field(factory=BatchSeconds)
    _lock: threading.Lock = field(factory=threading.Lock, init=False, eq=False, repr=False)

    @property
    def bytes_touched(self) -> int:
        """The bytes that were processed: decoded bytes if there are filters, else bytes that were read."""
        return max(self.bytes_read, self.bytes_decoded)

    def add_read(self, seconds: float, size: int) -> None:
        """Add bytes that were read."""
        with self._lock:
            self.seconds_reading += seconds
            self.bytes_read += size

    def add_decoded(self, seconds: float, size: int) -> None:
        """Add the decoded bytes of chunks."""
        with self._lock:
            self.seconds_decoding += seconds
            self.bytes_decoded += size

    def add_batch(self, opening: float, reading: float, converting: float, waiting: float) -> None:
        """Add one call of the kernels that read a batch; its reading is also counted by `add_read`."""
        with self._lock:
            self.batches.opening += opening
            self.batches.reading += reading
            self.batches.converting += converting
            self.batches.waiting += waiting


_one_at_a_time: Final = threading.Lock()
_current: Costs | None = None


def current_costs() -> Costs | None:
    """Return the costs to add to; None: nothing is observed."""
    return _current


@contextmanager
def observed() -> Iterator[Costs]:
    """Count the costs of reading within the ``with`` block, in all threads. For mapped files, only decoding counts."""
    global _current  # noqa: PLW0603 -- shared by all threads, unlike a context variable
    with _one_at_a_time:
        _current = costs = Costs()
        try:
            yield costs
        finally:
            _current = None
