"""``medsegpy view``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
from attrs import frozen

from medsegpy_core.catalog import MetadataCatalog
from medsegpy_core.cli.output import echo
from medsegpy_core.data.categories import channels_of, normalize_category_ids
from medsegpy_core.datasets import load_records
from medsegpy_core.drawing import Color, Panel, Upright, class_colors, draw, gray_window, shown_classes, spread_slices
from medsegpy_core.errors import MedSegPyError, RecordError, UnknownNameError, closest_match
from medsegpy_core.loading.collate import Collation
from medsegpy_core.loading.scans import Opener, Scan, group_scans
from medsegpy_core.reading.masks import LabelMapView
from medsegpy_core.text import by, some

if TYPE_CHECKING:
    from medsegpy_core.data.metadata import MetadataView
    from medsegpy_core.reading.canonical_scan import CanonicalScan
    from medsegpy_core.typing import Array, CategoryId, LazyArray, Selection


_BYTES_AT_ONCE: Final = 2**27  # bytes of a mask to read at once
_LABEL_BYTES: Final = 8  # bytes per voxel while labels are looked up
_LEGEND: Final = 30  # classes; if there are more, the legend lists only those in the slices


@click.command("view")
@click.argument("name")
@click.option("--scan", "scan_id", help="The scan_id; default: the first scan.")
@click.option("--slices", "count", type=click.IntRange(1, 64), default=6, show_default=True, help="Number of slices.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The PNG; default: NAME-SCAN.png.")
def command(name: str, scan_id: str | None, count: int, out: Path | None) -> None:
    """Draw a scan of the dataset NAME into a PNG.

    Slices are spread evenly over those with foreground. Each is drawn twice, without and with its classes in color. If
    the scan has an affine, slices are in radiological orientation: superior or anterior up, the patient's right on the
    left. Otherwise they are drawn as stored.
    """
    scan = _find(name, scan_id)
    picture = _montage(scan, MetadataCatalog.get(name).for_scan(scan.records[0]), f"{name}  {scan.key[1]}", count)
    out = out or Path(re.sub(r"[^\w.-]+", "_", f"{name}-{scan.key[1]}") + ".png")
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out, format="PNG")
    echo(f"Wrote {out}")


def _find(name: str, scan_id: str | None) -> Scan:
    scans = group_scans(load_records(name))
    if not scans:
        raise RecordError(f"Dataset {name!r} is empty: there is nothing to draw.")
    if scan_id is None:
        return scans[0]
    for scan in scans:
        if scan.key[1] == scan_id:
            return scan
    known = [scan.key[1] for scan in scans]
    raise UnknownNameError(
        f"Dataset {name!r} has no scan {scan_id!r}.{closest_match(scan_id, known)} "
        f"It has {len(known)}: {some(known, 20)}."
    )


@frozen
class _Classes:
    """The classes to draw.

    Attributes:
        ids: Their category ids.
        names: Their names.
        colors: Their colors.
    """

    ids: tuple[CategoryId, ...]
    names: Sequence[str]
    colors: Sequence[Color]

    @classmethod
    def of(cls, metadata: MetadataView, channels: int) -> _Classes:
        """Return the classes that the metadata name, else one for each channel of the mask."""
        ids = normalize_category_ids(metadata.get("category_ids") or range(channels))
        names = [str(name) for name in metadata.get("categories") or [f"channel {i}" for i in range(len(ids))]]
        shown = shown_classes(ids)
        highest = max((max(channels_of(ids[i])) for i in shown), default=-1)
        if highest >= channels > 0:
            raise MedSegPyError(
                f"The metadata name category id {highest}, but the mask has {channels} channels (0 to "
                f"{channels - 1}). Correct category_ids."
            )
        colors = class_colors(len(ids), metadata.get("category_colors"))
        return cls(tuple(ids[i] for i in shown), [names[i] for i in shown], [colors[i] for i in shown])

    def listed(self, present: Sequence[int]) -> list[tuple[str, Color]]:
        """Return name and color of each class, or of those present if a legend cannot hold all."""
        listed = range(len(self.ids)) if len(self.ids) <= _LEGEND else present
        return [(self.names[i], self.colors[i]) for i in listed]


class _Planes:
    """The slices of a scan, read one by one, from a volume or from one file each.

    Args:
        scan: The scan.
        opener: Opens its records.
        first: The first record, open.
    """

    def __init__(self, scan: Scan, opener: Opener, first: CanonicalScan):
        self._scan, self._opener, self._first = scan, opener, first
        shape = first.image.shape
        self.count = shape[2] if scan.is_volume else len(scan.records)
        depth = self.count if scan.is_volume else scan.records[0].scan_num_slices or self.count
        #: H x W x D [x K], missing slices included.
        self.shape = (*shape[:2], depth, *shape[3 if scan.is_volume else 2 :])

    def number(self, position: int) -> int:
        """Return the number of a slice in its scan, from 1."""
        return position + 1 if self._scan.is_volume else self._scan.records[position].slice_id or position + 1

    def look(self) -> tuple[Array, int]:
        """Return whether each slice has foreground, and the number of channels of the masks (0: no mask)."""
        found, channels = np.zeros(self.count, bool), 0
        for i, record in enumerate(self._scan.records):
            with self._open(i) as opened:
                if opened.mask is None or not opened.mask.shape[-1]:
                    continue
                channels = max(channels, opened.mask.shape[-1])
                path = record.sem_seg_file
                for box in self._boxes(opened.mask):
                    out = np.empty((*(part.stop - part.start for part in box), 1), np.uint8)
                    Collation((tuple(range(opened.mask.shape[-1])),)).read(opened.mask, box, out, path)
                    any_class = (out == 1).any(axis=(0, 1, -1))
                    found[slice(None) if self._scan.is_volume else i] |= any_class
        return found, channels

    def read(self, position: int, category_ids: Sequence[CategoryId]) -> tuple[Array, dict[int, Array] | None]:
        """Return the image of a slice, H x W, and the mask, H x W, of each category in it, or None without a mask.

        Categories are identified by their position. There may be thousands, but few in a slice.
        """
        with self._open(position) as opened:
            at: Selection = (slice(position, position + 1),) if self._scan.is_volume else ()
            image = opened.image[(slice(None), slice(None), *at)].reshape(*opened.image.shape[:2], -1)[..., 0]
            if opened.mask is None:
                return image, None
            box = (slice(0, image.shape[0]), slice(0, image.shape[1]), *at)
            path = self._scan.records[0 if self._scan.is_volume else position].sem_seg_file
            planes = _labels if isinstance(opened.mask, LabelMapView) else _channels
            return image, planes(opened.mask, box, path, category_ids)

    @contextmanager
    def _open(self, position: int) -> Iterator[CanonicalScan]:
        if self._scan.is_volume:
            yield self._first
        else:
            with self._opener.open(self._scan.records[position]) as opened:
                yield opened

    @staticmethod
    def _boxes(mask: LazyArray) -> Iterator[Selection]:
        """Yield boxes of whole rows that cover the mask, without its channels."""
        shape = mask.shape
        stored = _LABEL_BYTES if isinstance(mask, LabelMapView) else shape[-1]
        rows = max(1, _BYTES_AT_ONCE // max(1, stored * int(np.prod(shape[1:-1]))))
        for start in range(0, shape[0], rows):
            yield (slice(start, min(start + rows, shape[0])), *(slice(0, n) for n in shape[1:-1]))


def _collated(mask: LazyArray, box: Selection, path: Path | None, category_ids: Sequence[CategoryId]) -> Array:
    """Return the binary masks of the categories in a slice, H x W x C, bool."""
    out = np.empty((*(part.stop - part.start for part in box), len(category_ids)), np.uint8)
    Collation(tuple(category_ids)).read(mask, box, out, path)
    inside: Array = out.reshape(*out.shape[:2], -1) == 1
    return inside


def _channels(
    mask: LazyArray, box: Selection, path: Path | None, category_ids: Sequence[CategoryId]
) -> dict[int, Array]:
    """Return the mask of each category in a slice."""
    planes = _collated(mask, box, path, category_ids)
    return {int(i): planes[..., i] for i in np.flatnonzero(planes.any(axis=(0, 1)))}


def _labels(mask: LazyArray, box: Selection, path: Path | None, category_ids: Sequence[CategoryId]) -> dict[int, Array]:
    """Return the same for a label map. There may be thousands of channels, but they exclude each other.

    So one number per voxel is enough, and it is read bit by bit.
    """
    channels = sorted({channel for category_id in category_ids for channel in channels_of(category_id)})
    numbers = range(len(channels).bit_length())
    coded = [tuple(c for n, c in enumerate(channels, 1) if n >> bit & 1) for bit in numbers]
    number = _collated(mask, box, path, coded) @ (1 << np.arange(len(coded)))
    present = {channels[n - 1]: n for n in np.unique(number).tolist() if n}
    found = {}
    for i, category_id in enumerate(category_ids):
        if own := [present[c] for c in channels_of(category_id) if c in present]:
            found[i] = np.isin(number, own)
    return found


def _montage(scan: Scan, metadata: MetadataView, title: str, count: int) -> Any:
    opener = Opener.of(scan.records)
    with opener.open(scan.records[0]) as first:
        planes = _Planes(scan, opener, first)
        foreground, channels = planes.look()
        classes = _Classes.of(metadata, channels)
        chosen = spread_slices(foreground, count)
        read = [planes.read(position, classes.ids if channels else ()) for position in chosen]
    if len(planes.shape) == 4:
        title += f"  (channel 1 of {planes.shape[3]})"
    spacing, upright = metadata.get("spacing"), Upright.of(metadata.get("affine"))
    pixel = (1.0, 1.0) if spacing is None else (float(spacing[0]), float(spacing[1]))
    window = gray_window(np.concatenate([image.ravel() for image, _ in read]), metadata)
    present = sorted({i for _, masks in read for i in masks or ()})
    rows: list[list[Panel]] = [[]]
    for position, (image, masks) in zip(chosen, read, strict=True):
        if len(rows[-1]) >= 6 or (len(chosen) <= 4 and len(rows[-1]) >= 4):
            rows.append([])
        caption = f"slice {planes.number(position)} of {planes.shape[2]}"
        rows[-1].append(Panel(image, None, caption, pixel, window, upright))
        if masks is not None:
            absent = np.zeros(image.shape, bool)
            # A plane lies in one piece, for hundreds of classes.
            stacked = np.stack([absent, *(masks.get(i, absent) for i in present)])[1:]
            rows[-1].append(Panel(image, np.moveaxis(stacked, 0, -1), "truth", pixel, window, upright))
    note = f"{by(planes.shape)} voxels, spacing {'unknown' if spacing is None else by(map(float, spacing)) + ' mm'}"
    note += "" if channels else ", unlabelled"
    note += f", {len(scan.missing)} slices missing" if scan.missing else ""
    note += f", gray from {window[0]:g} to {window[1]:g}"
    return draw(rows, title, classes.listed(present), note, [classes.colors[i] for i in present])
