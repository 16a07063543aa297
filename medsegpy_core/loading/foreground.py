"""Where the voxels of each category are, found once a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medsegpy_core.loading.sources import Source
from medsegpy_core.locks import ForkSafeLock
from medsegpy_core.masks import UNLABELLED_UINT8

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = ["ForegroundIndex"]

# Voxels that are remembered of a category in a scan. Where there are more, as many are drawn evenly, once: a patch
# centred on one of 65,536 voxels is as good as one of all, and a scan costs 256 KB a category, not its own size.
_REMEMBERED: Final = 1 << 16


class ForegroundIndex:
    """The voxels of each category, per scan; read when a scan is first asked for, from any thread.

    Args:
        sources: The scans.
        channels: Channels of a collated mask.
        background: Whether the first of them is the background, which is no foreground.
    """

    def __init__(self, sources: Sequence[Source], channels: int, background: bool):
        self._sources = sources
        self._channels = channels
        self._background = background
        self._found: dict[int, tuple[Array, ...]] = {}
        self._lock = ForkSafeLock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=ForkSafeLock())

    def locations(self, number: int) -> tuple[Array, ...]:
        """Return the flat indices (H x W x D, C order) of the voxels of each category that scan `number` has."""
        found = self._found.get(number)
        if found is None:
            # One thread reads, the others wait: two would read the same scan.
            with self._lock:
                found = self._found.get(number)
                if found is None:
                    found = self._found[number] = self._read(number)
        return found

    def forget(self, number: int) -> None:
        """Read scan `number` again when it is next asked for."""
        self._found.pop(number, None)

    def _read(self, number: int) -> tuple[Array, ...]:
        source = self._sources[number]
        h, w, d = source.geometry.shape
        if not any(record.labelled for record in source.scan.records):
            return ()
        mask = np.empty((h, w, d, self._channels), np.uint8)
        source.read((slice(0, h), slice(0, w), slice(0, d)), None, mask)
        mask[mask == UNLABELLED_UINT8] = 0
        rng = np.random.Generator(np.random.PCG64(number))
        found = []
        for channel in range(int(self._background), self._channels):
            voxels = np.flatnonzero(mask[..., channel])
            if voxels.size > _REMEMBERED:
                voxels = np.sort(rng.choice(voxels, _REMEMBERED, replace=False))
            if voxels.size:
                found.append(voxels.astype(np.int32 if mask[..., 0].size < 2**31 else np.int64))
        return tuple(found)
