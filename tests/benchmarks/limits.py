"""Upper limits: copies in memory, and a loop that only reads."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from medsegpy_core import pack_dataset, packed_dicts
from medsegpy_core.datasets import make_records
from medsegpy_core.hdf5.options import Access, accessing
from medsegpy_core.loading.buffers import KeptBuffers
from medsegpy_core.loading.scans import Opener
from medsegpy_core.reading.lazy_arrays import read_into
from tests.benchmarks.material import SHAPE, Material, bits_of
from tests.benchmarks.peers import BATCH, PATCH

__all__ = ["bare_loop", "copy_slices", "crop", "pack", "random_box", "read_files", "read_stored"]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


def pack(
    name: str, out: Path, layout: str, patch: tuple[int, int, int] | None = None
) -> Callable[[], list[dict[str, Any]]]:
    """Pack a dataset and return the function that lists it."""
    packed = pack_dataset(name, out, layout=layout, patch=patch)
    os.sync()
    return lambda: packed_dicts(packed.manifest)


def random_box(rng: np.random.Generator) -> tuple[slice, ...]:
    """Return a random patch."""
    starts = [int(rng.integers(n - p + 1)) for n, p in zip(SHAPE, PATCH, strict=True)]
    return tuple(slice(s, s + p) for s, p in zip(starts, PATCH, strict=True))


def copy_slices(material: Material, threads: int) -> Callable[[], int]:
    """Copy the content of a batch of slices in memory: the image, and four classes of float32."""
    slices = 3 * BATCH
    image = np.ones((slices, *SHAPE[:2], 1), np.float32)
    mask = np.ones((slices, *SHAPE[:2], 4), np.float32)
    outs = [(np.empty_like(image[:BATCH]), np.empty_like(mask[:BATCH])) for _ in range(threads)]

    def work(thread: int) -> None:
        out_image, out_mask = outs[thread]
        for batch in range(thread, 24, threads):
            start = batch % 3 * BATCH
            for i in range(BATCH):
                np.copyto(out_image[i], image[start + i])
                np.copyto(out_mask[i], mask[start + i])

    def run() -> int:
        list(_pool().map(work, range(threads)))
        return 24 * BATCH

    return run


def read_files(paths: list[Path]) -> Callable[[], int]:
    """Read whole files with eight threads, to keep any disk busy; an image and a mask are one slice."""
    local = threading.local()

    def read(path: Path) -> None:
        size = path.stat().st_size
        if getattr(local, "memory", None) is None or len(local.memory) < size:
            local.memory = bytearray(size)
        fd = os.open(path, os.O_RDONLY)
        try:
            os.preadv(fd, [memoryview(local.memory)[:size]], 0)
        finally:
            os.close(fd)

    def run() -> int:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, paths))
        return len(paths) // 2

    return run


def crop(material: Material, expand: bool) -> Callable[[], int]:
    """Cut patches from arrays in memory in one thread: as bits, or expanded to four classes of float32."""
    image, bits = material.image, bits_of(material.mask)
    # The bits that each class needs: a voxel belongs to it where one of them is set.
    wanted = np.array([1, 6, 8, 48], np.uint8)
    table = ((np.arange(256, dtype=np.uint8)[:, None] & wanted) != 0).astype(np.float32)
    rng = np.random.default_rng(0)
    images = np.empty((2, *PATCH), np.float32)
    masks = np.empty((2, *PATCH, 4), np.float32) if expand else np.empty((2, *PATCH, 1), np.uint8)

    def run() -> int:
        for n in range(32):
            box = random_box(rng)
            np.copyto(images[n % 2], image[box])
            if expand:
                np.take(table, bits[box][..., 0], axis=0, out=masks[n % 2])
            else:
                np.copyto(masks[n % 2], bits[box])
        return 32

    return run


def bare_loop(loader: Any, threads: int, epochs: int) -> Callable[[], int]:
    """Make the batches of a loader in threads that know in advance what to read, each with its own buffers."""
    maker = loader.setup.maker
    numbers = [loader._numbers(i) for i in range(len(loader))]
    buffers = [KeptBuffers() for _ in range(threads)]

    def work(thread: int) -> int:
        return sum(
            len(maker.make(batch, 0, buffers[thread])[0]) for _ in range(epochs) for batch in numbers[thread::threads]
        )

    return lambda: sum(_pool().map(work, range(threads)))


def read_stored(dicts: list[dict[str, Any]], mmap: bool) -> Callable[[], int]:
    """Read stored patches (image and bits) with two threads, as a loader does before it expands them."""
    records = make_records(dicts, [""] * len(dicts))
    opener = Opener.of(records)
    starts = [np.random.default_rng(thread) for thread in range(2)]
    outs = [(np.empty(PATCH, np.float32), np.empty((*PATCH, 1), np.uint8)) for _ in range(2)]

    def work(thread: int) -> None:
        rng, (image, bits) = starts[thread], outs[thread]
        for n in range(32):
            with accessing(Access(mmap=mmap)), opener.open(records[n % len(records)]) as scan:
                box = random_box(rng)
                read_into(scan.image, box, image)
                read_into(scan.mask.packed, (*box, slice(0, 1)), bits)

    def run() -> int:
        list(_pool().map(work, range(2)))
        return 64

    return run
