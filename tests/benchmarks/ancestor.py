"""The work of MedSegPy's loaders, as loops over h5py: open, read, collate by summing, stack, cast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

__all__ = ["collate_by_summing", "patch_batch", "slice_batch"]


def collate_by_summing(mask: np.ndarray, categories: Sequence[int | tuple[int, ...]]) -> np.ndarray:
    """Make one channel per category: one channel of the file, or the sum of several."""
    planes = [
        mask[..., category] if isinstance(category, int) else np.sum(mask[..., list(category)], axis=-1)
        for category in categories
    ]
    return np.stack(planes, axis=-1)


def slice_batch(stems: Sequence[str], categories: Sequence[int | tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Read slices by the stems of their files: N x H x W x 1 and N x H x W x C."""
    images, masks = [], []
    for stem in stems:
        with h5py.File(f"{stem}.im", "r") as file:
            images.append(file["data"][:])
        with h5py.File(f"{stem}.seg", "r") as file:
            mask = file["data"][:]
        masks.append(collate_by_summing(np.squeeze(mask, axis=-2), categories))
    return np.stack(images).astype(np.float32), np.stack(masks).astype(np.float32)


def patch_batch(
    boxes: Sequence[tuple[Path, tuple[slice, ...]]], categories: Sequence[int | tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """Read patches of volume files: N x P1 x P2 x P3 x 1 and N x P1 x P2 x P3 x C."""
    images, masks = [], []
    for path, box in boxes:
        with h5py.File(path, "r") as file:
            images.append(file["volume"][box][..., None])
        with h5py.File(path, "r") as file:
            masks.append(collate_by_summing(file["seg"][box], categories))
    return np.stack(images).astype(np.float32), np.stack(masks).astype(np.float32)
