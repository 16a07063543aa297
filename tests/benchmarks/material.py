"""The data of the benchmarks: scans like those of the OAI, 384 x 384 x 160 float32 with six thin structures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from medsegpy_core import write_slices
from medsegpy_core.hdf5 import pack_bitfield

__all__ = ["CATEGORIES", "SHAPE", "Material", "drop_from_cache", "make_scan"]

SHAPE = (384, 384, 160)
# Six channels, four classes: two of them are collated.
CATEGORIES = [0, (1, 2), 3, (4, 5)]


class Material(NamedTuple):
    """The paths of the sets, which contain the same scans."""

    slices: Path
    gzip_slices: Path
    volumes: Path
    image: np.ndarray
    mask: np.ndarray


def make_scan(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Make an image of smooth fields and noise, with 12 significant bits like those of scanners, and six shells."""
    rng = np.random.default_rng(seed)
    h, w, d = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    field = np.cos(3 * h)[:, None, None] * np.sin(2 * w)[None, :, None] * np.cos(d)[None, None, :]
    image = np.round(700 + 600 * field + 60 * rng.standard_normal(shape, np.float32)).astype(np.float32)
    mask = np.zeros((*shape, 6), np.uint8)
    for channel in range(6):
        center = rng.uniform(-0.4, 0.4, 3)
        radius = sum(
            ((axis - c) ** 2).reshape([-1 if i == k else 1 for k in range(3)])
            for i, (axis, c) in enumerate(zip((h, w, d), center, strict=True))
        )
        mask[..., channel] = (radius > 0.10 + 0.01 * channel) & (radius < 0.125 + 0.01 * channel)
    return image, mask


def make_material(folder: Path, scans: int) -> Material:
    """Write the sets with h5py: contiguous or, with a filter, in the chunks that h5py chooses."""
    sets = Material(folder / "slices", folder / "gzip", folder / "volumes", *make_scan(0))
    sets.volumes.mkdir(parents=True)
    sets.gzip_slices.mkdir()
    for number in range(1, scans + 1):
        image, mask = (sets.image, sets.mask) if number == 1 else make_scan(number)
        write_slices(sets.slices, image, mask, subject_id=number)
        with h5py.File(sets.volumes / f"{number:07d}_V00.h5", "w") as file:
            file["volume"], file["seg"] = image, mask
        if number == 1:
            for name in sorted(os.listdir(sets.slices)):
                with h5py.File(sets.slices / name) as source, h5py.File(sets.gzip_slices / name, "w") as file:
                    file.create_dataset("data", data=source["data"][:], compression="gzip")
    os.sync()
    return sets


def bits_of(mask: np.ndarray) -> np.ndarray:
    """Return the bit field of a mask, contiguous."""
    return np.ascontiguousarray(pack_bitfield(mask))


def drop_from_cache(paths: list[Path]) -> None:
    """Drop some files from the page cache; they must have been synced."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
