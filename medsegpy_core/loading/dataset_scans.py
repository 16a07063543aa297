"""Whole scans of a dataset for evaluation, read and collated in the same way as by loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from medsegpy_core._util.limits import check_memory
from medsegpy_core.datasets import load_records
from medsegpy_core.errors import AugmentationError, RecordError
from medsegpy_core.loading.collate import Collation
from medsegpy_core.loading.scans import Opener, group_scans
from medsegpy_core.loading.sources import ScanSource
from medsegpy_core.reading.lazy_arrays import full_selection
from medsegpy_core.typing import CategoryId

if TYPE_CHECKING:
    from medsegpy_core.data.records import Record
    from medsegpy_core.typing import Array


@frozen(eq=False)
class DatasetScan:
    """One scan of a dataset. It can be pickled and is thread-safe.

    The `accessing` that was active when the scan was listed applies to all reads.
    """

    _source: ScanSource

    @property
    def scan_id(self) -> str:
        """The id of the scan."""
        return self._source.scan.records[0].scan_id

    @property
    def records(self) -> tuple[Record, ...]:
        """The record of the volume, or those of the slices in order."""
        return self._source.scan.records

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the scan, sorted."""
        return tuple(sorted({Path(file) for record in self.records for file in record.files if file is not None}))

    @property
    def inputs(self) -> dict[str, Any]:
        """The scan's id, subject, time point and all ``scan_*`` keys, as evaluators get them."""
        return self._source.scan.inputs

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W and D, from the header of the (first) file.

        Raises:
            ReadError: The file cannot be read.
        """
        return self._source.geometry.shape

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Spacing and affine of the (first) file, for the axes H, W, D.

        Raises:
            ReadError: The file cannot be read.
        """
        return self._source.geometry.metadata

    def problems(self) -> list[str]:
        """Return the reasons why the mask cannot be read as a whole; an empty list if it can."""
        scan = self._source.scan
        if not scan.labelled:
            unlabelled = sum(not record.labelled for record in scan.records)
            return [f"{unlabelled} of its {len(scan.records)} elements have no mask"]
        return [f"slices are missing: {', '.join(map(str, scan.missing))}"] if scan.missing else []

    def read(self, *, with_image: bool = False) -> tuple[Array, Array | None]:
        """Read the mask and, optionally, the image.

        Args:
            with_image: Whether to read the image, too.

        Returns:
            The mask, H x W x D x categories, uint8: 0, 1, or 255 for unknown voxels. The image, H x W x D [x K],
            float32, or None.

        Raises:
            ReadError: A file cannot be read, or a mask contains values other than 0 and 1.
            CategoryError: A category refers to a channel that a mask does not have.
            ShapeError: Slices differ in size.
            RecordError: Slices are missing or unlabelled.
        """
        if problems := self.problems():
            raise RecordError(f"Scan {self.scan_id!r} of {self.records[0].dataset!r} cannot be read: {problems[0]}.")
        geometry, channels = self._source.geometry, self._source.collation.channels
        extra = () if geometry.channels is None else (geometry.channels,)
        size = int(np.prod(geometry.shape)) * (channels + (4 * (geometry.channels or 1) if with_image else 0))
        check_memory(size, f"Reading scan {self.scan_id!r}")
        mask = np.empty((*geometry.shape, channels), np.uint8)
        image = np.empty((*geometry.shape, *extra), np.float32) if with_image else None
        self._source.read(full_selection(geometry.shape), image, mask)
        return mask, image


def list_scans(dataset: str, category_ids: Sequence[CategoryId], *, background: bool = False) -> list[DatasetScan]:
    """Return the scans of a dataset for evaluation, sorted by id.

    Args:
        dataset: A registered dataset.
        category_ids: The channels of the masks, in order; a tuple of ids is collated into one channel.
        background: Whether a background channel ("none of these") comes first.

    Raises:
        UnknownNameError: There is no such dataset.
        RecordError: The dataset is empty, or its dicts are not standard dataset dicts.
        AugmentationError: The dataset has augmented copies, on which models are not evaluated.
        ReadError: No reader supports one of the files.

    Example:
        ```python
        for scan in list_scans("abdomen_volumes_test", [0, (1, 2)]):
            mask, _ = scan.read()
        ```
    """
    records = load_records(dataset)
    if not records:
        raise RecordError(f"Dataset {dataset!r} has no elements to evaluate.")
    augmented = [record for record in records if record.augmentation]
    if augmented:
        raise AugmentationError(
            f"Dataset {dataset!r} has {len(augmented)} augmented elements (the first: {augmented[0].file_name}). "
            "Evaluate on originals only: register them as a separate dataset."
        )
    opener = Opener.of(records)
    collation = Collation(tuple(category_ids), background)
    scans = sorted(group_scans(records), key=lambda scan: scan.key)
    return [DatasetScan(ScanSource(scan, opener, collation)) for scan in scans]
