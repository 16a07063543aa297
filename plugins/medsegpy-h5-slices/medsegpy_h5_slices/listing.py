"""List a folder of slice files as dataset dicts, by their names only.

There may be hundreds of thousands of names, so they are not parsed one by one. In a sorted list, the slices of a scan
are adjacent: the part before the last underscore is parsed once per scan, and the part after it once for all scans with
the same slices.
"""

from __future__ import annotations

import bisect
import functools
import gc
import itertools
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field, frozen

from medsegpy_core import DataWarning, ReadError, RecordError, parse_slice_name
from medsegpy_core.text import some
from medsegpy_core.typing import DatasetDict

__all__ = ["list_slices"]

_IMAGE, _MASK = ".im", ".seg"
_SCAN = re.compile(r"[0-9]+_V[0-9]+-Aug[0-9]+")


@define
class _Scan:
    """The files of one scan in a folder: the dicts of its slices, and masks without an image."""

    scan_id: str
    subject_id: int
    time_point: int
    augmentation: int
    dicts: list[DatasetDict] = field(factory=list)
    orphans: list[str] = field(factory=list)
    complete: bool = False

    def by_number(self) -> dict[int, DatasetDict]:
        """Return slice number -> dict; a number that occurs twice is an error."""
        found: dict[int, DatasetDict] = {}
        for d in self.dicts:
            other = found.setdefault(d["slice_id"], d)
            if other is not d:
                raise _twice(self, d["slice_id"], other["file_name"], d["file_name"])
        return found


@frozen
class _Run:
    """The files with the same name before the last underscore, by the part after it.

    Attributes:
        slices: Number, image and mask (None: missing) of each slice, by number.
        others: All other files.
        depth: The highest number.
        complete: Whether the numbers are 1 to `depth`, once each.
    """

    slices: tuple[tuple[int, str, str | None], ...]
    others: tuple[str, ...]
    depth: int
    complete: bool


def list_slices(root: str) -> list[DatasetDict]:
    """List the slices in a folder, sorted by scan and slice number.

    Names that are not slice names, masks without an image, and gaps are reported in one `DataWarning` each.

    Args:
        root: The folder; its subfolders are not listed.

    Returns:
        Dataset dicts with absolute paths. `scan_num_slices` is the highest slice number of the scan.

    Raises:
        ReadError: There is no such folder.
        RecordError: Two files are the same slice: their names differ only in leading zeros.
    """
    folder = os.path.abspath(root)  # noqa: PTH100
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ReadError(f"the folder cannot be listed: {error.strerror}", folder) from error
    with _no_collection():
        return _list(folder, names)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection: listing creates no cycles, and collection takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _list(folder: str, names: list[str]) -> list[DatasetDict]:
    names.sort()
    scans: dict[str, _Scan] = {}
    runs: list[str] = []  # the scan of each
    dicts: list[DatasetDict] = []
    others: list[str] = []
    at = 0
    while at < len(names):
        head, line, _ = names[at].rpartition("_")
        scan = _scan_of(head, scans)
        if scan is None:
            others.append(names[at])
            at += 1
            continue
        prefix = head + line
        end = bisect.bisect_left(names, prefix + chr(0x10FFFF), at)
        width = len(prefix)
        run = _understood(tuple([name[width:] for name in names[at:end]]))
        others += [prefix + tail for tail in run.others]
        dicts += _add(scan, run, f"{folder}{os.sep}{prefix}")
        runs.append(scan.scan_id)
        at = end
    if any(first >= second for first, second in itertools.pairwise(runs)):
        # Names with a different number of leading zeros are sorted elsewhere.
        dicts.sort(key=lambda d: (d["scan_id"], d["slice_id"]))
    strangers = [name for name in others if not _pair(name, folder + os.sep, scans)]
    _report(folder, strangers, scans)
    return dicts


@functools.lru_cache(maxsize=64)
def _understood(tails: tuple[str, ...]) -> _Run:
    there = set(tails)
    slices = []
    for tail in tails:
        digits = tail.removesuffix(_IMAGE)
        number = 0 if digits == tail else _number_of(digits)
        if number:
            mask = digits + _MASK
            slices.append((number, tail, mask if mask in there else None))
    used = {name for _, image, mask in slices for name in (image, mask)}
    slices.sort(key=lambda one: one[0])  # names sort 100, 1000, 101
    numbers = [number for number, _, _ in slices]
    depth = numbers[-1] if numbers else 0
    others = tuple(tail for tail in tails if tail not in used)
    return _Run(tuple(slices), others, depth, numbers == list(range(1, depth + 1)))


def _add(scan: _Scan, run: _Run, prefix: str) -> list[DatasetDict]:
    """Create the dicts of a run of files, and add them to their scan."""
    scan.complete = run.complete and not scan.dicts
    scan_id, subject_id, time_point, augmentation = scan.scan_id, scan.subject_id, scan.time_point, scan.augmentation
    depth = run.depth
    dicts: list[DatasetDict] = []
    for number, image, mask in run.slices:
        d: DatasetDict = {
            "file_name": prefix + image,
            "scan_id": scan_id,
            "slice_id": number,
            "scan_num_slices": depth,
            "subject_id": subject_id,
            "time_point": time_point,
            "augmentation": augmentation,
        }
        if mask is not None:
            d["sem_seg_file"] = prefix + mask
        dicts.append(d)
    scan.dicts += dicts
    return dicts


def _pair(name: str, folder: str, scans: dict[str, _Scan]) -> bool:
    """Add a mask to an image whose name has a different number of zeros; returns whether the file is accounted for."""
    if not name.endswith((_IMAGE, _MASK)):
        return True  # not a slice file: ignore it
    head, _, tail = name.rpartition("_")
    number = _number_of(tail.removesuffix(_MASK))
    scan = _scan_of(head, scans) if number else None
    if scan is None:
        return False
    d = scan.by_number().get(number)
    if d is None:
        scan.orphans.append(name)
    elif "sem_seg_file" in d:
        raise _twice(scan, number, d["sem_seg_file"], name)
    else:
        d["sem_seg_file"] = folder + name
    return True


def _twice(scan: _Scan, number: int, first: str, second: str) -> RecordError:
    return RecordError(
        f"{first} and {os.path.basename(second)} are both slice {number} of scan {scan.scan_id!r}, augmentation "
        f"{scan.augmentation}: their names differ only in zeros. Remove one of them."
    )


def _scan_of(head: str, scans: dict[str, _Scan]) -> _Scan | None:
    if _SCAN.fullmatch(head) is None:
        return None
    name = parse_slice_name(head + "_001")
    return scans.setdefault(name.scan_id, _Scan(name.scan_id, name.subject_id, name.time_point, name.augmentation))


def _number_of(digits: str) -> int:
    """Return the number of a slice; 0 if it is not a slice number."""
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _report(folder: str, strangers: list[str], scans: dict[str, _Scan]) -> None:
    """Correct the depth of scans that are in several runs, and warn of gaps and skipped files."""
    orphans = sorted(name for scan in scans.values() for name in scan.orphans)
    gaps: list[str] = []
    for scan in scans.values():
        if scan.complete or not scan.dicts:
            continue
        found = scan.by_number()
        depth = max(found)
        for d in scan.dicts:
            d["scan_num_slices"] = depth
        missing = [f"{number:03d}" for number in range(1, depth) if number not in found]
        if missing:
            gaps.append(f"{scan.scan_id} lacks {some(missing)}")
    if strangers:
        _warn(
            f"{folder}: skipped files whose names are not slice names ({len(strangers)}): {some(strangers)}. Expected "
            "SUBJECT_Vnn-Augnn_SLICE in digits, slices from 001, as in 0000001_V00-Aug00_001.im"
        )
    if orphans:
        _warn(f"{folder}: skipped masks that have no image ({len(orphans)}): {some(orphans)}")
    if gaps:
        _warn(f"{folder}: scans with gaps ({len(gaps)}): {some(gaps, separator='; ')}")


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=7)
