"""Sources of voxels (files or memory), and the foreground voxels of each scan."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from attrs import define, frozen

from medsegpy_core._util.locks import ForkSafeLock
from medsegpy_core.data.records import Record
from medsegpy_core.errors import ReadError, ShapeError
from medsegpy_core.hdf5.extents import Places
from medsegpy_core.loading.collate import Collation
from medsegpy_core.loading.scans import Opener, Scan
from medsegpy_core.reading.canonical_scan import CanonicalScan
from medsegpy_core.reading.lazy_arrays import full_selection, place_of, read_into
from medsegpy_core.reading.masks import UNLABELLED, UNLABELLED_UINT8, annotated_channels, unlabelled_value
from medsegpy_core.text import by
from medsegpy_core.typing import LazyArray, Selection

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


# Most voxels to keep per category and scan; of more, a random sample is kept. Patches centered on 65,536 different
# voxels are varied enough, and the memory per category is 256 KB instead of the size of the scan.
_REMEMBERED: Final = 1 << 16


class ForegroundIndex:
    """The foreground voxels of each category, per scan, read when a scan is first requested. Thread-safe.

    Args:
        sources: The scans.
        channels: Channels of a collated mask.
        background: Whether the first channel is the background, which is not foreground.
    """

    def __init__(self, sources: Sequence[Source], channels: int, background: bool):
        self._sources = sources
        self._channels = channels
        self._background = background
        self._found: dict[int, tuple[Array, ...]] = {}
        self._lock = ForkSafeLock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=ForkSafeLock())

    def locations(self, number: int) -> tuple[Array, ...]:
        """Return the flat indices (H x W x D, C order) of the voxels of each category present in scan `number`."""
        found = self._found.get(number)
        if found is None:
            # Under a lock, so that two threads do not read the same scan.
            with self._lock:
                found = self._found.get(number)
                if found is None:
                    found = self._found[number] = self._read(number)
        return found

    def forget(self, number: int) -> None:
        """Read scan `number` again on the next request."""
        self._found.pop(number, None)

    def _read(self, number: int) -> tuple[Array, ...]:
        source = self._sources[number]
        h, w, d = source.geometry.shape
        if not any(record.labelled for record in source.scan.records):
            return ()
        mask = np.empty((h, w, d, self._channels), np.uint8)
        source.read((slice(0, h), slice(0, w), slice(0, d)), None, mask)
        mask[mask == UNLABELLED_UINT8] = 0
        rng = np.random.Generator(np.random.PCG64(number))
        found = []
        for channel in range(int(self._background), self._channels):
            voxels = np.flatnonzero(mask[..., channel])
            if voxels.size > _REMEMBERED:
                voxels = np.sort(rng.choice(voxels, _REMEMBERED, replace=False))
            if voxels.size:
                found.append(voxels.astype(np.int32 if mask[..., 0].size < 2**31 else np.int64))
        return tuple(found)


@frozen
class Geometry:
    """The shape of a scan.

    Attributes:
        shape: H, W and D.
        channels: The number of image channels; None: no channel axis.
        metadata: The metadata of the file.
    """

    shape: tuple[int, int, int]
    channels: int | None
    metadata: Mapping[str, Any]


class Source(Protocol):
    """Provides boxes of one scan from files or memory."""

    @property
    def scan(self) -> Scan:
        """The scan."""

    @property
    def geometry(self) -> Geometry:
        """Its shape."""

    def record_at(self, depth: int) -> Record:
        """Return the record of a slice; see `ScanSource.record_at`."""

    def slice_files(self, depths: range) -> set[str]:
        """Return the files that a read of these slices reads entirely."""

    def places(self, box: Selection, mask_depth: slice | None) -> Places | None:
        """Return the place of a box in files; see `ScanSource.places`."""

    def padding(self, depths: range, dtype: np.dtype[Any]) -> Array:
        """Return the padding values of a mask; see `ScanSource.padding`."""

    def read(self, box: Selection, image: Array | None, mask: Array | None, mask_depth: slice | None = None) -> None:
        """Read a box of the image and of the mask; see `ScanSource.read`."""

    def forget(self) -> None:
        """Forget the cached headers; see `ScanSource.forget`."""


@define(eq=False)
class ScanSource:
    """Reads boxes of one scan from its files. Thread-safe.

    Boxes lie inside the scan. Images are H x W x D [x K], masks H x W x D x C, collated. Unknown voxels of masks, such
    as those of a slice without a mask, are -1 (uint8: 255). The nearest existing slice replaces a missing one.
    """

    scan: Scan
    opener: Opener
    collation: Collation
    _geometry: Geometry | None = None
    _planned: Geometry | None = None

    @property
    def geometry(self) -> Geometry:
        """The shape, from the header of the (first) file.

        Raises:
            ReadError: The file cannot be read, or its shape changed since the elements were planned.
        """
        # No lock: two threads may both read it, but get the same value.
        found = self._geometry
        if found is None:
            found = self._geometry = self._read_geometry()
        return found

    def keep_planned(self) -> None:
        """Treat the current shape, if it is known, as the one for which the elements were planned."""
        self._planned = self._geometry

    def forget(self) -> None:
        """Forget the cached headers, because the files may have been replaced in the meantime."""
        self._geometry = None
        self.opener.forget(self.scan.records)

    def _read_geometry(self) -> Geometry:
        first = self.scan.records[0]
        with self.opener.open(first) as opened:
            shape, metadata = opened.image.shape, dict(opened.metadata)
        h, w, *rest = shape
        d = rest.pop(0) if self.scan.is_volume else (first.scan_num_slices or 1)
        found, planned = Geometry((h, w, d), rest[0] if rest else None, metadata), self._planned
        if planned is not None and (found.shape, found.channels) != (planned.shape, planned.channels):
            raise _changed(first, (h, w, d, *rest), (*planned.shape, *([planned.channels] if planned.channels else [])))
        return found

    def record_at(self, depth: int) -> Record:
        """Return the record of the slice at `depth` (from 0), or of the nearest existing slice."""
        records = self.scan.records
        if self.scan.is_volume:
            return records[0]
        wanted = depth + 1
        if len(records) == records[0].scan_num_slices:
            return records[min(max(depth, 0), len(records) - 1)]
        i = bisect.bisect_left(records, wanted, key=lambda record: record.slice_id or 0)
        neighbors = records[max(0, i - 1) : i + 1]
        return min(neighbors, key=lambda record: abs((record.slice_id or 0) - wanted))

    def slice_files(self, depths: range) -> set[str]:
        """Return the files that a read of these slices reads entirely: none for a volume, which is read in part."""
        if self.scan.is_volume:
            return set()
        records = {id(record): record for record in map(self.record_at, depths)}.values()
        return {file for record in records for file in record.files if file is not None}

    def places(self, box: Selection, mask_depth: slice | None) -> Places | None:
        """Return the place of a box of image and mask in files.

        None if the bytes need conversion, the box spans several records, or the files are invalid; then use `read`,
        which also raises the errors.

        Args:
            box: H, W and D.
            mask_depth: The part of the box's D for which to return the mask; None: no mask.
        """
        if not self.scan.is_volume and box[2].stop - box[2].start != 1:
            return None
        record = self.record_at(box[2].start)
        opened = self.opener.opened(record)
        if opened is None or opened.image.shape != self._record_shape:
            return None
        spatial = box if self.scan.is_volume else box[:2]
        image = place_of(opened.image, spatial)
        if image is None:
            return None
        if mask_depth is None:
            return self._mapped(Places(image, None, None))
        spatial = (*box[:2], mask_depth) if self.scan.is_volume else box[:2]
        mask = None if opened.mask is None else self.collation.place(opened.mask, spatial)
        return None if mask is None else self._mapped(Places(image, *mask))

    def _mapped(self, places: Places) -> Places | None:
        """Return the places in mapped files if `mmap` is on; None if the files are not mapped yet."""
        if not self.opener.access.mmap:
            return places
        image, mask = places.image.in_memory(), None if places.mask is None else places.mask.in_memory()
        if image is None or (mask is None and places.mask is not None):
            return None
        return places._replace(image=image, mask=mask)

    def padding(self, depths: range, dtype: np.dtype[Any]) -> Array:
        """Return the constant with which a mask is padded: no category, or unknown.

        It is unknown for slices without a mask, and for categories whose channels are not annotated.

        Args:
            depths: The slices; a slice outside the scan has the value of the nearest one inside.
            dtype: The type of the mask.

        Returns:
            Values per depth and category.
        """
        rows = np.empty((len(depths), self.collation.channels), dtype)
        for i, depth in enumerate(depths):
            record = self.record_at(min(max(depth, 0), self.geometry.shape[2] - 1))
            unlabelled = unlabelled_value(rows.dtype)
            rows[i] = self.collation.empty(annotated_channels(record), dtype) if record.labelled else unlabelled
        return rows

    @property
    def _record_shape(self) -> tuple[int, ...]:
        """The expected image shape of each record."""
        geometry = self.geometry
        shape: tuple[int, ...] = geometry.shape if self.scan.is_volume else geometry.shape[:2]
        return shape if geometry.channels is None else (*shape, geometry.channels)

    def read(self, box: Selection, image: Array | None, mask: Array | None, mask_depth: slice | None = None) -> None:
        """Read a box of the image and of the mask.

        Args:
            box: H, W and D.
            image: Receives the image, H x W x D [x K]; None: skip it.
            mask: Receives the mask, H x W x D x C; None: skip it.
            mask_depth: The part of the box's D for which to read the mask; None: all of it.
        """
        depth = box[2] if mask_depth is None else mask_depth
        if self.scan.is_volume:
            self._read_volume(box, image, mask, (*box[:2], depth))
            return
        for d in range(box[2].start, box[2].stop):
            plane = None if image is None else image[:, :, d - box[2].start]
            wants_mask = mask is not None and depth.start <= d < depth.stop
            plane_mask = mask[:, :, d - depth.start] if mask is not None and wants_mask else None
            if plane is not None or plane_mask is not None:
                self._read_slice(self.record_at(d), box[:2], plane, plane_mask)

    def _read_volume(self, box: Selection, image: Array | None, mask: Array | None, mask_box: Selection) -> None:
        record = self.scan.records[0]
        with self.opener.open(record) as opened:
            if opened.image.shape != self._record_shape:
                raise _changed(record, opened.image.shape, self._record_shape)
            if image is not None:
                read_into(opened.image, (*box, *_rest(opened.image, 3)), image)
            if mask is not None:
                self._collate(opened, mask_box, mask, record)

    def _read_slice(self, record: Record, box: Selection, image: Array | None, mask: Array | None) -> None:
        with self.opener.open(record) as opened:
            expected = self._record_shape
            if opened.image.shape != expected:
                first = self.scan.records[0]
                raise ShapeError(
                    f"Slice {record.slice_id} of scan {record.scan_id!r} ({record.file_name}) is "
                    f"{by(opened.image.shape)}, but slice {first.slice_id} ({first.file_name}) is {by(expected)}. "
                    "All slices of a scan must have the same size."
                )
            if image is not None:
                read_into(opened.image, (*box, *_rest(opened.image, 2)), image)
            if mask is not None:
                self._collate(opened, box, mask, record)

    def _collate(self, opened: CanonicalScan, box: Selection, out: Array, record: Record) -> None:
        if opened.mask is None:
            out[...] = unlabelled_value(out.dtype)
        else:
            self.collation.read(opened.mask, box, out, record.sem_seg_file)


@define(eq=False)
class MemorySource:
    """Reads boxes of a scan in memory, with the same results as `ScanSource`.

    Attributes:
        image: H x W x D [x K], float32.
        mask: H x W x D x C, uint8, 255 for unknown voxels.
    """

    scan: Scan
    geometry: Geometry
    image: Array
    mask: Array
    _files: ScanSource

    @classmethod
    def load(cls, files: ScanSource, channels: int) -> MemorySource:
        """Read a whole scan."""
        geometry = files.geometry
        extra = () if geometry.channels is None else (geometry.channels,)
        image = np.empty(geometry.shape + extra, np.float32)
        mask = np.empty((*geometry.shape, channels), np.uint8)
        files.read(full_selection(geometry.shape), image, mask)
        return cls(files.scan, geometry, image, mask, files)

    def record_at(self, depth: int) -> Record:
        """See `ScanSource.record_at`."""
        return self._files.record_at(depth)

    def slice_files(self, depths: range) -> set[str]:
        """Return no files; see `ScanSource.slice_files`."""
        del depths
        return set()

    def padding(self, depths: range, dtype: np.dtype[Any]) -> Array:
        """See `ScanSource.padding`."""
        return self._files.padding(depths, dtype)

    def places(self, box: Selection, mask_depth: slice | None) -> Places | None:
        """Return None: the scan is in memory; see `ScanSource.places`."""
        del box, mask_depth
        return None

    def forget(self) -> None:
        """Do nothing: the scan is in memory; see `ScanSource.forget`."""

    def read(self, box: Selection, image: Array | None, mask: Array | None, mask_depth: slice | None = None) -> None:
        """See `ScanSource.read`."""
        if image is not None:
            image[...] = self.image[box]
        if mask is not None:
            values = self.mask[(*box[:2], box[2] if mask_depth is None else mask_depth)]
            mask[...] = values
            if mask.dtype != np.uint8:
                mask[values == UNLABELLED_UINT8] = UNLABELLED


def _rest(array: LazyArray, spatial: int) -> Selection:
    return full_selection(array.shape[spatial:])


def _changed(record: Record, found: tuple[int, ...], expected: tuple[int, ...]) -> ReadError:
    return ReadError(
        f"the file changed since the loader read its header: the image was {by(expected)} and is now {by(found)}. "
        "Restore the old file, or build the loader again",
        record.file_name,
        element=record.where(),
    )
