"""``medsegpy view``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from medsegpy_core.catalog import MetadataCatalog
from medsegpy_core.categories import channels_of, normalize_category_ids
from medsegpy_core.cli.montage import Panel, class_colors, draw, gray_window, shown_classes, spread_slices
from medsegpy_core.cli.output import by, echo
from medsegpy_core.datasets import load_records
from medsegpy_core.errors import MedSegPyError, RecordError, UnknownNameError, closest_match
from medsegpy_core.loading import load_scan
from medsegpy_core.loading.scans import Scan, group_scans

if TYPE_CHECKING:
    from medsegpy_core.metadata import MetadataView
    from medsegpy_core.typing import Array

__all__ = ["command"]


@click.command("view")
@click.argument("name")
@click.option("--scan", "scan_id", help="The scan_id; the first scan if not given.")
@click.option("--slices", "count", type=click.IntRange(1, 64), default=6, show_default=True, help="How many slices.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The PNG; NAME-SCAN.png if not given.")
def command(name: str, scan_id: str | None, count: int, out: Path | None) -> None:
    """Draw a scan of the dataset NAME into a PNG.

    Slices are spread evenly over those with foreground, each beside itself with the classes in colour.
    """
    scan = _find(name, scan_id)
    image, mask = load_scan(name, scan.key[1])
    metadata = MetadataCatalog.get(name).for_scan(scan.records[0])
    picture = _montage(image, mask, metadata, f"{name}  {scan.key[1]}", count)
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
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    raise UnknownNameError(
        f"Dataset {name!r} has no scan {scan_id!r}.{closest_match(scan_id, known)} It has {len(known)}: {listed}."
    )


def _montage(image: Array, mask: Array | None, metadata: MetadataView, title: str, count: int) -> Any:
    if image.ndim == 4:
        title += f"  (channel 1 of {image.shape[3]})"
        image = image[..., 0]
    classes, names, colors = _classes(mask, metadata)
    spacing = metadata.get("spacing")
    pixel = (1.0, 1.0) if spacing is None else (float(spacing[0]), float(spacing[1]))
    foreground: Array = np.zeros(image.shape[2]) if mask is None else np.any(mask > 0, axis=(0, 1, 3))
    chosen = spread_slices(foreground, count)
    window = gray_window(image[:, :, chosen], metadata)
    rows: list[list[Panel]] = [[]]
    for position in chosen:
        if len(rows[-1]) >= 6 or (len(chosen) <= 4 and len(rows[-1]) >= 4):
            rows.append([])
        caption = f"slice {position + 1} of {image.shape[2]}"
        plain = Panel(image[:, :, position], None, caption, pixel, window)
        rows[-1].append(plain)
        if mask is not None:
            channels = np.stack([mask[:, :, position, list(c)].any(axis=-1) for c in classes], axis=-1)
            rows[-1].append(Panel(plain.image, channels, "truth", pixel, window))
    note = f"{by(image.shape)} voxels, spacing {'unknown' if spacing is None else by(map(float, spacing)) + ' mm'}"
    note += ", unlabelled" if mask is None else ""
    return draw(rows, title, list(zip(names, colors, strict=True)), f"{note}, gray from {window[0]:g} to {window[1]:g}")


def _classes(mask: Array | None, metadata: MetadataView) -> tuple[list[tuple[int, ...]], list[str], list[Any]]:
    """Return channels, name and colour of each class to draw."""
    if mask is None:
        return [], [], []
    ids = normalize_category_ids(metadata.get("category_ids") or range(mask.shape[-1]))
    names = [str(name) for name in metadata.get("categories") or [f"channel {i}" for i in range(len(ids))]]
    shown = shown_classes(ids)
    highest = max((max(channels_of(ids[i])) for i in shown), default=-1)
    if highest >= mask.shape[-1]:
        raise MedSegPyError(
            f"The metadata name category id {highest}, but the mask has {mask.shape[-1]} channels (0 to "
            f"{mask.shape[-1] - 1}). Correct category_ids."
        )
    colors = class_colors(metadata, len(ids))
    return [channels_of(ids[i]) for i in shown], [names[i] for i in shown], [colors[i] for i in shown]
