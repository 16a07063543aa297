"""The text at the beginning of a MetaImage file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from medsegpy_core import ReadError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Header", "read_header"]

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
    "MET_INT": "i4", "MET_UINT": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_LONGEST = 64 * 1024


@frozen
class Header:
    """The content of a header. Axes are x, y, z."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] = field(eq=str)
    offset: int
    spacing: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...]


def read_header(path: Path) -> Header:
    """Read the header of a file.

    Raises:
        ReadError: The file is missing, is no MetaImage file, or one that this reader does not read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST)
        size = path.stat().st_size
    except OSError as error:
        raise ReadError(str(error), path) from error
    text, found, _ = start.partition(b"ElementDataFile = LOCAL\n")
    if not found:
        raise ReadError("no line 'ElementDataFile = LOCAL': not a MetaImage file with the voxels in it", path)
    try:
        header = _parse(text.decode("ascii"), len(text) + len(found))
    except (KeyError, ValueError) as error:
        raise ReadError(f"the header does not say what it should: {error}", path) from error
    needed = header.offset + _count(header.shape) * header.dtype.itemsize
    if size != needed:
        raise ReadError(f"{size} bytes long, but its header asks for {needed}", path)
    return header


def _parse(text: str, offset: int) -> Header:
    import numpy as np

    lines = (line.split(" = ", 1) for line in text.splitlines())
    said = {line[0]: line[1].strip() for line in lines if len(line) == 2}
    shape = tuple(int(size) for size in said["DimSize"].split())
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"DimSize is {shape}, expected three sizes")
    if said.get("CompressedData", "False") != "False":
        raise ValueError("the voxels are compressed, which this reader does not read")
    order = ">" if said.get("BinaryDataByteOrderMSB", "False") == "True" else "<"
    spacing = tuple(float(step) for step in said["ElementSpacing"].split())
    directions = np.array([float(value) for value in said.get("TransformMatrix", "1 0 0 0 1 0 0 0 1").split()])
    affine = np.eye(4)
    affine[:3, :3] = directions.reshape(3, 3).T * spacing
    affine[:3, 3] = [float(value) for value in said.get("Offset", "0 0 0").split()]
    # MetaImage counts to the left and to the back, RAS+ to the right and to the front.
    affine[:2] *= -1
    rows = tuple(tuple(row) for row in affine.tolist())
    return Header(shape, np.dtype(order + _TYPES[said["ElementType"]]), offset, spacing, rows)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
