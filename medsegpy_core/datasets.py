"""From dataset dicts to records and open arrays, and from directories to dataset dicts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegpy_core.catalog import DatasetCatalog, MetadataCatalog
from medsegpy_core.data.categories import normalize_category_ids
from medsegpy_core.data.naming import parse_identity
from medsegpy_core.data.records import Record, own_dataset
from medsegpy_core.errors import DataWarning, DuplicateNameError, ReadError, RecordError, UnknownNameError
from medsegpy_core.reading.canonical_scan import CanonicalScan, GeometryCheck, open_record
from medsegpy_core.reading.readers import all_readers, find_reader, named_reader
from medsegpy_core.reading.record_maker import RecordMaker, check_unique, datasets_root
from medsegpy_core.text import some
from medsegpy_core.typing import ListingReader

if TYPE_CHECKING:
    from medsegpy_core.typing import CategoryId, DatasetDict, Reader


def load_records(name: str) -> list[Record]:
    """Return the validated elements of a registered dataset.

    Raises:
        UnknownNameError: No dataset has this name.
        RecordError: Its function does not return standard dataset dicts.
    """
    dicts = list_dataset(name)
    return make_records(dicts, [name] * len(dicts))


def list_dataset(name: str) -> list[DatasetDict]:
    """Return the result of a dataset's function as a list, its members unchecked.

    Raises:
        UnknownNameError: No dataset has this name.
        RecordError: The function does not return a list.
    """
    found: Any = DatasetCatalog.get(name)
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping):
        raise RecordError(
            f"The function of dataset {name!r} returned {'None' if found is None else f'a {type(found).__name__}'}, "
            "expected a list of dataset dicts."
        )
    return list(found)


def dataset_names(dicts: Iterable[Any], otherwise: str = "") -> list[str]:
    """Return the dataset of each dict: its `dataset_name`.

    Args:
        dicts: Dataset dicts, not necessarily standard ones.
        otherwise: The dataset of dicts without `dataset_name`.

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
    """Return the augmentation number of each dict, as loaders do: from the dict, else the name of its file, else the
    plugins if the dict has a `dataset_name`, else 0. None for a custom dict without a file.

    Raises:
        UnknownNameError: A dict names a dataset that is unknown in this process.
    """
    names = dataset_names(dicts)
    maker = RecordMaker(names, MetadataCatalog.get)
    return [maker.augmentation(d, name) for d, name in zip(dicts, names, strict=True)]


def make_records(dicts: Sequence[DatasetDict], datasets: Sequence[str]) -> list[Record]:
    """Validate dataset dicts: absolute paths, augmentation numbers, file layouts from the metadata.

    Args:
        dicts: Standard dataset dicts.
        datasets: The dataset of each dict; empty: its `dataset_name`, if it has one.

    Raises:
        UnknownNameError: A dict names a dataset that is unknown in this process.
        RecordError: A dict lacks a key or has a wrong type, or two dicts are the same slice.
        ReadError: A file is outside the `scan_root` of a dataset whose metadata have `contained=True`.
    """
    own = dataset_names(dicts) if "" in datasets else datasets
    names = [given or name for given, name in zip(datasets, own, strict=True)]
    maker = RecordMaker(names, MetadataCatalog.get)
    counts: dict[str, int] = {}
    records = []
    for d, name in zip(dicts, names, strict=True):
        index = counts.get(name, 0)
        counts[name] = index + 1
        records.append(maker.make(d, name, index))
    check_unique(records)
    return records


@contextmanager
def open_scan(dataset_dict: DatasetDict, dataset: str = "") -> Iterator[CanonicalScan]:
    """Open the image and the mask of a dataset dict.

    Args:
        dataset_dict: A standard dataset dict.
        dataset: Its dataset, whose metadata describe the layout of the files unless the dict does; empty: its
            `dataset_name`, if it has one.

    Yields:
        `image` (H x W [x D] [x K]) and `mask` (H x W [x D] x C, or None), lazily, in the stored type and native byte
        order, and `metadata`.

    Raises:
        RecordError: The dict is not a standard dataset dict.
        UnknownNameError: Its `dataset_name` is unknown in this process.
        ReadError: A file is missing, broken, or does not match the dict.
        GeometryError: The files state different grids for mask and image.

    Example:
        ```python
        with open_scan(DatasetCatalog.get("abdomen_volumes_train")[0]) as scan:
            rows = scan.image[10:20]
        ```
    """
    (record,) = make_records([dataset_dict], [dataset])
    geometry = geometry_check([record.dataset])
    with open_record(record, find_reader(record), declared_categories(record.dataset), geometry) as scan:
        yield scan


def declared_categories(dataset: str) -> tuple[CategoryId, ...] | None:
    """Return the `category_ids` of a dataset, which define the values of its label maps, or None if it has none."""
    category_ids = MetadataCatalog.get(dataset).get("category_ids") if dataset else None
    return None if category_ids is None else normalize_category_ids(category_ids)


def geometry_check(datasets: Iterable[str], report: Callable[[str, str, Path], None] | None = None) -> GeometryCheck:
    """Return a check of the geometry in files against the spacings in the metadata of datasets; see `GeometryCheck`."""
    spacings = {name: MetadataCatalog.get(name).get("spacing") for name in set(datasets) if name}
    return GeometryCheck({name: spacing for name, spacing in spacings.items() if spacing is not None}, report)


def scan_directory(root: str | os.PathLike[str], reader: str | None = None) -> list[DatasetDict]:
    """List the scans in a directory as dataset dicts. Subdirectories are not searched.

    Args:
        root: The directory. A relative path starts at the working directory if it exists there, else at
            ``MEDSEGPY_DATASETS``.
        reader: The name of a reader; None: every reader lists the files with its suffixes.

    Returns:
        Dicts with absolute paths, sorted by scan and slice number, volumes by file name. If the reader of a scan does
        not set the subject, `subject_id` and `time_point` come from a name like ``sub-01_ses-1``. Skipped files are
        reported in warnings.

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
    # A single reader's list is sorted; several lists must be merged.
    return dicts if len(readers) == 1 else sorted(dicts, key=_place)


def _identify(d: DatasetDict) -> None:
    """Add the subject and time point in the names of a scan, unless the dict has them."""
    stem = os.path.basename(os.fspath(d["file_name"])).partition(".")[0]
    said = parse_identity(str(d.get("scan_id", ""))) or parse_identity(stem)
    for key, value in said.items():
        if d.get(key) is None:
            d[key] = value


def _place(d: DatasetDict) -> tuple[str, int]:
    """Return the sort key for dicts of several readers."""
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
        f"there is no directory {tried}. Relative paths start at the working directory or at MEDSEGPY_DATASETS"
    )


def _claiming(folder: Path) -> list[Reader]:
    """Return the readers that claim a file of the folder by suffix, and can list a folder."""
    names = os.listdir(folder)
    # A search in one text is fast: there may be hundreds of thousands of names.
    endings = "\n".join(names).lower() + "\n"
    readers = [
        reader for reader in all_readers().values() if any(suffix + "\n" in endings for suffix in reader.suffixes)
    ]
    able = [reader for reader in readers if hasattr(reader, "scan")]
    if not able and names:
        known = sorted({suffix for reader in all_readers().values() for suffix in reader.suffixes})
        warnings.warn(
            f"{folder}: none of the {len(names)} files ({some(sorted(names))}) has a suffix that an "
            f"installed reader lists ({', '.join(known) or 'no reader is installed'}). Name one: "
            "scan_directory(root, reader='...').",
            DataWarning,
            stacklevel=3,
        )
    return able


def _scan_with(reader: Reader, folder: Path) -> Iterable[DatasetDict]:
    if not isinstance(reader, ListingReader):
        raise ReadError(f"the reader {reader.name!r} cannot list a directory (it has no method scan(root))", folder)
    return reader.scan(folder)
