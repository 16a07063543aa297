"""The scans of a dataset, with the masks of the categories that are to be evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from medsegpy_core import AugmentationError, CategoryError, ReadError, Record, RecordError
from medsegpy_core.categories import channels_of
from medsegpy_core.datasets import load_records
from medsegpy_core.opening import CanonicalScan, label_channels, open_record
from medsegpy_core.readers import find_reader
from medsegpy_core.typing import CategoryId

if TYPE_CHECKING:
    from medsegpy_core import Reader

    Array: TypeAlias = NDArray[Any]

__all__ = ["Header", "TrueScan", "list_scans"]


@frozen
class Header:
    """What is known of a scan without reading its data.

    Attributes:
        shape: H x W [x D].
        metadata: What the file says.
    """

    shape: tuple[int, ...]
    metadata: Mapping[str, Any] = field(factory=dict)


@frozen
class TrueScan:
    """A scan of the dataset. It pickles.

    Attributes:
        records: Its volume, or its slices in order.
        reader: What opens them.
        channels: How many channels a label map has, by the metadata.
    """

    records: tuple[Record, ...]
    reader: Reader = field(repr=False)
    channels: int

    @property
    def inputs(self) -> dict[str, Any]:
        """What evaluators are told of a scan: its id, subject, time point, and all ``scan_*`` keys."""
        first = self.records[0]
        said = {key: value for record in reversed(self.records) for key, value in record.scan.items()}
        return {
            **said,
            "scan_id": first.scan_id,
            "subject_id": first.subject_id,
            "time_point": first.time_point,
        }

    def problems(self) -> list[str]:
        """Say why there is no truth to compare with; nothing if there is."""
        unlabelled = [record for record in self.records if not record.labelled]
        if unlabelled:
            return [f"{len(unlabelled)} of its {len(self.records)} elements are not labelled"]
        first = self.records[0]
        if first.kind == "slice":
            absent = sorted(set(range(1, (first.scan_num_slices or 0) + 1)) - {r.slice_id for r in self.records})
            if absent:
                return [f"slices are missing: {', '.join(map(str, absent))}"]
        return []

    def header(self) -> Header:
        """Open the first element, and say what is known.

        Raises:
            ReadError: It cannot be read.
        """
        with ExitStack() as stack:
            scan = self._open(self.records[0], stack)
            shape = tuple(scan.image.shape)
            if self.records[0].kind == "volume":
                return Header(shape[:3], dict(scan.metadata))
            return Header((*shape[:2], len(self.records)), dict(scan.metadata))

    def read(self, category_ids: Sequence[CategoryId], *, with_image: bool) -> tuple[Array, Array | None]:
        """Read the masks of categories, collated, and the image.

        Returns:
            uint8, H x W x D x categories; and the image, H x W x D (its first channel), or None.

        Raises:
            ReadError: A file cannot be read.
            CategoryError: A mask lacks a channel.
        """
        masks, images = [], []
        for record in self.records:
            with ExitStack() as stack:
                scan = self._open(record, stack)
                masks.append(_collated(scan, record, category_ids))
                if with_image:
                    spatial = 2 if record.kind == "slice" else 3
                    image = scan.image[...]
                    images.append(image if image.ndim == spatial else image[..., 0])
        if self.records[0].kind == "volume":
            return masks[0], images[0] if images else None
        sizes = {mask.shape[:2] for mask in masks}
        if len(sizes) > 1:
            raise ReadError(f"the slices have different sizes: {sorted(sizes)}", self.records[0].file_name)
        return np.stack(masks, axis=2), np.stack(images, axis=2) if images else None

    def _open(self, record: Record, stack: ExitStack) -> CanonicalScan:
        return stack.enter_context(open_record(record, self.reader, self.channels))


def list_scans(dataset: str) -> dict[str, TrueScan]:
    """Return the scans of a dataset by id, sorted.

    Raises:
        UnknownNameError: There is no such dataset.
        RecordError: The dataset is empty, or its dicts are not standard dataset dicts.
        AugmentationError: It has augmented copies, which tell nothing about how well a model does.
    """
    records = load_records(dataset)
    if not records:
        raise RecordError(f"Dataset {dataset!r} has no elements: there is nothing to evaluate.")
    augmented = [record for record in records if record.augmentation]
    if augmented:
        raise AugmentationError(
            f"Dataset {dataset!r} has {len(augmented)} augmented elements (the first: {augmented[0].file_name}). "
            "Evaluate on originals only: register them as a dataset of their own."
        )
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.scan_id, []).append(record)
    channels = label_channels(dataset) or 0
    scans = {}
    for scan_id in sorted(groups):
        members = tuple(sorted(groups[scan_id], key=lambda record: record.slice_id or 0))
        scans[scan_id] = TrueScan(members, find_reader(members[0]), channels)
    return scans


def _collated(scan: CanonicalScan, record: Record, category_ids: Sequence[CategoryId]) -> Array:
    if scan.mask is None:
        raise ReadError("there is no mask", record.file_name)
    mask = scan.mask[...]
    result = np.zeros((*mask.shape[:-1], len(category_ids)), np.uint8)
    for position, category_id in enumerate(category_ids):
        for channel in channels_of(category_id):
            if channel >= mask.shape[-1]:
                raise CategoryError(
                    f"Category {category_id} needs channel {channel}, but {record.sem_seg_file} has {mask.shape[-1]} "
                    "channels."
                )
            # The logical OR of the channels, so that the mask stays binary.
            np.logical_or(result[..., position], mask[..., channel], out=result[..., position], casting="unsafe")
    return result
