"""Splits by subject. Each subject is in one split, and the same subjects always give the same splits."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral
from typing import Any, Final

from medsegpy_core.data.naming import parse_identity
from medsegpy_core.datasets import augmentation_numbers
from medsegpy_core.errors import DataWarning, RecordError
from medsegpy_core.text import counted, some
from medsegpy_core.typing import DatasetDict

FRACTIONS: Final[Mapping[str, float]] = {"train": 0.7, "val": 0.15, "test": 0.15}


def split_by_subject(
    dicts: Sequence[DatasetDict], fractions: Mapping[str, float] = FRACTIONS, seed: int = 0
) -> dict[str, list[DatasetDict]]:
    """Split dataset dicts so that all elements of a subject are in one split.

    The split of a subject depends on the set of subjects, the fractions and the seed, not on the order of the dicts or
    the number of scans. If there are enough subjects, each split gets at least one; otherwise the first splits do.

    Args:
        dicts: Dataset dicts. The subject of a dict is its `subject_id`, else the one in its `scan_id`, if that is a
            name like ``0000001_V00`` or ``sub-01_ses-1``. Otherwise the `scan_id` is used, with a `DataWarning`,
            because two scans of one person may then be in different splits.
        fractions: The name of each split and its fraction of the subjects. The fractions sum to 1.
        seed: A different seed gives a different split.

    Returns:
        The dicts of each split, in their order. Augmented copies are kept in training splits, those whose names begin
        with ``"train"``. In other splits a scan would count twice, so they are left out, with a `DataWarning`.

    Raises:
        RecordError: A dict has neither `subject_id` nor `scan_id`.
        RecordError: A dict says neither `subject_id` nor `scan_id`.
        ValueError: The fractions are not positive numbers that sum to 1.

    Example:
        >>> dicts = [{"scan_id": f"{n}", "subject_id": n // 2, "file_name": f"{n}.h5"} for n in range(20)]
        >>> {name: len(part) for name, part in split_by_subject(dicts).items()}
        {'train': 14, 'val': 4, 'test': 2}
    """
    _check(fractions)
    subjects = [subject_of(d, index) for index, d in enumerate(dicts)]
    if len(fractions) > 1:
        warn_of_unknown_subjects(dicts, "may be in two splits", stacklevel=2)
    ordered = sorted(set(subjects), key=lambda subject: _lot(subject, seed))
    counts = _counts(len(ordered), list(fractions.values()))
    split_of: dict[Hashable, str] = {}
    for name, count in zip(fractions, counts, strict=True):
        split_of.update(dict.fromkeys(ordered[len(split_of) : len(split_of) + count], name))
    parts: dict[str, list[DatasetDict]] = {name: [] for name in fractions}
    left_out = []
    for d, subject, augmentation in zip(dicts, subjects, augmentation_numbers(dicts), strict=True):
        split = split_of[subject]
        if augmentation and not _is_training(split):
            left_out.append(str(d.get("file_name", d.get("scan_id"))))
        else:
            parts[split].append(d)
    if left_out:
        warnings.warn(
            f"{len(left_out)} augmented elements are of subjects that are not in a training split, and are left out: "
            f"{some(left_out, 3)}",
            DataWarning,
            stacklevel=2,
        )
    return parts


def known_subject(d: DatasetDict) -> int | str | None:
    """Return the person of a dataset dict: its `subject_id`, else the one in its `scan_id`, else None."""
    subject = d.get("subject_id")
    if subject is None:
        subject = parse_identity(str(d.get("scan_id", ""))).get("subject_id")
    return _plain(subject)


def warn_of_unknown_subjects(dicts: Sequence[DatasetDict], what: str, stacklevel: int = 1) -> None:
    """Issue a `DataWarning` if subjects are unknown, so that scans are used instead, and there is more than one scan.

    Args:
        dicts: Dataset dicts.
        what: What may happen to a person, as in ``"may be in two splits"``.
        stacklevel: As for `warnings.warn`.
    """
    subjects = {subject_of(d, i): known_subject(d) is not None for i, d in enumerate(dicts)}
    unknown = [str(subject) for subject, known in subjects.items() if not known]
    if unknown and len(subjects) > 1:
        warnings.warn(
            f"{counted(len(unknown), 'scan')} without subject_id ({some(unknown, 3)}): scans stand in for people, so "
            f"a person who was scanned more than once {what}. Add subject_id to the dataset dicts.",
            DataWarning,
            stacklevel=stacklevel + 1,
        )


def subject_of(d: DatasetDict, index: int = 0) -> int | str:
    """Return the unit by which a dataset dict is split: the person if known, else its `scan_id`.

    Raises:
        RecordError: It has neither `subject_id` nor `scan_id`.
    """
    subject = known_subject(d)
    if subject is None:
        subject = _plain(d.get("scan_id"))
    if subject is None:
        raise RecordError(
            f"Dataset dict {index} has neither 'subject_id' nor 'scan_id'; it has {', '.join(sorted(d)) or 'no keys'}."
        )
    return subject


def _plain(subject: Any) -> int | str | None:
    """Return a number as an int: NumPy integers have another `repr`, which the split depends on."""
    return int(subject) if isinstance(subject, Integral) else subject


def _is_training(split: str) -> bool:
    """Return whether a split is for training: "train", "training", "fold0/train"."""
    return split.rpartition("/")[2].lower().startswith("train")


def _check(fractions: Mapping[str, float]) -> None:
    shares = list(fractions.values())
    if not shares or not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1):
        raise ValueError(
            f"The fractions are {dict(fractions)!r}: expected positive numbers that sum to 1, as {dict(FRACTIONS)!r}."
        )


def _lot(subject: Hashable, seed: int) -> tuple[bytes, str]:
    """Return the sort key of a subject: pseudorandom, and the same on any machine."""
    text = f"{seed}:{subject!r}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest(), text


def _counts(subjects: int, shares: Sequence[float]) -> list[int]:
    """Divide subjects by largest remainder, and give each split one if there are enough."""
    exact = [subjects * share for share in shares]
    # In floating point, 0.29 * 100 is slightly below 29.
    counts = [math.floor(part + 1e-9) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: subjects - sum(counts)]:
        counts[i] += 1
    for i in range(min(subjects, len(shares))):
        if counts[i] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[i] = 1
    return counts
