"""Checking a dataset: every element is read as training would read it, and what is wrong is told.

The HDF5 library runs in a helper process, so that a file that crashes or hangs it is one finding among others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsegpy_core.checking.elements import check_scan
from medsegpy_core.checking.findings import Checked
from medsegpy_core.checking.listing import listed, packed_manifests, required_channels_of, sound_records
from medsegpy_core.hdf5.access import Access, accessing
from medsegpy_core.loading.scans import Opener, Scan, group_scans
from medsegpy_core.packing.verify import verify_arrays
from medsegpy_core.records import Record

__all__ = ["check_dataset"]

Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


def check_dataset(
    target: str | os.PathLike[str], *, seconds: float = 60.0, watch: Watch = lambda items, *_: items
) -> Checked:
    """Read all of a dataset, and say what is wrong with it.

    Args:
        target: The name of a dataset; or a folder, whose files are listed with `scan_directory`, or that holds packed
            datasets; or the manifest of one.
        seconds: How long one file may keep the HDF5 library busy, and a second more for each 10 MB.
        watch: Called with what is worked through, how many there are, and what is done; returns them; for a progress
            bar.

    Raises:
        UnknownNameError: There is no such dataset or folder.
        MedSegPyError: What lists the dataset fails.
    """
    result = Checked(os.fspath(target))
    with accessing(Access(isolate=True, seconds=seconds)):
        dicts, dataset = listed(target, result)
        records = sound_records(dicts, dataset, result)
        scans = group_scans(records)
        files = {str(file) for r in records for file in (r.file_name, r.sem_seg_file) if file is not None}
        result.elements, result.scans, result.files = len(dicts), len(scans), len(files)
        result.scans_without_subject = sum(scan.records[0].subject_id is None for scan in scans)
        channels = required_channels_of(dataset, result)
        _prepare(records)
        verified: set[Path] = set()
        directions: dict[str, list[Scan]] = {}
        for scan in watch(scans, len(scans), "Reading"):
            if (runs := check_scan(scan, channels, verified, result)) is not None:
                directions.setdefault(runs, []).append(scan)
        _check_directions(directions, result)
        _check_contents(files, result, watch)
    return result


def _prepare(records: Sequence[Record]) -> None:
    """Let readers look once into files that hold several scans."""
    count = Counter(record.file_name for record in records)
    shared = [record for record in records if count[record.file_name] > 1]
    with suppress(Exception):  # what is wrong shows in the element that has it
        Opener.of(shared).prepare(shared)


def _check_directions(directions: dict[str, list[Scan]], result: Checked) -> None:
    """Note that scans are stored in different orientations: they reach a model so, as nothing is turned on reading."""
    if len(directions) > 1:
        parts = [
            f"{len(scans)} {'scan' if len(scans) == 1 else 'scans'} towards {runs} ({scans[0].key[1]!r}"
            f"{', ...' if len(scans) > 1 else ''})"
            for runs, scans in sorted(directions.items(), key=lambda item: -len(item[1]))
        ]
        result.add("orientation", f"the axes H, W, D run in different directions, by the affines: {', '.join(parts)}")


def _check_contents(files: set[str], result: Checked, watch: Watch) -> None:
    """Compare packed files with the hashes that were taken when they were written."""
    folders = sorted({Path(file).parent for file in files if file.endswith((".h5", ".hdf5"))})
    manifests = [manifest for folder in folders if folder.is_dir() for manifest in packed_manifests(folder, result)]
    arrays = [array for manifest in manifests for array in manifest.arrays if str(array[0]) in files]
    for array in watch(arrays, len(arrays), "Hashing") if arrays else ():
        for _ in verify_arrays([array]):
            result.add("content", f"dataset {array[1]!r} is not what was packed, by its hash in the manifest", array[0])
