"""The reader ``h5-volumes``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from attrs import frozen

from medsegpy_core import OpenScan, Reader, Record, hookimpl
from medsegpy_core.typing import DatasetDict

__all__ = ["VolumesReader", "medsegpy_register_readers"]


@frozen
class VolumesReader:
    """Volumes: datasets ``volume`` (H x W x D) and ``seg`` (H x W x D x C), at the root of a file or in a group.

    It also opens slices, from a file of one slice or of the whole volume.
    """

    name: str = "h5-volumes"
    suffixes: tuple[str, ...] = (".h5", ".hdf5", ".hdf")

    def probe(self, path: Path) -> bool:
        """Return whether it is an HDF5 file with a dataset ``volume`` at its root or in a group."""
        from medsegpy_core.hdf5 import holds_dataset

        return holds_dataset(path, ["volume"], in_groups=True)

    def probe_keyed(self, path: Path) -> bool:
        """Return whether it is an HDF5 file, which MATLAB 7.3 files are too; the dict names the dataset."""
        from medsegpy_core.hdf5 import is_hdf5

        return is_hdf5(path)

    def prepare(self, records: Sequence[Record]) -> None:
        """Locate the data of many records, with one look into each file."""
        from medsegpy_core.hdf5 import prepare_h5_scans

        prepare_h5_scans(records)

    def open(self, record: Record) -> AbstractContextManager[OpenScan]:
        """Open image and mask of a record."""
        from medsegpy_core.hdf5 import open_h5_scan

        return open_h5_scan(record)

    def scan(self, root: Path) -> list[DatasetDict]:
        """List the volumes in a folder; see `medsegpy_h5_volumes.listing`."""
        from medsegpy_h5_volumes.listing import list_volumes

        return list_volumes(str(root), self.suffixes)


@hookimpl
def medsegpy_register_readers() -> list[Reader]:
    """Return the reader ``h5-volumes``."""
    return [VolumesReader()]
