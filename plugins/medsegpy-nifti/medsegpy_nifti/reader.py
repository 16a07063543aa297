"""The reader ``nifti``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen, validators

from medsegpy_core import Reader, ReadError, Record, hookimpl
from medsegpy_core.data import reordered
from medsegpy_core.typing import DatasetDict
from medsegpy_nifti.arrays import LazyNifti, NiftiArray, StackedArray
from medsegpy_nifti.data import verify
from medsegpy_nifti.header import Header, is_nifti, read_header

__all__ = ["NiftiReader", "NiftiScan", "medsegpy_register_readers"]


@frozen
class NiftiScan:
    """The arrays of a record, in stored axis order."""

    image: LazyNifti
    mask: LazyNifti | None
    metadata: Mapping[str, Any]
    mask_metadata: Mapping[str, Any]
    contradictions: tuple[str, ...]
    detached: bool = True  # no file stays open: each read checks that the file is unchanged


@frozen
class NiftiReader:
    """Images and masks in ``.nii`` and ``.nii.gz`` files, version 1 and 2; see README.md.

    Attributes:
        cache_bytes: The size of the cache of decompressed ``.nii.gz`` files. A larger file is decompressed for each
            read, slice by slice.
    """

    name: str = "nifti"
    suffixes: tuple[str, ...] = (".nii", ".nii.gz")
    cache_bytes: int = field(default=512 << 20, validator=[validators.instance_of(int), validators.ge(0)])

    def probe(self, path: Path) -> bool:
        """Return whether the file starts with a NIfTI header."""
        return is_nifti(path)

    @contextmanager
    def open(self, record: Record) -> Iterator[NiftiScan]:
        """Read the headers of image and mask.

        Raises:
            ReadError: A file cannot be read, or the record does not select the volumes of image and mask.
        """
        header = read_header(record.file_name)
        if record.sem_seg_file == record.file_name and record.sem_seg_key is None:
            raise ReadError(
                "image and mask are in one file: select their volumes along the fourth axis, counted from 0, with "
                "image_key='0', sem_seg_key='1' (or '1:4' for 3 classes)",
                record.file_name,
            )
        axes = record.extra.get("image_axes")
        keys = record.image_key if isinstance(record.image_key, tuple) else (record.image_key,)
        images = [self._array(header, key, axes, record) for key in keys]
        image = StackedArray(images) if isinstance(record.image_key, tuple) else images[0]
        if record.sem_seg_file is None:
            yield NiftiScan(image, None, _metadata(header, axes), {}, header.contradictions)
            return
        mask_header = header if record.sem_seg_file == record.file_name else read_header(record.sem_seg_file)
        said = _metadata(mask_header, record.extra.get("sem_seg_axes"))
        contradictions = tuple(dict.fromkeys((*header.contradictions, *mask_header.contradictions)))
        yield NiftiScan(image, self._mask(mask_header, record), _metadata(header, axes), said, contradictions)

    def _mask(self, header: Header, record: Record) -> LazyNifti:
        return self._array(header, record.sem_seg_key, record.extra.get("sem_seg_axes"), record)

    def _array(self, header: Header, key: str | None, axes: str | None, record: Record) -> NiftiArray:
        window = [slice(0, n) for n in header.shape]
        left_out = []
        if key is not None:
            window[3:4], single = [_volumes(header, key)], ":" not in key
            left_out += [3] if single else []
        spatial = 2 if record.kind == "slice" else 3
        if record.kind == "slice" and axes is None and len(window) >= 3 and header.shape[2] == record.scan_num_slices:
            window[2] = slice((record.slice_id or 1) - 1, record.slice_id)
        # Ignore unit axes after the spatial ones: H x W x D x 1, and H x W x D x 1 x C for vectors.
        wanted = len(axes) if axes is not None else spatial
        for axis in range(spatial, len(window)):
            alone = window[axis].stop - window[axis].start == 1
            if alone and axis not in left_out and len(window) - len(left_out) > wanted:
                left_out.append(axis)
        return NiftiArray(header, window, left_out, self.cache_bytes)

    def verify(self, path: Path) -> None:
        """Read a ``.nii.gz`` file to its end and verify its checksum; a ``.nii`` file has none.

        Raises:
            ReadError: The file is damaged.
        """
        verify(read_header(path), self.cache_bytes)

    def scan(self, root: Path) -> list[DatasetDict]:
        """List the scans in a folder; see `medsegpy_nifti.listing`."""
        from medsegpy_nifti.listing import list_scans

        return list_scans(Path(root), self.name)


def _volumes(header: Header, key: str) -> slice:
    """Return the volumes along the fourth axis that a key selects: ``"2"``, or ``"1:4"``."""
    first, colon, end = key.partition(":")
    volumes = header.shape[3] if len(header.shape) > 3 else 1
    if first.isdecimal() and (end.isdecimal() if colon else True):
        start, stop = int(first), int(end) if colon else int(first) + 1
        if start < stop <= volumes and len(header.shape) > 3:
            return slice(start, stop)
    raise ReadError(
        f"there are no volumes {key!r} along the fourth axis, which has {volumes} (counted from 0): the keys of a "
        "NIfTI file are numbers, such as '2', or ranges, such as '1:4'",
        header.path,
    )


def _metadata(header: Header, axes: str | None) -> dict[str, Any]:
    """Return spacing and affine of the header for the axes H, W, D, given the stored axes."""
    if "C" in (axes or "")[:3]:
        return {}  # one of the first three axes, spatial in the header, is the channel axis
    said = {"spacing": header.zooms, "affine": header.affine}
    return reordered({key: value for key, value in said.items() if value is not None}, axes)


@hookimpl
def medsegpy_register_readers() -> list[Reader]:
    """Return the reader ``nifti``."""
    return [NiftiReader()]
