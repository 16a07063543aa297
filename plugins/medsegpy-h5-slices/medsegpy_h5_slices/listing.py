"""From a folder of slice files to dataset dicts, by their names alone.

There may be hundreds of thousands of names, so none is looked at by itself: what stands before the last underscore is
the same for all slices of a scan, and what stands behind it for one slice of every scan; each is understood once.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterable

from attrs import define, field

from medsegpy_core import DataWarning, ReadError, RecordError, parse_slice_name
from medsegpy_core.typing import DatasetDict

__all__ = ["list_slices"]

_IMAGE, _MASK = ".im", ".seg"
_SCAN = re.compile(r"[0-9]+_V[0-9]+-Aug[0-9]+")
_SHOWN = 5


@define
class _Scan:
    """What a folder holds of one scan: slice number -> dataset dict, and masks without an image."""

    scan_id: str
    subject_id: int
    time_point: int
    augmentation: int
    images: dict[int, DatasetDict] = field(factory=dict)
    orphans: list[str] = field(factory=list)


def list_slices(root: str) -> list[DatasetDict]:
    """List the slices in a folder, sorted by file name.

    Names that are not those of slices, masks without an image, and gaps are reported in one `DataWarning` each.

    Args:
        root: The folder. Its subfolders are not looked into.

    Returns:
        Dataset dicts with absolute paths. `scan_num_slices` is the highest slice number of the scan.

    Raises:
        ReadError: There is no such folder.
        RecordError: Two files are the same slice, their names written with more or fewer zeros.
    """
    folder = os.path.abspath(root)  # noqa: PTH100
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ReadError(f"the folder cannot be listed: {error.strerror}", folder) from error
    heads = _by_head(names)
    scans: dict[str, _Scan] = {}
    dicts: list[DatasetDict] = []
    others: list[str] = []
    # With the underscore: "..-Aug1_" comes behind "..-Aug10_", as the whole names do.
    for head in sorted(heads, key=lambda head: head + "_"):
        scan = _scan_of(head, scans)
        if scan is None:
            others += [f"{head}_{tail}" if head else tail for tail in sorted(heads[head])]
        else:
            dicts += _images(scan, f"{folder}{os.sep}{head}_", heads[head], others)
    for scan in scans.values():
        depth = max(scan.images, default=0)
        for d in scan.images.values():
            d["scan_num_slices"] = depth
    strangers = [name for name in others if not _pair(name, folder + os.sep, scans)]
    _report(scans.values(), strangers, folder)
    return dicts


def _by_head(names: list[str]) -> dict[str, list[str]]:
    """Group names by what stands before the last underscore; keep what stands behind it."""
    heads: dict[str, list[str]] = {}
    for name in names:
        head, _, tail = name.rpartition("_")
        if head in heads:
            heads[head].append(tail)
        else:
            heads[head] = [tail]
    return heads


def _images(scan: _Scan, prefix: str, tails: list[str], others: list[str]) -> list[DatasetDict]:
    """Return the dicts, all but their depth, of the slices with one prefix; the names left over go to `others`."""
    dicts = []
    paired = 0
    found = scan.images
    there = set(tails)
    for tail in sorted(tails):
        number, mask = _understood(tail)
        if number == 0:
            continue
        d: DatasetDict = {
            "file_name": prefix + tail,
            "scan_id": scan.scan_id,
            "slice_id": number,
            "scan_num_slices": 0,
            "subject_id": scan.subject_id,
            "time_point": scan.time_point,
            "augmentation": scan.augmentation,
        }
        if mask in there:
            d["sem_seg_file"] = prefix + mask
            paired += 1
        if found.setdefault(number, d) is not d:
            raise _twice(scan, number, found[number]["file_name"], d["file_name"])
        dicts.append(d)
    if len(dicts) + paired != len(tails):
        used = {d[key] for d in dicts for key in ("file_name", "sem_seg_file") if key in d}
        others += [os.path.basename(prefix + tail) for tail in sorted(tails) if prefix + tail not in used]
    return dicts


@functools.lru_cache(maxsize=4096)
def _understood(tail: str) -> tuple[int, str]:
    """Return the number of a slice and the tail of its mask; the number is 0 where `tail` is not that of an image."""
    digits = tail.removesuffix(_IMAGE)
    return (0 if digits == tail else _number_of(digits)), digits + _MASK


def _pair(name: str, folder: str, scans: dict[str, _Scan]) -> bool:
    """Give a mask to the image whose name is written with other zeros; say whether the name has its place."""
    if not name.endswith((_IMAGE, _MASK)):
        return True  # not one of our files, and none of our business
    head, _, tail = name.rpartition("_")
    number = _number_of(tail.removesuffix(_MASK))
    scan = _scan_of(head, scans) if number else None
    if scan is None:
        return False
    d = scan.images.get(number)
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
        f"{scan.augmentation}: their names differ in zeros only. Remove one of them."
    )


def _scan_of(head: str, scans: dict[str, _Scan]) -> _Scan | None:
    if _SCAN.fullmatch(head) is None:
        return None
    name = parse_slice_name(head + "_001")
    return scans.setdefault(name.scan_id, _Scan(name.scan_id, name.subject_id, name.time_point, name.augmentation))


def _number_of(digits: str) -> int:
    """Return the number of a slice; 0: it is none."""
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _report(scans: Iterable[_Scan], strangers: list[str], folder: str) -> None:
    """Warn of what is left aside."""
    orphans = sorted(name for scan in scans for name in scan.orphans)
    gaps: list[str] = []
    for scan in scans:
        depth = max(scan.images, default=0)
        if len(scan.images) != depth:
            missing = [f"{number:03d}" for number in range(1, depth) if number not in scan.images]
            gaps.append(f"{scan.scan_id} lacks {_some(missing)}")
    if strangers:
        _warn(
            f"{folder}: left aside, for these are not names of slices ({len(strangers)}): {_some(strangers)}. Expected "
            "SUBJECT_Vnn-Augnn_SLICE in digits, slices from 001, as in 0000001_V00-Aug00_001.im"
        )
    if orphans:
        _warn(f"{folder}: left aside, for these masks have no image ({len(orphans)}): {_some(orphans)}")
    if gaps:
        _warn(f"{folder}: scans with gaps ({len(gaps)}): {_some(gaps, '; ')}")


def _some(items: list[str], separator: str = ", ") -> str:
    more = f"{separator}... ({len(items)} in all)" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=6)
