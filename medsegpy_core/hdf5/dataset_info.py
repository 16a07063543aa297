"""Check a dataset's type, shape, storage, filters and attributes before any of its data is read.

`headers` checks what could crash the HDF5 library even earlier, in the object header.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from attrs import frozen

from medsegpy_core.data.geometry import Affine, checked_affine, checked_spacing, reordered
from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.files import library_errors
from medsegpy_core.hdf5.filters import FILTERS, SZIP, Filters, registered_filters

_UINT8: Final = np.dtype(np.uint8)
_MAX_RANK: Final = 6  # N x H x W x D x C, plus one
_MAX_CHUNK_BYTES: Final = 1 << 30
_TYPE_NAMES: Final = {
    2: "a time",
    3: "text",
    5: "opaque bytes",
    6: "a compound of several values (complex numbers among them)",
    7: "a reference",
    9: "text or lists of variable length",
    10: "an array in each element",
    11: "a complex number",
}


@frozen
class Vetted:
    """Properties of a dataset that passed all checks.

    Attributes:
        shape: The stored shape.
        dtype: The NumPy type that h5py reports, in stored byte order.
        exact: Whether the stored bytes have exactly that type, so that they can be used without the library.
        chunks: The shape of a chunk; None: not chunked.
        compact: Whether the data are stored in the object header.
        filters: (id, client values) in the order of application on write.
        fill: The bytes of the fill value; empty if there is none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    exact: bool
    chunks: tuple[int, ...] | None
    compact: bool
    filters: Filters
    fill: bytes

    @property
    def raw(self) -> np.dtype[Any]:
        """The type in which to read the bytes: booleans are read as uint8, and then checked."""
        return _UINT8 if self.dtype.kind == "b" else self.dtype


def vet(dataset: Any, path: str, key: str) -> Vetted:
    """Check an ``h5py.h5d.DatasetID`` without reading its data.

    Raises:
        ReadError: It is not an array of numbers, is stored in another file, or needs an unknown filter.
    """
    import h5py

    plan = dataset.get_create_plist()
    storage = plan.get_layout()
    if storage == h5py.h5d.VIRTUAL:
        raise ReadError(
            "a virtual dataset, whose data are in other files; only data in the file itself are read", path, key
        )
    if plan.get_external_count():
        raise ReadError("its data are in another file; only data in the file itself are read", path, key)
    dtype, exact = _vet_type(dataset.get_type(), path, key)
    shape = _vet_shape(dataset, path, key)
    chunks = tuple(plan.get_chunk()) if storage == h5py.h5d.CHUNKED else None
    if chunks and math.prod(chunks) * dtype.itemsize > _MAX_CHUNK_BYTES:
        size = math.prod(chunks) * dtype.itemsize
        raise ReadError(f"its chunks have {size:,} bytes each; the limit is {_MAX_CHUNK_BYTES:,}", path, key)
    filters = _vet_filters(plan, path, key)
    fill = np.zeros(1, dtype)
    with library_errors(path, key):
        defined = plan.fill_value_defined()
        # Check first: the library crashes on the value if a damaged file contradicts itself.
        if defined == h5py.h5d.FILL_VALUE_USER_DEFINED:
            plan.get_fill_value(fill)
    value = b"" if defined == h5py.h5d.FILL_VALUE_UNDEFINED else fill.tobytes()
    return Vetted(shape, dtype, exact, chunks, storage == h5py.h5d.COMPACT, filters, value)


def uses_szip(vetted: Vetted) -> bool:
    """Return whether data are compressed with szip, which does not detect incomplete chunks."""
    return any(number == SZIP for number, _ in vetted.filters)


def _vet_type(stored: Any, path: str, key: str) -> tuple[np.dtype[Any], bool]:
    import h5py

    kind = stored.get_class()
    if kind == h5py.h5t.ENUM and stored.dtype.kind != "b":
        # An enumeration names integers; read the integers.
        stored = stored.get_super()
        kind = stored.get_class()
    if kind not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.BITFIELD):
        what = _TYPE_NAMES.get(kind, "of another kind")
        raise ReadError(f"each element is {what}; an image or a mask is an array of numbers", path, key)
    try:
        dtype = np.dtype(stored.dtype)
    except TypeError as error:
        raise ReadError(f"its number type has no NumPy equivalent ({error})", path, key) from error
    if dtype.kind not in "biuf" or dtype.subdtype is not None:
        raise ReadError(f"its elements are {dtype}; an image or a mask is an array of numbers", path, key)
    dtype = np.dtype(dtype.str)  # without the metadata that h5py attaches
    return dtype, bool(stored.equal(h5py.h5t.py_create(dtype)))


def _vet_shape(dataset: Any, path: str, key: str) -> tuple[int, ...]:
    import h5py

    space = dataset.get_space()
    if space.get_simple_extent_type() != h5py.h5s.SIMPLE:
        raise ReadError("a scalar or empty dataset; an image or a mask is an array", path, key)
    shape = tuple(int(n) for n in space.get_simple_extent_dims())
    if 0 in shape:
        raise ReadError(f"its shape is {shape}: it has no elements", path, key)
    if len(shape) > _MAX_RANK:
        raise ReadError(f"it has {len(shape)} axes; an image has at most {_MAX_RANK}", path, key)
    if math.prod(shape) >= 1 << 56:
        raise ReadError(f"its shape {shape} is too large", path, key)
    return shape


def _vet_filters(plan: Any, path: str, key: str) -> Filters:
    # Check against the list before any call that looks up a filter: the library searches folders for unknown ones.
    filters = []
    for i in range(plan.get_nfilters()):
        number, _, values, _ = plan.get_filter(i)
        known = FILTERS.get(number)
        if known is not None and known.foreign:
            if known.name not in registered_filters():
                raise ReadError(
                    f"it is compressed with {known.name}, which the package hdf5plugin provides: "
                    "pip install hdf5plugin",
                    path,
                    key,
                )
        elif known is None:
            raise ReadError(
                f"it needs the HDF5 filter {number}, which is not supported (supported are gzip, shuffle, fletcher32, "
                "lzf, szip, nbit, scaleoffset, and those of hdf5plugin); rewrite the file with one of these",
                path,
                key,
            )
        filters.append((int(number), tuple(int(v) for v in values)))
    return tuple(filters)


BITFIELD: Final = "medsegpy_bitfield"
FORMAT: Final = "medsegpy_format"
# Bytes per eight channels, by format: format 2 also has the bits of unknown channels.
_BYTES_OF_FORMAT: Final = {1: 1, 2: 2}


@frozen
class Said:
    """Metadata from the attributes of a dataset.

    Attributes:
        bitfield: The number of channels packed into its bytes; None: it is not packed.
        spacing: Millimeters, one value per stored spatial axis; None: not declared.
        affine: Four rows of four, voxel index to RAS+ mm, columns in the order of the stored axes; None: not declared.
        inherited: Which of them come from the root of the file instead of the dataset.
    """

    bitfield: int | None = None
    spacing: tuple[float, ...] | None = None
    affine: Affine | None = None
    inherited: frozenset[str] = frozenset()

    def metadata(self, axes: str | None = None, own: bool = False) -> dict[str, Any]:
        """Return spacing and affine for the axes H, W, D.

        Args:
            axes: The stored axes, as in `image_axes`; None: H, W, D.
            own: Whether to leave out inherited attributes.
        """
        said = {"spacing": self.spacing, "affine": self.affine}
        left_out = self.inherited if own else frozenset()
        return reordered({k: v for k, v in said.items() if v is not None and k not in left_out}, axes)


_NOTHING: Final = Said()


def what_it_says(file: Any, dataset: Any, vetted: Vetted, path: str, key: str) -> Said:
    """Read the attributes of a dataset; those it does not have are taken from the root of the file.

    An invalid spacing or affine is ignored, because other programs use these names too.

    Raises:
        ReadError: The dataset is declared as packed but its type or shape does not allow it, or its format is newer
            than this version.
    """
    import h5py

    with library_errors(path, key):
        root = h5py.h5g.open(file, b"/")
        found: dict[str, Any] = {}
        inherited = set()
        for name, checked in (("spacing", _spacing), ("affine", checked_affine)):
            found[name] = checked(_numbers(dataset, name))
            if found[name] is None and (of_file := checked(_numbers(root, name))) is not None:
                found[name] = of_file
                inherited.add(name)
        bitfield = _bitfield(dataset, vetted, path, key)
    if not any(value is not None for value in (*found.values(), bitfield)):
        return _NOTHING
    return Said(bitfield, found["spacing"], found["affine"], frozenset(inherited))


def _numbers(place: Any, name: str) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return an attribute of at most 16 real numbers as floats; None if there is no such attribute."""
    import h5py

    if not h5py.h5a.exists(place, name.encode()):
        return None
    attribute = h5py.h5a.open(place, name.encode())
    kind = attribute.get_type().get_class()
    space = attribute.get_space()
    if kind not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) or space.get_simple_extent_type() == h5py.h5s.NULL:
        return None
    if space.get_simple_extent_npoints() > 16:
        return None
    values = np.zeros(space.get_simple_extent_dims(), np.float64)
    attribute.read(values)
    return values


def _spacing(values: np.ndarray[Any, np.dtype[np.float64]] | None) -> tuple[float, ...] | None:
    return checked_spacing(values, (2, 3))


def _bitfield(dataset: Any, vetted: Vetted, path: str, key: str) -> int | None:
    channels = _numbers(dataset, BITFIELD)
    if channels is None:
        return None
    count = float(channels.flat[0]) if channels.size == 1 else 0.0
    format_ = _numbers(dataset, FORMAT)
    number = 1.0 if format_ is None or format_.size != 1 else float(format_.flat[0])
    if number not in _BYTES_OF_FORMAT:
        raise ReadError(f"packed in format {number:g}, which needs a newer medsegpy_core", path, key)
    size = _BYTES_OF_FORMAT[int(number)]
    if count < 1 or count != int(count) or vetted.dtype != np.uint8 or vetted.shape[-1] != size * -(-int(count) // 8):
        many = "one uint8" if size == 1 else "two uint8 (format 2)"
        raise ReadError(
            f"{BITFIELD} declares {count:g} channels in bits, but the dataset is {vetted.dtype} of shape "
            f"{vetted.shape}; the last axis of a bit field has {many} for every 8 channels",
            path,
            key,
        )
    return int(count)
