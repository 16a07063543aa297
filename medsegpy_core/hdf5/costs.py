"""What reading costs: bytes read and decoded, and the time that took. For `medsegpy profile` and `datasets show`.

Whatever reads or decodes asks for `current_costs`, and adds to them if there are any: while nothing is observed, this
is all that counting costs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field


@define
class BatchSeconds:
    """What reading whole batches by compiled kernels took.

    Attributes:
        opening: Opening files, and looking whether they are still the same.
        reading: System calls, without
        waiting: for the disk.
        converting: From stored voxels to float32 and categories.
    """

    opening: float = 0.0
    reading: float = 0.0
    converting: float = 0.0
    waiting: float = 0.0


@define
class Costs:
    """What was read while it was observed, over all threads. Any thread may add to it.

    Attributes:
        bytes_read: From files, by byte ranges; and what the HDF5 library was asked for.
        bytes_decoded: What chunks were decoded to.
        seconds_reading: In system calls and in the library.
        seconds_decoding: In decompression.
        batches: The seconds of compiled kernels that read whole batches.
    """

    bytes_read: int = 0
    bytes_decoded: int = 0
    seconds_reading: float = 0.0
    seconds_decoding: float = 0.0
    batches: BatchSeconds = field(factory=BatchSeconds)
    _lock: threading.Lock = field(factory=threading.Lock, init=False, eq=False, repr=False)

    @property
    def bytes_touched(self) -> int:
        """The bytes that had to be gone through: decoded ones where there is a filter, else those that were read."""
        return max(self.bytes_read, self.bytes_decoded)

    def add_read(self, seconds: float, size: int) -> None:
        """Add bytes that were read."""
        with self._lock:
            self.seconds_reading += seconds
            self.bytes_read += size

    def add_decoded(self, seconds: float, size: int) -> None:
        """Add the bytes that chunks were decoded to."""
        with self._lock:
            self.seconds_decoding += seconds
            self.bytes_decoded += size

    def add_batch(self, opening: float, reading: float, converting: float, waiting: float) -> None:
        """Add one run of the kernels that read boxes of a batch; its reading is in `add_read` as well."""
        with self._lock:
            self.batches.opening += opening
            self.batches.reading += reading
            self.batches.converting += converting
            self.batches.waiting += waiting


_one_at_a_time: Final = threading.Lock()
_current: Costs | None = None


def current_costs() -> Costs | None:
    """Return what to add to; None: nothing is observed."""
    return _current


@contextmanager
def observed() -> Iterator[Costs]:
    """Count what is read within the ``with`` block, in all threads; of mapped files only what is decoded."""
    global _current  # noqa: PLW0603 -- one for all threads, which a context variable is not
    with _one_at_a_time:
        _current = costs = Costs()
        try:
            yield costs
        finally:
            _current = None
