"""Types that more than one module speaks: arrays, lazy arrays, and the reader protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    "GetDicts",
    "KeyedReader",
    "LazyArray",
    "OpenScan",
    "PreparingReader",
    "Reader",
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
    """An array whose shape and type are free and whose data come on demand.

    * ``shape`` and ``dtype`` are known without reading data; ``dtype`` has native byte order.
    * ``array[selection]`` takes what NumPy's basic slicing takes (ints, slices with positive steps,
      ``...``) and returns a new, C-contiguous ``numpy.ndarray`` in the stored dtype, native byte order.
    * An optional method ``read_into(selection, out)`` is the fast path: `selection` is one
      ``slice(start, stop)`` per axis, within bounds, step 1; `out` is an array (perhaps strided) of that
      shape, of any dtype that the values can be cast to.
    * It may be used from several threads at once while its `OpenScan` is open.
    * Errors while reading are `ReadError` and name the path.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, selection: Any) -> Array: ...


@runtime_checkable
class OpenScan(Protocol):
    """What a reader opens: the arrays of one record.

    * ``image`` is H x W [x D] [x K], in stored axis order: D for a volume, K for several channels.
    * ``mask`` is H x W [x D] x C with 0 and 1; or of the image's rank without K: one binary class, or, where
      the record says ``label_map``, whole numbers of which v > 0 is channel v-1. None: unlabelled.
    * A reader whose files may store other axis orders returns the stored order; medsegpy_core transposes
      by ``image_axes`` and ``sem_seg_axes``.
    * An optional attribute ``detached = True`` says that the arrays hold no file open, may be used after the context
      has ended, and notice a file that changes. Loaders then open a file once, not for each read.
    * ``metadata`` is what the file itself says, in the metadata's words: ``spacing`` (mm, one value for each of H, W
      and D; a slice may know H and W only), ``affine`` (4 x 4, voxel index to RAS+ mm), both for the axes in the order
      H, W, D, also if ``image_axes`` says that they are stored in another. Empty if it says nothing. The core takes
      the spacing from the affine if there is one.
    * Optional attributes, see `StatesMaskGrid` and `StatesContradictions`.
    """

    @property
    def image(self) -> LazyArray: ...

    @property
    def mask(self) -> LazyArray | None: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...


@runtime_checkable
class StatesMaskGrid(Protocol):
    """An `OpenScan` that also says what the mask states of its geometry.

    The core compares it with the image's: a mask that lies elsewhere is a `GeometryError`.

    * ``mask_metadata`` is like ``metadata``: ``spacing`` and ``affine`` for the axes H, W, D, whatever ``sem_seg_axes``
      says. Empty if there is no mask, or if it states nothing.
    """

    @property
    def mask_metadata(self) -> Mapping[str, Any]: ...


@runtime_checkable
class StatesContradictions(Protocol):
    """An `OpenScan` that also says how its files contradict themselves in their geometry.

    The core makes one `DataWarning` a dataset of it, and ``datasets check`` a finding for each file.

    * ``contradictions`` is a sentence for each, as in ``"its sform and its qform lie 3.2 voxels apart"``.
    """

    @property
    def contradictions(self) -> Sequence[str]: ...


@runtime_checkable
class Reader(Protocol):
    """Turns a record into lazily sliceable arrays. Register it with ``medsegpy_register_readers``.

    * ``name`` is what dataset dicts say in ``reader``; ``suffixes`` are the file name endings it claims,
      lower case, with the dot (``(".nii", ".nii.gz")``).
    * ``probe(path)`` says whether the file looks like one of its own, by its first bytes. It is asked only
      where suffixes do not decide. It never raises for a file that exists.
    * ``open(record)`` gives a context manager around an `OpenScan`. Opening reads headers, not data. A file that
      cannot be read is a `ReadError` with the path and the reason.
    * A reader pickles (a loader carries it to other processes), and holds no open file of its own.
    * An optional method ``scan(root) -> Iterable[dict]`` lists the dataset dicts of a directory, not
      recursively; `scan_directory` calls it.
    * A reader of files that carry checksums may be a `VerifyingReader` as well, one of files that hold many scans a
      `PreparingReader`, one of files in which arrays may have any name a `KeyedReader`.
    """

    @property
    def name(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    def probe(self, path: Path) -> bool: ...

    def open(self, record: Record) -> AbstractContextManager[OpenScan]: ...


@runtime_checkable
class VerifyingReader(Reader, Protocol):
    """A `Reader` that can check a file against the checksums in it.

    * ``verify(path)`` reads a file to its end. Damage is a `ReadError` with the path. ``medsegpy datasets check`` calls
      it once for each file, after the scans in it have been read.
    """

    def verify(self, path: Path) -> None: ...


@runtime_checkable
class PreparingReader(Reader, Protocol):
    """A `Reader` that opens many records faster if it is told of them before.

    * ``prepare(records)`` is called with records that will be opened one by one. It may open each file once and
      remember what it needs, and holds no file afterwards. What is wrong with a file is left for ``open`` to report.
    """

    def prepare(self, records: Sequence[Record]) -> None: ...


@runtime_checkable
class KeyedReader(Reader, Protocol):
    """A `Reader` of files in which arrays may have any name, such as HDF5.

    * ``probe_keyed(path)`` says whether the file is one of those, whatever is in it. It is asked, before any ``probe``,
      if no suffix decides and the record names its array by ``image_key``. It never raises for a file that exists.
    """

    def probe_keyed(self, path: Path) -> bool: ...
