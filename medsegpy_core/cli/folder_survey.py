"""What is in a folder that a dataset plugin is to be made of: splits, classes, spacing, readers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from medsegpy_core.cli.output import track
from medsegpy_core.datasets import make_records, scan_directory
from medsegpy_core.errors import LeakageError, ReadError, RecordError
from medsegpy_core.loading.scans import Scan, group_scans
from medsegpy_core.opening import open_record
from medsegpy_core.plugins import default_manager
from medsegpy_core.readers import find_reader
from medsegpy_core.records import Record
from medsegpy_core.splits import FRACTIONS, split_by_subject, subject_of, warn_of_unknown_subjects
from medsegpy_core.typing import DatasetDict

__all__ = ["FolderSurvey", "survey_folder"]

_FOLDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_SCANS: Final = 200  # of which files are opened


@frozen
class FolderSurvey:
    """What was found.

    Attributes:
        root: The folder.
        folders: Split to subfolder; empty where there are none, and the splits are proposed.
        subjects: Split to its subjects, sorted.
        elements: Split to how many elements it has.
        readers: The readers of the files.
        distributions: The plugins that bring them.
        channels: How many channels the masks have; 0: no mask was found.
        label_map: Whether integer masks have to be declared as label maps.
        spacing: Millimetres; None: files do not say, or differ.
        spacings: How many spacings there are in the files.
    """

    root: Path
    folders: Mapping[str, str]
    subjects: Mapping[str, Sequence[int | str]]
    elements: Mapping[str, int]
    readers: Sequence[str]
    distributions: Sequence[str]
    channels: int
    label_map: bool
    spacing: tuple[float, ...] | None
    spacings: int


@define
class _Seen:
    """What the files say, one after the other."""

    channels: int = 0
    largest: int = 0
    label_map: bool = False
    spacings: set[tuple[float, ...]] = field(factory=set)
    silent: bool = False


def survey_folder(root: Path, seed: int) -> FolderSurvey:
    """Look into a folder.

    Args:
        root: The folder. If it has subfolders train, val, test (one will do), these are the splits; else subjects are
            shared out.
        seed: Another seed, another split.

    Raises:
        ReadError: A file cannot be read.
        RecordError: There are no scans.
        LeakageError: A subject lies in two of the subfolders.
    """
    folders = {
        split: found[0] for split, names in _FOLDERS.items() if (found := [n for n in names if (root / n).is_dir()])
    }
    splits = _in_folders(root, folders) if folders else _proposed(root, seed)
    records = make_records([d for dicts in splits.values() for d in dicts], [""] * sum(map(len, splits.values())))
    readers = {find_reader(record).name for record in records[:: max(1, len(records) // _SCANS)]}
    seen = _look_into(group_scans(records))
    owners = [default_manager().readers()[name].owner.distribution for name in readers & {*default_manager().readers()}]
    said = len(seen.spacings) == 1 and not seen.silent
    return FolderSurvey(
        root=root,
        folders=folders,
        subjects={split: _subjects(dicts) for split, dicts in splits.items()},
        elements={split: len(dicts) for split, dicts in splits.items()},
        readers=sorted(readers),
        distributions=sorted(filter(None, owners)),
        channels=max(seen.channels, seen.largest),
        label_map=seen.label_map,
        spacing=next(iter(seen.spacings)) if said else None,
        spacings=len(seen.spacings),
    )


def _in_folders(root: Path, folders: Mapping[str, str]) -> dict[str, list[DatasetDict]]:
    splits = {split: scan_directory(root / folder) for split, folder in folders.items()}
    empty = [str(root / folders[split]) for split, dicts in splits.items() if not dicts]
    if empty:
        raise RecordError(f"No scans are in {', '.join(empty)}. Readers see no further than the folder itself.")
    where: dict[int | str, str] = {}
    for split, dicts in splits.items():
        for subject in _subjects(dicts):
            if subject in where:
                raise LeakageError(
                    f"Subject {subject!r} is in {root / folders[where[subject]]} and in {root / folders[split]}. A "
                    "model is not judged on whom it was trained on: move the files so that each is in one folder."
                )
            where[subject] = split
    warn_of_unknown_subjects([d for dicts in splits.values() for d in dicts], "may be in two of the folders")
    return splits


def _proposed(root: Path, seed: int) -> dict[str, list[DatasetDict]]:
    dicts = scan_directory(root)
    if not dicts:
        raise RecordError(
            f"No scans are in {root}. Readers see no further than the folder itself, and its subfolders "
            "train, val, test."
        )
    return {split: part for split, part in split_by_subject(dicts, FRACTIONS, seed).items() if part}


def _subjects(dicts: Sequence[DatasetDict]) -> list[int | str]:
    return sorted(
        {subject_of(d) for d in dicts}, key=lambda subject: (isinstance(subject, str), subject)
    )  # numbers first


def _look_into(scans: Sequence[Scan]) -> _Seen:
    seen = _Seen()
    chosen = scans[:: math.ceil(len(scans) / _SCANS)] if scans else []
    for scan in track(chosen, "Reading headers and masks", len(chosen)):
        _look_at(scan.records[len(scan.records) // 2], seen)
        # The largest label may be in any slice.
        for record in scan.records if seen.label_map and not scan.is_volume else ():
            _look_at(record, seen)
    return seen


def _look_at(record: Record, seen: _Seen) -> None:
    reader = find_reader(record)
    with reader.open(record) as opened:
        spatial = 2 if record.kind == "slice" else 3
        mask = opened.mask
        if mask is not None and mask.shape[spatial:] in ((), (1,)) and mask.dtype.kind in "iu":
            values = mask[...]
            largest = int(values.max(initial=0))
            # 0 and 255 is a binary mask that was written as an image.
            if largest > 1 and not (largest == 255 and not ((values > 0) & (values < 255)).any()):
                seen.label_map = seen.label_map or not record.extra.get("label_map")
                seen.largest = max(seen.largest, largest)
                record = record.with_extra({"label_map": True})
    with open_record(record, reader) as scan:
        if scan.mask is not None:
            if scan.mask.shape[:spatial] != scan.image.shape[:spatial]:
                raise ReadError("image and mask differ in size", record.sem_seg_file)
            seen.channels = max(seen.channels, scan.mask.shape[-1])
        _hear(scan.metadata, seen)


def _hear(metadata: Mapping[str, Any], seen: _Seen) -> None:
    spacing = metadata.get("spacing")
    if spacing is None:
        seen.silent = True
    else:
        seen.spacings.add(tuple(float(f"{size:.6g}") for size in spacing))
