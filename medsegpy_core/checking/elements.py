"""Reading the elements of a scan as training would, and comparing them with each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from attrs import evolve, frozen

from medsegpy_core.checking.findings import Checked
from medsegpy_core.geometry import axis_codes, same_spacing
from medsegpy_core.loading.collate import check_mask, slabs
from medsegpy_core.loading.scans import Opener, Scan
from medsegpy_core.masks import LabelMapView
from medsegpy_core.naming import parse_slice_name
from medsegpy_core.opening import CanonicalScan
from medsegpy_core.readers import find_reader
from medsegpy_core.records import Record
from medsegpy_core.typing import VerifyingReader

if TYPE_CHECKING:
    from medsegpy_core.typing import LazyArray

__all__ = ["check_scan"]

T = TypeVar("T")


@frozen
class _Form:
    """What the elements of a scan have in common."""

    shape: tuple[int, ...]
    image: np.dtype[Any]
    mask: np.dtype[Any] | None
    channels: int | None
    spacing: tuple[float, ...] | None = None
    directions: str | None = None


def check_scan(scan: Scan, channels: int, verified: set[Path], result: Checked) -> str | None:
    """Read a scan and note what is wrong.

    Args:
        scan: The scan.
        channels: How many channels the categories need.
        verified: The files that were checked against their checksums; those of the scan are added.
        result: Where to note it.

    Returns:
        In which directions its axes run, as ``"RAS"``; None: its files do not say.
    """
    if missing := scan.missing:
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        result.add("gaps", f"scan {scan.key[1]!r} lacks slices {shown} of {scan.records[0].scan_num_slices}")
    first: tuple[_Form, Record] | None = None
    for record in scan.records:
        _check_names(record, result)
        form = _check_element(record, channels, result)
        _verify(record, verified, result)
        if form is not None and first is not None:
            _compare(form, record, *first, result)
        first = first or (None if form is None else (form, record))
    return None if first is None else first[0].directions


def _check_names(record: Record, result: Checked) -> None:
    """Compare what the names of a slice's files say with what its dict says."""
    try:
        name = parse_slice_name(record.file_name.stem)
        mask = name if record.sem_seg_file is None else parse_slice_name(record.sem_seg_file.stem)
    except ValueError:
        return  # names of another convention
    if record.kind != "slice":
        return
    if mask != name:
        result.add("name", f"its mask is named as another slice: {record.sem_seg_file}", record.file_name)
    for key in ("subject_id", "time_point", "augmentation", "slice_id"):
        said, named = getattr(record, key), getattr(name, key)
        if said is not None and said != named and not isinstance(said, str):  # files hold the number of a text id
            result.add("name", f"the dict says {key}={said}, but the name of the file says {named}", record.file_name)


def _check_element(record: Record, channels: int, result: Checked) -> _Form | None:
    """Read an element; None: its image or its mask cannot be read."""
    image_path, mask_path = record.file_name, record.sem_seg_file or record.file_name

    def read() -> _Form | None:
        def report(kind: str, message: str, path: Path) -> None:
            result.add("labels" if kind == "labels" else "geometry", message, path)

        with Opener.of([record], report=report).open(record) as opened:
            mask = opened.mask
            form = _noting_errors(image_path, result, lambda: _check_image(opened, record, result))
            if mask is None:
                return form
            found = _noting_errors(mask_path, result, lambda: _check_mask(mask, mask_path, channels, result))
            return evolve(form, mask=found[0], channels=found[1]) if form is not None and found is not None else None

    return _noting_errors(image_path, result, read)


def _noting_errors(file: Path, result: Checked, read: Callable[[], T]) -> T | None:
    """Read something and note an error, which is the fault of `file` unless it names another."""
    try:
        return read()
    except Exception as error:  # noqa: BLE001 -- readers of plugins may raise anything, and the others go on
        result.add_error("file", error, file)
    return None


def _verify(record: Record, verified: set[Path], result: Checked) -> None:
    """Check the files of a record against the checksums in them, where its reader can: once a file."""
    new = {file for file in (record.file_name, record.sem_seg_file) if file is not None} - verified
    verified |= new
    reader = _noting_errors(record.file_name, result, lambda: find_reader(record)) if new else None
    if isinstance(reader, VerifyingReader):
        for file in sorted(new):
            if not result.blames(file):
                _noting_errors(file, result, functools.partial(reader.verify, file))


def _check_image(opened: CanonicalScan, record: Record, result: Checked) -> _Form:
    image, metadata = opened.image, opened.metadata
    bad = sum(int(np.count_nonzero(~np.isfinite(part))) for part in _parts(image))
    if bad:
        result.add("values", f"{bad:,} voxels of the image are not finite (NaN or infinite)", record.file_name)
    directions = "".join(axis_codes(metadata["affine"])) if "affine" in metadata else None
    return _Form(tuple(image.shape), image.dtype, None, None, metadata.get("spacing"), directions)


def _check_mask(mask: LazyArray, path: Path, channels: int, result: Checked) -> tuple[np.dtype[Any], int | None]:
    """Read a mask; returns its type and its number of channels, if it is no label map."""
    found = check_mask(mask, path)
    if found is not None and found < channels:
        need = f"the categories of the metadata need {channels} channels"
        result.add("channels", f"{need}, but the mask has {found}", path)
    return (mask.array.dtype, None) if isinstance(mask, LabelMapView) else (mask.dtype, found)


def _parts(array: LazyArray) -> Iterator[Any]:
    """Read an array, some rows at a time."""
    return (array[rows] for rows in slabs(array))


def _compare(form: _Form, record: Record, first: _Form, one: Record, result: Checked) -> None:
    """Compare a slice with the first of its scan."""
    where = f"but slice {one.slice_id} of its scan is"
    if form.shape != first.shape:
        result.add("shape", f"the slice is {_by(form.shape)}, {where} {_by(first.shape)}", record.file_name)
    if form.image != first.image:
        result.add("type", f"the image is {form.image}, {where} {first.image}", record.file_name)
    if form.spacing and first.spacing and not same_spacing(form.spacing, first.spacing):
        said = f"the file says a spacing of {_by(form.spacing)} mm, but that of slice {one.slice_id} of its scan"
        result.add("geometry", f"{said} {_by(first.spacing)} mm", record.file_name)
    if form.directions and first.directions and form.directions != first.directions:
        said = f"by its affine, its axes run towards {form.directions}, but those of slice {one.slice_id} of its scan"
        result.add("geometry", f"{said} towards {first.directions}", record.file_name)
    if None not in (form.channels, first.channels) and form.channels != first.channels:
        result.add("channels", f"the mask has {form.channels} channels, {where} {first.channels}", record.sem_seg_file)


def _by(sizes: tuple[float, ...]) -> str:
    return " x ".join(f"{size:.9g}" for size in sizes)
