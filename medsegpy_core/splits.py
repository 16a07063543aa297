"""Splits by subject: nobody is in two of them, and the same files are always split alike."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

from medsegpy_core.datasets import augmentation_numbers
from medsegpy_core.errors import DataWarning, RecordError
from medsegpy_core.typing import DatasetDict

__all__ = ["FRACTIONS", "split_by_subject", "subject_of"]

FRACTIONS: Final[Mapping[str, float]] = {"train": 0.7, "val": 0.15, "test": 0.15}


def split_by_subject(
    dicts: Sequence[DatasetDict], fractions: Mapping[str, float] = FRACTIONS, seed: int = 0
) -> dict[str, list[DatasetDict]]:
    """Split dataset dicts so that all elements of a subject are in one split.

    Which split a subject is in depends on the subjects, the fractions and the seed; not on the order of the dicts, nor
    on how many scans a subject has. Each split gets at least one subject as long as there are enough, the first
    ones first.

    Args:
        dicts: Dataset dicts; where one has no `subject_id`, its `scan_id` stands in.
        fractions: The name of each split and its share of the subjects; they sum to 1.
        seed: Another seed, another split.

    Returns:
        The dicts of each split, in their order. Augmented copies are kept in ``"train"``; elsewhere a scan would count
        twice, so that they are left out, with a `DataWarning`.

    Raises:
        RecordError: A dict says neither `subject_id` nor `scan_id`.
        ValueError: The fractions are no positive numbers that sum to 1.

    Example:
        >>> dicts = [{"scan_id": f"{n}", "subject_id": n // 2, "file_name": f"{n}.h5"} for n in range(20)]
        >>> {name: len(part) for name, part in split_by_subject(dicts).items()}
        {'train': 14, 'val': 4, 'test': 2}
    """
    _check(fractions)
    subjects = [subject_of(d, index) for index, d in enumerate(dicts)]
    ordered = sorted(set(subjects), key=lambda subject: _lot(subject, seed))
    counts = _counts(len(ordered), list(fractions.values()))
    split_of: dict[Hashable, str] = {}
    for name, count in zip(fractions, counts, strict=True):
        split_of.update(dict.fromkeys(ordered[len(split_of) : len(split_of) + count], name))
    parts: dict[str, list[DatasetDict]] = {name: [] for name in fractions}
    left_out = []
    for d, subject, augmentation in zip(dicts, subjects, augmentation_numbers(dicts), strict=True):
        split = split_of[subject]
        if augmentation and split != "train":
            left_out.append(str(d.get("file_name", d.get("scan_id"))))
        else:
            parts[split].append(d)
    if left_out:
        warnings.warn(
            f"{len(left_out)} augmented elements are of subjects that are not in the split 'train', and are left out: "
            f"{', '.join(left_out[:3])}{', ...' if len(left_out) > 3 else ''}",
            DataWarning,
            stacklevel=2,
        )
    return parts


def subject_of(d: DatasetDict, index: int = 0) -> int | str:
    """Return what a dataset dict is split by: its `subject_id`; where it has none, its `scan_id`.

    Raises:
        RecordError: It has neither.
    """
    subject: int | str | None = d.get("subject_id")
    if subject is None:
        subject = d.get("scan_id")
    if subject is None:
        raise RecordError(
            f"Dataset dict {index} has neither 'subject_id' nor 'scan_id'; it has {', '.join(sorted(d)) or 'no keys'}."
        )
    return subject


def _check(fractions: Mapping[str, float]) -> None:
    shares = list(fractions.values())
    if not shares or not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1):
        raise ValueError(
            f"The fractions are {dict(fractions)!r}: expected positive numbers that sum to 1, as {dict(FRACTIONS)!r}."
        )


def _lot(subject: Hashable, seed: int) -> tuple[bytes, str]:
    """Return what subjects are sorted by: as random as the seed, and the same on any machine."""
    text = f"{seed}:{subject!r}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest(), text


def _counts(subjects: int, shares: Sequence[float]) -> list[int]:
    """Share out subjects by largest remainder, and give each split one where there are enough."""
    exact = [subjects * share for share in shares]
    counts = [math.floor(part + 1e-9) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: subjects - sum(counts)]:
        counts[i] += 1
    for i in range(min(subjects, len(shares))):
        if counts[i] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[i] = 1
    return counts
