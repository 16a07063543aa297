"""Keep augmented elements and subjects of the training data out of evaluation."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from medsegpy_core.catalog import DatasetCatalog, collection_of, dataset_spec
from medsegpy_core.datasets import dataset_names, list_dataset
from medsegpy_core.errors import AugmentationError, ConfigError, DataWarning, LeakageError
from medsegpy_core.text import some

if TYPE_CHECKING:
    from medsegpy_core.config import Config
    from medsegpy_core.data.records import Record
    from medsegpy_core.typing import DatasetDict


def role_names(cfg: Config, key: str) -> tuple[str, ...]:
    """Return the datasets that ``TRAIN_DATASET``, ``VAL_DATASET`` or ``TEST_DATASET`` names (any number)."""
    value = getattr(cfg, key)
    return tuple(name for name in ((value,) if isinstance(value, str) else value) if name)


def config_datasets(cfg: Config) -> dict[str, str]:
    """Return the datasets that the config names, each with the key that names it."""
    keys = ("TRAIN_DATASET", "VAL_DATASET", "TEST_DATASET")
    return {name: key for key in keys for name in role_names(cfg, key)}


def check_augmentation(records: Sequence[Record], cfg: Config, is_test: bool) -> None:
    """Raise `AugmentationError` if there are augmented elements in evaluation data.

    Evaluation data are all datasets of a loader with `is_test`, those that the config names as `VAL_DATASET` or
    `TEST_DATASET`, and those registered as a validation or test split.
    """
    reasons = {name: _judged(name, cfg, is_test) for name in {record.dataset for record in records}}
    found = [record for record in records if record.augmentation and reasons[record.dataset]]
    if not found:
        return
    first = found[0]
    raise AugmentationError(
        f"{first.where()} ({first.file_name}) is augmented (number {first.augmentation}), and so are {len(found) - 1} "
        f"more; but {reasons[first.dataset]}: augmented copies would count a scan more than once. Remove them "
        "(filter_dicts(dicts, 'augmentation', [0])), or pass allow_augmented=True to build_loader."
    )


def check_preprocessing(random: Sequence[str], datasets: Sequence[str], cfg: Config, is_test: bool) -> None:
    """Raise `ConfigError` if ``PREPROCESSING`` is random for evaluation data, see `check_augmentation`.

    Args:
        random: The names in ``PREPROCESSING`` whose transforms take random numbers.
        datasets: The datasets of the loader.
        cfg: The config.
        is_test: Whether the loader is for evaluation.
    """
    if random:
        for reason in filter(None, (_judged(name, cfg, is_test) for name in datasets or [""])):
            raise random_preprocessing(random, reason)


def random_preprocessing(random: Sequence[str], reason: str) -> ConfigError:
    """Return the error for random steps in ``PREPROCESSING``; `reason` says why this is evaluation."""
    names = ", ".join(map(repr, random))
    return ConfigError(
        f"PREPROCESSING names {names}, which draws random numbers (it has a parameter rng), but {reason}. "
        "PREPROCESSING also runs in evaluation, and predictions of randomly changed images would be compared with the "
        "unchanged ground truth. Random steps belong in AUGMENTATION, for training only; this version does not read "
        f"that key yet, so remove {names} from PREPROCESSING and pass it to the training loader as transform=."
    )


def _judged(name: str, cfg: Config, is_test: bool) -> str:
    """Return why a dataset is evaluation data; empty if it is not."""
    if is_test:
        return "the loader is built with is_test=True"
    for key in ("VAL_DATASET", "TEST_DATASET"):
        if name in role_names(cfg, key):
            return f"the config names {name!r} as {key}"
    spec = dataset_spec(name) if name in DatasetCatalog else None
    if spec is not None and spec.split in ("val", "test"):
        return f"{name!r} is registered as a {spec.split} split"
    return ""


def by_dataset(dicts: Sequence[DatasetDict]) -> dict[str, list[DatasetDict]]:
    """Group the dicts that have a dataset name by that name, in the order of the dicts."""
    found: dict[str, list[DatasetDict]] = {}
    for d, name in zip(dicts, dataset_names(dicts), strict=True):
        if name:
            found.setdefault(name, []).append(d)
    return found


def check_leakage(listed: Mapping[str, Sequence[DatasetDict]], cfg: Config) -> None:
    """Raise `LeakageError` if a subject is in both the training data and the evaluation data of the config.

    Two subjects are the same if they have the same `subject_id` and the same collection (from the metadata; by default
    the distribution of the plugin). If there is no `subject_id`, the `scan_id` replaces it, with one `DataWarning`,
    because this misses other scans of the same person. Nothing is checked unless the config names one of the datasets.

    Args:
        listed: The datasets of the loader, and their dicts.
        cfg: The config.
    """
    subjects: dict[str, set[tuple[str, Any]]] = {}
    unknown: set[str] = set()
    for train, (key, other) in itertools.product(role_names(cfg, "TRAIN_DATASET"), _evaluation(cfg)):
        if train not in listed and other not in listed:
            continue
        for name in (train, other):
            if name not in subjects:
                subjects[name] = _subjects(name, listed.get(name), unknown)
        shared = sorted(subjects[train] & subjects[other], key=str)
        if shared:
            what = some([subject for _, subject in shared])
            raise LeakageError(
                f"{len(shared)} subject{'s are' if len(shared) > 1 else ' is'} in both {train!r} (TRAIN_DATASET) and "
                f"{other!r} ({key}): {what} (collection {shared[0][0]!r}). A model must not be evaluated on subjects "
                "that it was trained on: split by subject; give the datasets different `collection` metadata if these "
                "are different people; or pass allow_leakage=True to build_loader."
            )

    if unknown:
        warnings.warn(
            f"Elements of {', '.join(map(repr, sorted(unknown)))} have no subject_id. Leakage between training and "
            "evaluation data was checked by scan_id instead, which misses other scans of the same person. Add "
            "subject_id to the dataset dicts.",
            DataWarning,
            stacklevel=3,
        )


def _evaluation(cfg: Config) -> list[tuple[str, str]]:
    return [(key, name) for key in ("VAL_DATASET", "TEST_DATASET") for name in role_names(cfg, key)]


def _subjects(name: str, dicts: Sequence[DatasetDict] | None, unknown: set[str]) -> set[tuple[str, Any]]:
    """Return the (collection, subject) pairs of a dataset; none, with a warning, if it cannot be listed here.

    Args:
        name: The dataset.
        dicts: Its dicts; None: list them.
        unknown: Receives the name if scan ids replace subject ids.
    """
    try:
        dicts = list_dataset(name) if dicts is None else dicts
        collection = collection_of(name)
        # Do not validate the dicts: a custom loader may have dicts of its own format.
        found = {(collection, subject) for d in dicts if (subject := _subject(d)) is not None}
        if any(_is_unknown(d) for d in dicts):
            unknown.add(name)
        return found
    except Exception as error:  # noqa: BLE001 -- a dataset function may raise anything
        warnings.warn(
            f"Dataset {name!r} is named by the config but cannot be listed here, so its subjects are not checked for "
            f"leakage between training and evaluation data: {error}",
            DataWarning,
            stacklevel=4,
        )
        return set()


def _subject(d: object) -> int | str | None:
    if not isinstance(d, Mapping):
        return None
    subject = d.get("scan_id") if d.get("subject_id") is None else d["subject_id"]
    return subject if isinstance(subject, Integral | str) else None  # type: ignore[return-value]


def _is_unknown(d: object) -> bool:
    return isinstance(d, Mapping) and d.get("subject_id") is None and d.get("scan_id") is not None
