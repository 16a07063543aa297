"""The header of a NIfTI file. nibabel parses it; this module checks it against the file."""

from __future__ import annotations

import logging
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from medsegpy_core import ReadError
from medsegpy_core.data import ERROR_VOXELS, Affine, Grid, checked_affine, corner_offset
from medsegpy_core.reading import Stamp, foreign_kind, read_settled, stamp_of
from medsegpy_nifti.files import opened_file, whole_file_errors

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Header", "current_header", "fresh_header", "is_nifti", "read_header", "same_kind"]

_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAGIC_AT: Final = {348: (344, b"n+1\0"), 540: (4, b"n+2\0\r\n\x1a\n")}  # by the size of the header
_PAIR_AT: Final = {348: (344, b"ni1\0"), 540: (4, b"ni2\0\r\n\x1a\n")}
_GZIP_WBITS: Final = zlib.MAX_WBITS | 16
_STEP: Final = 4096  # bytes of a gzip file per read of its header
_MOST_DEFLATED: Final = 1032  # the largest compression ratio of gzip
_MILLIMETERS: Final = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_HEAD: Final = 544  # bytes: the larger header, and the four bytes after it
_MOST_KNOWN: Final = 4096
_ALIGNED: Final = 2  # coordinates aligned to another scan; 1: scanner coordinates; larger codes: atlases
_BEHIND: Final = 4  # bytes between header and data that declare extensions

_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())  # keep nibabel's messages about headers off stderr


@frozen
class Header:
    """A checked header.

    Attributes:
        path: The file.
        head: The bytes of the header.
        stamp: The stamp of the file when it was read; not part of the image.
        compressed: Whether it is a gzip file.
        shape: The stored shape; the first axis varies fastest.
        dtype: The stored type, in stored byte order.
        offset: The offset of the data in the decompressed file.
        slope: The factor of stored values; `slope` and `inter` are None if values are not scaled.
        inter: The offset of scaled values.
        zooms: Millimeters, one value for each of the first three stored axes; None: not declared.
        affine: Four rows of four, voxel index to RAS+ mm; None: not declared.
        contradictions: Contradictions in the declared positions of voxels, as texts.
    """

    path: Path
    head: bytes = field(repr=False, eq=False)
    stamp: Stamp = field(eq=False)
    compressed: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float | None
    inter: float | None
    zooms: tuple[float, ...] | None
    affine: Affine | None
    contradictions: tuple[str, ...]

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """The type of the values: float64 if they are scaled, else the stored type in native byte order."""
        import numpy as np

        return self.dtype.newbyteorder("=") if self.slope is None else np.dtype(np.float64)

    @property
    def nbytes(self) -> int:
        """The size of the stored data."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_nifti(path: Path) -> bool:
    """Return whether a file starts with a NIfTI header, compressed or not."""
    try:
        with opened_file(path) as file:
            head = _head(file.descriptor)[1]
    except (OSError, EOFError, zlib.error):
        return False
    return _size_of(head) is not None


def read_header(path: Path) -> Header:
    """Read the header of a file; it is cached until the file changes.

    Raises:
        ReadError: The file is missing, not a NIfTI file, too short for its header, or changes all the time.
    """
    with whole_file_errors(path):
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise ReadError("there is no such file", path) from error
        known = _known.get((path, stamp_of(status)))
        return read_settled(path, lambda: fresh_header(path), lambda header: header.head) if known is None else known


def current_header(header: Header) -> Header:
    """Return the current header of the file.

    Raises:
        ReadError: It differs in more than the stamp.
    """
    return same_kind(header, read_header(header.path))


def same_kind(header: Header, now: Header) -> Header:
    """Return the second of two headers of a file if it agrees with the first; see `current_header`."""
    if now != header:
        was, found = (f"{' x '.join(map(str, h.shape))} voxels of {h.dtype}" for h in (header, now))
        differs = f"it had {was} and now has {found}" if was != found else "its header is different"
        raise ReadError(f"the file changed since it was opened: {differs}", header.path)
    return now


# Headers by path and stamp. Used without a lock: at worst, two threads read the same header.
_known: dict[tuple[Path, Stamp], Header] = {}


def fresh_header(path: Path) -> Header:
    """Read the header of a file without the cache; see `read_header`."""
    with whole_file_errors(path), opened_file(path) as file:
        compressed, head = _head(file.descriptor)
    size = _size_of(head)
    if size is None:
        raise ReadError(_not_nifti(head, path), path)
    head = head[:size]
    found = _header_of(*_parsed(head, size, path), path, file.stamp, compressed, head)
    _check_extent(found, file.stamp.size)
    if not file.young:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[path, file.stamp] = found
    return found


def _head(descriptor: int) -> tuple[bool, bytes]:
    """Return whether the file is compressed, and its first bytes."""
    head = os.pread(descriptor, _HEAD, 0)
    if not head.startswith(_GZIP_MAGIC):
        return False, head
    return True, _unpacked_head(descriptor)


def _unpacked_head(descriptor: int) -> bytes:
    """Return the first bytes of the content of a gzip file. The module `gzip` would read 128 KiB for them."""
    head, packed, position, begins = b"", b"", 0, False
    inflater = zlib.decompressobj(_GZIP_WBITS)
    while len(head) < _HEAD:
        if not packed:
            packed = os.pread(descriptor, _STEP, position)
            position += len(packed)
            if not packed:
                break
        if begins and not (packed := packed.lstrip(b"\0")):  # zeros may follow a member
            continue
        head += inflater.decompress(packed, _HEAD - len(head))
        packed, begins = inflater.unconsumed_tail, inflater.eof
        if begins:  # a file may have several members
            packed, inflater = inflater.unused_data, zlib.decompressobj(_GZIP_WBITS)
    return head


def _size_of(head: bytes) -> int | None:
    return next((size for size, (at, magic) in _MAGIC_AT.items() if head[at : at + len(magic)] == magic), None)


def _not_nifti(head: bytes, path: Path) -> str:
    if any(head[at : at + len(magic)] == magic for at, magic in _PAIR_AT.values()):
        return "this is the header of a pair of files (.hdr and .img); convert it to one .nii file"
    if (kind := foreign_kind(path)) is not None:
        return f"this is not a NIfTI file but {kind}"
    return "this is not a NIfTI file, or it is truncated"


def _parsed(head: bytes, size: int, path: Path) -> tuple[Any, list[float]]:
    """Return nibabel's repaired header, and the original voxel sizes: nibabel turns 0 (unknown) into 1."""
    import nibabel as nib

    kind: Any = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    if len(head) < size:
        raise ReadError("it ends within its header", path)
    try:
        header = kind(head, check=False)
        pixdim = [abs(float(size)) for size in header["pixdim"]]
        header.check_fix(logger=_logger, error_level=40)
    except Exception as error:  # nibabel may raise anything for an invalid header
        raise ReadError(f"its header is invalid: {error}", path) from error
    return header, pixdim


def _header_of(header: Any, pixdim: list[float], path: Path, stamp: Stamp, compressed: bool, head: bytes) -> Header:
    rank = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : rank + 1])
    if not 2 <= rank <= 7 or min(shape) < 1:
        raise ReadError(f"its header declares {rank} axes, {' x '.join(map(str, shape))}, which is not an image", path)
    try:
        dtype = header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        unit = header.get_xyzt_units()[0]
    except Exception as error:
        raise ReadError(f"its header is invalid: {error}", path) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ReadError(f"its voxels have the type {dtype}; supported are integers and floats of up to 64 bits", path)
    if slope is None or (slope, inter) == (1, 0):
        slope = inter = None
    offset = int(header["vox_offset"]) or int(header["sizeof_hdr"]) + _BEHIND
    millimeters = _MILLIMETERS.get(unit, 1.0)
    return Header(
        path=path,
        head=head,
        stamp=stamp,
        compressed=compressed,
        shape=shape,
        dtype=dtype,
        offset=offset,
        slope=slope,
        inter=inter,
        zooms=_zooms(pixdim[1 : min(rank, 3) + 1], millimeters) if _states_spacing(header, pixdim, rank) else None,
        affine=_affine(header, millimeters),
        contradictions=_contradictions(header, shape),
    )


def _states_spacing(header: Any, pixdim: list[float], rank: int) -> bool:
    """Return whether the voxel sizes are meaningful: programs that do not know them write 1 without sform and qform."""
    codes = int(header["sform_code"]), int(header["qform_code"])
    return max(codes) > 0 or any(size != 1 for size in pixdim[1 : min(rank, 3) + 1])


def _zooms(sizes: list[float], millimeters: float) -> tuple[float, ...] | None:
    # Round to the precision of float32: a stored 0.7 means 0.7.
    zooms = tuple(float(f"{zoom:.7g}") * millimeters for zoom in sizes)
    return zooms if all(math.isfinite(zoom) and zoom > 0 for zoom in zooms) else None


def _affine(header: Any, millimeters: float) -> Affine | None:
    import numpy as np

    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        return None  # nibabel would invent one
    try:
        affine = np.array(header.get_best_affine(), dtype=float)
    except Exception:  # noqa: BLE001 -- a quaternion that is none
        return None
    affine[:3] *= millimeters
    return checked_affine(affine)


def _contradictions(header: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Compare sform and qform if the header has both, for the same space."""
    codes = int(header["sform_code"]), int(header["qform_code"])
    if min(codes) <= 0 or (codes[0] != codes[1] and max(codes) > _ALIGNED):
        return ()  # the space of an atlas differs from that of the scanner by design
    try:
        forms = [checked_affine(header.get_sform()), checked_affine(header.get_qform())]
    except Exception:  # noqa: BLE001 -- an invalid quaternion; the sform is used
        return ()
    offset = corner_offset(*[Grid(shape[:3], form) for form in forms])
    if offset is None or offset <= ERROR_VOXELS:
        return ()
    return (f"its sform (which is used) and its qform differ by up to {offset:.3g} voxels",)


def _check_extent(header: Header, size: int) -> None:
    """Reject a file that is too short for its header before memory for its array is allocated."""
    needed = header.offset + header.nbytes
    if header.offset < 0 or (not header.compressed and needed > size):
        raise ReadError(
            f"its header declares {' x '.join(map(str, header.shape))} voxels of {header.dtype}, {needed} bytes with "
            f"the header, but the file has {size}: it is truncated, or its header is invalid",
            header.path,
        )
    if header.compressed and needed > size * _MOST_DEFLATED + 1024:
        raise ReadError(f"its header declares {needed} bytes, more than {size} compressed bytes can hold", header.path)
