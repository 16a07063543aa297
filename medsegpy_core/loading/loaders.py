"""The five built-in loaders: how each cuts its elements, by the config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from medsegpy_core.errors import ConfigError
from medsegpy_core.loading.loader import DataLoader
from medsegpy_core.loading.plan import spatial_setting
from medsegpy_core.loading.windows import GridWindows, RandomWindows, SliceWindows, VolumeWindows, Windows

if TYPE_CHECKING:
    from medsegpy_core.config import Config

__all__ = [
    "BUILT_IN",
    "DefaultDataLoader",
    "N5dDataLoader",
    "PatchDataLoader",
    "RandomPatchDataLoader",
    "S25dDataLoader",
]

_NO_PADDING: Final = (0, 0, 0)


class DefaultDataLoader(DataLoader):
    """One slice an element: images N x H x W x 1 (K channels: N x H x W x K), masks N x H x W x C."""

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        return SliceWindows(1, _in_plane(cfg))


class S25dDataLoader(DataLoader):
    """A slice and its neighbours as channels: images N x H x W x K, K = ``IMG_SIZE[-1]`` odd, padded at the ends of the
    scan with ``IMG_PAD_MODE``; masks N x H x W x C of the middle slice."""

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        return SliceWindows(_odd_depth(cls, cfg), _in_plane(cfg))


class N5dDataLoader(DataLoader):
    """Windows of a volume along its last axis: images N x H x W x K, K = ``IMG_SIZE[-1]`` odd, not padded unless
    ``IMG_PAD_SIZE`` says so; masks N x H x W x C of the middle slice."""

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        pad = spatial_setting("IMG_PAD_SIZE", cfg.IMG_PAD_SIZE, _NO_PADDING)
        stride = spatial_setting("IMG_STRIDE", cfg.IMG_STRIDE, (1, 1, 1), minimum=1)
        return VolumeWindows(_odd_depth(cls, cfg), _in_plane(cfg), pad[2], stride[2])


class PatchDataLoader(DataLoader):
    """A grid of patches: images N x P1 x P2 x P3 x 1, masks N x P1 x P2 x P3 x C.

    Patches of depth 1 give N x P1 x P2 x 1 and N x P1 x P2 x C.
    """

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        patch = spatial_setting("IMG_SIZE", cfg.IMG_SIZE, minimum=1)
        pad = spatial_setting("IMG_PAD_SIZE", cfg.IMG_PAD_SIZE, _NO_PADDING)
        return GridWindows(patch, pad, spatial_setting("IMG_STRIDE", cfg.IMG_STRIDE, patch, minimum=1))


class RandomPatchDataLoader(DataLoader):
    """``PATCHES_PER_SCAN`` random patches a scan and epoch, images and masks as of `PatchDataLoader`.

    ``FOREGROUND_RATIO`` of them are centred on a voxel of a category.
    """

    @classmethod
    def windows(cls, cfg: Config) -> Windows:
        """See `DataLoader.windows`."""
        patch = spatial_setting("IMG_SIZE", cfg.IMG_SIZE, minimum=1)
        pad = spatial_setting("IMG_PAD_SIZE", cfg.IMG_PAD_SIZE, _NO_PADDING)
        return RandomWindows.of(patch, pad, cfg.PATCHES_PER_SCAN, cfg.FOREGROUND_RATIO)


BUILT_IN: Final[dict[str, type[DataLoader]]] = {
    loader.__name__: loader
    for loader in (DefaultDataLoader, S25dDataLoader, PatchDataLoader, N5dDataLoader, RandomPatchDataLoader)
}


def _in_plane(cfg: Config) -> tuple[int, int] | None:
    """Return the H and W of ``IMG_SIZE``; None: slices come as they are."""
    if not cfg.IMG_SIZE:
        return None
    h, w, _ = spatial_setting("IMG_SIZE", cfg.IMG_SIZE, minimum=1)
    return h, w


def _odd_depth(cls: type[DataLoader], cfg: Config) -> int:
    size = cfg.IMG_SIZE
    if len(size) != 3 or size[-1] % 2 == 0:
        raise ConfigError(
            f"{cls.__name__} needs IMG_SIZE = (H, W, K) with K slices a window, odd, so that there is a middle one; it "
            "is "
            f"{size!r}."
        )
    return int(size[-1])
