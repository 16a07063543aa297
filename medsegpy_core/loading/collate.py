"""From the channels of a mask file to the categories that are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from medsegpy_core.categories import channels_of, required_channels
from medsegpy_core.errors import CategoryError, ReadError
from medsegpy_core.hdf5.kernels import MOST_CATEGORIES, MOST_CHANNELS, collate_voxels
from medsegpy_core.hdf5.places import Place, place_of
from medsegpy_core.lazy import LabelMapView, read_into
from medsegpy_core.loading.voxels import bit_table, convert_bits, convert_planes, convert_voxels, scratch
from medsegpy_core.typing import CategoryId, LazyArray, Selection

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = ["Collation", "check_binary"]


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
        packed = getattr(mask, "packed", None)
        if packed is not None:
            bits = _read(packed, selection)
            if not self._collated(bits, True, out):
                convert_voxels(bits, self._convert_bits, out, self.background)
        else:
            self.collate(_read(mask, selection), out, path)

    def collate(self, planes: Array, out: Array, path: Path | None = None) -> None:
        """Collate channels: `planes` (... x channels of the file, C-contiguous) into `out` (... x `channels`).

        Raises:
            ReadError: There are values other than 0 and 1.
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
        """Say where a box of a mask lies in a file, and how many channels a voxel has there, a byte each; None: the
        bits of one byte. None for both where compiled kernels do not collate such a mask."""
        # A label map is not asked for its shape: it may have to be read whole to know its channels.
        if isinstance(mask, LabelMapView) or not self._has_table:
            return None
        packed = getattr(mask, "packed", None)
        stored: LazyArray = mask if packed is None else packed
        if stored.dtype.itemsize != 1 or stored.shape[-1] > (MOST_CHANNELS if packed is None else 1):
            return None
        if required_channels(self.category_ids) > mask.shape[-1]:
            return None
        place = place_of(stored, selection)
        return None if place is None else (place, None if packed is not None else stored.shape[-1])

    def table(self, dtype: np.dtype[Any]) -> Array | None:
        """Return what each combination of up to eight channels becomes, 256 x `channels`; None: there are more, or more
        categories than compiled kernels make."""
        return bit_table(self.category_ids, self.background, dtype) if self._has_table else None

    @property
    def _has_table(self) -> bool:
        return required_channels(self.category_ids) <= MOST_CHANNELS and self.channels <= MOST_CATEGORIES

    def _collated(self, stored: Array, bits: bool, out: Array) -> bool:
        """Collate by compiled kernels; False: it is left to be done."""
        table = self.table(out.dtype)
        return table is not None and collate_voxels(stored, bits, out, table)

    def _convert_bits(self, bits: Array, out: Array) -> None:
        convert_bits(bits, out, self.category_ids, self.background)

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
        convert_planes(planes, table, self.category_ids, self.background)
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
    labels = bool(((found >= 0) & (found == np.floor(found))).all())
    hint = ". An integer label map needs label_map=True in the dataset dict or the metadata" if labels else ""
    return f"the mask holds the values {shown}, expected 0 and 1{hint}"


def _read(mask: LazyArray, selection: Selection) -> Array:
    """Read a box with all its channels into scratch memory."""
    planes = scratch((*(part.stop - part.start for part in selection), mask.shape[-1]), mask.dtype)
    read_into(mask, (*selection, slice(0, mask.shape[-1])), planes)
    return planes
