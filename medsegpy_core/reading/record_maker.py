"""From dataset dicts to records: absolute paths, file layouts from the metadata, augmentation numbers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from medsegpy_core.data.records import LAYOUT_KEYS, Record, ScanKey, augmentation_in_name
from medsegpy_core.errors import ReadError, RecordError
from medsegpy_core.plugins.manager import default_manager

if TYPE_CHECKING:
    from medsegpy_core.data.metadata import Metadata
    from medsegpy_core.typing import DatasetDict


def datasets_root() -> Path:
    """Return the base folder of relative paths in dataset dicts: ``MEDSEGPY_DATASETS``."""
    return Path(os.environ.get("MEDSEGPY_DATASETS") or "datasets").absolute()


class RecordMaker:
    """Makes the records of some datasets: absolute paths, file layouts, augmentation numbers.

    Args:
        datasets: The names of the datasets; an empty name stands for dicts without a dataset.
        metadata_of: Returns the metadata of a dataset.
    """

    def __init__(self, datasets: Iterable[str], metadata_of: Callable[[str], Metadata]):
        self._root = datasets_root()
        metadata = {name: metadata_of(name) for name in set(datasets) if name}
        self._layouts = {name: _layout(found) for name, found in metadata.items()}
        found = {name: _container(found, self._root) for name, found in metadata.items()}
        self._containers = {name: container for name, container in found.items() if container is not None}

    def make(self, d: DatasetDict, dataset: str, index: int) -> Record:
        """Return the record of a dict.

        Raises:
            RecordError: The dict lacks a key or has a wrong type.
            ReadError: A file is outside the `scan_root` of a dataset whose metadata have `contained=True`.
        """
        record = _absolute(Record.from_dict(d, dataset, index), self._root)
        if dataset in self._containers:
            self._containers[dataset].check(record)
        if layout := {
            key: value for key, value in self._layouts.get(dataset, {}).items() if record.extra.get(key) is None
        }:
            record = record.with_extra(layout)
        record = _as_label_map(record)
        if dataset and d.get("augmentation") is None and augmentation_in_name(d) is None:
            tag = default_manager().tag_augmentation(dataset, record)
            record = evolve(record, augmentation=tag) if tag else record
        return record

    def augmentation(self, d: DatasetDict, dataset: str) -> int | None:
        """Return the augmentation number of a dict. Plugins are asked about standard dicts only."""
        number: int | None = d.get("augmentation")
        if number is not None or "file_name" not in d:
            return number
        number = augmentation_in_name(d)
        if number is None and dataset:
            with contextlib.suppress(RecordError):
                number = self.make(d, dataset, 0).augmentation
        return number or 0


def _layout(metadata: Metadata) -> dict[str, Any]:
    """Return the layout of the files of a dataset, from its metadata."""
    values = {key: metadata.get(key) for key in LAYOUT_KEYS}
    # Arrays, which metadata may contain, would make records incomparable.
    return {
        key: value.tolist() if hasattr(value, "tolist") else value for key, value in values.items() if value is not None
    }


def _as_label_map(record: Record) -> Record:
    """Return a record with ``label_map=True`` if it declares label values, which only a label map has."""
    extra = record.extra
    if extra.get("label_map") is None and (extra.get("label_values") or extra.get("ignore_values")):
        return record.with_extra({"label_map": True})
    return record


def _absolute(record: Record, root: Path) -> Record:
    image, mask = record.files
    if os.path.isabs(image) and (mask is None or os.path.isabs(mask)):  # noqa: PTH117
        return record
    return evolve(record, file_name=root / image, sem_seg_file=None if mask is None else root / mask)


class _Container:
    """A folder that the files of a dataset may not leave, by ``..`` or by a link."""

    def __init__(self, root: Path):
        self._root = root
        self._real = os.path.realpath(root)
        self._folders: dict[str, str] = {}  # real paths of folders: few folders hold many files

    def check(self, record: Record) -> None:
        """Raise `ReadError` if a file of the record is elsewhere."""
        for path in filter(None, (record.file_name, record.sem_seg_file)):
            if not self._holds(str(path)):
                raise ReadError(
                    f"{record.where()} names this file, which is not in {self._root}"
                    f"{'' if os.path.realpath(path) == str(path) else f' (it leads to {os.path.realpath(path)})'}. The "
                    "metadata of the dataset have contained=True: only files inside its scan_root are read",
                    path,
                )

    def _holds(self, path: str) -> bool:
        folder, name = os.path.split(path)
        # Only the last component can differ between files of a folder, so `realpath` runs once per folder.
        if name in ("", ".", "..") or os.path.islink(path):  # noqa: PTH114 -- there may be 200,000
            real = os.path.realpath(path)
        else:
            real_folder = self._folders.get(folder)
            if real_folder is None:
                real_folder = self._folders[folder] = os.path.realpath(folder)
            real = f"{real_folder}{os.sep}{name}"
        return real.startswith(self._real.rstrip(os.sep) + os.sep)


def _container(metadata: Metadata, root: Path) -> _Container | None:
    """Return the folder that the files of a dataset may not leave, or None if there is no restriction."""
    if not metadata.get("contained"):
        return None
    return _Container(root / Path(metadata.view().require("scan_root").scan_root).expanduser())


def check_unique(records: Sequence[Record]) -> None:
    """Raise `RecordError` if two records are the same slice or volume, or disagree about their scan."""
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
