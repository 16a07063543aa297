"""What the attributes of an HDF5 file say: spacing, affine, and whether a mask is packed."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from attrs import frozen

from medsegpy_core.errors import ReadError
from medsegpy_core.geometry import Affine, checked_affine, checked_spacing, reordered
from medsegpy_core.hdf5.policy import library_errors
from medsegpy_core.hdf5.vetting import Vetted

__all__ = ["BITFIELD", "FORMAT", "Said", "what_it_says"]

BITFIELD: Final = "medsegpy_bitfield"
FORMAT: Final = "medsegpy_format"
# Bytes of channels for each eight of them, by format: 2 has the bits of unknown channels as well.
_BYTES_OF_FORMAT: Final = {1: 1, 2: 2}


@frozen
class Said:
    """What attributes say of a dataset.

    Attributes:
        bitfield: How many channels are packed into its bytes; None: it is not packed.
        spacing: Millimetres, one per stored spatial axis; None: not said.
        affine: Four rows of four, voxel index to RAS+ mm, columns in the order of the stored axes; None: not said.
        inherited: Which of them the root of the file says, and not the dataset itself.
    """

    bitfield: int | None = None
    spacing: tuple[float, ...] | None = None
    affine: Affine | None = None
    inherited: frozenset[str] = frozenset()

    def metadata(self, axes: str | None = None, own: bool = False) -> dict[str, Any]:
        """Return spacing and affine for the axes H, W, D.

        Args:
            axes: The stored axes, as in `image_axes`; None: H, W, D.
            own: Whether only what the dataset itself says is wanted.
        """
        said = {"spacing": self.spacing, "affine": self.affine}
        left_out = self.inherited if own else frozenset()
        return reordered({k: v for k, v in said.items() if v is not None and k not in left_out}, axes)


_NOTHING: Final = Said()


def what_it_says(file: Any, dataset: Any, vetted: Vetted, path: str, key: str) -> Said:
    """Read the attributes of a dataset, and of the file where the dataset says nothing.

    A spacing or an affine that cannot be one is passed over: other programs use these names too.

    Raises:
        ReadError: It says that it is packed, but cannot be, or is packed in a way of the future.
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
    """Return an attribute of at most sixteen real numbers as floats; None: there is none like that."""
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
        raise ReadError(f"packed in format {number:g}, which a newer medsegpy_core reads", path, key)
    size = _BYTES_OF_FORMAT[int(number)]
    if count < 1 or count != int(count) or vetted.dtype != np.uint8 or vetted.shape[-1] != size * -(-int(count) // 8):
        many = "one uint8" if size == 1 else "two uint8 (format 2)"
        raise ReadError(
            f"{BITFIELD} says {count:g} channels in bits, but it holds {vetted.dtype} of shape {vetted.shape}; the "
            f"last axis of a bit field holds {many} for every eight channels",
            path,
            key,
        )
    return int(count)
