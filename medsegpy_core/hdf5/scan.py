"""`open_h5_scan`: the arrays of a record's HDF5 files, with bit-field masks expanded and channels stacked."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import frozen

from medsegpy_core.data.records import Record
from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.array import LazyReads, open_array
from medsegpy_core.hdf5.read import locate_all
from medsegpy_core.reading.lazy_arrays import packed_bits, packed_unknown_bits
from medsegpy_core.text import by

if TYPE_CHECKING:
    from medsegpy_core.hdf5.extents import Place
    from medsegpy_core.typing import Array, LazyArray, Selection


_UNKNOWN: Final = 255


def pack_bitfield(mask: Array, unknown: bool = False) -> Array:
    """Pack the channels of a binary mask into bits.

    Args:
        mask: ... x C, bool or integer, with 0 and 1; with `unknown`, also 255.
        unknown: Whether voxels of a channel may be unknown. The same number of bytes then follows, with a bit set for
            each unknown value (``medsegpy_format`` 2).

    Returns:
        ... x ceil(C/8), uint8: channel c is bit c % 8, least significant first, of byte c // 8. With `unknown`, twice
        as many.

    Raises:
        ValueError: The mask has other values, or its type is not bool or integer.

    Example:
        >>> pack_bitfield(np.array([[1, 0, 0], [0, 1, 1]])).tolist()
        [[1], [6]]
    """
    values = np.asarray(mask)
    if unknown:
        not_known = values == _UNKNOWN
        return np.concatenate([pack_bitfield(np.where(not_known, 0, values)), pack_bitfield(not_known)], axis=-1)
    if values.dtype.kind not in "biu" or (values.size and (values.max() > 1 or values.min() < 0)):
        raise ValueError("Bits store 0 and 1; this mask has other values, or its type is not bool or integer.")
    return np.packbits(values.astype(bool, copy=False), axis=-1, bitorder="little")


def unpack_bitfield(packed: Array, channels: int) -> Array:
    """Undo `pack_bitfield`.

    Args:
        packed: ... x ceil(C/8), uint8; twice as many bytes if values may be unknown.
        channels: C.

    Returns:
        ... x C, uint8: 0, 1, or 255 for unknown.

    Example:
        >>> unpack_bitfield(np.array([[1], [6]], np.uint8), 3).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    size = -(-channels // 8)
    if packed.shape[-1] == size:
        return np.unpackbits(packed, axis=-1, count=channels, bitorder="little")
    return expand_bits(packed[..., :size], packed[..., size:])[..., :channels]


def expand_bits(packed: Array, unknown: Array) -> Array:
    """Expand packed bytes and their unknown bits (both ... x n) to channels: ... x 8 n with 0, 1 and 255."""
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    bits[np.unpackbits(unknown, axis=-1, bitorder="little").view(np.bool_)] = _UNKNOWN
    return bits


class AtIndex(LazyReads):
    """An array without one of its axes, at one position on that axis.

    Args:
        array: The array.
        axis: The axis, from the front.
        index: The position on it.
    """

    __slots__ = ("_at", "_axis", "_base", "_expand", "path")

    def __init__(self, array: LazyReads, axis: int, index: int = 0):
        self._base = array
        self._axis = axis
        self._at = slice(index, index + 1)
        self._expand = (*(slice(None),) * axis, None)
        self.path = array.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each remaining axis."""
        shape = self._base.shape
        return shape[: self._axis] + shape[self._axis + 1 :]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self._base.dtype

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box into `out`, see `LazyReads.read_into`."""
        axis = self._axis
        self._base.read_into((*selection[:axis], self._at, *selection[axis:]), out[self._expand])

    def place(self, selection: Selection) -> Place | None:
        """Return the place of a box in the file, see `LazyReads.place`."""
        axis = self._axis
        return self._base.place((*selection[:axis], self._at, *selection[axis:]))

    @property
    def packed(self) -> LazyArray | None:
        """The bytes of a packed mask; None for other arrays."""
        packed = packed_bits(self._base)
        return AtIndex(packed, self._axis, self._at.start) if isinstance(packed, LazyReads) else None

    @property
    def packed_unknown(self) -> LazyArray | None:
        """The bytes of a packed mask with unknown voxels; None for other arrays."""
        packed = packed_unknown_bits(self._base)
        return AtIndex(packed, self._axis, self._at.start) if isinstance(packed, LazyReads) else None

    @property
    def channels(self) -> int:
        """The size of the last axis."""
        return self.shape[-1]


class Stacked(LazyReads):
    """Arrays of one shape as channels on a new last axis, with their common type.

    Args:
        arrays: At least one.
    """

    __slots__ = ("_arrays", "_dtype", "path")

    def __init__(self, arrays: Sequence[LazyReads]):
        self._arrays = tuple(arrays)
        self._dtype = np.result_type(*(a.dtype for a in arrays))
        self.path = arrays[0].path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one array, and the number of arrays."""
        return (*self._arrays[0].shape, len(self._arrays))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The common type."""
        return self._dtype

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box into `out`, see `LazyReads.read_into`."""
        channels = selection[-1]
        for k in range(channels.start, channels.stop):
            self._arrays[k].read_into(selection[:-1], out[..., k - channels.start])


def _bytes_of(channels: int) -> int:
    return -(-channels // 8)


class Bitfield(LazyReads):
    """A packed mask, expanded: channel c is bit c % 8, least significant first, of byte c // 8 of the last axis.

    If values may be unknown, the same number of bytes follows, with a bit set for each unknown value.

    Args:
        stored: The bytes.
        channels: The number of channels.

    Attributes:
        packed: The bytes; None if values may be unknown.
        packed_unknown: The bytes if values may be unknown, else None.
        channels: The number of channels.
    """

    __slots__ = ("_stored", "channels", "packed", "packed_unknown", "path")

    def __init__(self, stored: LazyReads, channels: int):
        self._stored = stored
        twice = stored.shape[-1] == 2 * _bytes_of(channels)
        self.packed = None if twice else stored
        self.packed_unknown = stored if twice else None
        self.channels = channels
        self.path = stored.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape with one element per channel on the last axis."""
        return (*self._stored.shape[:-1], self.channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8: the values are 0, 1, and 255 for unknown."""
        return np.dtype(np.uint8)

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box into `out`, see `LazyReads.read_into`."""
        channels = selection[-1]
        first, stop, size = channels.start // 8, _bytes_of(channels.stop), _bytes_of(self.channels)
        if self.packed is not None:
            packed = self.packed[(*selection[:-1], slice(first, stop))]
            bits = np.unpackbits(packed, axis=-1, bitorder="little")
        else:
            stored = self._stored[(*selection[:-1], slice(0, 2 * size))]
            bits = expand_bits(stored[..., first:stop], stored[..., size + first : size + stop])
        out[...] = bits[..., channels.start - 8 * first : channels.stop - 8 * first]


@frozen
class H5Scan:
    """The arrays of a record, in stored axis order; see `OpenScan`.

    The unit axis of a stored slice (H x W x 1, H x W x 1 x C) is removed, unless the record names the axes.
    """

    image: LazyReads
    mask: LazyReads | None
    metadata: Mapping[str, Any]
    mask_metadata: Mapping[str, Any]
    # No file stays open: each read opens the file and checks that it is unchanged.
    detached = True


@contextmanager
def open_h5_scan(record: Record) -> Iterator[H5Scan]:
    """Open image and mask of a record.

    Default keys: ``data`` if image and mask are in two files; ``volume`` and ``seg`` (in the group of the image) if
    they are in one; ``volume`` or ``data``, whichever exists, if there is no mask. Several image keys become channels
    on a new last axis. A bit-field mask is expanded.

    Args:
        record: A slice or a volume. If the file of a slice contains the whole volume, the slice is taken from the third
            axis.

    Raises:
        ReadError: A file cannot be read, or its arrays do not fit the record.
    """
    image_path, mask_path = record.files
    mask_metadata: Mapping[str, Any] = {}
    parts = [open_array(image_path, key) for key in _image_keys(record, image_path == mask_path)]
    mask: LazyReads | None = None
    if mask_path is not None:
        stored = open_array(mask_path, _mask_key(record, image_path == mask_path))
        # In the same file as the image, ignore inherited metadata: the image may override them.
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
    """Locate the arrays of many records before they are opened, with one look into each file.

    Errors are raised later, when a record is opened.
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
    """Return the depth of the volume that contains the image of a slice record; None: the slice is stored alone."""
    if record.kind == "volume":
        return None
    if (axes := record.extra.get("image_axes")) is not None:
        # The core cuts the slice out of the image. The axes of the mask are declared separately.
        at = axes.find("D")
        return image.shape[at] if 0 <= at < len(image.shape) and image.shape[at] > 1 else None
    if len(image.shape) != 3 or image.shape[2] == 1:
        return None
    if image.shape[2] == record.scan_num_slices:
        return image.shape[2]
    raise ReadError(
        f"{record.where()} is a slice, but the image is {by(image.shape)}: neither H x W nor H x W x 1, nor the whole "
        f"scan of {record.scan_num_slices} slices. If the last axis is channels, set image_axes='HWC' in the dict "
        "or the metadata",
        record.file_name,
    )


def _image_of(array: LazyReads, record: Record, depth: int | None) -> LazyReads:
    if record.kind == "volume" or len(array.shape) != 3:
        return array
    # Remove only the third axis: H and W may be 1 as well.
    return AtIndex(array, 2, _index(record) if depth else 0) if array.shape[2] in (1, depth) else array


def _mask_of(mask: LazyReads, record: Record, whole_volume: bool) -> LazyReads:
    rank = len(mask.shape)
    # Of three axes, the last is the depth if the image is a whole volume or the mask a label map, else the channels.
    if record.kind == "volume" or not (rank == 4 or (rank == 3 and (whole_volume or record.extra.get("label_map")))):
        return mask
    if mask.shape[2] not in (1, record.scan_num_slices):
        raise ReadError(
            f"the mask is {by(mask.shape)}, but that of a slice has 1 on its third axis, or {record.scan_num_slices} "
            "for the whole scan. If it has other axes, set sem_seg_axes='HWDC' in the dict or the metadata",
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
                f"channels must have one shape, but {keys[0]!r} is {by(shapes[0])} and {keys[i]!r} is {by(shape)}",
                record.file_name,
            )
