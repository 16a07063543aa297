"""Shared types: arrays, lazy arrays, and the protocols of readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from medsegpy_core.data.categories import CategoryId

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsegpy_core.data.records import Record

    Array: TypeAlias = NDArray[Any]

__all__ = [
    "CategoryId",
    "DatasetDict",
    "DetachedScan",
    "GetDicts",
    "HasPlace",
    "KeyedReader",
    "LazyArray",
    "ListingReader",
    "OpenScan",
    "PackedMask",
    "PreparingReader",
    "Reader",
    "ReadsInto",
    "Selection",
    "StatesContradictions",
    "StatesMaskGrid",
    "Transform",
    "VerifyingReader",
]

DatasetDict: TypeAlias = dict[str, Any]
GetDicts: TypeAlias = Callable[[], Sequence[DatasetDict]]
Selection: TypeAlias = tuple[slice, ...]
Transform: TypeAlias = Callable[..., "tuple[Array, Array]"]


class LazyArray(Protocol):
    """An array whose shape and type are known, and whose data are read on demand.

    * ``shape`` and ``dtype`` are known without reading data; ``dtype`` has native byte order.
    * ``array[selection]`` accepts NumPy's basic slicing (ints, slices with positive steps, ``...``) and returns a new,
      C-contiguous ``numpy.ndarray`` in the stored dtype, native byte order.
    * Several threads may use it at once while its `OpenScan` is open.
    * Errors while reading are `ReadError` and name the path.
    * For optional fast paths, see `ReadsInto`, `HasPlace` and `PackedMask`.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, selection: Any) -> Array: ...


class ReadsInto(LazyArray, Protocol):
    """A `LazyArray` that reads straight into memory of the caller.

    * ``read_into(selection, out)``: `selection` is one ``slice(start, stop)`` per axis, within bounds, step 1; `out` is
      an array (perhaps strided) of that shape, of any dtype that the values can be cast to.

    Call it through `medsegpy_core.reading.read_into`, which supports every `LazyArray`.
    """

    def read_into(self, selection: Selection, out: Array) -> None: ...


class HasPlace(LazyArray, Protocol):
    """A `LazyArray` that knows the location of boxes in its file, so that compiled kernels can read many in one call.

    * ``place(selection)`` accepts the same selections as ``read_into``, but no empty axis, and returns the location
      (``medsegpy_core.hdf5.extents.Place``), or None if it is unknown, or if the box is compressed or not contiguous.
    """

    def place(self, selection: Selection) -> Any: ...


class PackedMask(LazyArray, Protocol):
    """A mask of 0 and 1 (... x C) stored as bits, which a loader collates without unpacking.

    * ``packed`` is ... x ceil(C / 8), uint8: channel c is bit c % 8 of byte c // 8. None: another format.
    * ``packed_unknown`` is ... x 2 ceil(C / 8): these bytes, followed by as many with a bit set for each channel that
      is unknown in the voxel. None: another format. At most one of the two is not None.
    """

    @property
    def packed(self) -> LazyArray | None: ...

    @property
    def packed_unknown(self) -> LazyArray | None: ...


@runtime_checkable
class OpenScan(Protocol):
    """An open record: its arrays and metadata.

    * ``image`` is H x W [x D] [x K], in stored axis order: D for a volume, K for several channels.
    * ``mask`` is H x W [x D] x C with 0 and 1; or of the image's rank without K: one binary class, or, if the record
      declares ``label_map``, whole numbers, where v > 0 is channel v-1. None: unlabelled.
    * If files may have other axis orders, a reader returns the stored order; medsegpy_core transposes by
      ``image_axes`` and ``sem_seg_axes``.
    * ``metadata`` are those that the file states: ``spacing`` (mm, one value for each of H, W and D; a slice may state
      H and W only) and ``affine`` (4 x 4, voxel index to RAS+ mm), both for the axes in the order H, W, D, even if
      ``image_axes`` declares another stored order. Empty if it states none. If there is an affine, the core computes
      the spacing from it.
    * For optional attributes, see `DetachedScan`, `StatesMaskGrid` and `StatesContradictions`.
    """

    @property
    def image(self) -> LazyArray: ...

    @property
    def mask(self) -> LazyArray | None: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...


class DetachedScan(OpenScan, Protocol):
    """An `OpenScan` whose arrays need no open file.

    * ``detached = True`` declares that the arrays keep no file open, may be used after the context has ended, and
      notice changes of the file. Loaders then open a file once, not for each read.
    """

    @property
    def detached(self) -> bool: ...


@runtime_checkable
class StatesMaskGrid(Protocol):
    """An `OpenScan` that also has the geometry stated for the mask.

    The core compares it with the image's: a mask in a different place is a `GeometryError`.

    * ``mask_metadata`` is like ``metadata``: ``spacing`` and ``affine`` for the axes H, W, D, whatever the value of
      ``sem_seg_axes``. Empty if there is no mask, or if nothing is stated.
    """

    @property
    def mask_metadata(self) -> Mapping[str, Any]: ...


@runtime_checkable
class StatesContradictions(Protocol):
    """An `OpenScan` that also reports contradictions within its files about their geometry.

    The core issues one `DataWarning` per dataset, and ``datasets check`` a finding for each file.

    * ``contradictions`` has a sentence for each, such as ``"its sform and its qform lie 3.2 voxels apart"``.
    """

    @property
    def contradictions(self) -> Sequence[str]: ...


@runtime_checkable
class Reader(Protocol):
    """Turns a record into lazily sliceable arrays. Register it with ``medsegpy_register_readers``.

    * ``name`` is the value of ``reader`` in dataset dicts; ``suffixes`` are the file name endings that it claims,
      lower case, with the dot (``(".nii", ".nii.gz")``).
    * ``probe(path)`` returns whether the first bytes of a file look like this format. It is called only if suffixes do
      not decide, and never raises for a file that exists.
    * ``open(record)`` returns a context manager around an `OpenScan`. Opening reads headers, not data. A file that
      cannot be read is a `ReadError` with the path and the reason.
    * A reader pickles (a loader carries it to other processes), and holds no open file itself.
    * A reader that lists directories is a `ListingReader`. A reader of files with checksums may also be a
      `VerifyingReader`, one of files with many scans a `PreparingReader`, and one of files whose arrays may have any
      name a `KeyedReader`.
    """

    @property
    def name(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    def probe(self, path: Path) -> bool: ...

    def open(self, record: Record) -> AbstractContextManager[OpenScan]: ...


@runtime_checkable
class ListingReader(Reader, Protocol):
    """A `Reader` that lists the files of a directory.

    * ``scan(root)`` returns the dataset dicts of a directory, not recursively. `scan_directory` calls it.
    """

    def scan(self, root: Path) -> Iterable[DatasetDict]: ...


@runtime_checkable
class VerifyingReader(Reader, Protocol):
    """A `Reader` that can verify the checksums in a file.

    * ``verify(path)`` reads a file to its end. Damage is a `ReadError` with the path. ``medsegpy datasets check`` calls
      it once for each file, after reading the scans in it.
    """

    def verify(self, path: Path) -> None: ...


@runtime_checkable
class PreparingReader(Reader, Protocol):
    """A `Reader` that opens many records faster if it gets them in advance.

    * ``prepare(records)`` is called with records that will be opened one by one. It may open each file once and keep
      what it needs, but must not keep files open. Problems with a file are left for ``open`` to report.
    """

    def prepare(self, records: Sequence[Record]) -> None: ...


@runtime_checkable
class KeyedReader(Reader, Protocol):
    """A `Reader` of files whose arrays may have any name, such as HDF5.

    * ``probe_keyed(path)`` returns whether the file has this format, whatever its content. It is called, before any
      ``probe``, if no suffix decides and the record names its array by ``image_key``. It never raises for a file that
      exists.
    """

    def probe_keyed(self, path: Path) -> bool: ...
