"""`check_dataset`: read a dataset as in training, and list all problems."""

from __future__ import annotations

import functools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from attrs import asdict, define, evolve, field, frozen

from medsegpy_core.catalog import DatasetCatalog, MetadataCatalog
from medsegpy_core.data.categories import normalize_category_ids, required_channels
from medsegpy_core.data.geometry import axis_codes, same_spacing
from medsegpy_core.data.metadata import REQUIRED_KEYS
from medsegpy_core.data.naming import parse_slice_name
from medsegpy_core.data.records import Record
from medsegpy_core.datasets import make_records, scan_directory
from medsegpy_core.errors import DataWarning, MedSegPyError, ReadError, UnknownNameError
from medsegpy_core.hdf5 import root_and_groups
from medsegpy_core.hdf5.options import Access, accessing
from medsegpy_core.loading.collate import check_mask, slabs
from medsegpy_core.loading.scans import Opener, Scan, group_scans
from medsegpy_core.packing.manifest import Manifest, packed_dicts, read_manifest
from medsegpy_core.packing.pack import verify_arrays
from medsegpy_core.reading.canonical_scan import CanonicalScan
from medsegpy_core.reading.masks import LabelMapView
from medsegpy_core.reading.readers import find_reader
from medsegpy_core.text import by, some
from medsegpy_core.typing import VerifyingReader

if TYPE_CHECKING:
    from medsegpy_core.typing import DatasetDict, LazyArray


@frozen
class Finding:
    """One problem.

    Attributes:
        kind: ``"listing"`` (skipped when the folder was listed), ``"dict"``, ``"file"`` (unreadable or invalid),
            ``"values"``, ``"labels"`` (values that no category declares), ``"shape"``, ``"type"``, ``"channels"``,
            ``"gaps"``, ``"name"``, ``"geometry"`` (the grids of image, mask and dataset contradict each other),
            ``"orientation"`` (the axes of the scans run in different directions), ``"content"`` (the hash differs from
            that of the packed file) or ``"metadata"``.
        message: The description of the problem.
        file: The file, or None.
        elements: The number of affected elements.
    """

    kind: str
    message: str
    file: str | None = None
    elements: int = 1


@define
class Checked:
    """The result of `check_dataset`.

    Attributes:
        name: The dataset, or the folder.
        elements: The number of slices or volumes.
        scans: The number of scans.
        files: The number of different files.
        scans_without_subject: The number of scans without a `subject_id`; splits cannot be checked for subjects that
            occur in several of them.
        findings: The problems, in the order of the elements.
    """

    name: str
    elements: int = 0
    scans: int = 0
    files: int = 0
    scans_without_subject: int = 0
    _found: dict[tuple[str, str, str | None], int] = field(factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """The problems; one problem of one file is listed once, even if it affects several elements."""
        return [Finding(kind, message, file, n) for (kind, message, file), n in self._found.items()]

    def blames(self, file: str | os.PathLike[str]) -> bool:
        """Return whether there is a finding of kind ``"file"`` for this file."""
        return any(kind == "file" and path == os.fspath(file) for kind, _, path in self._found)

    def add(self, kind: str, message: str, file: str | os.PathLike[str] | None = None) -> None:
        """Add a finding."""
        key = (kind, message, None if file is None else os.fspath(file))
        self._found[key] = self._found.get(key, 0) + 1

    def add_error(self, kind: str, error: Exception, file: str | os.PathLike[str] | None = None) -> None:
        """Add an error as a finding."""
        if isinstance(error, ReadError):
            where = "" if error.key is None else f"dataset {error.key!r}: "
            self.add(kind, where + error.reason, error.path or file)
        else:
            ours = isinstance(error, MedSegPyError)
            self.add(kind, str(error) if ours else f"{type(error).__name__}: {error}", file)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON-compatible values."""
        keys = ("name", "elements", "scans", "files", "scans_without_subject")
        counts: dict[str, Any] = {key: getattr(self, key) for key in keys}
        return counts | {"findings": [asdict(finding) for finding in self.findings]}


T = TypeVar("T")


@frozen
class _Form:
    """Properties that all elements of a scan must share."""

    shape: tuple[int, ...]
    image: np.dtype[Any]
    mask: np.dtype[Any] | None
    channels: int | None
    spacing: tuple[float, ...] | None = None
    directions: str | None = None


def check_scan(scan: Scan, channels: int, verified: set[Path], result: Checked) -> str | None:
    """Read a scan and add its problems to `result`.

    Args:
        scan: The scan.
        channels: The number of channels that the categories need.
        verified: The files whose checksums were verified; those of the scan are added.
        result: Receives the findings.

    Returns:
        The directions of its axes, as ``"RAS"``; None: the files do not declare them.
    """
    if missing := scan.missing:
        result.add(
            "gaps", f"scan {scan.key[1]!r} lacks slices {some(missing, 10)} of {scan.records[0].scan_num_slices}"
        )
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
    """Compare the file names of a slice with its dict."""
    try:
        name = parse_slice_name(record.file_name.stem)
        mask = name if record.sem_seg_file is None else parse_slice_name(record.sem_seg_file.stem)
    except ValueError:
        return  # not our naming convention
    if record.kind != "slice":
        return
    if mask != name:
        result.add("name", f"its mask has the name of another slice: {record.sem_seg_file}", record.file_name)
    for key in ("subject_id", "time_point", "augmentation", "slice_id"):
        said, named = getattr(record, key), getattr(name, key)
        if said is not None and said != named and not isinstance(said, str):  # names have numbers for text ids
            result.add("name", f"the dict has {key}={said}, but the file name has {named}", record.file_name)


def _check_element(record: Record, channels: int, result: Checked) -> _Form | None:
    """Read an element; returns None if its image or mask cannot be read."""
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
    """Call `read` and add its error, if any, as a finding for `file`, unless the error names another file."""
    try:
        return read()
    except Exception as error:  # noqa: BLE001 -- readers of plugins may raise anything; the check continues
        result.add_error("file", error, file)
    return None


def _verify(record: Record, verified: set[Path], result: Checked) -> None:
    """Verify the checksums in the files of a record, once per file, if its reader supports it."""
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
    """Read a mask; returns its type and, unless it is a label map, its number of channels."""
    found = check_mask(mask, path)
    if found is not None and found < channels:
        need = f"the categories of the metadata need {channels} channels"
        result.add("channels", f"{need}, but the mask has {found}", path)
    return (mask.array.dtype, None) if isinstance(mask, LabelMapView) else (mask.dtype, found)


def _parts(array: LazyArray) -> Iterator[Any]:
    """Yield the parts of an array, some rows at a time."""
    return (array[rows] for rows in slabs(array))


def _compare(form: _Form, record: Record, first: _Form, one: Record, result: Checked) -> None:
    """Compare a slice with the first of its scan."""
    where = f"but slice {one.slice_id} of its scan is"
    if form.shape != first.shape:
        result.add("shape", f"the slice is {by(form.shape)}, {where} {by(first.shape)}", record.file_name)
    if form.image != first.image:
        result.add("type", f"the image is {form.image}, {where} {first.image}", record.file_name)
    if form.spacing and first.spacing and not same_spacing(form.spacing, first.spacing):
        mine = by(form.spacing, digits=9)
        said = f"the file declares a spacing of {mine} mm, but that of slice {one.slice_id} of its scan"
        result.add("geometry", f"{said} {by(first.spacing, digits=9)} mm", record.file_name)
    if form.directions and first.directions and form.directions != first.directions:
        said = f"by its affine, its axes run towards {form.directions}, but those of slice {one.slice_id} of its scan"
        result.add("geometry", f"{said} towards {first.directions}", record.file_name)
    if None not in (form.channels, first.channels) and form.channels != first.channels:
        result.add("channels", f"the mask has {form.channels} channels, {where} {first.channels}", record.sem_seg_file)


_SUFFIXES: Final = (".h5", ".hdf5", ".im", ".seg")
_MANIFEST_SIGN: Final = b'"medsegpy_packed"'


def listed(target: str | os.PathLike[str], result: Checked) -> tuple[Sequence[DatasetDict], str]:
    """Return the dicts, and the name of their dataset (empty for a folder)."""
    if isinstance(target, str) and target in DatasetCatalog:
        return DatasetCatalog.get(target), target
    path = Path(target).expanduser()
    if path.is_dir():
        manifests = [manifest.dicts for manifest in packed_manifests(path.absolute(), result)]
        return [d for dicts in manifests for d in dicts] if manifests else _scanned(path, result), ""
    if path.is_file():
        return packed_dicts(path), ""
    try:
        return DatasetCatalog.get(str(target)), str(target)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} Nor is there a folder {path.absolute()}.") from error


def _scanned(folder: Path, result: Checked) -> Sequence[DatasetDict]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dicts = scan_directory(folder)
    for warning in caught:
        if issubclass(warning.category, DataWarning):
            result.add("listing", str(warning.message))
        else:
            warnings.warn(warning.message, stacklevel=4)
    _check_left_aside(folder, dicts, result)
    return dicts


def _check_left_aside(folder: Path, dicts: Sequence[DatasetDict], result: Checked) -> None:
    """Check that HDF5 files which are not in the list can be read."""
    listed = {os.path.basename(d[key]) for d in dicts for key in ("file_name", "sem_seg_file") if key in d}
    for name in sorted(os.listdir(folder)):
        if name.lower().endswith(_SUFFIXES) and name not in listed:
            try:
                root_and_groups(f"{folder.absolute()}{os.sep}{name}")
            except ReadError as error:
                result.add_error("file", error)


def sound_records(dicts: Sequence[DatasetDict], dataset: str, result: Checked) -> list[Record]:
    """Return the records of the valid dicts."""
    try:
        return make_records(dicts, [dataset] * len(dicts))
    except MedSegPyError as error:
        whole = error
    records, sound = [], True
    for i, d in enumerate(dicts):
        try:
            Record.from_dict(d, dataset, i)  # only here is the number of the element known
            records.append(evolve(make_records([d], [dataset])[0], index=i))
        except MedSegPyError as error:
            result.add_error("dict", error)
            sound = False
    if sound:
        result.add_error("dict", whole)  # each dict is valid, but they contradict each other
    return records


def required_channels_of(dataset: str, result: Checked) -> int:
    """Return the number of channels that the categories need; check the metadata."""
    if not dataset:
        return 0
    try:
        view = MetadataCatalog.get(dataset).view()
        ids = view.get("category_ids")
        view.require(*REQUIRED_KEYS)
    except MedSegPyError as error:
        result.add_error("metadata", error)
        ids = MetadataCatalog.get(dataset).get("category_ids")
    return 0 if ids is None else required_channels(normalize_category_ids(ids))


def packed_manifests(folder: Path, result: Checked) -> list[Manifest]:
    """Return the manifests of packed datasets in a folder; report invalid ones."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            with path.open("rb") as file:
                packed = _MANIFEST_SIGN in file.read(256)
            if packed:
                found.append(read_manifest(path))
        except (OSError, ReadError) as error:
            result.add_error("file", error, path)
    return found


Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


def check_dataset(
    target: str | os.PathLike[str], *, seconds: float = 60.0, watch: Watch = lambda items, *_: items
) -> Checked:
    """Read a whole dataset and list its problems.

    Args:
        target: The name of a dataset; a folder of packed datasets or of files to list with `scan_directory`; or the
            manifest of a packed dataset.
        seconds: The time limit of the HDF5 library for one file; each 10 MB add a second.
        watch: Called with an iterable, its length, and a description; returns the iterable; for a progress bar.

    Raises:
        UnknownNameError: There is no such dataset or folder.
        MedSegPyError: The dataset cannot be listed.
    """
    result = Checked(os.fspath(target))
    with accessing(Access(isolate=True, seconds=seconds)):
        dicts, dataset = listed(target, result)
        records = sound_records(dicts, dataset, result)
        scans = group_scans(records)
        files = {str(file) for r in records for file in (r.file_name, r.sem_seg_file) if file is not None}
        result.elements, result.scans, result.files = len(dicts), len(scans), len(files)
        result.scans_without_subject = sum(scan.records[0].subject_id is None for scan in scans)
        channels = required_channels_of(dataset, result)
        _prepare(records)
        verified: set[Path] = set()
        directions: dict[str, list[Scan]] = {}
        for scan in watch(scans, len(scans), "Reading"):
            if (runs := check_scan(scan, channels, verified, result)) is not None:
                directions.setdefault(runs, []).append(scan)
        _check_directions(directions, result)
        _check_contents(files, result, watch)
    return result


def _prepare(records: Sequence[Record]) -> None:
    """Let readers look once into files that hold several scans."""
    count = Counter(record.file_name for record in records)
    shared = [record for record in records if count[record.file_name] > 1]
    with suppress(Exception):  # the element itself reports the error
        Opener.of(shared).prepare(shared)


def _check_directions(directions: dict[str, list[Scan]], result: Checked) -> None:
    """Report scans in different orientations, because readers do not reorient them for the model."""
    if len(directions) > 1:
        parts = [
            f"{len(scans)} {'scan' if len(scans) == 1 else 'scans'} towards {runs} ({scans[0].key[1]!r}"
            f"{', ...' if len(scans) > 1 else ''})"
            for runs, scans in sorted(directions.items(), key=lambda item: -len(item[1]))
        ]
        result.add("orientation", f"the axes H, W, D run in different directions, by the affines: {', '.join(parts)}")


def _check_contents(files: set[str], result: Checked, watch: Watch) -> None:
    """Compare packed files with their hashes in the manifest."""
    folders = sorted({Path(file).parent for file in files if file.endswith((".h5", ".hdf5"))})
    manifests = [manifest for folder in folders if folder.is_dir() for manifest in packed_manifests(folder, result)]
    arrays = [array for manifest in manifests for array in manifest.arrays if str(array[0]) in files]
    for array in watch(arrays, len(arrays), "Hashing") if arrays else ():
        for _ in verify_arrays([array]):
            result.add("content", f"dataset {array[1]!r} differs from the hash in the manifest", array[0])
