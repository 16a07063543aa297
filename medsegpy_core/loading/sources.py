"""Scans: the records that belong together, read as one volume, whether they are slices or a volume."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from attrs import define, frozen

from medsegpy_core.errors import ShapeError
from medsegpy_core.hdf5.access import DEFAULT_ACCESS, Access, accessing, current_access
from medsegpy_core.lazy import full_selection, read_into
from medsegpy_core.loading.collate import Collation
from medsegpy_core.opening import CanonicalScan, label_channels, open_record
from medsegpy_core.readers import find_reader, reader_by_name
from medsegpy_core.records import Record, ScanKey
from medsegpy_core.typing import LazyArray, Reader, Selection

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = [
    "UNLABELLED",
    "UNLABELLED_UINT8",
    "Geometry",
    "MemorySource",
    "Opener",
    "Scan",
    "ScanSource",
    "Source",
    "group_scans",
    "unlabelled_value",
]

UNLABELLED: Final = -1
UNLABELLED_UINT8: Final = 255


def unlabelled_value(mask: Array) -> int:
    """Return what stands for "unlabelled" in a mask of this type."""
    return UNLABELLED_UINT8 if mask.dtype == np.uint8 else UNLABELLED


@frozen
class Scan:
    """One scan: a volume, or slices in the order of their numbers.

    Attributes:
        key: (dataset, scan_id, augmentation).
        records: One record for a volume, else the slices that are there, by slice_id.
    """

    key: ScanKey
    records: tuple[Record, ...]

    @property
    def is_volume(self) -> bool:
        """Whether the scan is one volume."""
        return self.records[0].kind == "volume"

    @property
    def missing(self) -> list[int]:
        """The numbers of the slices that are not there."""
        if self.is_volume:
            return []
        present = {record.slice_id for record in self.records}
        return [i for i in range(1, (self.records[0].scan_num_slices or 0) + 1) if i not in present]

    @property
    def labelled(self) -> bool:
        """Whether all of the scan has a mask."""
        return all(record.labelled for record in self.records)


def group_scans(records: Sequence[Record]) -> list[Scan]:
    """Group records into scans, in the order in which the scans first occur."""
    groups: dict[ScanKey, list[Record]] = {}
    for record in records:
        groups.setdefault(record.scan_key, []).append(record)
    return [
        Scan(key, tuple(sorted(members, key=lambda record: record.slice_id or 0))) for key, members in groups.items()
    ]


@frozen
class Opener:
    """Opens records with readers that were looked up once, so that no registration is needed in another process."""

    readers: dict[tuple[str, str | None, str], Reader]
    label_channels: dict[str, int | None]
    access: Access = DEFAULT_ACCESS

    @classmethod
    def of(cls, records: Sequence[Record], access: Access = DEFAULT_ACCESS) -> Opener:
        """Look up the readers, and what they need, for all of the records.

        Files are read as `access` says; where that is the default, as is said here and now, see `accessing`.
        """
        access = current_access() if access == DEFAULT_ACCESS else access
        by_name: dict[tuple[str, str | None, str], Reader | None] = {}
        by_content: dict[tuple[str, str | None, str], Reader] = {}
        with accessing(access):  # a reader may have to look into a file to say whether it is its own
            for record in records:
                key = _reader_key(record)
                if key not in by_name:
                    by_name[key] = reader_by_name(record)
                if by_name[key] is None and (file := _file_key(record)) not in by_content:
                    by_content[file] = find_reader(record)
        readers = {**by_content, **{key: reader for key, reader in by_name.items() if reader is not None}}
        return cls(readers, {name: label_channels(name) for name in {record.dataset for record in records}}, access)

    def open(self, record: Record) -> AbstractContextManager[CanonicalScan]:
        """Open a record; its arrays are read as `access` says while it is open, in this thread."""
        return self._open(record) if self.access == DEFAULT_ACCESS else self._open_so(record)

    def _open(self, record: Record) -> AbstractContextManager[CanonicalScan]:
        reader = self.readers.get(_reader_key(record)) or self.readers[_file_key(record)]
        return open_record(record, reader, self.label_channels[record.dataset])

    @contextmanager
    def _open_so(self, record: Record) -> Iterator[CanonicalScan]:
        with accessing(self.access), self._open(record) as opened:
            yield opened


def _reader_key(record: Record) -> tuple[str, str | None, str]:
    # Two parts, for ".nii.gz".
    return record.dataset, record.reader, ".".join(record.file_name.name.rsplit(".", 2)[1:])


def _file_key(record: Record) -> tuple[str, str | None, str]:
    return record.dataset, record.reader, str(record.file_name)


@frozen
class Geometry:
    """The shape of a scan.

    Attributes:
        shape: H, W and D.
        channels: The image's channels where it has a channel axis, else None.
        metadata: What the file itself says.
    """

    shape: tuple[int, int, int]
    channels: int | None
    metadata: Mapping[str, Any]


class Source(Protocol):
    """Where the boxes of one scan come from: files, or memory."""

    @property
    def scan(self) -> Scan:
        """The scan."""

    @property
    def geometry(self) -> Geometry:
        """Its shape."""

    def record_at(self, depth: int) -> Record:
        """Return the record that stands for a slice."""

    def slice_files(self, depths: range) -> set[str]:
        """Return the files that a read of these slices takes whole."""

    def read(self, box: Selection, image: Array | None, mask: Array | None, mask_depth: slice | None = None) -> None:
        """Read a box of the image, and of the mask; see `ScanSource.read`."""


@define(eq=False)
class ScanSource:
    """Reads boxes of one scan.

    Boxes lie inside the scan. Images are H x W x D [x K], masks H x W x D x C, collated; where a slice has no mask,
    its mask is -1 (255 as uint8). A slice that is missing is replaced by the nearest that is there. May be used
    from several threads.
    """

    scan: Scan
    opener: Opener
    collation: Collation
    _geometry: Geometry | None = None

    @property
    def geometry(self) -> Geometry:
        """The shape, from the header of the (first) file."""
        # Two threads may both read it: the same value, so no lock.
        if self._geometry is None:
            self._geometry = self._read_geometry()
        return self._geometry

    def _read_geometry(self) -> Geometry:
        first = self.scan.records[0]
        with self.opener.open(first) as opened:
            shape, metadata = opened.image.shape, dict(opened.metadata)
        h, w, *rest = shape
        d = rest.pop(0) if self.scan.is_volume else (first.scan_num_slices or 1)
        return Geometry((h, w, d), rest[0] if rest else None, metadata)

    def record_at(self, depth: int) -> Record:
        """Return the record that holds the slice at `depth` (from 0), or the nearest one that is there."""
        records = self.scan.records
        if self.scan.is_volume:
            return records[0]
        wanted = depth + 1
        if len(records) == records[0].scan_num_slices:
            return records[min(max(depth, 0), len(records) - 1)]
        i = bisect.bisect_left(records, wanted, key=lambda record: record.slice_id or 0)
        neighbours = records[max(0, i - 1) : i + 1]
        return min(neighbours, key=lambda record: abs((record.slice_id or 0) - wanted))

    def slice_files(self, depths: range) -> set[str]:
        """Return the files that a read of these slices takes whole; none of a volume, of which a box is a part."""
        if self.scan.is_volume:
            return set()
        records = {id(record): record for record in map(self.record_at, depths)}.values()
        return {os.fspath(f) for record in records for f in (record.file_name, record.sem_seg_file) if f is not None}

    def read(self, box: Selection, image: Array | None, mask: Array | None, mask_depth: slice | None = None) -> None:
        """Read a box of the image, and of the mask.

        Args:
            box: H, W and D.
            image: Where to write H x W x D [x K]; None: do not.
            mask: Where to write H x W x D x C; None: do not.
            mask_depth: The part of the box's D that the mask is wanted of; None: all of it.
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
            if image is not None:
                read_into(opened.image, (*box, *_rest(opened.image, 3)), image)
            if mask is not None:
                self._collate(opened, mask_box, mask, record)

    def _read_slice(self, record: Record, box: Selection, image: Array | None, mask: Array | None) -> None:
        with self.opener.open(record) as opened:
            expected = self.geometry.shape[:2] + (
                (self.geometry.channels,) if self.geometry.channels is not None else ()
            )
            if opened.image.shape != expected:
                first = self.scan.records[0]
                raise ShapeError(
                    f"Slice {record.slice_id} of scan {record.scan_id!r} ({record.file_name}) is "
                    f"{_by(opened.image.shape)}, but slice {first.slice_id} ({first.file_name}) is {_by(expected)}. "
                    "The slices of a scan have one size."
                )
            if image is not None:
                read_into(opened.image, (*box, *_rest(opened.image, 2)), image)
            if mask is not None:
                self._collate(opened, box, mask, record)

    def _collate(self, opened: CanonicalScan, box: Selection, out: Array, record: Record) -> None:
        if opened.mask is None:
            out[...] = unlabelled_value(out)
        else:
            self.collation.read(opened.mask, box, out, record.sem_seg_file)


@define(eq=False)
class MemorySource:
    """Reads boxes of a scan that is in memory, with the same results as `ScanSource`.

    Attributes:
        image: H x W x D [x K], float32.
        mask: H x W x D x C, uint8, 255 where there is no label.
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
        """See `ScanSource.slice_files`: there are none."""
        del depths
        return set()

    def read(self, box: Selection, image: Array | None, mask: Array | None, mask_depth: slice | None = None) -> None:
        """See `ScanSource.read`."""
        if image is not None:
            image[...] = self.image[box]
        if mask is not None:
            values = self.mask[(*box[:2], box[2] if mask_depth is None else mask_depth)]
            mask[...] = values
            if mask.dtype != np.uint8:
                mask[values == UNLABELLED_UINT8] = UNLABELLED


def _by(shape: tuple[int, ...]) -> str:
    """Return a shape as messages show it."""
    return " x ".join(map(str, shape))


def _rest(array: LazyArray, spatial: int) -> Selection:
    return full_selection(array.shape[spatial:])
