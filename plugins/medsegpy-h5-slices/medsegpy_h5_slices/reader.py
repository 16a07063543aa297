"""The reader ``h5-slices``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from attrs import frozen

from medsegpy_core import OpenScan, Reader, Record, hookimpl
from medsegpy_core.typing import DatasetDict

__all__ = ["SlicesReader", "medsegpy_register_readers"]


@frozen
class SlicesReader:
    """Slices: dataset ``data``, H x W x 1 or H x W in ``.im`` files, H x W x 1 x C or H x W x C in ``.seg`` files.

    The unit axis is removed, unless the record has `image_axes` or `sem_seg_axes`.
    """

    name: str = "h5-slices"
    suffixes: tuple[str, ...] = (".im",)

    def probe(self, path: Path) -> bool:
        """Return whether it is an HDF5 file with a dataset ``data`` at its root."""
        from medsegpy_core.hdf5 import holds_dataset

        return holds_dataset(path, ["data"])

    def prepare(self, records: Sequence[Record]) -> None:
        """Locate the data of many records, with one look into each file."""
        from medsegpy_core.hdf5 import prepare_h5_scans

        prepare_h5_scans(records)

    def open(self, record: Record) -> AbstractContextManager[OpenScan]:
        """Open image and mask of a record."""
        from medsegpy_core.hdf5 import open_h5_scan

        return open_h5_scan(record)

    def scan(self, root: Path) -> list[DatasetDict]:
        """List the slices in a folder; see `medsegpy_h5_slices.listing`."""
        from medsegpy_h5_slices.listing import list_slices

        return list_slices(str(root))


@hookimpl
def medsegpy_register_readers() -> list[Reader]:
    """Return the reader ``h5-slices``."""
    return [SlicesReader()]
