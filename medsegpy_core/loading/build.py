"""`build_loader`, and functions to read data without a loader."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

from medsegpy_core.datasets import (
    augmentation_numbers,
    dataset_names,
    declared_categories,
    geometry_check,
    list_dataset,
    load_records,
    make_records,
)
from medsegpy_core.errors import RecordError, ShapeError, UnknownNameError, closest_match
from medsegpy_core.loading.evaluation_guards import by_dataset, check_leakage, config_datasets
from medsegpy_core.loading.prepare import role_dataset
from medsegpy_core.loading.scans import group_scans
from medsegpy_core.plugins.registry import Registry
from medsegpy_core.plugins.specs import LoaderOptions, LoaderRequest, LoaderSpec
from medsegpy_core.reading.canonical_scan import open_record
from medsegpy_core.reading.readers import find_reader
from medsegpy_core.text import by, some

if TYPE_CHECKING:
    from medsegpy_core.config import Config
    from medsegpy_core.data.records import Record
    from medsegpy_core.typing import Array, DatasetDict, Transform


_BATCH_SIZE_KEYS = {
    "TRAIN_DATASET": "TRAIN_BATCH_SIZE",
    "VAL_DATASET": "VALID_BATCH_SIZE",
    "TEST_DATASET": "TEST_BATCH_SIZE",
}


_loaders: Registry[LoaderSpec] = Registry("loaders")


def build_loader(
    cfg: Config,
    dataset: str | Sequence[str] | Sequence[DatasetDict],
    *,
    batch_size: int | None = None,
    is_test: bool = False,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
    transform: Transform | None = None,
    keep_unlabelled: bool = False,
    allow_augmented: bool = False,
    allow_leakage: bool = False,
    reuse_buffers: bool = False,
    mask_dtype: str = "float32",
    mmap: bool = False,
    isolate: bool | None = None,
) -> Any:
    """Build the loader that the config's `TAG` names.

    Args:
        cfg: The config; the loader works on a copy.
        dataset: The name of a dataset, several names, or dataset dicts. Dicts from `DatasetCatalog.get` contain the
            name of their dataset and are equivalent to it. Other dicts belong to the dataset with their role in the
            config, or to none.
        batch_size: Elements per batch; None: the config's, by the role of the dataset in it.
        is_test: Whether this is for evaluation: batches also contain the raw images, and nothing is dropped.
        shuffle: Whether each epoch has its own random order; None: not with `is_test`.
        drop_last: Whether an incomplete last batch is dropped; None: not with `is_test`.
        transform: ``(image, mask) -> (image, mask)`` per element, after `PREPROCESSING`; one with a parameter `rng`
            gets a `numpy.random.Generator` seeded from seed, epoch and element.
        keep_unlabelled: Whether unlabelled slices are elements too, and masks may have unknown voxels: -1 (uint8: 255).
        allow_augmented: Whether augmented elements are allowed in evaluation.
        allow_leakage: Whether a subject may be in both training and evaluation data.
        reuse_buffers: Whether a batch stays valid only until two more have been requested, which is faster.
        mask_dtype: ``"float32"`` or ``"uint8"``.
        mmap: Whether to map files into memory: faster in 3D, but the process ends if another program truncates a file.
        isolate: Whether to run the HDF5 library in a helper process, so that no file can crash this one; None: as the
            `accessing` that is active when the loader is built or, if none is, when it is read.

    Returns:
        A `DataLoader`, or what the plugin's `LoaderSpec.build` returns.

    Raises:
        UnknownNameError: There is no such dataset or loader, or a dict names a dataset that is unknown here.
        RecordError: A built-in loader cannot read the dicts, or there are none.
        AugmentationError: Evaluation data contain augmented elements.
        LeakageError: A subject is in both training and evaluation data.
    """
    cfg = cfg.copy()
    listed, dicts, datasets = _listed(cfg, dataset, is_test)
    if not allow_leakage:
        check_leakage(listed, cfg)
    request = LoaderRequest(
        cfg=cfg,
        dicts=dicts,
        datasets=datasets,
        batch_size=_batch_size(cfg, list(listed), is_test) if batch_size is None else batch_size,
        is_test=is_test,
        shuffle=not is_test if shuffle is None else shuffle,
        drop_last=not is_test if drop_last is None else drop_last,
        transform=transform,
        options=LoaderOptions(
            keep_unlabelled=keep_unlabelled,
            allow_augmented=allow_augmented,
            allow_leakage=allow_leakage,
            reuse_buffers=reuse_buffers,
            mask_dtype=mask_dtype,
            mmap=mmap,
            isolate=isolate,
        ),
        make_records=make_records,
    )
    return _loaders.get(cfg.TAG).record.build(request)


def _listed(
    cfg: Config, dataset: str | Sequence[str] | Sequence[DatasetDict], is_test: bool
) -> tuple[dict[str, list[DatasetDict]], list[DatasetDict], list[str]]:
    """Return the dicts by dataset (if it is known), all dicts, and the dataset of each dict."""
    items = [dataset] if isinstance(dataset, str) else list(dataset)
    names = [item for item in items if isinstance(item, str)]
    if not names:
        dicts = cast("list[DatasetDict]", items)
        return by_dataset(dicts), dicts, dataset_names(dicts, role_dataset(cfg, is_test))
    if len(names) != len(items):
        raise TypeError("build_loader takes names of datasets or dataset dicts, not both in one list.")
    if len(set(names)) != len(names):
        raise RecordError(f"A dataset is named twice: {names}. Its elements would occur twice per epoch.")
    listed = {name: list_dataset(name) for name in names}
    for name, found in listed.items():
        if not found:
            raise RecordError(f"Dataset {name!r} has no elements. Check its dataset function and its scan_root.")
    return listed, [d for found in listed.values() for d in found], [n for n, found in listed.items() for _ in found]


def _batch_size(cfg: Config, names: Sequence[str], is_test: bool) -> int:
    roles = config_datasets(cfg)
    role = next((roles[name] for name in names if name in roles), "TEST_DATASET" if is_test else "TRAIN_DATASET")
    return int(getattr(cfg, _BATCH_SIZE_KEYS[role]))


def load_scan(name: str, scan_id: str) -> tuple[Array, Array | None]:
    """Read one scan of a dataset.

    Args:
        name: The name of the dataset.
        scan_id: The scan; of augmented copies with the same id, the original.

    Returns:
        The image (H x W x D [x K]) and the mask (H x W x D x C, all channels of the file; None unless the whole scan is
        labelled), in the types of the files.

    Raises:
        UnknownNameError: There is no such dataset, or no such scan in it.
        RecordError: Slices of the scan are missing.
        ShapeError: Slices of the scan differ in size.
        ReadError: A file cannot be read.
    """
    scans = group_scans(load_records(name))
    found = sorted((scan for scan in scans if scan.key[1] == scan_id), key=lambda scan: scan.key[2])
    if not found:
        known = [scan.key[1] for scan in scans]
        raise UnknownNameError(
            f"Dataset {name!r} has no scan {scan_id!r}; it has {len(known)} scans ({some(known)})."
            f"{closest_match(scan_id, known)}"
        )
    scan = found[0]
    if scan.missing:
        raise RecordError(
            f"Scan {scan_id!r} of dataset {name!r} lacks slices {', '.join(map(str, scan.missing))}; read the others "
            "one by one with open_scan."
        )
    images, masks = [], []
    category_ids, geometry = declared_categories(name), geometry_check([name])
    for record in scan.records:
        with open_record(record, find_reader(record), category_ids, geometry) as opened:
            images.append(opened.image[...])
            masks.append(opened.mask[...] if opened.mask is not None else None)
    if scan.is_volume:
        return images[0], masks[0]
    labels = [mask for mask in masks if mask is not None]
    mask = _stacked(labels, scan.records) if len(labels) == len(masks) else None
    return _stacked(images, scan.records), mask


def _stacked(planes: Sequence[Array], records: Sequence[Record]) -> Array:
    import numpy as np

    for plane, record in zip(planes, records, strict=True):
        if plane.shape != planes[0].shape:
            sizes = [by(shape) for shape in (planes[0].shape, plane.shape)]
            raise ShapeError(
                f"The slices of scan {record.scan_id!r} differ: {records[0].file_name} has {sizes[0]}, "
                f"{record.file_name} has {sizes[1]}."
            )
    return np.stack(planes, axis=2)


def filter_dicts(dicts: Sequence[DatasetDict], key: str, values: Collection[Any]) -> list[DatasetDict]:
    """Return the dicts whose `key` is one of `values`; a missing key counts as None.

    As in a loader, a missing ``augmentation`` is taken from the file name, else from a plugin if the dict has a
    ``dataset_name``, else it is 0.

    Raises:
        UnknownNameError: A dict has a ``dataset_name`` that is unknown in this process.

    Example:
        >>> filter_dicts([{"scan_id": "a"}, {"scan_id": "b"}], "scan_id", ["b"])
        [{'scan_id': 'b'}]
    """
    if key != "augmentation":
        dataset_names(dicts)
        return [d for d in dicts if d.get(key) in values]
    return [d for d, number in zip(dicts, augmentation_numbers(dicts), strict=True) if number in values]
