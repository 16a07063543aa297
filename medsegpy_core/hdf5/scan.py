"""`open_h5_scan`: from a record to the arrays of its HDF5 files. Both HDF5 reader plugins open their records here."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import frozen

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.array import LazyReads, open_array
from medsegpy_core.hdf5.layout import locate_all
from medsegpy_core.hdf5.views import AtIndex, Bitfield, Stacked
from medsegpy_core.records import Record

__all__ = ["H5Scan", "open_h5_scan", "prepare_h5_scans"]


@frozen
class H5Scan:
    """The arrays of a record, in stored axis order; see `OpenScan`.

    A slice that is stored with a unit axis (H x W x 1, H x W x 1 x C) comes without it, unless the record
    names the axes.
    """

    image: LazyReads
    mask: LazyReads | None
    metadata: Mapping[str, Any]
    mask_metadata: Mapping[str, Any]
    # No file stays open: each read opens it, and looks whether it is still the same.
    detached = True


@contextmanager
def open_h5_scan(record: Record) -> Iterator[H5Scan]:
    """Open image and mask of a record.

    Keys that the record leaves out are ``data`` in each of two files, ``volume`` and ``seg`` in one (beside the image
    where that lies in a group), and without a mask ``volume`` or ``data``, whichever is there. Several image keys
    become channels on a new last axis. A bit-field mask is expanded.

    Args:
        record: A slice or a volume. A slice of a file that holds the whole volume is taken from its third axis.

    Raises:
        ReadError: A file cannot be read, or its arrays do not fit the record.
    """
    image_path, mask_path = record.files
    mask_metadata: Mapping[str, Any] = {}
    parts = [open_array(image_path, key) for key in _image_keys(record, image_path == mask_path)]
    mask: LazyReads | None = None
    if mask_path is not None:
        stored = open_array(mask_path, _mask_key(record, image_path == mask_path))
        # What the root of the image's own file says, the image may say otherwise.
        mask_metadata = stored.said.metadata(record.extra.get("sem_seg_axes"), own=image_path == mask_path)
        mask = stored if stored.said.bitfield is None else Bitfield(stored, stored.said.bitfield)
    images: list[LazyReads] = list(parts)
    depth = _depth(images[0], record)
    if "image_axes" not in record.extra:
        images = [_image_of(array, record, depth) for array in images]
    if mask is not None and "sem_seg_axes" not in record.extra:
        mask = _mask_of(mask, record, depth is not None)
    _check_shapes([array.shape for array in images], record)
    image = Stacked(images) if isinstance(record.image_key, tuple) else images[0]
    yield H5Scan(image, mask, parts[0].said.metadata(record.extra.get("image_axes")), mask_metadata)


def prepare_h5_scans(records: Iterable[Record]) -> None:
    """Look into the files of many records that will be opened: once into each file, whatever it holds.

    What is wrong with one is reported when it is opened.
    """
    wanted: dict[str, dict[tuple[str, ...], None]] = {}
    for record in records:
        image_path, mask_path = record.files
        keys = wanted.setdefault(image_path, {})
        for key in _image_keys(record, image_path == mask_path):
            keys[(key,) if isinstance(key, str) else key] = None
        if mask_path is not None:
            wanted.setdefault(mask_path, {})[_mask_key(record, image_path == mask_path),] = None
    for path, keys in wanted.items():
        if len(keys) > 1:
            locate_all(path, keys)


def _image_keys(record: Record, one_file: bool) -> list[str | tuple[str, ...]]:
    if record.image_key is not None:
        return [record.image_key] if isinstance(record.image_key, str) else list(record.image_key)
    if not record.labelled:
        return [("data", "volume") if record.kind == "slice" else ("volume", "data")]
    return ["volume" if one_file else "data"]


def _mask_key(record: Record, one_file: bool) -> str:
    if record.sem_seg_key is not None:
        return record.sem_seg_key
    if not one_file:
        return "data"
    beside = record.image_key if isinstance(record.image_key, str) else (record.image_key or ("",))[0]
    return posixpath.join(posixpath.dirname(beside.strip("/")), "seg")


def _depth(image: LazyReads, record: Record) -> int | None:
    """Return the depth of the volume that the image of a slice record lies in; None: it is stored by itself."""
    if record.kind == "volume":
        return None
    if (axes := record.extra.get("image_axes")) is not None:
        # The core takes the slice of the image; the axes of the mask are not given by these.
        at = axes.find("D")
        return image.shape[at] if 0 <= at < len(image.shape) and image.shape[at] > 1 else None
    if len(image.shape) != 3 or image.shape[2] == 1:
        return None
    if image.shape[2] == record.scan_num_slices:
        return image.shape[2]
    raise ReadError(
        f"{record.where()} is a slice, but the image is {_by(image.shape)}: neither H x W nor H x W x 1, nor the whole "
        f"scan of {record.scan_num_slices} slices. If the last axis holds channels, say so: image_axes='HWC' in the "
        "dict or the metadata",
        record.file_name,
    )


def _image_of(array: LazyReads, record: Record, depth: int | None) -> LazyReads:
    if record.kind == "volume" or len(array.shape) != 3:
        return array
    # Only the third axis of a stored slice is ever left out: H and W may be 1 as well.
    return AtIndex(array, 2, _index(record) if depth else 0) if array.shape[2] in (1, depth) else array


def _mask_of(mask: LazyReads, record: Record, whole_volume: bool) -> LazyReads:
    rank = len(mask.shape)
    # With three axes the last is the depth where the image is a whole volume or the mask a label map; else channels.
    if record.kind == "volume" or not (rank == 4 or (rank == 3 and (whole_volume or record.extra.get("label_map")))):
        return mask
    if mask.shape[2] not in (1, record.scan_num_slices):
        raise ReadError(
            f"the mask is {_by(mask.shape)}, but that of a slice has 1 on its third axis, or {record.scan_num_slices} "
            "for the whole scan. If its axes are others, say so: sem_seg_axes='HWDC' in the dict or the metadata",
            record.sem_seg_file,
        )
    return AtIndex(mask, 2, 0 if mask.shape[2] == 1 else _index(record))


def _index(record: Record) -> int:
    return (record.slice_id or 1) - 1


def _check_shapes(shapes: list[tuple[int, ...]], record: Record) -> None:
    keys = record.image_key
    for i, shape in enumerate(shapes):
        if shape != shapes[0] and isinstance(keys, tuple):
            raise ReadError(
                f"channels have one shape, but {keys[0]!r} is {_by(shapes[0])} and {keys[i]!r} is {_by(shape)}",
                record.file_name,
            )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
