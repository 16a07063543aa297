"""From dataset dicts to records, and from directories to dataset dicts."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from medsegpy_core.catalog import DatasetCatalog, MetadataCatalog
from medsegpy_core.errors import DataWarning, DuplicateNameError, ReadError, RecordError, UnknownNameError
from medsegpy_core.naming import parse_identity
from medsegpy_core.plugins import default_manager
from medsegpy_core.readers import all_readers, named_reader
from medsegpy_core.records import LAYOUT_KEYS, Record, ScanKey, augmentation_in_name, own_dataset

if TYPE_CHECKING:
    from medsegpy_core.typing import DatasetDict, Reader

__all__ = [
    "augmentation_numbers",
    "dataset_names",
    "datasets_root",
    "list_dataset",
    "load_records",
    "make_records",
    "scan_directory",
]


def datasets_root() -> Path:
    """Return the folder that relative paths in dataset dicts are relative to: ``MEDSEGPY_DATASETS``."""
    return Path(os.environ.get("MEDSEGPY_DATASETS") or "datasets").absolute()


def load_records(name: str) -> list[Record]:
    """Return the elements of a registered dataset, checked and typed.

    Raises:
        UnknownNameError: No dataset has this name.
        RecordError: What it returns are not standard dataset dicts.
    """
    dicts = list_dataset(name)
    return make_records(dicts, [name] * len(dicts))


def list_dataset(name: str) -> list[DatasetDict]:
    """Return what the function of a dataset returns, as a list, its members unchecked.

    Raises:
        UnknownNameError: No dataset has this name.
        RecordError: It returns no list.
    """
    found: Any = DatasetCatalog.get(name)
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping):
        raise RecordError(
            f"The function of dataset {name!r} returned {'None' if found is None else f'a {type(found).__name__}'}, "
            "expected a list of dataset dicts."
        )
    return list(found)


def dataset_names(dicts: Iterable[Any], otherwise: str = "") -> list[str]:
    """Return the dataset of each dict: what it has as `dataset_name`.

    Args:
        dicts: Dataset dicts, not necessarily standard ones.
        otherwise: The dataset of the dicts that have no `dataset_name`.

    Raises:
        UnknownNameError: A dict names a dataset that is unknown in this process.
        DuplicateNameError: A dict names a dataset that more than one owner claims.
    """
    own = [own_dataset(d) if isinstance(d, Mapping) else "" for d in dicts]
    for name in dict.fromkeys(own):
        if name:
            _check_known(name, own.index(name))
    return [name or otherwise for name in own]


def _check_known(name: str, index: int) -> None:
    try:
        DatasetCatalog.registry.get(name)
    except (UnknownNameError, DuplicateNameError) as error:
        raise type(error)(
            f"Dataset dict {index} has dataset_name={name!r}, but that dataset cannot be looked up in this process: "
            f"{error} Register it here too, or remove 'dataset_name' from the dicts, which then have no metadata."
        ) from error


def augmentation_numbers(dicts: Sequence[DatasetDict]) -> list[int | None]:
    """Return the augmentation number of each dict as a loader knows it: what the dict says, else the name of its file,
    else the plugins if the dict has a `dataset_name`, else 0; None for a custom dict that has no file.

    Raises:
        UnknownNameError: A dict names a dataset that is unknown in this process.
    """
    names = dataset_names(dicts)
    maker = _RecordMaker(names)
    return [maker.augmentation(d, name) for d, name in zip(dicts, names, strict=True)]


def make_records(dicts: Sequence[DatasetDict], datasets: Sequence[str]) -> list[Record]:
    """Check and type dataset dicts: absolute paths, augmentation numbers, file layouts from the metadata.

    Args:
        dicts: Standard dataset dicts.
        datasets: The name of the dataset of each; empty: its `dataset_name`, if it has one.

    Raises:
        UnknownNameError: A dict names a dataset that is unknown in this process.
        RecordError: One of them lacks a key or has a wrong type, or two of them are the same slice.
        ReadError: A file lies outside the dataset's `scan_root`, whose metadata say that it is `contained`.
    """
    own = dataset_names(dicts) if "" in datasets else datasets
    names = [given or name for given, name in zip(datasets, own, strict=True)]
    maker = _RecordMaker(names)
    counts: dict[str, int] = {}
    records = []
    for d, name in zip(dicts, names, strict=True):
        index = counts.get(name, 0)
        counts[name] = index + 1
        records.append(maker.make(d, name, index))
    _check_unique(records)
    return records


class _RecordMaker:
    """Makes the records of some datasets: absolute paths, file layouts, augmentation numbers."""

    def __init__(self, datasets: Iterable[str]):
        self._root = datasets_root()
        self._layouts = {name: _layout(name) for name in set(datasets)}
        found = {name: _container(name, self._root) for name in self._layouts}
        self._containers = {name: container for name, container in found.items() if container is not None}

    def make(self, d: DatasetDict, dataset: str, index: int) -> Record:
        """Return the record of a dict.

        Raises:
            RecordError: It lacks a key or has a wrong type.
            ReadError: A file lies outside the dataset's `scan_root`, whose metadata say that it is `contained`.
        """
        record = _absolute(Record.from_dict(d, dataset, index), self._root)
        if dataset in self._containers:
            self._containers[dataset].check(record)
        if layout := {key: value for key, value in self._layouts[dataset].items() if record.extra.get(key) is None}:
            record = record.with_extra(layout)
        _check_labels(record)
        if dataset and d.get("augmentation") is None and augmentation_in_name(d) is None:
            tag = default_manager().tag_augmentation(dataset, record)
            record = evolve(record, augmentation=tag) if tag else record
        return record

    def augmentation(self, d: DatasetDict, dataset: str) -> int | None:
        """Return the augmentation number of a dict; plugins are asked about standard dicts only."""
        number: int | None = d.get("augmentation")
        if number is not None or "file_name" not in d:
            return number
        number = augmentation_in_name(d)
        if number is None and dataset:
            with contextlib.suppress(RecordError):
                number = self.make(d, dataset, 0).augmentation
        return number or 0


def _layout(dataset: str) -> dict[str, Any]:
    """Return what the metadata say of the files of a dataset."""
    if not dataset:
        return {}
    metadata = MetadataCatalog.get(dataset)
    values = {key: metadata.get(key) for key in LAYOUT_KEYS}
    # Arrays, which metadata may hold, would make records that cannot be compared.
    return {
        key: value.tolist() if hasattr(value, "tolist") else value for key, value in values.items() if value is not None
    }


def _check_labels(record: Record) -> None:
    """Raise `RecordError` if what a dict and the metadata say of label values does not fit together."""
    extra = record.extra
    values, ignored = extra.get("label_values"), extra.get("ignore_values")
    if (values or ignored) and extra.get("label_map") is None:
        key = "label_values" if values else "ignore_values"
        raise RecordError(
            f"{record.where()} has {key}={extra[key]!r}, which speaks of a label map. Declare label_map=True as well "
            "(or label_map=False, if its masks have a channel for each category)."
        )


def _absolute(record: Record, root: Path) -> Record:
    image, mask = record.files
    if os.path.isabs(image) and (mask is None or os.path.isabs(mask)):  # noqa: PTH117
        return record
    return evolve(record, file_name=root / image, sem_seg_file=None if mask is None else root / mask)


class _Container:
    """A folder that the files of a dataset may not leave, neither by ``..`` nor by a link."""

    def __init__(self, root: Path):
        self._root = root
        self._real = os.path.realpath(root)
        self._folders: dict[str, str] = {}  # what a folder really is: few folders hold many files

    def check(self, record: Record) -> None:
        """Raise `ReadError` if a file of the record lies elsewhere."""
        for path in filter(None, (record.file_name, record.sem_seg_file)):
            if not self._holds(str(path)):
                raise ReadError(
                    f"{record.where()} names this file, which is not in {self._root}"
                    f"{'' if os.path.realpath(path) == str(path) else f' (it leads to {os.path.realpath(path)})'}. The "
                    "metadata of the dataset say contained=True: only files inside its scan_root are read",
                    path,
                )

    def _holds(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):  # noqa: PTH114 -- there may be 200,000
            real = os.path.realpath(path)
        else:
            real_folder = self._folders.get(folder)
            if real_folder is None:
                real_folder = self._folders[folder] = os.path.realpath(folder)
            real = f"{real_folder}{os.sep}{name}"
        return real.startswith(self._real.rstrip(os.sep) + os.sep)


def _container(dataset: str, root: Path) -> _Container | None:
    """Return what the files of a dataset may not leave; None: they may lie anywhere."""
    metadata = MetadataCatalog.get(dataset) if dataset else None
    if metadata is None or not metadata.get("contained"):
        return None
    return _Container(root / Path(metadata.view().require("scan_root").scan_root).expanduser())


def _check_unique(records: Sequence[Record]) -> None:
    slices: dict[tuple[ScanKey, int | None], Record] = {}
    scans: dict[ScanKey, Record] = {}
    for record in records:
        other = slices.setdefault((record.scan_key, record.slice_id), record)
        if other is not record:
            what = "volume" if record.kind == "volume" else f"slice {record.slice_id}"
            raise RecordError(
                f"{record.where()} ({record.file_name}) and element {other.index} ({other.file_name}) are both {what} "
                "of "
                f"scan {record.scan_id!r}, augmentation {record.augmentation}. Give each scan its own scan_id."
            )
        first = scans.setdefault(record.scan_key, record)
        if (first.kind, first.scan_num_slices) != (record.kind, record.scan_num_slices):
            raise RecordError(
                f"{record.where()} is a {record.kind} with scan_num_slices={record.scan_num_slices}, but element "
                f"{first.index} of the same scan {record.scan_id!r} is a {first.kind} with "
                f"scan_num_slices={first.scan_num_slices}. scan_num_slices is the depth of the scan."
            )


def scan_directory(root: str | os.PathLike[str], reader: str | None = None) -> list[DatasetDict]:
    """List the scans that lie in a directory, as dataset dicts. Subdirectories are not searched.

    Args:
        root: The directory. A relative one is taken from the working directory if it is there, else from
            ``MEDSEGPY_DATASETS``.
        reader: The name of a reader; None: every reader lists the files with its suffixes.

    Returns:
        Dicts sorted by scan and slice number, volumes by file name, with absolute paths. A scan whose reader does not
        know the person has `subject_id` and `time_point` from its name, if that is ``sub-01_ses-1`` or the like. What
        is left aside is reported in warnings.

    Raises:
        ReadError: There is no such directory.
        UnknownNameError: There is no such reader.
    """
    folder = _directory(root)
    readers = [named_reader(reader)] if reader is not None else _claiming(folder)
    dicts = [d for chosen in readers for d in _scan_with(chosen, folder)]
    for d in dicts:
        if d.get("subject_id") is None:
            _identify(d)
    # One reader's list is sorted; several lists have to be merged.
    return dicts if len(readers) == 1 else sorted(dicts, key=_place)


def _identify(d: DatasetDict) -> None:
    """Add what the names of a scan say of the person, and what the dict does not."""
    stem = os.path.basename(os.fspath(d["file_name"])).partition(".")[0]
    said = parse_identity(str(d.get("scan_id", ""))) or parse_identity(stem)
    for key, value in said.items():
        if d.get(key) is None:
            d[key] = value


def _place(d: DatasetDict) -> tuple[str, int]:
    """Return what dicts of several readers are sorted by."""
    if "slice_id" in d:
        return str(d["scan_id"]), d["slice_id"]
    return os.path.basename(os.fspath(d["file_name"])), 0


def _directory(root: str | os.PathLike[str]) -> Path:
    path = Path(root).expanduser()
    candidates = [path.absolute()] if path.is_absolute() else [path.absolute(), datasets_root() / path]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    tried = " nor ".join(map(str, candidates))
    raise ReadError(
        f"there is no directory {tried}. Relative paths are taken from the working directory or MEDSEGPY_DATASETS"
    )


def _claiming(folder: Path) -> list[Reader]:
    """Return the readers that claim, by suffix, a file of the folder, and can list one."""
    names = os.listdir(folder)
    # One search in one text: there may be hundreds of thousands of names.
    endings = "\n".join(names).lower() + "\n"
    readers = [
        reader for reader in all_readers().values() if any(suffix + "\n" in endings for suffix in reader.suffixes)
    ]
    able = [reader for reader in readers if hasattr(reader, "scan")]
    if not able and names:
        known = sorted({suffix for reader in all_readers().values() for suffix in reader.suffixes})
        warnings.warn(
            f"{folder}: none of the {len(names)} files ({', '.join(sorted(names)[:5])}, ...) has a suffix that an "
            f"installed reader lists ({', '.join(known) or 'no reader is installed'}). Name one: "
            "scan_directory(root, reader='...').",
            DataWarning,
            stacklevel=3,
        )
    return able


def _scan_with(reader: Reader, folder: Path) -> Iterable[DatasetDict]:
    scan = getattr(reader, "scan", None)
    if scan is None:
        raise ReadError(f"the reader {reader.name!r} cannot list a directory (it has no method scan(root))", folder)
    dicts: Iterable[DatasetDict] = scan(folder)
    return dicts
