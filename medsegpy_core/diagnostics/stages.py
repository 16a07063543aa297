"""The cost of each stage of reading: bytes touched and needed, and seconds."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import evolve, frozen

from medsegpy_core.hdf5.costs import observed
from medsegpy_core.loading.batches import BatchMaker
from medsegpy_core.loading.buffers import KeptBuffers
from medsegpy_core.loading.collate import Collation
from medsegpy_core.loading.scans import Opener, Scan
from medsegpy_core.loading.sources import ScanSource, Source
from medsegpy_core.reading.canonical_scan import CanonicalScan
from medsegpy_core.reading.lazy_arrays import full_selection, packed_bits, packed_unknown_bits, read_into
from medsegpy_core.reading.masks import AnnotatedView, LabelMapView

if TYPE_CHECKING:
    from pathlib import Path

    from medsegpy_core.data.records import Record
    from medsegpy_core.loading import DataLoader
    from medsegpy_core.typing import Array, LazyArray, Selection


_PATCH: Final = (64, 64, 64)
# From this ratio on, a better layout is suggested.
_WASTE: Final = 2.0
_BITS: Final = 8


@frozen
class AccessCost:
    """The cost of one read.

    Attributes:
        what: ``"slice"`` or ``"patch"``.
        touched: Bytes read or decoded, whichever is more.
        needed: Bytes with an ideal layout: those of the box in the image, and in the mask as bits.
    """

    what: str
    touched: int
    needed: int

    @property
    def wasteful(self) -> bool:
        """Whether it costs more than twice as much as with an ideal layout."""
        return self.touched > _WASTE * self.needed

    def advice(self, dataset: str) -> str:
        """Return the advice for the dataset with this name."""
        layout = "slices" if self.what == "slice" else "patches"
        return (
            f"reading a {self.what} processes {self.touched / self.needed:.1f} times the bytes that it needs; "
            f"medsegpy pack {dataset} --layout {layout} avoids that"
        )


def access_costs(scan: Scan, opener: Opener) -> list[AccessCost]:
    """Read a slice and a patch of a scan, and return the costs; empty for files that are not HDF5.

    Raises:
        ReadError: The scan cannot be read.
    """
    record = scan.records[len(scan.records) // 2]
    with opener.open(record) as opened:
        shape = opened.image.shape[: 3 if scan.is_volume else 2]
        if not scan.is_volume:
            boxes = {"slice": full_selection(shape)}
        else:
            middle = shape[2] // 2
            boxes = {"slice": (*full_selection(shape[:2]), slice(middle, middle + 1)), "patch": _patch(shape)}
        costs = (_cost(what, opened, box) for what, box in boxes.items())
        return [cost for cost in costs if cost.touched]


def _patch(shape: Sequence[int]) -> Selection:
    sizes = [min(n, p) for n, p in zip(shape, _PATCH, strict=True)]
    # Centered, not at the corner of a chunk, because patches may start anywhere.
    return tuple(slice((n - size) // 2, (n - size) // 2 + size) for n, size in zip(shape, sizes, strict=True))


def _cost(what: str, opened: CanonicalScan, box: Selection) -> AccessCost:
    voxels = int(np.prod([part.stop - part.start for part in box]))
    channels = int(np.prod(opened.image.shape[len(box) :]))
    needed = voxels * channels * opened.image.dtype.itemsize
    with observed() as costs:
        _read(opened.image, box)
        if opened.mask is not None:
            if isinstance(opened.mask, LabelMapView):
                # Read label maps as stored: to count their channels may require reading all of them.
                _read(opened.mask.array, box)
                needed += voxels * opened.mask.array.dtype.itemsize
            else:
                _read(opened.mask, box)
                needed += voxels * -(-opened.mask.shape[-1] // _BITS)
    return AccessCost(what, costs.bytes_touched, needed)


def _read(array: LazyArray, box: Selection) -> None:
    selection = (*box, *full_selection(array.shape[len(box) :]))
    read_into(array, selection, np.empty([part.stop - part.start for part in selection], array.dtype))


# Stage to seconds.
Clock = defaultdict[str, float]

STAGES: Final = ("locate", "read", "decode", "collate", "transform", "other", "wait")


def stage_seconds(loader: DataLoader, number: int) -> dict[str, float]:
    """Make the first `number` batches of a loader in this thread and return the seconds per batch of each stage.

    * ``locate``: opening records: locating their data, or checking that the file is unchanged.
    * ``read``: reading stored values, without decompression.
    * ``decode``: decompression.
    * ``collate``: converting the channels of masks to categories.
    * ``transform``: `PREPROCESSING` and `transform`.
    * ``other``: choosing elements, padding, and Python overhead.
    * ``wait``: waiting for the disk: the time of opening and reading that was not CPU time. The other stages do not
      include it.
    """
    clock: Clock = defaultdict(float)
    _load_libraries(loader.setup.files[0])
    maker = _instrumented(loader.setup.maker, clock)
    buffers = KeptBuffers()
    with observed() as costs:
        began = time.perf_counter()
        for i in range(number):
            numbers = [element.number for element in loader.elements(i)]
            maker.make(numbers, loader.epoch, buffers)
        total = time.perf_counter() - began
    batches = costs.batches
    clock["locate"] += batches.opening
    clock["wait"] += batches.waiting
    clock["decode"] = costs.seconds_decoding
    clock["read"] += batches.reading - clock["decode"]
    clock["collate"] += batches.converting - clock["read in collate"]
    named = {stage: max(0.0, clock[stage]) for stage in STAGES}
    named["other"] = max(0.0, total - sum(named.values()))
    return {stage: named[stage] / number for stage in STAGES}


def _load_libraries(source: ScanSource) -> None:
    """Read a voxel, so that the time of imports is not counted."""
    channels = source.geometry.channels
    image = np.empty((1, 1, 1) if channels is None else (1, 1, 1, channels), np.float32)
    source.read((slice(0, 1),) * 3, image, np.empty((1, 1, 1, source.collation.channels), np.uint8))


def _instrumented(maker: BatchMaker, clock: Clock) -> BatchMaker:
    sources: list[Source] = []
    for source in maker.sources:
        if isinstance(source, ScanSource):
            sources.append(
                evolve(source, opener=_Opener(source.opener, clock), collation=_Collation.of(source.collation, clock))
            )
        else:
            sources.append(source)
    pipeline = maker.pipeline
    return evolve(maker, sources=sources, pipeline=pipeline and _timed(pipeline, "transform", clock))


def _timed(function: Callable[..., Any], stage: str, clock: Clock) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        with _stage(stage, clock):
            return function(*args)

    return timed


@contextmanager
def _stage(stage: str, clock: Clock) -> Iterator[None]:
    """Add the CPU time to a stage, and the remaining time to ``wait``."""
    began, on_processor = time.perf_counter(), time.thread_time()
    try:
        yield
    finally:
        busy = time.thread_time() - on_processor
        clock[stage] += busy
        clock["wait"] += max(0.0, time.perf_counter() - began - busy)


class _Opener(Opener):
    """An opener that measures opening, with arrays that measure reading."""

    def __init__(self, opener: Opener, clock: Clock):
        object.__setattr__(self, "readers", opener.readers)
        object.__setattr__(self, "category_ids", opener.category_ids)
        object.__setattr__(self, "access", opener.access)
        object.__setattr__(self, "_real", opener)
        object.__setattr__(self, "_clock", clock)

    def open(self, record: Record) -> AbstractContextManager[CanonicalScan]:
        return self._open(record)

    def opened(self, record: Record) -> CanonicalScan | None:
        # `observed` counts what compiled kernels then read.
        with _stage("locate", self._clock):  # type: ignore[attr-defined]
            found: CanonicalScan | None = self._real.opened(record)  # type: ignore[attr-defined]
        return found

    @contextmanager
    def _open(self, record: Record) -> Iterator[CanonicalScan]:
        real: Opener = self._real  # type: ignore[attr-defined]
        clock: Clock = self._clock  # type: ignore[attr-defined]
        with contextlib.ExitStack() as stack:
            with _stage("locate", clock):
                opened = stack.enter_context(real.open(record))
            mask = opened.mask
            if isinstance(mask, LabelMapView | AnnotatedView):
                mask = mask.over(_Array(mask.array, clock))
            elif mask is not None:
                mask = _Array(mask, clock)
            yield CanonicalScan(_Array(opened.image, clock), mask, opened.metadata)


class _Array:
    """A lazy array that measures reading."""

    def __init__(self, array: LazyArray, clock: Clock):
        self._array = array
        self._clock = clock
        self.shape = array.shape
        self.dtype = array.dtype

    def __getitem__(self, selection: Any) -> Array:
        found: Array = _timed(self._array.__getitem__, "read", self._clock)(selection)
        return found

    def read_into(self, selection: Selection, out: Array) -> None:
        _timed(read_into, "read", self._clock)(self._array, selection, out)

    @property
    def packed(self) -> LazyArray | None:
        packed = packed_bits(self._array)
        return None if packed is None else _Array(packed, self._clock)

    @property
    def packed_unknown(self) -> LazyArray | None:
        packed = packed_unknown_bits(self._array)
        return None if packed is None else _Array(packed, self._clock)


@frozen
class _Collation(Collation):
    """A collation that measures its time, and the part of it that was spent on reading."""

    clock: Clock | None = None

    @classmethod
    def of(cls, collation: Collation, clock: Clock) -> _Collation:
        return cls(collation.category_ids, collation.background, collation.unknown, clock)

    def read(self, mask: LazyArray, selection: Selection, out: Array, path: Path | None) -> None:
        if self.clock is None:
            return super().read(mask, selection, out, path)
        before, began = self.clock["read"] + self.clock["wait"], time.perf_counter()
        super().read(mask, selection, out, path)
        self.clock["collate"] += time.perf_counter() - began
        self.clock["read in collate"] += self.clock["read"] + self.clock["wait"] - before
        return None
