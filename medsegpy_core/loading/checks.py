"""Evaluation is kept clean: no augmented elements in it, and no subject of the training data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medsegpy_core.catalog import DatasetCatalog, collection_of, dataset_spec
from medsegpy_core.datasets import load_records
from medsegpy_core.errors import AugmentationError, DataWarning, LeakageError

if TYPE_CHECKING:
    from medsegpy_core.config import Config
    from medsegpy_core.records import Record

__all__ = ["check_augmentation", "check_leakage", "config_datasets"]


def config_datasets(cfg: Config) -> dict[str, str]:
    """Return the datasets that the config names, and the key that names them."""
    keys = ("TRAIN_DATASET", "VAL_DATASET", "TEST_DATASET")
    return {name: key for key in keys if (name := getattr(cfg, key))}


def check_augmentation(records: Sequence[Record], cfg: Config, is_test: bool) -> None:
    """Raise `AugmentationError` if there are augmented elements where a model is judged.

    That is: with `is_test`, in a dataset that the config names as `VAL_DATASET` or `TEST_DATASET`, and in one whose
    spec says so.
    """
    reasons = {name: _judged(name, cfg, is_test) for name in {record.dataset for record in records}}
    found = [record for record in records if record.augmentation and reasons[record.dataset]]
    if not found:
        return
    first = found[0]
    raise AugmentationError(
        f"{first.where()} ({first.file_name}) is augmented (number {first.augmentation}), and so are {len(found) - 1} "
        "more; "
        f"but {reasons[first.dataset]}, where augmented copies would count a scan more than once. Leave them out "
        "(filter_dicts(dicts, 'augmentation', [0])), or pass allow_augmented=True to build_loader."
    )


def _judged(name: str, cfg: Config, is_test: bool) -> str:
    """Say why a dataset is one that models are judged on; empty if it is not."""
    if is_test:
        return "the loader is built with is_test=True"
    for key in ("VAL_DATASET", "TEST_DATASET"):
        if name and getattr(cfg, key) == name:
            return f"the config names {name!r} as {key}"
    spec = dataset_spec(name) if name in DatasetCatalog else None
    if spec is not None and spec.split in ("val", "test"):
        return f"{name!r} is registered as a {spec.split} split"
    return ""


def check_leakage(names: Sequence[str], cfg: Config) -> None:
    """Raise `LeakageError` if a subject is in the config's training dataset and in one that it evaluates on.

    Subjects are the same if their collection is (by the metadata; by default the distribution of the plugin) and
    their `subject_id`; the `scan_id` stands in where there is none. Nothing is checked unless one of `names` is in the
    config.
    """
    roles = config_datasets(cfg)
    if not any(name in roles for name in names) or not cfg.TRAIN_DATASET:
        return
    training = _subjects(cfg.TRAIN_DATASET)
    for key in ("VAL_DATASET", "TEST_DATASET"):
        name = getattr(cfg, key)
        if not name or (cfg.TRAIN_DATASET not in names and name not in names) or training is None:
            continue
        shared = sorted((training & (_subjects(name) or set())), key=str)
        if shared:
            what = ", ".join(str(subject) for _, subject in shared[:5]) + (", ..." if len(shared) > 5 else "")
            raise LeakageError(
                f"{len(shared)} subject{'s are' if len(shared) > 1 else ' is'} in both {cfg.TRAIN_DATASET!r} "
                "(TRAIN_DATASET) "
                f"and {name!r} ({key}): {what} (collection {shared[0][0]!r}). A model is not judged on whom it was "
                "trained on: split by subject; give the datasets different `collection` metadata if these are "
                "different people; or pass allow_leakage=True to build_loader."
            )


def _subjects(name: str) -> set[tuple[str, int | str]] | None:
    """Return (collection, subject) of a dataset; None, with a warning, if it cannot be listed here."""
    try:
        records = load_records(name)
    except Exception as error:  # noqa: BLE001 - whatever the function of a dataset raises
        warnings.warn(
            f"Dataset {name!r}, which the config names, cannot be listed here, so that it is not checked for subjects "
            "that "
            f"are in training and evaluation data: {error}",
            DataWarning,
            stacklevel=2,
        )
        return None
    collection = collection_of(name)
    return {(collection, record.scan_id if record.subject_id is None else record.subject_id) for record in records}
