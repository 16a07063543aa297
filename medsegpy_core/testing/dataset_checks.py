"""Conformance checks for datasets. Each takes names and raises `CheckError`."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from typing import Any

from medsegpy_core.catalog import (
    DatasetCatalog,
    MetadataCatalog,
    collection_of,
    dataset_owner,
    dataset_spec,
    named_dicts,
)
from medsegpy_core.data.categories import normalize_category_ids, required_channels
from medsegpy_core.data.records import Record
from medsegpy_core.datasets import declared_categories, geometry_check, load_records
from medsegpy_core.errors import MedSegPyError, RecordError
from medsegpy_core.loading.collate import check_mask
from medsegpy_core.loading.scans import group_scans
from medsegpy_core.plugins.manager import default_manager
from medsegpy_core.reading.canonical_scan import open_record
from medsegpy_core.reading.readers import find_reader
from medsegpy_core.testing.outcome import CheckError, NotCheckableError, UndecidedError, require
from medsegpy_core.testing.processes import in_new_interpreter
from medsegpy_core.text import counted, some
from medsegpy_core.typing import DatasetDict


def check_registered(name: str) -> None:
    """Check that a dataset is registered, by one owner only."""
    try:
        dataset_owner(name)
    except MedSegPyError as error:
        failed = [f"plugin {info.name!r} failed: {info.error}" for info in default_manager().infos() if info.error]
        raise CheckError(". ".join([str(error).rstrip("."), *failed])) from error


def check_listing(name: str) -> None:
    """Check that the dataset is not empty, and is listed the same way twice."""
    first = _listed(name)
    require(first, f"dataset {name!r} has no elements. Check what its function returns, and where its files are")
    kept = pickle.loads(_pickled(first, name))  # noqa: S301 -- pickled in the line itself
    require(kept == first, f"the dicts of {name!r} differ after pickling")
    require(_listed(name) == kept, f"dataset {name!r} is listed differently the second time: sort the list")


def check_new_process(names: Sequence[str]) -> None:
    """Check that a new process, with another hash seed, lists the same dicts.

    Raises:
        CheckError: It lists others.
        NotCheckableError: A dataset is registered in this process only, by a function that does not pickle.
    """
    installed = [name for name in names if dataset_owner(name).distribution]
    found = in_new_interpreter(_all_listed, installed) if installed else {}
    for name in set(names) - set(installed):
        load = dataset_spec(name).load
        try:
            pickle.dumps(load)
        except Exception as error:
            raise NotCheckableError(f"the function of {name!r} does not pickle: {error}") from error
        found[name] = list(named_dicts(in_new_interpreter(load), name))
    for name in names:
        require(
            found[name] == _listed(name),
            f"dataset {name!r} is listed differently in a new process: sort the list, and do not iterate over sets",
        )


def check_records(name: str) -> None:
    """Check that all dicts are standard dataset dicts, that no element occurs twice, and that records pickle."""
    try:
        records = load_records(name)
    except RecordError as error:
        raise CheckError(str(error)) from error
    again = pickle.loads(_pickled(records, name))  # noqa: S301 -- pickled in the line itself
    require(again == records, f"the records of {name!r} differ after pickling")
    for scan in group_scans(records):
        missing = some(scan.missing)
        require(not missing, f"scan {scan.key[1]!r} of {name!r} lacks slices {missing}: inference on it is refused")


def check_metadata(name: str) -> None:
    """Check that all required metadata are present and consistent."""
    try:
        view = MetadataCatalog.get(name).view().require()
        ids = normalize_category_ids(view.category_ids)
    except MedSegPyError as error:
        raise CheckError(str(error)) from error
    require(ids, f"the category_ids of {name!r} are empty")
    pickle.dumps(view)


def check_splits(names: Sequence[str]) -> None:
    """Check that no subject of a collection is in two splits, over all of the datasets.

    Args:
        names: The datasets. Those without a split are skipped.

    Raises:
        CheckError: A subject, or a scan without `subject_id`, is in two splits.
        UndecidedError: No such subject was found, but some scans have no `subject_id`.
    """
    where: dict[tuple[str, Any], dict[str, str]] = {}
    splits_of: dict[str, set[str]] = {}
    unknown: dict[tuple[str, str], str] = {}  # (collection, scan) -> dataset
    for name in names:
        split = dataset_spec(name).split
        if split is not None:
            collection = collection_of(name)
            splits_of.setdefault(collection, set()).add(split)
            for record in load_records(name):
                subject = record.scan_id if record.subject_id is None else record.subject_id
                where.setdefault((collection, subject), {}).setdefault(split, name)
                if record.subject_id is None:
                    unknown[collection, record.scan_id] = name
    shared = {subject: splits for (_, subject), splits in where.items() if len(splits) > 1}
    if shared:
        subject, splits = next(iter(shared.items()))
        raise CheckError(
            f"{counted(len(shared), 'subject')} in two splits, such as {subject!r} in "
            f"{' and '.join(map(repr, splits.values()))}: "
            "split by subject (medsegpy_core.split_by_subject), or give the datasets different `collection` metadata "
            "if these are different people"
        )
    unknown = {scan: name for scan, name in unknown.items() if len(splits_of[scan[0]]) > 1}
    if unknown:
        (_, scan_id), name = next(iter(unknown.items()))
        raise UndecidedError(
            f"{counted(len(unknown), 'scan')} without subject_id, such as {scan_id!r} of {name!r}: it is unknown "
            "whether scans in two splits are of one person. Add subject_id to the dataset dicts"
        )


def check_augmentation(name: str) -> None:
    """Check that a validation or test dataset has no augmented elements."""
    split = dataset_spec(name).split
    if split not in ("val", "test"):
        return
    augmented = [record for record in load_records(name) if record.augmentation]
    if augmented:
        raise CheckError(
            f"{name!r} is a {split} split, but {len(augmented)} of its elements are augmented, such as "
            f"{augmented[0].file_name}: leave them out (medsegpy_core.filter_dicts(dicts, 'augmentation', [0]))"
        )


def check_files(name: str, scans: int = 3) -> None:
    """Check that files can be opened, that image and mask fit together, and that the metadata fit the masks.

    Args:
        name: The dataset.
        scans: How many scans to check: the first, the last, and some in between. Of each, the first and last element.
    """
    try:
        records = load_records(name)
    except RecordError as error:
        raise CheckError(str(error)) from error
    found = group_scans(records)
    step = max(1, (len(found) - 1) // max(1, scans - 1))
    chosen = list(dict.fromkeys([*found[::step][:scans], *found[-1:]]))
    ids = MetadataCatalog.get(name).get("category_ids")
    channels = None if ids is None else required_channels(normalize_category_ids(ids))
    for scan in chosen:
        for record in dict.fromkeys([scan.records[0], scan.records[-1]]):
            _check_file(record, channels)


def _check_file(record: Record, channels: int | None) -> None:
    try:
        geometry = geometry_check([record.dataset])
        with open_record(record, find_reader(record), declared_categories(record.dataset), geometry) as scan:
            box = tuple(itertools.repeat(slice(0, 1), len(scan.image.shape)))
            scan.image[box]
            found = None if scan.mask is None else check_mask(scan.mask, record.sem_seg_file)
    except MedSegPyError as error:
        raise CheckError(f"{record.where()}: {error}") from error
    if channels is not None and found is not None:
        require(
            found >= channels,
            f"{record.where()}: the mask {record.sem_seg_file} has {found} channels, but the metadata's category_ids "
            f"need {channels}",
        )


def _all_listed(names: Sequence[str]) -> dict[str, list[DatasetDict]]:
    return {name: _listed(name) for name in names}


def _listed(name: str) -> list[DatasetDict]:
    return list(DatasetCatalog.get(name))


def _pickled(value: Any, name: str) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise CheckError(
            f"the dicts of {name!r} cannot be pickled, so that loaders cannot be sent to other processes: {error}"
        ) from error
