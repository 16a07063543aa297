"""Make a batch from element numbers: place the boxes, read them into one buffer, transform."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from medsegpy_core.errors import MedSegPyError, ShapeError
from medsegpy_core.hdf5.backend import Backend, current_backend, using_backend
from medsegpy_core.hdf5.chunks import sharing_chunks
from medsegpy_core.loading.buffers import Buffers, fresh_buffer
from medsegpy_core.loading.collate import Collation
from medsegpy_core.loading.order import ElementRng
from medsegpy_core.loading.padding import Box, read_padded
from medsegpy_core.loading.sources import ForegroundIndex, Source
from medsegpy_core.loading.windows import Element, Windows
from medsegpy_core.text import by

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


# (images, masks); with is_test, also the raw images.
Batch = tuple["Array", ...]
# transform(image, mask, rng) -> (image, mask)
Pipeline = Callable[["Array", "Array", np.random.Generator], tuple["Array", "Array"]]


@frozen(eq=False)
class Plan:
    """The elements of a loader, in arrays: 200,000 slices take 3 MB.

    Attributes:
        scan: The scan number of each element (int32).
        place: Three ints per element, whose meaning depends on the kind of window (N x 3, int32).
    """

    scan: Array
    place: Array

    @classmethod
    def of(cls, windows: Windows, sources: Sequence[Source], keep_unlabelled: bool) -> Plan:
        """Plan the elements of all scans."""
        planned = windows.elements(sources, keep_unlabelled)
        scan = np.fromiter((number for number, _ in planned), np.int32, len(planned))
        places = np.array([place for _, place in planned], np.int32).reshape(-1, 3)
        return cls(scan, places)

    def __len__(self) -> int:
        return len(self.scan)


@frozen
class Row:
    """The content of one row of a batch."""

    source: Source
    box: Box
    rng: ElementRng

    def files(self) -> set[str]:
        """Return the files that are read entirely: those of slices."""
        start, stop = self.box.start[2], self.box.start[2] + self.box.size[2]
        depth = self.source.geometry.shape[2]
        return self.source.slice_files(range(max(start, 0), min(stop, depth)))


@frozen(eq=False)
class BatchMaker:
    """Makes batches. It has no state: any thread or process makes the same batch from the same numbers.

    Attributes:
        sources: The scans.
        plan: The elements.
        windows: How elements are cut.
        foreground: The foreground voxels of each category, for random patches.
        collation: Converts the channels of files to categories.
        pad_mode: A mode of `numpy.pad`.
        mask_dtype: float32 or uint8.
        seed: The seed.
        pipeline: The transforms, or None.
        keeps_raw: Whether batches also contain the images before the transforms.
        backend: The backend that reads, chosen when the loader is built.
    """

    sources: Sequence[Source]
    plan: Plan
    windows: Windows
    foreground: ForegroundIndex
    collation: Collation
    pad_mode: str
    mask_dtype: str
    seed: int
    pipeline: Pipeline | None
    keeps_raw: bool
    backend: Backend = field(factory=current_backend)

    @property
    def channels(self) -> int:
        """The number of mask channels."""
        return self.collation.channels

    def element(self, number: int, epoch: int) -> Element:
        """Return the element with this number in an epoch."""
        (row,) = self.rows((number,), epoch)
        h, w, d = row.box.window
        return Element(row.source.record_at((d.start + d.stop) // 2), (h, w, d), number)

    def make(self, numbers: Iterable[int], epoch: int, buffers: Buffers = fresh_buffer) -> Batch:
        """Make the batch of some elements in an epoch; see `fill`."""
        numbers = list(numbers)
        try:
            rows = self.rows(numbers, epoch)
            images, masks = self._filled(rows, buffers)
        except MedSegPyError as error:
            # Cached headers may be outdated if the files were replaced in the meantime: read them again, once.
            self._forget(numbers)
            try:
                rows = self.rows(numbers, epoch)
                images, masks = self._filled(rows, buffers)
            except MedSegPyError:
                raise error from None
        return self._transformed(rows, images, masks)

    def _forget(self, numbers: Iterable[int]) -> None:
        for scan in {int(self.plan.scan[number]) for number in numbers}:
            self.sources[scan].forget()
            self.foreground.forget(scan)

    def rows(self, numbers: Iterable[int], epoch: int) -> list[Row]:
        """Return the rows of a batch."""
        with using_backend(self.backend):
            return [self._row(int(number), epoch) for number in numbers]

    def fill(self, rows: Sequence[Row], buffers: Buffers = fresh_buffer) -> Batch:
        """Make the batch of some rows.

        Returns:
            Images N x H x W x K or N x P1 x P2 x P3 x K, masks N x H x W x C or N x P1 x P2 x P3 x C, and with
            `keeps_raw` the images before the transforms.

        Raises:
            ShapeError: The rows differ in size.
        """
        return self._transformed(rows, *self._filled(rows, buffers))

    def _filled(self, rows: Sequence[Row], buffers: Buffers) -> tuple[Array, Array]:
        size, channels = self._common_size(rows)
        images = self._images(len(rows), size, channels, buffers)
        masks = self._masks(len(rows), size, buffers)
        with using_backend(self.backend), sharing_chunks():
            for i in self._read_at_once(rows, images, masks):
                self._read(rows[i], images[i], masks[i])
        return self._as_images(images, size, channels), self._as_masks(masks)

    def _transformed(self, rows: Sequence[Row], images: Array, masks: Array) -> Batch:
        if self.pipeline is None:
            return (images, masks, images.copy()) if self.keeps_raw else (images, masks)
        transformed = self._transform(rows, images, masks)
        return (*transformed, images) if self.keeps_raw else transformed

    def fill_images(self, rows: Sequence[Row]) -> Array:
        """Make only the images of some rows, for prediction."""
        if self.pipeline is not None:
            return self.fill(rows)[0]
        size, channels = self._common_size(rows)
        images = self._images(len(rows), size, channels, fresh_buffer)
        with using_backend(self.backend):
            for i in self._read_at_once(rows, images, None):
                self._read(rows[i], images[i], None)
        return self._as_images(images, size, channels)

    def predicted_box(self, box: Box) -> Box:
        """Return the part of a window that a model predicts: the whole window, or its middle slice."""
        depth = self._mask_depth(box)
        return Box((*box.start[:2], depth.start), (*box.size[:2], depth.stop - depth.start))

    def prediction_shape(self, rows: Sequence[Row]) -> tuple[int, ...]:
        """Return the expected shape of a model's predictions, which is that of the masks."""
        h, w, d = self.predicted_box(rows[0].box).size
        return (len(rows), h, w, self.channels) if d == 1 else (len(rows), h, w, d, self.channels)

    def _row(self, number: int, epoch: int) -> Row:
        source = self.sources[self.plan.scan[number]]
        rng = ElementRng(self.seed, epoch, number)
        h, w, d = self.plan.place[number].tolist()
        scan = int(self.plan.scan[number])
        box = self.windows.box(source, (h, w, d), rng, lambda: self.foreground.locations(scan))
        return Row(source, box, rng)

    def _mask_depth(self, box: Box) -> slice:
        """Return the part of a box's D for which to read the mask."""
        start, size = box.start[2], box.size[2]
        return (
            slice(start + size // 2, start + size // 2 + 1)
            if self.windows.depth_is_channel
            else slice(start, start + size)
        )

    def _images(self, n: int, size: tuple[int, ...], channels: int | None, buffers: Buffers) -> Array:
        return buffers("images", (n, *size) + (() if channels is None else (channels,)), np.float32)

    def _masks(self, n: int, size: tuple[int, ...], buffers: Buffers) -> Array:
        depth = 1 if self.windows.depth_is_channel else size[2]
        return buffers("masks", (n, *size[:2], depth, self.channels), self.mask_dtype)

    def _read_at_once(self, rows: Sequence[Row], images: Array, masks: Array | None) -> Sequence[int]:
        """Read whole rows with the backend; return the rows that it skipped."""
        places = (
            row.source.places(row.box.window, None if masks is None else self._mask_depth(row.box))
            if row.box.inside(row.source.geometry.shape)
            else None
            for row in rows
        )
        table = None if masks is None else self.collation.table(masks.dtype)
        return self.backend.read_rows(len(rows), places, images, masks, table)

    def _read(self, row: Row, image: Array, mask: Array | None) -> None:
        source, box, shape, channels = row.source, row.box, row.source.geometry.shape, row.source.geometry.channels
        # One channel may be stored with or without a channel axis, even within a batch.
        image = image.reshape(*box.size, *(() if channels is None else (channels,)))
        if box.inside(shape):
            source.read(box.window, image, mask, self._mask_depth(box))
            return
        read_padded(lambda part, out: source.read(part, out, None), shape, box, self.pad_mode, image)
        if mask is not None:
            part_of_mask = self.predicted_box(box)
            depths = range(part_of_mask.window[2].start, part_of_mask.window[2].stop)
            padding = source.padding(depths, mask.dtype) if self.pad_mode == "constant" else None
            read_padded(
                lambda part, out: source.read(part, None, out), shape, part_of_mask, self.pad_mode, mask, padding
            )

    def _as_images(self, images: Array, size: tuple[int, ...], channels: int | None) -> Array:
        """Arrange the axes: a D of 1 is removed; a D that is the channel axis is last, merged with the channels of each
        slice."""
        n, h, w, d = (len(images), *size)
        if channels is not None and (d == 1 or self.windows.depth_is_channel):
            return images.reshape(n, h, w, d * channels)
        return images[..., None] if channels is None and d > 1 and not self.windows.depth_is_channel else images

    def _as_masks(self, masks: Array) -> Array:
        return masks[:, :, :, 0] if masks.shape[3] == 1 else masks

    def _common_size(self, rows: Sequence[Row]) -> tuple[tuple[int, ...], int | None]:
        """Return the common size of all rows, and their channels."""
        first = rows[0]
        size, channels = first.box.size, first.source.geometry.channels
        for row in rows[1:]:
            if row.box.size != size or (row.source.geometry.channels or 1) != (channels or 1):
                raise ShapeError(
                    f"One batch has elements of different sizes: {_described(first)}, and {_described(row)}. Set "
                    "IMG_SIZE to a size that fits all elements (smaller ones are padded), or use a batch size of 1."
                )
        return size, channels

    def _transform(self, rows: Sequence[Row], images: Array, masks: Array) -> tuple[Array, Array]:
        if self.pipeline is None:
            return images, masks
        results = [
            # Copy, because a transform may work in place.
            self.pipeline(image.copy() if self.keeps_raw else image, mask, row.rng())
            for image, mask, row in zip(images, masks, rows, strict=True)
        ]
        return _stack([image for image, _ in results], "images"), _stack([mask for _, mask in results], "masks")


def _stack(arrays: Sequence[Array], what: str) -> Array:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ShapeError(
            f"The transforms made {what} of different shapes in one batch: {', '.join(map(str, sorted(shapes)))}. "
            "Crop or pad them to one shape, or use a batch size of 1."
        )
    # Stack into a C-contiguous array: numpy.stack would keep the memory order of flipped or transposed arrays.
    return np.stack(arrays, out=np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype))


def _described(row: Row) -> str:
    channels = row.source.geometry.channels
    record = row.source.record_at(row.box.start[2] + row.box.size[2] // 2)
    size = by(row.box.size[:2] if row.box.size[2] == 1 else row.box.size)
    return f"{record.file_name} is {size}" + ("" if channels is None else f" with {channels} channels")
