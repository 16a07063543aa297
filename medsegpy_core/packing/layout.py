"""How packed arrays lie in the file, for each way of reading them."""

from __future__ import annotations

from typing import Any, Final, Literal

from attrs import field, frozen, validators

__all__ = ["Compression", "LayoutName", "PackLayout"]

LayoutName = Literal["slices", "patches"]
Compression = Literal["gzip", "none"]

# A fast level: inflating takes as long whatever the level is.
_GZIP_LEVEL: Final = 1
# Chunks with a filter are decoded whole, so that large ones cost more than they save.
_GZIP_CHUNK: Final = 32


@frozen
class PackLayout:
    """The layout of packed arrays.

    * ``slices``: depth first, so that a slice is one range of bytes. With gzip, a chunk is a slice.
    * ``patches``: H x W x D as ever. In chunks of `patch`, of which a patch touches few; without `patch` and without
      gzip in one piece, which is read fastest where the file is in the page cache.

    Attributes:
        name: Which of them.
        compression: ``"none"`` or ``"gzip"``.
        patch: H, W and D of a chunk of the layout ``patches``; None: one piece, with gzip chunks of 32 x 32 x 32.
    """

    name: LayoutName = field(default="slices", validator=validators.in_(("slices", "patches")))
    compression: Compression = field(default="none", validator=validators.in_(("gzip", "none")))
    patch: tuple[int, int, int] | None = field(default=None)

    @patch.validator
    def _check_patch(self, _: Any, value: Any) -> None:
        if value is not None and (len(value) != 3 or any(not isinstance(n, int) or n < 1 for n in value)):
            raise ValueError(f"The patch is {value!r}, expected three ints >= 1: H, W and D.")

    def axes(self, spatial: str, channels: bool) -> str:
        """Return the letters of the stored axes, of an array with the axes `spatial` (``"HWD"`` or ``"HW"``)."""
        order = "DHW" if self.name == "slices" and "D" in spatial else spatial
        return order + "C" * channels

    def storage(self, axes: str, shape: tuple[int, ...]) -> dict[str, Any]:
        """Return the options of ``h5py.Group.create_dataset`` for an array as it is stored."""
        if self.compression == "none" and (self.name == "slices" or self.patch is None):
            return {}
        if self.name == "slices":
            chunk = tuple(1 if letter == "D" else n for letter, n in zip(axes, shape, strict=True))
        else:
            sizes = dict(zip("HWD", self.patch or (_GZIP_CHUNK,) * 3, strict=True))
            chunk = tuple(self._chunk(n, sizes.get(letter, n)) for letter, n in zip(axes, shape, strict=True))
        gzip = {"compression": "gzip", "compression_opts": _GZIP_LEVEL, "shuffle": True}
        return {"chunks": chunk} | (gzip if self.compression == "gzip" else {})

    def _chunk(self, size: int, patch: int) -> int:
        """Return the size of chunks along an axis; raw ones are made to fit, for the last is stored whole as well."""
        return min(size, patch) if self.compression == "gzip" else -(-size // -(-size // patch))

    def as_dict(self) -> dict[str, Any]:
        """Return this for JSON."""
        patch = None if self.patch is None else list(self.patch)
        return {"layout": self.name, "compression": self.compression, "patch": patch}
