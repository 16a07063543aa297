"""Count the contents of a dataset, scan by scan, in the memory of one scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import Factory, define

from medsegpy_core.catalog import MetadataCatalog, declared_augmentation
from medsegpy_core.data.categories import channels_of, normalize_category_ids
from medsegpy_core.datasets import load_records
from medsegpy_core.loading.collate import Collation, slabs
from medsegpy_core.loading.scans import Opener, Scan, group_scans
from medsegpy_core.reading.canonical_scan import CanonicalScan
from medsegpy_core.reading.lazy_arrays import full_selection
from medsegpy_core.reading.masks import LabelMapView

if TYPE_CHECKING:
    from pathlib import Path

    from medsegpy_core.data.metadata import MetadataView
    from medsegpy_core.data.records import Record
    from medsegpy_core.typing import LazyArray


@define
class Survey:
    """The contents of a dataset.

    Attributes:
        elements: The number of slices or volumes, each a dataset dict.
        labelled: The number of elements with a mask.
        scans: The number of scans; augmented copies count as separate scans.
        slices: The number of existing slices, including those of volumes.
        missing_slices: The number of slices that scans should have but that do not exist.
        subjects: The number of different `subject_id` values.
        without_subject: The number of scans without a `subject_id`.
        augmentations: Augmentation number to number of elements.
        shapes: H, W, D to number of scans.
        spacings: Spacing (mm; None: not declared) to number of scans.
        image_dtypes: Type of the stored image to number of elements.
        mask_dtypes: Type of the stored mask to number of elements.
        voxels: Category to number of voxels, over all labelled elements; None: not counted.
    """

    elements: int = 0
    labelled: int = 0
    scans: int = 0
    slices: int = 0
    missing_slices: int = 0
    subjects: int = 0
    without_subject: int = 0
    augmentations: Counter[int] = Factory(Counter)
    shapes: Counter[tuple[int, ...]] = Factory(Counter)
    spacings: Counter[tuple[float, ...] | None] = Factory(Counter)
    image_dtypes: Counter[str] = Factory(Counter)
    mask_dtypes: Counter[str] = Factory(Counter)
    voxels: Counter[str] | None = None

    def as_dict(self, dataset: str) -> dict[str, Any]:
        """Return JSON-compatible values, with the declared names of the augmentations of `dataset`."""
        declared = {number: declared_augmentation(dataset, number) for number in self.augmentations if number}
        return {
            "elements": self.elements,
            "labelled": self.labelled,
            "subjects": self.subjects,
            "scans_without_subject": self.without_subject,
            "scans": self.scans,
            "slices": self.slices,
            "missing_slices": self.missing_slices,
            "augmentations": [
                {
                    "number": number,
                    "name": "none" if number == 0 else named.name if (named := declared[number]) else None,
                    "parameters": dict(named.parameters) if number and (named := declared[number]) else {},
                    "elements": self.augmentations[number],
                }
                for number in sorted(self.augmentations)
            ],
            "shapes": [{"shape": list(shape), "scans": n} for shape, n in self.shapes.most_common()],
            "spacings": [
                {"spacing": None if spacing is None else list(spacing), "scans": n}
                for spacing, n in self.spacings.most_common()
            ],
            "image_dtypes": dict(self.image_dtypes.most_common()),
            "mask_dtypes": dict(self.mask_dtypes.most_common()),
            "voxels": None if self.voxels is None else dict(self.voxels),
        }


def survey(
    dataset: str, fast: bool = False, watch: Callable[[Iterable[Scan], int], Iterable[Scan]] = lambda scans, _: scans
) -> Survey:
    """Count the contents of a dataset.

    Args:
        dataset: The name.
        fast: Whether to read only one header per scan: voxels are not counted, and the slices of a scan are assumed to
            be alike.
        watch: Called with the scans and their number; returns the scans; for a progress bar.

    Raises:
        UnknownNameError: There is no such dataset.
        RecordError: Its dicts are not standard dataset dicts.
        ReadError: A file cannot be read.
    """
    records = load_records(dataset)
    scans = group_scans(records)
    metadata = MetadataCatalog.get(dataset).view()
    found = Survey(
        elements=len(records),
        labelled=sum(record.labelled for record in records),
        scans=len(scans),
        subjects=len({record.subject_id for record in records} - {None}),
        augmentations=Counter(record.augmentation for record in records),
    )
    counts = _VoxelCounts(metadata)
    opener = Opener.of(records)
    for scan in watch(scans, len(scans)):
        _survey_scan(found, scan, metadata, opener, fast, counts)
    found.voxels = None if fast else counts.named()
    return found


def _survey_scan(
    found: Survey, scan: Scan, metadata: MetadataView, opener: Opener, fast: bool, counts: _VoxelCounts
) -> None:
    first = scan.records[0]
    found.without_subject += first.subject_id is None
    found.missing_slices += len(scan.missing)
    for i, (record, opened) in enumerate(_opened(scan.records[:1] if fast else scan.records, opener)):
        like_it = len(scan.records) if fast else 1
        found.image_dtypes[str(opened.image.dtype)] += like_it
        if opened.mask is not None:
            stored = opened.mask.array if isinstance(opened.mask, LabelMapView) else opened.mask
            found.mask_dtypes[str(stored.dtype)] += like_it
            if not fast:
                counts.add(opened.mask, record.sem_seg_file)
        if i == 0:
            height, width = opened.image.shape[:2]
            depth = opened.image.shape[2] if scan.is_volume else first.scan_num_slices or 0
            found.shapes[height, width, depth] += 1
            found.slices += depth if scan.is_volume else len(scan.records)
            spacing = metadata.for_scan(record, opened.metadata).get("spacing")
            found.spacings[None if spacing is None else tuple(float(step) for step in spacing)] += 1


def _opened(records: Sequence[Record], opener: Opener) -> Iterator[tuple[Record, CanonicalScan]]:
    for record in records:
        with opener.open(record) as opened:
            yield record, opened


class _VoxelCounts:
    """The number of voxels of each category, or of each channel if the metadata name no categories."""

    def __init__(self, metadata: MetadataView):
        self._ids = normalize_category_ids(metadata.get("category_ids") or ())
        self._names = [str(name) for name in metadata.get("categories") or ()]
        self._counts: Counter[int] = Counter()

    def add(self, mask: LazyArray, path: Path | None) -> None:
        """Count the voxels of an H x W [x D] x C mask, some rows at a time; unknown ones belong to no category."""
        if isinstance(mask, LabelMapView):
            self._add_labels(mask)
            return
        channels = mask.shape[-1]
        collation = Collation(tuple(range(channels)))
        ids = self._ids or collation.category_ids
        for rows in slabs(mask):
            values = np.empty((rows.stop - rows.start, *mask.shape[1:]), np.uint8)
            collation.read(mask, (rows, *full_selection(mask.shape[1:-1])), values, path)
            for position, category_id in enumerate(ids):
                present = [channel for channel in channels_of(category_id) if channel < channels]
                self._counts[position] += int(np.count_nonzero((values[..., present] == 1).any(axis=-1)))

    def _add_labels(self, mask: LabelMapView) -> None:
        """Count the values of a label map, each voxel once."""
        labels, codes, found = mask.labels, mask.codes(), Counter[int]()
        for rows in slabs(mask.array):
            values = mask.read_labels((rows, *full_selection(mask.array.shape[1:])))
            mask.coded(values, codes)
            found.update(dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True)))
        for value in labels.ignored:
            found.pop(value, None)
        channels = range(labels.channels if labels.channels is not None else max(found, default=0))
        for position, category_id in enumerate(self._ids or channels):
            members = [c for c in channels_of(category_id) if c in channels and labels.is_annotated(c)]
            voxels = sum(found[labels.value_of(channel)] for channel in members)
            # If no values are declared, count only those that occur as channels.
            if voxels or self._ids or labels.values is not None:
                self._counts[position] += voxels

    def named(self) -> Counter[str]:
        """Return the counts by name."""
        positions = range(len(self._ids)) if self._ids else sorted(self._counts)
        names = self._names if len(self._names) == len(self._ids) and self._ids else [f"channel {i}" for i in positions]
        return Counter({names[i]: self._counts[i] for i in positions})
