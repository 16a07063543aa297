"""What reading costs: bytes read and decoded, and the time that took. For `medsegpy profile` and `datasets show`.

While nobody observes, reading pays nothing for it: `observed` puts counting functions in the place of the real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from attrs import define, field

from medsegpy_core.hdf5 import byte_ranges as ranges
from medsegpy_core.hdf5 import chunks
from medsegpy_core.hdf5 import chunks as inflating
from medsegpy_core.hdf5 import native as kernels
from medsegpy_core.hdf5 import read as reading
from medsegpy_core.hdf5.native import is_batch

_one_at_a_time: Final = threading.Lock()


@define
class Costs:
    """What was read while it was observed, over all threads.

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
    batches: BatchSeconds = field(factory=lambda: BatchSeconds())  # noqa: PLW0108 -- it is defined below

    @property
    def bytes_touched(self) -> int:
        """The bytes that had to be gone through: decoded ones where there is a filter, else those that were read."""
        return max(self.bytes_read, self.bytes_decoded)


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

    def add(self, opening: float, reading: float, converting: float, waiting: float) -> None:
        """Add one run of the kernels."""
        self.opening += opening
        self.reading += reading
        self.converting += converting
        self.waiting += waiting


@contextmanager
def observed() -> Iterator[Costs]:
    """Count what is read within the ``with`` block, in all threads; of mapped files only what is decoded."""
    costs = Costs()
    with _one_at_a_time:
        real = [getattr(module, name) for module, name, _ in _OBSERVED]
        for (module, name, counting), function in zip(_OBSERVED, real, strict=True):
            setattr(module, name, counting(costs, function))
        try:
            yield costs
        finally:
            for (module, name, _), function in zip(_OBSERVED, real, strict=True):
                setattr(module, name, function)


def _counting_reads(costs: Costs, real: Callable[..., None]) -> Callable[..., None]:
    def read_bytes(fd: int, offset: int, buffer: Any) -> None:
        began = time.perf_counter()
        real(fd, offset, buffer)
        costs.seconds_reading += time.perf_counter() - began
        costs.bytes_read += buffer.nbytes

    return read_bytes


def _counting_decodes(costs: Costs, real: Callable[..., Any]) -> Callable[..., Any]:
    def decode(stored: Any, filters: Any, mask: int, size: int) -> Any:
        began = time.perf_counter()
        found = real(stored, filters, mask, size)
        costs.seconds_decoding += time.perf_counter() - began
        costs.bytes_decoded += size
        return found

    return decode


def _counting_library(costs: Costs, real: Callable[..., Any]) -> Callable[..., Any]:
    def read_box(*args: Any) -> Any:
        began = time.perf_counter()
        found = real(*args)
        costs.seconds_reading += time.perf_counter() - began
        costs.bytes_read += found.nbytes
        return found

    return read_box


def _counting_kernels(costs: Costs, real: Callable[..., Any]) -> Callable[..., Any]:
    def run_kernels(found: Any, jobs: Any, *args: Any) -> Any:
        began, on_processor = time.perf_counter(), time.thread_time()
        measured = real(found, jobs, *args)
        busy = time.thread_time() - on_processor
        opening, reading, converting, size = measured
        costs.seconds_reading += reading
        costs.bytes_read += size
        if is_batch(jobs):
            waiting = min(reading, max(0.0, time.perf_counter() - began - busy))
            costs.batches.add(opening, reading - waiting, converting, waiting)
        return measured

    return run_kernels


def _counting_inflates(costs: Costs, real: Callable[..., Any]) -> Callable[..., Any]:
    def run_inflate(*args: Any) -> Any:
        measured = real(*args)
        _, reading, decoding, size = measured
        costs.seconds_reading += reading
        costs.seconds_decoding += decoding
        costs.bytes_read += size
        costs.bytes_decoded += args[-1].nbytes
        return measured

    return run_inflate


_OBSERVED: Final = (
    (inflating, "run_inflate", _counting_inflates),
    (kernels, "run_kernels", _counting_kernels),
    (ranges, "read_bytes", _counting_reads),
    (chunks, "decode", _counting_decodes),
    (reading, "read_box", _counting_library),
)
