"""What there is to check: the elements of a dataset or of a folder, and the manifests of packed files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import evolve

from medsegpy_core.catalog import DatasetCatalog, MetadataCatalog
from medsegpy_core.categories import normalize_category_ids, required_channels
from medsegpy_core.checking.findings import Checked
from medsegpy_core.datasets import make_records, scan_directory
from medsegpy_core.errors import DataWarning, MedSegPyError, ReadError, UnknownNameError
from medsegpy_core.hdf5 import root_and_groups
from medsegpy_core.metadata_values import REQUIRED_KEYS
from medsegpy_core.packing.manifest import Manifest, packed_dicts, read_manifest
from medsegpy_core.records import Record

if TYPE_CHECKING:
    from medsegpy_core.typing import DatasetDict

__all__ = ["listed", "packed_manifests", "required_channels_of", "sound_records"]

_SUFFIXES: Final = (".h5", ".hdf5", ".im", ".seg")
_MANIFEST_SIGN: Final = b'"medsegpy_packed"'


def listed(target: str | os.PathLike[str], result: Checked) -> tuple[Sequence[DatasetDict], str]:
    """Return the dicts, and the name of the dataset that they are of, empty for a folder."""
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
    """Say of each HDF5 file that is not in the list whether it can be read at all."""
    listed = {os.path.basename(d[key]) for d in dicts for key in ("file_name", "sem_seg_file") if key in d}
    for name in sorted(os.listdir(folder)):
        if name.lower().endswith(_SUFFIXES) and name not in listed:
            try:
                root_and_groups(f"{folder.absolute()}{os.sep}{name}")
            except ReadError as error:
                result.add_error("file", error)


def sound_records(dicts: Sequence[DatasetDict], dataset: str, result: Checked) -> list[Record]:
    """Return the records of the dicts that are sound."""
    try:
        return make_records(dicts, [dataset] * len(dicts))
    except MedSegPyError as error:
        whole = error
    records, sound = [], True
    for i, d in enumerate(dicts):
        try:
            Record.from_dict(d, dataset, i)  # which element it is, is told right here only
            records.append(evolve(make_records([d], [dataset])[0], index=i))
        except MedSegPyError as error:
            result.add_error("dict", error)
            sound = False
    if sound:
        result.add_error("dict", whole)  # each is sound by itself: they contradict each other
    return records


def required_channels_of(dataset: str, result: Checked) -> int:
    """Return how many channels the categories need; check the metadata."""
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
    """Return the manifests of packed datasets in a folder; note those that are broken."""
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
