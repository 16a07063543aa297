"""List a folder of NIfTI files as dataset dicts."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Final

from medsegpy_core import DataWarning, ReadError, RecordError
from medsegpy_core.data import parse_scan_name
from medsegpy_core.text import some
from medsegpy_core.typing import DatasetDict
from medsegpy_nifti.header import read_header

__all__ = ["list_scans"]

_SUFFIXES: Final = (".nii.gz", ".nii")
_MASK: Final = "_seg"


def list_scans(root: Path, reader: str) -> list[DatasetDict]:
    """List the scans in a folder, sorted by file name.

    ``X.nii`` or ``X.nii.gz`` is an image, and ``X_seg.nii`` or ``X_seg.nii.gz`` its mask: a label map, unless it has a
    channel axis. Masks without an image are reported in a `DataWarning`. Headers of masks are read.

    Args:
        root: The folder; its subfolders are not listed.
        reader: The value of `reader` in the dicts.

    Returns:
        Dataset dicts with absolute paths; `scan_id` is X.

    Raises:
        ReadError: There is no such folder.
        RecordError: Two files have the same name except for the compression suffix.
    """
    folder = os.path.abspath(root)  # noqa: PTH100
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ReadError(f"the folder cannot be listed: {error.strerror}", folder) from error
    files: dict[str, str] = {}
    for name in names:
        suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), None)
        if suffix is None or name.startswith("."):
            continue
        other = files.setdefault(name[: -len(suffix)], name)
        if other != name:
            raise RecordError(f"{folder}: {other} and {name} have the same name and look like one scan. Keep one.")
    images = [stem for stem in files if not stem.endswith(_MASK)]
    _report(folder, [files[stem] for stem in files if stem.endswith(_MASK) and stem.removesuffix(_MASK) not in files])
    dicts = []
    for stem in sorted(images, key=lambda stem: files[stem]):
        d: DatasetDict = {"file_name": f"{folder}{os.sep}{files[stem]}", "scan_id": stem, "reader": reader}
        if stem + _MASK in files:
            mask = f"{folder}{os.sep}{files[stem + _MASK]}"
            d["sem_seg_file"] = mask
            if _is_label_map(Path(mask)):
                d["label_map"] = True
        dicts.append(d | parse_scan_name(stem))
    return dicts


def _is_label_map(mask: Path) -> bool:
    """Return whether a mask has no channel axis. An unreadable mask raises when it is opened."""
    try:
        return sum(n > 1 for n in read_header(mask).shape[3:]) == 0
    except ReadError:
        return True


def _report(folder: str, orphans: list[str]) -> None:
    if orphans:
        warnings.warn(
            f"{folder}: skipped masks that have no image ({len(orphans)}): {some(orphans)}. The mask of X.nii.gz is "
            "X_seg.nii.gz",
            DataWarning,
            stacklevel=5,
        )
