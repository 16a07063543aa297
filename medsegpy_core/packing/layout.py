"""How packed arrays lie in the file, for each way of reading them."""

from __future__ import annotations

from typing import Any, Final, Literal

from attrs import field, frozen, validators

__all__ = ["Compression", "LayoutName", "PackLayout"]

LayoutName = Literal["slices", "patches"]
Compression = Literal["gzip", "none"]

# Level 1 is a tenth larger than level 4 on images of 12 bits, and is written three times as fast.
_GZIP_LEVEL: Final = 1
_ONE_CHUNK: Final = 64


@frozen
class PackLayout:
    """The layout of packed arrays.

    * ``slices``: depth first, so that a slice is one range of bytes. With gzip, a chunk is a slice.
    * ``patches``: H x W x D as ever, in chunks of a patch, so that a patch touches few of them.

    Attributes:
        name: Which of them.
        compression: ``"none"`` or ``"gzip"``.
        patch: H, W and D of a chunk of the layout ``patches``.
    """

    name: LayoutName = field(default="slices", validator=validators.in_(("slices", "patches")))
    compression: Compression = field(default="none", validator=validators.in_(("gzip", "none")))
    patch: tuple[int, int, int] = field(default=(_ONE_CHUNK, _ONE_CHUNK, _ONE_CHUNK))

    @patch.validator
    def _check_patch(self, _: Any, value: Any) -> None:
        if len(value) != 3 or any(not isinstance(n, int) or n < 1 for n in value):
            raise ValueError(f"The patch is {value!r}, expected three ints >= 1: H, W and D.")

    def axes(self, spatial: str, channels: bool) -> str:
        """Return the letters of the stored axes, of an array with the axes `spatial` (``"HWD"`` or ``"HW"``)."""
        order = "DHW" if self.name == "slices" and "D" in spatial else spatial
        return order + "C" * channels

    def storage(self, axes: str, shape: tuple[int, ...]) -> dict[str, Any]:
        """Return the options of ``h5py.Group.create_dataset`` for an array as it is stored."""
        if self.name == "slices" and self.compression == "none":
            return {}
        if self.name == "slices":
            chunk = tuple(1 if letter == "D" else n for letter, n in zip(axes, shape, strict=True))
        else:
            sizes = dict(zip("HWD", self.patch, strict=True))
            chunk = tuple(self._chunk(n, sizes.get(letter, n)) for letter, n in zip(axes, shape, strict=True))
        gzip = {"compression": "gzip", "compression_opts": _GZIP_LEVEL, "shuffle": True}
        return {"chunks": chunk} | (gzip if self.compression == "gzip" else {})

    def _chunk(self, size: int, patch: int) -> int:
        """Return the size of chunks along an axis; raw ones are made to fit, for the last is stored whole as well."""
        return min(size, patch) if self.compression == "gzip" else -(-size // -(-size // patch))

    def as_dict(self) -> dict[str, Any]:
        """Return this for JSON."""
        patch = {"patch": list(self.patch)} if self.name == "patches" else {}
        return {"layout": self.name, "compression": self.compression} | patch
