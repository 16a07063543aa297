"""Reading through the HDF5 library: what cannot be read by byte ranges."""

from __future__ import annotations

import itertools
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.decode import DecodeError, check_size
from medsegpy_core.hdf5.locating import stored_chunk
from medsegpy_core.hdf5.policy import open_dataset, open_file
from medsegpy_core.hdf5.vetting import Vetted, vet

if TYPE_CHECKING:
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.typing import Array, Selection

__all__ = ["read_box"]


def read_box(path: str, layout: Layout, selection: Selection) -> Array:
    """Read a box of a dataset as a new array in its own type, native byte order; booleans as uint8.

    Raises:
        ReadError: It cannot be read, a chunk does not decode to its size, or the dataset is another one by now.
    """
    import h5py

    try:
        box = np.empty([s.stop - s.start for s in selection], layout.form.dtype)
    except MemoryError as error:
        raise ReadError("there is not enough memory to read it") from error
    with open_file(path) as file:
        dataset, key = open_dataset(file, path, (layout.key,))
        vetted = vet(dataset, path, key)
        if vetted != layout.form.vetted:
            raise ReadError("the file changed while it was read", path, key)
        if vetted.chunks is not None:
            _check_chunks(dataset, vetted, selection, os.stat(path).st_size)  # noqa: PTH116
        space = dataset.get_space()
        space.select_hyperslab(tuple(s.start for s in selection), box.shape)
        memory = h5py.h5s.create_simple((math.prod(box.shape),))
        dataset.read(memory, space, box, h5py.h5t.py_create(box.dtype))
    return box.view(np.uint8) if box.dtype.kind == "b" else box


def _check_chunks(dataset: Any, vetted: Vetted, selection: Selection, end: int) -> None:
    """Check that the chunks that a box touches decode to their size; the library does not look."""
    chunks = vetted.chunks or vetted.shape
    # In stored elements, whose size may differ from that of NumPy's.
    size = math.prod(chunks) * dataset.get_type().get_size()
    touched = (range(s.start // c, -(-s.stop // c)) for s, c in zip(selection, chunks, strict=True))
    for position in itertools.product(*touched):
        corner = tuple(i * c for i, c in zip(position, chunks, strict=True))
        info = dataset.get_chunk_info_by_coord(corner)
        if info.byte_offset is None:
            if not vetted.fill:
                raise ReadError("some of it was never written, and the file gives no value for that")
            continue  # fill values
        if info.byte_offset + info.size > end:
            raise ReadError(f"the chunk at {corner} lies beyond the end of the file ({end:,} bytes): it was cut short")
        mask, stored = stored_chunk(dataset, corner, info.size)
        try:
            check_size(stored, vetted.filters, mask, size)
        except DecodeError as error:
            raise ReadError(f"the chunk at {corner} decodes to {error}") from error
