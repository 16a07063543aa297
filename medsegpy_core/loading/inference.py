"""Predict scans window by window and merge the predictions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from medsegpy_core._util.limits import check_memory
from medsegpy_core.data.geometry import has_length, stated
from medsegpy_core.errors import MedSegPyError, RecordError, ShapeError
from medsegpy_core.loading.batches import BatchMaker, Row
from medsegpy_core.loading.order import ElementRng
from medsegpy_core.loading.padding import Box
from medsegpy_core.loading.scans import Scan
from medsegpy_core.loading.sources import MemorySource, ScanSource

if TYPE_CHECKING:
    from medsegpy_core.config import Config
    from medsegpy_core.loading.prepare import Setup
    from medsegpy_core.typing import Array


_OUTPUTS = ("probs", "labels")


@frozen(eq=False)
class ScanToInfer:
    """A scan to predict.

    Attributes:
        source: The scan to read; if slices are missing, the existing ones, renumbered without gaps.
        original: The scan as it is in the dataset.
        number: Its number among all scans, including those of other shards.
        allow_gaps: Whether scans with missing slices are predicted; `inputs` then lists the existing slices.
    """

    source: ScanSource
    original: Scan
    number: int
    allow_gaps: bool

    def inputs(self, x: Array) -> dict[str, Any]:
        """Return the inputs that the evaluator gets for this scan."""
        records = self.original.records
        inputs = {
            **self._stated(),
            "dataset": records[0].dataset,
            "labelled": self.original.labelled,
            "x": x,
        }
        if records[0].scan_num_slices is not None:
            inputs["scan_num_slices"] = records[0].scan_num_slices
        if self.allow_gaps:
            there = [record.slice_id for record in records if record.slice_id is not None]
            inputs["slice_ids"] = there or list(range(1, self.source.geometry.shape[2] + 1))
        return inputs

    def _stated(self) -> dict[str, Any]:
        """Return the metadata of the file, overridden by those of the dataset dicts."""
        geometry, by_dict = self.source.geometry, self.original.inputs
        by_file = {f"scan_{key}": value for key, value in geometry.metadata.items()}
        axes = (2, 3) if geometry.shape[2] == 1 else (3,)
        if "scan_affine" in by_dict:
            by_file |= {f"scan_{k}": v for k, v in stated({"affine": by_dict["scan_affine"]}, axes)[0].items()}
        if "scan_spacing" in by_file and not has_length(by_dict.get("scan_spacing"), axes):
            del by_dict["scan_spacing"]  # counts as absent
        return by_file | by_dict


def scans_to_infer(setup: Setup, allow_gaps: bool) -> list[ScanToInfer]:
    """Return the scans sorted by (dataset, scan_id, augmentation).

    Raises:
        RecordError: Slices of a scan are missing, and `allow_gaps` is False.
    """
    found = []
    for number, source in enumerate(sorted(setup.files, key=lambda source: source.scan.key)):
        scan = source.scan
        source = evolve(source, collation=evolve(source.collation, unknown=True))
        if missing := scan.missing:
            if not allow_gaps:
                raise RecordError(
                    f"Scan {scan.key[1]!r} of dataset {scan.key[0]!r} has {len(scan.records)} of "
                    f"{scan.records[0].scan_num_slices} slices; missing: {', '.join(map(str, missing))}. Add them, or "
                    "call inference(model, allow_gaps=True) to predict the existing slices."
                )
            n = len(scan.records)
            records = tuple(evolve(r, slice_id=i, scan_num_slices=n) for i, r in enumerate(scan.records, 1))
            source = ScanSource(Scan(scan.key, records, scan.positions), source.opener, source.collation)
        found.append(ScanToInfer(source, scan, number, allow_gaps))
    return found


def infer_scans(
    setup: Setup, scans: Sequence[ScanToInfer], model: Any, batch_size: int, output: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Predict the scans one by one; see `DataLoader.inference`."""
    if output not in _OUTPUTS:
        raise ValueError(f"inference(output={output!r}): expected one of {', '.join(map(repr, _OUTPUTS))}.")
    predict = getattr(model, "predict", model)
    return (_infer(setup, scan, predict, batch_size, output) for scan in scans)


def _infer(
    setup: Setup, scan: ScanToInfer, predict: Any, batch_size: int, output: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    started = time.perf_counter()
    try:
        memory = _load_checked(setup, scan, output)
    except MedSegPyError:
        # Cached headers may be outdated if the files were replaced in the meantime: read them again, once.
        scan.source.forget()
        memory = _load_checked(setup, scan, output)
    probabilities = _predict(setup.maker, memory, scan.number, predict, batch_size)
    outputs = {
        "y_true": memory.mask if scan.original.labelled else None,
        "y_pred": probabilities if output == "probs" else decide(probabilities, setup.cfg),
        "time_elapsed": time.perf_counter() - started,
    }
    return scan.inputs(memory.image), outputs


def _load_checked(setup: Setup, scan: ScanToInfer, output: str) -> MemorySource:
    geometry, channels = scan.source.geometry, setup.maker.channels
    voxels = int(np.prod(geometry.shape))
    # The image, the mask, the sum and the count of the predictions, and the result.
    needed = voxels * (
        4 * (geometry.channels or 1) + channels + 4 * channels + 4 + (channels if output == "labels" else 0)
    )
    check_memory(needed, f"Inference on scan {scan.original.key[1]!r} ({' x '.join(map(str, geometry.shape))})")
    return _load(scan.source, channels, setup.cfg.NUM_WORKERS)


def _load(files: ScanSource, channels: int, workers: int) -> MemorySource:
    """Read a whole scan, slices on several threads."""
    geometry = files.geometry
    extra = () if geometry.channels is None else (geometry.channels,)
    image = np.empty(geometry.shape + extra, np.float32)
    mask = np.empty((*geometry.shape, channels), np.uint8)
    h, w, depth = geometry.shape
    parts = 1 if files.scan.is_volume or workers < 2 else min(workers, depth)
    bounds = [depth * i // parts for i in range(parts + 1)]

    def read(i: int) -> None:
        part = slice(bounds[i], bounds[i + 1])
        files.read((slice(0, h), slice(0, w), part), image[:, :, part], mask[:, :, part])

    if parts == 1:
        read(0)
    else:
        with ThreadPoolExecutor(parts, "medsegpy-scan") as pool:
            list(pool.map(read, range(parts)))
    return MemorySource(files.scan, geometry, image, mask, files)


def _predict(maker: BatchMaker, memory: MemorySource, number: int, predict: Any, batch_size: int) -> Array:
    """Predict all windows of a scan and average overlapping ones. Returns H x W x D x C, float32."""
    shape = memory.geometry.shape
    total = np.zeros((*shape, maker.channels), np.float32)
    boxes = maker.windows.cover(memory)
    count = np.zeros(shape, np.min_scalar_type(len(boxes)))
    for first in range(0, len(boxes), batch_size):
        # Seed each window by its scan and its number, so that batch_size does not change its random numbers.
        rows = [
            Row(memory, box, ElementRng(maker.seed, number, i))
            for i, box in enumerate(boxes[first : first + batch_size], first)
        ]
        images = maker.fill_images(rows)
        predicted = _called(predict, images, maker.prediction_shape(rows))
        for row, values in zip(rows, predicted, strict=True):
            _add(total, count, maker.predicted_box(row.box), values)
    if count.max(initial=1) > 1:
        total /= count[..., None]
    return total


def _called(predict: Any, images: Array, expected: tuple[int, ...]) -> Array:
    result = np.asarray(predict(images), np.float32)
    if result.shape != expected:
        raise ShapeError(
            f"The model returned {result.shape} for images {images.shape}; expected {expected}: one prediction per "
            f"voxel, with the {expected[-1]} categories of the masks on the last axis (including the background if "
            "INCLUDE_BACKGROUND is set)."
        )
    return result


def _add(total: Array, count: Array, box: Box, values: Array) -> None:
    """Add the prediction of a box, except for its padding."""
    inside = tuple(slice(max(0, w.start), min(n, w.stop)) for w, n in zip(box.window, count.shape, strict=True))
    part = tuple(slice(i.start - w.start, i.stop - w.start) for i, w in zip(inside, box.window, strict=True))
    total[inside] += values.reshape(*box.size, -1)[part]
    count[inside] += 1


def decide(probabilities: Array, cfg: Config) -> Array:
    """Turn probabilities into labels, uint8, H x W x D x C.

    A label is 1 if its probability is above 0.5 or, with a softmax loss (``cfg.LOSS[1]``), if it is the largest.
    """
    if cfg.LOSS and len(cfg.LOSS) > 1 and cfg.LOSS[1] == "softmax":
        largest = probabilities.argmax(axis=-1)
        chosen: Array = largest[..., None] == np.arange(probabilities.shape[-1])
        return chosen.view(np.uint8)
    above: Array = probabilities > 0.5
    return above.view(np.uint8)
