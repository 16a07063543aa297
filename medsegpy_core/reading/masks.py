"""The meaning of mask values: binary channels, labels, and unknown voxels.

A mask is uint8, H x W [x D] x C, with 0, 1, and 255 if it is unknown whether the voxel belongs to the channel. In
float32 batches, unknown is -1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from medsegpy_core.data.categories import channels_of, normalize_category_ids, required_channels
from medsegpy_core.errors import ReadError, RecordError
from medsegpy_core.reading.lazy_arrays import View, packed_bits, packed_unknown_bits, read_into
from medsegpy_core.text import some
from medsegpy_core.typing import CategoryId, LazyArray, Selection

if TYPE_CHECKING:
    import numpy as np

    from medsegpy_core.data.records import Record
    from medsegpy_core.typing import Array


UNLABELLED: Final = -1
UNLABELLED_UINT8: Final = 255
# Largest distance of a label from a whole number: a scale factor in a header can turn 1 into 0.99999998.
_TOLERANCE: Final = 1e-3
# Values below this are looked up in a table, larger ones by binary search.
_TABLE_SIZE: Final = 1 << 16
_INT32_END: Final = 1 << 31


def unlabelled_value(dtype: np.dtype[Any]) -> int:
    """Return the value that stands for "unknown" in a mask of this type."""
    return UNLABELLED_UINT8 if dtype == "uint8" else UNLABELLED


def check_binary(values: Array, path: Path | None) -> None:
    """Raise `ReadError` if a mask holds anything but 0 and 1."""
    if values.dtype == "bool" or values.size == 0:
        return
    unsigned = values.dtype.kind == "u"
    # For unsigned values one pass without temporary arrays is enough. NaN is unequal to both numbers.
    wrong = bool(values.max() > 1) if unsigned else not bool(((values == 0) | (values == 1)).all())
    if wrong:
        raise ReadError(_not_binary(values), path)


def _not_binary(values: Array) -> str:
    import numpy as np

    found = np.unique(values)
    if set(found.tolist()) <= {0, 255}:
        return (
            "the mask holds 0 and 255, expected 0 and 1: divide it by 255 when you write it. If 255 means unknown, "
            "declare label_map=True and ignore_values=(255,)"
        )
    listed = some(found, 6, form="{:g}".format)
    labels = bool(((found >= 0) & (found == np.floor(found))).all())
    hint = ". A label map needs label_map=True in the dataset dict or the metadata" if labels else ""
    return f"the mask holds the values {listed}, expected 0 and 1{hint}"


def annotated_channels(record: Record) -> frozenset[int] | None:
    """Return the channels that a record's `annotated` lists; None: all are annotated."""
    annotated = record.extra.get("annotated")
    if annotated is None:
        return None
    return frozenset(c for category_id in normalize_category_ids(annotated) for c in channels_of(category_id))


class AnnotatedView(View):
    """A binary mask with only some channels annotated. The others are unknown everywhere.

    Args:
        array: The mask, H x W [x D] x C.
        annotated: The channels that are annotated.
        path: The file, for messages.
    """

    def __init__(self, array: LazyArray, annotated: frozenset[int], path: Path):
        import numpy as np

        self.array = array
        self.annotated = annotated
        self.path = path
        self.shape = array.shape
        self.dtype = np.dtype(np.uint8)

    @property
    def unknown(self) -> list[int]:
        """The channels that are not annotated."""
        return [channel for channel in range(self.shape[-1]) if channel not in self.annotated]

    def over(self, array: LazyArray) -> AnnotatedView:
        """Return the same view of another array with the same content."""
        return AnnotatedView(array, self.annotated, self.path)

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box; see `read_into`.

        Raises:
            ReadError: An annotated channel holds values other than 0 and 1.
        """
        import numpy as np

        values = np.empty([part.stop - part.start for part in selection], self.array.dtype)
        read_into(self.array, selection, values)
        channels = range(selection[-1].start, selection[-1].stop)
        unknown = [i for i, channel in enumerate(channels) if channel not in self.annotated]
        values[..., unknown] = 0
        if not _holds_bits(self.array):
            check_binary(values, self.path)
        out[...] = values
        out[..., unknown] = UNLABELLED_UINT8


def _holds_bits(mask: LazyArray) -> bool:
    """Return whether a mask is a bit field, whose values need no check."""
    return packed_bits(mask) is not None or packed_unknown_bits(mask) is not None


@frozen
class Labels:
    """The meaning of the values of a label map.

    Attributes:
        channels: The number of channels; None: as many as the largest value needs.
        values: The value of each channel; None: value v is channel v - 1.
        declared: The values that the dataset declares; None: it declares none, and each value is a channel.
        ignored: The values of voxels that are unknown in all channels.
        annotated: The annotated channels; None: all.
    """

    channels: int | None = None
    values: tuple[int, ...] | None = None
    declared: frozenset[int] | None = None
    ignored: tuple[int, ...] = ()
    annotated: frozenset[int] | None = None

    @classmethod
    def of(cls, record: Record, category_ids: Sequence[CategoryId] | None) -> Labels:
        """Return the declaration of a record and of the categories of its dataset (None if it has none).

        Raises:
            RecordError: A value is both that of a category and among `ignore_values`.
        """
        values = record.extra.get("label_values")
        ignored = tuple(int(value) for value in record.extra.get("ignore_values") or ())
        annotated = annotated_channels(record)
        if values is not None:
            values = tuple(int(value) for value in values)
            labels = cls(len(values), values, frozenset(values), ignored, annotated)
        elif category_ids is not None:
            declared = frozenset(c + 1 for category_id in category_ids for c in channels_of(category_id))
            labels = cls(required_channels(category_ids), None, declared, ignored, annotated)
        else:
            labels = cls(None, None, None, ignored, annotated)
        if both := (labels.declared or frozenset()).intersection(ignored):
            raise RecordError(
                f"{record.where()}: the value {min(both)} is both that of a category and among ignore_values. Remove "
                "it from one of them."
            )
        return labels

    def value_of(self, channel: int) -> int:
        """Return the value of a channel."""
        return channel + 1 if self.values is None else self.values[channel]

    def is_annotated(self, channel: int) -> bool:
        """Return whether a channel is annotated."""
        return self.annotated is None or channel in self.annotated


class ValueCodes:
    """Small numbers for the values of a label map. Finding them costs the same however large the values are.

    The code of 0 is 0 (unless it is among `known`), that of ``known[i]`` is i + 1, that of any other value is `other`.

    Args:
        known: The values, distinct whole numbers.
    """

    def __init__(self, known: Sequence[int]):
        import numpy as np

        self.other = len(known) + 1
        self.dtype: np.dtype[Any] = np.min_scalar_type(self.other)
        # Values 1 to n, as in most label maps, are their own codes.
        self._counted = list(known) == list(range(1, len(known) + 1))
        coded = {0: 0, **{value: i + 1 for i, value in enumerate(known)}}
        self._sorted = np.array(sorted(coded), np.int64)
        self._codes = np.array([coded[value] for value in self._sorted.tolist()], self.dtype)
        self._tables: dict[tuple[int, bool], Array] = {}

    def of(self, values: Array) -> Array:
        """Return the codes of whole numbers, in an array of their shape."""
        import numpy as np

        if values.dtype.kind == "b":
            values = values.view(np.uint8)
        if self._counted and values.dtype.itemsize >= self.dtype.itemsize:
            # As an unsigned number, a negative one is large, so it becomes `other`.
            unsigned = values.view(values.dtype.str.replace("i", "u"))
            codes: Array = np.minimum(unsigned, unsigned.dtype.type(self.other)).astype(self.dtype, copy=False)
            return codes
        if values.dtype.itemsize == 1 and self.dtype.itemsize == 1:
            translated = values.tobytes().translate(self._table(256, values.dtype.kind == "i").tobytes())
            return np.frombuffer(translated, np.uint8).reshape(values.shape)
        if values.dtype.itemsize <= 2:
            table = self._table(1 << 8 * values.dtype.itemsize, values.dtype.kind == "i")
            codes = table[values.view(values.dtype.str.replace("i", "u"))]
        elif values.size and int(values.min()) >= 0 and int(values.max()) < _TABLE_SIZE:
            codes = self._table(_TABLE_SIZE, False)[values]
        else:
            codes = self._searched(values)
        return codes

    def _searched(self, values: Array) -> Array:
        import numpy as np

        if values.dtype == np.uint64:  # comparing it with signed numbers would convert both to floats
            values = np.minimum(values, np.uint64(np.iinfo(np.int64).max)).view(np.int64)
        place = np.searchsorted(self._sorted, values)
        np.minimum(place, len(self._sorted) - 1, out=place)
        found: Array = np.where(self._sorted[place] == values, self._codes[place], self.dtype.type(self.other))
        return found

    def _table(self, size: int, signed: bool) -> Array:
        """Return the codes of 0 to `size` - 1; if signed, the second half is for negative numbers."""
        import numpy as np

        table = self._tables.get((size, signed))
        if table is None:
            numbers = np.arange(size)
            if signed:
                numbers[size // 2 :] -= size
            table = self._tables[size, signed] = self._searched(numbers)
        return table


@functools.lru_cache(maxsize=64)
def value_codes(known: tuple[int, ...]) -> ValueCodes:
    """Return the codes of these values. Cached, because of their tables."""
    return ValueCodes(known)


class LabelMapView(View):
    """Binary channels computed from a mask of whole numbers.

    Args:
        array: The numbers, of the image's rank.
        labels: Their meaning.
        path: The file, for messages.
        tell: Called with a message if there are values that the dataset does not declare.
    """

    def __init__(self, array: LazyArray, labels: Labels, path: Path, tell: Callable[[str], None] = lambda _: None):
        import numpy as np

        self.array = array
        self.labels = labels
        self.path = path
        self._tell = tell
        self._found: int | None = None
        self.dtype = np.dtype(np.uint8)
        if array.dtype.kind not in "iubf":
            raise ReadError(f"'label_map' needs a mask of numbers, found {array.dtype}", path)

    def over(self, array: LazyArray) -> LabelMapView:
        """Return the same view of another array with the same content."""
        return LabelMapView(array, self.labels, self.path, self._tell)

    @property
    def label_dtype(self) -> np.dtype[Any]:
        """The type of the result of `read_labels`."""
        import numpy as np

        return np.dtype(np.int32) if self.array.dtype.kind == "f" else self.array.dtype

    def codes(self) -> ValueCodes:
        """Return the codes of the declared values, for `read_codes`."""
        return value_codes(tuple(sorted({*(self.labels.declared or ()), *self.labels.ignored})))

    @property
    def channels(self) -> int:
        """The number of channels. If it is not declared, the whole mask is read once."""
        if self.labels.channels is not None:
            return self.labels.channels
        if self._found is None:
            import numpy as np

            labels = self.read_labels(tuple(slice(0, n) for n in self.array.shape))
            ignored = np.isin(labels, self.labels.ignored) if self.labels.ignored else np.False_
            self._found = int(labels.max(initial=0, where=~ignored))
        return self._found

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of the labels, followed by the number of channels."""
        return (*self.array.shape, self.channels)

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box; see `read_into`.

        Raises:
            ReadError: A value is negative or not a whole number.
        """
        import numpy as np

        labels, channels = self.labels, self.channels
        codes = value_codes((*map(labels.value_of, range(channels)), *labels.ignored))
        found = self.read_codes(selection[:-1], codes)
        first, stop = selection[-1].start, selection[-1].stop
        # Foreground is usually sparse: setting its voxels is faster than one comparison per channel.
        out[...] = 0
        places = np.nonzero((found > first) & (found <= stop))
        out[(*places, found[places].astype(np.intp) - 1 - first)] = 1
        unknown = [channel - first for channel in range(first, stop) if not labels.is_annotated(channel)]
        out[..., unknown] = UNLABELLED_UINT8
        if labels.ignored:
            out[(found > channels) & (found < codes.other)] = UNLABELLED_UINT8

    def read_codes(self, selection: Selection, codes: ValueCodes) -> Array:
        """Read the labels of a box as codes.

        Raises:
            ReadError: A value without a code is negative, or a value is not a whole number.
        """
        return self.coded(self.read_labels(selection), codes)

    def coded(self, values: Array, codes: ValueCodes) -> Array:
        """Return the codes of labels; see `read_codes`."""
        found = codes.of(values)
        # Without declared values every positive value is a channel, so unsigned ones need no check.
        may_be_wrong = self.labels.declared is not None or values.dtype.kind == "i"
        if may_be_wrong and int(found.max(initial=0)) == codes.other:
            self._check_others(values[found == codes.other])
        return found

    def _check_others(self, values: Array) -> None:
        """Check values that are neither a channel nor ignored."""
        smallest = int(values.min())
        if smallest < 0:
            raise ReadError(
                f"the label map holds the value {smallest}; labels are 0 (background), 1, 2, .... If it means unknown, "
                f"declare ignore_values=({smallest},)",
                self.path,
            )
        if self.labels.declared is not None:
            self._tell(
                f"the label map holds the value {smallest}, which neither label_values nor category_ids "
                "declare; it counts as background"
            )

    def read_labels(self, selection: Selection) -> Array:
        """Read the labels of a box as whole numbers.

        Raises:
            ReadError: A value is not a whole number.
        """
        import numpy as np

        values = self.array[selection]
        if values.dtype.kind != "f":
            return values
        with np.errstate(invalid="ignore"):
            whole = np.rint(values)
            wrong = ~((np.abs(values - whole) <= _TOLERANCE) & (np.abs(whole) < np.float64(_INT32_END)))
        if wrong.any():
            raise ReadError(
                f"the label map holds {float(values[wrong][0])!r}, but labels are whole numbers: 0, 1, 2, ...",
                self.path,
            )
        return whole.astype(np.int32)
