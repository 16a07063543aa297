"""From the channels of a mask file to the categories that are trained on."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import frozen

from medsegpy_core.categories import channels_of, required_channels
from medsegpy_core.errors import CategoryError, ReadError
from medsegpy_core.lazy import LabelMapView, read_into
from medsegpy_core.typing import CategoryId, LazyArray, Selection

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = ["Collation", "check_binary", "scratch"]

# Bytes that are compared with 0 at once.
_WORD: Final = 8
# The share of words with foreground up to which it is faster to look for them than to convert all voxels.
_SPARSE: Final = 0.12
# Bytes of scratch memory that a thread keeps.
_KEPT: Final = 64 << 20


@frozen
class Collation:
    """Which channels make which category.

    Attributes:
        category_ids: The categories in their order; several channels are collated by logical OR, so that the mask
            stays binary where structures overlap.
        background: Whether "none of the selected" comes first.
    """

    category_ids: tuple[CategoryId, ...]
    background: bool = False

    @property
    def channels(self) -> int:
        """How many channels the collated mask has."""
        return len(self.category_ids) + self.background

    def read(self, mask: LazyArray, selection: Selection, out: Array, path: Path | None) -> None:
        """Read a box of a mask and collate it.

        Args:
            mask: H x W [x D] x C of the file.
            selection: The box, without the channel axis.
            out: Of the shape of the box and `channels`; set to 0 and 1.
            path: The file, for messages.

        Raises:
            CategoryError: A category needs a channel that the file does not have.
            ReadError: The mask holds values other than 0 and 1.
        """
        if isinstance(mask, LabelMapView):
            self._read_labels(mask, selection, out, path)
            return
        self.check(mask.shape[-1], path)
        planes = scratch(tuple(part.stop - part.start for part in selection) + mask.shape[-1:], mask.dtype)
        read_into(mask, (*selection, slice(0, mask.shape[-1])), planes)
        self.collate(planes, out, path)

    def collate(self, planes: Array, out: Array, path: Path | None = None) -> None:
        """Collate channels: `planes` (... x channels of the file, C-contiguous) into `out` (... x `channels`).

        Raises:
            ReadError: There are values other than 0 and 1.
        """
        if planes.dtype.itemsize > 1 or not out.flags.c_contiguous or not self._collate_sparse(planes, out, path):
            check_binary(planes, path)
            self._collate(planes, out)

    def _collate_sparse(self, planes: Array, out: Array, path: Path | None) -> bool:
        """Collate one-byte channels where few voxels are foreground, as in most masks; False: there are many.

        Eight bytes are compared with 0 at a time. The voxels come in groups that begin and end with such a word: for
        6 channels, 4 voxels in 3 words.
        """
        channels = planes.shape[-1]
        common = math.gcd(channels, _WORD)
        words, voxels = channels // common, _WORD // common
        groups = planes.size // (words * _WORD)
        whole, rest = planes.reshape(-1), groups * voxels
        found = np.flatnonzero(whole[: groups * words * _WORD].view(np.uint64) != 0)
        if found.size > groups * words * _SPARSE:
            return False
        flat = out.reshape(-1, self.channels)
        flat.fill(0)
        if self.background:
            flat[:, 0] = 1
        tail = whole[rest * channels :].reshape(-1, channels)
        check_binary(tail, path)
        self._collate(tail, flat[rest:])
        if found.size:
            group = found // words
            first = np.empty(group.size, np.bool_)
            first[0] = True
            np.not_equal(group[1:], group[:-1], out=first[1:])
            group = group[first]
            some = whole[: rest * channels].reshape(groups, voxels * channels)[group].reshape(-1, channels)
            check_binary(some, path)
            collated = np.empty((len(some), self.channels), out.dtype)
            self._collate(some, collated)
            flat[:rest].reshape(groups, voxels * self.channels)[group] = collated.reshape(len(group), -1)
        return True

    def check(self, channels: int, path: Path | None) -> None:
        """Raise `CategoryError` if a category needs more than the `channels` that the file has."""
        for category_id in self.category_ids:
            if max(channels_of(category_id)) >= channels:
                raise CategoryError(
                    f"Category id {category_id!r} needs channel {max(channels_of(category_id))}, but the mask in "
                    f"{path} "
                    f"has {channels} channel{'s' if channels != 1 else ''} (ids 0 to {channels - 1}). Check CATEGORIES "
                    "and the metadata's category_ids."
                )

    def _collate(self, planes: Array, out: Array) -> None:
        first = int(self.background)
        for i, category_id in enumerate(self.category_ids):
            members = channels_of(category_id)
            target = out[..., first + i]
            if len(members) == 1:
                target[...] = planes[..., members[0]]
                continue
            np.logical_or(planes[..., members[0]], planes[..., members[1]], out=target)
            for channel in members[2:]:
                np.logical_or(target, planes[..., channel], out=target)
        if self.background:
            np.equal(out[..., 1:].max(axis=-1, initial=0), 0, out=out[..., 0], casting="unsafe")

    def _read_labels(self, mask: LabelMapView, selection: Selection, out: Array, path: Path | None) -> None:
        if mask.known_channels is not None:
            self.check(mask.known_channels, path)
        channels = required_channels(self.category_ids)
        # What lies beyond the categories is none of them: the last row of the table.
        # Widened first: the labels' own type may be too narrow for that number.
        values = np.minimum(mask.read_labels(selection).astype(np.intp), channels + 1)
        out[...] = self._label_table(channels, out.dtype)[values]

    def _label_table(self, channels: int, dtype: np.dtype[np.generic]) -> Array:
        """Return the collated channels of each label value, 0 to `channels` + 1."""
        table = np.zeros((channels + 2, self.channels), dtype)
        planes = np.zeros((channels + 2, channels), np.uint8)
        planes[1:-1] = np.eye(channels, dtype=np.uint8)
        self._collate(planes, table)
        return table


def check_binary(values: Array, path: Path | None) -> None:
    """Raise `ReadError` if a mask holds anything but 0 and 1."""
    if values.dtype == np.bool_ or values.size == 0:
        return
    unsigned = values.dtype.kind == "u"
    wrong = bool(values.max() > 1) if unsigned else not bool(((values == 0) | (values == 1)).all())
    if wrong:
        raise ReadError(_not_binary(values), path)


def _not_binary(values: Array) -> str:
    found = np.unique(values)
    if set(found.tolist()) <= {0, 255}:
        return "the mask holds 0 and 255, expected 0 and 1: divide it by 255 when you write it"
    shown = ", ".join(f"{v:g}" for v in found[:6].tolist()) + (", ..." if found.size > 6 else "")
    return (
        f"the mask holds the values {shown}, expected 0 and 1. An integer label map needs label_map=True in the "
        "dataset "
        "dict or the metadata"
    )


_local = threading.local()


def scratch(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array of this thread's scratch memory, valid until the next call: fresh memory costs page faults."""
    size = math.prod(shape) * dtype.itemsize
    memory: Array | None = getattr(_local, "memory", None)
    if size > _KEPT or memory is None or len(memory) < size:
        memory = np.empty(size, np.uint8)
        if size <= _KEPT:
            _local.memory = memory
    return memory[:size].view(dtype).reshape(shape)
