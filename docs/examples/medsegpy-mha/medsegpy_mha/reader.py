"""The reader: the methods that `medsegpy_core` needs, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from medsegpy_core import ReadError, Record
from medsegpy_core.data import reordered
from medsegpy_mha.header import Header, read_header

if TYPE_CHECKING:
    import numpy as np

    from medsegpy_core.typing import Array

__all__ = ["MhaArray", "MhaReader", "MhaScan"]


@frozen
class MhaArray:
    """The voxels of a file, x, y, z as H, W, D. They are read on demand; no file stays open."""

    path: Path
    header: Header

    @property
    def shape(self) -> tuple[int, ...]:
        """H x W x D."""
        return self.header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type, in native byte order."""
        return self.header.dtype.newbyteorder("=")

    def __getitem__(self, selection: Any) -> Array:
        import numpy as np

        try:
            stored = np.memmap(
                self.path, self.header.dtype, mode="r", offset=self.header.offset, shape=self.shape, order="F"
            )
        except (OSError, ValueError) as error:
            raise ReadError(str(error), self.path) from error
        return np.array(stored[selection], dtype=self.dtype, order="C")


@frozen
class MhaScan:
    """An open scan."""

    image: MhaArray
    mask: MhaArray | None
    metadata: Mapping[str, Any] = field(factory=dict)
    mask_metadata: Mapping[str, Any] = field(factory=dict)


def _metadata(header: Header, axes: str | None) -> dict[str, Any]:
    """Return the metadata in a header, for the axes H, W, D, whatever stored order the dict declares."""
    return reordered({"spacing": header.spacing, "affine": header.affine}, axes)


@frozen
class MhaReader:
    """``NAME.mha`` is an image; ``NAME_seg.mha`` next to it, if it exists, is its mask, a label map."""

    name: str = "mha"
    suffixes: tuple[str, ...] = (".mha",)

    def probe(self, path: Path) -> bool:
        """Return whether the file begins like a MetaImage file."""
        with path.open("rb") as file:
            return file.read(10) == b"ObjectType"

    @contextmanager
    def open(self, record: Record) -> Iterator[MhaScan]:
        """Read the headers of image and mask."""
        image = MhaArray(record.file_name, read_header(record.file_name))
        metadata = _metadata(image.header, record.extra.get("image_axes"))
        if record.sem_seg_file is None:
            yield MhaScan(image, None, metadata)
            return
        mask = MhaArray(record.sem_seg_file, read_header(record.sem_seg_file))
        yield MhaScan(image, mask, metadata, _metadata(mask.header, record.extra.get("sem_seg_axes")))

    def scan(self, root: Path) -> list[dict[str, Any]]:
        """List the scans of a directory."""
        paths = [path for path in sorted(root.glob("*.mha")) if not path.stem.endswith("_seg")]
        return [self._dict(path) for path in paths]

    def _dict(self, path: Path) -> dict[str, Any]:
        d: dict[str, Any] = {"file_name": str(path), "scan_id": path.stem, "reader": self.name}
        mask = path.with_name(f"{path.stem}_seg.mha")
        # An integer mask, in which value v is channel v - 1; without a mask the scan is unlabelled.
        return d | {"sem_seg_file": str(mask), "label_map": True} if mask.exists() else d
