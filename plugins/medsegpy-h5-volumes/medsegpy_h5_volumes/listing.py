"""List a folder of volume files as dataset dicts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence

from medsegpy_core import DataWarning, ReadError, RecordError
from medsegpy_core.data import parse_scan_name
from medsegpy_core.text import some
from medsegpy_core.typing import DatasetDict

__all__ = ["list_volumes"]

_IMAGE, _MASK, _DATA = "volume", "seg", "data"
_MASK_ENDINGS = ("_seg", "-seg", "_mask", "-mask")


def list_volumes(root: str, suffixes: Sequence[str]) -> list[DatasetDict]:
    """List the volumes in a folder, sorted by file name.

    A file contains one scan (``volume`` and, if labelled, ``seg``), or one scan per group. Two files form one scan if
    both have a dataset ``data`` and the name of one is that of the other plus ``_seg`` or ``_mask``. Files without
    these datasets, and unreadable files, are reported in a `DataWarning`.

    Args:
        root: The folder; its subfolders are not listed.
        suffixes: The suffixes of the files to list.

    Returns:
        Dataset dicts with absolute paths; `scan_id` is the stem of the file, or the name of the group.

    Raises:
        ReadError: There is no such folder.
        RecordError: Two scans have the same name.
    """
    folder = os.path.abspath(root)  # noqa: PTH100
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ReadError(f"the folder cannot be listed: {error.strerror}", folder) from error
    dicts: list[DatasetDict] = []
    plain: dict[str, str] = {}
    strangers: list[str] = []
    broken: list[str] = []
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if dot + suffix.lower() not in suffixes:
            continue
        path = f"{folder}{os.sep}{name}"
        try:
            found, has_data = _scans_in(path, stem)
        except ReadError as error:
            broken.append(f"{name} ({error.reason})")
            continue
        dicts += found
        if not found and has_data:
            plain[stem] = path
        elif not found:
            strangers.append(name)
    dicts += _pairs(plain)
    dicts.sort(key=lambda d: (os.path.basename(d["file_name"]), d["scan_id"]))
    _report(folder, strangers, broken)
    _check_unique(dicts)
    return dicts


def _scans_in(path: str, stem: str) -> tuple[list[DatasetDict], bool]:
    """Return the scans in a file, and whether it has a dataset ``data``."""
    from medsegpy_core.hdf5 import root_and_groups

    root, groups = root_and_groups(path)
    dicts = []
    if _IMAGE in root:
        dicts.append(_as_dict(stem, path, path if _MASK in root else None))
    for group, names in groups.items():
        if _IMAGE in names:
            d = _as_dict(group, path, path if _MASK in names else None)
            d["image_key"] = f"{group}/{_IMAGE}"
            if _MASK in names:
                d["sem_seg_key"] = f"{group}/{_MASK}"
            dicts.append(d)
    return dicts, _DATA in root


def _as_dict(scan_id: str, path: str, mask: str | None) -> DatasetDict:
    labels = {} if mask is None else {"sem_seg_file": mask}
    return {"file_name": path, **labels, "scan_id": scan_id, **parse_scan_name(scan_id)}


def _pairs(files: dict[str, str]) -> Iterator[DatasetDict]:
    """Yield the scans of files (stem -> path) with a dataset ``data``: image and mask, or only an image."""
    masks: dict[str, str] = {}
    for stem, path in files.items():
        for ending in _MASK_ENDINGS:
            image = stem.removesuffix(ending)
            if image != stem and image in files:
                if image in masks:
                    raise RecordError(f"{masks[image]} and {path} both look like the mask of {files[image]}. Keep one.")
                masks[image] = path
    for stem, path in files.items():
        if path not in masks.values():
            yield _as_dict(stem, path, masks.get(stem))


def _check_unique(dicts: list[DatasetDict]) -> None:
    seen: dict[tuple[str, int], DatasetDict] = {}
    for d in dicts:
        other = seen.setdefault((d["scan_id"], d.get("augmentation", 0)), d)
        if other is not d:
            raise RecordError(
                f"{other['file_name']} and {d['file_name']} both contain a scan {d['scan_id']!r}. Rename one of them."
            )


def _report(folder: str, strangers: list[str], broken: list[str]) -> None:
    """Warn of skipped files."""
    if strangers:
        _warn(
            f"{folder}: skipped files without a dataset 'volume' (at the root or in a group) or 'data' "
            f"({len(strangers)}): {some(strangers)}"
        )
    if broken:
        _warn(f"{folder}: skipped files that cannot be read ({len(broken)}): {some(broken)}")


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=5)
