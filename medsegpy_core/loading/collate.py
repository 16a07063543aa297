"""Collate masks: convert the stored channels, bits or labels of voxels to the selected categories."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import frozen

from medsegpy_core.data.categories import channels_of, required_channels
from medsegpy_core.errors import CategoryError, RecordError
from medsegpy_core.hdf5.backend import current_backend
from medsegpy_core.hdf5.extents import Place
from medsegpy_core.reading.lazy_arrays import full_selection, packed_bits, packed_unknown_bits, place_of, read_into
from medsegpy_core.reading.masks import (
    AnnotatedView,
    LabelMapView,
    Labels,
    ValueCodes,
    check_binary,
    unlabelled_value,
    value_codes,
)
from medsegpy_core.text import counted
from medsegpy_core.typing import CategoryId, LazyArray, Selection

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


# convert(stored, out): voxels x bytes -> voxels x categories
Convert = Callable[["Array", "Array"], None]

# Channels that fit into the bits of a byte, so that a table has 256 rows.
_TABLE_CHANNELS: Final = 8
# Bytes to compare with 0 at once.
_WORD: Final = 8
# Up to this share of words with foreground, finding them is faster than converting all voxels.
_SPARSE: Final = 0.15
# Bytes of scratch memory to keep per thread.
_KEPT: Final = 64 << 20

_local = threading.local()


def scratch(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array in this thread's scratch memory, valid until the next call. Fresh memory costs page faults."""
    size = math.prod(shape) * dtype.itemsize
    memory: Array | None = getattr(_local, "memory", None)
    if memory is None or len(memory) < size:
        memory = np.empty(size, np.uint8)
        if size <= _KEPT:
            _local.memory = memory
    return memory[:size].view(dtype).reshape(shape)


def convert_voxels(stored: Array, convert: Convert, out: Array, background: bool) -> None:
    """Convert voxels. If few are not empty, as in most masks, convert only those.

    Words of 8 bytes are compared with 0. Voxels are processed in groups of whole words: with 6 bytes per voxel, 4
    voxels are 3 words.

    Args:
        stored: ... x bytes per voxel, C-contiguous, of a type of one byte; 0 is empty.
        convert: Converts voxels, including empty ones.
        out: ... x categories.
        background: Whether the first category is the background, which is 1 for empty voxels.
    """
    per_voxel, categories = stored.shape[-1], out.shape[-1]
    common = math.gcd(per_voxel, _WORD)
    words, voxels = per_voxel // common, _WORD // common
    groups = stored.size // (words * _WORD)
    flat = stored.reshape(-1, per_voxel)
    found = np.flatnonzero(flat.reshape(-1)[: groups * words * _WORD].view(np.uint64) != 0)
    if not out.flags.c_contiguous or found.size > groups * words * _SPARSE:
        convert(stored, out)
        return
    target = out.reshape(-1, categories)
    target.fill(0)
    if background:
        target[:, 0] = 1
    whole = groups * voxels
    if whole < len(flat):
        convert(flat[whole:], target[whole:])
    if found.size:
        group = found // words
        first = np.empty(group.size, np.bool_)
        first[0] = True
        np.not_equal(group[1:], group[:-1], out=first[1:])
        group = group[first]
        some = flat[:whole].reshape(groups, voxels * per_voxel)[group]
        converted = np.empty((group.size * voxels, categories), out.dtype)
        convert(some.reshape(-1, per_voxel), converted)
        target[:whole].reshape(groups, voxels * categories)[group] = converted.reshape(group.size, -1)


def convert_planes(planes: Array, out: Array, category_ids: tuple[CategoryId, ...], background: bool) -> None:
    """Collate channels (... x channels of the file, 0 and 1) by logical OR into `out` (... x categories)."""
    if planes.dtype.itemsize == 1 and planes.shape[-1] <= _WORD and planes.flags.c_contiguous:
        convert_bits(_codes(planes), out, category_ids, background)
    else:
        _combine(planes, out, category_ids, background)


def _combine(planes: Array, out: Array, category_ids: Sequence[CategoryId], background: bool) -> None:
    first = int(background)
    for i, category_id in enumerate(category_ids):
        target = out[..., first + i]
        members = channels_of(category_id)
        target[...] = planes[..., members[0]]
        for channel in members[1:]:
            np.logical_or(target, planes[..., channel], out=target)
    if background:
        np.equal(out[..., 1:].max(axis=-1, initial=0), 0, out=out[..., 0], casting="unsafe")


def mark_unknown(out: Array, unknown: Array, background: bool) -> None:
    """Mark unknown values in collated voxels (... x categories, 0 and 1).

    A category that is 1 stays 1. The background is unknown if no category is 1 and any is unknown.

    Args:
        out: The categories, including the background if there is one.
        unknown: Whether any channel of a category is unknown, for each category except the background; its shape
            broadcasts to that of the categories.
        background: Whether the first category is the background.
    """
    value = unlabelled_value(out.dtype)
    if background:
        none = out[..., 0]
        none[(none == 1) & unknown.any(axis=-1)] = value
    categories = out[..., int(background) :]
    categories[(categories == 0) & unknown] = value


def _codes(planes: Array) -> Array:
    """Pack up to 8 channels into a byte: ... x C to ... x 1.

    All bits are packed as one stream, which is ten times faster than packing voxel by voxel. With 6 channels, 3 bytes
    of the stream then contain 4 voxels at different bit offsets.
    """
    channels = planes.shape[-1]
    common = math.gcd(channels, _WORD)
    size, voxels = channels // common, _WORD // common
    flat = planes.reshape(-1, channels)
    codes = np.empty(len(flat), np.uint8)
    groups = len(flat) // voxels
    stream = np.packbits(flat[: groups * voxels].reshape(-1), bitorder="little").reshape(groups, size)
    mask = (1 << channels) - 1
    for voxel in range(voxels):
        byte, shift = divmod(voxel * channels, _WORD)
        code = stream[:, byte] >> shift
        if shift + channels > _WORD:
            code |= stream[:, byte + 1] << (_WORD - shift)
        code &= mask
        codes[voxel : groups * voxels : voxels] = code
    rest = np.packbits(flat[groups * voxels :], axis=-1, bitorder="little")
    codes[groups * voxels :] = rest.reshape(-1)
    return codes.reshape(*planes.shape[:-1], 1)


def convert_bits(bits: Array, out: Array, category_ids: tuple[CategoryId, ...], background: bool) -> None:
    """Collate a bit field (... x ceil(C/8); channel c is bit c % 8 of byte c // 8) into `out` (... x categories)."""
    first, *others = _bit_tables(category_ids, background, out.dtype, bits.shape[-1])
    if not others and out.flags.c_contiguous:
        # The default mode would copy the output, so that it can raise.
        np.take(first, bits[..., 0], axis=0, out=out, mode="clip")
        return
    out[...] = first[bits[..., 0]]
    for byte, table in enumerate(others, 1):
        np.maximum(out, table[bits[..., byte]], out=out)
    if others and background:
        np.equal(out[..., 1:].max(axis=-1, initial=0), 0, out=out[..., 0], casting="unsafe")


def bit_table(category_ids: tuple[CategoryId, ...], background: bool, dtype: np.dtype[Any]) -> Array:
    """Return the categories of each combination of up to 8 channels: 256 x categories."""
    return _bit_tables(category_ids, background, dtype, 1)[0]


@functools.lru_cache(maxsize=64)
def _bit_tables(
    category_ids: tuple[CategoryId, ...], background: bool, dtype: np.dtype[Any], size: int
) -> tuple[Array, ...]:
    """Return, for each byte of a voxel, the collated categories of its 256 values."""
    values = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=-1, bitorder="little")
    tables = []
    for byte in range(size):
        planes = np.zeros((256, 8 * size), np.uint8)
        planes[:, 8 * byte : 8 * byte + 8] = values
        table = np.empty((256, len(category_ids) + background), dtype)
        _combine(planes, table, category_ids, background)
        tables.append(table)
    return tuple(tables)


_BYTES_AT_ONCE: Final = 256 << 20


@frozen
class Collation:
    """The mapping from channels to categories.

    Attributes:
        category_ids: The categories in order; several channels are collated by logical OR, so that the mask stays
            binary if structures overlap.
        background: Whether a background category ("none of the selected") comes first.
        unknown: Whether voxels may be unknown; if not, files with unknown voxels are rejected.
    """

    category_ids: tuple[CategoryId, ...]
    background: bool = False
    unknown: bool = True

    @property
    def channels(self) -> int:
        """The number of channels of the collated mask."""
        return len(self.category_ids) + self.background

    def read(self, mask: LazyArray, selection: Selection, out: Array, path: Path | None) -> None:
        """Read a box of a mask and collate it.

        Args:
            mask: H x W [x D] x C of the file.
            selection: The box, without the channel axis.
            out: Receives the shape of the box x `channels`: 0, 1, or -1 (uint8: 255) for unknown.
            path: The file, for messages.

        Raises:
            CategoryError: A category refers to a channel that the file does not have.
            ReadError: A mask has values other than 0 and 1, or a label map has undeclared values.
            RecordError: The mask is a bit field with unknown voxels, which are not allowed.
        """
        if isinstance(mask, LabelMapView):
            self._read_labels(mask, selection, out, path)
            return
        self.check(mask.shape[-1], path)
        annotated = mask.annotated if isinstance(mask, AnnotatedView) else None
        if isinstance(mask, AnnotatedView):
            mask = mask.array
        packed, packed_unknown = packed_bits(mask), packed_unknown_bits(mask)
        if packed_unknown is not None:
            self._read_unknown_bits(packed_unknown, mask.shape[-1], annotated, selection, out, path)
            return
        if packed is not None:
            bits = _read(packed, selection)
            if annotated is not None:
                bits &= _bits_of(annotated, mask.shape[-1])
            if not self._collated(bits, True, out):
                convert_voxels(bits, self._convert_bits, out, self.background)
        else:
            planes = _read(mask, selection)
            if annotated is not None:
                planes[..., [c for c in range(mask.shape[-1]) if c not in annotated]] = 0
            self.collate(planes, out, path)
        if annotated is not None:
            mark_unknown(out, self.partly_annotated(annotated), self.background)

    def collate(self, planes: Array, out: Array, path: Path | None = None) -> None:
        """Collate channels: `planes` (... x channels of the file, C-contiguous) into `out` (... x `channels`).

        Raises:
            ReadError: The mask has values other than 0 and 1.
        """

        def convert(some: Array, target: Array) -> None:
            check_binary(some, path)
            convert_planes(some, target, self.category_ids, self.background)

        if self._collated(planes, False, out):
            return
        if planes.dtype.itemsize == 1:
            convert_voxels(planes, convert, out, self.background)
        else:
            convert(planes, out)

    def place(self, mask: LazyArray, selection: Selection) -> tuple[Place, int | None] | None:
        """Return the place of a box of a mask in a file, and the number of channels of one byte each (None: the
        channels are the bits of one byte). None if no `table` collates such a mask."""
        # Do not ask a label map for its shape: counting its channels may require reading all of it.
        if isinstance(mask, LabelMapView | AnnotatedView) or not self._has_table:
            return None
        packed = packed_bits(mask)
        stored: LazyArray = mask if packed is None else packed
        if stored.dtype.itemsize != 1 or stored.shape[-1] > (_TABLE_CHANNELS if packed is None else 1):
            return None
        if required_channels(self.category_ids) > mask.shape[-1]:
            return None
        place = place_of(stored, selection)
        return None if place is None else (place, None if packed is not None else stored.shape[-1])

    def table(self, dtype: np.dtype[Any]) -> Array | None:
        """Return the categories of each combination of up to 8 channels, 256 x `channels`; None: too many channels."""
        return bit_table(self.category_ids, self.background, dtype) if self._has_table else None

    @property
    def _has_table(self) -> bool:
        return required_channels(self.category_ids) <= _TABLE_CHANNELS

    def _collated(self, stored: Array, bits: bool, out: Array) -> bool:
        """Collate with the backend; returns whether it did so."""
        table = self.table(out.dtype)
        return table is not None and not current_backend().collate(stored, bits, out, table)

    def _convert_bits(self, bits: Array, out: Array) -> None:
        convert_bits(bits, out, self.category_ids, self.background)

    def check(self, channels: int, path: Path | None) -> None:
        """Raise `CategoryError` if a category needs more than the `channels` that the file has."""
        for category_id in self.category_ids:
            if max(channels_of(category_id)) >= channels:
                raise CategoryError(
                    f"Category id {category_id!r} needs channel {max(channels_of(category_id))}, but the mask in "
                    f"{path} has {counted(channels, 'channel')} (ids 0 to {channels - 1}). Check CATEGORIES and the "
                    "metadata's category_ids."
                )

    def empty(self, annotated: frozenset[int] | None, dtype: np.dtype[Any]) -> Array:
        """Return the categories of an empty voxel: a row of `channels`.

        Args:
            annotated: The channels that are annotated; None: all.
            dtype: The type of the mask.
        """
        row = np.zeros(self.channels, dtype)
        row[: int(self.background)] = 1
        if annotated is not None:
            mark_unknown(row, self.partly_annotated(annotated), self.background)
        return row

    def partly_annotated(self, annotated: frozenset[int]) -> Array:
        """Return, for each category, whether it has channels that are not annotated."""
        return np.array([not annotated.issuperset(channels_of(c)) for c in self.category_ids], np.bool_)

    def _read_unknown_bits(
        self,
        packed: LazyArray,
        channels: int,
        annotated: frozenset[int] | None,
        selection: Selection,
        out: Array,
        path: Path | None,
    ) -> None:
        """Collate a bit field with bits for unknown values."""
        stored = _read(packed, selection)
        size = stored.shape[-1] // 2
        unknown = stored[..., size:]
        if annotated is not None:
            unknown = unknown | ~_bits_of(annotated, channels)
        convert_bits(stored[..., :size] & ~unknown, out, self.category_ids, self.background)
        marked = np.empty((*out.shape[:-1], len(self.category_ids)), np.uint8)
        convert_bits(unknown, marked, self.category_ids, False)
        if not marked.any():
            return
        if not self.unknown:
            raise RecordError(
                f"{path} has unknown voxels (-1 in masks). Train with keep_unlabelled=True, and a loss that ignores "
                "them."
            )
        mark_unknown(out, marked.view(np.bool_), self.background)

    def _read_labels(self, mask: LabelMapView, selection: Selection, out: Array, path: Path | None) -> None:
        if mask.labels.channels is not None:
            self.check(mask.labels.channels, path)
        codes, rows = _label_table(self.category_ids, self.background, mask.labels, out.dtype)
        found = mask.read_codes(selection, codes)[..., None]

        def convert(some: Array, target: Array) -> None:
            # The default mode would copy the output, so that it can raise.
            np.take(rows, some[..., 0], axis=0, out=target, mode="clip")

        plain = found.dtype == np.uint8 and out.flags.c_contiguous
        if plain and not current_backend().collate(found, True, out, rows):
            return
        if plain and mask.labels.annotated is None:
            convert_voxels(found, convert, out, self.background)
        elif out.flags.c_contiguous:
            convert(found, out)
        else:
            out[...] = rows[found[..., 0]]


def slabs(array: LazyArray) -> Iterator[slice]:
    """Yield ranges of rows such that no part is larger than 256 MB, unless a row is."""
    rows = array.shape[0]
    row_bytes = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    step = max(1, _BYTES_AT_ONCE // row_bytes)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def check_mask(mask: LazyArray, path: Path | None) -> int | None:
    """Read a whole mask and check its values.

    Returns:
        The number of channels; None: it is a label map without declared labels.

    Raises:
        ReadError: The mask cannot be read, has values other than 0 and 1, or is a label map with undeclared values.
    """
    if isinstance(mask, LabelMapView):
        codes = mask.codes()
        for rows in slabs(mask.array):
            mask.read_codes((rows, *full_selection(mask.array.shape[1:])), codes)
        return mask.labels.channels
    collation = Collation(tuple(range(mask.shape[-1])))
    for rows in slabs(mask):
        out = np.empty((rows.stop - rows.start, *mask.shape[1:]), np.uint8)
        collation.read(mask, (rows, *full_selection(mask.shape[1:-1])), out, path)
    return mask.shape[-1]


@functools.lru_cache(maxsize=64)
def _label_table(
    category_ids: tuple[CategoryId, ...], background: bool, labels: Labels, dtype: np.dtype[Any]
) -> tuple[ValueCodes, Array]:
    """Return codes for the values of a label map, and the collated categories of each code."""
    selected = {labels.value_of(channel) for category_id in category_ids for channel in channels_of(category_id)}
    known = sorted({*selected, *labels.ignored, *(labels.declared or ())})
    codes = value_codes(tuple(known))
    # At least 256 rows, the size that compiled kernels support.
    rows = np.tile(Collation(category_ids, background).empty(labels.annotated, dtype), (max(256, codes.other + 1), 1))
    code_of = {value: code for code, value in enumerate(known, 1)}
    for position, category_id in enumerate(category_ids, int(background)):
        for channel in filter(labels.is_annotated, channels_of(category_id)):
            row = rows[code_of[labels.value_of(channel)]]
            row[position] = 1
            row[: int(background)] = 0
    for value in labels.ignored:
        rows[code_of[value]] = unlabelled_value(dtype)
    return codes, rows


def _bits_of(channels: frozenset[int], count: int) -> Array:
    """Return channels as the bits of a bit field with `count` channels."""
    chosen = np.isin(np.arange(count), list(channels))
    return np.packbits(chosen, bitorder="little")


def _read(mask: LazyArray, selection: Selection) -> Array:
    """Read a box with all its channels into scratch memory."""
    planes = scratch((*(part.stop - part.start for part in selection), mask.shape[-1]), mask.dtype)
    read_into(mask, (*selection, slice(0, mask.shape[-1])), planes)
    return planes
