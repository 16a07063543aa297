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

if TYPE_CHECKING:
    from medsegpy_core.typing import CategoryId, DatasetDict, Reader


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
    maker = RecordMaker(names, MetadataCatalog.get)
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
    """Open the image and the mask that a dataset dict names.

    Args:
        dataset_dict: A standard dataset dict.
        dataset: The dataset it is of, whose metadata say how its files are laid out where the dict does not; empty: its
            `dataset_name`, if it has one.

    Yields:
        `image` (H x W [x D] [x K]) and `mask` (H x W [x D] x C, or None), lazily, in the file's own type and
        native byte order, and `metadata`.

    Raises:
        RecordError: The dict is not a standard dataset dict.
        UnknownNameError: Its `dataset_name` is unknown in this process.
        ReadError: A file is missing, broken, or not what the dict says.
        GeometryError: The mask lies elsewhere than the image, by what their files say.

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
    """Return the `category_ids` of a dataset, which say what the values of its label maps mean; None: it has none."""
    category_ids = MetadataCatalog.get(dataset).get("category_ids") if dataset else None
    return None if category_ids is None else normalize_category_ids(category_ids)


def geometry_check(datasets: Iterable[str], report: Callable[[str, str, Path], None] | None = None) -> GeometryCheck:
    """Return a comparison of what files state with the spacings in the metadata of datasets; see `GeometryCheck`."""
    spacings = {name: MetadataCatalog.get(name).get("spacing") for name in set(datasets) if name}
    return GeometryCheck({name: spacing for name, spacing in spacings.items() if spacing is not None}, report)


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
